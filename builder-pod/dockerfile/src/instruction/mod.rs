//! One file per instruction (or family): its text to a typed node, its errors to findings.

mod arg;
mod command;
mod copy;
mod env;
mod flags;
mod from;
mod healthcheck;
mod onbuild;
mod run;
mod simple;

use std::ops::Range;

use crate::ast::{Heredoc, Instruction, Kind, Word};
use crate::diagnostic::Diagnostic;
use crate::lines::Logical;
use crate::suggest;
use crate::words::{self, HeredocWord, RawFlag};
use crate::{ast, json};

/// All keywords.
pub(crate) const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// An instruction could not be understood; the finding says why.
pub(crate) type Parsed<T> = Result<T, Box<Diagnostic>>;

pub(crate) fn fail<T>(diagnostic: Diagnostic) -> Parsed<T> {
    Err(Box::new(diagnostic))
}

/// An instruction's line, taken apart as far as all instructions have it in common.
pub(crate) struct Input<'a> {
    pub(crate) line: &'a Logical,
    pub(crate) escape: char,
    pub(crate) keyword: Word,
    pub(crate) flags: Vec<RawFlag>,
    /// The arguments after the flags.
    pub(crate) rest: Range<usize>,
    pub(crate) heredocs: Vec<Heredoc>,
    /// Findings that don't stop the instruction from being understood.
    pub(crate) findings: Vec<Diagnostic>,
}

impl Input<'_> {
    /// The keyword in upper case.
    pub(crate) fn name(&self) -> String {
        self.keyword.text.to_ascii_uppercase()
    }

    /// All arguments as one word.
    pub(crate) fn argument(&self) -> Word {
        self.line.word(self.rest.clone())
    }

    /// The arguments, split at whitespace.
    pub(crate) fn arguments(&self) -> Vec<Word> {
        let ranges = words::blank_separated(&self.line.text, self.rest.clone());
        ranges.into_iter().map(|range| self.line.word(range)).collect()
    }

    /// The arguments, split at whitespace outside quotes.
    pub(crate) fn quoted_arguments(&self) -> Vec<Word> {
        let ranges = words::quoted(&self.line.text, self.rest.clone(), self.escape);
        ranges.into_iter().map(|range| self.line.word(range)).collect()
    }

    /// The JSON form's arguments, `None` where the other form applies.
    pub(crate) fn exec_form(&mut self) -> Parsed<Option<Vec<Word>>> {
        let (found, warning) = exec_form(self.line, self.rest.clone())?;
        self.findings.extend(warning);
        Ok(found)
    }

    /// Everything of the instruction on its first line, to point at when something is absent.
    pub(crate) fn whole(&self) -> crate::Span {
        self.line.trimmed().span
    }

    /// The single argument, as it stands.
    pub(crate) fn one_argument(&self) -> Parsed<Word> {
        match self.rest.is_empty() {
            false => Ok(self.argument()),
            true => fail(self.missing("requires exactly one argument")),
        }
    }

    pub(crate) fn missing(&self, what: &str) -> Diagnostic {
        Diagnostic::error("missing-argument", self.keyword.span, format!("{} {what}", self.name()))
    }
}

fn exec_form(line: &Logical, rest: Range<usize>) -> Parsed<(Option<Vec<Word>>, Option<Diagnostic>)> {
    let text = line.text.get(rest.clone()).unwrap_or("");
    match json::form(text) {
        json::Form::Exec(items) => {
            let word = |(text, range): (String, Range<usize>)| {
                let span = line.span(rest.start + range.start..rest.start + range.end);
                Word { text, span }
            };
            Ok((Some(items.into_iter().map(word).collect()), None))
        }
        json::Form::NotStrings => fail(
            Diagnostic::error(
                "exec-form-not-strings",
                line.span(rest),
                "when using JSON array syntax, arrays must be comprised of strings only",
            )
            .help("put every element in double quotes"),
        ),
        json::Form::Shell if json::looks_like_exec(text) => {
            let warning =
                Diagnostic::warning("invalid-exec-form", line.span(rest), "this is not a valid JSON array")
                    .note("it looks like the exec form, and is taken as the shell form")
                    .help("elements need double quotes and commas between them, and none after the last");
            Ok((None, Some(warning)))
        }
        json::Form::Shell => Ok((None, None)),
    }
}

