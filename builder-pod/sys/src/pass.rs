//! Descriptors that go from one process to another over a socket.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::process::retry;
use crate::{Context, Errno, Error, Result};

/// Descriptors in one message at most.
const FDS_MAX: usize = 8;

/// Sends bytes, at least one, and descriptors with them; how many of the bytes went.
pub fn send(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize> {
    if fds.len() > FDS_MAX || bytes.is_empty() {
        return Err(Error::new("sendmsg", "descriptors", Errno::INVAL));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Error::new("sendmsg", "descriptors", Errno::NOBUFS));
    }
    retry(|| sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))
        .about("sendmsg", "descriptors")
}

/// Receives bytes, none at the end of the stream, and the descriptors that came with them.
pub fn receive(socket: impl AsFd, into: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        retry(|| recvmsg(&socket, &mut [IoSliceMut::new(&mut *into)], &mut control, RecvFlags::CMSG_CLOEXEC))
            .about("recvmsg", "descriptors")?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    Ok((received.bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_descriptor_arrives_with_its_bytes() {
        let (here, there) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        assert_eq!(send(&here, b"abcd", &[writer.as_fd()]).expect("sent"), 4);
        drop(writer);
        let mut bytes = [0; 4];
        let (count, fds) = receive(&there, &mut bytes).expect("received");
        assert_eq!((count, &bytes, fds.len()), (4, b"abcd", 1));
        let mut passed = std::fs::File::from(fds.into_iter().next().expect("one"));
        std::io::Write::write_all(&mut passed, b"x").expect("written");
        drop(passed);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "x");
        drop(here);
        assert_eq!(receive(&there, &mut bytes).expect("the end").0, 0);
    }
}
