//! `ENV` and `LABEL`: `key=value …`, or the old `key rest of line`.

use crate::ast::{Pair, Word};
use crate::diagnostic::Diagnostic;
use crate::instruction::flags::Flags;
use crate::instruction::{Input, Parsed, fail};

pub(super) fn parse(input: &Input<'_>) -> Parsed<Vec<Pair>> {
    Flags::none(input)?;
    let words = input.quoted_arguments();
    let Some(first) = words.first() else {
        return fail(input.missing("requires at least one argument"));
    };
    if !first.text.contains('=') {
        return legacy(input).map(|pair| vec![pair]);
    }
    words.iter().map(|word| pair(input, word)).collect()
}

fn legacy(input: &Input<'_>) -> Parsed<Pair> {
    let whole = input.argument();
    let blank = ['\t', '\u{b}', '\u{c}', '\r', ' '];
    let Some(at) = whole.text.find(blank) else {
        let message = format!("{} must have two arguments", input.name());
        return fail(Diagnostic::error("missing-value", whole.span, message).help(format!(
            "write {} {}=value",
            input.name(),
            whole.text
        )));
    };
    let value = whole.text[at..].trim_start_matches(blank);
    let start = whole.text.len() - value.len();
    Ok(Pair { key: whole.part(0..at), value: whole.part(start..whole.text.len()), legacy: true })
}

fn pair(input: &Input<'_>, word: &Word) -> Parsed<Pair> {
    let Some(at) = word.text.find('=') else {
        let message = format!("can't find = in {:?}, it must be of the form name=value", word.text);
        return fail(
            Diagnostic::error("missing-equals", word.span, message)
                .help("a value with spaces must be in quotes"),
        );
    };
    if at == 0 {
        let message = format!("{} names can not be blank", input.name());
        return fail(Diagnostic::error("blank-name", word.span, message));
    }
    Ok(Pair { key: word.part(0..at), value: word.part(at + 1..word.text.len()), legacy: false })
}
