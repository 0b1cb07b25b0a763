//! Running steps from an async program: one helper process per step.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

use lapstrake_sys::Errno;
use lapstrake_sys::cgroup::OomCounter;
use rustix::pipe::PipeFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;
use tokio_util::sync::CancellationToken;

use crate::error::RunError;
use crate::launch::{Launcher, control_pair};
use crate::protocol::{HELPER_ARGUMENT, Report};
use crate::spec::{Changes, MountSource, StepExit, StepSpec, Stream};

/// Bytes of output handed on at once.
const OUTPUT_BYTES: usize = 64 << 10;

/// Takes the output of a step, piece by piece, in the order in which it was read.
///
/// While it runs nothing more is read, and a step that goes on writing waits.
pub type Sink<'a> = &'a mut (dyn FnMut(Stream, &[u8]) + Send);

/// Runs steps. Any number at once; each is a helper process with namespaces of its own.
#[derive(Debug)]
pub struct Executor {
    pub(crate) launcher: Launcher,
    discard: PathBuf,
    next: AtomicU64,
}

impl Executor {
    /// Uses `dir`, a directory of its own on the file system of the snapshots: for the places that
    /// steps are mounted on, and for changes that are thrown away. Left-overs of a killed builder
    /// in it are removed. Blocking.
    pub fn new(dir: &Path) -> Result<Self, RunError> {
        let launcher = Launcher::new(dir)?;
        let discard = dir.join("discard");
        let fail = |source| RunError::Directory { path: discard.clone(), source };
        match std::fs::remove_dir_all(&discard) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
            _ => std::fs::create_dir_all(&discard).map_err(fail)?,
        }
        Ok(Self { launcher, discard, next: AtomicU64::new(0) })
    }

    /// The same, for steps that resolve names like this.
    pub fn with_dns(mut self, dns: crate::Dns) -> Self {
        self.launcher.set_dns(dns);
        self
    }

    /// Overlay marks go to `user.overlay.*` here: who reads upper directories has to know.
    pub fn userxattr(&self) -> bool {
        self.launcher.userxattr()
    }

    /// Runs one step to its end.
    ///
    /// `cancel` kills all its processes; when this returns, with whatever result, none is left and
    /// nothing of it is mounted. Dropping the future kills the step too, but does not wait.
    pub async fn run(
        &self,
        spec: &StepSpec,
        sink: Sink<'_>,
        cancel: &CancellationToken,
    ) -> Result<StepExit, RunError> {
        self.run_with(spec, None, sink, cancel).await
    }

    /// The same for a step whose standard input and output are `socket`: only what it writes to standard error goes to
    /// the sink.
    pub async fn run_on(
        &self,
        spec: &StepSpec,
        socket: OwnedFd,
        sink: Sink<'_>,
        cancel: &CancellationToken,
    ) -> Result<StepExit, RunError> {
        let spec = StepSpec { duplex: true, ..spec.clone() };
        self.run_with(&spec, Some(socket), sink, cancel).await
    }

    async fn run_with(
        &self,
        spec: &StepSpec,
        socket: Option<OwnedFd>,
        sink: Sink<'_>,
        cancel: &CancellationToken,
    ) -> Result<StepExit, RunError> {
        if cancel.is_cancelled() {
            return Err(RunError::Canceled);
        }
        let (spec, discarded) = self.with_discards(spec)?;
        let oom = OomCounter::of_self();
        let kills_before = oom.as_ref().and_then(OomCounter::kills);
        let request = self.launcher.request(spec, false);
        let bytes = request.encode().map_err(io("describing the step"))?;
        let mut helper = Helper::spawn(&self.launcher, socket)?;
        let outcome = helper.drive(&bytes, sink, cancel).await;
        let status = helper.child.wait().await.map_err(io("waiting for the helper"));
        discarded.remove().await;
        let report = outcome?;
        if cancel.is_cancelled() && !matches!(report, Some(Report::Ended { signal: None, .. })) {
            return Err(RunError::Canceled);
        }
        let oom_counted = || oom.as_ref().and_then(OomCounter::kills) > kills_before;
        conclude(report, status?, oom_counted)
    }

    /// Gives mounts whose changes are thrown away a place for them.
    pub(crate) fn with_discards(&self, spec: &StepSpec) -> Result<(StepSpec, Discarded), RunError> {
        let mut spec = spec.clone();
        let mut discarded = Discarded(Vec::new());
        for mount in &mut spec.mounts {
            let MountSource::Layers { changes, .. } = &mut mount.source else { continue };
            if *changes != Changes::Discarded {
                continue;
            }
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let place = self.discard.join(number.to_string());
            discarded.0.push(place.clone());
            let (upper, work) = (place.join("upper"), place.join("work"));
            for dir in [&upper, &work] {
                std::fs::create_dir_all(dir)
                    .map_err(|source| RunError::Directory { path: dir.clone(), source })?;
            }
            *changes = Changes::Kept { upper, work };
        }
        Ok((spec, discarded))
    }
}

/// Directories that go when the step has ended.
#[derive(Debug)]
pub(crate) struct Discarded(Vec<PathBuf>);

impl Discarded {
    pub(crate) async fn remove(mut self) {
        let places = std::mem::take(&mut self.0);
        if !places.is_empty() {
            let removal = tokio::task::spawn_blocking(move || drop(Discarded(places)));
            removal.await.ok(); // What is left over goes when the builder starts anew.
        }
    }
}

impl Drop for Discarded {
    fn drop(&mut self) {
        for place in &self.0 {
            std::fs::remove_dir_all(place).ok(); // As above.
        }
    }
}

struct Helper {
    child: tokio::process::Child,
    control: UnixStream,
    stdout: Receiver,
    stderr: Receiver,
}

