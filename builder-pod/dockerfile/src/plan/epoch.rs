//! `SOURCE_DATE_EPOCH`: a number, or what has a time: the context, a named context, a stage that is nothing but a
//! download.

use lapstrake_llb::pb;

use crate::ast::{Copy, Dockerfile, From, Instruction, Kind, Word};
use crate::diagnostic::Diagnostic;
use crate::expand::{Lexer, Lookup as _};
use crate::git;
use crate::lower::{self, Env};
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
    let Some(text) = said(args, options).map(str::to_owned) else { return Ok(options.source_date_epoch) };
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

/// What is said of it, by an argument of the build or of the file.
fn said<'a>(args: &'a GlobalArgs, options: &'a Options) -> Option<&'a str> {
    build_arg(options, NAME).or_else(|| args.get(NAME).filter(|value| !value.is_empty()))
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
    Ok(options.context_times.get(&name.to_lowercase()).copied())
}

/// The stage that `SOURCE_DATE_EPOCH` names, and the operation that brings what is in it.
pub(super) fn source(
    ast: &Dockerfile,
    args: &GlobalArgs,
    options: &Options,
) -> Result<Option<(String, pb::SourceOp)>, Box<Diagnostic>> {
    let Some(name) = said(args, options).filter(|text| text.parse::<i64>().is_err()) else { return Ok(None) };
    let key = name.to_lowercase();
    if name.is_empty() || name == CONTEXT || options.named_contexts.contains_key(&key) {
        return Ok(None);
    }
    let begins = |instruction: &Instruction| matches!(&instruction.kind, Kind::From(from) if name_of(from).is_some_and(|own| own.eq_ignore_ascii_case(name)));
    let Some(at) = ast.instructions.iter().position(begins) else { return Ok(None) };
    let lexer = Lexer::new(ast.escape);
    let mut env = Env::default();
    for global in args.names().into_iter().filter(|global| *global != NAME) {
        env.set(global, args.get(global).unwrap_or_default());
    }
    for step in ast.instructions.iter().skip(at + 1).take_while(|i| !matches!(i.kind, Kind::From(_))) {
        match &step.kind {
            Kind::Arg(list) => {
                for arg in list {
                    let value = match (build_arg(options, &arg.name.text), &arg.default) {
                        (Some(value), _) => value.to_owned(),
                        (None, Some(default)) => expanded(&lexer, &env, default)?.text,
                        (None, None) => continue,
                    };
                    env.set(&arg.name.text, &value);
                }
            }
            Kind::Add(copy) => return operation(&lexer, &env, copy).map(|op| Some((key, op))),
            // What is wrong with it is told by the plan.
            _ => return Ok(None),
        }
    }
    Ok(None)
}

fn expanded(lexer: &Lexer, env: &Env, word: &Word) -> Result<Word, Box<Diagnostic>> {
    let expansion = lexer
        .word(&word.text, env)
        .map_err(|error| Box::new(Diagnostic::error("expansion", word.span, error.to_string())))?;
    Ok(Word { text: expansion.text, span: word.span })
}

/// The operation of an `ADD` from elsewhere.
fn operation(lexer: &Lexer, env: &Env, copy: &Copy) -> Result<pb::SourceOp, Box<Diagnostic>> {
    let error = |span, message: &str| Box::new(Diagnostic::error("invalid-epoch", span, message));
    let message = "SOURCE_DATE_EPOCH stage source must be a single HTTP(S) or Git ADD";
    let Some(word) = copy.sources.first() else { return Err(error(Span::default(), message)) };
    let word = expanded(lexer, env, word)?;
    let checksum = copy.checksum.as_ref().map(|word| expanded(lexer, env, word)).transpose()?;
    let checksum = checksum.map(|word| word.text).filter(|text| !text.is_empty());
    let (identifier, attrs) = match git::parse(&word.text) {
        Some(Ok(found)) => {
            let keep = copy.keep_git_dir == Some(true) || found.keep_git_dir == Some(true);
            let checksum = checksum.or_else(|| found.checksum.clone());
            found.source(keep, checksum.as_deref())
        }
        Some(Err(why)) => return Err(error(word.span, &why)),
        None if lower::is_http(&word.text) => {
            let mut attrs = std::collections::BTreeMap::new();
            attrs.extend(checksum.map(|checksum| ("http.checksum".to_owned(), checksum)));
            attrs.insert("http.filename".to_owned(), lower::http_name(&word.text));
            (word.text, attrs)
        }
        None => return Err(error(word.span, message)),
    };
    Ok(pb::SourceOp { identifier, attrs })
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
