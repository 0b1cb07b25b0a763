//! Physical lines to logical ones: comments, directives, continuations.

use std::ops::Range;

use crate::ast::{Directive, Word};
use crate::diagnostic::{Diagnostic, Edit};
use crate::limits::LINE_BYTES_MAX;
use crate::source::{Source, Span};

/// The rule about empty lines.
const EMPTY_CONTINUATION: &str = "NoEmptyContinuation";

fn lint_help(name: &str) -> Option<String> {
    crate::lint::rule(name)?.help.map(str::to_owned)
}

/// An instruction's line with its continuations joined, and the way back to the file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Logical {
    /// The joined text.
    pub(crate) text: String,
    /// Where each piece of the text starts: offset in the text, offset in the file.
    pub(crate) pieces: Vec<(usize, usize)>,
    /// First and last line in the file, from 1.
    pub(crate) lines: (u32, u32),
    /// Comments above it.
    pub(crate) comments: Vec<Word>,
}

impl Logical {
    fn push(&mut self, text: &str, offset: usize) {
        self.pieces.push((self.text.len(), offset));
        self.text.push_str(text);
    }

    /// Where a part of the joined text lies in the file; a part may reach over several lines.
    pub(crate) fn span(&self, range: Range<usize>) -> Span {
        let at = |offset: usize| {
            let index = self.pieces.partition_point(|(text, _)| *text <= offset).max(1) - 1;
            self.pieces.get(index).map_or(0, |(text, file)| file + offset.saturating_sub(*text))
        };
        match range.end > range.start {
            true => Span::new(at(range.start), at(range.end - 1) + 1),
            false => Span::new(at(range.start), at(range.start)),
        }
    }

    /// A part of the joined text with its place.
    pub(crate) fn word(&self, range: Range<usize>) -> Word {
        Word { text: self.text.get(range.clone()).unwrap_or("").to_owned(), span: self.span(range) }
    }

    /// The line without surrounding whitespace, with its place.
    pub(crate) fn trimmed(&self) -> Word {
        let start = self.text.len() - self.text.trim_start().len();
        self.word(start..start + self.text.trim().len())
    }
}

/// A physical line: its text without the line end, and where it starts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'a> {
    /// With its line end.
    pub(crate) full: &'a str,
    /// Offset in the file.
    pub(crate) offset: usize,
    /// Number, from 1.
    pub(crate) number: u32,
}

impl<'a> Line<'a> {
    pub(crate) fn text(&self) -> &'a str {
        self.full.trim_end_matches(['\r', '\n'])
    }
}

