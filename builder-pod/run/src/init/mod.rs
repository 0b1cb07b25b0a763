//! Process 1 of a step: builds the tree, starts the program, reaps, reports.
//!
//! It runs as a copy of the single-threaded helper in fresh namespaces. When the program ends, so
//! does it, and the kernel kills whatever else is left in the namespace.

mod certificates;
mod control_groups;
mod devices;
mod limits;
mod program;
mod rootfs;
mod stubs;
mod system;
mod user;

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use lapstrake_sys::caps::{self, CapabilitySet};
use lapstrake_sys::idmap::IdMap;
use lapstrake_sys::process::{self, Ended, Side};
use lapstrake_sys::seccomp::Instruction;
use lapstrake_sys::{Context, Errno};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};

pub(crate) use certificates::{remove_links, texts};
pub(crate) use stubs::Stubs;

use crate::emulation::Keeper;
use crate::protocol::{Report, Request, Stage, send};
use crate::spec::{Input, Network, StepSpec};

/// What a step may do as root: the usual list of containers.
pub(crate) fn step_capabilities() -> CapabilitySet {
    CapabilitySet::AUDIT_WRITE
        | CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::KILL
        | CapabilitySet::MKNOD
        | CapabilitySet::NET_BIND_SERVICE
        | CapabilitySet::NET_RAW
        | CapabilitySet::SETFCAP
        | CapabilitySet::SETGID
        | CapabilitySet::SETPCAP
        | CapabilitySet::SETUID
        | CapabilitySet::SYS_CHROOT
}

/// Why the step never ran.
#[derive(Debug)]
pub(crate) struct Failure {
    stage: Stage,
    message: String,
    errno: Errno,
}

impl Failure {
    pub(crate) fn new(stage: Stage, message: impl Into<String>, errno: Errno) -> Self {
        Self { stage, message: message.into(), errno }
    }

    pub(crate) fn into_report(self) -> Report {
        Report::Failed { stage: self.stage, message: self.message, errno: self.errno.raw_os_error() }
    }
}

/// Gives a kernel error its stage.
pub(crate) fn kernel(stage: Stage) -> impl Fn(lapstrake_sys::Error) -> Failure {
    move |error| Failure::new(stage, error.to_string(), error.errno)
}

/// All that the program needs, prepared while everything can still be reported.
struct Ready {
    program: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    identity: user::Identity,
    filter: Vec<Instruction>,
    null: OwnedFd,
    /// The program's end of its terminal.
    terminal: Option<OwnedFd>,
}

/// Runs as process 1; reports through `status`.
pub(crate) fn run(request: &Request, keeper: Option<&Keeper>, status: OwnedFd) -> ! {
    let mut status = File::from(status);
    match prepare(request, &mut status) {
        Ok(ready) => start(request, keeper, ready, status),
        Err(failure) => {
            send(&mut status, &failure.into_report());
            process::exit_now(1)
        }
    }
}

fn prepare(request: &Request, status: &mut File) -> Result<Ready, Failure> {
    let spec = &request.spec;
    follow_parent(status)?;
    rustix::process::setsid().about("setsid", "init").map_err(kernel(Stage::Helper))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    limits::offer_to_oom_killer();
    lapstrake_sys::mount::isolate_propagation(false).map_err(kernel(Stage::Tree))?;
    let tree = rootfs::assemble(request)?;
    if let Some(stubs) = &tree.stubs {
        send(status, &Report::Stubs(stubs.clone()));
    }
    rootfs::enter(&tree)?;
    let more = tree.env.clone();
    drop(tree);

    let hostname = crate::launch::hostname(spec);
    rustix::system::sethostname(hostname.as_bytes()).map_err(|errno| {
        Failure::new(Stage::Namespaces, format!("host name \"{hostname}\": {errno}"), errno)
    })?;
    if spec.network == Network::None {
        lapstrake_sys::net::loopback_up().map_err(kernel(Stage::Network))?;
    }
    ready(request, &more)
}

