//! Copies the bytes of one file: by sharing blocks where the file system can, else inside the kernel,
//! else by hand. Holes stay holes.

use std::os::fd::BorrowedFd;

use rustix::fs::{SeekFrom, Stat};
use rustix::io::Errno;

use crate::action::Cancel;
use crate::error::Error;

/// How much is copied between two looks at the cancel flag.
const CHUNK_BYTES: u64 = 64 << 20;
const BLOCK_BYTES: u64 = 512;
/// A file up to this size is read and written by hand: that is less work than the kernel's way between two files.
const SMALL_BYTES: u64 = 32 << 10;
const BUFFER_BYTES: usize = 128 << 10;

/// What the file systems of one copy turned out to support.
pub(crate) struct Fast {
    clone: bool,
    kernel: bool,
    /// Made when it is needed, and kept.
    buffer: Vec<u8>,
}

/// Why a copy of bytes ended early.
pub(crate) enum Stop {
    Errno(Errno),
    Canceled,
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<Error> for Stop {
    fn from(_: Error) -> Self {
        Self::Canceled
    }
}

impl Default for Fast {
    fn default() -> Self {
        Self { clone: true, kernel: true, buffer: Vec::new() }
    }
}

impl Fast {
    /// Copies all of `from`, whose `stat` is given, to the empty file `to`.
    pub(crate) fn copy(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        stat: &Stat,
        cancel: &Cancel,
    ) -> Result<(), Stop> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size == 0 {
            return Ok(());
        }
        if self.clone {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(()),
                Err(_) => self.clone = false,
            }
        }
        let sparse = u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK_BYTES < size;
        if !sparse {
            self.range(from, to, 0, size, cancel)?;
            return Ok(());
        }
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Ok(start) => start,
                // No more data.
                Err(Errno::NXIO) => break,
                Err(_) => at,
            };
            let end = rustix::fs::seek(from, SeekFrom::Hole(start)).unwrap_or(size).min(size);
            if end <= start {
                break;
            }
            self.range(from, to, start, end, cancel)?;
            at = end;
        }
        rustix::fs::ftruncate(to, size)?;
        Ok(())
    }

    fn range(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        start: u64,
        end: u64,
        cancel: &Cancel,
    ) -> Result<(), Stop> {
        let (mut read_at, mut write_at) = (start, start);
        while self.kernel && read_at < end && end - start > SMALL_BYTES {
            cancel.check()?;
            let want = usize::try_from((end - read_at).min(CHUNK_BYTES)).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), want) {
                // Shorter than it was: somebody writes to it. What is there was copied.
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::NOSPC) => return Err(Errno::NOSPC.into()),
                Err(_) => self.kernel = false,
            }
        }
        if read_at < end {
            self.buffer.resize(BUFFER_BYTES, 0);
        }
        let buf = self.buffer.as_mut_slice();
        while read_at < end {
            cancel.check()?;
            let want = usize::try_from(end - read_at).unwrap_or(usize::MAX).min(buf.len());
            let got = retry(|| rustix::io::pread(from, &mut buf[..want], read_at))?;
            if got == 0 {
                return Ok(());
            }
            let mut done = 0;
            while done < got {
                done += retry(|| rustix::io::pwrite(to, &buf[done..got], write_at + done as u64))?;
            }
            read_at += got as u64;
            write_at += got as u64;
        }
        Ok(())
    }
}

fn retry(mut call: impl FnMut() -> Result<usize, Errno>) -> Result<usize, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}