/// Reads a source line by line.
pub(crate) struct Reader<'a> {
    text: &'a str,
    offset: usize,
    number: u32,
    directives_open: bool,
    pub(crate) directives: Vec<Directive>,
    pub(crate) escape: char,
    pub(crate) findings: Vec<Diagnostic>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(source: &'a Source) -> Self {
        let (text, findings) = (source.text(), Vec::new());
        let directives = Vec::new();
        Self { text, offset: 0, number: 0, directives_open: true, directives, escape: '\\', findings }
    }

    /// The next physical line.
    pub(crate) fn line(&mut self) -> Option<Line<'a>> {
        let rest = self.text.get(self.offset..).filter(|r| !r.is_empty())?;
        let full = rest.find('\n').map_or(rest, |end| &rest[..=end]);
        let line = Line { full, offset: self.offset, number: self.number + 1 };
        self.offset += full.len();
        self.number += 1;
        if full.len() > LINE_BYTES_MAX {
            let span = Span::new(line.offset, line.offset + line.text().len());
            let message =
                format!("line is {} bytes long, more than the {LINE_BYTES_MAX} that are allowed", full.len());
            self.findings.push(Diagnostic::error("line-too-long", span, message));
        }
        Some(line)
    }

    /// The next instruction's line; comments, directives and empty lines are consumed on the way.
    pub(crate) fn logical(&mut self) -> Option<Logical> {
        let mut comments = Vec::new();
        while let Some(line) = self.line() {
            let text = line.text();
            let content = text.trim_start();
            let indent = text.len() - content.len();
            if let Some(comment) = content.strip_prefix('#') {
                let at = line.offset + indent;
                if !self.directive(comment, Span::new(at, at + content.len())) {
                    note_comment(&mut comments, comment, at + 1);
                }
                continue;
            }
            self.directives_open = false;
            if content.is_empty() {
                continue;
            }
            return Some(self.join(content, line.offset + indent, line.number, comments));
        }
        None
    }

    fn join(&mut self, first: &str, offset: usize, number: u32, comments: Vec<Word>) -> Logical {
        let mut logical = Logical { lines: (number, number), comments, ..Logical::default() };
        let (mut part, mut more) = continued(first, self.escape);
        logical.push(part, offset);
        let mut empty: Vec<Span> = Vec::new();
        while more {
            let Some(line) = self.line() else { break };
            logical.lines.1 = line.number;
            let text = line.text();
            if text.trim_start().starts_with('#') {
                continue;
            }
            if text.trim().is_empty() {
                empty.push(Span::new(line.offset, line.offset + line.full.len()));
                continue;
            }
            (part, more) = continued(text, self.escape);
            logical.push(part, line.offset);
        }
        if let Some(first) = empty.first() {
            let span = Span::new(first.start, first.start);
            let last = logical.lines.1;
            let mut finding = Diagnostic::warning(EMPTY_CONTINUATION, span, "Empty continuation line");
            (finding.lines, finding.help) = (Some((last, last)), lint_help(EMPTY_CONTINUATION));
            finding.fix = empty.into_iter().map(|span| Edit { span, text: String::new() }).collect();
            self.findings.push(finding);
        }
        logical
    }

    /// Takes `# key=value` at the top of the file; false where it is a plain comment.
    fn directive(&mut self, comment: &str, span: Span) -> bool {
        if !self.directives_open {
            return false;
        }
        let parsed = comment.split_once('=').map(|(key, value)| (key.trim(), value.trim()));
        let known =
            |key: &str| ["syntax", "escape", "check"].into_iter().find(|k| k.eq_ignore_ascii_case(key));
        let Some((name, value)) = parsed.and_then(|(key, value)| Some((known(key)?, value))) else {
            self.directives_open = false;
            return false;
        };
        if value.is_empty() {
            self.directives_open = false;
            return false;
        }
        if let Some(before) = self.directives.iter().find(|d| d.name == name) {
            self.findings.push(
                Diagnostic::error(
                    "duplicate-directive",
                    span,
                    format!("only one {name} parser directive can be used"),
                )
                .also(before.span, "first given here"),
            );
            return true;
        }
        if name == "escape" {
            match value {
                "\\" | "`" => self.escape = if value == "`" { '`' } else { '\\' },
                _ => self.findings.push(
                    Diagnostic::error("invalid-escape", span, format!("invalid escape character {value:?}"))
                        .help("it must be \\ or `"),
                ),
            }
        }
        self.directives.push(Directive { name: name.to_owned(), value: value.to_owned(), span });
        true
    }
}

fn note_comment(comments: &mut Vec<Word>, comment: &str, offset: usize) {
    let text = comment.trim();
    if text.is_empty() {
        comments.clear();
        return;
    }
    let start = offset + (comment.len() - comment.trim_start().len());
    comments.push(Word { text: text.to_owned(), span: Span::new(start, start + text.len()) });
}

/// A line without its continuation mark, and whether it had one. A doubled escape character at the end
/// is no mark.
fn continued(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => (rest, true),
        _ => (line, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<(String, (u32, u32))> {
        let source = Source::new("D", text);
        let mut reader = Reader::new(&source);
        std::iter::from_fn(|| reader.logical()).map(|l| (l.text, l.lines)).collect()
    }

    #[test]
    fn continuations_join_and_comments_inside_them_vanish() {
        let text = "RUN a && \\\n  # why\n  b \\ \n\n  c\nCMD x\n";
        assert_eq!(all(text), [("RUN a &&   b   c".to_owned(), (1, 5)), ("CMD x".to_owned(), (6, 6))]);
    }

    #[test]
    fn a_doubled_escape_is_no_continuation_and_crlf_is_no_text() {
        assert_eq!(all("RUN a \\\\\r\nRUN b\\\r\nc\r\n").len(), 2);
        assert_eq!(all("# escape=`\nRUN a `\n b\\\n")[0].0, "RUN a  b\\");
    }

    #[test]
    fn places_lead_back_to_the_file() {
        let source = Source::new("D", "RUN a \\\n   bc\n");
        let line = Reader::new(&source).logical().expect("a line");
        let at = line.text.find("bc").expect("is there");
        assert_eq!(source.slice(line.span(at..at + 2)), "bc");
    }
}