impl Helper {
    /// `socket` takes the place of the step's standard output.
    fn spawn(launcher: &Launcher, socket: Option<OwnedFd>) -> Result<Self, RunError> {
        let (ours, theirs) = control_pair()?;
        ours.set_nonblocking(true).map_err(io("making the helper's socket"))?;
        let control = UnixStream::from_std(ours).map_err(io("making the helper's socket"))?;
        let (stdout, stdout_writer) = output_pipe()?;
        let (stderr, stderr_writer) = output_pipe()?;
        // The command owns the writing ends; they close here when it is dropped.
        let child = tokio::process::Command::new(launcher.program())
            .arg0("lapstrake-step")
            .arg(HELPER_ARGUMENT)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(socket.unwrap_or(stdout_writer)))
            .stderr(Stdio::from(stderr_writer))
            .spawn()
            .map_err(io("starting the step's helper"))?;
        Ok(Self { child, control, stdout, stderr })
    }

    /// Sends the request and passes output on until the helper has reported.
    async fn drive(
        &mut self,
        request: &[u8],
        sink: Sink<'_>,
        cancel: &CancellationToken,
    ) -> Result<Option<Report>, RunError> {
        let (mut reader, mut writer) = self.control.split();
        let mut told = Vec::new();
        let mut out = vec![0; OUTPUT_BYTES];
        let mut err = vec![0; OUTPUT_BYTES];
        let (mut out_open, mut err_open, mut canceled) = (true, true, false);
        // A helper that died early refuses the request: its silence is then the answer.
        let mut sending = std::pin::pin!(async { writer.write_all(request).await.ok() });
        let mut sent = false;
        let mut kill = false;
        loop {
            tokio::select! {
                _ = &mut sending, if !sent => sent = true,
                () = cancel.cancelled(), if !canceled => {
                    canceled = true;
                    kill = true;
                }
                read = self.stdout.read(&mut out), if out_open => {
                    out_open = pass_on(Stream::Stdout, &out, read, sink);
                }
                read = self.stderr.read(&mut err), if err_open => {
                    err_open = pass_on(Stream::Stderr, &err, read, sink);
                }
                read = reader.read_buf(&mut told) => {
                    if read.is_ok_and(|count| count > 0) {
                        continue;
                    }
                    break;
                }
            }
            if kill {
                kill = false;
                // Nothing more to say: the helper takes the end of the stream for "kill".
                rustix::net::shutdown(reader.as_ref().as_fd(), rustix::net::Shutdown::Write).ok(); // It has ended already.
            }
        }
        drain(Stream::Stdout, &self.stdout, &mut out, sink);
        drain(Stream::Stderr, &self.stderr, &mut err, sink);
        Ok(Report::decode_all(&told).pop())
    }
}

fn output_pipe() -> Result<(Receiver, OwnedFd), RunError> {
    let fail = "making the step's output pipes";
    let (reader, writer) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| io(fail)(errno.into()))?;
    Ok((Receiver::from_owned_fd(reader).map_err(io(fail))?, writer))
}

/// Hands a piece to the sink; whether there may be more.
fn pass_on(stream: Stream, buffer: &[u8], read: std::io::Result<usize>, sink: Sink<'_>) -> bool {
    match read {
        Ok(0) | Err(_) => false,
        Ok(count) => {
            sink(stream, &buffer[..count]);
            true
        }
    }
}

/// Reads what lies in the pipe. The step's processes are dead; should somebody else still hold the
/// writing end, that is not waited for.
fn drain(stream: Stream, pipe: &Receiver, buffer: &mut [u8], sink: Sink<'_>) {
    loop {
        match rustix::io::read(pipe, &mut *buffer) {
            Ok(0) => return,
            Ok(count) => sink(stream, &buffer[..count]),
            Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

pub(crate) fn conclude(
    report: Option<Report>,
    status: ExitStatus,
    oom_counted: impl FnOnce() -> bool,
) -> Result<StepExit, RunError> {
    match report {
        Some(Report::Ended { code, signal, oom }) => {
            let killed = signal == Some(9) || code == 128 + 9;
            Ok(StepExit { code, signal, oom_killed: killed && (oom || oom_counted()) })
        }
        Some(Report::Failed { stage, message, errno }) => Err(RunError::from_failure(stage, message, errno)),
        Some(Report::Stubs(_) | Report::Running { .. }) | None => {
            Err(RunError::HelperLost(status.to_string()))
        }
    }
}

/// Runs the set-up of a step, all of it, without a program. Blocking; for the self-check.
pub(crate) fn probe_blocking(launcher: &Launcher, spec: StepSpec) -> Result<(), RunError> {
    let bytes = launcher.request(spec, true).encode().map_err(io("describing the step"))?;
    let (mut ours, theirs) = control_pair()?;
    let mut command = std::process::Command::new(launcher.program());
    command.arg(HELPER_ARGUMENT).env_clear().stdin(Stdio::from(OwnedFd::from(theirs)));
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(io("starting the step's helper"))?;
    drop(command);
    std::io::Write::write_all(&mut ours, &bytes).map_err(io("talking to the helper"))?;
    let mut told = Vec::new();
    ours.read_to_end(&mut told).map_err(io("talking to the helper"))?;
    let status = child.wait().map_err(io("waiting for the helper"))?;
    let exit = conclude(Report::decode_all(&told).pop(), status, || false)?;
    if exit.success() { Ok(()) } else { Err(RunError::HelperLost(format!("exit code {}", exit.code))) }
}

pub(crate) fn io(what: &'static str) -> impl Fn(std::io::Error) -> RunError {
    move |source| RunError::Io { what, source }
}
