//! `CMD`, `ENTRYPOINT` and `SHELL`, and the command lines of others.

use crate::ast::{Command, Word};
use crate::diagnostic::Diagnostic;
use crate::instruction::flags::Flags;
use crate::instruction::{Input, Parsed, fail};

/// `CMD` and `ENTRYPOINT`.
pub(super) fn parse(input: &mut Input<'_>) -> Parsed<Command> {
    Flags::none(input)?;
    line(input)
}

/// The arguments as a command line in either form.
pub(super) fn line(input: &mut Input<'_>) -> Parsed<Command> {
    if let Some(args) = input.exec_form()? {
        return Ok(Command { args, exec: true });
    }
    let args = if input.rest.is_empty() { Vec::new() } else { vec![input.argument()] };
    Ok(Command { args, exec: false })
}

/// `SHELL`, which has the JSON form only.
pub(super) fn shell(input: &mut Input<'_>) -> Parsed<Vec<Word>> {
    Flags::none(input)?;
    match exec_only(input)? {
        Some(args) if !args.is_empty() => Ok(args),
        Some(_) => fail(input.missing("requires at least one argument")),
        None if input.rest.is_empty() => fail(input.missing("requires at least one argument")),
        None => {
            let words: Vec<_> = input.arguments().iter().map(|w| format!("{:?}", w.text)).collect();
            let message = "SHELL requires the arguments to be in JSON form";
            fail(
                Diagnostic::error("exec-form-needed", input.argument().span, message)
                    .help(format!("write SHELL [{}]", words.join(", "))),
            )
        }
    }
}

fn exec_only(input: &mut Input<'_>) -> Parsed<Option<Vec<Word>>> {
    let found = input.exec_form()?;
    // The error says more than "taken as the shell form" would.
    input.findings.retain(|f| f.code != "invalid-exec-form");
    Ok(found)
}
