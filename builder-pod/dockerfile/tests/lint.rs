//! Rules: every one has an example that it complains about and one that it does not, and BuildKit's say what BuildKit
//! says (`tests/lint.txt` was written by its linter, see `tests/record`).
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::{Path, PathBuf};

use lapstrake_dockerfile::lint::{self, Checked, RULES, Rule};
use lapstrake_dockerfile::{Capabilities, ContextFacts, Images, Options, Severity, Style, parse, plan};

fn options() -> Options {
    Options {
        target_platform: Some("linux/amd64".parse().unwrap()),
        capabilities: Capabilities::ALL,
        ignore_patterns: vec!["*.log".to_owned(), "node_modules".to_owned(), "/secret/".to_owned()],
        context_facts: Some(ContextFacts { bytes: 300 << 20, has_ignore_file: false }),
        ..Options::default()
    }
}

fn checked(text: &str) -> Checked {
    checked_with(text, options())
}

fn checked_with(text: &str, options: Options) -> Checked {
    let parsed = parse("Dockerfile", text);
    let images = match plan(&parsed, &options) {
        Ok(plan) => support::resolve(&plan),
        Err(_) => Images::new(),
    };
    lint::check(&parsed, &options, &images)
}

fn names(text: &str) -> Vec<&'static str> {
    checked(text).findings.iter().map(|finding| finding.code).collect()
}

/// Rules that find something, beside errors at the same place too. One of them needs a context to look at, which the
/// others' examples don't have.
fn rules(name: &str, text: &str) -> Vec<String> {
    let files = ["app.conf", "sub/other"].map(str::to_owned);
    let context_files = (name == "CopyMissingFile").then(|| files.into_iter().collect());
    let json = checked_with(text, Options { context_files, ..options() }).to_client_json();
    let warnings = json["warnings"].as_array().unwrap().iter();
    warnings.map(|warning| warning["ruleName"].as_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn shows(rule: &Rule) {
    let bad = rules(rule.name, rule.bad);
    assert!(bad.iter().any(|name| name == rule.name), "{}: the bad example gives {bad:?}", rule.name);
    let good = rules(rule.name, rule.good);
    assert!(!good.iter().any(|name| name == rule.name), "{}: so does the good one", rule.name);
}

#[test]
fn every_rule_complains_about_its_bad_example_and_not_about_its_good_one() {
    for rule in RULES {
        shows(rule);
    }
}

#[test]
fn examples_are_about_one_thing() {
    // What only some want is no matter of an example of something else.
    for rule in RULES {
        let more: Vec<_> =
            names(rule.good).into_iter().filter(|name| *name != "LargeContextWithoutIgnore").collect();
        assert!(more.is_empty(), "{}: {more:?} in the good example", rule.name);
    }
}

#[test]
fn the_page_says_what_the_rules_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/lint.md");
    let page = std::fs::read_to_string(path).unwrap_or_default();
    assert!(page == lint::page(), "run cargo run -p lapstrake-dockerfile --example lint_page > docs/lint.md");
}

fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dirs = [root.join("lint"), root.join("tests/lint")];
    let entries = dirs.iter().flat_map(|dir| std::fs::read_dir(dir).unwrap());
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .flat_map(|path| match path.is_dir() {
            true => vec![path.join("bad.Dockerfile"), path.join("good.Dockerfile")],
            false => vec![path],
        })
        .collect();
    files.sort();
    files
}

/// A name for a file that is the same on every machine.
fn short(path: &Path) -> String {
    let parts: Vec<_> = path.iter().rev().take(2).map(|part| part.to_string_lossy().into_owned()).collect();
    format!("{}/{}", parts[1], parts[0])
}

