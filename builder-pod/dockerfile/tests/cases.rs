//! Each folder of `tests/cases` is a Dockerfile with options; what comes of it is a snapshot.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::{Path, PathBuf};

fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut dirs: Vec<_> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.retain(|dir| dir.join("Dockerfile").exists());
    dirs.sort();
    dirs
}

#[test]
fn every_case_gives_what_its_snapshot_says() {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for dir in cases() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let mut settings = settings.clone();
        settings.set_snapshot_path(&dir);
        settings
            .bind(|| insta::assert_snapshot!("expected", support::report(&support::Case::read(&dir)), &name));
    }
}

/// Cases where BuildKit's names count steps wrongly, or where one vertex has two names.
const OTHER_NAMES: [&str; 2] = ["onbuild", "same-step-twice"];

/// `tests/buildkit.txt` was written by BuildKit's own frontend (`tests/record/main.go`).
#[test]
fn vertices_have_the_identities_and_names_that_buildkit_gives_them() {
    let recorded = include_str!("buildkit.txt");
    let mut differing = Vec::new();
    for dir in cases() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let prefix = format!("{name}: ");
        let mut wanted: Vec<_> = recorded
            .lines()
            .filter_map(|l| l.strip_prefix(&prefix))
            .filter(|l| !l.starts_with("config "))
            .collect();
        if wanted.is_empty() {
            continue;
        }
        let case = support::Case::read(&dir);
        let parsed = lapstrake_dockerfile::parse("Dockerfile", &case.text);
        let found = lapstrake_dockerfile::plan(&parsed, &case.options)
            .and_then(|plan| plan.lower(&support::resolve(&plan)))
            .map(|lowered| support::identities(&lowered.definition))
            .unwrap_or_else(|findings| vec![findings.to_string()]);
        let digest_only = |line: &mut &str| *line = line.split(' ').next().unwrap_or("");
        let mut found: Vec<_> = found.iter().map(String::as_str).collect();
        if OTHER_NAMES.contains(&name.as_str()) {
            wanted.iter_mut().chain(&mut found).for_each(digest_only);
        }
        found.sort_unstable();
        wanted.sort_unstable();
        for line in wanted.iter().filter(|l| !found.contains(l)) {
            differing.push(format!("{name}: - {line}"));
        }
        for line in found.iter().filter(|l| !wanted.contains(l)) {
            differing.push(format!("{name}: + {line}"));
        }
    }
    assert!(differing.is_empty(), "\n{}", differing.join("\n"));
}

#[test]
fn image_configs_are_those_that_buildkit_writes() {
    let recorded = include_str!("buildkit.txt");
    for dir in cases() {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let prefix = format!("{name}: config ");
        let Some(wanted) = recorded.lines().find_map(|l| l.strip_prefix(&prefix)) else { continue };
        let wanted: lapstrake_oci::ImageConfig = serde_json::from_str(wanted).unwrap();
        let case = support::Case::read(&dir);
        let parsed = lapstrake_dockerfile::parse("Dockerfile", &case.text);
        let plan = lapstrake_dockerfile::plan(&parsed, &case.options).unwrap();
        let found = plan.lower(&support::resolve(&plan)).unwrap().config;
        assert_eq!(
            serde_json::to_string_pretty(&found).unwrap(),
            serde_json::to_string_pretty(&wanted).unwrap(),
            "{name}"
        );
    }
}

#[test]
fn formatting_and_mending_change_neither_operations_nor_config() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let examples =
        std::fs::read_dir(root.join("lint")).unwrap().map(|e| e.unwrap().path().join("bad.Dockerfile"));
    let files = cases().into_iter().map(|dir| (dir.join("Dockerfile"), dir));
    for (file, dir) in files.chain(examples.map(|file| (file, root.join("nothing")))) {
        let case = match dir.exists() {
            true => support::Case::read(&dir),
            false => support::Case::of(std::fs::read_to_string(&file).unwrap()),
        };
        let outcome = |text: &str| {
            let parsed = lapstrake_dockerfile::parse("Dockerfile", text);
            let plan = lapstrake_dockerfile::plan(&parsed, &case.options).ok()?;
            let lowered = plan.lower(&support::resolve(&plan)).ok()?;
            Some((lowered.definition.def, serde_json::to_string(&lowered.config).unwrap()))
        };
        let before = outcome(&case.text);
        let parsed = lapstrake_dockerfile::parse("Dockerfile", &case.text);
        if let Some(text) = lapstrake_dockerfile::formatted(&parsed) {
            assert!(outcome(&text) == before, "{}: formatting changes\n{text}", file.display());
        }
        let images = lapstrake_dockerfile::Images::new();
        if let Some((text, _)) = lapstrake_dockerfile::fixed(&parsed, &case.options, &images) {
            assert!(outcome(&text) == before, "{}: mending changes\n{text}", file.display());
        }
    }
}
