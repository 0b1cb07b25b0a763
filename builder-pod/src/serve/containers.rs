//! Containers of frontends: `NewContainer`, `ExecProcess`, and what is left of failed steps, which they may enter.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{Stream, StreamExt as _};
use lapstrake_api::frontend::exec_message::Input as Message;
use lapstrake_api::frontend::{
    DoneMessage, ExecMessage, ExitMessage, FdMessage, InitMessage, NewContainerRequest, NewContainerResponse,
    StartedMessage,
};
use lapstrake_api::pb;
use lapstrake_run::{Handle, Input, Live, StepExit, Streams, Terminal};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::errors::{self, status};
use super::job::Job;
use crate::engine::{Container, FailedOp, Process, Res, Wanted};
use crate::error::BuildError;

/// Answers of `ExecProcess`.
pub(crate) type Messages = Pin<Box<dyn Stream<Item = Result<ExecMessage, Status>> + Send>>;

/// Pieces that wait for a program, and for a client, and programs of a container that wait for their start, at most.
const WAITING_MAX: usize = 16;
/// Bytes of output in one message.
const PIECE_BYTES: usize = 32 << 10;
/// The exit code of a program that never ran.
const UNKNOWN_EXIT: u32 = 255;
/// Containers of one build at the same time.
const CONTAINERS_MAX: usize = 256;

/// Containers of a build, and what failed steps left.
#[derive(Default)]
pub(crate) struct Containers {
    remains: Mutex<HashMap<String, (Res, Arc<FailedOp>)>>,
    running: Mutex<HashMap<String, Arc<Running>>>,
}

/// A container that was not released.
pub(crate) struct Running {
    pub(crate) container: Container,
    /// Programs that are told as started and wait for it: so many, and no more is read of who asks for more.
    starts: Arc<Semaphore>,
    /// How the first of its programs ended that did not end well.
    failed: Mutex<Option<Status>>,
}

impl Running {
    fn note(&self, failure: Option<Status>) {
        if let (failed @ None, Some(failure)) = (&mut *locked(&self.failed), failure) {
            *failed = Some(failure);
        }
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        self.end();
    }
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Containers {
    /// A failure as frontends are told it: with what they can enter.
    pub(crate) fn status(&self, error: &BuildError) -> Status {
        let Some(failed) = error.failed_op() else { return status(error) };
        let inputs = self.keep(&failed.inputs, failed);
        let mounts = self.keep(&failed.mounts, failed);
        errors::status_with(error, vec![errors::solve(failed, &inputs, &mounts)])
    }

    fn keep(&self, results: &[Option<Res>], failed: &Arc<FailedOp>) -> Vec<String> {
        let mut remains = locked(&self.remains);
        let mut keep = |result: &Option<Res>| match result {
            None => String::new(),
            Some(result) => {
                let id = super::id();
                remains.insert(id.clone(), (result.clone(), Arc::clone(failed)));
                id
            }
        };
        results.iter().map(&mut keep).collect()
    }

    /// A container by its id.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Running>, Status> {
        let unknown = || Status::not_found(format!("container {id:?} previously released or not created"));
        locked(&self.running).get(id).cloned().ok_or_else(unknown)
    }

    /// Ends a container; nothing of it runs when this returns. Where a program of it did not end well, that is the answer.
    pub(crate) async fn release(&self, id: &str) -> Result<(), Status> {
        let running = locked(&self.running).remove(id);
        let unknown = || Status::unknown(format!("container details for {id} not found"));
        let running = running.ok_or_else(unknown)?;
        running.container.release().await;
        let failed = locked(&running.failed).take();
        failed.map_or(Ok(()), Err)
    }

    /// The build has ended: so do its containers.
    pub(crate) fn end(&self) {
        for (_, running) in locked(&self.running).drain() {
            running.container.cancel.cancel();
        }
        locked(&self.remains).clear();
    }

    /// What an id stands for: something that a failed step left, or else a result of the build.
    async fn content(
        &self,
        job: &Arc<Job>,
        mount: &pb::Mount,
    ) -> Result<(Res, Option<Arc<FailedOp>>), Status> {
        let id = &mount.result_id;
        if let Some((result, of)) = locked(&self.remains).get(id).cloned() {
            return Ok((result, Some(of)));
        }
        let missing = |e: Status| {
            Status::not_found(format!("failed to find ref {id} for {:?} mount: {}", mount.dest, e.message()))
        };
        let result = job.kept(id).map_err(missing)?;
        let tree = result.tree(job).await.map_err(|e| self.status(&e))?;
        let snapshot = job.engine.snapshot_of(tree, &job.cancel).await.map_err(|e| status(&e))?;
        Ok((Res::Snapshot(snapshot), None))
    }
}

