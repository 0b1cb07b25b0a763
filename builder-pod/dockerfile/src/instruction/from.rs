//! `FROM [--platform=…] image [AS name]`.

use crate::ast::{From, Word};
use crate::diagnostic::Diagnostic;
use crate::instruction::flags::{Flags, Takes};
use crate::instruction::{Input, Parsed, fail};

pub(super) fn parse(input: &Input<'_>) -> Parsed<From> {
    let words = input.arguments();
    let (image, name) = match words.as_slice() {
        [image] => (image.clone(), None),
        [image, as_, name] if as_.text.eq_ignore_ascii_case("as") => (image.clone(), Some(stage_name(name)?)),
        _ => return fail(shape(input, &words)),
    };
    let flags = Flags::read(input, &[("platform", Takes::Value)])?;
    Ok(From { image, platform: flags.value("platform"), name })
}

fn shape(input: &Input<'_>, words: &[Word]) -> Diagnostic {
    let span = words.first().zip(words.last()).map_or(input.keyword.span, |(a, b)| a.span.to(b.span));
    let finding = Diagnostic::error("invalid-from", span, "FROM requires either one or three arguments");
    match words {
        [_, as_] if as_.text.eq_ignore_ascii_case("as") => finding.help("a stage name must follow AS"),
        [_, name] => finding.help(format!("to name the stage, write AS {}", name.text)),
        words if words.iter().skip(1).any(|w| w.text.starts_with('#')) => {
            finding.help("a comment must stand on a line of its own")
        }
        [] => finding.help("write FROM image [AS name]"),
        [_, as_, ..] if !as_.text.eq_ignore_ascii_case("as") => {
            finding.help(format!("the second word must be AS, not {}", as_.text))
        }
        _ => finding.help("write FROM image [AS name]"),
    }
}

fn stage_name(word: &Word) -> Parsed<Word> {
    let text = word.text.to_lowercase();
    let first = text.chars().next().is_some_and(|c| c.is_ascii_lowercase());
    let rest = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    if first && text.chars().all(rest) {
        return Ok(Word { text, span: word.span });
    }
    let message = format!(
        "invalid name for build stage: {:?}, name can't start with a number or contain symbols",
        word.text
    );
    fail(
        Diagnostic::error("invalid-stage-name", word.span, message)
            .help("a name starts with a letter and holds letters, digits, '-', '_' and '.'"),
    )
}
