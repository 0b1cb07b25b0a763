//! The one grammar of progress: BuildKit's plain progress lines.
//!
//! ```text
//! #5 [build 2/4] RUN make         a step starts (or is named again)
//! #5 0.123 cc -c main.c           its output, with seconds since it started
//! #5 pulling layers 12 / 40 0.4s  a part of the step, at work
//! #5 pulling layers 0.9s done     … and finished
//! #5 DONE 1.2s                    it ended
//! #5 CACHED                       it did not have to run
//! #5 ERROR: exit code: 2          it failed
//! #5 CANCELED                     it was stopped
//! ```
//! Each line stands for itself: no state is needed to read one. A name that
//! does not begin with `[` and would read as something else gets `[step] ` put
//! in front when it is made ([`StepEvent::started`]).

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::time::Duration;

use crate::limits::{PROGRESS_TEXT_BYTES_MAX, TRACKED_STEPS_MAX};

/// Number of a step within one run; 1 is the first that was started.
pub type StepId = u32;

/// One line of progress.
#[derive(Clone, Debug, PartialEq)]
pub enum ProgressLine {
    /// Something about one step.
    Step {
        /// Which.
        id: StepId,
        /// What.
        event: StepEvent,
    },
    /// Anything else; people read it, programs do not.
    Text(String),
}

/// What happened to a step.
#[derive(Clone, Debug, PartialEq)]
pub enum StepEvent {
    /// It starts, or is named again. Make it with [`StepEvent::started`].
    Started {
        /// `[build 2/4] RUN make`.
        name: String,
    },
    /// One line of its output, without the line's end.
    Log {
        /// Since the step started; milliseconds are kept.
        at: Duration,
        /// The text.
        text: String,
    },
    /// A part of it, such as a layer being pulled.
    Part {
        /// What is done, with counts if it has any.
        text: String,
        /// Since that part started; tenths of a second are kept.
        took: Duration,
        /// Whether that part has finished.
        done: bool,
    },
    /// It ended; tenths of a second are kept.
    Done {
        /// How long it ran.
        took: Duration,
    },
    /// Its result was in the cache.
    Cached,
    /// It failed.
    Failed {
        /// One line.
        message: String,
    },
    /// It was stopped.
    Canceled,
}

impl StepEvent {
    /// The event that opens a step. Line ends and control characters in `name` become spaces.
    pub fn started(name: &str) -> Self {
        let mut name = one_line(name).trim().to_owned();
        if name.is_empty() || (!name.starts_with('[') && !matches!(parse_event(&name), Self::Started { .. }))
        {
            name.insert_str(0, "[step] ");
            name.truncate(name.trim_end().len());
        }
        Self::Started { name }
    }

    /// One line of output. Text past the first line end must go into further events.
    pub fn log(at: Duration, text: &str) -> Self {
        Self::Log { at, text: line_text(text) }
    }

    /// The failure of a step; several lines become one.
    pub fn failed(message: &str) -> Self {
        Self::Failed { message: one_line(message).trim().to_owned() }
    }

    /// A part of a step, at work or finished. Several lines become one.
    pub fn part(text: &str, took: Duration, done: bool) -> Self {
        let mut text = one_line(text).trim().to_owned();
        // A part must not read as a name, an end or a line of output.
        let probe = Self::Part { text: text.clone(), took, done };
        if text.is_empty() || !matches!(parse_event(&probe.to_string()), Self::Part { .. }) {
            text.insert_str(0, "part ");
            text.truncate(text.trim_end().len());
        }
        Self::Part { text, took, done }
    }

    /// Whether nothing more comes for this step.
    pub fn ends(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Cached | Self::Failed { .. } | Self::Canceled)
    }
}

impl fmt::Display for StepEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { name } => f.write_str(name),
            Self::Log { at, text } => {
                write!(f, "{}.{:03} {text}", at.as_secs(), at.subsec_millis())
            }
            Self::Part { text, took, done } => {
                write!(f, "{text} {}", Tenths(*took))?;
                if *done { f.write_str(" done") } else { Ok(()) }
            }
            Self::Done { took } => write!(f, "DONE {}", Tenths(*took)),
            Self::Cached => f.write_str("CACHED"),
            Self::Failed { message } => write!(f, "ERROR: {message}"),
            Self::Canceled => f.write_str("CANCELED"),
        }
    }
}

impl fmt::Display for ProgressLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step { id, event } => write!(f, "#{id} {event}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// Seconds with one digit, rounded, as BuildKit prints them.
struct Tenths(Duration);

impl fmt::Display for Tenths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenths = (self.0.as_millis() + 50) / 100;
        write!(f, "{}.{}s", tenths / 10, tenths % 10)
    }
}

impl ProgressLine {
    /// Reads one line. Never fails: what is not of the grammar is [`ProgressLine::Text`].
    pub fn parse(line: &str) -> Self {
        let line = line.strip_suffix('\n').unwrap_or(line);
        let line = line.strip_suffix('\r').unwrap_or(line);
        let step = line.strip_prefix('#').and_then(|rest| {
            let (id, rest) = rest.split_once(' ')?;
            if !id.bytes().all(|b| b.is_ascii_digit()) || id.starts_with('0') {
                return None;
            }
            Some((id.parse().ok()?, rest))
        });
        match step {
            Some((id, rest)) => Self::Step { id, event: parse_event(rest) },
            None => Self::Text(line.to_owned()),
        }
    }
}