/// Makes a container.
pub(crate) async fn create(
    job: &Arc<Job>,
    request: NewContainerRequest,
) -> Result<NewContainerResponse, Status> {
    let id = request.container_id;
    let mut wanted = Wanted {
        network: request.network,
        hostname: request.hostname,
        hosts: request.extra_hosts,
        ..Wanted::default()
    };
    wanted.platform = request.platform.filter(|p| !p.os.is_empty()).map(|p| {
        let variant = Some(p.variant.as_str()).filter(|variant| !variant.is_empty());
        lapstrake_oci::Platform::new(&p.os, &p.architecture, variant)
    });
    for mount in request.mounts {
        if mount.mount_type == pb::MountType::Ssh as i32 && mount.ssh_opt.is_none() {
            return Err(Status::invalid_argument(format!("SSH mount {:?} requires options", mount.dest)));
        }
        let content = match mount.result_id.as_str() {
            "" => None,
            _ => {
                let (content, of) = job.containers.content(job, &mount).await?;
                wanted.of.extend(of);
                Some(content)
            }
        };
        wanted.mounts.push((mount, content));
    }
    let cancel = job.cancel.child_token();
    let container = job.engine.container(wanted, cancel).await.map_err(|e| status(&e))?;
    let mut running = locked(&job.containers.running);
    if job.status.has_ended() {
        return Err(Status::failed_precondition(format!("build {} has ended", job.id)));
    }
    if running.contains_key(&id) {
        return Err(Status::already_exists(format!("Container {id} already exists")));
    }
    if running.len() >= CONTAINERS_MAX {
        return Err(Status::resource_exhausted(format!(
            "a build has at most {CONTAINERS_MAX} containers at the same time; release one"
        )));
    }
    let starts = Arc::new(Semaphore::new(WAITING_MAX));
    running.insert(id, Arc::new(Running { container, starts, failed: Mutex::default() }));
    Ok(NewContainerResponse {})
}

type Out = mpsc::Sender<Result<ExecMessage, Status>>;

/// A program's side that messages go to. It may not run yet: what it is told waits for it.
struct Program {
    stdin: Option<mpsc::Sender<Vec<u8>>>,
    orders: mpsc::Sender<Order>,
    killed: CancellationToken,
}

/// What a program is told beside its input.
enum Order {
    Resize { rows: u16, columns: u16 },
    Signal(u8),
}

/// The other side of a [`Program`].
struct Told {
    stdin: mpsc::Receiver<Vec<u8>>,
    orders: mpsc::Receiver<Order>,
    killed: CancellationToken,
}

/// Serves one stream of messages, which are about any number of programs.
pub(crate) fn exec(job: Arc<Job>, mut inbound: Streaming<ExecMessage>) -> Messages {
    let (out, receiver) = mpsc::channel(WAITING_MAX);
    tokio::spawn(async move {
        let mut programs = HashMap::new();
        let end = loop {
            let message = tokio::select! {
                message = inbound.message() => message,
                () = out.closed() => return,
            };
            match message {
                Ok(Some(message)) => {
                    if let Err(status) = take(&job, message, &mut programs, &out).await {
                        break Err(status);
                    }
                }
                Ok(None) => break Ok(()),
                Err(status) => break Err(status),
            }
        };
        if let Err(status) = end {
            out.send(Err(status)).await.ok(); // the client may have gone
            for program in programs.values() {
                program.killed.cancel();
            }
        }
        // Programs go on until their ends, with nothing more to read.
    });
    ReceiverStream::new(receiver).boxed()
}

async fn take(
    job: &Arc<Job>,
    message: ExecMessage,
    programs: &mut HashMap<String, Program>,
    out: &Out,
) -> Result<(), Status> {
    let id = message.process_id;
    if id.is_empty() {
        return Err(Status::invalid_argument("ProcessID required"));
    }
    let Some(input) = message.input else { return Ok(()) };
    if let Message::Init(init) = input {
        if programs.contains_key(&id) {
            return Err(Status::already_exists(format!("Process {id} already exists")));
        }
        let program = begin(job, &id, init, out).await?;
        programs.insert(id, program);
        return Ok(());
    }
    let unknown = || Status::not_found(format!("IO for process {id:?} not found"));
    let program = programs.get_mut(&id).ok_or_else(unknown)?;
    match input {
        Message::File(file) if file.fd == 0 => {
            if let Some(stdin) = program.stdin.as_ref().filter(|_| !file.data.is_empty()) {
                stdin.send(file.data).await.ok(); // a program that has ended reads nothing
            }
            if file.eof {
                program.stdin = None;
            }
        }
        Message::File(file) => {
            return Err(Status::out_of_range(format!("fd {} unavailable to write", file.fd)));
        }
        Message::Resize(size) => {
            let cells = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
            let order = Order::Resize { rows: cells(size.rows), columns: cells(size.cols) };
            program.orders.send(order).await.ok(); // as above
        }
        Message::Signal(signal) => {
            let unknown = || Status::invalid_argument(format!("Unknown signal {}", signal.name));
            let order = Order::Signal(number(&signal.name).ok_or_else(unknown)?);
            program.orders.send(order).await.ok(); // as above
        }
        Message::Init(_) | Message::Started(_) | Message::Exit(_) | Message::Done(_) => {}
    }
    Ok(())
}

