//! `make test`: all phases one after the other, and at the end how long each took, and the slowest test programs.
//!
//! A phase is a target of the Makefile, so that a person can run each of them alone. A cluster that was
//! up before stays up. The last lines are the test runner's own: those of the last phase are held back
//! until the table is printed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cluster;

/// What is run, in this order.
const PHASES: &[&str] = &["check", "unit", "integration", "cluster-up", "images", "e2e"];

struct Phase {
    name: &'static str,
    took: Duration,
    passed: bool,
}

/// Runs all phases; a failed one does not stop the others unless they need it.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut phases = Vec::new();
    let mut held = Vec::new();
    let mut programs = Programs::default();
    let was_up = cluster::is_up(root);
    for &name in PHASES {
        println!("\n=== {name}");
        let started = Instant::now();
        let (passed, closing) = phase(root, name, &mut programs)?;
        phases.push(Phase { name, took: started.elapsed(), passed });
        held = closing;
        if !passed && matches!(name, "cluster-up" | "images") {
            break; // There is nothing to test on.
        }
        if name != "e2e" {
            held.drain(..).for_each(|line| println!("{line}"));
        }
    }
    if !was_up {
        let started = Instant::now();
        let passed = cluster::forward(root, &["down".into()]).is_ok(); // Says itself what went wrong.
        phases.push(Phase { name: "cluster-down", took: started.elapsed(), passed });
    }
    print!("{}{}", programs.table(), table(phases.iter().collect()));
    held.iter().for_each(|line| println!("{line}"));
    let failed: Vec<&str> = phases.iter().filter(|phase| !phase.passed).map(|phase| phase.name).collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Runs one; gives whether it passed, and what it wrote from its last `test result` on.
fn phase(root: &Path, name: &str, programs: &mut Programs) -> Result<(bool, Vec<String>)> {
    // Both streams in one pipe, so that their lines stay in order.
    let mut child = Command::new("sh")
        .args(["-c", r#"exec make --no-print-directory "$0" 2>&1"#, name])
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start make")?;
    let output = child.stdout.take().context("standard output is a pipe")?;
    let mut held = Vec::new();
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        programs.read(&line);
        if line.starts_with("test result: ") || (!held.is_empty() && line.is_empty()) {
            held.push(line);
            continue;
        }
        held.drain(..).for_each(|line| println!("{line}"));
        println!("{line}");
    }
    while held.last().is_some_and(String::is_empty) {
        held.pop();
    }
    Ok((child.wait()?.success(), held))
}

/// How many of the slowest test programs are named.
const SLOWEST: usize = 15;

/// What cargo said of test programs: how long the tests of each ran.
#[derive(Debug, Default)]
struct Programs {
    running: Option<String>,
    took: Vec<(f64, String)>,
}

impl Programs {
    /// Takes one line of what a phase wrote. Cargo names a program before it starts it; of programs that ran side by side
    /// the lines come one program after the other.
    fn read(&mut self, line: &str) {
        if let Some(program) = line.trim_start().strip_prefix("Running ") {
            let file = program.rsplit('/').next().unwrap_or(program);
            self.running = file.rsplit_once('-').map(|(name, _)| name.to_owned());
        } else if let Some(seconds) = line.strip_prefix("test result: ").and_then(seconds) {
            self.took.extend(self.running.take().map(|name| (seconds, name)));
        }
    }

    fn table(&self) -> String {
        let mut programs: Vec<_> = self.took.iter().collect();
        programs.sort_by(|(one, _), (two, _)| two.total_cmp(one));
        let mut text = String::from("\n=== the slowest test programs\n");
        for (seconds, name) in programs.into_iter().take(SLOWEST) {
            text += &format!("{seconds:>8.1} s  {name}\n");
        }
        text
    }
}

/// How long the tests of a program ran, of the line that closes them.
fn seconds(closing: &str) -> Option<f64> {
    let (_, took) = closing.rsplit_once("finished in ")?;
    took.trim_end().strip_suffix('s')?.parse().ok()
}

/// How long each phase took, the slowest first.
fn table(mut phases: Vec<&Phase>) -> String {
    phases.sort_by_key(|phase| std::cmp::Reverse(phase.took));
    let total: Duration = phases.iter().map(|phase| phase.took).sum();
    let mut text = String::from("\n=== how long each phase took\n");
    for phase in phases {
        let word = if phase.passed { "" } else { "  FAILED" };
        text += &format!("{:>8.1} s  {}{word}\n", phase.took.as_secs_f64(), phase.name);
    }
    text + &format!("{:>8.1} s  in all\n\n", total.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_program_is_named_first() {
        let mut programs = Programs::default();
        for line in [
            "     Running unittests src/lib.rs (/target/debug/deps/lapstrake_store-0c13)",
            "test result: ok. 78 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.30s",
            "     Running tests/queue.rs (/target/debug/deps/queue-0fc9)",
            "test a_test ... FAILED",
            "test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 307.07s",
            "",
        ] {
            programs.read(line);
        }
        let table = programs.table();
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(lines, ["   307.1 s  queue", "     3.3 s  lapstrake_store"]);
    }

    #[test]
    fn the_table_names_the_slowest_phase_first_and_what_failed() {
        let phases = [
            Phase { name: "check", took: Duration::from_millis(1500), passed: true },
            Phase { name: "e2e", took: Duration::from_secs(90), passed: false },
        ];
        let table = table(phases.iter().collect());
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(lines[..3], ["    90.0 s  e2e  FAILED", "     1.5 s  check", "    91.5 s  in all"]);
    }
}
