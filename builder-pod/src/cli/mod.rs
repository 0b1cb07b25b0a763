//! The command line.

pub(crate) mod build;
mod output;
pub(crate) mod pod;

use clap::{Parser, Subcommand};

/// Builds container images without a daemon and without privileges.
#[derive(Debug, Parser)]
#[command(name = "lapstrake-builder", version, about, disable_help_subcommand = true)]
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
    Build(Box<build::Args>),
    /// Serve one request in a builder pod: what the operator starts.
    #[command(hide = true)]
    Pod(pod::Args),
}