/// Begins a program. The first one of a container has started when this returns, or the client has been told why not.
/// Others are told as started at once, as BuildKit does: its clients deal with the messages of all programs in their order,
/// so that one whose output nobody takes until the next has started would hold up just that.
async fn begin(job: &Arc<Job>, id: &str, init: InitMessage, out: &Out) -> Result<Program, Status> {
    let meta = init.meta.ok_or_else(|| Status::invalid_argument("process meta is required"))?;
    let running = job.containers.get(&init.container_id)?;
    let reads = init.fds.contains(&0);
    let input = match (init.tty, reads) {
        (true, _) => Input::Terminal,
        (false, true) => Input::Pipe,
        (false, false) => Input::None,
    };
    let process = Process { meta, secret_env: init.secretenv, security: init.security, input };
    let teller = Teller { id: id.to_owned(), out: out.clone(), fds: init.fds };
    let (typed, stdin) = mpsc::channel(WAITING_MAX);
    let (orders, given) = mpsc::channel(WAITING_MAX);
    let killed = CancellationToken::new();
    let told = Told { stdin, orders: given, killed: killed.clone() };
    let token = running.container.programs.token();
    let waits = Arc::clone(&running.starts).acquire_owned().await.ok(); // never closed
    let is_first = !running.container.has_begun();
    if !is_first {
        teller.tell(Message::Started(StartedMessage {})).await;
    }
    let (job, started) = (Arc::clone(job), CancellationToken::new());
    let starts = started.clone().drop_guard();
    tokio::spawn(async move {
        let _token = token;
        let live = job.engine.start_in(&running.container, process).await;
        if is_first {
            teller.tell(Message::Started(StartedMessage {})).await;
        }
        drop((starts, waits));
        let exit = match live {
            Ok((live, streams)) => see_through(&running.container, live, streams, told, &teller).await,
            Err(error) => Err(error),
        };
        let failure = failure_of(exit.as_ref(), running.container.cancel.is_cancelled());
        running.note(failure.clone());
        let code = exit.ok().and_then(|exit| u32::try_from(exit.code).ok());
        teller.tell_end(code.unwrap_or(UNKNOWN_EXIT), failure.as_ref()).await;
    });
    if is_first {
        started.cancelled().await;
    }
    Ok(Program { stdin: reads.then_some(typed), orders, killed })
}

/// Stays with a program to its end; its output has gone to the client then.
async fn see_through(
    container: &Container,
    live: Live,
    streams: Streams,
    Told { stdin, orders, killed }: Told,
    teller: &Teller,
) -> Result<StepExit, BuildError> {
    let ended = CancellationToken::new();
    let (handle, signaled) = (live.handle(), live.handle());
    let watch = async {
        let mut wait = std::pin::pin!(live.wait());
        let exit = tokio::select! {
            exit = &mut wait => exit,
            () = container.cancel.cancelled() => { handle.kill(); wait.await }
            () = killed.cancelled() => { handle.kill(); wait.await }
            // Nobody hears it any more.
            () = teller.out.closed() => { handle.kill(); wait.await }
        };
        ended.cancel();
        exit
    };
    let exit = match streams {
        Streams::Terminal(terminal) => {
            let obeying = until(&ended, obey(orders, signaled, Some(&terminal)));
            let typing = until(&ended, type_in(&terminal, stdin));
            tokio::join!(watch, obeying, typing, teller.copy_terminal(&terminal, &ended)).0
        }
        Streams::Pipes { stdin: to, stdout, stderr } => {
            let obeying = until(&ended, obey(orders, signaled, None));
            let typing = until(&ended, pass_in(to, stdin));
            let (out, err) = (teller.copy(1, stdout, &ended), teller.copy(2, stderr, &ended));
            tokio::join!(watch, obeying, typing, out, err).0
        }
    };
    exit.map_err(|error| BuildError::internal(crate::error::chain(&error)))
}

/// Does what a program is told beside its input.
async fn obey(mut orders: mpsc::Receiver<Order>, program: Handle, terminal: Option<&Terminal>) {
    while let Some(order) = orders.recv().await {
        match (order, terminal) {
            (Order::Signal(number), _) => program.signal(number),
            (Order::Resize { rows, columns }, Some(terminal)) => {
                terminal.resize(rows, columns).ok(); // it may be gone
            }
            (Order::Resize { .. }, None) => {}
        }
    }
}

