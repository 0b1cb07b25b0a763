//! Steps that are spoken with while they run: input, a terminal, signals, more programs in the same tree.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;

use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::AsyncReadExt as _;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio_util::sync::CancellationToken;

use crate::error::RunError;
use crate::executor::{Discarded, Executor, conclude, io as io_error};
use crate::launch::control_pair;
use crate::protocol::{HELPER_ARGUMENT, Report};
use crate::spec::{Input, StepExit, StepSpec};

/// Our ends of a program's streams.
#[derive(Debug)]
pub enum Streams {
    /// Pipes.
    Pipes {
        /// Its input, where it has one.
        stdin: Option<Sender>,
        /// Its output.
        stdout: Receiver,
        /// Its errors.
        stderr: Receiver,
    },
    /// A terminal.
    Terminal(Terminal),
}

/// The holder's end of a terminal.
#[derive(Debug)]
pub struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    fn new(master: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&master, true)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for types whose descriptor may change; an OwnedFd's does not"
        )]
        Ok(Self(AsyncFd::new(master)?))
    }

    /// Reads what was printed; nothing more comes when the answer is 0.
    pub async fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut *into)?)) {
                // The last program has let go of its end.
                Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                    return Ok(0);
                }
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Reads what lies there already.
    pub fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0.get_ref(), into)?)
    }

    /// Types all of it.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) {
                Ok(written) => bytes = bytes.get(written?..).unwrap_or_default(),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }

    /// Says how many characters fit.
    pub fn resize(&self, rows: u16, columns: u16) -> lapstrake_sys::Result<()> {
        lapstrake_sys::terminal::resize(self.0.get_ref(), rows, columns)
    }
}

/// The inside of a step that runs, for programs beside its own.
#[derive(Debug, Clone)]
pub struct Inside(Arc<OwnedFd>);

/// Sends signals to a program.
#[derive(Debug, Clone)]
pub struct Handle(Arc<OwnedWriteHalf>);

impl Handle {
    /// Sends the program a signal by its number; one that has ended is fine.
    pub fn signal(&self, number: u8) {
        if number != 0 {
            self.0.try_write(&[number]).ok(); // Who has ended reads nothing.
        }
    }

    /// Kills the program; of a step, all that runs in it.
    pub fn kill(&self) {
        self.0.try_write(&[0]).ok(); // As above.
    }
}

/// A program that runs. Dropped before its end, it is killed.
#[derive(Debug)]
pub struct Live {
    child: tokio::process::Child,
    reports: OwnedReadHalf,
    handle: Handle,
    inside: Option<Inside>,
    discarded: Option<Discarded>,
    told: Vec<u8>,
}

impl Live {
    /// For signals.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// For programs beside this one.
    pub fn inside(&self) -> Option<Inside> {
        self.inside.clone()
    }

    /// Waits for the program's end. When this returns for the program of a step, nothing of the step is left.
    pub async fn wait(mut self) -> Result<StepExit, RunError> {
        self.reports.read_to_end(&mut self.told).await.map_err(io_error("talking to the helper"))?;
        self.end().await
    }

    async fn end(mut self) -> Result<StepExit, RunError> {
        let status = self.child.wait().await.map_err(io_error("waiting for the helper"))?;
        if let Some(discarded) = self.discarded.take() {
            discarded.remove().await;
        }
        conclude(Report::decode_all(&self.told).pop(), status, || false)
    }
}

/// The ends of a program's streams on their way.
struct Ends {
    streams: Begun,
    stdout: OwnedFd,
    stderr: OwnedFd,
    passed: Vec<OwnedFd>,
}

enum Begun {
    Streams(Streams),
    /// The terminal is made in the step's own tree, and comes through this socket.
    Terminal(std::os::unix::net::UnixStream),
}

fn ends(input: Input) -> Result<Ends, RunError> {
    let fail = "making the program's pipes";
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| io_error(fail)(e.into()));
    if input == Input::Terminal {
        let (ours, theirs) = control_pair()?;
        let null = rustix::fs::open(
            c"/dev/null",
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        );
        let stderr = null.map_err(|e| io_error(fail)(e.into()))?;
        return Ok(Ends {
            streams: Begun::Terminal(ours),
            stdout: theirs.into(),
            stderr,
            passed: Vec::new(),
        });
    }
    let ((out_reader, stdout), (err_reader, stderr)) = (pipe()?, pipe()?);
    let mut passed = Vec::new();
    let stdin = match input {
        Input::Pipe => {
            let (reader, writer) = pipe()?;
            passed.push(reader);
            Some(Sender::from_owned_fd(writer).map_err(io_error(fail))?)
        }
        _ => None,
    };
    let streams = Streams::Pipes {
        stdin,
        stdout: Receiver::from_owned_fd(out_reader).map_err(io_error(fail))?,
        stderr: Receiver::from_owned_fd(err_reader).map_err(io_error(fail))?,
    };
    Ok(Ends { streams: Begun::Streams(streams), stdout, stderr, passed })
}

