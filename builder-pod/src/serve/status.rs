//! What `Control.Status` tells: everything that happened in a build, also to those who ask late.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::Stream;
use lapstrake_api::control::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use lapstrake_api::{Timestamp, timestamp};
use lapstrake_handoff::{StepEvent, StepId};
use lapstrake_llb::Vertex as LlbVertex;
use lapstrake_oci::Digest;
use lapstrake_solver::ProgressKind;
use prost::Message as _;
use tokio::sync::watch;
use tonic::Status;

use crate::progress::Renderer;

/// Output of one step that is kept and shown, as BuildKit has it.
const LOG_BYTES_MAX: usize = 2 << 20;
/// Findings of a build that are kept, in bytes: frontends and clients may have any number of them.
const WARNINGS_BYTES_MAX: usize = 4 << 20;
/// A finding counts as this much at least.
const WARNING_BYTES_MIN: usize = 256;
/// A piece of output counts as this much at least.
const PIECE_BYTES_MIN: usize = 16;
/// One answer of the stream holds about as much at most.
const ANSWER_BYTES: usize = 256 << 10;
/// Of a part that moves on, this often is enough.
const PART_INTERVAL: Duration = Duration::from_millis(100);

/// The history of one build, from its first vertex to its end.
pub(crate) struct StatusLog {
    state: Mutex<State>,
    /// Number of events, and whether there will be more.
    changed: watch::Sender<(usize, bool)>,
}

#[derive(Default)]
struct State {
    events: Vec<Arc<StatusResponse>>,
    open: HashMap<String, Open>,
    warned: usize,
    ended: bool,
}

/// A vertex that is being worked on.
struct Open {
    vertex: Vertex,
    logged: usize,
    parts: HashMap<String, Part>,
}

struct Part {
    started: Timestamp,
    told: SystemTime,
}

impl Default for StatusLog {
    fn default() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new((0, false)) }
    }
}

