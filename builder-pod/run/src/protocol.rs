//! What builder and helper say to each other over one socket: a request down, reports up.
//!
//! The request is a length (four bytes, big endian), with which descriptors may come, and JSON. After it
//! the end of the stream means: kill the step; so does whatever else comes down, but for a step that is
//! spoken with while it runs: then a byte is the number of a signal for its program, and 0 kills all of it.
//! Reports are lines of JSON; the last one tells the end.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::spec::StepSpec;

/// The most bytes that a request may have.
pub(crate) const REQUEST_BYTES_MAX: usize = 64 << 20;

/// The private first argument that makes the binary a helper.
pub(crate) const HELPER_ARGUMENT: &str = "lapstrake-step-helper";

/// All that the helper has to know.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) spec: StepSpec,
    /// An empty directory that the step's private file system is mounted on, in its own mount
    /// namespace.
    pub(crate) scratch: PathBuf,
    /// Overlay marks go to `user.overlay.*`.
    pub(crate) userxattr: bool,
    /// Contents of the step's `/etc/resolv.conf`.
    pub(crate) resolv_conf: String,
    /// Contents of the step's `/etc/hosts`.
    pub(crate) hosts: String,
    /// Set all up, then end without running a program.
    pub(crate) probe: bool,
    /// The program is started beside that of a step which runs: a descriptor of its process 1 comes along.
    #[serde(default)]
    pub(crate) join: bool,
    /// It is spoken with while it runs.
    #[serde(default)]
    pub(crate) live: bool,
}

/// What part of the set-up failed: decides what a person is advised to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// The helper itself: its request, its process.
    Helper,
    /// New namespaces.
    Namespaces,
    /// The root file system's overlay.
    Overlay,
    /// `/proc`.
    Proc,
    /// `/sys`.
    Sys,
    /// `/dev`.
    Dev,
    /// The step's private file system and what every step finds in it.
    Tree,
    /// A mount that the step asked for, or its place.
    Mount,
    /// Masked and read-only paths.
    Mask,
    /// The change to the new root.
    Root,
    /// The network namespace's loopback.
    Network,
    /// The working directory.
    Cwd,
    /// The user, as the image knows it.
    User,
    /// Resource limits.
    Limits,
    /// The control group.
    ControlGroup,
    /// Capabilities and the system call filter.
    Confine,
    /// The user namespace of an emulator.
    Emulation,
    /// The program: not found, or not executable.
    Program,
}

/// What the helper, or the step's init through it, reports.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The step's main process ended; `oom` where the kernel has killed something in its control group for want of memory.
    Ended {
        code: i32,
        signal: Option<i32>,
        #[serde(default)]
        oom: bool,
    },
    /// It never ran.
    Failed { stage: Stage, message: String, errno: i32 },
    /// Mount points that had to be made in the upper directory; the helper removes them after.
    Stubs(crate::init::Stubs),
    /// The program of a step that is spoken with runs, below a process 1 of this number (0: nobody's).
    Running { init: i32 },
}

impl Report {
    /// One line.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("reports are plain data");
        line.push(b'\n');
        line
    }

    /// The reports in `bytes`; lines that are none are skipped.
    pub(crate) fn decode_all(bytes: &[u8]) -> Vec<Self> {
        bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }
}

impl Request {
    pub(crate) fn encode(&self) -> std::io::Result<Vec<u8>> {
        let body = serde_json::to_vec(self)?;
        let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= REQUEST_BYTES_MAX);
        let length = length.ok_or_else(|| std::io::Error::other("the step's description is too large"))?;
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend(body);
        Ok(bytes)
    }

    /// The request, and the descriptors that came with it.
    pub(crate) fn read(from: &mut (impl Read + AsFd)) -> std::io::Result<(Self, Vec<OwnedFd>)> {
        let mut length = [0; 4];
        let (count, fds) = lapstrake_sys::pass::receive(&*from, &mut length)
            .map_err(|error| std::io::Error::from(error.errno))?;
        if count == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        from.read_exact(&mut length[count..])?;
        let length = u32::from_be_bytes(length) as usize;
        if length > REQUEST_BYTES_MAX {
            return Err(std::io::Error::other("the step's description is too large"));
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body)?;
        Ok((serde_json::from_slice(&body)?, fds))
    }
}

/// Writes a report; a reader that is gone wants none.
pub(crate) fn send(to: &mut impl Write, report: &Report) {
    to.write_all(&report.encode()).ok(); // Nobody is left to tell.
}
