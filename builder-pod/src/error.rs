//! How a build fails: one value for the terminal, the log and the ImageBuild's status.

use std::fmt;
use std::sync::Arc;

use lapstrake_dockerfile::{Diagnostics, Severity, Style};
use lapstrake_handoff::{Failure, Reason};
use lapstrake_llb::pb;

use crate::engine::FailedOp;
use crate::excerpt::Excerpt;

/// How much of findings, as a compiler shows them, goes along with a failure.
const EXCERPT_BYTES_MAX: usize = 2048;

/// A failed build. Cheap to clone: every job that needed a vertex gets its error.
#[derive(Debug, Clone)]
pub(crate) struct BuildError(Arc<Inner>);

#[derive(Debug, Clone)]
struct Inner {
    failure: Failure,
    shown: Shown,
    advice: Option<Advice>,
    /// The operation that failed, and what is left of it.
    failed: Option<Arc<FailedOp>>,
    /// Where its client says that the operation comes from.
    places: Arc<[SourcePlace]>,
    /// The program that could not be run to its end.
    process: Option<String>,
    /// Why the client denies a source, in its words.
    denials: Arc<[String]>,
}

/// Lines of a file from which an operation was made.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SourcePlace {
    /// The file.
    pub(crate) info: pb::SourceInfo,
    /// Its lines.
    pub(crate) ranges: Vec<pb::Range>,
}

/// A way out of a failure.
#[derive(Debug, Clone)]
pub(crate) struct Advice {
    /// In a sentence.
    pub(crate) text: String,
    /// The word of the step that it is about, as the Dockerfile has it.
    pub(crate) word: Option<String>,
}

/// What a terminal shows in place of the message.
#[derive(Debug, Clone)]
enum Shown {
    /// Nothing more.
    Message,
    /// Findings, with the source lines that they are about.
    Findings(Arc<Diagnostics>),
    /// The lines of the step that failed.
    Step(Arc<Excerpt>),
}

