//! The Dockerfile frontend alone: a large file, and 1 MB of anything, read and lowered. Needs no cluster.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Times, milliseconds, ratio};
use crate::process::output;

/// Size of the texts that are much of one thing, bytes.
const LARGE_BYTES: &str = "1000000";
/// How many of those are shown.
const SLOWEST: usize = 3;

/// Ours beside BuildKit's, on the same text.
pub(super) fn frontend(root: &Path) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("lapstrake-frontend-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let measured = measure(root, &folder.join("Dockerfile"));
    fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    measured
}

fn measure(root: &Path, file: &Path) -> Result<()> {
    let ours = output(example(root).arg(file))?;
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let stages = text.lines().filter(|line| line.starts_with("FROM ")).count();
    println!("{} lines, {stages} stages, {}", text.lines().count(), said(&ours));
    let theirs = output(
        Command::new("go").args(["run", "./frontend"]).arg(file).current_dir(root.join("bench/peers")),
    )?;
    println!("BuildKit's: {}", said(&theirs));
    let (ours, theirs) = (times(&ours, "run "), times(&theirs, "run "));
    println!("ours     {ours}");
    println!("BuildKit {theirs}");
    println!("{} times as fast", ratio(ours.median(), theirs.median()));
    let large = output(example(root).args(["--large", LARGE_BYTES]))?;
    let mut lines: Vec<(Duration, &str)> = large
        .lines()
        .filter_map(|line| line.strip_prefix("large ")?.split_once(' '))
        .filter_map(|(nanoseconds, rest)| Some((Duration::from_nanos(nanoseconds.parse().ok()?), rest)))
        .collect();
    let peak = lines.iter().filter_map(|(_, rest)| rest.split(' ').next()?.parse::<u64>().ok()).max();
    lines.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
    let peak = peak.unwrap_or_default() / 1024;
    println!("{} texts of {LARGE_BYTES} bytes, at most {peak} MiB of memory; the slowest:", lines.len());
    for (time, rest) in lines.iter().take(SLOWEST) {
        println!("{:8.1} ms  {}", milliseconds(time), rest.split_once(' ').map_or("", |(_, name)| name));
    }
    Ok(())
}

fn example(root: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.args(["run", "--locked", "--quiet", "--release", "-p", "lapstrake-dockerfile"]);
    command.args(["--example", "measure", "--"]).current_dir(root);
    command
}

/// What a program says of its last run.
fn said(text: &str) -> &str {
    text.lines().last().and_then(|line| line.splitn(3, ' ').nth(2)).unwrap_or_default()
}

fn times(text: &str, prefix: &str) -> Times {
    let number = |line: &str| line.strip_prefix(prefix)?.split(' ').next()?.parse().ok();
    Times(text.lines().filter_map(number).map(Duration::from_nanos).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_print_is_read() {
        let text = "run 1500000 3 steps, 4 vertices\nrun 2500000 3 steps, 4 vertices\n";
        assert_eq!(said(text), "3 steps, 4 vertices");
        assert_eq!(times(text, "run ").median(), Duration::from_nanos(2_500_000));
    }
}
