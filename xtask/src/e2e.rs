//! The end-to-end tests on an installed cluster: most of them wait for the cluster more than they work, so
//! that two lanes run side by side; then those that need the cluster to themselves, one after the other.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

use crate::process;

/// They stop programs of the node or the operator, change its settings, fill the cluster, or measure order.
const ALONE: &[&str] = &["chart", "load", "node", "operator", "platforms", "queue", "timing"];
/// They work the processors: a lane of their own.
const BUSY: &[&str] = &["examples", "caches", "images"];

/// Test programs by the way they are run.
#[derive(Debug, PartialEq, Eq)]
struct Lanes {
    busy: Vec<String>,
    waiting: Vec<String>,
    alone: Vec<String>,
}

/// Runs all; a failure keeps none of the others from being run.
pub(crate) fn run(root: &Path) -> Result<()> {
    let lanes = lanes(root)?;
    process::run(cargo(root, &[]).arg("--no-run"))?;
    let mut failed = Vec::new();
    let mut busy = cargo(root, &lanes.busy);
    let busy = thread::spawn(move || process::quietly(&mut busy));
    if process::run(cargo(root, &lanes.waiting).arg("--lib")).is_err() {
        failed.push("the waiting lane");
    }
    let (passed, told) = busy.join().map_err(|_| anyhow!("the busy lane's thread panicked"))??;
    println!("\n--- what the other lane said\n{told}");
    if !passed {
        failed.push("the busy lane");
    }
    if process::run(&mut cargo(root, &lanes.alone)).is_err() {
        failed.push("the tests that run alone");
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// `cargo test` of these test programs, of all where there is none.
fn cargo(root: &Path, tests: &[String]) -> Command {
    let mut command = Command::new("cargo");
    command.args(["test", "--locked", "--no-fail-fast", "--package", "lapstrake-e2e"]);
    for test in tests {
        command.args(["--test", test]);
    }
    command.env("LAPSTRAKE_INSTALLED", "1").current_dir(root);
    command
}

fn lanes(root: &Path) -> Result<Lanes> {
    let folder = root.join("e2e/tests");
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    sorted_into(names)
}

fn sorted_into(names: Vec<String>) -> Result<Lanes> {
    if let Some(gone) = ALONE.iter().chain(BUSY).find(|name| !names.iter().any(|other| other == *name)) {
        bail!("there is no e2e/tests/{gone}.rs any more");
    }
    let (alone, others): (Vec<_>, Vec<_>) =
        names.into_iter().partition(|name| ALONE.contains(&name.as_str()));
    let (busy, waiting) = others.into_iter().partition(|name| BUSY.contains(&name.as_str()));
    Ok(Lanes { busy, waiting, alone })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_program_is_in_one_lane_and_a_list_with_a_gap_is_told() {
        let mut names: Vec<String> =
            ALONE.iter().chain(BUSY).chain(&["new"]).map(|name| (*name).to_owned()).collect();
        let lanes = sorted_into(names.clone()).unwrap();
        assert_eq!((lanes.waiting, lanes.busy.len(), lanes.alone.len()), (vec!["new".into()], 3, 7));
        names.retain(|name| name != "chart");
        assert!(sorted_into(names).unwrap_err().to_string().contains("chart"));
    }
}