impl BuildError {
    /// A failure with a reason and one sentence.
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Failure::new(reason, message).into()
    }

    /// A mistake of ours or of the machine, not of the user's.
    pub(crate) fn internal(message: impl fmt::Display) -> Self {
        Self::new(Reason::Internal, message.to_string())
    }

    /// A file of this machine could not be read or written: where the disk is full it says so.
    pub(crate) fn of_file(error: &std::io::Error) -> Self {
        let reason = if is_no_space(error) { Reason::DiskFull } else { Reason::Internal };
        Self::new(reason, chain(error))
    }

    /// The vertex was stopped.
    pub(crate) fn canceled() -> Self {
        Self::new(Reason::Canceled, "the build was canceled")
    }

    /// Findings about a Dockerfile.
    pub(crate) fn dockerfile(findings: Diagnostics, reason: Reason) -> Self {
        let mut failure = Failure::new(reason, "the Dockerfile is not valid");
        if let Some(first) = findings.first_error() {
            let place = findings.position(first);
            failure.message = findings.short(first);
            failure.file = Some(findings.source().name().to_owned());
            failure.line = Some(place.line);
            failure.column = Some(place.column);
            let errors: Vec<_> =
                findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
            if errors.len() > 1 {
                let more = errors.len() - 1;
                failure
                    .message
                    .push_str(&format!(" (and {more} more {})", if more == 1 { "error" } else { "errors" }));
            }
            // With their lines, for who has no log at hand.
            failure.excerpt = cut(&findings.render(Style::Plain));
            if first.code == "not-supported-yet" {
                failure.reason = Reason::NotSupported;
            }
        }
        let bare = Self::from(failure);
        bare.changed(|inner| inner.shown = Shown::Findings(Arc::new(findings)))
    }

    /// The same failure with more said about it.
    pub(crate) fn with(&self, change: impl FnOnce(&mut Failure)) -> Self {
        self.changed(|inner| {
            change(&mut inner.failure);
            inner.shown = Shown::Message;
        })
    }

    fn changed(&self, change: impl FnOnce(&mut Inner)) -> Self {
        let mut inner = Inner::clone(&self.0);
        change(&mut inner);
        Self(Arc::new(inner))
    }

    /// The same failure with a way out, which goes with the message wherever that goes.
    pub(crate) fn advised(&self, advice: Advice) -> Self {
        self.changed(|inner| {
            inner.failure.message = format!("{} ({})", inner.failure.message, advice.text);
            inner.advice = Some(advice);
        })
    }

    /// The way out, where one is known.
    pub(crate) fn advice(&self) -> Option<&Advice> {
        self.0.advice.as_ref()
    }

    /// The same failure, shown in the same way, with facts added that only machines read.
    pub(crate) fn noted(&self, change: impl FnOnce(&mut Failure)) -> Self {
        self.changed(|inner| change(&mut inner.failure))
    }

    /// The same failure with the operation that it is of.
    pub(crate) fn of_op(&self, failed: Arc<FailedOp>) -> Self {
        self.changed(|inner| inner.failed = Some(failed))
    }

    /// The same failure, of a program that could not be run to its end.
    pub(crate) fn of_process(&self, command: String) -> Self {
        self.changed(|inner| inner.process = Some(command))
    }

    /// The same failure, of a source that the client denies for these reasons.
    pub(crate) fn denied(&self, messages: Vec<String>) -> Self {
        self.changed(|inner| inner.denials = messages.into())
    }

    /// Why the client denies a source, in its words.
    pub(crate) fn denials(&self) -> &[String] {
        &self.0.denials
    }

    /// The program that could not be run to its end.
    pub(crate) fn process(&self) -> Option<&str> {
        self.0.process.as_deref()
    }

    /// The same failure with the places that its operation comes from, by the words of a definition that has it.
    pub(crate) fn placed(&self, definition: &pb::Definition) -> Self {
        let digest = self.0.failed.as_ref().map(|failed| failed.digest.to_string());
        let locations = definition.source.as_ref().zip(digest).and_then(|(source, digest)| {
            let all = &source.locations.get(&digest)?.locations;
            let info = |at: &pb::Location| source.infos.get(usize::try_from(at.source_index).ok()?).cloned();
            let place = |at: &pb::Location| Some(SourcePlace { info: info(at)?, ranges: at.ranges.clone() });
            Some(all.iter().filter_map(place).collect::<Vec<_>>())
        });
        match locations.filter(|locations| !locations.is_empty() && self.0.places.is_empty()) {
            Some(locations) => self.changed(|inner| inner.places = locations.into()),
            None => self.clone(),
        }
    }

    /// The places that its operation comes from, in the order in which its client told them.
    pub(crate) fn places(&self) -> &[SourcePlace] {
        &self.0.places
    }

    /// The operation that failed, where it is one's failure.
    pub(crate) fn failed_op(&self) -> Option<&Arc<FailedOp>> {
        self.0.failed.as_ref()
    }

    /// The same failure, shown with the lines of its step.
    pub(crate) fn shown_with(&self, excerpt: Excerpt) -> Self {
        self.changed(|inner| inner.shown = Shown::Step(Arc::new(excerpt)))
    }

    /// What goes to the operator.
    pub(crate) fn failure(&self) -> &Failure {
        &self.0.failure
    }

    /// The text of the file that the failure is about, and where it is known the last of the lines.
    pub(crate) fn source_text(&self) -> Option<(&str, Option<u32>)> {
        match &self.0.shown {
            Shown::Message => None,
            Shown::Findings(findings) => Some((findings.source().text(), None)),
            Shown::Step(excerpt) => {
                let (text, last) = excerpt.whole();
                Some((text, Some(last)))
            }
        }
    }

    /// What a person at a terminal reads.
    pub(crate) fn render(&self, style: Style) -> String {
        let failure = &self.0.failure;
        match &self.0.shown {
            Shown::Findings(findings) => findings.render(style),
            Shown::Step(excerpt) => excerpt.render(failure, self.advice(), style),
            Shown::Message => {
                let advice = self.advice();
                let mut text = format!("error: {}", Advice::without(advice, &failure.message));
                if let (Some(file), Some(line)) = (&failure.file, failure.line) {
                    text.push_str(&format!("\n  --> {file}:{line}"));
                }
                if let Some(advice) = advice {
                    text.push_str(&format!("\n  = help: {}", advice.text));
                }
                text
            }
        }
    }
}

impl Advice {
    /// A message without the advice that stands behind it.
    pub(crate) fn without<'a>(advice: Option<&Self>, message: &'a str) -> &'a str {
        let bare = advice.and_then(|advice| message.strip_suffix(&format!(" ({})", advice.text)));
        bare.unwrap_or(message)
    }
}

/// As much of a text as goes along with a failure, whole lines of it.
fn cut(text: &str) -> String {
    if text.len() <= EXCERPT_BYTES_MAX {
        return text.trim_end().to_owned();
    }
    let mut out = String::new();
    for line in text.lines() {
        if out.len() + line.len() + 1 > EXCERPT_BYTES_MAX {
            break;
        }
        out.push_str(line);
        out.push('\n');
    }
    out + "…"
}

impl From<Failure> for BuildError {
    fn from(failure: Failure) -> Self {
        let (advice, failed, process) = (None, None, None);
        let (places, denials) = (Arc::default(), Arc::default());
        Self(Arc::new(Inner { failure, shown: Shown::Message, advice, failed, places, process, denials }))
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.failure.message)
    }
}

