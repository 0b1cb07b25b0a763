use std::path::PathBuf;

use crate::protocol::Stage;

/// Why a step did not come to an end of its own.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The step cannot run as it is written: its program, user, directory or mounts.
    #[error("{message}")]
    Step {
        /// What part of it.
        stage: Stage,
        /// Text for the user, naming the object.
        message: String,
        /// The kernel's answer.
        errno: i32,
    },
    /// The machine or the pod refused what every step needs.
    #[error("setting up the step's sandbox: {message}")]
    Sandbox {
        /// What part of the set-up.
        stage: Stage,
        /// Text naming the call and the object.
        message: String,
        /// The kernel's answer.
        errno: i32,
    },
    /// The step was canceled; all its processes are gone.
    #[error("the step was canceled")]
    Canceled,
    /// The helper process ended without a report.
    #[error("the step's helper process ended early ({0})")]
    HelperLost(String),
    /// The helper could not be started or talked to.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A directory of the executor could not be used.
    #[error("{}: {source}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel refused something to the executor itself.
    #[error(transparent)]
    Kernel(#[from] lapstrake_sys::Error),
}

impl RunError {
    /// The step as written is at fault, not the machine: running it again changes nothing.
    pub fn is_users(&self) -> bool {
        matches!(self, Self::Step { .. })
    }

    /// The kernel has no table of emulators for a user namespace, or does not let us have one.
    pub fn is_without_emulation(&self) -> bool {
        matches!(self, Self::Sandbox { stage: Stage::Emulation, .. })
    }

    /// The step's program is of an architecture that nothing here runs (or no program at all).
    pub fn is_foreign_program(&self) -> bool {
        let noexec = lapstrake_sys::Errno::NOEXEC.raw_os_error();
        matches!(self, Self::Step { stage: Stage::Program, errno, .. } if *errno == noexec)
    }

    pub(crate) fn from_failure(stage: Stage, message: String, errno: i32) -> Self {
        match stage {
            Stage::Program
            | Stage::User
            | Stage::Cwd
            | Stage::Mount
            | Stage::Limits
            | Stage::ControlGroup => Self::Step { stage, message, errno },
            _ => Self::Sandbox { stage, message, errno },
        }
    }
}
