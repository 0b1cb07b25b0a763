//! A parent that stays behind: gives the child its id maps, passes signals on, reaps.

use std::fs::File;
use std::io::{Read, Write};

use lapstrake_sys::cgroup::OomCounter;
use lapstrake_sys::idmap::{IdMap, write_maps};
use lapstrake_sys::process::{self, Child, Ended, Namespaces, Side};
use lapstrake_sys::signal::{self, SignalQueue};
use lapstrake_sys::{Context, Errno};
use rustix::pipe::PipeFlags;
use rustix::process::Signal;

use super::Unavailable;

/// What is passed on to the child.
const FORWARDED: [Signal; 6] =
    [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2];

/// Goes on in a child, in a user namespace with `maps` if there are any; never returns in the
/// parent.
pub(super) fn leave_parent_behind(maps: Option<(IdMap, IdMap)>) -> Result<(), Unavailable> {
    let plain =
        |error: lapstrake_sys::Error| Unavailable::new(error.to_string(), "is the pod out of processes?");
    let pipe = |what: &str| rustix::pipe::pipe_with(PipeFlags::CLOEXEC).about("pipe", what).map_err(plain);
    let (ready_reader, ready_writer) = pipe("namespace")?;
    let (go_reader, go_writer) = pipe("maps")?;
    let mut signals: Vec<i32> = FORWARDED.iter().map(|signal| signal.as_raw()).collect();
    signals.push(Signal::CHILD.as_raw());
    let queue = SignalQueue::block(&signals).map_err(plain)?;
    match process::fork().map_err(plain)? {
        Side::Child => {
            drop((ready_reader, go_writer));
            queue.restore().map_err(plain)?;
            if maps.is_some() {
                become_nested(File::from(ready_writer), File::from(go_reader))?;
            }
            process::die_with_parent().map_err(plain)
        }
        Side::Parent(child) => {
            drop((ready_writer, go_reader));
            if let Some(maps) = &maps {
                give_maps(&child, maps, File::from(ready_reader), File::from(go_writer));
            }
            process::exit_now(watch_over(&child, &queue))
        }
    }
}

/// Writes the child's maps once it has its namespace, and tells it to go on; a child that is not
/// told (its end of the pipe closes) ends with the reason.
fn give_maps(child: &Child, (users, groups): &(IdMap, IdMap), mut ready: File, mut go: File) {
    if ready.read_exact(&mut [0]).is_err() {
        return;
    }
    match write_maps(child.pid, users, groups) {
        Ok(()) => go.write_all(b"y").ok().unwrap_or_default(), // A dead child needs no maps.
        Err(error) => eprintln!("lapstrake: mapping the ids of the sandbox: {error}"),
    }
}

fn become_nested(mut ready: File, mut go: File) -> Result<(), Unavailable> {
    process::unshare(Namespaces::USER).map_err(no_user_namespace)?;
    let told = ready.write_all(b"y").is_ok() && go.read_exact(&mut [0]).is_ok();
    if !told {
        return Err(Unavailable::new(
            "the ids of the pod's user namespace could not be mapped into one of the builder's own",
            "the pod's container needs the capabilities SETUID, SETGID and SETFCAP",
        ));
    }
    process::become_user(0, 0, &[]).map_err(|error| {
        Unavailable::new(error.to_string(), "the pod's user namespace must map uid 0 and gid 0")
    })
}

fn no_user_namespace(error: lapstrake_sys::Error) -> Unavailable {
    let way_out = match error.errno {
        Errno::NOSPC => "raise the node's sysctl user.max_user_namespaces",
        Errno::NOSYS | Errno::INVAL => "the node's kernel must have user namespaces (CONFIG_USER_NS)",
        _ => {
            "leave the container's seccompProfile unset and the kubelet's seccompDefault off (the runtime's default \
             profile forbids it without SYS_ADMIN), set AppArmor to `Unconfined`, and check the node's sysctls \
             kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns"
        }
    };
    Unavailable::new(format!("no user namespace of the builder's own ({error})"), way_out)
}

/// The exit code that the child's end means for its parent.
fn watch_over(child: &Child, queue: &SignalQueue) -> i32 {
    let oom = OomCounter::of_self();
    let kills_before = oom.as_ref().and_then(OomCounter::kills);
    loop {
        let Ok(received) = queue.next() else { return 1 };
        if received != Signal::CHILD.as_raw() {
            signal::send(&child.pidfd, received).ok(); // It may have ended in this moment.
            continue;
        }
        while let Ok(Some((pid, ended))) = process::reap_ready() {
            if pid != child.pid {
                continue;
            }
            return match ended {
                Ended::Exited(code) => code,
                Ended::Signaled(number) => {
                    let starved = oom.as_ref().and_then(OomCounter::kills) > kills_before;
                    let why = if starved { ": the pod's memory limit was reached" } else { "" };
                    eprintln!("lapstrake: the builder was killed by signal {number}{why}");
                    128 + number
                }
            };
        }
    }
}