impl std::error::Error for BuildError {}

/// An error with all its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

impl From<lapstrake_store::Error> for BuildError {
    fn from(error: lapstrake_store::Error) -> Self {
        let reason = match &error {
            lapstrake_store::Error::Busy { .. } => Reason::StateBusy,
            _ if error.is_no_space() => Reason::DiskFull,
            _ => Reason::Internal,
        };
        Self::new(reason, chain(&error))
    }
}

impl From<lapstrake_fileop::Error> for BuildError {
    fn from(error: lapstrake_fileop::Error) -> Self {
        use lapstrake_fileop::Class;
        let reason = match error.class() {
            Class::Canceled => return Self::canceled(),
            Class::Unavailable if is_no_space(&error) => Reason::DiskFull,
            Class::Unavailable => Reason::Internal,
            Class::User | Class::NotFound => Reason::StepFailed,
        };
        Self::new(reason, chain(&error))
    }
}

impl From<lapstrake_source::Error> for BuildError {
    fn from(error: lapstrake_source::Error) -> Self {
        use lapstrake_source::Class;
        let reason = match error.class() {
            _ if matches!(error, lapstrake_source::Error::Checksum { .. }) => Reason::ChecksumMismatch,
            Class::NotFound | Class::User => Reason::SourceNotFound,
            Class::Denied => Reason::SourceDenied,
            Class::Unavailable if is_no_space(&error) => Reason::DiskFull,
            Class::Unavailable => Reason::SourceUnavailable,
        };
        Self::new(reason, chain(&error))
    }
}

/// Whether a full disk is at the bottom of an error.
pub(crate) fn is_no_space(error: &(dyn std::error::Error + 'static)) -> bool {
    const ENOSPC: i32 = 28;
    const EDQUOT: i32 = 122;
    let mut next = Some(error);
    while let Some(error) = next {
        let code = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        let fileop = error.downcast_ref::<lapstrake_fileop::Error>();
        if code.is_some_and(|c| c == ENOSPC || c == EDQUOT)
            || fileop.is_some_and(lapstrake_fileop::Error::is_no_space)
        {
            return true;
        }
        // A kernel call's error that is no io::Error says so in its text.
        if error.source().is_none() && error.to_string().contains("os error 28") {
            return true;
        }
        next = error.source();
    }
    false
}

/// What was asked of a registry when it failed: the same answer means another reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Pull,
    Push,
}

impl BuildError {
    /// A registry's refusal or silence.
    pub(crate) fn registry(error: &lapstrake_registry::Error, asked: Asked) -> Self {
        use lapstrake_registry::Class;
        let reason = match (error.class(), asked) {
            (Class::Canceled, _) => return Self::canceled(),
            (Class::NotFound, Asked::Pull) => Reason::ImageNotFound,
            (Class::Denied, Asked::Pull) => Reason::PullDenied,
            (Class::Denied | Class::NotFound, Asked::Push) => Reason::PushDenied,
            (Class::Unavailable, _) => Reason::RegistryUnavailable,
            (Class::Local, _) if is_no_space(error) => Reason::DiskFull,
            (Class::Corrupt, _) => Reason::RegistryUnavailable,
            // A protocol or configuration that does not fit: the same again fails the same way.
            (Class::Invalid, _) => {
                return Self::new(Reason::RegistryUnavailable, error.full())
                    .with(|failure| failure.retryable = false);
            }
            (Class::Local, _) => Reason::Internal,
        };
        Self::new(reason, error.full())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_mistakes_are_counted_and_go_along_with_their_lines() {
        let parsed = lapstrake_dockerfile::parse("Dockerfile", "FROM scratch\nRNU make\nCOPI a b\n");
        let options = lapstrake_dockerfile::Options::default();
        let findings = lapstrake_dockerfile::plan(&parsed, &options).map(drop).expect_err("two mistakes");
        let error = BuildError::dockerfile(findings, Reason::DockerfileInvalid);
        let failure = error.failure();
        assert!(failure.message.starts_with("Dockerfile:2:1: "), "{}", failure.message);
        assert!(failure.message.ends_with(" (and 1 more error)"), "{}", failure.message);
        assert!(
            failure.excerpt.contains("RNU make") && failure.excerpt.contains("COPI a b"),
            "{}",
            failure.excerpt
        );
        assert_eq!((failure.line, failure.column), (Some(2), Some(1)));
    }

    #[test]
    fn what_does_not_fit_is_cut_between_lines() {
        let text = "a line of some length\n".repeat(200);
        let cut = cut(&text);
        assert!(cut.len() <= EXCERPT_BYTES_MAX + 3 && cut.ends_with("length\n…"), "{}", cut.len());
    }
}
