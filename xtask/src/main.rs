//! The repository's own chores: `cargo xtask generate [--check]` and `cargo xtask tidy`.
//!
//! Job: what is generated is written or compared here, and nowhere else; what a compiler does not
//! see of the house's rules is checked here.
//! Holds: `--check` writes nothing.
//! Never: builds, tests or releases anything.
#![expect(clippy::print_stdout, reason = "a command line tool")]

mod generate;
mod reference;
mod tidy;
mod values;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: cargo xtask <command>

  generate          writes what is generated: CRDs, their reference, the chart's table of values
  generate --check  fails if any of that is not up to date
  tidy              checks the rules of the house: who may use whom, unsafe, long files, missing docs";

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let root = root()?;
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["generate"] => generate::write(&root),
        ["generate", "--check"] => generate::check(&root),
        ["tidy"] => {
            let problems = tidy::problems(&root)?;
            for problem in &problems {
                println!("{problem}");
            }
            if !problems.is_empty() {
                bail!("{} problem(s)", problems.len());
            }
            Ok(())
        }
        _ => bail!("{USAGE}"),
    }
}

/// The repository's root, which is the folder above this crate's.
fn root() -> Result<PathBuf> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).context("the crate lies in the repository")
}
