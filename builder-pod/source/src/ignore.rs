//! `.dockerignore` files.

use lapstrake_fileop::{PatternError, Patterns};

/// A malformed pattern in an ignore file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {error}")]
pub struct IgnoreError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with its pattern.
    pub error: PatternError,
}

/// Reads an ignore file: one pattern a line, `#` comments, blanks trimmed, a leading slash and a byte order mark
/// ignored, `!` for exceptions, the last match wins.
///
/// # Errors
/// The first malformed pattern, with its line.
pub fn parse_ignore(content: &[u8]) -> Result<Patterns, IgnoreError> {
    let (lines, patterns) = lines_and_patterns(content);
    Patterns::new(&patterns)
        .map_err(|error| IgnoreError { line: lines.get(error.index).copied().unwrap_or(0), error })
}

/// The patterns of an ignore file as BuildKit passes them on, exceptions with their `!`.
pub fn ignore_patterns(content: &[u8]) -> Vec<String> {
    lines_and_patterns(content).1
}

fn lines_and_patterns(content: &[u8]) -> (Vec<usize>, Vec<String>) {
    let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
    let text = String::from_utf8_lossy(content);
    let mut lines = Vec::new();
    let mut patterns = Vec::new();
    for (at, line) in text.lines().enumerate() {
        // Only at the very start of a line: a blank before it makes it a name.
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        let line = line.trim();
        let (exception, path) = match line.strip_prefix('!') {
            Some(path) => ("!", path.trim()),
            None => ("", line),
        };
        let cleaned =
            if path.is_empty() { String::new() } else { lapstrake_fileop::path::clean_lexically(path) };
        let path = match cleaned.strip_prefix('/') {
            Some(relative) if !relative.is_empty() => relative,
            _ => &cleaned,
        };
        lines.push(at + 1);
        patterns.push(format!("{exception}{path}"));
    }
    (lines, patterns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignored(file: &str, path: &str) -> bool {
        parse_ignore(file.as_bytes()).unwrap_or_else(|e| panic!("{e}")).matches(path)
    }

    #[test]
    fn lines_are_read_as_docker_reads_them() {
        for (file, path, want) in [
            ("\u{feff}a\nb", "a", true),
            ("# a\nb", "# a", false),
            (" # a", "# a", true),
            ("  a  \r\nb", "a", true),
            ("/a", "a", true),
            ("/a/b/", "a/b/c", true),
            ("./a/../b", "b", true),
            ("a\n! a", "a", false),
            ("a\n!/a/b", "a/b", false),
            ("a\n!/a/b", "a/c", true),
            ("*\n!src\n!Dockerfile", "src/main.rs", false),
            ("*\n!src\n!Dockerfile", "target/debug", true),
            ("**/node_modules", "web/node_modules/x/y", true),
            ("\n\n", "a", false),
            ("", "a", false),
            ("/", "a", false),
            (".", "a", false),
        ] {
            assert_eq!(ignored(file, path), want, "{file:?} on {path}");
        }
    }

    #[test]
    fn a_malformed_pattern_is_named_with_its_line() {
        let error = parse_ignore(b"# first\n\nok\n[a\n").err().map(|error| error.to_string());
        assert_eq!(error.as_deref(), Some("line 4: pattern \"[a\" is malformed"));
        let error = parse_ignore(b"a\n!\n").err().map(|error| error.line);
        assert_eq!(error, Some(2));
    }

    proptest::proptest! {
        #[test]
        fn no_file_panics(content in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            if let Ok(patterns) = parse_ignore(&content) {
                patterns.matches("a/b");
            }
        }
    }
}
