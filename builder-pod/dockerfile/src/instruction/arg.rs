//! `ARG name[=default] …`.

use crate::ast::{Arg, Word};
use crate::diagnostic::Diagnostic;
use crate::instruction::flags::Flags;
use crate::instruction::{Input, Parsed, fail};

pub(super) fn parse(input: &Input<'_>) -> Parsed<Vec<Arg>> {
    Flags::none(input)?;
    let words = input.quoted_arguments();
    if words.is_empty() {
        return fail(input.missing("requires at least one argument"));
    }
    words.iter().map(one).collect()
}

fn one(word: &Word) -> Parsed<Arg> {
    let Some(at) = word.text.find('=') else { return Ok(Arg { name: word.clone(), default: None }) };
    if at == 0 {
        return fail(Diagnostic::error("blank-name", word.span, "ARG names can not be blank"));
    }
    Ok(Arg { name: word.part(0..at), default: Some(word.part(at + 1..word.text.len())) })
}
