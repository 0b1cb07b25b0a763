//! Checks of what a Dockerfile says well enough, but should say otherwise.
//!
//! BuildKit's rules have its names and texts, so that clients and `# check=` lines mean the same here. The others
//! are ours: those where opinions differ run only when they are asked for (`# check=experimental=Name`, or
//! `experimental=lapstrake` for all of them), and `error=true` makes an error only of those that were asked for, so
//! that a file which BuildKit builds is built here.

mod apt;
mod control;
mod file;
mod ignore;
mod page;
mod practice;
mod report;
mod rules;
mod shell;

pub(crate) use control::Control;
pub(crate) use file::check as check_file;
pub(crate) use ignore::Ignored;
pub use page::page;
pub(crate) use practice::check as check_practice;
pub use report::{Checked, ClientWarning, check};
pub(crate) use rules::nearest;
pub use rules::{RULES, Rule, rule};

use crate::ast::Instruction;
use crate::diagnostic::Diagnostic;
use crate::source::Span;

/// Collects what rules find, as far as they are asked.
#[derive(Debug, Default)]
pub(crate) struct Findings(pub(crate) Vec<Diagnostic>);

/// More findings are not collected.
const FINDINGS_MAX: usize = 2 * crate::limits::WARNINGS_MAX;

impl Findings {
    /// Whether no more is collected: what costs time to find need not be looked for.
    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= FINDINGS_MAX
    }

    /// Notes a finding unless its rule is off.
    pub(crate) fn push(
        &mut self,
        control: &Control,
        name: &'static str,
        lines: (u32, u32),
        span: Span,
        message: impl Into<String>,
    ) -> Option<&mut Diagnostic> {
        let rule = rule(name)?;
        if !control.reports(rule) || self.is_full() {
            return None;
        }
        let mut finding = Diagnostic::warning(rule.name, span, message);
        finding.lines = Some(lines);
        finding.help = rule.help.map(str::to_owned);
        self.0.push(finding);
        self.0.last_mut()
    }

    /// The same for an instruction as a whole.
    pub(crate) fn at(
        &mut self,
        control: &Control,
        name: &'static str,
        instruction: &Instruction,
        message: impl Into<String>,
    ) -> Option<&mut Diagnostic> {
        self.push(control, name, instruction.lines, instruction.source.span, message)
    }
}

/// The rules whose findings make an error of the whole, by `error=true`.
pub(crate) fn violated(control: &Control, findings: &[Diagnostic]) -> Vec<&'static str> {
    let mut names: Vec<_> = findings
        .iter()
        .filter_map(|finding| rule(finding.code))
        .filter(|rule| rule.of_buildkit || control.asks_for(rule))
        .map(|rule| rule.name)
        .collect();
    names.sort_unstable();
    names.dedup();
    if control.error { names } else { Vec::new() }
}
