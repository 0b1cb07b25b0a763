//! BuildKit's rules that look at the file alone.

use std::collections::BTreeSet;

use lapstrake_oci::Reference;

use crate::ast::{Dockerfile, From, Instruction, Kind};
use crate::diagnostic::{Diagnostic, Edit};
use crate::expand::{Expansion, Lexer, Lookup as _};
use crate::lint::{Control, Findings};
use crate::options::Options;
use crate::parse::Parsed;
use crate::plan::{GlobalArgs, global_args};
use crate::source::Span;
use crate::suggest;

/// Names of stages that mean something else.
const RESERVED: [&str; 2] = ["context", "scratch"];

/// Looks at the file.
pub(crate) fn check(parsed: &Parsed, options: &Options, control: &Control, args: &GlobalArgs) -> Findings {
    let mut findings = Findings::default();
    let ast = &parsed.ast;
    for instruction in &ast.instructions {
        let control = control.merged(&instruction.comments);
        one(parsed, instruction, &control, &mut findings);
    }
    stage_names(ast, control, &mut findings);
    casing(ast, control, &mut findings);
    default_args(ast, options, control, &mut findings);
    let mut known: BTreeSet<&str> = args.names().into_iter().collect();
    for other in ast.instructions.iter().take_while(|i| !matches!(i.kind, Kind::From(_))) {
        if let Kind::Arg(list) = &other.kind {
            known.extend(list.iter().map(|arg| arg.name.text.as_str()));
        }
    }
    for (instruction, from) in stages(ast) {
        let control = control.merged(&instruction.comments);
        base(instruction, from, &Scope { escape: ast.escape, args, known: &known }, &control, &mut findings);
    }
    findings
}

/// What a `FROM` sees.
struct Scope<'a> {
    escape: char,
    args: &'a GlobalArgs,
    /// Names that are declared, with a value or without.
    known: &'a BTreeSet<&'a str>,
}

fn stages(ast: &Dockerfile) -> impl Iterator<Item = (&Instruction, &From)> {
    ast.instructions.iter().filter_map(|instruction| match &instruction.kind {
        Kind::From(from) => Some((instruction, from)),
        _ => None,
    })
}

fn one(parsed: &Parsed, instruction: &Instruction, control: &Control, findings: &mut Findings) {
    let keyword = &instruction.keyword.text;
    match &instruction.kind {
        Kind::Maintainer(_) => {
            let message = "Maintainer instruction is deprecated in favor of using label";
            findings.at(control, "MaintainerDeprecated", instruction, message);
        }
        Kind::From(from) => {
            let Some(name) = &from.name else { return };
            let written = parsed.source().slice(name.span);
            if written.to_lowercase() != written {
                let message = format!("Stage name '{written}' should be lowercase");
                let found = findings.push(control, "StageNameCasing", instruction.lines, name.span, message);
                mend(found, name.span, written.to_lowercase());
            }
            let words: Vec<&str> = instruction.source.text.split_whitespace().collect();
            if let [.., word, _] = words.as_slice()
                && !same_case(keyword, word)
            {
                let message = format!("'{word}' and '{keyword}' keywords' casing do not match");
                let found = findings.at(control, "FromAsCasing", instruction, message);
                if let Some(span) = as_word(parsed, instruction, from, word) {
                    let lower = *keyword == keyword.to_lowercase();
                    mend(found, span, if lower { "as" } else { "AS" }.to_owned());
                }
            }
            description(instruction, "FROM", &[&name.text], control, findings);
        }
        Kind::Arg(list) => {
            let names: Vec<&str> = list.iter().map(|arg| arg.name.text.as_str()).collect();
            description(instruction, "ARG", &names, control, findings);
        }
        _ => {}
    }
}

/// Where the word between image and name stands.
fn as_word(parsed: &Parsed, instruction: &Instruction, from: &From, word: &str) -> Option<Span> {
    let name = from.name.as_ref()?;
    let between = Span::new(from.image.span.end, name.span.start);
    let at = parsed.source().slice(between).find(word)? + between.start;
    (instruction.lines.0 == instruction.lines.1).then(|| Span::new(at, at + word.len()))
}

fn mend(found: Option<&mut Diagnostic>, span: Span, text: String) {
    if let Some(found) = found {
        found.fix = vec![Edit { span, text }];
    }
}

/// Whether a word is written as the keyword is; a keyword in both cases says nothing.
fn same_case(keyword: &str, word: &str) -> bool {
    if keyword == keyword.to_lowercase() {
        word == word.to_lowercase()
    } else {
        keyword != keyword.to_uppercase() || word == word.to_uppercase()
    }
}

fn description(
    instruction: &Instruction,
    keyword: &str,
    names: &[&str],
    control: &Control,
    findings: &mut Findings,
) {
    let (Some(comment), Some(first)) = (instruction.comments.last(), names.first()) else { return };
    if names.contains(&comment.text.split(' ').next().unwrap_or("")) {
        return;
    }
    let name = if names.len() > 1 { "<arg_key>" } else { first };
    let message = format!("Comment for {keyword} should follow the format: `# {name} <description>`");
    findings.push(control, "InvalidDefinitionDescription", instruction.lines, comment.span, message);
}

