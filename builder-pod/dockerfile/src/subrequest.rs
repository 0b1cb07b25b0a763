//! Answers to clients that ask about a file instead of building it: BuildKit's subrequests, as metadata of a result.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use base64::Engine as _;
use lapstrake_llb::protojson;
use serde_json::{Value, json};

use crate::diagnostic::Diagnostics;
use crate::inspect;
use crate::lint;
use crate::options::Options;
use crate::parse::Parsed;
use crate::plan::{Images, plan};
use crate::source::Source;

/// A question that clients know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subrequest {
    /// What a build can be given.
    Outline,
    /// The stages.
    Targets,
    /// What rules find.
    Lint,
    /// The operations of a build.
    ConvertLlb,
    /// The questions themselves.
    Describe,
}

/// Name and description of each.
const ALL: [(Subrequest, &str, &str); 5] = [
    (Subrequest::Outline, "frontend.outline", "List all parameters current build target supports"),
    (Subrequest::Targets, "frontend.targets", "List all targets current build supports"),
    (Subrequest::Lint, "frontend.lint", "Lint a Dockerfile"),
    (Subrequest::ConvertLlb, "frontend.convertllb", "Convert Dockerfile to LLB"),
    (Subrequest::Describe, "frontend.subrequests.describe", "List available subrequest types"),
];

/// Version of a question's answer.
fn version(request: Subrequest) -> &'static str {
    if request == Subrequest::ConvertLlb { "0.1.0" } else { "1.0.0" }
}

impl Subrequest {
    /// The question that a client means by `requestid`; `None` for one that is not known.
    pub fn named(id: &str) -> Option<Self> {
        ALL.iter().find(|(_, name, _)| *name == id).map(|(request, ..)| *request)
    }

    /// The answer: `result.json`, `result.txt` (of all but the operations), `version`, and for lint
    /// `result.statuscode`.
    ///
    /// # Errors
    /// The findings of a file that can't be read; lint has them in its answer.
    pub fn answer(
        self,
        parsed: &Parsed,
        options: &Options,
        images: &Images,
    ) -> Result<BTreeMap<&'static str, String>, Diagnostics> {
        let sources = || json!([base64(parsed.source())]);
        let (value, text, status) = match self {
            Self::Outline => {
                let outline = plan(parsed, options)?.outline(images);
                let mut value = json!(outline);
                value["sources"] = sources();
                (value, Some(outline.to_text()), None)
            }
            Self::Targets if parsed.diagnostics.has_errors() => return Err(parsed.diagnostics.clone()),
            Self::Targets => {
                let targets = inspect::targets(parsed);
                let text = inspect::targets_text(&targets);
                (json!({"targets": targets, "sources": sources()}), Some(text), None)
            }
            Self::Lint => {
                let checked = lint::check(parsed, options, images);
                let status = if checked.is_clean() { "0" } else { "1" };
                (checked.to_client_json(), Some(checked.to_client_text()), Some(status))
            }
            Self::ConvertLlb => {
                let lowered = plan(parsed, options)?.lower(images)?;
                // What was encoded a moment ago is well formed.
                (protojson::definition(&lowered.definition).unwrap_or_default(), None, None)
            }
            Self::Describe => (describe(), Some(describe_text()), None),
        };
        let pretty = serde_json::to_string_pretty(&value).unwrap_or_default();
        let mut answer = BTreeMap::from([("result.json", pretty), ("version", version(self).to_owned())]);
        answer.extend(text.map(|text| ("result.txt", text)));
        if let Some(status) = status {
            answer.insert("result.statuscode", status.to_owned());
        }
        Ok(answer)
    }
}

/// Bytes as Go's JSON has them.
pub(crate) fn base64(source: &Source) -> String {
    base64::engine::general_purpose::STANDARD.encode(source.text())
}

fn describe() -> Value {
    let one = |(request, name, description): &(Subrequest, &str, &str)| {
        let target = json!([{"name": "target", "description": "Target build stage"}]);
        let opts = if *request == Subrequest::Outline { target } else { json!([]) };
        let mut results = vec!["result.json"];
        if *request != Subrequest::ConvertLlb {
            results.push("result.txt");
        }
        if *request == Subrequest::Lint {
            results.push("result.statuscode");
        }
        let metadata: Vec<Value> =
            results.iter().map(|name| json!({"name": name, "description": ""})).collect();
        json!({
            "name": name, "version": version(*request), "type": "rpc", "description": description,
            "opts": opts, "inputs": null, "metadata": metadata, "refs": null,
        })
    };
    ALL.iter().map(one).collect()
}

fn describe_text() -> String {
    let short = |name: &str| name.strip_prefix("frontend.").unwrap_or(name).to_owned();
    let mut rows = vec![["NAME", "VERSION", "DESCRIPTION"].map(str::to_owned)];
    rows.extend(
        ALL.iter().map(|(one, name, text)| [short(name), version(*one).to_owned(), (*text).to_owned()]),
    );
    inspect::table(&rows, 1)
}

/// Lines of a file as BuildKit's clients show them, those that are meant with a mark.
pub(crate) fn excerpt(source: &Source, (first, last): (u32, u32)) -> String {
    let lines: Vec<&str> = source.text().split('\n').collect();
    let count = u32::try_from(lines.len()).unwrap_or(u32::MAX);
    if first < 1 || first > count {
        return String::new();
    }
    let last = last.clamp(first, count);
    let (mut start, mut end, mut padded) = (first, last, 0);
    while padded < if first == last { 4 } else { 2 } {
        if start > 1 {
            (start, padded) = (start - 1, padded + 1);
        }
        if end != count {
            (end, padded) = (end + 1, padded + 1);
        }
        padded += 1;
    }
    let mut out = format!("{}:{first}\n--------------------\n", source.name());
    for (number, line) in (start..=end).zip(lines.iter().skip(start as usize - 1)) {
        let mark = if (first..=last).contains(&number) { ">>>" } else { "   " };
        let _ = writeln!(out, " {number:3} | {mark} {line}");
    }
    out.push_str("--------------------\n");
    out
}
