//! The builder: one binary for laptops and builder pods.
//!
//! Job: wire the engine's crates together, read what is wanted (command line, ImageBuild manifest,
//! request of the operator), run it, say how it went.
//! Holds: the step helper and the sandbox are entered before any thread exists.
//! Never: decides how a step is keyed, run or stored; that is the crates' business.

#![forbid(unsafe_code)]

mod annotations;
mod asked;
mod attest;
mod build;
mod cli;
mod client;
mod context;
mod engine;
mod error;
mod excerpt;
mod export;
mod front;
mod frontend_image;
mod hashes;
mod import;
mod in_cluster;
mod inputs;
mod join;
mod lender;
mod manifest;
mod named;
mod naming;
mod options;
mod platforms;
mod policy;
mod progress;
mod reach;
mod room;
mod serve;
mod signature;
mod time;
mod wiring;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use lapstrake_run::sandbox::{self, Mode};

use crate::cli::{Cli, Command};

fn main() -> ExitCode {
    // Git asks this program for a password; nothing else is done then.
    if let Some(answered) = lapstrake_source::askpass() {
        return answered;
    }
    lapstrake_run::helper_main();
    if let Some(answered) = serve::personality::answer() {
        return answered;
    }
    let cli = Cli::parse();
    // Entering the sandbox comes before logging and the runtime: neither may start a thread first.
    match &cli.command {
        Command::Build(args) => match sandbox::enter(Mode::Auto) {
            Ok(sandbox) => {
                prepare(&cli.log);
                cli::build::main(args, &sandbox).into()
            }
            Err(error) => {
                writeln!(std::io::stderr(), "error: steps can't run here: {error}").ok(); // nobody listens
                lapstrake_handoff::Reason::SandboxUnavailable.class().exit_code().into()
            }
        },
        Command::Serve { arguments } => serve::personality::daemon(arguments.clone()),
        // These only read: no sandbox, no state.
        Command::Check(args) => cli::check::check(args),
        Command::Fmt(args) => cli::check::fmt(args),
        Command::Outline(args) => cli::check::outline(args),
        Command::Targets(args) => cli::check::targets(args),
        Command::Llb(args) => cli::check::llb(args),
        // In the sandbox too: there the files of steps have the owners that they had when they were made.
        Command::Du(args) => state(&cli.log, |out| cli::du::du(args, out)),
        Command::Prune(args) => state(&cli.log, |out| cli::du::prune(args, out)),
        Command::Pod(args) => {
            let sandbox = cli::pod::sandbox_mode(args).and_then(|mode| {
                mode.map(|mode| sandbox::enter(mode).map_err(|e| cli::pod::unavailable(&e))).transpose()
            });
            prepare(&cli.log);
            cli::pod::main(args, sandbox).into()
        }
    }
}

/// Runs a command that only needs the state directory.
fn state(
    level: &str,
    command: impl FnOnce(&mut dyn std::io::Write) -> Result<(), error::BuildError>,
) -> ExitCode {
    if let Err(error) = sandbox::enter(Mode::Auto) {
        writeln!(std::io::stderr(), "error: the state directory can't be opened: {error}").ok(); // nobody listens
        return lapstrake_handoff::Reason::SandboxUnavailable.class().exit_code().into();
    }
    prepare(level);
    match command(&mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::build::failed(&error).into(),
    }
}

fn prepare(level: &str) {
    let filter = tracing_subscriber::EnvFilter::try_new(level).unwrap_or_else(|_| "warn".into());
    // No escape sequences in a pod's log.
    let log =
        tracing_subscriber::fmt().with_ansi(console::colors_enabled_stderr()).with_writer(std::io::stderr);
    log.with_env_filter(filter).with_target(false).init();
    wiring::raise_open_files();
    // One provider for all of TLS; a second installation is refused, which is fine.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
}
