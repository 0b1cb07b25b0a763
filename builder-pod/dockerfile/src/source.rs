use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A range of bytes in a [`Source`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Span {
    /// The bytes from `start` up to `end`.
    pub fn new(start: usize, end: usize) -> Self {
        Self { start, end: end.max(start) }
    }

    /// From the start of `self` to the end of `other`.
    pub fn to(self, other: Self) -> Self {
        Self::new(self.start, other.end)
    }
}

/// A place as people count: from 1, columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

/// A named text with an index of its lines; cheap to clone.
#[derive(Debug, Clone)]
pub struct Source(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    text: String,
    line_starts: Vec<usize>,
}

impl Source {
    /// A source of this name; a byte order mark at its start is dropped.
    pub fn new(name: &str, text: &str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let starts = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(i, _)| i + 1);
        let line_starts = std::iter::once(0).chain(starts).collect();
        Self(Arc::new(Inner { name: name.to_owned(), text: text.to_owned(), line_starts }))
    }

    /// The name as given.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// The text of a span; empty where the span lies outside or splits a character.
    pub fn slice(&self, span: Span) -> &str {
        self.0.text.get(span.start..span.end).unwrap_or("")
    }

    /// The line that holds the byte at `offset`, from 1.
    pub fn line_of(&self, offset: usize) -> u32 {
        let after = self.0.line_starts.partition_point(|start| *start <= offset);
        u32::try_from(after.max(1)).unwrap_or(u32::MAX)
    }

    /// Line and column of the byte at `offset`.
    pub fn position(&self, offset: usize) -> Position {
        let line = self.line_of(offset);
        let start = self.line_span(line).start;
        let before = self.0.text.get(start..offset).unwrap_or("");
        Position { line, column: u32::try_from(before.chars().count() + 1).unwrap_or(u32::MAX) }
    }

    /// The bytes of a line, counted from 1, without its line end.
    pub fn line_span(&self, line: u32) -> Span {
        let index = (line.max(1) - 1) as usize;
        let (start, end) = match (self.0.line_starts.get(index), self.0.line_starts.get(index + 1)) {
            (Some(start), Some(next)) => (*start, next - 1),
            (Some(start), None) => (*start, self.0.text.len()),
            (None, _) => (self.0.text.len(), self.0.text.len()),
        };
        let text = self.0.text.get(start..end).unwrap_or("");
        Span::new(start, start + text.trim_end_matches('\r').len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_lines_count_from_one() {
        let source = Source::new("D", "FROM a\r\nRUN ä x\n");
        let at = source.text().find('x').expect("is there");
        assert_eq!(source.position(at), Position { line: 2, column: 7 });
        assert_eq!(source.slice(source.line_span(1)), "FROM a");
        assert_eq!(source.position(usize::MAX).line, 3);
    }
}
