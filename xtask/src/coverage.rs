//! The table of what the tests show: each instruction, flag and rule, and the cases that have it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lapstrake_dockerfile::lint::{self, RULES};
use lapstrake_dockerfile::{Images, Options, all_features, features, parse};

/// The page that the table is part of.
pub(crate) const PAGE: &str = "docs/dockerfile.md";
const BEGIN: &str = "<!-- coverage: written by `cargo xtask generate` -->\n";
const END: &str = "<!-- end of coverage -->\n";
const CRATE: &str = "builder-pod/dockerfile";
/// More names are counted, not listed.
const NAMES_MAX: usize = 6;

/// A test's Dockerfile.
struct Example {
    /// As the table calls it.
    name: String,
    text: String,
}

/// The page with its table as the tests are now.
pub(crate) fn page(root: &Path) -> Result<String> {
    let page = fs::read_to_string(root.join(PAGE)).context(PAGE)?;
    let (head, rest) = page.split_once(BEGIN).with_context(|| format!("{PAGE}: no line {BEGIN}"))?;
    let (_, tail) = rest.split_once(END).with_context(|| format!("{PAGE}: no line {END}"))?;
    Ok(format!("{head}{BEGIN}{}{END}{tail}", table(root)?))
}

/// Both tables.
///
/// # Errors
/// Where a part of the language, or a rule, has no test.
fn table(root: &Path) -> Result<String> {
    let built = fs::read_to_string(root.join("e2e/interop/cases.rs")).context("e2e/interop/cases.rs")?;
    let is_built = |name: &str| built.contains(&format!("\"{name}\""));
    let mut examples = Vec::new();
    for (folder, prefix) in [("tests/cases", ""), ("tests/projects", ""), ("tests/broken", "broken/")] {
        for name in names(&root.join(CRATE).join(folder))? {
            let file = root.join(CRATE).join(folder).join(&name).join("Dockerfile");
            let Ok(text) = fs::read_to_string(&file) else { continue };
            let mark = if folder == "tests/projects" && is_built(&name) { "\\*" } else { "" };
            examples.push(Example { name: format!("{prefix}{name}{mark}"), text });
        }
    }
    let mut shown: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for example in &examples {
        let parsed = parse("Dockerfile", &example.text);
        for feature in features(&parsed) {
            shown.entry(feature).or_default().push(&example.name);
        }
        let checked = lint::check(&parsed, &Options::default(), &Images::new());
        for finding in &checked.findings {
            let names = found.entry(finding.code).or_default();
            if names.last() != Some(&example.name.as_str()) {
                names.push(&example.name);
            }
        }
    }
    let mut out = String::from("\n| Part of the language | Tests that have it |\n| --- | --- |\n");
    let mut absent = Vec::new();
    for feature in all_features() {
        match shown.get(&feature) {
            Some(names) => writeln!(out, "| `{}` | {} |", feature.replace('|', "\\|"), list(names))?,
            None => absent.push(feature),
        }
    }
    out += "\n| Rule | Examples, bad and good | Tests that it finds something in |\n| --- | --- | --- |\n";
    for rule in RULES {
        let examples = root.join(CRATE).join("lint").join(rule.name);
        if !examples.join("bad.Dockerfile").exists() || !examples.join("good.Dockerfile").exists() {
            absent.push(format!("rule {}", rule.name));
        }
        let names = found.get(rule.name).map(|names| list(names)).unwrap_or_default();
        let of = if rule.of_buildkit { ", as recorded of BuildKit" } else { "" };
        writeln!(out, "| `{}` | `lint/{}`{of} | {names} |", rule.name, rule.name)?;
    }
    if !absent.is_empty() {
        bail!("no test in {CRATE}/tests/cases or projects has: {}", absent.join("; "));
    }
    out.push('\n');
    Ok(out)
}

/// Names of the folders in a folder.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.sort();
    Ok(paths.iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
}

/// The first names, those of the more telling cases before those of whole projects.
fn list(names: &[&str]) -> String {
    let mut text = names.iter().take(NAMES_MAX).copied().collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_MAX {
        text += &format!(" and {} more", names.len() - NAMES_MAX);
    }
    text
}
