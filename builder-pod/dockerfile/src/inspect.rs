//! What a file offers: its targets, and what a build of one of them can be given. The same as BuildKit's
//! `frontend.targets` and `frontend.outline` answer.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::ast::{Kind, Word};
use crate::expand::Lexer;
use crate::lower::{self, Given};
use crate::parse::Parsed;
use crate::plan::{Base, From, GlobalArgs, Images, Plan, Stage, StageId};

/// A stage that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Its name; empty where it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// It is what is built where no target is named.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub default: bool,
    /// The comment above it that begins with its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// What it builds on, as written.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub base: String,
    /// Its `--platform`, as written.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub platform: String,
    /// First and last line of its `FROM`.
    #[serde(serialize_with = "location")]
    pub location: (u32, u32),
}

/// An argument that a build can be given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutlineArg {
    /// Name.
    pub name: String,
    /// The comment above it that begins with its name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The value that it has.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// Lines of the instruction.
    #[serde(serialize_with = "location")]
    pub location: (u32, u32),
}

/// A secret or an SSH agent that steps ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutlineInput {
    /// Its id.
    pub name: String,
    /// The step fails without it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    /// Lines of the instruction.
    #[serde(serialize_with = "location")]
    pub location: (u32, u32),
}

/// What a build of a target can be given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outline {
    /// The target.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What its comment says of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Arguments, in the order of the file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<OutlineArg>,
    /// Secrets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<OutlineInput>,
    /// SSH agents.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh: Vec<OutlineInput>,
}

/// Lines as BuildKit's messages have them.
fn location<S: serde::Serializer>(lines: &(u32, u32), serializer: S) -> Result<S::Ok, S::Error> {
    let (first, last) = lines;
    serde_json::json!({"ranges": [{"start": {"line": first}, "end": {"line": last}}]}).serialize(serializer)
}

/// What a comment says of `name`.
fn description(comments: &[Word], name: &str) -> String {
    let of = |comment: &Word| comment.text.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
    if name.is_empty() { String::new() } else { comments.iter().find_map(of).unwrap_or_default() }
}

/// The stages of a file, in its order.
pub fn targets(parsed: &Parsed) -> Vec<Target> {
    let mut out: Vec<Target> = Vec::new();
    for instruction in &parsed.ast.instructions {
        let Kind::From(from) = &instruction.kind else { continue };
        let name = from.name.as_ref().map_or_else(String::new, |name| name.text.clone());
        out.push(Target {
            description: description(&instruction.comments, &name),
            name,
            default: false,
            base: from.image.text.clone(),
            platform: from.platform.as_ref().map_or_else(String::new, |word| word.text.clone()),
            location: instruction.lines,
        });
    }
    if let Some(last) = out.last_mut() {
        last.default = true;
    }
    out
}

/// Targets as a table for people.
pub fn targets_text(targets: &[Target]) -> String {
    let name = |target: &Target| match (target.name.as_str(), target.default) {
        ("", true) => "(default)".to_owned(),
        (name, true) => format!("{name} (default)"),
        (name, false) => name.to_owned(),
    };
    let mut rows = vec![["TARGET".to_owned(), "DESCRIPTION".to_owned()]];
    rows.extend(targets.iter().map(|target| [name(target), target.description.clone()]));
    table(&rows, 1)
}

/// Columns as wide as their widest cell, and so many spaces between them.
pub(crate) fn table<const N: usize>(rows: &[[String; N]], gap: usize) -> String {
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0) + gap;
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (at, cell) in row.iter().enumerate() {
            match at + 1 == N {
                true => out.push_str(cell),
                false => out.push_str(&format!("{cell:width$}", width = widths[at])),
            }
        }
        out.push('\n');
    }
    out
}

impl Outline {
    /// The outline as tables for people.
    pub fn to_text(&self) -> String {
        let mut parts = Vec::new();
        if !self.name.is_empty() || !self.description.is_empty() {
            let name = if self.name.is_empty() { "(default)" } else { &self.name };
            let mut rows = vec![["TARGET:".to_owned(), name.to_owned()]];
            if !self.description.is_empty() {
                rows.push(["DESCRIPTION:".to_owned(), self.description.clone()]);
            }
            parts.push(table(&rows, 1));
        }
        if !self.args.is_empty() {
            let mut rows = vec![["BUILD ARG", "VALUE", "DESCRIPTION"].map(str::to_owned)];
            let row = |arg: &OutlineArg| [arg.name.clone(), arg.value.clone(), arg.description.clone()];
            rows.extend(self.args.iter().map(row));
            parts.push(table(&rows, 3));
        }
        for (title, inputs) in [("SECRET", &self.secrets), ("SSH", &self.ssh)] {
            if inputs.is_empty() {
                continue;
            }
            let mut rows = vec![[title.to_owned(), "REQUIRED".to_owned()]];
            let required = |input: &OutlineInput| if input.required { "true" } else { "" }.to_owned();
            rows.extend(inputs.iter().map(|input| [input.name.clone(), required(input)]));
            parts.push(table(&rows, 3));
        }
        parts.iter().map(|part| format!("{part}\n")).collect()
    }
}

