use std::path::Path;

use rustix::io::Errno;

/// What went wrong in the kernel: which call, about which object, with which answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call} {object}: {errno}")]
pub struct Error {
    /// The system call, as its manual page is called.
    pub call: &'static str,
    /// The path, process or name that the call was about.
    pub object: String,
    /// The kernel's answer.
    pub errno: Errno,
}

/// Short for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Names `call` and `object` for an answer of the kernel.
    pub fn new(call: &'static str, object: impl Into<String>, errno: Errno) -> Self {
        Self { call, object: object.into(), errno }
    }

    /// The last error of the C library, for calls that go through it.
    pub(crate) fn last(call: &'static str, object: impl Into<String>) -> Self {
        let raw = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        Self::new(call, object, Errno::from_raw_os_error(raw))
    }

    /// The object does not exist.
    pub fn is_not_found(&self) -> bool {
        self.errno == Errno::NOENT
    }

    /// The kernel, a security module or a seccomp filter refused it.
    pub fn is_denied(&self) -> bool {
        matches!(self.errno, Errno::PERM | Errno::ACCESS)
    }

    /// The kernel does not know the call or the option (or a filter hides it).
    pub fn is_unsupported(&self) -> bool {
        matches!(self.errno, Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL)
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        let kind = std::io::Error::from_raw_os_error(error.errno.raw_os_error()).kind();
        std::io::Error::new(kind, error)
    }
}

/// Gives a bare errno its call and object.
pub trait Context<T> {
    /// Names the call and the object.
    fn about(self, call: &'static str, object: impl AsRef<Path>) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, Errno> {
    fn about(self, call: &'static str, object: impl AsRef<Path>) -> Result<T> {
        self.map_err(|errno| Error::new(call, object.as_ref().to_string_lossy(), errno))
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn about(self, call: &'static str, object: impl AsRef<Path>) -> Result<T> {
        self.map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Error::new(call, object.as_ref().to_string_lossy(), errno)
        })
    }
}
