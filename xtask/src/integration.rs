//! The tests of whole crates: the one that mostly waits for an emulated processor runs beside all others.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::process;

/// It emulates another processor, one thing after the other, and needs nothing that the others do.
const BESIDE: &str = "emulation";
/// Its tests need a cluster.
const ELSEWHERE: &str = "lapstrake-e2e";

/// Runs all; a failure keeps none of the others from being run.
pub(crate) fn run(root: &Path) -> Result<()> {
    let metadata = process::output(
        Command::new("cargo")
            .args(["metadata", "--locked", "--no-deps", "--format-version", "1"])
            .current_dir(root),
    )?;
    let (beside, others) = lanes(&serde_json::from_str(&metadata)?)?;
    process::run(cargo(root, ["*".to_owned()]).arg("--no-run"))?;
    let mut beside = cargo(root, [beside]);
    let beside = thread::spawn(move || process::quietly(&mut beside));
    let passed = process::run(&mut cargo(root, others)).is_ok(); // It says itself what failed.
    let (also, told) = beside.join().map_err(|_| anyhow!("the other lane's thread panicked"))??;
    println!("\n--- what ran beside them\n{told}");
    match passed && also {
        true => Ok(()),
        false => bail!("a test failed"),
    }
}

/// `cargo test` of these test programs, compiled as all are.
fn cargo(root: &Path, tests: impl IntoIterator<Item = String>) -> Command {
    let mut command = Command::new("cargo");
    command.args(["test", "--locked", "--no-fail-fast", "--workspace", "--exclude", ELSEWHERE]);
    for test in tests {
        command.args(["--test", &test]);
    }
    command.current_dir(root);
    command
}

/// The test program that runs beside the others, and those.
fn lanes(metadata: &Value) -> Result<(String, BTreeSet<String>)> {
    let mut names = BTreeSet::new();
    for package in metadata["packages"].as_array().context("packages")? {
        if package["name"] == ELSEWHERE {
            continue;
        }
        for target in package["targets"].as_array().context("targets")? {
            let is_test =
                target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "test"));
            if is_test {
                names.insert(target["name"].as_str().context("a name")?.to_owned());
            }
        }
    }
    match names.take(BESIDE) {
        Some(beside) => Ok((beside, names)),
        None => bail!("no crate has a test program {BESIDE} any more"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_test_program_is_in_one_lane() {
        let package = |name: &str, kind: &str, target: &str| json!({ "name": name, "targets": [{ "kind": [kind], "name": target }] });
        let all = json!({ "packages": [
            package("run", "test", "emulation"), package("run", "lib", "run"), package("store", "test", "gc"),
            package("lapstrake-e2e", "test", "node"),
        ] });
        let (beside, others) = lanes(&all).unwrap();
        assert_eq!(
            (beside.as_str(), others.into_iter().collect::<Vec<_>>()),
            ("emulation", vec!["gc".to_owned()])
        );
        assert!(lanes(&json!({ "packages": [] })).unwrap_err().to_string().contains("emulation"));
    }
}
