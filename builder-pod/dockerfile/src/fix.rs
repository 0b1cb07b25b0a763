//! Changes of a file that leave its meaning as it is.

use std::collections::BTreeSet;

use crate::ast::{Dockerfile, Instruction, Kind};
use crate::diagnostic::{Diagnostics, Edit};
use crate::lint;
use crate::options::Options;
use crate::parse::{Parsed, parse};
use crate::plan::{Images, ResolvedImage, plan};
use crate::source::{Source, Span};

/// The file with all that can be mended safely, and how many findings that were; `None` where nothing is to be done.
/// What would change the operations or the image config is left alone, though a rule may ask for it.
pub fn fixed(parsed: &Parsed, options: &Options, images: &Images) -> Option<(String, usize)> {
    let checked = lint::check(parsed, options, images);
    let count = checked.findings.iter().filter(|finding| !finding.fix.is_empty()).count();
    let text = apply(parsed.source(), edits(&checked.findings));
    let same =
        meaning(parsed, options, images) == meaning(&parse(parsed.source().name(), &text), options, images);
    (count > 0 && same).then_some((text, count))
}

fn edits(findings: &Diagnostics) -> Vec<Edit> {
    findings.iter().flat_map(|finding| finding.fix.iter().cloned()).collect()
}

/// The text with edits made; of two that overlap the first counts.
fn apply(source: &Source, mut edits: Vec<Edit>) -> String {
    edits.sort_by_key(|edit| edit.span);
    let (mut out, mut at) = (String::new(), 0);
    for edit in edits {
        if edit.span.start < at {
            continue;
        }
        out.push_str(source.slice(Span::new(at, edit.span.start)));
        out.push_str(&edit.text);
        at = edit.span.end;
    }
    out.push_str(source.slice(Span::new(at, source.text().len())));
    out
}

/// What comes of a file: its operations and its config. `None` where it can't be built as it is.
fn meaning(parsed: &Parsed, options: &Options, images: &Images) -> Option<(Vec<Vec<u8>>, String)> {
    let plan = plan(parsed, options).ok()?;
    let known = plan.images_assumed(images.clone(), |request| ResolvedImage {
        digest: None,
        config: lapstrake_oci::ImageConfig::of_platform(&request.key.platform),
        instead: None,
    });
    let lowered = plan.lower(&known).ok()?;
    Some((lowered.definition.def, serde_json::to_string(&lowered.config).ok()?))
}

/// The file in one way of writing: instructions in upper case, no blanks at ends of lines, no more than one empty line in
/// a row, one line end at the end. Commands, heredocs and comments stay as they are. `None` where it can't be read.
pub fn formatted(parsed: &Parsed) -> Option<String> {
    if parsed.diagnostics.has_errors() {
        return None;
    }
    let source = parsed.source();
    let text = apply(source, keywords(parsed));
    // Lines stay what they were, so that those of heredocs are found by their numbers.
    let inside = heredoc_lines(&parsed.ast, source);
    let (mut out, mut empty) = (String::with_capacity(text.len()), 0);
    for (index, line) in text.split('\n').enumerate() {
        if inside.contains(&index) {
            (out, empty) = (out + line + "\n", 0);
            continue;
        }
        let (line, end) = match line.strip_suffix('\r') {
            Some(line) => (line, "\r\n"),
            None => (line, "\n"),
        };
        let line = line.trim_end_matches([' ', '\t']);
        empty = if line.is_empty() { empty + 1 } else { 0 };
        if empty <= 1 && !(line.is_empty() && out.is_empty()) {
            out.push_str(line);
            out.push_str(end);
        }
    }
    let kept = match inside.is_empty() {
        true => out.trim_end_matches(['\r', '\n']).len(),
        false => out.trim_end_matches('\n').len(),
    };
    // The end that the last line has itself.
    let end = match out.get(kept..) {
        Some(rest) if rest.starts_with("\r\n") => "\r\n",
        _ => "\n",
    };
    out.truncate(kept);
    if !out.is_empty() {
        out.push_str(end);
    }
    Some(out)
}

/// Edits that put keywords in upper case.
fn keywords(parsed: &Parsed) -> Vec<Edit> {
    let mut edits = Vec::new();
    let mut upper = |span: Span| {
        let written = parsed.source().slice(span);
        if written != written.to_uppercase() && written.is_ascii() {
            edits.push(Edit { span, text: written.to_uppercase() });
        }
    };
    for instruction in &parsed.ast.instructions {
        upper(instruction.keyword.span);
        if let Kind::From(from) = &instruction.kind
            && let Some(name) = &from.name
        {
            let between = Span::new(from.image.span.end, name.span.start);
            let text = parsed.source().slice(between);
            if text.trim().eq_ignore_ascii_case("as") {
                let start = between.start + text.len() - text.trim_start().len();
                upper(Span::new(start, start + 2));
            }
        }
    }
    edits
}

/// Lines of heredocs' bodies and their ends, from 0.
fn heredoc_lines(ast: &Dockerfile, source: &Source) -> BTreeSet<usize> {
    let has = |instruction: &Instruction| match &instruction.kind {
        Kind::Run(run) => !run.heredocs.is_empty(),
        Kind::Copy(copy) | Kind::Add(copy) => !copy.heredocs.is_empty(),
        // What its trigger is was not looked into if it is broken.
        Kind::Onbuild(_) => instruction.source.text.contains("<<"),
        _ => false,
    };
    let mut lines = BTreeSet::new();
    for instruction in ast.instructions.iter().filter(|instruction| has(instruction)) {
        let last = source.line_of(instruction.source.span.end.saturating_sub(1));
        lines.extend((last..instruction.lines.1).map(|line| line as usize));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed_text(text: &str) -> Option<(String, usize)> {
        fixed(&parse("D", text), &Options::default(), &Images::new())
    }

    #[test]
    fn what_is_safe_is_mended_and_the_rest_stays() {
        let text = "from --platform=$TARGETPLATFORM alpine:3 AS Build\nenv A b c\nENV D \"e f\"\nrun a && \\\n\n\n  b\nexpose 80/TCP\nuser x\nMAINTAINER me\n";
        let wanted = "from alpine:3 as build\nenv A=\"b c\"\nenv D \"e f\"\nrun a && \\\n  b\nexpose 80/tcp\nuser x\nmaintainer me\n";
        let (found, count) = fixed_text(text).expect("something to do");
        assert_eq!((found.as_str(), count), (wanted, 8));
        assert!(fixed_text("FROM alpine:3\nRUN x\n").is_none());
    }

    #[test]
    fn a_file_is_written_one_way_and_heredocs_stay() {
        let text = "\n\nfrom alpine:3 as x  \n\n\n\nrun <<EOF  \n  a  \n\n\n\n  b\t\nEOF\ncopy a \\ \n  b\t\n# c  \n\n\n";
        let wanted = "FROM alpine:3 AS x\n\nRUN <<EOF\n  a  \n\n\n\n  b\t\nEOF\nCOPY a \\\n  b\n# c\n";
        let found = formatted(&parse("D", text)).expect("valid");
        assert_eq!(found, wanted);
        assert_eq!(formatted(&parse("D", &found)).as_deref(), Some(wanted));
        assert_eq!(
            formatted(&parse("D", "from a\r\nrun b  \r\n\r\n")).as_deref(),
            Some("FROM a\r\nRUN b\r\n")
        );
        assert_eq!(formatted(&parse("D", "RUNN\n")), None);
    }
}
