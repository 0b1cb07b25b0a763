//! The command line.

pub(crate) mod build;
mod cache;
pub(crate) mod check;
pub(crate) mod du;
mod graph;
mod inputs;
mod output;
pub(crate) mod pod;
mod size;
mod steps;

pub(crate) use size::quantity;

use clap::{Parser, Subcommand};

/// What the exit code says: the table of the operator, and clap's 2.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
   0  built
   1  a mistake of the builder's own
   2  a mistake on the command line
  10  the user's to mend: Dockerfile, failed step, checksum
  11  not found: source, image
  12  refused: by the source's server or the registry
  13  not available: server, registry, state directory in use; the same again may do
  14  out of disk or memory
  15  time was up
  16  canceled (a second signal ends the builder at once with 130)
  17  no sandbox for steps";

/// Builds container images without a daemon and without privileges.
#[derive(Debug, Parser)]
#[command(name = "lapstrake-builder", version, about, disable_help_subcommand = true, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    /// Log level of what is not progress: error, warn, info, debug or trace.
    #[arg(long, global = true, env = "LAPSTRAKE_LOG", default_value = "warn", hide_env_values = true)]
    pub(crate) log: String,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build an image from a directory, a Git repository or an ImageBuild manifest.
    #[command(after_help = EXIT_CODES)]
    Build(Box<build::Args>),
    /// Look at a Dockerfile: errors, and what should be written otherwise.
    #[command(after_help = EXIT_CODES)]
    Check(check::CheckArgs),
    /// Write a Dockerfile in one way, without a change of meaning.
    #[command(after_help = EXIT_CODES)]
    Fmt(check::FmtArgs),
    /// Show what a build can be given: arguments, secrets, SSH agents.
    #[command(after_help = EXIT_CODES)]
    Outline(check::ListArgs),
    /// Show the stages that can be built.
    #[command(after_help = EXIT_CODES)]
    Targets(check::ListArgs),
    /// Show the graph of operations that a Dockerfile becomes.
    #[command(after_help = EXIT_CODES)]
    Llb(check::LlbArgs),
    /// Show what the state directory takes.
    #[command(after_help = EXIT_CODES)]
    Du(du::DuArgs),
    /// Remove what builds left in the state directory and nobody uses.
    #[command(after_help = EXIT_CODES)]
    Prune(du::PruneArgs),
    /// Serve BuildKit's gRPC API, in place of buildkitd.
    #[command(disable_help_flag = true)]
    Serve {
        /// Flags of buildkitd; see `serve --help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Serve one request in a builder pod: what the operator starts.
    #[command(hide = true)]
    Pod(pod::Args),
}
