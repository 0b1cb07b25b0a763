//! The repository's own chores, where they take more than a line of the Makefile.
//!
//! Job: what is generated is written or compared here, and nowhere else; what a compiler does not
//! see of the house's rules is checked here; our own images, the chart on a cluster, the demo and the
//! phases of `make test`.
//! Holds: `generate --check` and `tidy` write nothing; what is missing is one line with the way to get it.
//! Never: holds a test, or anything that a user of Lapstrake needs.
#![expect(clippy::print_stdout, reason = "a command line tool")]

mod bench;
mod cluster;
#[cfg(feature = "generate")]
mod coverage;
mod demo;
mod e2e;
#[cfg(feature = "generate")]
mod generate;
mod images;
mod install;
mod integration;
mod phases;
mod process;
#[cfg(feature = "generate")]
mod reference;
mod tidy;
#[cfg(feature = "generate")]
mod values;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

const USAGE: &str = "usage: cargo xtask <command>

  generate          writes what is generated: CRDs, their reference, the chart's table of values, what the tests show
  generate --check  fails if any of that is not up to date
  tidy              checks the rules of the house: who may use whom, unsafe, long files, missing docs
  deny              checks licences and doubled dependencies with cargo-deny, where it is installed
  cluster ARGS...   runs lapstrake-cluster (e2e/cluster), building it first
  cluster-up        brings our own cluster up, with all base images in its registry
  images            builds our own images with Lapstrake and pushes them to the cluster's registry
  install           the same, then installs the chart and waits for the operator
  demo [down]       shows a build on a cluster; takes it away
  integration       the tests of whole crates, in two lanes
  e2e               the tests on a cluster that has Lapstrake installed, several side by side
  test              all phases of `make test`
  bench [NAME...]   measures what docs/benchmarks.md reports, or what is named: frontend steps rebuild gzip apply seed memory

CLUSTER=own (default) brings up a cluster of our own; CLUSTER=current uses the kubeconfig's, and needs
REGISTRY (where to push); BASE says where base images are (docker.io/library).";

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
        #[cfg(feature = "generate")]
        ["generate"] => generate::write(&root),
        #[cfg(feature = "generate")]
        ["generate", "--check"] => generate::check(&root),
        // `cargo xtask` is built without the API's types; this one is built with them.
        #[cfg(not(feature = "generate"))]
        ["generate"] | ["generate", "--check"] => process::run(
            Command::new("cargo")
                .args(["run", "--quiet", "--package", "xtask", "--"])
                .args(args)
                .current_dir(&root),
        ),
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
        ["deny"] => deny(&root),
        ["cluster", ..] => cluster::forward(&root, &args[1..]),
        ["cluster-up"] => {
            let cluster = cluster::Cluster::connect(&root)?;
            cluster.base_images(cluster::BASE_IMAGES)
        }
        ["images"] => images::make(&root, &cluster::Cluster::connect(&root)?).map(drop),
        ["install"] => {
            let cluster = cluster::Cluster::connect(&root)?;
            let images = images::make(&root, &cluster)?;
            cluster.base_images(cluster::BASE_IMAGES)?;
            install::install(&root, &cluster, &images)
        }
        ["demo"] => demo::up(&root),
        ["demo", "down"] => demo::down(&root),
        ["integration"] => integration::run(&root),
        ["e2e"] => e2e::run(&root),
        ["test"] => phases::run(&root),
        ["bench", ..] => bench::run(&root, &args[1..]),
        _ => bail!("{USAGE}"),
    }
}

fn deny(root: &Path) -> Result<()> {
    if process::which("cargo-deny").is_none() {
        println!("skipped: cargo-deny is not installed; cargo install --locked cargo-deny");
        return Ok(());
    }
    process::run(
        Command::new("cargo")
            .args(["deny", "--offline", "check", "bans", "licenses", "sources"])
            .current_dir(root),
    )
}

/// The repository's root, which is the folder above this crate's: the one that cargo runs now, since
/// several checkouts may share a target folder, and with it this program.
fn root() -> Result<PathBuf> {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    let here = PathBuf::from(here);
    here.parent().map(PathBuf::from).context("the crate lies in the repository")
}
