//! Extended attributes through descriptors, also of those opened with `O_PATH`, also of symlinks.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStringExt;

use rustix::fs::XattrFlags;

use crate::{Context, Errno, Error, Result};

/// The most bytes that the kernel takes as one value, or gives as a list of names.
pub const BYTES_MAX: usize = 65_536;

/// An `O_PATH` descriptor refuses the `f…xattr` calls; its link in `/proc` does not.
fn link(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// The names of all attributes, sorted; none where the file system has none.
pub fn list(fd: impl AsFd) -> Result<Vec<OsString>> {
    let mut bytes = vec![0; BYTES_MAX];
    let length = match rustix::fs::listxattr(link(&fd), &mut bytes[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(Error::new("listxattr", crate::mount::fd_name(fd.as_fd()), errno)),
    };
    bytes.truncate(length);
    let mut names: Vec<OsString> = bytes
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect();
    names.sort();
    Ok(names)
}

/// The value of one attribute; `None` when it is not there.
pub fn get(fd: impl AsFd, name: &str) -> Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; BYTES_MAX];
    match rustix::fs::getxattr(link(&fd), name, &mut bytes[..]) {
        Ok(length) => {
            bytes.truncate(length);
            Ok(Some(bytes))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(errno) => Err(Error::new("getxattr", name, errno)),
    }
}

/// Sets one attribute, new or not.
pub fn set(fd: impl AsFd, name: &str, value: &[u8]) -> Result<()> {
    rustix::fs::setxattr(link(&fd), name, value, XattrFlags::empty()).about("setxattr", name)
}

/// Removes one attribute; one that is not there is fine.
pub fn remove(fd: impl AsFd, name: &str) -> Result<()> {
    match rustix::fs::removexattr(link(&fd), name) {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(errno) => Err(Error::new("removexattr", name, errno)),
    }
}
