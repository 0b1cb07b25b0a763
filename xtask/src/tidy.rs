//! The rules of the house that no compiler sees.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A file that is longer than this needs a plan.
const LINES_MAX: usize = 1000;

/// Crates, and which of ours each may use. A crate that is not here may not use any.
const ARROWS: &[(&str, &[&str])] = &[
    ("crds", &[]),
    ("handoff", &[]),
    ("operator", &["crds", "handoff"]),
    ("builder-pod/oci", &[]),
    ("builder-pod/llb", &["oci"]),
    ("builder-pod/cache", &["llb", "oci"]),
    ("builder-pod/dockerfile", &["llb", "oci"]),
    ("builder-pod/solver", &["llb", "oci"]),
    ("builder-pod/sys", &[]),
    ("builder-pod/store", &["oci", "sys"]),
    ("builder-pod/run", &["sys"]),
    ("builder-pod/registry", &["oci"]),
    ("builder-pod/bucket", &["oci", "registry"]),
    ("builder-pod/image", &["oci", "sys", "store"]),
    ("builder-pod/fileop", &["sys", "oci"]),
    ("builder-pod/ssh", &[]),
    ("builder-pod/api", &["llb"]),
    ("builder-pod/session", &["api", "fileop"]),
    ("builder-pod/daemon", &["registry", "sys"]),
    ("builder-pod/source", &["oci", "registry", "sys", "fileop"]),
    ("fuzz", &["dockerfile", "fileop", "llb", "oci"]),
    ("xtask", &["crds", "handoff", "dockerfile"]),
];

/// The crates that may use all of ours.
const WIRING: &[&str] = &["builder-pod", "builder-pod/testkit", "e2e"];

/// The one crate that may hold `unsafe`.
const UNSAFE: &str = "builder-pod/sys";

/// Modules that would have no job of their own.
const HOMELESS: &[&str] = &["util", "utils", "common", "helpers", "misc", "manager"];

/// Folders that hold no source of ours.
const SKIPPED: &[&str] = &["target", ".git", ".cache", "node_modules"];

/// Everything that is not as it should be, each as `path[:line]: what`.
pub(crate) fn problems(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    collect(root, &mut files)?;
    files.sort();
    let mut problems = Vec::new();
    for file in files {
        let path = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
        let text = fs::read_to_string(&file).with_context(|| path.clone())?;
        match file.file_name().and_then(|name| name.to_str()) {
            Some("Cargo.toml") => arrows(&path, &text, &mut problems),
            _ => source(&path, &text, &mut problems),
        }
    }
    Ok(problems)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type()?;
        if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
            collect(&entry.path(), files)?;
        } else if kind.is_file() && (name.ends_with(".rs") || name == "Cargo.toml") {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Checks which of our crates a crate uses (its tests may use any).
fn arrows(path: &str, text: &str, problems: &mut Vec<String>) {
    let folder = path.trim_end_matches("Cargo.toml").trim_end_matches('/');
    if folder.is_empty() || WIRING.contains(&folder) {
        return;
    }
    let allowed = ARROWS.iter().find(|(crate_, _)| *crate_ == folder).map_or(&[][..], |(_, allowed)| allowed);
    let mut section = "";
    for (number, line) in text.lines().enumerate() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        }
        let production = section == "dependencies" || section.ends_with(".dependencies");
        if let Some(used) = line.strip_prefix("lapstrake-").filter(|_| production) {
            let used = used.split(['.', ' ', '=']).next().unwrap_or_default();
            if !allowed.contains(&used) {
                problems.push(format!("{path}:{}: {folder} may not use {used}", number + 1));
            }
        }
    }
}

fn source(path: &str, text: &str, problems: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > LINES_MAX {
        problems.push(format!("{path}: {lines} lines, more than {LINES_MAX}: cut it"));
    }
    // What tests build is written as its users would.
    let is_root =
        !path.contains("/tests/") && (path.ends_with("src/lib.rs") || path.ends_with("src/main.rs"));
    if is_root && !text.trim_start().starts_with("//!") {
        problems.push(format!("{path}: does not open with `//!` and what the crate is for"));
    }
    let stem = path.rsplit('/').find(|part| *part != "mod.rs").unwrap_or_default().trim_end_matches(".rs");
    if HOMELESS.contains(&stem) {
        problems.push(format!("{path}: `{stem}` says nothing of what is in it: name it by its job"));
    }
    let in_sys = path.starts_with(UNSAFE);
    // This file holds the words that it looks for.
    if path == "xtask/src/tidy.rs" {
        return;
    }
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        let at = |what: &str| format!("{path}:{}: {what}", number + 1);
        if !in_sys
            && ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                .iter()
                .any(|word| code.contains(word))
        {
            problems.push(at("`unsafe` outside of the one crate that may have it"));
        }
        for word in ["todo!(", "unimplemented!(", "dbg!("] {
            if code.contains(word) {
                problems.push(at(&format!("`{word}…)`: finish it")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(check: impl Fn(&mut Vec<String>)) -> Vec<String> {
        let mut problems = Vec::new();
        check(&mut problems);
        problems
    }

    #[test]
    fn the_house_is_tidy() {
        let problems = problems(&crate::root().expect("a root")).expect("readable files");
        assert!(problems.is_empty(), "`cargo xtask tidy`:\n{}", problems.join("\n"));
    }

    #[test]
    fn an_operator_that_uses_the_engine_is_found() {
        let text = "[dependencies]\nlapstrake-crds.workspace = true\nlapstrake-solver.workspace = true\n\n[dev-dependencies]\nlapstrake-store.workspace = true\n";
        let found = of(|problems| arrows("operator/Cargo.toml", text, problems));
        assert_eq!(found, ["operator/Cargo.toml:3: operator may not use solver"]);
    }

    #[test]
    fn unsafe_code_is_found_outside_of_its_crate_only() {
        let text = "//! A crate.\nunsafe { f() }\n// unsafe { in a comment }\n";
        assert_eq!(of(|problems| source("operator/src/lib.rs", text, problems)).len(), 1);
        assert_eq!(of(|problems| source("builder-pod/sys/src/lib.rs", text, problems)).len(), 0);
    }

    #[test]
    fn a_crate_without_its_job_and_a_module_without_one_are_found() {
        assert_eq!(of(|problems| source("run/src/lib.rs", "fn f() {}\n", problems)).len(), 1);
        assert_eq!(of(|problems| source("run/src/utils/mod.rs", "", problems)).len(), 1);
        assert_eq!(of(|problems| source("run/src/helpers.rs", "", problems)).len(), 1);
    }

    #[test]
    fn a_long_file_is_found() {
        let text = "\n".repeat(LINES_MAX + 1);
        assert_eq!(of(|problems| source("run/src/a.rs", &text, problems)).len(), 1);
    }
}
