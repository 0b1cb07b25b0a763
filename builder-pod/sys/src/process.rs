//! Processes: splitting, waiting, killing, turning into another program.

use std::ffi::CString;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{DumpableBehavior, Pid, Signal, WaitId, WaitIdOptions};

use crate::{Context, Errno, Error, Result};

/// Which side of a split this is.
#[derive(Debug)]
pub enum Side<T> {
    /// The old process, with a handle on the new one.
    Parent(T),
    /// The new process.
    Child,
}

/// A child made by [`clone_into_namespaces`] or [`fork`].
#[derive(Debug)]
pub struct Child {
    /// Its number in the caller's pid namespace.
    pub pid: Pid,
    /// A handle that never means another process.
    pub pidfd: OwnedFd,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

bitflags::bitflags! {
    /// Namespaces that a new process gets of its own.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Namespaces: u64 {
        /// Mounts.
        const MOUNT = libc::CLONE_NEWNS as u64;
        /// Process numbers.
        const PID = libc::CLONE_NEWPID as u64;
        /// System V and POSIX IPC.
        const IPC = libc::CLONE_NEWIPC as u64;
        /// Host and domain name.
        const UTS = libc::CLONE_NEWUTS as u64;
        /// Network devices, addresses, sockets.
        const NET = libc::CLONE_NEWNET as u64;
        /// The view of the cgroup tree.
        const CGROUP = libc::CLONE_NEWCGROUP as u64;
        /// Users and capabilities.
        const USER = libc::CLONE_NEWUSER as u64;
    }
}

#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

/// How many threads this process has.
pub fn thread_count() -> Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task").about("readdir", "/proc/self/task")?.count())
}

fn refuse_threads(call: &'static str) -> Result<()> {
    match thread_count()? {
        1 => Ok(()),
        count => Err(Error::new(call, format!("a process of {count} threads"), Errno::BUSY)),
    }
}

/// Splits this single-threaded process; the child gets `namespaces` of its own.
///
/// The child is a raw clone: the C library's cached thread id is the parent's, so it must not
/// start threads. It is meant to set things up, fork once and exec.
pub fn clone_into_namespaces(namespaces: Namespaces) -> Result<Side<Child>> {
    refuse_threads("clone3")?;
    let mut pidfd: libc::c_int = -1;
    let flags = namespaces.bits() | libc::CLONE_PIDFD as u64;
    let args = CloneArgs {
        flags,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM and with a null stack this is a fork: the child has its own copy of
    // memory and runs on. This process has one thread, so no lock is held by a thread that the
    // child lacks. `args` is a live `struct clone_args` of the size given.
    let mut result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if result < 0 && Error::last("clone3", "").errno == Errno::NOSYS {
        result = legacy_clone(flags, &mut pidfd);
    }
    match result {
        0 => Ok(Side::Child),
        pid if pid > 0 => {
            let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("the kernel returns a pid");
            // SAFETY: the kernel wrote a new descriptor there, which nobody else owns.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Side::Parent(Child { pid, pidfd }))
        }
        _ => Err(Error::last("clone3", format!("{namespaces:?}"))),
    }
}

/// `clone` where a filter hides `clone3`: the same flags, the pidfd in place of the parent's tid.
fn legacy_clone(flags: u64, pidfd: &mut libc::c_int) -> libc::c_long {
    let flags = flags | libc::SIGCHLD as u64;
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: as for `clone3` above; the third argument is where CLONE_PIDFD puts the descriptor.
    unsafe { libc::syscall(libc::SYS_clone, flags, null, std::ptr::from_mut(pidfd), null, null) }
}

/// Splits this single-threaded process through the C library, so that the child may become a
/// threaded program.
pub fn fork() -> Result<Side<Child>> {
    refuse_threads("fork")?;
    // SAFETY: this process has one thread, so no lock is held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        0 => Ok(Side::Child),
        raw if raw > 0 => {
            let pid = Pid::from_raw(raw).expect("the kernel returns a pid");
            let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
                .about("pidfd_open", raw.to_string())?;
            Ok(Side::Parent(Child { pid, pidfd }))
        }
        _ => Err(Error::last("fork", "self")),
    }
}

/// Moves this single-threaded process into new namespaces.
pub fn unshare(namespaces: Namespaces) -> Result<()> {
    refuse_threads("unshare")?;
    let flags = libc::c_int::try_from(namespaces.bits()).expect("namespace flags fit an int");
    // SAFETY: these flags do not touch the descriptor table or memory of this process.
    if unsafe { libc::unshare(flags) } == 0 {
        Ok(())
    } else {
        Err(Error::last("unshare", format!("{namespaces:?}")))
    }
}

impl Child {
    /// Kills it; one that has ended already is fine.
    pub fn kill(&self) -> Result<()> {
        kill(&self.pidfd)
    }

    /// Waits for its end and reaps it.
    pub fn wait(&self) -> Result<Ended> {
        let status =
            retry(|| rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED))
                .about("waitid", self.pid.as_raw_nonzero().to_string())?
                .ok_or_else(|| Error::new("waitid", "child", Errno::CHILD))?;
        Ok(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ended::Exited(code),
            (None, signal) => Ended::Signaled(signal.unwrap_or(libc::SIGKILL)),
        })
    }
}

