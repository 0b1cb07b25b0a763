//! Signals as values to wait for, for a process that only watches over another.

use std::mem::MaybeUninit;

use crate::{Error, Result};

/// A set of blocked signals that are taken one by one.
pub struct SignalQueue {
    set: libc::sigset_t,
    before: libc::sigset_t,
}

impl SignalQueue {
    /// Blocks `signals` for this thread (and its children, until they [`SignalQueue::restore`]).
    pub fn block(signals: &[i32]) -> Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` initialises the set before it is read; both pointers are live.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in signals {
                libc::sigaddset(set.as_mut_ptr(), *signal);
            }
            if libc::sigprocmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr()) != 0 {
                return Err(Error::last("sigprocmask", "block"));
            }
            Ok(Self { set: set.assume_init(), before: before.assume_init() })
        }
    }

    /// Waits for the next of them.
    pub fn next(&self) -> Result<i32> {
        loop {
            // SAFETY: the set is initialised; a null info pointer is allowed.
            let signal = unsafe { libc::sigwaitinfo(&raw const self.set, std::ptr::null_mut()) };
            if signal > 0 {
                return Ok(signal);
            }
            let error = Error::last("sigwaitinfo", "signals");
            if error.errno != crate::Errno::INTR {
                return Err(error);
            }
        }
    }

    /// Puts the thread's mask back as it was before [`SignalQueue::block`].
    pub fn restore(self) -> Result<()> {
        // SAFETY: `before` was filled by the kernel in `block`.
        if unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) } == 0
        {
            Ok(())
        } else {
            Err(Error::last("sigprocmask", "restore"))
        }
    }
}

/// Unblocks all signals and gives them their default actions back, which Rust's runtime changes and who started us may have
/// changed (`nohup`): what a fresh program expects.
pub fn reset_for_exec() -> Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by `sigemptyset`; SIG_DFL is a valid handler.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
        for signal in 1..=libc::SIGRTMAX() {
            // Those of the C library and those that cannot be caught refuse, and are as they were.
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    Ok(())
}

/// Sends `signal` to the process behind a pidfd; one that has ended is fine.
pub fn send(pidfd: impl std::os::fd::AsFd, signal: i32) -> Result<()> {
    use std::os::fd::AsRawFd;
    let fd = pidfd.as_fd().as_raw_fd();
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null info pointer is allowed; the descriptor is borrowed for the call.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, null, 0) };
    if result == 0 {
        return Ok(());
    }
    match Error::last("pidfd_send_signal", signal.to_string()) {
        error if error.errno == crate::Errno::SRCH => Ok(()),
        error => Err(error),
    }
}
