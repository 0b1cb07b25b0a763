use crate::ast::{Dockerfile, Heredoc, Instruction, Kind};
use crate::diagnostic::{Diagnostic, Diagnostics, Severity};
use crate::instruction;
use crate::limits::{ERRORS_MAX, FILE_BYTES_MAX, HEREDOCS_MAX, INSTRUCTIONS_MAX, WARNINGS_MAX};
use crate::lines::{Logical, Reader};
use crate::source::{Source, Span};
use crate::words::HeredocWord;

/// A file that was read: the tree and what was found on the way.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// The tree. Instructions with errors are in it as [`Kind::Invalid`].
    pub ast: Dockerfile,
    /// Errors and warnings in the order of the file.
    pub diagnostics: Diagnostics,
}

impl Parsed {
    /// The file.
    pub fn source(&self) -> &Source {
        self.diagnostics.source()
    }

    /// The value of the `syntax` directive up to its first space, which names the frontend's image.
    pub fn syntax(&self) -> Option<&str> {
        let directive = self.ast.directives.iter().find(|d| d.name == "syntax")?;
        directive.value.split(' ').next()
    }
}

/// The image of the frontend that a file names, whatever its language: in a directive `# syntax=…` or `// syntax=…`
/// of its first lines (after one that begins with `#!`), or as `"syntax"` of a file that is a JSON object.
pub fn frontend_of(text: &str) -> Option<String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = match text.strip_prefix("#!") {
        Some(rest) => rest.split_once('\n').map_or("", |(_, rest)| rest),
        None => text,
    };
    if let Some(image) = parse("", text).syntax() {
        return Some(image.to_owned());
    }
    if text.trim_start().starts_with('{') {
        #[derive(serde::Deserialize)]
        struct Object {
            syntax: Option<String>,
        }
        // Text behind the object is none of ours.
        let first = serde_json::Deserializer::from_str(text).into_iter::<Object>().next()?.ok()?;
        return first.syntax?.split_whitespace().next().map(str::to_owned);
    }
    let directive = |line: &str| {
        let (name, value) = line.trim_start().strip_prefix("//")?.split_once('=')?;
        Some((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
    };
    let mut directives = text.lines().map_while(directive);
    let (_, value) = directives.find(|(name, value)| name == "syntax" && !value.is_empty())?;
    value.split_whitespace().next().map(str::to_owned)
}

/// Reads a Dockerfile; never fails, the findings say what is wrong. `name` is what findings call the file.
pub fn parse(name: &str, text: &str) -> Parsed {
    let source = Source::new(name, text);
    let mut findings = Vec::new();
    let mut ast = Dockerfile { directives: Vec::new(), escape: '\\', instructions: Vec::new() };
    if source.text().len() > FILE_BYTES_MAX {
        let message = format!("file is larger than the {FILE_BYTES_MAX} bytes that are allowed");
        findings.push(Diagnostic::error("file-too-large", Span::default(), message));
    } else {
        read(&source, &mut ast, &mut findings);
    }
    Parsed { ast, diagnostics: Diagnostics::of(source, findings).finish() }
}

fn read(source: &Source, ast: &mut Dockerfile, findings: &mut Vec<Diagnostic>) {
    let mut reader = Reader::new(source);
    while let Some(mut line) = reader.logical() {
        if ast.instructions.len() == INSTRUCTIONS_MAX {
            let message = format!("more instructions than the {INSTRUCTIONS_MAX} that are allowed");
            findings.push(
                Diagnostic::error("too-many-instructions", line.trimmed().span, message)
                    .help("join those that belong together, or copy a script and run it"),
            );
            break;
        }
        let heredocs = heredocs(source, &mut reader, &mut line, findings);
        let mut found = Vec::new();
        let instruction = instruction::parse(&line, reader.escape, heredocs, &mut found);
        findings.append(&mut found);
        ast.instructions.push(instruction);
        if findings.len() > ERRORS_MAX + WARNINGS_MAX {
            break;
        }
    }
    ast.escape = reader.escape;
    ast.directives = reader.directives;
    findings.append(&mut reader.findings);
    structure(&ast.instructions, findings);
}

/// Reads the bodies of the heredocs that a line announces.
fn heredocs(
    source: &Source,
    reader: &mut Reader<'_>,
    line: &mut Logical,
    findings: &mut Vec<Diagnostic>,
) -> Vec<Heredoc> {
    let announced = instruction::announced_heredocs(line, reader.escape);
    if announced.len() > HEREDOCS_MAX {
        let message =
            format!("{} heredocs are more than the {HEREDOCS_MAX} that are allowed", announced.len());
        findings.push(Diagnostic::error("too-many-heredocs", line.trimmed().span, message));
        return Vec::new();
    }
    let mut out: Vec<Heredoc> = Vec::new();
    let mut from = 0;
    for word in announced {
        let range = mark(&line.text, &word.name, from);
        from = range.end;
        let span = line.span(range);
        match body(reader, &word) {
            Ok((body, last)) => {
                line.lines.1 = line.lines.1.max(last);
                let HeredocWord { name, expand, chomp } = word;
                out.push(Heredoc { name, span, expand, chomp, body });
            }
            Err(near) => {
                let message = format!("unterminated heredoc: no line {:?} follows", word.name);
                let mut finding = Diagnostic::error("unterminated-heredoc", span, message);
                if let Some(near) = near {
                    let near = Span::new(near.start, near.end);
                    finding = finding.also(near, "this line has more than the word on it").help(format!(
                        "{} must stand alone on its line{}",
                        word.name,
                        if word.chomp { "" } else { "; <<- allows tabs before it" }
                    ));
                }
                findings.push(finding);
                line.lines.1 = source.line_of(source.text().len());
                break;
            }
        }
    }
    out
}

/// Where the next `<<word` stands in a line.
fn mark(line: &str, name: &str, from: usize) -> std::ops::Range<usize> {
    let start = line.get(from..).and_then(|rest| rest.find("<<")).map_or(0, |at| from + at);
    let rest = line.get(start..).unwrap_or("");
    let end = rest.find(name).map_or(2, |at| at + name.len());
    start..(start + end.min(rest.len()))
}

/// A body up to its terminator and the terminator's line, or the span of a line that nearly was one.
fn body(reader: &mut Reader<'_>, word: &HeredocWord) -> Result<(String, u32), Option<Span>> {
    let (mut body, mut near) = (String::new(), None);
    while let Some(line) = reader.line() {
        let text = line.text();
        let candidate = if word.chomp { text.trim_start_matches('\t') } else { text };
        if candidate == word.name {
            return Ok((body, line.number));
        }
        if near.is_none() && text.trim() == word.name {
            near = Some(Span::new(line.offset, line.offset + text.len()));
        }
        body.push_str(line.full);
    }
    Err(near)
}

/// Checks what stands where.
fn structure(instructions: &[Instruction], findings: &mut Vec<Diagnostic>) {
    if instructions.is_empty() {
        findings.push(Diagnostic::error("empty-file", Span::default(), "file with no instructions"));
        return;
    }
    // A broken FROM is an error already, and what follows it is in its stage.
    let is_from = |i: &&Instruction| i.keyword.text.eq_ignore_ascii_case("FROM");
    let before = instructions.iter().take_while(|i| !is_from(i));
    let stray = before.clone().find(|i| !matches!(i.kind, Kind::Arg(_) | Kind::Invalid));
    if let Some(stray) = stray {
        let message =
            format!("no build stage in current context: {} before the first FROM", stray.keyword.text);
        findings.push(
            Diagnostic::error("no-stage", stray.keyword.span, message)
                .help("only ARG may stand before the first FROM"),
        );
    } else if !instructions.iter().any(|i| is_from(&i))
        && !findings.iter().any(|f| f.severity == Severity::Error)
    {
        let message = "dockerfile contains no stages to build";
        findings.push(
            Diagnostic::error("no-stage", instructions[0].keyword.span, message)
                .help("a stage starts with FROM image"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::frontend_of;

    #[test]
    fn a_file_names_its_frontend_in_any_language() {
        for (text, image) in [
            ("# syntax=r/f:1\nFROM a", Some("r/f:1")),
            ("\u{feff}#!/usr/bin/env build\n# syntax = r/f:1 with words\n", Some("r/f:1")),
            ("# escape=`\n# Syntax=r/f", Some("r/f")),
            ("// syntax=r/f\npackage main", Some("r/f")),
            ("//check=skip=all\n// syntax=r/f", Some("r/f")),
            ("{\"syntax\": \"r/f\", \"more\": [1]}\nand text", Some("r/f")),
            ("FROM a\n# syntax=r/f", None),
            ("# a comment\n# syntax=r/f", None),
            ("package main\n// syntax=r/f", None),
            ("{\"more\": 1}", None),
            ("{", None),
            ("", None),
        ] {
            assert_eq!(frontend_of(text).as_deref(), image, "{text}");
        }
    }
}