/// The heredocs that a line announces; only some instructions have them, and not in JSON form.
pub(crate) fn announced_heredocs(line: &Logical, escape: char) -> Vec<HeredocWord> {
    if !line.text.contains("<<") {
        return Vec::new();
    }
    let (mut keyword, mut rest) = words::keyword(&line.text);
    let is = |range: &Range<usize>, name: &str| line.text[range.clone()].eq_ignore_ascii_case(name);
    if is(&keyword, "ONBUILD") {
        let (_, inner) = words::flags(&line.text, rest, escape);
        let offset = inner.start;
        let (k, r) = words::keyword(&line.text[inner]);
        keyword = k.start + offset..k.end + offset;
        rest = r.start + offset..r.end + offset;
    }
    if !["ADD", "COPY", "RUN"].iter().any(|name| is(&keyword, name)) {
        return Vec::new();
    }
    let (_, rest) = words::flags(&line.text, rest, escape);
    if matches!(json::form(&line.text[rest]), json::Form::Exec(_)) {
        return Vec::new();
    }
    words::heredocs(&line.text)
}

/// Understands one instruction; what is wrong with it goes to `findings`.
pub(crate) fn parse(
    line: &Logical,
    escape: char,
    heredocs: Vec<Heredoc>,
    findings: &mut Vec<Diagnostic>,
) -> Instruction {
    let (keyword, rest) = words::keyword(&line.text);
    let (flags, rest) = words::flags(&line.text, rest, escape);
    let keyword = line.word(keyword);
    let mut input =
        Input { line, escape, keyword: keyword.clone(), flags, rest, heredocs, findings: Vec::new() };
    let kind = kind(&mut input);
    findings.append(&mut input.findings);
    let kind = kind.unwrap_or_else(|finding| {
        findings.push(*finding);
        Kind::Invalid
    });
    let comments = line.comments.clone();
    Instruction { keyword, source: line.trimmed(), lines: line.lines, comments, kind }
}

fn kind(input: &mut Input<'_>) -> Parsed<Kind> {
    match input.name().as_str() {
        "ADD" => Ok(Kind::Add(copy::add(input)?)),
        "ARG" => Ok(Kind::Arg(arg::parse(input)?)),
        "CMD" => Ok(Kind::Cmd(command::parse(input)?)),
        "COPY" => Ok(Kind::Copy(copy::copy(input)?)),
        "ENTRYPOINT" => Ok(Kind::Entrypoint(command::parse(input)?)),
        "ENV" => Ok(Kind::Env(env::parse(input)?)),
        "EXPOSE" => Ok(Kind::Expose(simple::expose(input)?)),
        "FROM" => Ok(Kind::From(from::parse(input)?)),
        "HEALTHCHECK" => Ok(Kind::Healthcheck(healthcheck::parse(input)?)),
        "LABEL" => Ok(Kind::Label(env::parse(input)?)),
        "MAINTAINER" => Ok(Kind::Maintainer(simple::single(input)?)),
        "ONBUILD" => Ok(Kind::Onbuild(onbuild::parse(input)?)),
        "RUN" => Ok(Kind::Run(run::parse(input)?)),
        "SHELL" => Ok(Kind::Shell(command::shell(input)?)),
        "STOPSIGNAL" => Ok(Kind::Stopsignal(simple::single(input)?)),
        "USER" => Ok(Kind::User(simple::single(input)?)),
        "VOLUME" => Ok(Kind::Volume(simple::volume(input)?)),
        "WORKDIR" => Ok(Kind::Workdir(simple::single(input)?)),
        _ => fail(unknown(&input.keyword)),
    }
}

fn unknown(keyword: &Word) -> Diagnostic {
    let shown: String = keyword.text.chars().take(40).collect();
    let finding =
        Diagnostic::error("unknown-instruction", keyword.span, format!("unknown instruction: {shown}"));
    match suggest::nearest_in_case(&keyword.text, KEYWORDS) {
        Some(word) => finding.suggest(Some(word)),
        None if keyword.text.starts_with("//") => finding.help("comments start with #"),
        None => {
            finding.note("a line that goes on an instruction needs a \\ at the end of the line before it")
        }
    }
}

impl ast::Word {
    /// A part of the word, by bytes of its text. Where the text is not what the file has (quotes went), the
    /// place is the whole word.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        let text = self.text.get(range.clone()).unwrap_or("").to_owned();
        let exact = self.span.end - self.span.start == self.text.len();
        let span = match exact {
            true => crate::Span::new(self.span.start + range.start, self.span.start + range.end),
            false => self.span,
        };
        Self { text, span }
    }
}