impl Executor {
    /// Starts a step that is spoken with while it runs, or, `inside` of one, a program beside its own: then
    /// only program, environment, user, directory, network, input and privileges of `spec` count.
    ///
    /// Returns when the program runs.
    ///
    /// # Errors
    /// As [`Executor::run`]; nothing of it is left then.
    pub async fn start(
        &self,
        spec: &StepSpec,
        inside: Option<&Inside>,
        cancel: &CancellationToken,
    ) -> Result<(Live, Streams), RunError> {
        let (spec, discarded) = match inside {
            None => self.with_discards(spec).map(|(spec, discarded)| (spec, Some(discarded)))?,
            Some(_) => (spec.clone(), None),
        };
        let Ends { streams, stdout, stderr, mut passed } = ends(spec.input)?;
        let mut request = self.launcher.request(spec, false);
        (request.live, request.join) = (true, inside.is_some());
        if let Some(Inside(init)) = inside {
            passed.push(init.try_clone().map_err(io_error("naming the step"))?);
        }
        let request = request.encode().map_err(io_error("describing the step"))?;
        let (head, body) = request.split_at(4);
        let (ours, theirs) = control_pair()?;
        let child = tokio::process::Command::new(self.launcher.program())
            .arg0("lapstrake-step")
            .arg(HELPER_ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(stdout))
            .stderr(Stdio::from(stderr))
            .spawn()
            .map_err(io_error("starting the step's helper"))?;
        let fds: Vec<_> = passed.iter().map(AsFd::as_fd).collect();
        lapstrake_sys::pass::send(&ours, head, &fds)?;
        drop(passed);
        ours.set_nonblocking(true).map_err(io_error("making the helper's socket"))?;
        let control =
            tokio::net::UnixStream::from_std(ours).map_err(io_error("making the helper's socket"))?;
        let (reports, writer) = control.into_split();
        let handle = Handle(Arc::new(writer));
        let live = Live { child, reports, handle, inside: None, discarded, told: Vec::new() };
        begin(live, streams, body, inside.is_none(), cancel).await
    }
}

/// Sees the program start.
async fn begin(
    mut live: Live,
    streams: Begun,
    request: &[u8],
    is_step: bool,
    cancel: &CancellationToken,
) -> Result<(Live, Streams), RunError> {
    // A helper that died early refuses the request: its silence is then the answer.
    let mut rest = request;
    let (mut sent, mut canceled) = (false, false);
    let init = loop {
        tokio::select! {
            ready = live.handle.0.writable(), if !sent => {
                sent = ready.is_err();
                match live.handle.0.try_write(rest) {
                    Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                    Err(error) => sent |= error.kind() != io::ErrorKind::WouldBlock,
                }
                sent |= rest.is_empty();
            }
            () = cancel.cancelled(), if !canceled => {
                canceled = true;
                live.handle.kill();
            }
            read = live.reports.read_buf(&mut live.told) => {
                let ended = !read.is_ok_and(|count| count > 0);
                let running = Report::decode_all(&live.told).into_iter().find_map(|report| match report {
                    Report::Running { init } => Some(init),
                    _ => None,
                });
                if let Some(init) = running {
                    break init;
                }
                if ended {
                    let exit = live.end().await;
                    return match (canceled, exit) {
                        (true, _) => Err(RunError::Canceled),
                        (false, Err(error)) => Err(error),
                        (false, Ok(exit)) => {
                            Err(RunError::HelperLost(format!("exit code {} before the start", exit.code)))
                        }
                    };
                }
            }
        }
    };
    if is_step {
        live.inside = inside(init, &live.child)?;
    }
    let streams = match streams {
        Begun::Streams(streams) => streams,
        Begun::Terminal(socket) => {
            // It was sent before the program could start.
            let (_, fds) = lapstrake_sys::pass::receive(&socket, &mut [0])?;
            let lost = || RunError::HelperLost("no terminal came".to_owned());
            let master = fds.into_iter().next().ok_or_else(lost)?;
            Streams::Terminal(Terminal::new(master).map_err(io_error("making the terminal"))?)
        }
    };
    Ok((live, streams))
}

/// The inside of a step by its process 1, which is a child of the helper for as long as that lives; none where
/// it has ended already.
fn inside(init: i32, helper: &tokio::process::Child) -> Result<Option<Inside>, RunError> {
    let Some(pid) = Pid::from_raw(init) else { return Ok(None) };
    let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(None) };
    let status = std::fs::read_to_string(format!("/proc/{init}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse::<u32>().ok());
    // The number may be another one's by now.
    let is_ours = parent.is_some() && parent == helper.id();
    Ok(is_ours.then(|| Inside(Arc::new(fd))))
}
