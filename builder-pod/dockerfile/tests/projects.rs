//! Dockerfiles as projects write them: each folder of `tests/projects` is one, some with all that they copy (those are
//! built in `e2e/interop`). `tests/projects.txt` was written by BuildKit's own frontend (`tests/record/main.go`).
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;

use lapstrake_dockerfile::{Images, Lowered, Options, fixed, formatted, parse, plan};
use lapstrake_oci::{Digest, ImageConfig};

const RECORDED: &str = include_str!("projects.txt");

/// Of a step that mounts a tmpfs, BuildKit's frontend says that it uses the whole context. Ours does not, so that the
/// vertex of the context, and those that mount it, are others.
const NARROWER: [&str; 1] = ["apt-cache-mounts"];

/// Names of the projects, with their Dockerfiles and options.
fn projects() -> Vec<(String, support::Case)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/projects");
    let mut names: Vec<_> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
        .into_iter()
        .map(|name| {
            let case = support::Case::read(&root.join(&name));
            (name, case)
        })
        .collect()
}

fn lowered(text: &str, options: &Options) -> Lowered {
    let parsed = parse("Dockerfile", text);
    plan(&parsed, options)
        .and_then(|plan| plan.lower(&support::resolve(&plan)))
        .unwrap_or_else(|findings| panic!("{findings}"))
}

/// A name without the stage and step that it is of: a vertex that is in several has the name of one of them.
fn unnumbered(name: &str) -> &str {
    let numbered = name.starts_with('[') && !name.starts_with("[internal]");
    name.split_once("] ").filter(|_| numbered).map_or(name, |(_, rest)| rest)
}

/// What BuildKit said of a project.
fn recorded(name: &str, what: &str) -> &'static str {
    let prefix = format!("{name}: {what} ");
    let line = RECORDED.lines().find_map(|line| line.strip_prefix(&prefix));
    line.unwrap_or_else(|| panic!("{name} was not recorded: see tests/record/main.go"))
}

#[test]
fn there_are_sixty_of_them() {
    assert!(projects().len() >= 60);
    assert_eq!(RECORDED.lines().count(), projects().len() * 4);
}

#[test]
fn vertices_of_projects_are_those_that_buildkit_makes() {
    let mut differing = Vec::new();
    for (name, case) in projects() {
        let mut lines = support::identities(&lowered(&case.text, &case.options).definition);
        let target = lines.pop().unwrap_or_default();
        let (mut digests, mut names): (Vec<_>, Vec<_>) = lines
            .iter()
            .map(|line| line.split_once(' ').unwrap())
            .map(|(digest, name)| (digest, unnumbered(name)))
            .unzip();
        digests.sort_unstable();
        names.sort_unstable();
        let named = Digest::of(names.join("\n").as_bytes()).hex();
        if NARROWER.contains(&name.as_str()) {
            assert_eq!(digests.len(), recorded(&name, "vertices").split(' ').count(), "{name}");
            assert_ne!(digests.join(" "), recorded(&name, "vertices"), "{name} is no exception any more");
        } else if digests.join(" ") != recorded(&name, "vertices") {
            differing.push(format!("{name}: vertices\n  {}", lines.join("\n  ")));
        } else if format!("target {}", recorded(&name, "target")) != target {
            differing.push(format!("{name}: target"));
        } else if named[..16] != *recorded(&name, "names") {
            differing.push(format!("{name}: names\n  {}", names.join("\n  ")));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn configs_of_projects_are_those_that_buildkit_writes() {
    for (name, case) in projects() {
        let wanted: ImageConfig = serde_json::from_str(recorded(&name, "config")).unwrap();
        let found = lowered(&case.text, &case.options).config;
        let text = |config: &ImageConfig| serde_json::to_string_pretty(config).unwrap();
        assert_eq!(text(&found), text(&wanted), "{name}");
    }
}

#[test]
fn formatting_and_mending_of_projects_change_nothing() {
    for (name, case) in projects() {
        let outcome = |text: &str| {
            let lowered = lowered(text, &case.options);
            (lowered.definition.def, serde_json::to_string(&lowered.config).unwrap())
        };
        let before = outcome(&case.text);
        let parsed = parse("Dockerfile", &case.text);
        if let Some(text) = formatted(&parsed) {
            assert!(outcome(&text) == before, "{name}: formatting changes\n{text}");
            assert_eq!(formatted(&parse("Dockerfile", &text)).as_deref(), Some(text.as_str()), "{name}");
        }
        if let Some((text, _)) = fixed(&parsed, &case.options, &Images::new()) {
            assert!(outcome(&text) == before, "{name}: mending changes\n{text}");
        }
    }
}