/// What the program needs, looked up in the tree that is the root by now.
fn ready(request: &Request, more: &[(&'static str, &'static str)]) -> Result<Ready, Failure> {
    let spec = &request.spec;
    let identity = identity(&spec.user)?;
    change_directory(&spec.cwd)?;
    let env = program::environment(&certificates::with_variables(spec, more), &identity.home);
    let program = match spec.args.first() {
        Some(name) => {
            program::locate(name, &env).map_err(|text| Failure::new(Stage::Program, text, Errno::NOENT))?
        }
        None if request.probe => String::new(),
        None => return Err(Failure::new(Stage::Program, "the step has no command", Errno::INVAL)),
    };
    let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .about("open", "/dev/null")
        .map_err(kernel(Stage::Dev))?;
    Ok(Ready {
        program: text(program)?,
        args: spec.args.iter().cloned().map(text).collect::<Result<_, _>>()?,
        env: with_secrets(env, spec)?,
        identity,
        filter: crate::seccomp::compile(),
        null,
        terminal: (spec.input == Input::Terminal).then(terminal).transpose()?,
    })
}

/// Makes the program's terminal, and sends the builder's end of it over what is the standard output so far.
fn terminal() -> Result<OwnedFd, Failure> {
    let fail = kernel(Stage::Dev);
    let (master, slave) = lapstrake_sys::terminal::open(Path::new("/dev/pts/ptmx")).map_err(&fail)?;
    lapstrake_sys::pass::send(std::io::stdout(), b"t", &[master.as_fd()]).map_err(&fail)?;
    Ok(slave)
}

/// Runs as a program beside that of the step whose process 1 `inside` is; reports through `status`.
pub(crate) fn join(request: &Request, keeper: Option<&Keeper>, inside: &OwnedFd, status: OwnedFd) -> ! {
    let mut status = File::from(status);
    let outcome = follow_parent(&status)
        .and_then(|()| move_beside(request.spec.network, inside))
        .and_then(|()| ready(request, &[]));
    let failure = match outcome {
        Ok(ready) => become_program(request, keeper, &ready),
        Err(failure) => Some(failure),
    };
    if let Some(failure) = failure {
        send(&mut status, &failure.into_report());
        process::exit_now(127)
    }
    process::exit_now(0)
}

/// Into the namespaces of a step, but for that of its processes, which our parent chose.
fn move_beside(network: Network, inside: &OwnedFd) -> Result<(), Failure> {
    use rustix::thread::{ThreadNameSpaceType as Kind, move_into_thread_name_spaces};
    rustix::process::umask(Mode::from_raw_mode(0o022));
    limits::offer_to_oom_killer();
    let mut kinds = Kind::MOUNT | Kind::HOST_NAME_AND_NIS_DOMAIN_NAME | Kind::INTER_PROCESS_COMMUNICATION;
    kinds.set(Kind::NETWORK, network == Network::None);
    match move_into_thread_name_spaces(inside.as_fd(), kinds | Kind::CONTROL_GROUP) {
        // Kernels without cgroups have no namespaces of them.
        Err(Errno::INVAL) => move_into_thread_name_spaces(inside.as_fd(), kinds),
        result => result,
    }
    .about("setns", "the step's namespaces")
    .map_err(kernel(Stage::Namespaces))
}

/// The environment with its secret variables, which win over others of their name.
fn with_secrets(env: Vec<String>, spec: &StepSpec) -> Result<Vec<CString>, Failure> {
    let secret = |entry: &String| {
        let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
        spec.secret_env.iter().any(|variable| variable.name == name)
    };
    let mut out: Vec<CString> =
        env.into_iter().filter(|entry| !secret(entry)).map(text).collect::<Result<_, _>>()?;
    for variable in &spec.secret_env {
        let mut entry = format!("{}=", variable.name).into_bytes();
        entry.extend(variable.value.reveal());
        // The usual message would show the value.
        out.push(CString::new(entry).map_err(|_| {
            let name = &variable.name;
            let message =
                format!("the secret for the variable {name} has a zero byte in it: mount it as a file");
            Failure::new(Stage::Program, message, Errno::INVAL)
        })?);
    }
    Ok(out)
}