fn stage_names(ast: &Dockerfile, control: &Control, findings: &mut Findings) {
    let mut seen = BTreeSet::new();
    for (instruction, from) in stages(ast) {
        let Some(name) = &from.name else { continue };
        if RESERVED.contains(&name.text.as_str()) {
            let message =
                format!("Stage name should not use the same name as reserved stage {:?}", name.text);
            findings.push(control, "ReservedStageName", instruction.lines, name.span, message);
        }
        if !seen.insert(&name.text) {
            let message = format!("Duplicate stage name {:?}, stage names should be unique", name.text);
            findings.push(control, "DuplicateStageName", instruction.lines, name.span, message);
        }
    }
}

fn casing(ast: &Dockerfile, control: &Control, findings: &mut Findings) {
    let in_stages = || ast.instructions.iter().skip_while(|i| !matches!(i.kind, Kind::From(_)));
    let is = |instruction: &Instruction, case: fn(&str) -> String| {
        case(&instruction.keyword.text) == instruction.keyword.text
    };
    let lower = in_stages().filter(|i| is(i, |text| text.to_lowercase())).count();
    let upper = in_stages().filter(|i| is(i, |text| text.to_uppercase())).count();
    let (case, majority): (fn(&str) -> String, _) = match lower > upper {
        true => (|text| text.to_lowercase(), "lowercase"),
        false => (|text| text.to_uppercase(), "uppercase"),
    };
    for instruction in in_stages().filter(|i| !is(i, case)) {
        let keyword = &instruction.keyword;
        let message =
            format!("Command '{}' should match the case of the command majority ({majority})", keyword.text);
        let found =
            findings.push(control, "ConsistentInstructionCasing", instruction.lines, keyword.span, message);
        if let Some(found) = found {
            found.help = Some(format!("write {}", case(&keyword.text)));
            mend(Some(found), keyword.span, case(&keyword.text));
        }
    }
}

/// Names of base images where no build argument is given.
fn default_args(ast: &Dockerfile, options: &Options, control: &Control, findings: &mut Findings) {
    let platform = |name: &String| name.starts_with("TARGET") || name.starts_with("BUILD");
    let given = options.build_args.iter().filter(|(name, _)| platform(name));
    let given = given.map(|(name, value)| (name.clone(), value.clone())).collect();
    let (args, errors) = global_args(ast, &Options { build_args: given, ..options.clone() });
    if !errors.is_empty() {
        return;
    }
    for (instruction, from) in stages(ast) {
        let Ok(name) = Lexer::new(ast.escape).word(&from.image.text, &args) else { return };
        if name.text.parse::<Reference>().is_err() {
            let message = format!(
                "Default value for ARG {} results in empty or invalid base image name",
                from.image.text
            );
            findings.push(control, "InvalidDefaultArgInFrom", instruction.lines, from.image.span, message);
        }
    }
}

fn base(
    instruction: &Instruction,
    from: &From,
    scope: &Scope<'_>,
    control: &Control,
    findings: &mut Findings,
) {
    let Scope { escape, args, known } = *scope;
    let lexer = Lexer::new(escape);
    if findings.is_full() {
        return;
    }
    let mut undeclared = |expansion: &Expansion, span| {
        for name in expansion.unset.iter().filter(|name| !known.contains(name.as_str())) {
            let mut message = format!("FROM argument '{name}' is not declared");
            let near = suggest::within_two(name, known.iter().copied());
            if let Some(near) = near {
                message.push_str(&format!(" (did you mean {near}?)"));
            }
            let found = findings.push(control, "UndefinedArgInFrom", instruction.lines, span, message);
            if let (Some(found), Some(_)) = (found, near) {
                found.help = None;
            }
        }
    };
    if let Ok(expansion) = lexer.word(&from.image.text, args) {
        undeclared(&expansion, from.image.span);
    }
    let Some(platform) = &from.platform else { return };
    let Ok(expansion) = lexer.word(&platform.text, args) else { return };
    undeclared(&expansion, platform.span);
    let only_target = expansion.unset.is_empty()
        && expansion.matched.len() == 1
        && expansion.matched.contains("TARGETPLATFORM");
    if only_target && args.get("TARGETPLATFORM") == Some(expansion.text.as_str()) {
        let message = format!(
            "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
            platform.text
        );
        let found =
            findings.push(control, "RedundantTargetPlatform", instruction.lines, platform.span, message);
        // The flag with the blank behind it.
        let flag = instruction.source.span.start + instruction.keyword.text.len() + 1;
        let whole = Span::new(platform.span.start.saturating_sub("--platform=".len()), platform.span.end + 1);
        if whole.start >= flag {
            mend(found, whole, String::new());
        }
    }
    if expansion.unset.is_empty()
        && expansion.matched.is_empty()
        && let Ok(named) = expansion.text.parse::<lapstrake_oci::Platform>()
    {
        let name = from.name.as_ref().map_or("", |name| name.text.as_str());
        if !name.contains(&named.os) && !name.contains(&named.architecture) {
            let message = format!("FROM --platform flag should not use constant value {:?}", expansion.text);
            findings.push(
                control,
                "FromPlatformFlagConstDisallowed",
                instruction.lines,
                platform.span,
                message,
            );
        }
    }
}
