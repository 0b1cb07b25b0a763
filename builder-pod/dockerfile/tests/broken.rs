//! Broken files: what is said of them, beside what BuildKit says (`tests/broken.txt`, see `tests/record`). From it
//! `docs/diagnostics.md` is made: `LAPSTRAKE_WRITE_DOCS=1 cargo test -p lapstrake-dockerfile --test broken`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use lapstrake_dockerfile::{Diagnostics, Images, Style, lint, parse, plan};

const HEAD: &str = "\
# What is said of broken Dockerfiles

Each finding has a stable code, one line that says what is wrong, the line with the place underlined, and where there is one, the
cause (`note`) and the way out (`help`). What does not depend on each other is told in one go. On a terminal it is in colour
(`lapstrake-builder check`, `lapstrake-builder build`); tools take `check --format=json` or `--format=sarif`; the status of an
ImageBuild has the short form with line and column.

Below is what BuildKit 0.34.2's frontend says of the same files. The page is made by a test (`builder-pod/dockerfile/tests/broken.rs`).
";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn ours(case: &support::Case) -> Diagnostics {
    let parsed = parse("Dockerfile", &case.text);
    let Ok(plan) = plan(&parsed, &case.options) else {
        return lint::check(&parsed, &case.options, &Images::new()).findings;
    };
    let images = support::resolve(&plan);
    // A registry does not have what is not there.
    if let Some(missing) =
        plan.images_needed(&Images::new()).iter().find(|r| r.key.reference.name().contains("biuld"))
    {
        return plan.image_error(missing, "not found");
    }
    match plan.lower(&images) {
        Err(findings) => findings,
        Ok(lowered) => lowered.warnings,
    }
}

#[test]
fn every_broken_file_is_told_of_and_the_page_shows_how() {
    let recorded = include_str!("broken.txt");
    let mut dirs: Vec<_> =
        std::fs::read_dir(root().join("tests/broken")).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    let mut page = HEAD.to_owned();
    for dir in dirs {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        let case = support::Case::read(&dir);
        let findings = ours(&case);
        assert!(!findings.is_empty(), "{name}: nothing is said");
        let helps =
            |f: &lapstrake_dockerfile::Diagnostic| f.help.is_some() || f.note.is_some() || !f.also.is_empty();
        assert!(findings.iter().any(helps), "{name}: nothing helps");
        let said = recorded.lines().find_map(|line| line.strip_prefix(&format!("{name}: ERROR ")));
        let said = said.unwrap_or("(nothing; it is taken for something else)");
        let title = name.replace('-', " ");
        let _ = write!(page, "\n## {}{}\n\n", title[..1].to_uppercase(), &title[1..]);
        if let Some(target) = &case.options.target {
            let _ = write!(page, "With `--target {target}`:\n\n");
        }
        let _ = write!(page, "```dockerfile\n{}```\n\nBuildKit:\n\n```text\n{said}\n```\n\n", case.text);
        let _ = write!(page, "Lapstrake:\n\n```text\n{}```\n", findings.render(Style::Plain));
    }
    let path = root().join("../../docs/diagnostics.md");
    if std::env::var_os("LAPSTRAKE_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == page, "LAPSTRAKE_WRITE_DOCS=1 cargo test -p lapstrake-dockerfile --test broken");
}