/// Who the step runs as; an id that this user namespace does not have is told in plain words.
fn identity(user: &str) -> Result<user::Identity, Failure> {
    let fail = |text: String| Failure::new(Stage::User, text, Errno::INVAL);
    let identity = user::resolve_here(user).map_err(fail)?;
    let maps = [
        ("user", IdMap::of_users(), vec![identity.uid]),
        ("group", IdMap::of_groups(), identity.groups.clone()),
    ];
    for (kind, map, ids) in maps {
        let map = map.map_err(kernel(Stage::User))?;
        if let Some(id) = ids.into_iter().find(|id| map.outside(*id).is_none()) {
            let count = map.len();
            return Err(fail(format!(
                "{kind} id {id} is not among the {count} ids of the builder's user namespace"
            )));
        }
    }
    Ok(identity)
}

/// Dies when the helper dies, also when that has happened already.
fn follow_parent(status: &File) -> Result<(), Failure> {
    process::die_with_parent().map_err(kernel(Stage::Helper))?;
    // The helper holds the reading end: without one, it was gone before the call above.
    let mut polled = [PollFd::new(status, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    process::retry(|| rustix::event::poll(&mut polled, Some(&now)))
        .about("poll", "status")
        .map_err(kernel(Stage::Helper))?;
    if polled[0].revents().contains(PollFlags::ERR) {
        process::exit_now(1);
    }
    Ok(())
}

fn change_directory(cwd: &str) -> Result<(), Failure> {
    let cwd = Path::new("/").join(cwd);
    let fail = |error: std::io::Error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        Failure::new(Stage::Cwd, format!("working directory {}: {errno}", cwd.display()), errno)
    };
    std::fs::create_dir_all(&cwd).map_err(fail)?;
    std::env::set_current_dir(&cwd).map_err(fail)
}

fn text(text: String) -> Result<CString, Failure> {
    CString::new(text).map_err(|error| {
        let text = String::from_utf8_lossy(&error.into_vec()).replace('\0', "\\0");
        Failure::new(Stage::Program, format!("\"{text}\" has a zero byte in it"), Errno::INVAL)
    })
}

fn start(request: &Request, keeper: Option<&Keeper>, ready: Ready, mut status: File) -> ! {
    // Closed by the program's start, or by its end.
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).about("pipe", "start");
    let (started, starts) = match request.live.then(pipe).transpose() {
        Ok(pipe) => pipe.unzip(),
        Err(error) => {
            send(&mut status, &kernel(Stage::Helper)(error).into_report());
            process::exit_now(1)
        }
    };
    match process::fork() {
        Ok(Side::Child) => {
            drop(started);
            let failure = become_program(request, keeper, &ready);
            if let Some(failure) = failure {
                send(&mut status, &failure.into_report());
                process::exit_now(127)
            }
            process::exit_now(0)
        }
        Ok(Side::Parent(child)) => {
            let null = ready.null.as_fd();
            drop(starts);
            if let Some(started) = started {
                // Where it could not start, it has said so before.
                process::retry(|| rustix::io::read(&started, &mut [0])).ok();
                send(&mut status, &Report::Running { init: 0 });
            }
            let watched = lock_init(null).and_then(|()| watch(child.pid));
            let report = watched.unwrap_or_else(|failure| failure.into_report());
            send(&mut status, &report);
            process::exit_now(0)
        }
        Err(error) => {
            send(&mut status, &kernel(Stage::Namespaces)(error).into_report());
            process::exit_now(1)
        }
    }
}

/// Process 1 needs nothing from here on: no power, no output, no directory.
fn lock_init(null: std::os::fd::BorrowedFd<'_>) -> Result<(), Failure> {
    for stream in 0..=2 {
        process::replace_stdio(null, stream).map_err(kernel(Stage::Helper))?;
    }
    rustix::process::chdir(c"/").about("chdir", "/").map_err(kernel(Stage::Helper))?;
    rustix::thread::set_name(c"lapstrake-init")
        .about("prctl", "PR_SET_NAME")
        .map_err(kernel(Stage::Helper))?;
    caps::settle(CapabilitySet::empty()).map_err(kernel(Stage::Confine))
}

