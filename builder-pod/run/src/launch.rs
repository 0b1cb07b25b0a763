//! Starting a helper: what the executor and the sandbox's self-check have in common.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use lapstrake_sys::mount::{MountAttrFlags, add_attrs, clone_tree};
use lapstrake_sys::xattr;

use crate::error::RunError;
use crate::etc;
use crate::protocol::Request;
use crate::spec::{HOSTNAME_DEFAULT, StepSpec};

/// What all steps of one builder share.
#[derive(Debug)]
pub(crate) struct Launcher {
    /// This binary through a read-only mount: what a step could reach of it, it cannot change.
    program: OwnedFd,
    scratch: PathBuf,
    userxattr: bool,
}

impl Launcher {
    /// Uses `dir` (made when missing) for the places that steps are mounted on.
    pub(crate) fn new(dir: &Path) -> Result<Self, RunError> {
        let scratch = dir.join("mnt");
        std::fs::create_dir_all(&scratch)
            .map_err(|source| RunError::Directory { path: scratch.clone(), source })?;
        let program = clone_tree(Path::new("/proc/self/exe"), false)?;
        add_attrs(&program, MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID, false)?;
        let userxattr = needs_userxattr(&scratch)?;
        Ok(Self { program, scratch, userxattr })
    }

    /// Overlay marks of steps go to `user.overlay.*`.
    pub(crate) fn userxattr(&self) -> bool {
        self.userxattr
    }

    /// The path that executes this binary.
    pub(crate) fn program(&self) -> String {
        format!("/proc/self/fd/{}", self.program.as_raw_fd())
    }

    /// The request for `spec`, with the files in `/etc` that it gets.
    pub(crate) fn request(&self, spec: StepSpec, probe: bool) -> Request {
        let resolvers = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        Request {
            scratch: self.scratch.clone(),
            userxattr: self.userxattr,
            resolv_conf: etc::resolv_conf(&resolvers, spec.network),
            hosts: etc::hosts(hostname(&spec), &spec.extra_hosts),
            spec,
            probe,
        }
    }
}

/// The host name of a step.
pub(crate) fn hostname(spec: &StepSpec) -> &str {
    if spec.hostname.is_empty() { HOSTNAME_DEFAULT } else { &spec.hostname }
}

/// A socket pair: ours, and the helper's standard input.
pub(crate) fn control_pair() -> Result<(UnixStream, UnixStream), RunError> {
    UnixStream::pair().map_err(|source| RunError::Io { what: "making the helper's socket", source })
}

/// Only the initial user namespace's root may write the marks that overlay uses by default.
fn needs_userxattr(dir: &Path) -> Result<bool, RunError> {
    let fd = lapstrake_sys::fs::open_root(dir)?;
    match xattr::set(&fd, "trusted.overlay.lapstrake", b"y") {
        Ok(()) => {
            xattr::remove(&fd, "trusted.overlay.lapstrake")?;
            Ok(false)
        }
        Err(error) if error.is_denied() || error.is_unsupported() => Ok(true),
        Err(error) => Err(error.into()),
    }
}
