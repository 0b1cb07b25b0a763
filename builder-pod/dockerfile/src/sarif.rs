//! Findings for tools that read SARIF 2.1.0: code hosts, editors.

use serde_json::{Value, json};

use crate::diagnostic::{Diagnostic, Severity};
use crate::lint;
use crate::source::{Source, Span};

/// A log with one run.
pub(crate) fn log(source: &Source, items: &[Diagnostic]) -> Value {
    let mut ids: Vec<&str> = items.iter().map(|item| item.code).collect();
    ids.sort_unstable();
    ids.dedup();
    let rules: Vec<Value> = ids.iter().map(|id| rule(id)).collect();
    let results: Vec<Value> = items
        .iter()
        .map(|item| {
            let mut result = json!({
                "ruleId": item.code,
                "ruleIndex": ids.binary_search(&item.code).unwrap_or(0),
                "level": if item.severity == Severity::Error { "error" } else { "warning" },
                "message": {"text": message(item)},
                "locations": [location(source, item.span)],
            });
            if !item.also.is_empty() {
                let also = item.also.iter().map(|label| {
                    let mut location = location(source, label.span);
                    location["message"] = json!({"text": label.text});
                    location
                });
                result["relatedLocations"] = also.collect();
            }
            result
        })
        .collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "lapstrake", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn message(item: &Diagnostic) -> String {
    let mut text = item.message.clone();
    for (name, more) in [("note", &item.note), ("help", &item.help)] {
        if let Some(more) = more {
            text.push_str(&format!("\n{name}: {more}"));
        }
    }
    text
}

fn rule(id: &str) -> Value {
    let mut out = json!({"id": id});
    if let Some(rule) = lint::rule(id) {
        out["shortDescription"] = json!({"text": rule.description});
        out["fullDescription"] = json!({"text": rule.why});
        if rule.url.starts_with("https://") {
            out["helpUri"] = json!(rule.url);
        }
    }
    out
}

fn location(source: &Source, span: Span) -> Value {
    let mut physical = json!({"artifactLocation": {"uri": source.name()}});
    if span != Span::default() {
        let (start, end) = (source.position(span.start), source.position(span.end.max(span.start)));
        physical["region"] = json!({
            "startLine": start.line, "startColumn": start.column, "endLine": end.line, "endColumn": end.column,
        });
    }
    json!({"physicalLocation": physical})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_result_with_its_region_and_its_rule() {
        let source = Source::new("dir/Dockerfile", "FROM a\nENV ä b\n");
        let at = source.text().find('ä').unwrap_or(0);
        let mut item = Diagnostic::warning("LegacyKeyValueFormat", Span::new(at, at + 4), "old form");
        item.help = Some("write =".to_owned());
        let log = log(&source, &[item.also(Span::new(0, 4), "here")]);
        let run = &log["runs"][0];
        assert_eq!(run["tool"]["driver"]["rules"][0]["id"], "LegacyKeyValueFormat");
        let result = &run["results"][0];
        assert_eq!((&result["level"], &result["ruleIndex"]), (&json!("warning"), &json!(0)));
        assert_eq!(result["message"]["text"], "old form\nhelp: write =");
        let place = &result["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], "dir/Dockerfile");
        let region = json!({"startLine": 2, "startColumn": 5, "endLine": 2, "endColumn": 8});
        assert_eq!(place["region"], region);
        assert_eq!(result["relatedLocations"][0]["message"]["text"], "here");
    }
}
