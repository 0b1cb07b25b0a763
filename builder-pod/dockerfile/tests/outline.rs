//! Targets and outlines are those that BuildKit tells (`tests/outline.txt`, see `tests/record`).
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::Path;

use lapstrake_dockerfile::{Capabilities, Options, parse, plan, targets, targets_text};

fn text(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/outline").join(file)).unwrap()
}

#[test]
fn targets_and_outlines_are_those_of_buildkit() {
    for line in include_str!("outline.txt").lines() {
        let mut parts = line.splitn(3, ": ");
        let (file, what, wanted) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        let wanted: serde_json::Value = serde_json::from_str(wanted).unwrap();
        let parsed = parse("Dockerfile", &text(file));
        let (what, target) = what.split_once(' ').unwrap_or((what, ""));
        let options = Options {
            target: Some(target.to_owned()),
            build_args: [("FLAGS".to_owned(), "-O2".to_owned())].into(),
            target_platform: Some("linux/amd64".parse().unwrap()),
            capabilities: Capabilities::ALL,
            ..Options::default()
        };
        let outline = || {
            let plan = plan(&parsed, &options).unwrap();
            plan.outline(&support::resolve(&plan))
        };
        let found = match what {
            "targets" => serde_json::to_value(targets(&parsed)).unwrap(),
            "targets.txt" => targets_text(&targets(&parsed)).into(),
            "outline" => serde_json::to_value(outline()).unwrap(),
            "outline.txt" => outline().to_text().into(),
            other => panic!("{other}"),
        };
        assert_eq!(clean(found), clean(wanted), "{line}");
    }
}

/// Without columns that are 0, which BuildKit leaves out, and spaces at the ends of lines, which a table has or not.
fn clean(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::String(text) => {
            text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n").into()
        }
        other => other,
    }
}
