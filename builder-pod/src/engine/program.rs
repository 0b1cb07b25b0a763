//! Programs of images that speak with us while they run: frontends.

use std::os::fd::OwnedFd;

use lapstrake_run::{Network, Rootfs, StepExit, StepSpec, Stream};
use lapstrake_store::SnapshotId;
use tokio_util::sync::CancellationToken;

use super::{Engine, exec};
use crate::error::BuildError;

/// A program in an image.
#[derive(Debug, Clone, Default)]
pub(crate) struct Program {
    /// It and its arguments.
    pub(crate) args: Vec<String>,
    /// `NAME=value`.
    pub(crate) env: Vec<String>,
    /// Its working directory.
    pub(crate) cwd: String,
    /// `user[:group]`.
    pub(crate) user: String,
    /// Whether it has a network.
    pub(crate) network: bool,
}

impl Engine {
    /// Runs a program on a file system whose changes are thrown away; `socket` is its standard input and output, and
    /// `log` gets what it writes to standard error. It takes no step's place: steps of its own wait for it.
    pub(crate) async fn run_program(
        &self,
        on: Option<SnapshotId>,
        program: Program,
        socket: OwnedFd,
        log: &mut (dyn FnMut(&[u8]) + Send),
        cancel: &CancellationToken,
    ) -> Result<StepExit, BuildError> {
        let active = self.store.prepare(on)?;
        let rootfs = Rootfs {
            lowers_top_first: self.lowers(on)?,
            upper: Some(active.upper()),
            work: Some(active.work()),
        };
        let spec = StepSpec {
            env: program.env,
            cwd: program.cwd,
            user: program.user,
            network: if program.network { Network::Host } else { Network::None },
            ..StepSpec::new(program.args, rootfs)
        };
        let mut sink = |_: Stream, bytes: &[u8]| log(bytes);
        let exit = self.executor.run_on(&spec, socket, &mut sink, cancel).await;
        tokio::task::spawn_blocking(move || drop(active)).await.map_err(BuildError::internal)?;
        exit.map_err(|error| exec::not_run(&error))
    }
}
