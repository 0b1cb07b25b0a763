//! What a person sees while a build runs.
//!
//! Every step gets a number at its first sign of life; all that is known of it goes through one
//! [`Renderer`]. Times are since the step began.

mod json;
mod plain;
mod tty;

use std::collections::{HashMap, HashSet};
use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lapstrake_handoff::{Reason, StepEvent, StepId};
use lapstrake_llb::{Graph, Vertex, VertexDigest, pb};
use lapstrake_solver::ProgressKind;

use crate::error::BuildError;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Format {
    /// `tty` on a terminal, `plain` else.
    #[default]
    Auto,
    /// One line per event, as BuildKit writes it.
    Plain,
    /// A table that is drawn anew.
    Tty,
    /// One JSON object per line.
    Json,
    /// Nothing.
    Quiet,
}

/// Shows events.
pub(crate) trait Renderer: Send {
    /// Shows what happened to a vertex; false where its events should come as those of a step.
    fn vertex(&mut self, _: &Vertex, _: &ProgressKind) -> bool {
        false
    }
    /// Shows one event of a step.
    fn event(&mut self, id: StepId, event: &StepEvent);
    /// Shows a line that belongs to no step.
    fn text(&mut self, text: &str);
    /// The build is over: leave the terminal in order.
    fn finish(&mut self) {}
}

struct Nothing;

impl Renderer for Nothing {
    fn event(&mut self, _: StepId, _: &StepEvent) {}
    fn text(&mut self, _: &str) {}
}

/// The progress of one build. Clones share it.
#[derive(Clone)]
pub(crate) struct Progress(Arc<Mutex<State>>);

struct State {
    renderer: Box<dyn Renderer>,
    next: StepId,
    vertices: HashMap<VertexDigest, Open>,
    counts: Counts,
    seen: HashSet<VertexDigest>,
    /// Which job shows a vertex that several have in common: the first that had something to say.
    owners: HashMap<VertexDigest, u64>,
    /// Jobs that go on, and the number of the next.
    jobs: HashSet<u64>,
    next_job: u64,
}

struct Open {
    id: StepId,
    since: Instant,
    /// Output without its line's end yet, per stream.
    partial: [Partial; 2],
    parts: HashMap<String, Part>,
}

struct Part {
    since: Instant,
    shown: Instant,
}

/// How many steps of the Dockerfile there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// All that the target needed.
    pub(crate) steps: u32,
    /// Those whose result was there already.
    pub(crate) cached: u32,
}

/// Among what is said of a vertex: it is none that anybody asked for, and is not shown.
pub(crate) const HIDDEN: &str = "lapstrake.hidden";
/// A part of a step, such as a layer, is named again at most this often.
const PART_INTERVAL: Duration = Duration::from_secs(2);

impl Progress {
    pub(crate) fn new(format: Format) -> Self {
        let renderer: Box<dyn Renderer> = match format {
            Format::Tty => Box::new(tty::Tty::new()),
            Format::Auto if std::io::stderr().is_terminal() => Box::new(tty::Tty::new()),
            Format::Auto | Format::Plain => Box::new(plain::Plain::new()),
            Format::Json => Box::new(json::Json::new()),
            Format::Quiet => Box::new(Nothing),
        };
        Self::with(renderer)
    }

