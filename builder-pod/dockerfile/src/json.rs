//! The JSON (exec) form of arguments.

use std::ops::Range;

/// What a text is, looked at as a JSON array of strings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// An array of strings, each with its range in the text.
    Exec(Vec<(String, Range<usize>)>),
    /// A JSON array that holds something else than strings.
    NotStrings,
    /// Not a JSON array; the word or shell form applies.
    Shell,
}

/// Looks at `text`.
pub(crate) fn form(text: &str) -> Form {
    let content = text.trim_start();
    if !content.starts_with('[') {
        return Form::Shell;
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(content) else { return Form::Shell };
    let strings: Option<Vec<String>> = values
        .into_iter()
        .map(|value| match value {
            serde_json::Value::String(text) => Some(text),
            _ => None,
        })
        .collect();
    match strings {
        Some(strings) => Form::Exec(strings.into_iter().zip(literals(text)).collect()),
        None => Form::NotStrings,
    }
}

/// True where an author meant the exec form and missed: `['a', 'b']`, a trailing comma, a missing quote.
pub(crate) fn looks_like_exec(text: &str) -> bool {
    let inner = text.trim().strip_prefix('[').and_then(|t| t.strip_suffix(']')).map(str::trim_start);
    inner.is_some_and(|t| t.starts_with(['"', '\'']))
}

/// The ranges of string literals, quotes included, in an array that is known to be valid.
fn literals(text: &str) -> Vec<Range<usize>> {
    let (mut out, mut start, mut escaped) = (Vec::new(), None, false);
    for (index, byte) in text.bytes().enumerate() {
        match (start, byte) {
            (None, b'"') => start = Some(index),
            (Some(_), _) if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(from), b'"') => {
                out.push(from..index + 1);
                start = None;
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_of_strings_are_exec_form_and_the_rest_is_not() {
        assert_eq!(
            form(r#" ["a\"b", "c"] "#),
            Form::Exec(vec![("a\"b".to_owned(), 2..8), ("c".to_owned(), 10..13)])
        );
        assert_eq!(form("[]"), Form::Exec(vec![]));
        assert_eq!(form("[1]"), Form::NotStrings);
        for text in ["['a']", "[ -f x ] && y", "a", r#"["a",]"#, r#"["a"] b"#] {
            assert_eq!(form(text), Form::Shell, "{text}");
        }
        assert!(looks_like_exec("['a']") && !looks_like_exec("[ -f x ]"));
    }
}
