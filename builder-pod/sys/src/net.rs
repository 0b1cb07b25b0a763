//! Network namespaces: the loopback device.

use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::{Context, Error, Result};

/// Brings `lo` up in this network namespace.
pub fn loopback_up() -> Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .about("socket", "lo")?;
    // SAFETY: an all-zero `ifreq` is valid; it is filled and passed by pointer to two requests that
    // read and write exactly such a structure.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) != 0 {
            return Err(Error::last("ioctl", "SIOCGIFFLAGS lo"));
        }
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) != 0 {
            return Err(Error::last("ioctl", "SIOCSIFFLAGS lo"));
        }
    }
    Ok(())
}