impl Plan {
    /// What a build of the target can be given. Configs of base images that are not in `images` count as empty.
    pub fn outline(&self, images: &Images) -> Outline {
        let Given { args, secrets, ssh } = lower::given(self, images);
        let mut out = Outline {
            name: String::new(),
            description: String::new(),
            args: Vec::new(),
            secrets: inputs(secrets),
            ssh: inputs(ssh),
        };
        let Some(target) = self.stages.list.get(self.stages.target) else { return out };
        out.name = target.name.clone().unwrap_or_default();
        out.description = description(&target.from.comments, &out.name);
        let mut seen = BTreeSet::new();
        for id in self.needed_in_order() {
            let Some(stage) = self.stages.list.get(id) else { continue };
            let values = args.get(id).map_or(&[][..], Vec::as_slice);
            self.args_of(stage, values, &mut seen, &mut out.args);
        }
        out.args.sort_by_key(|arg| arg.location);
        out
    }

    /// The target, what it builds on, what it copies from, and so on.
    fn needed_in_order(&self) -> Vec<StageId> {
        let (mut open, mut out) = (vec![self.stages.target], Vec::new());
        while let Some(id) = open.pop() {
            let Some(stage) = self.stages.list.get(id).filter(|_| !out.contains(&id)) else { continue };
            out.push(id);
            let copied = stage.steps.iter().flat_map(|step| &step.from).filter_map(|from| match from {
                From::Stage(id, _) => Some(*id),
                _ => None,
            });
            open.extend(copied);
            if let Base::Stage(base) = stage.base {
                open.push(base);
            }
        }
        out
    }

    fn args_of(
        &self,
        stage: &Stage,
        values: &[(String, Option<String>)],
        seen: &mut BTreeSet<String>,
        out: &mut Vec<OutlineArg>,
    ) {
        for name in self.names_in_from(stage) {
            self.global_arg(&name, seen, out);
        }
        for step in stage.steps.iter().filter(|step| !step.trigger) {
            let Kind::Arg(list) = &step.instruction.kind else { continue };
            for arg in list {
                let name = &arg.name.text;
                let given = self.options.build_args.contains_key(name);
                if arg.default.is_none() && !given && self.global_names.contains(name) {
                    self.global_arg(name, seen, out);
                    continue;
                }
                // What the platform decides is not asked for.
                let platform = name.starts_with("TARGET") || name.starts_with("BUILD");
                let own =
                    arg.default.is_none() && !given && platform && self.args.names().contains(&name.as_str());
                if own || !seen.insert(name.clone()) {
                    continue;
                }
                let value = values.iter().rev().find(|(known, _)| known == name).and_then(|(_, v)| v.clone());
                out.push(OutlineArg {
                    name: name.clone(),
                    description: description(&step.instruction.comments, name),
                    value: value.unwrap_or_default(),
                    location: step.instruction.lines,
                });
            }
        }
    }

    /// Names of arguments that a `FROM` uses.
    fn names_in_from(&self, stage: &Stage) -> Vec<String> {
        let Kind::From(from) = &stage.from.kind else { return Vec::new() };
        let words = [Some(&from.image), from.platform.as_ref()];
        words.into_iter().flatten().flat_map(|word| self.names_in(word)).collect()
    }

    fn names_in(&self, word: &Word) -> Vec<String> {
        let found = Lexer::new(self.escape).word(&word.text, &self.args);
        found.map(|expansion| expansion.matched.into_iter().collect()).unwrap_or_default()
    }

    /// An argument from before the first `FROM`, and those that its default uses.
    fn global_arg(&self, name: &str, seen: &mut BTreeSet<String>, out: &mut Vec<OutlineArg>) {
        let mut open = vec![name.to_owned()];
        while let Some(name) = open.pop() {
            let Some((lines, comments, default)) =
                self.global_decls.iter().rev().find_map(|decl| {
                    (decl.name == name).then_some((decl.lines, &decl.comments, &decl.default))
                })
            else {
                continue;
            };
            if !seen.insert(name.clone()) {
                continue;
            }
            open.extend(default.iter().flat_map(|word| self.names_in(word)));
            out.push(OutlineArg {
                description: description(comments, &name),
                value: value(&self.args, &name),
                name,
                location: lines,
            });
        }
    }
}

fn value(args: &GlobalArgs, name: &str) -> String {
    crate::expand::Lookup::get(args, name).unwrap_or_default().to_owned()
}

/// Each once; it is required where one step requires it.
fn inputs(found: Vec<(String, bool, (u32, u32))>) -> Vec<OutlineInput> {
    let mut out: Vec<OutlineInput> = Vec::new();
    for (name, required, location) in found {
        match out.iter_mut().find(|known| known.name == name) {
            Some(known) => known.required |= required,
            None => out.push(OutlineInput { name, required, location }),
        }
    }
    out.sort_by_key(|input| input.location);
    out
}
