//! All findings about a file in one go.

use std::fmt::Write as _;

use crate::diagnostic::{Diagnostic, Diagnostics, Severity};
use crate::options::Options;
use crate::parse::Parsed;
use crate::plan::{self, Images};
use crate::subrequest;

/// What a check found.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Errors and warnings in the order of the file.
    pub findings: Diagnostics,
    /// The same with what rules say of places that have an error.
    all: Diagnostics,
}

/// A finding of a rule, as clients of BuildKit get it while they build.
#[derive(Debug, Clone, Copy)]
pub struct ClientWarning<'a> {
    /// The rule.
    pub rule: &'static str,
    /// What it is about.
    pub description: &'static str,
    /// Where more is said about it; may be empty.
    pub url: &'static str,
    /// What it found.
    pub detail: &'a str,
    /// First and last line.
    pub lines: (u32, u32),
}

impl Checked {
    /// Whether a build would fail: there is an error, or the file makes one of what rules find.
    pub fn failed(&self) -> bool {
        self.findings.has_errors()
    }

    /// Whether there is nothing to say.
    pub fn is_clean(&self) -> bool {
        self.all.is_empty()
    }

    /// The warnings as clients of BuildKit print them.
    pub fn to_client_text(&self) -> String {
        let mut out = String::new();
        for finding in self.all.iter() {
            let Some(rule) = super::rule(finding.code) else { continue };
            let url = if rule.url.is_empty() { String::new() } else { format!(" - {}", rule.url) };
            let at = finding.lines.unwrap_or_else(|| lines(self, finding));
            let shown = subrequest::excerpt(self.all.source(), at);
            let _ = write!(out, "\nWARNING: {}{url}\n{}\n{shown}", rule.name, finding.message);
        }
        out
    }

    /// The warnings as clients of BuildKit get them while they build.
    pub fn client_warnings(&self) -> impl Iterator<Item = ClientWarning<'_>> {
        let of_rules = self.all.iter().filter_map(|finding| Some((finding, super::rule(finding.code)?)));
        of_rules.map(|(finding, rule)| ClientWarning {
            rule: rule.name,
            description: rule.description,
            url: rule.url,
            detail: &finding.message,
            lines: finding.lines.unwrap_or_else(|| lines(self, finding)),
        })
    }

    /// What clients of BuildKit show: warnings of rules, and the first error.
    pub fn to_client_json(&self) -> serde_json::Value {
        let source = self.findings.source();
        let range =
            |first: u32, last: u32| serde_json::json!([{"start": {"line": first}, "end": {"line": last}}]);
        let warnings: Vec<_> = self
            .client_warnings()
            .map(|warning| {
                serde_json::json!({
                    "ruleName": warning.rule, "description": warning.description, "url": warning.url,
                    "detail": warning.detail, "location": {"ranges": range(warning.lines.0, warning.lines.1)},
                })
            })
            .collect();
        let mut out = serde_json::json!({
            "warnings": warnings,
            "sources": [{"filename": source.name(), "language": "Dockerfile", "data": subrequest::base64(source)}],
        });
        if let Some(error) = self.findings.first_error() {
            let (first, last) = lines(self, error);
            out["buildError"] =
                serde_json::json!({"message": error.message, "location": {"ranges": range(first, last)}});
        }
        out
    }
}

fn lines(checked: &Checked, finding: &Diagnostic) -> (u32, u32) {
    let source = checked.findings.source();
    (source.line_of(finding.span.start), source.line_of(finding.span.end.max(finding.span.start + 1) - 1))
}

/// Checks a file for all that its target needs (everything, where the options name none): errors that a build would
/// end with, and what rules find. Configs of base images that are not in `images` are taken to be anything.
pub fn check(parsed: &Parsed, options: &Options, images: &Images) -> Checked {
    let findings = match plan::plan_with_all(parsed, options) {
        Err(findings) => findings,
        Ok(plan) => Diagnostics::of(parsed.source().clone(), plan.findings(images)),
    };
    // What is wrong twice for one reason is told once.
    let mut seen = std::collections::BTreeSet::new();
    let unique = findings.iter().filter(|f| seen.insert((f.span, f.code, f.message.clone()))).cloned();
    let mut unique: Vec<_> = unique.collect();
    unique.sort_by_key(|finding| (finding.span.start, finding.severity == Severity::Warning));
    let all = Diagnostics::of(parsed.source().clone(), unique).finish();
    Checked { findings: all.clone().without_echoes(), all }
}