/// Reaps until the main process has ended.
fn watch(main: rustix::process::Pid) -> Result<Report, Failure> {
    loop {
        match process::reap_any().map_err(kernel(Stage::Helper))? {
            Some((pid, ended)) if pid == main => {
                return Ok(match ended {
                    Ended::Exited(code) => Report::Ended { code, signal: None, oom: false },
                    Ended::Signaled(signal) => {
                        Report::Ended { code: 128 + signal, signal: Some(signal), oom: false }
                    }
                });
            }
            Some(_) => {}
            None => return Err(Failure::new(Stage::Helper, "the main process is lost", Errno::CHILD)),
        }
    }
}

/// Turns into the step's program; what is returned is why not, or nothing after a probe.
fn become_program(request: &Request, keeper: Option<&Keeper>, ready: &Ready) -> Option<Failure> {
    let confined = confine(&request.spec, keeper, ready);
    if let Err(failure) = confined {
        return Some(failure);
    }
    if request.probe {
        return None;
    }
    let error = process::exec(&ready.program, &ready.args, &ready.env);
    let name = request.spec.args.first().map_or("", String::as_str);
    let reason = match error.errno {
        // The file is there: what is missing is its interpreter or loader.
        Errno::NOENT => "no such file or directory".to_owned(),
        Errno::NOEXEC => "exec format error".to_owned(),
        Errno::ACCESS => "permission denied".to_owned(),
        errno => errno.to_string(),
    };
    Some(Failure::new(Stage::Program, format!("exec: \"{name}\": {reason}"), error.errno))
}

fn confine(spec: &StepSpec, keeper: Option<&Keeper>, ready: &Ready) -> Result<(), Failure> {
    let helper = kernel(Stage::Helper);
    let fail = kernel(Stage::Confine);
    let identity = &ready.identity;
    rustix::process::setsid().about("setsid", "step").map_err(&helper)?;
    if !spec.duplex && spec.input == Input::None {
        process::replace_stdio(&ready.null, 0).map_err(&helper)?;
    }
    if let Some(terminal) = &ready.terminal {
        lapstrake_sys::terminal::control(terminal).map_err(&helper)?;
        for stream in 0..=2 {
            process::replace_stdio(terminal, stream).map_err(&helper)?;
        }
    }
    give_streams(identity, ready.terminal.is_some())?;
    if let Some(keeper) = keeper {
        keeper.join().map_err(kernel(Stage::Emulation))?;
    }
    // Here, so that they are the step's alone: process 1 opens files too. Before the power to raise one is given up.
    limits::apply(&spec.rlimits).map_err(|(text, errno)| Failure::new(Stage::Limits, text, errno))?;
    let become_user = || {
        process::become_user(identity.uid, identity.gid, &identity.groups)
            .map_err(|error| Failure::new(Stage::User, error.to_string(), error.errno))
    };
    if spec.insecure {
        caps::keep_through_user_change().map_err(&fail)?;
        become_user()?;
        caps::hand_on().map_err(&fail)?;
    } else {
        caps::bound(step_capabilities()).map_err(&fail)?;
        lapstrake_sys::seccomp::install(&ready.filter).map_err(&fail)?;
        become_user()?;
        let keep = if identity.uid == 0 { step_capabilities() } else { CapabilitySet::empty() };
        caps::settle(keep).map_err(&fail)?;
    }
    process::close_on_exec_from(3).map_err(&helper)?;
    lapstrake_sys::signal::reset_for_exec().map_err(&helper)
}

/// The step's user may open `/dev/stdout` again: the pipes become its own.
fn give_streams(identity: &user::Identity, terminal: bool) -> Result<(), Failure> {
    use rustix::fs::{Gid, Uid};
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    if terminal {
        // Its group stays that of all terminals.
        return rustix::fs::fchown(std::io::stdin(), Some(uid), None)
            .about("fchown", "terminal")
            .map_err(kernel(Stage::Helper));
    }
    for stream in [std::io::stdin().as_fd(), std::io::stdout().as_fd(), std::io::stderr().as_fd()] {
        let stat = rustix::fs::fstat(stream).about("fstat", "output").map_err(kernel(Stage::Helper))?;
        if FileType::from_raw_mode(stat.st_mode).is_fifo() {
            rustix::fs::fchown(stream, Some(uid), Some(gid))
                .about("fchown", "output")
                .map_err(kernel(Stage::Helper))?;
        }
    }
    Ok(())
}
