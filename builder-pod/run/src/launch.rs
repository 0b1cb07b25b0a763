//! Starting a helper: what the executor and the sandbox's self-check have in common.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use lapstrake_sys::mount::{MountAttrFlags, add_attrs, clone_tree};
use lapstrake_sys::{Context, xattr};
use rustix::fs::{MemfdFlags, SealFlags};

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
    dns: Option<etc::Dns>,
}

impl Launcher {
    /// Uses `dir` (made when missing) for the places that steps are mounted on.
    pub(crate) fn new(dir: &Path) -> Result<Self, RunError> {
        let scratch = dir.join("mnt");
        std::fs::create_dir_all(&scratch)
            .map_err(|source| RunError::Directory { path: scratch.clone(), source })?;
        let program = own_program()?;
        let userxattr = needs_userxattr(&scratch)?;
        Ok(Self { program, scratch, userxattr, dns: None })
    }

    /// Steps resolve names like this from now on.
    pub(crate) fn set_dns(&mut self, dns: etc::Dns) {
        self.dns = Some(dns);
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
        let resolvers = self.dns.as_ref().map_or(resolvers.clone(), |dns| dns.apply(&resolvers));
        Request {
            scratch: self.scratch.clone(),
            userxattr: self.userxattr,
            resolv_conf: etc::resolv_conf(&resolvers, spec.network),
            hosts: etc::hosts(hostname(&spec), &spec.extra_hosts),
            spec,
            probe,
            join: false,
            live: false,
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

/// This binary, in a form that cannot be written through.
///
/// The file is reached by its path, since `/proc/self/exe` itself lies in the mount namespace that
/// the process was started in. One that was replaced meanwhile is copied to memory.
fn own_program() -> Result<OwnedFd, RunError> {
    let link = Path::new("/proc/self/exe");
    let fail = |source| RunError::Directory { path: link.to_owned(), source };
    let path = std::fs::read_link(link).map_err(fail)?;
    let running = std::fs::metadata(link).map_err(fail)?;
    if let Ok(found) = std::fs::metadata(&path)
        && (found.dev(), found.ino()) == (running.dev(), running.ino())
    {
        let program = clone_tree(&path, false)?;
        add_attrs(&program, MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID, false)?;
        return Ok(program);
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory =
        rustix::fs::memfd_create(c"lapstrake-step", flags).about("memfd_create", "lapstrake-step")?;
    let mut copy = File::from(memory);
    std::io::copy(&mut File::open(link).map_err(fail)?, &mut copy).map_err(fail)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&copy, seals).about("fcntl", "lapstrake-step")?;
    Ok(copy.into())
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