impl StatusLog {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, state: &mut State, event: StatusResponse) {
        if state.ended {
            return;
        }
        state.events.push(Arc::new(event));
        self.changed.send_replace((state.events.len(), false));
    }

    /// A finding about the build, shown with a vertex. Of too many, the first are kept.
    pub(crate) fn warn(&self, warning: VertexWarning) {
        let mut state = self.state();
        let bytes = warning.encoded_len().max(WARNING_BYTES_MIN);
        if state.warned.saturating_add(bytes) > WARNINGS_BYTES_MAX {
            return;
        }
        state.warned += bytes;
        self.add(&mut state, StatusResponse { warnings: vec![warning], ..Default::default() });
    }

    /// There will be no more; vertices that are open were canceled.
    pub(crate) fn end(&self) {
        let mut state = self.state();
        let open: Vec<String> = state.open.keys().cloned().collect();
        for digest in open {
            self.close(&mut state, &digest, "context canceled");
        }
        state.ended = true;
        self.changed.send_replace((state.events.len(), true));
    }

    /// All that happened so far.
    pub(crate) fn events(&self) -> Vec<Arc<StatusResponse>> {
        self.state().events.clone()
    }

    /// Whether there will be no more.
    pub(crate) fn has_ended(&self) -> bool {
        self.changed.borrow().1
    }

    /// Returns once there will be no more.
    pub(crate) async fn ended(&self) {
        self.changed.subscribe().wait_for(|(_, ended)| *ended).await.ok(); // the sender is ours
    }

    /// All that happened and all that happens, until the end.
    pub(crate) fn follow(
        self: &Arc<Self>,
    ) -> impl Stream<Item = Result<StatusResponse, Status>> + Send + use<> {
        let (log, changed) = (Arc::clone(self), self.changed.subscribe());
        futures::stream::unfold((log, changed, 0), |(log, mut changed, at)| async move {
            loop {
                // Read before the events: what comes between is seen by the next round.
                let ended = changed.borrow_and_update().1;
                let (answer, next) = log.from(at);
                if next > at {
                    return Some((Ok(answer), (log, changed, next)));
                }
                if ended || changed.changed().await.is_err() {
                    return None;
                }
            }
        })
    }

    /// Events from this number on in one answer, and the number of the next one.
    fn from(&self, at: usize) -> (StatusResponse, usize) {
        let state = self.state();
        let (mut answer, mut next, mut bytes) = (StatusResponse::default(), at, 0);
        for event in state.events.get(at..).unwrap_or_default() {
            bytes += event.encoded_len();
            if next > at && bytes > ANSWER_BYTES {
                break;
            }
            answer.vertexes.extend(event.vertexes.iter().cloned());
            answer.statuses.extend(event.statuses.iter().cloned());
            answer.logs.extend(event.logs.iter().cloned());
            answer.warnings.extend(event.warnings.iter().cloned());
            next += 1;
        }
        (answer, next)
    }

    /// Opens a vertex.
    fn open(&self, state: &mut State, vertex: Vertex) {
        let digest = vertex.digest.clone();
        self.add(state, StatusResponse { vertexes: vec![vertex.clone()], ..Default::default() });
        state.open.insert(digest, Open { vertex, logged: 0, parts: HashMap::new() });
    }

    fn close(&self, state: &mut State, digest: &str, error: &str) {
        let Some(mut open) = state.open.remove(digest) else { return };
        open.vertex.completed = Some(now());
        open.vertex.error = error.to_owned();
        self.add(state, StatusResponse { vertexes: vec![open.vertex], ..Default::default() });
    }

    fn log(&self, state: &mut State, digest: &str, stream: u8, bytes: &[u8]) {
        let Some(open) = state.open.get_mut(digest) else { return };
        let left = LOG_BYTES_MAX.saturating_sub(open.logged);
        if left == 0 {
            return;
        }
        let mut msg = bytes.get(..left.min(bytes.len())).unwrap_or_default().to_vec();
        // A piece takes room of its own: a step that prints letter by letter is not to fill the memory.
        open.logged += msg.len().max(PIECE_BYTES_MIN);
        if open.logged >= LOG_BYTES_MAX {
            msg.extend_from_slice(b"\n[output clipped, log limit 2MiB reached]\n");
        }
        let log = VertexLog { vertex: digest.to_owned(), timestamp: Some(now()), stream: stream.into(), msg };
        self.add(state, StatusResponse { logs: vec![log], ..Default::default() });
    }

    fn part(&self, state: &mut State, digest: &str, name: &str, current: u64, total: u64, done: bool) {
        let Some(open) = state.open.get_mut(digest) else { return };
        let time = SystemTime::now();
        let fresh = !open.parts.contains_key(name);
        let part = open
            .parts
            .entry(name.to_owned())
            .or_insert_with(|| Part { started: timestamp(time), told: time });
        let often = time.duration_since(part.told).is_ok_and(|since| since < PART_INTERVAL);
        if !fresh && !done && often {
            return;
        }
        part.told = time;
        let status = VertexStatus {
            id: name.to_owned(),
            vertex: digest.to_owned(),
            name: name.to_owned(),
            current: i64::try_from(current).unwrap_or(i64::MAX),
            total: i64::try_from(total).unwrap_or(i64::MAX),
            timestamp: Some(timestamp(time)),
            started: Some(part.started),
            completed: done.then(|| timestamp(time)),
        };
        self.add(state, StatusResponse { statuses: vec![status], ..Default::default() });
    }
}

fn now() -> Timestamp {
    timestamp(SystemTime::now())
}

/// The digest under which a step is shown that is no vertex: what the vertex of that name would have, roughly.
pub(crate) fn digest_of_step(build: &str, id: StepId) -> String {
    Digest::of(format!("{build} step {id}").as_bytes()).to_string()
}

/// Writes the progress of a build into its log.
pub(crate) struct Wire {
    pub(crate) build: String,
    pub(crate) log: Arc<StatusLog>,
}

impl Renderer for Wire {
    fn vertex(&mut self, vertex: &LlbVertex, kind: &ProgressKind) -> bool {
        let digest = vertex.digest.to_string();
        let mut state = self.log.state();
        match kind {
            ProgressKind::Started => self.log.open(&mut state, wire_vertex(vertex)),
            ProgressKind::Cached => {
                let time = Some(now());
                let vertex = Vertex { cached: true, completed: time, ..wire_vertex(vertex) };
                self.log.add(&mut state, StatusResponse { vertexes: vec![vertex], ..Default::default() });
            }
            ProgressKind::Log(stream, bytes) => self.log.log(&mut state, &digest, *stream, bytes),
            ProgressKind::Status { name, current, total } => {
                let done = *total > 0 && current >= total;
                self.log.part(&mut state, &digest, name, *current, *total, done);
            }
            ProgressKind::Done => self.log.close(&mut state, &digest, ""),
            ProgressKind::Failed(message) => self.log.close(&mut state, &digest, message),
            ProgressKind::Canceled => self.log.close(&mut state, &digest, "context canceled"),
        }
        true
    }