async fn until(ended: &CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = ended.cancelled() => {}
    }
}

async fn type_in(terminal: &Terminal, mut stdin: mpsc::Receiver<Vec<u8>>) {
    while let Some(bytes) = stdin.recv().await {
        if terminal.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn pass_in(to: Option<Sender>, mut stdin: mpsc::Receiver<Vec<u8>>) {
    let Some(mut to) = to else { return };
    while let Some(bytes) = stdin.recv().await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// What is told of a program's end that was no good one; `released`: its container was to end.
fn failure_of(exit: Result<&StepExit, &BuildError>, released: bool) -> Option<Status> {
    match exit {
        Ok(exit) if exit.code == 0 => None,
        Ok(exit) => {
            let code = u32::try_from(exit.code).unwrap_or(UNKNOWN_EXIT);
            Some(match released {
                true => Status::cancelled(format!("exit code: {code}: context canceled")),
                false => Status::unknown(format!("exit code: {code}")),
            })
        }
        Err(error) => Some(status(error)),
    }
}

/// Tells the client of a program.
struct Teller {
    id: String,
    out: Out,
    /// Streams that the client wants.
    fds: Vec<u32>,
}

impl Teller {
    /// Whether the client still listens.
    async fn tell(&self, input: Message) -> bool {
        let message = ExecMessage { process_id: self.id.clone(), input: Some(input) };
        self.out.send(Ok(message)).await.is_ok()
    }

    async fn tell_end(&self, code: u32, failure: Option<&Status>) {
        let exit = match failure {
            None => ExitMessage::default(),
            Some(failure) => ExitMessage { code, error: Some(errors::message(failure)) },
        };
        self.tell(Message::Exit(exit)).await;
        self.tell(Message::Done(DoneMessage {})).await;
    }

    async fn output(&self, fd: u32, data: &[u8]) -> bool {
        // Where nobody wants it, it is read nevertheless: the program goes on.
        !self.fds.contains(&fd)
            || self.tell(Message::File(FdMessage { fd, eof: false, data: data.to_vec() })).await
    }

    async fn end_of(&self, fd: u32) {
        if self.fds.contains(&fd) {
            self.tell(Message::File(FdMessage { fd, eof: true, data: Vec::new() })).await;
        }
    }

    /// Passes a stream on until its end; once the program has ended, what is in it by then.
    async fn copy(&self, fd: u32, mut from: Receiver, ended: &CancellationToken) {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let read = tokio::select! {
                biased;
                read = from.read(&mut buffer) => read,
                () = ended.cancelled() => from.try_read(&mut buffer),
            };
            let Ok(count @ 1..) = read else { break };
            if !self.output(fd, buffer.get(..count).unwrap_or_default()).await {
                break;
            }
        }
        self.end_of(fd).await;
    }

    async fn copy_terminal(&self, terminal: &Terminal, ended: &CancellationToken) {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let read = tokio::select! {
                biased;
                read = terminal.read(&mut buffer) => read,
                () = ended.cancelled() => terminal.try_read(&mut buffer),
            };
            let Ok(count @ 1..) = read else { break };
            if !self.output(1, buffer.get(..count).unwrap_or_default()).await {
                break;
            }
        }
        self.end_of(1).await;
        self.end_of(2).await;
    }
}

/// A signal by its name, with `SIG` or without.
fn number(name: &str) -> Option<u8> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    let name = name.strip_prefix("SIG").unwrap_or(name);
    let name = match name {
        "IOT" => "ABRT",
        "CLD" => "CHLD",
        "POLL" => "IO",
        name => name,
    };
    let at = NAMES.iter().position(|one| *one == name)?;
    u8::try_from(at + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_a_release_ended_was_canceled() {
        let exit = |code| StepExit { code, signal: None, oom_killed: false };
        assert!(failure_of(Ok(&exit(0)), true).is_none());
        let own = failure_of(Ok(&exit(3)), false).expect("a failure");
        assert_eq!((own.code(), own.message()), (tonic::Code::Unknown, "exit code: 3"));
        let ended = failure_of(Ok(&exit(137)), true).expect("a failure");
        assert_eq!(
            (ended.code(), ended.message()),
            (tonic::Code::Cancelled, "exit code: 137: context canceled")
        );
    }

    #[test]
    fn signals_have_the_numbers_of_linux() {
        let numbers: Vec<_> = ["HUP", "SIGINT", "KILL", "TERM", "CLD", "SYS", "NONE"].map(number).into();
        assert_eq!(numbers, [Some(1), Some(2), Some(9), Some(15), Some(17), Some(31), None]);
    }
}
