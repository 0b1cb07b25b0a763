//! `ONBUILD instruction`.

use crate::ast::Onbuild;
use crate::diagnostic::{Diagnostic, Severity};
use crate::instruction::flags::Flags;
use crate::instruction::{Input, Parsed, fail};
use crate::lines::Logical;

pub(super) fn parse(input: &mut Input<'_>) -> Parsed<Onbuild> {
    let Some(first) = input.arguments().into_iter().next() else {
        return fail(input.missing("requires at least one argument"));
    };
    Flags::none(input)?;
    let keyword = first.text.to_ascii_uppercase();
    match keyword.as_str() {
        "ONBUILD" => {
            let message = "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed";
            return fail(Diagnostic::error("invalid-trigger", first.span, message));
        }
        "MAINTAINER" | "FROM" => {
            let message = format!("{keyword} isn't allowed as an ONBUILD trigger");
            return fail(Diagnostic::error("invalid-trigger", first.span, message));
        }
        _ => {}
    }
    let expression = expression(input);
    // The trigger is a part of this very line, so its places are found the same way.
    let mut inner = Logical { comments: Vec::new(), ..input.line.clone() };
    blank_out(&mut inner.text, input.rest.start);
    let mut findings = Vec::new();
    let trigger = super::parse(&inner, input.escape, input.heredocs.clone(), &mut findings);
    input.findings.extend(findings.into_iter().map(soften));
    Ok(Onbuild { expression, trigger: Box::new(trigger) })
}

/// A broken trigger breaks only the builds that run it, unless it can't even be split into words.
fn soften(finding: Diagnostic) -> Diagnostic {
    match finding.code {
        "missing-equals" | "missing-value" | "exec-form-not-strings" => finding,
        _ => Diagnostic { severity: Severity::Warning, ..finding },
    }
}

fn expression(input: &Input<'_>) -> String {
    let text = input.line.text.trim_start();
    let mut out = text[input.keyword.text.len()..].trim_start().to_owned();
    for heredoc in &input.heredocs {
        out.push('\n');
        out.push_str(&heredoc.body);
        out.push_str(&heredoc.name);
    }
    out
}

/// Replaces the first bytes by spaces; they are an ASCII keyword and whitespace.
fn blank_out(text: &mut String, end: usize) {
    let tail = text.split_off(end);
    *text = " ".repeat(end);
    text.push_str(&tail);
}