#[test]
fn buildkit_s_rules_say_what_buildkit_says_of_the_same_lines() {
    let recorded = include_str!("lint.txt");
    let mut differing = Vec::new();
    for path in files() {
        let name = short(&path);
        let prefix = format!("{name}: ");
        let mut wanted: Vec<_> = recorded.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
        let json = checked(&std::fs::read_to_string(&path).unwrap()).to_client_json();
        let mut found: Vec<String> = json["warnings"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|warning| warning["ruleName"] != "CopyIgnoredFile")
            .filter(|warning| lint::rule(warning["ruleName"].as_str().unwrap()).unwrap().of_buildkit)
            .map(|warning| {
                let range = &warning["location"]["ranges"][0];
                let text = |name: &str| warning[name].as_str().unwrap().to_owned();
                format!(
                    "{} {}-{} {} | {} | {}",
                    text("ruleName"),
                    range["start"]["line"],
                    range["end"]["line"],
                    text("detail"),
                    text("description"),
                    text("url"),
                )
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        wanted.sort_unstable();
        wanted.dedup();
        for line in wanted.iter().filter(|line| !found.iter().any(|f| f == *line)) {
            differing.push(format!("{name}: - {line}"));
        }
        for line in found.iter().filter(|line| !wanted.contains(&line.as_str())) {
            differing.push(format!("{name}: + {line}"));
        }
    }
    assert!(differing.is_empty(), "\n{}", differing.join("\n"));
}

#[test]
fn a_comment_above_an_instruction_turns_a_rule_off_for_it_alone() {
    let text = "FROM alpine:3\n# check=skip=LegacyKeyValueFormat\nENV a b\nENV c d\n";
    let found = checked(text);
    let lines: Vec<_> = found.findings.iter().map(|f| (f.code, f.lines.unwrap().0)).collect();
    assert_eq!(lines, [("LegacyKeyValueFormat", 4)]);
}

#[test]
fn a_file_makes_errors_of_what_rules_find_when_it_says_so() {
    let text = "# check=error=true\nFROM alpine:3\nENV a b\nMAINTAINER x\n";
    let found = checked(text);
    assert!(found.failed());
    let error = found.findings.first_error().unwrap();
    assert_eq!(error.message, "lint violation found for rules: LegacyKeyValueFormat, MaintainerDeprecated");
    let parsed = parse("Dockerfile", text);
    let plan = plan(&parsed, &options()).unwrap();
    let error = plan.lower(&support::resolve(&plan)).unwrap_err();
    assert!(error.to_string().contains("lint violation found"), "{error}");
    // Ours are no reason to refuse what BuildKit takes, unless the file asks for them.
    assert!(!checked("# check=error=true\nFROM alpine:3\nRUN cd /x\n").failed());
    assert!(checked("# check=error=true;experimental=CdWithoutEffect\nFROM alpine:3\nRUN cd /x\n").failed());
}

#[test]
fn a_build_argument_takes_the_place_of_the_directive() {
    let text = "# check=error=true\nFROM alpine:3\nENV a b\n";
    let with = |value: &str| {
        let mut options = options();
        options.build_args.insert("BUILDKIT_DOCKERFILE_CHECK".to_owned(), value.to_owned());
        lint::check(&parse("Dockerfile", text), &options, &Images::new())
    };
    assert!(with("skip=all").findings.is_empty());
    assert!(!with("").failed() && with("").findings.len() == 1);
    let wrong = with("skipp=all");
    assert_eq!(
        wrong.findings.first_error().unwrap().message,
        "failed to parse check options: invalid check option \"skipp\""
    );
}

#[test]
fn a_rule_that_does_not_exist_is_told_with_the_one_that_was_meant() {
    let found = checked("# check=skip=UndefinedVars\nFROM alpine:3\n");
    let texts: Vec<_> = found.findings.iter().map(|f| found.findings.short(f)).collect();
    assert_eq!(texts, ["Dockerfile:1:1: no rule is called UndefinedVars (did you mean UndefinedVar?)"]);
}

#[test]
fn warnings_are_part_of_a_build_and_stages_that_are_not_needed_are_not() {
    let text = "FROM alpine:3 AS other\nENV a b\nFROM alpine:3\nENV c d\n";
    let parsed = parse("Dockerfile", text);
    let plan = plan(&parsed, &options()).unwrap();
    let lowered = plan.lower(&support::resolve(&plan)).unwrap();
    let lines: Vec<_> = lowered.warnings.iter().map(|f| (f.code, f.lines.unwrap().0)).collect();
    assert_eq!(lines, [("LegacyKeyValueFormat", 4)]);
    assert_eq!(names(text), ["LegacyKeyValueFormat", "LegacyKeyValueFormat"]);
}

#[test]
fn without_the_base_s_config_only_slips_are_told() {
    let text = "FROM alpine:3\nARG DIRECTORY=/x\nWORKDIR $DIRECTRY\nWORKDIR $SET_BY_BASE\n";
    let found = lint::check(&parse("Dockerfile", text), &options(), &Images::new());
    let undefined: Vec<_> =
        found.findings.iter().filter(|f| f.code == "UndefinedVar").map(|f| f.message.clone()).collect();
    assert_eq!(undefined, ["Usage of undefined variable '$DIRECTRY' (did you mean $DIRECTORY?)"]);
}

#[test]
fn what_is_not_in_the_context_is_told_with_what_was_meant() {
    let files = ["app.conf", "sub", "sub/other"].map(str::to_owned).into_iter().collect();
    let text = "FROM scratch\nCOPY app.cnf other sub/ *.txt ./app.conf https /x/\nCOPY --from=0 gone /\n";
    let text = text.replace("--from=0", "--from=alpine");
    let found = checked_with(&text, Options { context_files: Some(files), ..options() });
    let said: Vec<_> =
        found.findings.iter().map(|f| (f.message.as_str(), f.help.as_deref().unwrap_or(""))).collect();
    let relative = "paths are relative to the root of the context, wherever the Dockerfile is";
    assert_eq!(
        said,
        [
            ("The context has no app.cnf", "did you mean app.conf?"),
            ("The context has no other", "did you mean sub/other?"),
            ("The context has no https", relative),
        ]
    );
}

#[test]
fn errors_and_warnings_come_together() {
    let found = checked("FROM alpine:3\nENV a b\nCOPY --chmod=9 x /\n");
    let all: Vec<_> = found.findings.iter().map(|f| (f.severity, f.code)).collect();
    assert_eq!(all, [(Severity::Warning, "LegacyKeyValueFormat"), (Severity::Error, "invalid-chmod")]);
    let text = found.findings.render(Style::Plain);
    assert!(text.contains("warning[LegacyKeyValueFormat]: \"ENV key=value\" should be used"), "{text}");
}
