use std::fmt;

use serde::Serialize;

use crate::limits::{ERRORS_MAX, MESSAGE_BYTES_MAX, WARNINGS_MAX};
use crate::render::{self, Style};
use crate::sarif;
use crate::source::{Position, Source, Span};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The build can't go on.
    Error,
    /// The build goes on.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// A further place that belongs to a finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Label {
    /// The place.
    pub span: Span,
    /// What is there.
    pub text: String,
}

/// One finding, as data; [`Diagnostics::render`] makes text of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// A stable name of the kind of finding, as `unknown-instruction`.
    pub code: &'static str,
    /// One line that says what is wrong.
    pub message: String,
    /// Where.
    pub span: Span,
    /// What to write under the place; may be empty.
    pub label: String,
    /// Other places that belong to it.
    pub also: Vec<Label>,
    /// Why it is so.
    pub note: Option<String>,
    /// How to get out of it.
    pub help: Option<String>,
    /// First and last line of the instruction that it is about, where a rule found it.
    pub lines: Option<(u32, u32)>,
    /// Changes of the file that mend it and leave the meaning as it is; none where that is not for sure.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fix: Vec<Edit>,
}

/// A change of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Edit {
    /// What goes.
    pub span: Span,
    /// What comes in its place.
    pub text: String,
}

impl Diagnostic {
    /// An error at `span`.
    pub(crate) fn error(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        let message = cut(message.into());
        let (label, also, note, help, lines) = (String::new(), Vec::new(), None, None, None);
        Self {
            severity: Severity::Error,
            code,
            message,
            span,
            label,
            also,
            note,
            help,
            lines,
            fix: Vec::new(),
        }
    }

    /// A warning at `span`.
    pub(crate) fn warning(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, span, message) }
    }

    /// Something that the language has and this version does not.
    pub(crate) fn not_yet(span: Span, what: impl fmt::Display) -> Self {
        Self::error("not-supported-yet", span, format!("{what} is not supported yet"))
    }

    /// Adds a further place.
    pub(crate) fn also(mut self, span: Span, text: impl Into<String>) -> Self {
        self.also.push(Label { span, text: text.into() });
        self
    }

    /// Adds the cause.
    pub(crate) fn note(mut self, text: impl Into<String>) -> Self {
        self.note = Some(text.into());
        self
    }

    /// Adds the way out.
    pub(crate) fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// Adds "did you mean" where there is a near word.
    pub(crate) fn suggest(self, word: Option<impl fmt::Display>) -> Self {
        match word {
            Some(word) => self.help(format!("did you mean {word}?")),
            None => self,
        }
    }
}

/// A message that quotes the file can be as long as the file.
fn cut(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message.push('…');
    }
    message
}

/// Findings about one source. As an error, its text is the short form of each finding on a line.
#[derive(Debug, Clone)]
pub struct Diagnostics {
    source: Source,
    items: Vec<Diagnostic>,
}

impl Diagnostics {
    /// No findings about `source`.
    pub(crate) fn new(source: Source) -> Self {
        Self { source, items: Vec::new() }
    }

    /// Findings about `source`.
    pub(crate) fn of(source: Source, items: Vec<Diagnostic>) -> Self {
        Self { source, items }
    }

    /// What they are about.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The findings, in the order of the file.
    pub fn iter(&self) -> std::slice::Iter<'_, Diagnostic> {
        self.items.iter()
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The first error, which is what a status shows.
    pub fn first_error(&self) -> Option<&Diagnostic> {
        self.items.iter().find(|d| d.severity == Severity::Error)
    }

    /// True where at least one is an error.
    pub fn has_errors(&self) -> bool {
        self.first_error().is_some()
    }

    /// Where a finding starts.
    pub fn position(&self, diagnostic: &Diagnostic) -> Position {
        self.source.position(diagnostic.span.start)
    }

    /// A finding on one line: `Dockerfile:3:5: message (help)`.
    pub fn short(&self, diagnostic: &Diagnostic) -> String {
        render::short(&self.source, diagnostic)
    }

    /// All findings with their source lines, as a compiler shows them.
    pub fn render(&self, style: Style) -> String {
        render::text(&self.source, &self.items, style)
    }

    /// All findings as JSON values with file, line, column and length in characters.
    pub fn to_json(&self) -> serde_json::Value {
        render::json(&self.source, &self.items)
    }

    /// All findings as a SARIF 2.1.0 log, for code hosts and editors.
    pub fn to_sarif(&self) -> serde_json::Value {
        sarif::log(&self.source, &self.items)
    }

    pub(crate) fn extend(&mut self, items: impl IntoIterator<Item = Diagnostic>) {
        self.items.extend(items);
    }

    /// Without what rules say of a place that has an error anyway.
    pub(crate) fn without_echoes(mut self) -> Self {
        let errors = self.items.iter().filter(|finding| finding.severity == Severity::Error);
        let places: std::collections::BTreeSet<Span> = errors.map(|finding| finding.span).collect();
        self.items.retain(|finding| {
            finding.severity == Severity::Error
                || crate::lint::rule(finding.code).is_none()
                || !places.contains(&finding.span)
        });
        self
    }

    /// Puts findings in the order of the file, and keeps at most so many errors and warnings.
    pub(crate) fn finish(mut self) -> Self {
        self.items.sort_by_key(|d| (d.span.start, d.severity));
        let (mut errors, mut warnings) = (0, 0);
        self.items.retain(|finding| {
            let (count, max) = match finding.severity {
                Severity::Error => (&mut errors, ERRORS_MAX),
                Severity::Warning => (&mut warnings, WARNINGS_MAX),
            };
            *count += 1;
            *count <= max
        });
        self
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, item) in self.items.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&self.short(item))?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

impl<'a> IntoIterator for &'a Diagnostics {
    type Item = &'a Diagnostic;
    type IntoIter = std::slice::Iter<'a, Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