/// Sends SIGKILL through a pidfd.
pub fn kill(pidfd: impl AsFd) -> Result<()> {
    match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(Error::new("pidfd_send_signal", "SIGKILL", errno)),
    }
}

/// Reaps any one child that has ended, waiting for it; `None` when there are no children.
pub fn reap_any() -> Result<Option<(Pid, Ended)>> {
    reap(rustix::process::WaitOptions::empty())
}

/// Reaps any one child that has ended already.
pub fn reap_ready() -> Result<Option<(Pid, Ended)>> {
    reap(rustix::process::WaitOptions::NOHANG)
}

fn reap(options: rustix::process::WaitOptions) -> Result<Option<(Pid, Ended)>> {
    match retry(|| rustix::process::wait(options)) {
        Ok(Some((pid, status))) => {
            let ended = match status.exit_status() {
                Some(code) => Ended::Exited(code),
                None => Ended::Signaled(status.terminating_signal().unwrap_or(libc::SIGKILL)),
            };
            Ok(Some((pid, ended)))
        }
        Ok(None) | Err(Errno::CHILD) => Ok(None),
        Err(errno) => Err(Error::new("wait4", "children", errno)),
    }
}

/// Runs a call again when a signal interrupted it.
pub fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Waits until one of the descriptors is readable or hung up; which of them are.
///
/// All false when `timeout` passed first.
pub fn wait_readable<const N: usize>(fds: [&OwnedFd; N], timeout: Option<Duration>) -> Result<[bool; N]> {
    let timeout = timeout.map(|limit| Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    });
    let mut polled = fds.map(|fd| PollFd::new(fd, PollFlags::IN));
    retry(|| rustix::event::poll(&mut polled, timeout.as_ref())).about("poll", "descriptors")?;
    Ok(polled.map(|fd| !fd.revents().is_empty()))
}

/// Turns this process into another program; returns only when that failed.
pub fn exec(program: &CString, args: &[CString], env: &[CString]) -> Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|text| text.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    };
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: both lists end with a null pointer, and they and their strings outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Error::last("execve", program.to_string_lossy())
}

/// Whether the machine runs 32-bit programs of its family: some 64-bit ARM processors do not.
pub fn runs_32_bit_programs() -> bool {
    const PER_LINUX: libc::c_ulong = 0;
    const PER_LINUX32: libc::c_ulong = 8;
    // SAFETY: the call changes a number that belongs to this thread, and changes it back.
    unsafe { libc::personality(PER_LINUX32) >= 0 && libc::personality(PER_LINUX) >= 0 }
}

/// Ends this process at once, without running destructors or exit handlers.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Nobody without power over this process's user namespace may trace it, read its memory or walk
/// its `/proc` entry; lasts until the next exec.
pub fn hide_from_peers() -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).about("prctl", "PR_SET_DUMPABLE")
}

/// This process is killed when its parent ends.
pub fn die_with_parent() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).about("prctl", "PR_SET_PDEATHSIG")
}

/// Marks every descriptor from `first` on as closed by exec.
pub fn close_on_exec_from(first: u32) -> Result<()> {
    close_range(first, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor from `first` on. Only for a process that owns none of them any more.
pub fn close_from(first: u32) -> Result<()> {
    close_range(first, 0)
}

fn close_range(first: u32, flags: libc::c_uint) -> Result<()> {
    // SAFETY: callers of `close_from` give up what is open there; the other form closes nothing now.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, flags) };
    if result == 0 { Ok(()) } else { Err(Error::last("close_range", format!("{first}.."))) }
}

/// Makes standard input, output and error (0, 1, 2) mean what `fd` means.
pub fn replace_stdio(fd: impl AsFd, which: i32) -> Result<()> {
    use std::os::fd::AsRawFd;
    assert!((0..=2).contains(&which), "only standard streams");
    // SAFETY: 0, 1 and 2 are never owned by an `OwnedFd` of this crate's callers (std's handles are
    // borrowed), so replacing what they mean closes nothing that somebody owns.
    if unsafe { libc::dup2(fd.as_fd().as_raw_fd(), which) } < 0 {
        return Err(Error::last("dup2", which.to_string()));
    }
    Ok(())
}

/// Sets groups, group and user of this thread for good, with the supplementary groups given.
pub fn become_user(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    use rustix::thread::{Gid, Uid};
    let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
    rustix::thread::set_thread_groups(&groups).about("setgroups", gid.to_string())?;
    let id = Gid::from_raw(gid);
    rustix::thread::set_thread_res_gid(id, id, id).about("setresgid", gid.to_string())?;
    let id = Uid::from_raw(uid);
    rustix::thread::set_thread_res_uid(id, id, id).about("setresuid", uid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threaded_process_is_not_forked() {
        let (send, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv().ok());
        let error = fork().expect_err("two threads at least");
        assert_eq!(error.errno, Errno::BUSY);
        assert!(clone_into_namespaces(Namespaces::empty()).is_err());
        drop(send);
        other.join().expect("thread");
    }
}
