//! Terminals of a step: a pair of ends, made in the step's own tree.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::{Context, Error, Result};

/// Makes a terminal by a `ptmx` device: the end of who holds it, and the end of the programs in it.
pub fn open(ptmx: &Path) -> Result<(OwnedFd, OwnedFd)> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::open(ptmx, flags, Mode::empty()).about("open", ptmx)?;
    let unlocked: libc::c_int = 0;
    // SAFETY: the call reads an int behind the pointer, which lives that long.
    if unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const unlocked) } != 0 {
        return Err(Error::last("ioctl", "TIOCSPTLCK"));
    }
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the call takes a number and gives a new descriptor, which nobody else owns.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER as _, flags) };
    if slave < 0 {
        return Err(Error::last("ioctl", "TIOCGPTPEER"));
    }
    // SAFETY: as above.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    Ok((master, slave))
}

/// Makes the terminal that of this process, which leads a session without one.
pub fn control(slave: impl AsFd) -> Result<()> {
    rustix::process::ioctl_tiocsctty(slave).about("ioctl", "TIOCSCTTY")
}

/// Says how many characters fit.
pub fn resize(master: impl AsFd, rows: u16, columns: u16) -> Result<()> {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(master, size).about("ioctl", "TIOCSWINSZ")
}
