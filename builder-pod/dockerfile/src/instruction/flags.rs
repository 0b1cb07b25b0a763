//! `--name[=value]` of an instruction, checked against what it knows.

use crate::ast::Word;
use crate::diagnostic::Diagnostic;
use crate::instruction::{Input, Parsed, fail};
use crate::suggest;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    /// A value, once.
    Value,
    /// Values, any number of times.
    Values,
    /// `true`, `false` or nothing.
    Bool,
}

/// The flags of one instruction.
#[derive(Debug, Default)]
pub(super) struct Flags(Vec<(&'static str, Word)>);

impl Flags {
    /// Checks the flags of `input` against `known`.
    pub(super) fn read(input: &Input<'_>, known: &[(&'static str, Takes)]) -> Parsed<Self> {
        let mut out = Self::default();
        for raw in &input.flags {
            let span = input.line.span(raw.range.clone());
            let name = raw.name.strip_prefix("--").unwrap_or(&raw.name);
            let Some((name, takes)) = known.iter().find(|(known, _)| *known == name) else {
                return fail(unknown(input, &raw.name, span, known));
            };
            if let Some(before) = out.get(name).filter(|_| *takes != Takes::Values) {
                let message = format!("duplicate flag specified: {}", raw.name);
                return fail(
                    Diagnostic::error("duplicate-flag", span, message).also(before.span, "first given here"),
                );
            }
            let value = match (takes, &raw.value) {
                (Takes::Bool, None) => "true".to_owned(),
                (_, None) => return fail(no_value(&raw.name, span)),
                (Takes::Bool, Some(value)) if value.is_empty() => return fail(no_value(&raw.name, span)),
                (Takes::Bool, Some(value)) => match value.to_ascii_lowercase().as_str() {
                    boolean @ ("true" | "false") => boolean.to_owned(),
                    _ => {
                        let message = format!("expecting boolean value for flag {}, not: {value}", raw.name);
                        return fail(Diagnostic::error("invalid-flag-value", span, message));
                    }
                },
                (_, Some(value)) => value.clone(),
            };
            let span = match raw.value {
                Some(_) => input.line.span(raw.value_range.clone()),
                None => span,
            };
            out.0.push((*name, Word { text: value, span }));
        }
        Ok(out)
    }

    /// An instruction without flags.
    pub(super) fn none(input: &Input<'_>) -> Parsed<()> {
        Self::read(input, &[]).map(|_| ())
    }

    /// The value of a flag.
    pub(super) fn get(&self, name: &str) -> Option<&Word> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, word)| word)
    }

    /// The value of a flag, unless it is empty.
    pub(super) fn value(&self, name: &str) -> Option<Word> {
        self.get(name).filter(|word| !word.text.is_empty()).cloned()
    }

    /// All values of a flag.
    pub(super) fn values(&self, name: &str) -> Vec<Word> {
        self.0.iter().filter(|(known, _)| *known == name).map(|(_, word)| word.clone()).collect()
    }

    /// The value of a boolean flag.
    pub(super) fn bool(&self, name: &str) -> Option<bool> {
        self.get(name).map(|word| word.text == "true")
    }
}

fn no_value(name: &str, span: crate::Span) -> Diagnostic {
    Diagnostic::error("missing-flag-value", span, format!("missing a value on flag: {name}"))
        .help(format!("write {name}=value"))
}

fn unknown(input: &Input<'_>, flag: &str, span: crate::Span, known: &[(&'static str, Takes)]) -> Diagnostic {
    let shown: String = flag.chars().take(40).collect();
    let finding = Diagnostic::error("unknown-flag", span, format!("unknown flag: {shown}"));
    let names = || known.iter().map(|(name, _)| *name);
    let name = flag.strip_prefix("--").unwrap_or(flag);
    match suggest::nearest(name, names()) {
        Some(word) => finding.suggest(Some(format!("--{word}"))),
        None if known.is_empty() => finding.note(format!("{} has no flags", input.name())),
        None => {
            let list: Vec<_> = names().map(|name| format!("--{name}")).collect();
            finding.note(format!("{} knows {}", input.name(), list.join(", ")))
        }
    }
}
