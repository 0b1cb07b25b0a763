//! `RUN`.

use crate::ast::Run;
use crate::diagnostic::Diagnostic;
use crate::instruction::flags::{Flags, Takes};
use crate::instruction::{Input, Parsed, command, fail};
use crate::suggest;

const NETWORKS: [&str; 3] = ["default", "none", "host"];
const SECURITY: [&str; 2] = ["sandbox", "insecure"];

pub(super) fn parse(input: &mut Input<'_>) -> Parsed<Run> {
    let flags = Flags::read(
        input,
        &[
            ("mount", Takes::Values),
            ("network", Takes::Value),
            ("security", Takes::Value),
            ("device", Takes::Values),
        ],
    )?;
    for (flag, what, known) in
        [("network", "network mode", &NETWORKS[..]), ("security", "security mode", &SECURITY[..])]
    {
        let Some(word) = flags.get(flag) else { continue };
        if !known.contains(&word.text.as_str()) {
            let message = format!("{what} {:?} is not valid", word.text);
            let finding = Diagnostic::error("invalid-flag-value", word.span, message)
                .note(format!("--{flag} is one of {}", known.join(", ")));
            return fail(finding.suggest(suggest::nearest(&word.text, known.iter().copied())));
        }
    }
    let command = command::line(input)?;
    if command.args.is_empty() {
        input.findings.push(Diagnostic::warning("empty-run", input.keyword.span, "RUN has no command"));
    }
    Ok(Run {
        command,
        heredocs: input.heredocs.clone(),
        mounts: flags.values("mount"),
        network: flags.value("network"),
        security: flags.value("security"),
        devices: flags.values("device"),
    })
}
