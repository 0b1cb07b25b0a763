//! `SOURCE_DATE_EPOCH`: a number, or what has a time: the context, a named context, a stage that is nothing but a
//! download.

use crate::ast::{Copy, Dockerfile, From, Instruction, Kind};
use crate::diagnostic::Diagnostic;
use crate::expand::{Lexer, Lookup as _};
use crate::git;
use crate::options::Options;
use crate::plan::{GlobalArgs, build_arg};
use crate::source::Span;
use crate::suggest;

const NAME: &str = "SOURCE_DATE_EPOCH";
/// The name of the main context.
const CONTEXT: &str = "context";

type Found = Result<Option<i64>, Box<Diagnostic>>;

/// The time in seconds, from the build args, the global scope or the options. What was a name is the number
/// afterwards, for steps to see.
pub(super) fn resolve(ast: &Dockerfile, args: &mut GlobalArgs, options: &mut Options) -> Found {
    let said = build_arg(options, NAME).or_else(|| args.get(NAME).filter(|value| !value.is_empty()));
    let Some(text) = said.map(str::to_owned) else { return Ok(options.source_date_epoch) };
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(seconds) = text.parse() {
        return Ok(Some(seconds));
    }
    let time = named(ast, args, options, &text)?;
    let value = time.map(|seconds: i64| seconds.to_string());
    args.replace(NAME, value.as_deref());
    if options.build_args.contains_key(NAME) {
        match value {
            Some(value) => drop(options.build_args.insert(NAME.to_owned(), value)),
            None => drop(options.build_args.remove(NAME)),
        }
    }
    Ok(time)
}

fn named(ast: &Dockerfile, args: &GlobalArgs, options: &Options, name: &str) -> Found {
    if name == CONTEXT || options.named_contexts.contains_key(&name.to_lowercase()) {
        return Ok(options.context_times.get(&name.to_lowercase()).copied());
    }
    let stages = || {
        ast.instructions.iter().enumerate().filter_map(|(at, instruction)| match &instruction.kind {
            Kind::From(from) => Some((at, instruction, from)),
            _ => None,
        })
    };
    let found = stages().find(|(_, _, from)| name_of(from).is_some_and(|own| own.eq_ignore_ascii_case(name)));
    let Some((at, instruction, from)) = found else {
        let message = format!("invalid SOURCE_DATE_EPOCH: {name}");
        let names = stages().filter_map(|(_, _, from)| name_of(from)).chain([CONTEXT]);
        let near = suggest::nearest(name, names);
        let finding = Diagnostic::error("invalid-epoch", Span::default(), message)
            .note("it is a number of seconds since 1970, context, the name of a context, or that of a stage");
        return Err(Box::new(finding.suggest(near)));
    };
    let steps = ast.instructions.iter().skip(at + 1).take_while(|i| !matches!(i.kind, Kind::From(_)));
    download(ast, args, instruction, from, steps)?;
    let finding = Diagnostic::not_yet(instruction.source.span, "SOURCE_DATE_EPOCH of a stage");
    Err(Box::new(finding.help("give a number of seconds, or context")))
}

fn name_of(from: &From) -> Option<&str> {
    from.name.as_ref().map(|name| name.text.as_str())
}

/// Checks that a stage is a download and nothing else.
fn download<'a>(
    ast: &Dockerfile,
    args: &GlobalArgs,
    instruction: &Instruction,
    from: &From,
    steps: impl Iterator<Item = &'a Instruction>,
) -> Result<(), Box<Diagnostic>> {
    let error = |span, message: &str| Box::new(Diagnostic::error("invalid-epoch", span, message));
    let lexer = Lexer::new(ast.escape);
    let base = lexer.word(&from.image.text, args).map(|expansion| expansion.text);
    if base.as_deref() != Ok("scratch") {
        return Err(error(from.image.span, "SOURCE_DATE_EPOCH stage must use FROM scratch"));
    }
    let mut adds = 0;
    for step in steps {
        match &step.kind {
            Kind::Arg(_) => {}
            Kind::Add(copy) if is_remote(copy) => adds += 1,
            Kind::Add(copy) => {
                let span = copy.sources.first().map_or(step.source.span, |word| word.span);
                let message = "SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD";
                return Err(error(span, message));
            }
            _ => {
                let message = format!(
                    "SOURCE_DATE_EPOCH stage does not meet source-only requirements: unsupported {} instruction",
                    step.keyword.text
                );
                return Err(error(step.keyword.span, &message));
            }
        }
    }
    match adds {
        1 => Ok(()),
        _ => {
            let message = "SOURCE_DATE_EPOCH stage must contain exactly one remote ADD";
            Err(error(instruction.source.span, message))
        }
    }
}

fn is_remote(copy: &Copy) -> bool {
    match (copy.sources.as_slice(), copy.heredocs.is_empty()) {
        ([source], true) => {
            let text = &source.text;
            text.contains('$')
                || text.starts_with("http://")
                || text.starts_with("https://")
                || git::parse(text).is_some()
        }
        _ => false,
    }
}
