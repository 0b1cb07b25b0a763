//! Runs one step of a build in namespaces of its own.
//!
//! In: a [`StepSpec`]. Out: its output as it comes, and a [`StepExit`] or a [`RunError`].
//!
//! The builder starts a helper (its own binary, executed anew: [`helper_main`]), which splits off
//! process 1 of the step into new mount, pid, ipc, uts, cgroup and, where asked, network
//! namespaces. Process 1 mounts the layers and the rest of the tree, starts the program with few
//! capabilities under a system call filter, reaps, and ends with it.
//!
//! Holds: when [`Executor::run`] returns, no process of the step is left and nothing of it is
//! mounted (the namespaces die with process 1, which dies with the helper, which kills it when the
//! builder is gone); a mount point that the image lacks leaves no trace in the layer; a step never
//! sees the builder's processes, files or descriptors; a secret is in memory only, and goes with the step.
//!
//! Never: forks a threaded process; weakens isolation silently (what cannot be set up is an error);
//! makes a cgroup that was not asked for; decides what is run.

mod cgroup;
mod emulation;
mod error;
mod etc;
mod executor;
mod helper;
mod init;
mod launch;
mod live;
mod protocol;
pub mod sandbox;
mod seccomp;
mod spec;

pub use cgroup::{ControlGroup, Limits, delegated as control_groups_delegated};
pub use emulation::{emulated, runs_natively};
pub use error::RunError;
pub use etc::Dns;
pub use executor::{Executor, Sink};
pub use helper::helper_main;
pub use live::{Handle, Inside, Live, Streams, Terminal};
pub use protocol::Stage;
pub use spec::{
    Changes, Emulator, ExtraHost, HOSTNAME_DEFAULT, Input, MountSource, Network, PATH_DEFAULT, Rlimit,
    Rootfs, SHM_BYTES_DEFAULT, SecretBytes, SecretVar, StepCertificates, StepExit, StepFile, StepMount,
    StepSpec, Stream,
};
