//! Targets and outlines are those that BuildKit tells (`tests/outline.txt`, see `tests/record`).
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lapstrake_dockerfile::{
    Capabilities, Images, Options, Parsed, Subrequest, parse, plan, targets, targets_text,
};

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
            "lint.txt" => {
                let options = Options { target: None, build_args: BTreeMap::new(), ..options.clone() };
                let answer = Subrequest::Lint.answer(&parsed, &options, &images(&parsed, &options)).unwrap();
                assert_eq!(answer["result.statuscode"], if wanted == "" { "0" } else { "1" });
                answer["result.txt"].clone().into()
            }
            other => panic!("{other}"),
        };
        assert_eq!(clean(found), clean(wanted), "{line}");
    }
}

/// Configs of the base images.
fn images(parsed: &Parsed, options: &Options) -> Images {
    support::resolve(&plan(parsed, options).unwrap())
}

#[test]
fn questions_have_their_answers_and_others_none() {
    let parsed = parse("Dockerfile", &text("app.Dockerfile"));
    assert_eq!(Subrequest::named("frontend.other"), None);
    for id in ["frontend.outline", "frontend.targets", "frontend.lint", "frontend.subrequests.describe"] {
        let answer = Subrequest::named(id).unwrap();
        let answer = answer.answer(&parsed, &Options::default(), &Images::new()).unwrap();
        assert_eq!(answer["version"], "1.0.0");
        serde_json::from_str::<serde_json::Value>(&answer["result.json"]).unwrap();
        assert!(!answer["result.txt"].is_empty(), "{id}");
    }
    let broken = parse("Dockerfile", "FROM\n");
    assert!(Subrequest::Targets.answer(&broken, &Options::default(), &Images::new()).is_err());
    let lint = Subrequest::Lint.answer(&broken, &Options::default(), &Images::new()).unwrap();
    assert!(lint["result.json"].contains("buildError") && lint["result.statuscode"] == "1");
}

#[test]
fn operations_are_told_in_the_form_that_buildkit_tells_them() {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    for line in include_str!("convert.txt").lines() {
        let (case, wanted) = line.split_once(": ").unwrap();
        let wanted: serde_json::Value = serde_json::from_str(wanted).unwrap();
        let support::Case { text, options, .. } = support::Case::read(&cases.join(case));
        let parsed = parse("Dockerfile", &text);
        let answer = Subrequest::ConvertLlb.answer(&parsed, &options, &images(&parsed, &options)).unwrap();
        assert_eq!(answer["version"], "0.1.0");
        let found: serde_json::Value = serde_json::from_str(&answer["result.json"]).unwrap();
        let metadata = &wanted["metadata"];
        for (digest, wanted) in wanted["def"].as_object().unwrap() {
            assert_eq!(&found["def"][digest], wanted, "{case}: {digest}");
            let (found, wanted) = (&found["metadata"][digest], &metadata[digest]);
            let name = |of: &serde_json::Value| of["description"]["llb.customname"].clone();
            assert_eq!(name(found), name(wanted), "{case}: {digest}");
        }
        assert_eq!(found["source"]["infos"], wanted["source"]["infos"], "{case}");
        // We also know where an image is named that a mount takes files from.
        let found = lines_of(&found);
        for (digest, places) in lines_of(&wanted) {
            assert_eq!(found.get(digest), Some(&places), "{case}: {digest}");
        }
    }
}

/// Lines of each operation, however they are joined; BuildKit has an empty place for those that stand nowhere.
fn lines_of(answer: &serde_json::Value) -> BTreeMap<&String, BTreeSet<u64>> {
    let all = answer["source"]["locations"].as_object().unwrap().iter();
    let lines = |of: &serde_json::Value| {
        let places = of["locations"].as_array().into_iter().flatten();
        let ranges = places.flat_map(|place| place["ranges"].as_array().into_iter().flatten());
        let line = |at: &serde_json::Value| at["line"].as_u64().unwrap();
        ranges.flat_map(|range| line(&range["start"])..=line(&range["end"])).collect::<BTreeSet<_>>()
    };
    all.map(|(digest, of)| (digest, lines(of))).filter(|(_, lines)| !lines.is_empty()).collect()
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
