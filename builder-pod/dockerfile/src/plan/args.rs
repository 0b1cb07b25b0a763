//! The global scope: platform arguments and `ARG` before the first `FROM`.

use std::collections::{BTreeSet, HashMap};

use lapstrake_oci::Platform;

use crate::ast::{Dockerfile, Kind, Word};
use crate::diagnostic::Diagnostic;
use crate::expand::{Lexer, Lookup};
use crate::limits::GLOBAL_BYTES_MAX;
use crate::options::Options;
use crate::plan::stages::Stages;
use crate::source::Span;

/// Arguments that no `ARG` needs to declare (1.7 of the language's reference).
const PREDEFINED: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// Arguments of the global scope.
#[derive(Debug, Clone, Default)]
pub(crate) struct GlobalArgs {
    values: HashMap<String, String>,
}

impl GlobalArgs {
    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.values.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Gives an argument that is set another value, or none.
    pub(super) fn replace(&mut self, name: &str, value: Option<&str>) {
        match value {
            None => drop(self.values.remove(name)),
            Some(value) => {
                if let Some(known) = self.values.get_mut(name) {
                    value.clone_into(known);
                }
            }
        }
    }
}

impl Lookup for GlobalArgs {
    fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }
}

/// The value that the caller gives for an argument.
pub(crate) fn build_arg<'a>(options: &'a Options, name: &str) -> Option<&'a str> {
    options.build_args.get(name).map(String::as_str)
}

/// Evaluates the global scope.
pub(crate) fn global(ast: &Dockerfile, options: &Options) -> (GlobalArgs, Vec<Diagnostic>) {
    let mut args = GlobalArgs { values: platform_args(ast, options) };
    let mut findings = Vec::new();
    let lexer = Lexer::new(ast.escape);
    let mut bytes = 0;
    for instruction in &ast.instructions {
        let list = match &instruction.kind {
            Kind::From(_) => break,
            Kind::Arg(list) => list,
            _ => continue,
        };
        for arg in list {
            let name = &arg.name.text;
            let value = match (build_arg(options, name), &arg.default) {
                (Some(value), _) => value.to_owned(),
                (None, None) => continue,
                (None, Some(default)) => match lexer.word(&default.text, &args) {
                    Ok(expansion) => expansion.text,
                    Err(error) => {
                        findings.push(Diagnostic::error("expansion", default.span, error.to_string()));
                        continue;
                    }
                },
            };
            bytes += value.len();
            args.values.insert(name.clone(), value);
            if bytes > GLOBAL_BYTES_MAX {
                let message = format!("global arguments are longer than {GLOBAL_BYTES_MAX} bytes together");
                findings.push(Diagnostic::error("too-large", arg.name.span, message));
                return (args, findings);
            }
        }
    }
    (args, findings)
}

fn platform_args(ast: &Dockerfile, options: &Options) -> HashMap<String, String> {
    let build = &options.build_platform;
    let target = options.target_platform.as_ref().unwrap_or(build);
    let last_name = ast.instructions.iter().rev().find_map(|i| match &i.kind {
        Kind::From(from) => Some(from.name.as_ref().map(|n| n.text.clone())),
        _ => None,
    });
    let stage = options.target.clone().filter(|t| !t.is_empty()).or(last_name.flatten());
    let mut values = HashMap::new();
    let mut set = |name: String, value: String| {
        let value = build_arg(options, &name).map_or(value, str::to_owned);
        values.insert(name, value);
    };
    for (prefix, platform) in [("BUILD", build), ("TARGET", target)] {
        let Platform { architecture, os, os_version, variant, .. } = platform;
        set(format!("{prefix}PLATFORM"), platform.to_string());
        set(format!("{prefix}OS"), os.clone());
        set(format!("{prefix}OSVERSION"), os_version.clone().unwrap_or_default());
        set(format!("{prefix}ARCH"), architecture.clone());
        set(format!("{prefix}VARIANT"), variant.clone().unwrap_or_default());
    }
    set("TARGETSTAGE".to_owned(), stage.unwrap_or_else(|| "default".to_owned()));
    values
}

/// An argument before the first stage.
#[derive(Debug, Clone)]
pub(crate) struct GlobalDecl {
    pub(crate) name: String,
    pub(crate) default: Option<Word>,
    pub(crate) lines: (u32, u32),
    pub(crate) comments: Vec<Word>,
}

/// The arguments that the file declares before its first stage.
pub(super) fn global_decls(ast: &Dockerfile) -> Vec<GlobalDecl> {
    let before = ast.instructions.iter().take_while(|i| !matches!(i.kind, Kind::From(_)));
    let mut out = Vec::new();
    for instruction in before {
        let Kind::Arg(list) = &instruction.kind else { continue };
        out.extend(list.iter().map(|arg| GlobalDecl {
            name: arg.name.text.clone(),
            default: arg.default.clone(),
            lines: instruction.lines,
            comments: instruction.comments.clone(),
        }));
    }
    out
}

/// The names that the file declares, in triggers too.
pub(super) fn declared(ast: &Dockerfile) -> BTreeSet<String> {
    let mut declared: BTreeSet<String> = PREDEFINED.into_iter().map(str::to_owned).collect();
    for instruction in &ast.instructions {
        let mut kind = &instruction.kind;
        if let Kind::Onbuild(onbuild) = kind {
            kind = &onbuild.trigger.kind;
        }
        if let Kind::Arg(list) = kind {
            declared.extend(list.iter().map(|arg| arg.name.text.clone()));
        }
    }
    declared
}

/// Build args that neither the file nor a trigger of a base image declares.
pub(crate) fn unused(declared: &BTreeSet<String>, stages: &Stages, options: &Options) -> Option<Diagnostic> {
    let mut declared: BTreeSet<&str> = declared.iter().map(String::as_str).collect();
    for step in stages.list.iter().flat_map(|stage| &stage.steps).filter(|step| step.trigger) {
        if let Kind::Arg(list) = &step.instruction.kind {
            declared.extend(list.iter().map(|arg| arg.name.text.as_str()));
        }
    }
    let special = |name: &str| {
        name == "SOURCE_DATE_EPOCH"
            || name.starts_with("BUILDKIT_")
            || name.starts_with("BUILD") && platform_name(&name[5..])
            || name.starts_with("TARGET") && platform_name(&name[6..])
    };
    let unused: Vec<_> = options
        .build_args
        .keys()
        .filter(|name| !declared.contains(name.as_str()) && !special(name))
        .map(String::as_str)
        .collect();
    if unused.is_empty() {
        return None;
    }
    let message = format!("build args [{}] were not consumed", unused.join(" "));
    let near = unused.iter().find_map(|name| crate::suggest::nearest(name, declared.iter().copied()));
    let finding = Diagnostic::warning("unused-build-arg", Span::default(), message)
        .note("no ARG in the file declares them");
    Some(finding.suggest(near))
}

fn platform_name(rest: &str) -> bool {
    matches!(rest, "PLATFORM" | "OS" | "OSVERSION" | "ARCH" | "VARIANT" | "STAGE")
}
