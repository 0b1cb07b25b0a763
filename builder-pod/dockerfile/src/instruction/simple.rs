//! Instructions that are a word or a list of words.

use crate::ast::Word;
use crate::diagnostic::Diagnostic;
use crate::instruction::flags::Flags;
use crate::instruction::{Input, Parsed, fail};

/// `MAINTAINER`, `STOPSIGNAL`, `USER` and `WORKDIR`: the rest of the line is one argument.
pub(super) fn single(input: &Input<'_>) -> Parsed<Word> {
    Flags::none(input)?;
    input.one_argument()
}

pub(super) fn expose(input: &Input<'_>) -> Parsed<Vec<Word>> {
    Flags::none(input)?;
    let mut words = input.arguments();
    if words.is_empty() {
        return fail(input.missing("requires at least one argument"));
    }
    words.sort_by(|a, b| a.text.cmp(&b.text));
    Ok(words)
}

pub(super) fn volume(input: &mut Input<'_>) -> Parsed<Vec<Word>> {
    Flags::none(input)?;
    let words = match input.exec_form()? {
        Some(words) => words,
        None => input.arguments(),
    };
    if words.is_empty() {
        return fail(input.missing("requires at least one argument"));
    }
    let trimmed = |word: Word| Word { text: word.text.trim().to_owned(), ..word };
    let words: Vec<_> = words.into_iter().map(trimmed).collect();
    match words.iter().find(|word| word.text.is_empty()) {
        Some(empty) => {
            let message = "VOLUME specified can not be an empty string";
            fail(Diagnostic::error("empty-volume", empty.span, message))
        }
        None => Ok(words),
    }
}
