//! Text, short and JSON forms of findings.

use std::fmt::Write as _;

use crate::diagnostic::{Diagnostic, Label, Severity};
use crate::source::{Source, Span};

/// How rendered text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Style {
    /// Without escape sequences, for logs and files.
    #[default]
    Plain,
    /// With ANSI colours, for terminals.
    Color,
}

/// Longer source lines are cut around the underlined part, characters.
const LINE_CHARS_MAX: usize = 160;
const TAB: &str = "    ";

impl Style {
    fn paint(self, code: &str, text: &str) -> String {
        match self {
            Self::Plain => text.to_owned(),
            Self::Color => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
        }
    }

    fn frame(self, text: &str) -> String {
        self.paint("1;34", text)
    }
}

/// `file:line:column: message (help)`.
pub(crate) fn short(source: &Source, diagnostic: &Diagnostic) -> String {
    let mut out = format!("{}: {}", place(source, diagnostic.span), diagnostic.message);
    if let Some(help) = &diagnostic.help {
        let _ = write!(out, " ({help})");
    }
    out
}

/// `file:line:column`, or the file alone for what is about no place in it.
fn place(source: &Source, span: Span) -> String {
    if span == Span::default() {
        return source.name().to_owned();
    }
    let at = source.position(span.start);
    format!("{}:{}:{}", source.name(), at.line, at.column)
}

/// Every finding with its lines, one empty line between two.
pub(crate) fn text(source: &Source, items: &[Diagnostic], style: Style) -> String {
    items.iter().map(|item| one(source, item, style)).collect::<Vec<_>>().join("\n")
}

fn one(source: &Source, item: &Diagnostic, style: Style) -> String {
    let color = if item.severity == Severity::Error { "1;31" } else { "1;33" };
    let mut out = String::new();
    let head = style.paint(color, &format!("{}[{}]", item.severity, item.code));
    let _ = writeln!(out, "{head}{}", style.paint("1", &format!(": {}", item.message)));
    let mut places = vec![(Label { span: item.span, text: item.label.clone() }, true)];
    places.extend(item.also.iter().map(|l| (l.clone(), false)));
    places.retain(|(label, _)| label.span != Span::default());
    let last = places.iter().map(|(l, _)| source.line_of(l.span.start)).max().unwrap_or(1);
    let width = last.to_string().len();
    let gutter = |text: &str| style.frame(&format!("{text:>width$} |"));
    let arrow = style.frame("-->");
    let _ = writeln!(out, "{:width$}{arrow} {}", "", place(source, item.span));
    if !places.is_empty() {
        let _ = writeln!(out, "{}", gutter(""));
    }
    places.sort_by_key(|(l, _)| (source.line_of(l.span.start), l.span.start));
    let mut shown: Option<u32> = None;
    for (label, primary) in &places {
        let line = source.line_of(label.span.start);
        let view = View::of(source, line, label.span);
        // A cut line is shown again for each of its places, since each needs another part of it.
        if shown != Some(line) || view.cut {
            if shown.is_some_and(|before| line > before + 1) {
                let _ = writeln!(out, "{}", style.frame("..."));
            }
            let _ = writeln!(out, "{} {}", gutter(&line.to_string()), view.text);
            shown = Some(line);
        }
        let marks = (if *primary { "^" } else { "-" }).repeat(view.length.max(1));
        let marks = format!("{marks} {}", label.text);
        let marks = style.paint(if *primary { color } else { "1;34" }, marks.trim_end());
        let _ = writeln!(out, "{} {:skip$}{marks}", gutter(""), "", skip = view.skip);
    }
    let notes = [("note", &item.note), ("help", &item.help)];
    if notes.iter().any(|(_, text)| text.is_some()) {
        let _ = writeln!(out, "{}", gutter(""));
    }
    for (kind, text) in notes {
        if let Some(text) = text {
            let equals = style.frame(&format!("{:>width$} =", ""));
            let _ = writeln!(out, "{equals} {}: {text}", style.paint("1", kind));
        }
    }
    out
}