    /// Progress that is shown in this way.
    pub(crate) fn with(renderer: Box<dyn Renderer>) -> Self {
        let state = State {
            renderer,
            next: 1,
            vertices: HashMap::new(),
            counts: Counts::default(),
            seen: HashSet::new(),
            owners: HashMap::new(),
            jobs: HashSet::new(),
            next_job: 0,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A renderer that panicked has printed what it has printed: go on.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a step that is not a vertex: loading a Dockerfile, pushing.
    pub(crate) fn step(&self, name: &str) -> Step {
        let mut state = self.state();
        let id = state.take_id();
        state.renderer.event(id, &StepEvent::started(name));
        Step { progress: self.clone(), id, since: Instant::now(), ended: false }
    }

    /// Shows a line that belongs to no step.
    pub(crate) fn text(&self, text: &str) {
        self.state().renderer.text(text);
    }

    /// One of the jobs of a build, which may have vertices in common.
    pub(crate) fn job(&self) -> JobProgress {
        let mut state = self.state();
        let job = state.next_job;
        state.next_job += 1;
        state.jobs.insert(job);
        JobProgress { progress: self.clone(), job }
    }

    /// A build succeeded: steps that were never looked at lie below one whose result was there.
    pub(crate) fn all_else_cached(&self, graph: &Graph) {
        let mut state = self.state();
        for vertex in graph.vertices() {
            if is_step(vertex) && !state.seen.contains(&vertex.digest) {
                state.vertex(vertex, &ProgressKind::Cached);
            }
        }
    }

    /// How many steps there were so far.
    pub(crate) fn counts(&self) -> Counts {
        self.state().counts
    }

    /// The build is over.
    pub(crate) fn finish(&self) {
        self.state().renderer.finish();
    }
}

/// The progress of one job of a build.
pub(crate) struct JobProgress {
    progress: Progress,
    job: u64,
}

impl JobProgress {
    /// Takes in what happened to a vertex, unless another job shows it.
    pub(crate) fn vertex(&self, vertex: &Vertex, kind: &ProgressKind) {
        if vertex.metadata.description.contains_key(HIDDEN) {
            return;
        }
        let mut state = self.progress.state();
        let owner = *state.owners.entry(vertex.digest).or_insert(self.job);
        if owner != self.job {
            let again = matches!(kind, ProgressKind::Cached) && state.seen.contains(&vertex.digest);
            if state.jobs.contains(&owner) || again {
                return;
            }
            state.owners.insert(vertex.digest, self.job);
        }
        state.vertex(vertex, kind);
    }
}

impl Drop for JobProgress {
    fn drop(&mut self) {
        self.progress.state().jobs.remove(&self.job);
    }
}

/// Sources are not steps of the Dockerfile.
fn is_step(vertex: &Vertex) -> bool {
    !matches!(vertex.op, pb::op::Op::Source(_))
}

impl State {
    fn take_id(&mut self) -> StepId {
        let id = self.next;
        self.next += 1;
        id
    }

    fn vertex(&mut self, vertex: &Vertex, kind: &ProgressKind) {
        let digest = vertex.digest;
        let begins = matches!(kind, ProgressKind::Started | ProgressKind::Cached);
        if begins && self.seen.insert(digest) && is_step(vertex) {
            self.counts.steps += 1;
            self.counts.cached += u32::from(matches!(kind, ProgressKind::Cached));
        }
        if self.renderer.vertex(vertex, kind) {
            return;
        }
        if begins {
            self.vertices.entry(digest).or_insert_with(|| {
                let id = self.next;
                self.next += 1;
                self.renderer.event(id, &StepEvent::started(&vertex.name()));
                Open { id, since: Instant::now(), partial: Default::default(), parts: HashMap::new() }
            });
        }
        let Some(open) = self.vertices.get_mut(&digest) else { return };
        let took = open.since.elapsed();
        let end = match kind {
            ProgressKind::Started => return,
            ProgressKind::Log(stream, bytes) => {
                let at = usize::from(*stream == 2);
                for line in lines(&mut open.partial[at], bytes) {
                    self.renderer.event(open.id, &StepEvent::log(took, &line));
                }
                return;
            }
            ProgressKind::Status { name, current, total } => {
                if let Some(event) = open.part(name, *current, *total) {
                    self.renderer.event(open.id, &event);
                }
                return;
            }
            ProgressKind::Cached => StepEvent::Cached,
            ProgressKind::Done => StepEvent::Done { took },
            ProgressKind::Failed(message) => StepEvent::failed(message),
            ProgressKind::Canceled => StepEvent::Canceled,
        };
        for rest in std::mem::take(&mut open.partial).iter().filter(|rest| !rest.bytes.is_empty()) {
            self.renderer.event(open.id, &StepEvent::log(took, &String::from_utf8_lossy(&rest.bytes)));
        }
        self.renderer.event(open.id, &end);
        self.vertices.remove(&digest);
    }
}

impl Open {
    fn part(&mut self, name: &str, current: u64, total: u64) -> Option<StepEvent> {
        let now = Instant::now();
        let done = total > 0 && current >= total;
        let new = !self.parts.contains_key(name);
        let part = self.parts.entry(name.to_owned()).or_insert(Part { since: now, shown: now });
        if !new && !done && now.duration_since(part.shown) < PART_INTERVAL {
            return None;
        }
        part.shown = now;
        let text = format!("{name} {} / {}", bytes(current), bytes(total));
        let event = StepEvent::part(&text, now.duration_since(part.since), done);
        if done {
            self.parts.remove(name);
        }
        Some(event)
    }
}

/// Bytes as BuildKit prints them.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["B", "kB", "MB", "GB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count}B") } else { format!("{value:.2}{}", UNITS[unit]) }
}

/// Longest line that is kept while its end has not come.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Output of which the line's end has not come yet.
#[derive(Default)]
struct Partial {
    bytes: Vec<u8>,
    /// The last thing was a carriage return: a line feed behind it is the same end.
    returned: bool,
}

/// The whole lines in what has come so far; carriage returns end a line too, and `\r\n` ends one.
fn lines(partial: &mut Partial, output: &[u8]) -> Vec<String> {
    let mut whole = Vec::new();
    for byte in output {
        let end = matches!(byte, b'\n' | b'\r');
        let same_end = *byte == b'\n' && std::mem::take(&mut partial.returned);
        if end || partial.bytes.len() >= LINE_BYTES_MAX {
            if !partial.bytes.is_empty() || *byte == b'\n' && !same_end {
                whole.push(String::from_utf8_lossy(&partial.bytes).into_owned());
                partial.returned = *byte == b'\r';
            }
            partial.bytes.clear();
        }
        if !end {
            partial.returned = false;
            partial.bytes.push(*byte);
        }
    }
    whole
}

/// An open step that is not a vertex. Dropped without an end, it was canceled.
pub(crate) struct Step {
    progress: Progress,
    id: StepId,
    since: Instant,
    ended: bool,
}

impl Step {
    /// Its number.
    pub(crate) fn id(&self) -> StepId {
        self.id
    }