    fn event(&mut self, id: StepId, event: &StepEvent) {
        let digest = digest_of_step(&self.build, id);
        let mut state = self.log.state();
        match event {
            StepEvent::Started { name } => {
                let vertex =
                    Vertex { digest, name: name.clone(), started: Some(now()), ..Default::default() };
                self.log.open(&mut state, vertex);
            }
            StepEvent::Log { text, .. } => {
                self.log.log(&mut state, &digest, 1, format!("{text}\n").as_bytes())
            }
            StepEvent::Part { text, done, .. } => self.log.part(&mut state, &digest, text, 0, 0, *done),
            StepEvent::Done { .. } => self.log.close(&mut state, &digest, ""),
            StepEvent::Cached => {
                if let Some(open) = state.open.get_mut(&digest) {
                    open.vertex.cached = true;
                }
                self.log.close(&mut state, &digest, "");
            }
            StepEvent::Failed { message } => self.log.close(&mut state, &digest, message),
            StepEvent::Canceled => self.log.close(&mut state, &digest, "context canceled"),
        }
    }

    fn text(&mut self, text: &str) {
        tracing::info!("{text}");
    }
}

fn wire_vertex(vertex: &LlbVertex) -> Vertex {
    Vertex {
        digest: vertex.digest.to_string(),
        inputs: vertex.inputs.iter().map(|input| input.vertex.to_string()).collect(),
        name: vertex.name(),
        started: Some(now()),
        progress_group: vertex.metadata.progress_group.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    fn wire() -> (Wire, Arc<StatusLog>) {
        let log = Arc::new(StatusLog::default());
        (Wire { build: "b".to_owned(), log: Arc::clone(&log) }, log)
    }

    #[tokio::test]
    async fn who_asks_late_gets_the_whole_past_and_the_end() {
        let (mut wire, log) = wire();
        wire.event(1, &StepEvent::started("[internal] first"));
        wire.event(1, &StepEvent::Done { took: Duration::ZERO });
        wire.event(2, &StepEvent::started("[internal] never ends"));
        log.end();
        let all: Vec<_> = log.follow().collect().await;
        let vertexes: Vec<_> = all.into_iter().flat_map(|one| one.expect("no error").vertexes).collect();
        assert_eq!(vertexes.len(), 4);
        assert!(vertexes[1].completed.is_some() && vertexes[1].error.is_empty());
        assert_eq!(vertexes[3].error, "context canceled");
    }

    #[tokio::test]
    async fn an_endless_stream_of_findings_costs_bounded_memory() {
        let (_, log) = wire();
        for number in 0..100_000u32 {
            let short = format!("finding {number}").into_bytes();
            log.warn(VertexWarning { short, ..VertexWarning::default() });
        }
        log.warn(VertexWarning { short: vec![b'x'; 16 << 20], ..VertexWarning::default() });
        log.end();
        let kept: usize = log.events().iter().map(|event| event.warnings.len()).sum();
        assert_eq!(kept, WARNINGS_BYTES_MAX / WARNING_BYTES_MIN);
    }

    #[tokio::test]
    async fn output_beyond_the_limit_is_cut_and_says_so() {
        let (mut wire, log) = wire();
        wire.event(1, &StepEvent::started("[1/1] RUN yes"));
        // A line has an end of its own long before.
        let line = "y".repeat(1000);
        for _ in 0..3000 {
            wire.event(1, &StepEvent::log(Duration::ZERO, &line));
        }
        log.end();
        let all: Vec<_> = log.follow().collect().await;
        let logs: Vec<_> = all.into_iter().flat_map(|one| one.expect("no error").logs).collect();
        let bytes: usize = logs.iter().map(|log| log.msg.len()).sum();
        assert!(bytes < LOG_BYTES_MAX + 100, "{bytes}");
        assert!(String::from_utf8_lossy(&logs.last().expect("logs").msg).contains("log limit"));
    }
}
