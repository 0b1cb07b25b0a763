//! Runs a command as it would run in an unprivileged pod of this machine: process 1 of a user
//! namespace whose root is user 100000 outside, with a fresh `/proc` and the pod's capabilities.
//!
//! `lapstrake-pod-sim with-sys-admin|without-sys-admin|without-setfcap PROGRAM [ARGUMENT…]`, as root. For tests.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};

use lapstrake_sys::caps::{self, CapabilitySet};
use lapstrake_sys::idmap::{Extent, IdMap, write_maps};
use lapstrake_sys::mount::{MountAttrFlags, attach_path, isolate_propagation, new_filesystem};
use lapstrake_sys::process::{self, Child, Ended, Namespaces, Side};
use lapstrake_sys::seccomp::{self, Instruction};
use lapstrake_sys::signal::{self, SignalQueue};
use rustix::process::Signal;

type Failure = Box<dyn std::error::Error>;

/// User id outside of the pod's root.
const ROOT_OUTSIDE: u32 = 100_000;

fn main() {
    match run() {
        Ok(code) => process::exit_now(code),
        Err(error) => {
            eprintln!("lapstrake-pod-sim: {error}");
            process::exit_now(126)
        }
    }
}

fn run() -> Result<i32, Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, command @ ..] = arguments.as_slice() else { return Err("usage: MODE PROGRAM …".into()) };
    let mut capabilities = CapabilitySet::SYS_CHROOT
        | CapabilitySet::SETUID
        | CapabilitySet::SETGID
        | CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::MKNOD
        | CapabilitySet::SETFCAP
        | CapabilitySet::KILL;
    capabilities.set(CapabilitySet::SYS_ADMIN, mode == "with-sys-admin");
    capabilities.set(CapabilitySet::SETFCAP, mode != "without-setfcap");
    let (mut ready, mut ready_writer) = pipe()?;
    let (mut go_reader, mut go) = pipe()?;
    match process::fork()? {
        Side::Child => {
            process::unshare(
                Namespaces::USER | Namespaces::MOUNT | Namespaces::PID | Namespaces::IPC | Namespaces::UTS,
            )?;
            ready_writer.write_all(b"y")?;
            go_reader.read_exact(&mut [0])?;
            process::become_user(0, 0, &[])?;
            process::die_with_parent()?;
            match process::fork()? {
                Side::Child => become_pod(command, capabilities),
                Side::Parent(child) => forward_to(&child),
            }
        }
        Side::Parent(child) => {
            ready.read_exact(&mut [0])?;
            let map = IdMap(vec![Extent { inside: 0, outside: ROOT_OUTSIDE, count: 65_536 }]);
            write_maps(child.pid, &map, &map)?;
            go.write_all(b"y")?;
            forward_to(&child)
        }
    }
}

fn pipe() -> Result<(File, File), Failure> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((reader.into(), writer.into()))
}

fn become_pod(command: &[String], capabilities: CapabilitySet) -> Result<i32, Failure> {
    process::die_with_parent()?;
    isolate_propagation(true)?;
    let proc = new_filesystem("proc", &[], MountAttrFlags::empty())?;
    attach_path(&proc, std::path::Path::new("/proc"))?;
    if capabilities.contains(CapabilitySet::SYS_ADMIN) {
        seccomp::install(&without_pivot_root())?;
    }
    caps::bound(capabilities)?;
    caps::settle(capabilities)?;
    let args = command.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>()?;
    let env = [CString::new("PATH=/usr/bin:/bin")?];
    let program = args.first().ok_or("no program")?;
    Err(process::exec(program, &args, &env).into())
}

fn without_pivot_root() -> [Instruction; 4] {
    let pivot_root = if cfg!(target_arch = "aarch64") { 41 } else { 155 };
    let step = |code, k, jf| Instruction { code, jt: 0, jf, k };
    [
        step(0x20, 0, 0),
        step(0x15, pivot_root, 1),
        step(0x06, 0x0005_0001, 0), // EPERM
        step(0x06, 0x7fff_0000, 0), // allowed
    ]
}

/// Passes SIGTERM on and waits.
fn forward_to(child: &Child) -> Result<i32, Failure> {
    let queue = SignalQueue::block(&[Signal::TERM.as_raw(), Signal::CHILD.as_raw()])?;
    loop {
        // The child may have ended before its signal was blocked.
        if process::wait_readable([&child.pidfd], Some(std::time::Duration::ZERO))?[0] {
            return Ok(match child.wait()? {
                Ended::Exited(code) => code,
                Ended::Signaled(signal) => 128 + signal,
            });
        }
        if queue.next()? == Signal::TERM.as_raw() {
            signal::send(&child.pidfd, Signal::TERM.as_raw())?;
        }
    }
}