    /// Shows that a part of it has begun.
    pub(crate) fn begun(&self, text: &str) {
        self.progress.state().renderer.event(self.id, &StepEvent::part(text, Duration::ZERO, false));
    }

    /// Does a part of it, and shows when that begins and is done; one that fails is the step's failure.
    pub(crate) async fn does<T>(
        &self,
        text: &str,
        work: impl Future<Output = Result<T, BuildError>>,
    ) -> Result<T, BuildError> {
        let began = Instant::now();
        self.begun(text);
        let done = work.await?;
        self.part(text, began.elapsed());
        Ok(done)
    }

    /// Shows that a part of it is done.
    pub(crate) fn part(&self, text: &str, took: Duration) {
        self.progress.state().renderer.event(self.id, &StepEvent::part(text, took, true));
    }

    fn end(&mut self, event: &StepEvent) {
        self.ended = true;
        self.progress.state().renderer.event(self.id, event);
    }

    /// It is done.
    pub(crate) fn done(mut self) {
        let took = self.since.elapsed();
        self.end(&StepEvent::Done { took });
    }

    /// It failed.
    pub(crate) fn failed(mut self, message: &str) {
        self.end(&StepEvent::failed(message));
    }

    /// Ends it as the result says.
    pub(crate) fn close<T>(self, result: Result<T, BuildError>) -> Result<T, BuildError> {
        match &result {
            Ok(_) => self.done(),
            Err(error) if error.failure().reason == Reason::Canceled => drop(self),
            Err(error) => self.failed(&error.to_string()),
        }
        result
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.ended {
            self.end(&StepEvent::Canceled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut_at_line_ends_wherever_the_pieces_are_cut() {
        let mut partial = Partial::default();
        assert_eq!(lines(&mut partial, b"one\ntw"), ["one"]);
        assert_eq!(lines(&mut partial, b"o\r\n10%\r20%\r"), ["two", "10%", "20%"]);
        assert!(partial.bytes.is_empty());
        assert_eq!(lines(&mut partial, b"\nx\r"), ["x"]);
        assert_eq!(lines(&mut partial, b"\n\n\r\ny\n\r\r\n"), ["", "", "y", ""]);
    }

    #[test]
    fn bytes_are_printed_for_people() {
        assert_eq!(
            (bytes(999), bytes(1_500), bytes(25_000_000)),
            ("999B".into(), "1.50kB".into(), "25.00MB".into())
        );
    }
}