/// Reads what follows `#N `.
fn parse_event(rest: &str) -> StepEvent {
    let started = || StepEvent::Started { name: rest.to_owned() };
    if rest.starts_with('[') {
        return started();
    }
    match rest {
        "CACHED" => return StepEvent::Cached,
        "CANCELED" => return StepEvent::Canceled,
        _ => {}
    }
    if let Some(message) = rest.strip_prefix("ERROR:") {
        let message = message.strip_prefix(' ').unwrap_or(message).to_owned();
        return StepEvent::Failed { message };
    }
    if let Some(took) = rest.strip_prefix("DONE ").and_then(parse_tenths) {
        return StepEvent::Done { took };
    }
    if let Some((seconds, text)) = rest.split_once(' ')
        && let Some(at) = parse_seconds(seconds)
    {
        return StepEvent::Log { at, text: text.to_owned() };
    }
    let (body, done) = match rest.strip_suffix(" done") {
        Some(body) => (body, true),
        None => (rest, false),
    };
    if let Some((text, took)) = body.rsplit_once(' ')
        && let Some(took) = parse_tenths(took)
        && !text.is_empty()
    {
        return StepEvent::Part { text: text.to_owned(), took, done };
    }
    started()
}

/// `1.234` with at least one digit on each side.
fn parse_seconds(text: &str) -> Option<Duration> {
    let (whole, part) = text.split_once('.')?;
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 9 {
        return None;
    }
    let nanos = part.parse::<u32>().ok()? * 10_u32.pow(9 - u32::try_from(part.len()).ok()?);
    Some(Duration::new(whole.parse().ok()?, nanos))
}

fn parse_tenths(text: &str) -> Option<Duration> {
    parse_seconds(text.strip_suffix('s')?)
}

/// Text with every line end and control character turned into a space.
fn one_line(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    cut(&text).to_owned()
}

/// Output as it goes on one line: colours and tabs stay, line ends do not.
fn line_text(text: &str) -> String {
    let line = text.split('\n').next().unwrap_or_default();
    // A trailing carriage return is a line end; one in the middle redraws the line.
    let line = line.trim_end_matches('\r');
    let line = line.rsplit('\r').next().unwrap_or_default();
    cut(line).to_owned()
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(PROGRESS_TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Writes progress for people and programs, one write per line.
///
/// An empty line sets a step's beginning off from what another step printed, as
/// BuildKit does. Every line carries its number, so parallel steps interleave.
pub struct Writer<W> {
    out: W,
    last: Option<StepId>,
}

impl<W: Write> Writer<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> Self {
        Self { out, last: None }
    }

    /// Writes one event.
    pub fn event(&mut self, id: StepId, event: &StepEvent) -> std::io::Result<()> {
        let opens = matches!(event, StepEvent::Started { .. });
        let gap = if opens && self.last.is_some_and(|last| last != id) { "\n" } else { "" };
        self.last = Some(id);
        // One write, so that lines of several threads or processes do not mix.
        self.out.write_all(format!("{gap}#{id} {event}\n").as_bytes())
    }

    /// Writes output of a step, line by line; long lines are cut into several.
    pub fn output(&mut self, id: StepId, at: Duration, text: &str) -> std::io::Result<()> {
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            let mut rest = line;
            loop {
                let part = cut(rest);
                self.event(id, &StepEvent::log(at, part))?;
                rest = &rest[part.len()..];
                if rest.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes text that belongs to no step.
    pub fn text(&mut self, text: &str) -> std::io::Result<()> {
        self.out.write_all(format!("{text}\n").as_bytes())
    }

    /// Gives back what it writes to.
    pub fn into_inner(self) -> W {
        self.out
    }
}

/// Where a run stands, from the lines seen so far.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    open: BTreeMap<StepId, String>,
    seen: std::collections::BTreeSet<StepId>,
    /// Steps that were started.
    pub steps: u32,
    /// Steps that came from the cache.
    pub cached: u32,
    /// Steps that ended in any way.
    pub ended: u32,
}

impl Tracker {
    /// Takes one line in.
    pub fn see(&mut self, line: &ProgressLine) {
        let ProgressLine::Step { id, event } = line else {
            return;
        };
        match event {
            StepEvent::Started { name } => {
                if self.seen.len() >= TRACKED_STEPS_MAX && !self.seen.contains(id) {
                    self.steps = self.steps.saturating_add(1);
                    return;
                }
                if self.seen.insert(*id) {
                    self.steps = self.steps.saturating_add(1);
                    self.open.insert(*id, name.clone());
                }
            }
            _ if event.ends() && self.open.remove(id).is_some() => {
                self.ended = self.ended.saturating_add(1);
                if *event == StepEvent::Cached {
                    self.cached = self.cached.saturating_add(1);
                }
            }
            _ => {}
        }
    }

    /// The step that was started last and still runs.
    pub fn current(&self) -> Option<&str> {
        self.open.values().next_back().map(String::as_str)
    }
}

#[cfg(test)]
#[path = "progress_tests.rs"]
mod tests;
