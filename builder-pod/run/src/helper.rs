//! The helper process: reads a request, splits off the step's process 1, waits, reports.
//!
//! It is the builder's binary executed anew, so that it has one thread and a small, known state;
//! namespaces cannot be set up safely in a fork of a threaded process.

mod live;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use lapstrake_sys::process::{self, Child, Namespaces, Side};
use lapstrake_sys::{Context, Errno};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

use crate::cgroup::{ControlGroup, Joined};
use crate::emulation::Keeper;
use crate::init::{self, Failure, Stubs, kernel};
use crate::protocol::{HELPER_ARGUMENT, Report, Request, Stage, send};
use crate::spec::{Input, Network};

/// Turns this process into a step helper when it was started as one; else returns at once.
///
/// To be called first thing in `main`, before any thread exists.
pub fn helper_main() {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == HELPER_ARGUMENT) {
        process::exit_now(run());
    }
}

fn run() -> i32 {
    let control = match take_control() {
        Ok(control) => control,
        Err(_) => return 2, // Started by hand: there is nobody to report to.
    };
    let mut control = File::from(control);
    let (mut control, result) = match Request::read(&mut control) {
        Ok((request, passed)) => {
            let mut passed = passed.into_iter();
            match give_input(&request, &mut passed) {
                Ok(()) if request.join => live::beside(&request, passed.next(), control),
                Ok(()) => serve(request, control),
                Err(error) => (control, Err(kernel(Stage::Helper)(error))),
            }
        }
        Err(error) => (control, Err(Failure::new(Stage::Helper, error.to_string(), Errno::INVAL))),
    };
    send(&mut control, &result.unwrap_or_else(Failure::into_report));
    control.flush().ok(); // A socket has nothing to flush.
    0
}

/// Standard input is the control socket: nothing else is inherited but the output streams.
fn take_control() -> lapstrake_sys::Result<OwnedFd> {
    process::close_from(3)?;
    process::hide_from_peers()?;
    // A terminal's interrupt is for the builder, which then cancels in order.
    rustix::process::setsid().about("setsid", "helper")?;
    let control = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).about("fcntl", "stdin")?;
    process::replace_stdio(open_null()?, 0)?;
    Ok(control)
}

/// A step that speaks over one socket reads from it what others have no input for; one that reads from a pipe
/// is given it with the request.
fn give_input(request: &Request, passed: &mut impl Iterator<Item = OwnedFd>) -> lapstrake_sys::Result<()> {
    if request.spec.input == Input::Pipe {
        let pipe = passed.next();
        let pipe = pipe.ok_or_else(|| lapstrake_sys::Error::new("recvmsg", "the input", Errno::BADF))?;
        return process::replace_stdio(pipe, 0);
    }
    if !request.spec.duplex {
        return Ok(());
    }
    let socket = rustix::io::fcntl_dupfd_cloexec(std::io::stdout(), 3).about("fcntl", "stdout")?;
    process::replace_stdio(socket, 0)
}

fn open_null() -> lapstrake_sys::Result<OwnedFd> {
    rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).about("open", "/dev/null")
}

/// Runs the step; the control socket, which process 1 must not have, comes back.
fn serve(request: Request, control: File) -> (File, Result<Report, Failure>) {
    let fail = kernel(Stage::Helper);
    let pipe = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).about("pipe", "status");
    let (reader, writer) = match pipe {
        Ok(pair) => pair,
        Err(error) => return (control, Err(fail(error))),
    };
    let keeper = match request.spec.emulator.as_ref().map(Keeper::start).transpose() {
        Ok(keeper) => keeper,
        Err(failure) => return (control, Err(failure)),
    };
    let group = request.spec.control_group.as_ref();
    let joined = match group.map(Joined::join).transpose() {
        Ok(joined) => joined.unwrap_or_default(),
        Err(_) if group.is_some_and(ControlGroup::is_wish) => Joined::default(),
        Err(failure) => return (control, Err(failure)),
    };
    match split(request.spec.network) {
        Ok(Side::Child) => {
            drop((reader, control));
            init::run(&request, keeper.as_ref(), writer)
        }
        Ok(Side::Parent(child)) => {
            drop(writer);
            let result = match request.live {
                true => live::see_through(&request, &child, reader, &control),
                false => see_through(&request, &child, reader, &control),
            };
            drop(keeper); // Nothing of the step is left that it was kept for.
            let result = result.map(|report| with_oom(report, &joined));
            joined.leave();
            (control, result)
        }
        Err(error) => {
            joined.leave();
            (control, Err(kernel(Stage::Namespaces)(error)))
        }
    }
}

/// The same report, with what the step's control group has seen.
fn with_oom(report: Report, joined: &Joined) -> Report {
    match report {
        Report::Ended { code, signal, oom } => Report::Ended { code, signal, oom: oom || joined.saw_oom() },
        other => other,
    }
}

/// Stays with process 1 to its end.
fn see_through(request: &Request, child: &Child, status: OwnedFd, control: &File) -> Result<Report, Failure> {
    let fail = kernel(Stage::Helper);
    let_go().map_err(&fail)?;
    supervise(child, control).map_err(&fail)?;
    let mut reports = Vec::new();
    File::from(status)
        .read_to_end(&mut reports)
        .map_err(|error| Failure::new(Stage::Helper, error.to_string(), Errno::IO))?;
    Ok(conclude(request, &reports))
}

/// The output's end is the step's alone to tell.
fn let_go() -> lapstrake_sys::Result<()> {
    let null = open_null()?;
    [0, 1, 2].into_iter().try_for_each(|stream| process::replace_stdio(&null, stream))
}

fn split(network: Network) -> lapstrake_sys::Result<Side<Child>> {
    let mut namespaces = Namespaces::MOUNT | Namespaces::PID | Namespaces::IPC | Namespaces::UTS;
    namespaces.set(Namespaces::NET, network == Network::None);
    match process::clone_into_namespaces(namespaces | Namespaces::CGROUP) {
        // Kernels without cgroups have no namespaces of them.
        Err(error) if error.errno == Errno::INVAL => process::clone_into_namespaces(namespaces),
        result => result,
    }
}

/// Waits for process 1, and kills it when the builder says so or is gone.
fn supervise(child: &Child, control: &File) -> lapstrake_sys::Result<()> {
    let control = control.as_fd().try_clone_to_owned().about("fcntl", "control")?;
    let [_, stop] = process::wait_readable([&child.pidfd, &control], None)?;
    if stop {
        child.kill()?;
    }
    child.wait().map(drop)
}

/// The report that counts: the first, since what came after may follow from it.
fn conclude(request: &Request, reports: &[u8]) -> Report {
    let reports = Report::decode_all(reports);
    if let Some(upper) = &request.spec.rootfs.upper {
        let stubs = reports.iter().filter_map(|report| match report {
            Report::Stubs(stubs) => Some(stubs),
            _ => None,
        });
        let texts = init::texts(&request.spec);
        stubs.for_each(|stubs: &Stubs| stubs.remove(upper, &texts));
        if request.spec.certificates.is_some() {
            init::remove_links(upper);
        }
    }
    let told =
        reports.into_iter().find(|report| !matches!(report, Report::Stubs(_) | Report::Running { .. }));
    // Killed before it could tell: by us, by somebody outside, or for want of memory.
    told.unwrap_or(Report::Ended { code: 128 + 9, signal: Some(9), oom: false })
}