/// A source line as shown, and where its underlined part is.
struct View {
    text: String,
    skip: usize,
    length: usize,
    cut: bool,
}

impl View {
    fn of(source: &Source, line: u32, span: Span) -> Self {
        let bounds = source.line_span(line);
        let start = span.start.clamp(bounds.start, bounds.end);
        let end = span.end.clamp(start, bounds.end);
        let part = |from, to| source.slice(Span::new(from, to));
        let (before, marked, after) = (part(bounds.start, start), part(start, end), part(end, bounds.end));
        let total = before.chars().count() + marked.chars().count() + after.chars().count();
        let cut = total > LINE_CHARS_MAX;
        let keep = if cut { LINE_CHARS_MAX / 4 } else { usize::MAX };
        let tail = |text: &str| {
            let skip = text.chars().count().saturating_sub(keep);
            let shown: String = text.chars().skip(skip).collect();
            if skip > 0 { format!("...{shown}") } else { shown }
        };
        let head = |text: &str, keep: usize| {
            let shown: String = text.chars().take(keep).collect();
            if shown.len() < text.len() { format!("{shown}...") } else { shown }
        };
        let wide = keep.saturating_mul(2);
        let (before, marked, after) =
            (printable(&tail(before)), printable(&head(marked, wide)), printable(&head(after, keep)));
        let (skip, length) = (before.chars().count(), marked.chars().count());
        Self { text: format!("{before}{marked}{after}").trim_end().to_owned(), skip, length, cut }
    }
}

/// Tabs as spaces; other control characters as a visible stand-in, so that no file can steer a terminal.
fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => out.push_str(TAB),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// `[{severity, code, message, file, line, column, length, …}]`.
pub(crate) fn json(source: &Source, items: &[Diagnostic]) -> serde_json::Value {
    let place = |span: Span, text: &str| {
        let at = source.position(span.start);
        serde_json::json!({
            "line": at.line, "column": at.column, "length": source.slice(span).chars().count(), "label": text,
        })
    };
    let one = |item: &Diagnostic| {
        let at = source.position(item.span.start);
        serde_json::json!({
            "severity": item.severity, "code": item.code, "message": item.message, "file": source.name(),
            "line": at.line, "column": at.column, "length": source.slice(item.span).chars().count(),
            "label": item.label, "note": item.note, "help": item.help,
            "also": item.also.iter().map(|l| place(l.span, &l.text)).collect::<Vec<_>>(),
        })
    };
    serde_json::Value::Array(items.iter().map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_shows_its_line_underlined_with_the_way_out() {
        let source = Source::new("Dockerfile", "FROM a\n\tRUUN make\n");
        let item = Diagnostic::error("unknown-instruction", Span::new(8, 12), "unknown instruction: RUUN")
            .also(Span::new(5, 6), "after this")
            .help("did you mean RUN?");
        let expected = "\
error[unknown-instruction]: unknown instruction: RUUN
 --> Dockerfile:2:2
  |
1 | FROM a
  |      - after this
2 |     RUUN make
  |     ^^^^
  |
  = help: did you mean RUN?
";
        assert_eq!(text(&source, std::slice::from_ref(&item), Style::Plain), expected);
        assert_eq!(short(&source, &item), "Dockerfile:2:2: unknown instruction: RUUN (did you mean RUN?)");
    }

    #[test]
    fn a_long_line_is_cut_around_the_place() {
        let source = Source::new("D", &format!("RUN {} HERE {}", "a".repeat(5000), "b".repeat(5000)));
        let at = source.text().find("HERE").expect("is there");
        let out = text(&source, &[Diagnostic::error("x", Span::new(at, at + 4), "m")], Style::Plain);
        assert!(out.len() < 500 && out.contains("HERE"), "{out}");
    }

    #[test]
    fn control_characters_of_the_file_do_not_reach_the_terminal() {
        let source = Source::new("D", "RUN \u{1b}[2J\n");
        let out = text(&source, &[Diagnostic::error("x", Span::new(0, 3), "m")], Style::Plain);
        assert!(!out.contains('\u{1b}'));
    }
}
