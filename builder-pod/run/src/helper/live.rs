//! Steps that are spoken with while they run, and programs beside theirs.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use lapstrake_sys::process::{self, Child, Ended, Side};
use lapstrake_sys::{Context, Errno, signal};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{conclude, let_go};
use crate::cgroup::Visit;
use crate::emulation::Keeper;
use crate::init::{self, Failure, kernel};
use crate::protocol::{Report, Request, Stage, send};

/// Whom signals are for.
enum Program<'a> {
    /// The child itself.
    Child,
    /// The first child of the step's process 1.
    Below(&'a Child),
}

/// Stays with process 1 to its end, tells when the program runs, and passes signals on.
pub(super) fn see_through(
    request: &Request,
    child: &Child,
    status: OwnedFd,
    control: &File,
) -> Result<Report, Failure> {
    let (reports, _) =
        watch(child, &Program::Below(child), status, control).map_err(kernel(Stage::Helper))?;
    Ok(conclude(request, &reports))
}

/// Starts the program beside that of a step, and stays with it to its end.
pub(super) fn beside(
    request: &Request,
    inside: Option<OwnedFd>,
    control: File,
) -> (File, Result<Report, Failure>) {
    let result = inside.ok_or_else(|| Failure::new(Stage::Helper, "no step was named", Errno::BADF));
    let result = result.and_then(|inside| run_beside(request, &inside, &control));
    (control, result)
}

fn run_beside(request: &Request, inside: &OwnedFd, control: &File) -> Result<Report, Failure> {
    use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
    let fail = kernel(Stage::Helper);
    let keeper = request.spec.emulator.as_ref().map(Keeper::start).transpose()?;
    let (reader, writer) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).about("pipe", "status").map_err(&fail)?;
    // What is started has the limits of the step; who stays with it is no part of that.
    let visit = match request.spec.control_group {
        Some(_) => Visit::begin(number_of(inside)?)?,
        None => Visit::default(),
    };
    // For the children alone: where we are, processes keep the numbers that the builder knows.
    move_into_thread_name_spaces(inside.as_fd(), ThreadNameSpaceType::PROCESS_ID)
        .about("setns", "the step's processes")
        .map_err(kernel(Stage::Namespaces))?;
    let child = match process::fork().map_err(kernel(Stage::Namespaces))? {
        Side::Child => {
            drop(reader);
            init::join(request, keeper.as_ref(), inside, writer)
        }
        Side::Parent(child) => child,
    };
    visit.end();
    drop(writer);
    let (reports, ended) = watch(&child, &Program::Child, reader, control).map_err(&fail)?;
    let failed =
        Report::decode_all(&reports).into_iter().find(|report| matches!(report, Report::Failed { .. }));
    Ok(failed.unwrap_or(match ended {
        Ended::Exited(code) => Report::Ended { code, signal: None, oom: false },
        Ended::Signaled(signal) => Report::Ended { code: 128 + signal, signal: Some(signal), oom: false },
    }))
}

/// The number of a process by a descriptor of it.
fn number_of(process: &OwnedFd) -> Result<i32, Failure> {
    let info = format!("/proc/self/fdinfo/{}", process.as_raw_fd());
    let info = std::fs::read_to_string(info).unwrap_or_default();
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    // One that has ended has none.
    let number = number.filter(|number| *number > 0);
    number.ok_or_else(|| Failure::new(Stage::Helper, "the step has ended", Errno::SRCH))
}

/// What was reported, and how the child ended.
fn watch(
    child: &Child,
    program: &Program<'_>,
    status: OwnedFd,
    control: &File,
) -> lapstrake_sys::Result<(Vec<u8>, Ended)> {
    let_go()?;
    let commands = control.as_fd().try_clone_to_owned().about("fcntl", "control")?;
    let mut status = File::from(status);
    let reported = status.as_fd().try_clone_to_owned().about("fcntl", "status")?;
    let (mut reports, mut told, mut listens, mut reports_come) = (Vec::new(), false, true, true);
    loop {
        // One that has ended is looked at no more.
        let commands_or = if listens { &commands } else { &child.pidfd };
        let reports_or = if reports_come { &reported } else { &child.pidfd };
        let [ended, command, report] = process::wait_readable([&child.pidfd, commands_or, reports_or], None)?;
        if report && reports_come {
            let mut buffer = [0; 4096];
            let count = status.read(&mut buffer).unwrap_or(0);
            reports.extend_from_slice(buffer.get(..count).unwrap_or_default());
            reports_come = count > 0;
            // Beside another program, nobody is there to say so: the start closes the pipe.
            let starts = match program {
                Program::Child => !reports_come && reports.is_empty(),
                Program::Below(_) => {
                    Report::decode_all(&reports).iter().any(|one| matches!(one, Report::Running { .. }))
                }
            };
            if starts && !told {
                told = true;
                let init = match program {
                    Program::Child => 0,
                    Program::Below(init) => init.pid.as_raw_nonzero().get(),
                };
                send(&mut &*control, &Report::Running { init });
            }
        }
        if ended {
            break;
        }
        if command && listens {
            listens = obey(&commands, child, program)?;
        }
    }
    let ended = child.wait()?;
    status.read_to_end(&mut reports).ok(); // What was read counts.
    Ok((reports, ended))
}

/// Does what the builder says; whether it may say more.
fn obey(commands: &OwnedFd, child: &Child, program: &Program<'_>) -> lapstrake_sys::Result<bool> {
    let mut buffer = [0; 64];
    let count = process::retry(|| rustix::io::read(commands, &mut buffer)).unwrap_or(0);
    if count == 0 {
        child.kill()?;
        return Ok(false);
    }
    for number in buffer.get(..count).unwrap_or_default() {
        match (number, program) {
            (0, _) => child.kill()?,
            (number, Program::Child) => signal::send(&child.pidfd, i32::from(*number))?,
            (number, Program::Below(init)) => {
                if let Some(main) = first_below(init) {
                    signal::send(&main, i32::from(*number))?;
                }
            }
        }
    }
    Ok(true)
}

/// The program that process 1 started: its eldest child.
fn first_below(init: &Child) -> Option<OwnedFd> {
    let pid = init.pid.as_raw_nonzero();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let first = children.split_whitespace().next()?.parse().ok().and_then(Pid::from_raw)?;
    pidfd_open(first, PidfdFlags::empty()).ok()
}
