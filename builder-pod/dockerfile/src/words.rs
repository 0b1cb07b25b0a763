//! An instruction's text to keyword, flags and words. All ranges are of the logical line's text.

use std::ops::Range;

use crate::expand::Lexer;

/// The whitespace that separates arguments.
const BLANK: [char; 5] = ['\t', '\u{b}', '\u{c}', '\r', ' '];

/// A flag as written: `--name[=value]` with quotes off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RawFlag {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
    /// The whole flag.
    pub(crate) range: Range<usize>,
    /// Its value, quotes included.
    pub(crate) value_range: Range<usize>,
}

/// The ranges of the keyword and of what follows it.
pub(crate) fn keyword(text: &str) -> (Range<usize>, Range<usize>) {
    let start = text.len() - text.trim_start().len();
    let end = start + text.trim().len();
    let body = text.get(start..end).unwrap_or("");
    match body.find(BLANK) {
        None => (start..end, end..end),
        Some(at) => {
            let rest = body[at..].trim_start_matches(BLANK);
            (start..start + at, end - rest.len()..end)
        }
    }
}

/// Takes flags off the front of `range`; what remains starts and ends without whitespace.
pub(crate) fn flags(text: &str, range: Range<usize>, escape: char) -> (Vec<RawFlag>, Range<usize>) {
    let mut out = Vec::new();
    let mut at = range.start;
    loop {
        let rest = text.get(at..range.end).unwrap_or("");
        at += rest.len() - rest.trim_start().len();
        let rest = rest.trim_start();
        if !rest.starts_with("--") {
            break;
        }
        let (word, length, value_at) = flag_word(rest, escape);
        let whole = at..at + length;
        at += length;
        if word == "--" {
            break;
        }
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        let value_range = value_at.map_or(whole.clone(), |v| whole.start + v..whole.end);
        out.push(RawFlag { name, value, range: whole, value_range });
    }
    let rest = text.get(at..range.end).unwrap_or("");
    let start = at + rest.len() - rest.trim_start().len();
    (out, start..start + rest.trim().len())
}

/// One flag with quotes and escapes off, its length as written, and where its value starts.
fn flag_word(text: &str, escape: char) -> (String, usize, Option<usize>) {
    let (mut out, mut quote, mut value_at) = (String::new(), None, None);
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            None if c.is_whitespace() => return (out, at, value_at),
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ if c == escape => {
                if let Some((_, next)) = chars.next() {
                    out.push(next);
                }
            }
            _ => {
                if c == '=' && value_at.is_none() {
                    value_at = Some(at + 1);
                }
                out.push(c);
            }
        }
    }
    (out, text.len(), value_at)
}

/// Words separated by whitespace, without any quoting.
pub(crate) fn blank_separated(text: &str, range: Range<usize>) -> Vec<Range<usize>> {
    let body = text.get(range.clone()).unwrap_or("");
    let mut out = Vec::new();
    let mut start = None;
    for (at, c) in body.char_indices() {
        match (start, BLANK.contains(&c)) {
            (None, false) => start = Some(at),
            (Some(from), true) => {
                out.push(range.start + from..range.start + at);
                start = None;
            }
            _ => {}
        }
    }
    if let Some(from) = start {
        out.push(range.start + from..range.end);
    }
    out
}

/// Words separated by whitespace outside quotes; quotes stay in the words. An escape character at the
/// very end is no part of a word.
pub(crate) fn quoted(text: &str, range: Range<usize>, escape: char) -> Vec<Range<usize>> {
    let body = text.get(range.clone()).unwrap_or("");
    let mut out = Vec::new();
    let (mut start, mut quote, mut end) = (None, None, body.len());
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            if let Some(from) = start.take() {
                out.push(range.start + from..range.start + at);
            }
            continue;
        }
        start.get_or_insert(at);
        if quote == Some(c) {
            quote = None;
        } else if quote.is_none() && (c == '"' || c == '\'') {
            quote = Some(c);
        } else if c == escape && quote != Some('\'') && chars.next().is_none() {
            end = at;
        }
    }
    match start {
        Some(from) if from < end => out.push(range.start + from..range.start + end),
        _ => {}
    }
    out
}

/// A `<<word`, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HeredocWord {
    pub(crate) name: String,
    pub(crate) expand: bool,
    pub(crate) chomp: bool,
}

/// Reads `[fd]<<[-]word`; `None` where `word` is not one.
pub(crate) fn heredoc(word: &str) -> Option<HeredocWord> {
    let rest = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (chomp, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
    let rest = rest.trim_start();
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let plain = Lexer { keep_unset: true, ..Lexer::new('\\') };
    let words = plain.words(rest, &()).ok()?;
    let raw = Lexer { raw_quotes: true, ..plain }.words(rest, &()).ok()?;
    let ([name], [raw]) = (words.as_slice(), raw.as_slice()) else { return None };
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Some(HeredocWord { name: name.clone(), expand: quotes(name) == quotes(raw), chomp })
}

/// The heredocs that an instruction's line announces, in order.
pub(crate) fn heredocs(line: &str) -> Vec<HeredocWord> {
    if !line.contains("<<") {
        return Vec::new();
    }
    let lexer = Lexer { keep_unset: true, raw_quotes: true, raw_escapes: true, ..Lexer::new('\\') };
    lexer.words(line, &()).unwrap_or_default().iter().filter_map(|word| heredoc(word)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_end_at_the_first_other_word_and_at_two_dashes() {
        let text = "COPY --from=\"a b\" --link -- --x y";
        let (_, rest) = keyword(text);
        let (flags, rest) = flags(text, rest, '\\');
        assert_eq!(flags[0].value.as_deref(), Some("a b"));
        assert_eq!((flags[1].name.as_str(), &flags[1].value), ("--link", &None));
        assert_eq!(&text[rest], "--x y");
    }

    #[test]
    fn quoted_words_keep_their_quotes() {
        let text = r#"a="b c" d='e f'  g\ h "#;
        let words: Vec<_> = quoted(text, 0..text.len(), '\\').into_iter().map(|r| &text[r]).collect();
        assert_eq!(words, [r#"a="b c""#, "d='e f'", r"g\ h"]);
    }

    #[test]
    fn heredoc_words_know_quotes_and_chomping() {
        let found = heredocs("RUN cat <<EOF 3<<-'X Y' > \"<<no\" && a << b");
        let brief: Vec<_> = found.iter().map(|h| (h.name.as_str(), h.expand, h.chomp)).collect();
        assert_eq!(brief, [("EOF", true, false), ("X Y", false, true), ("b", true, false)]);
        assert_eq!(heredoc("<<<EOF"), None);
        assert_eq!(heredoc("<<"), None);
    }
}
