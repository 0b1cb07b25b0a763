//! Our own rules: what experienced reviewers point out.

use std::collections::HashSet;

use crate::ast::{Copy, Instruction, Kind, Run, Word};
use crate::expand::{Lexer, Lookup as _};
use crate::lint::apt;
use crate::lint::shell::{self, Words};
use crate::lint::{Control, Findings};
use crate::lower::State;
use crate::lower::mount_fields;
use crate::plan::{Base, Plan, Stage, StageId, Stages};
use crate::source::{Source, Span};

/// How many steps of stages below one are looked at.
const CHAIN_MAX: usize = 200;
/// A context larger than this should have an ignore file, bytes.
const LARGE_CONTEXT_BYTES: u64 = 100 << 20;
/// Endings of what `ADD` unpacks.
const ARCHIVES: [&str; 12] =
    [".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tzst", ".tar.gz", ".gz", ".bz2", ".xz", ".zst", ".lzma"];
/// Names of files that hold secrets.
const SECRET_FILES: [&str; 14] = [
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    ".npmrc",
    ".pypirc",
    ".netrc",
    ".env",
    ".git-credentials",
    ".aws",
    ".ssh",
    ".kube",
    ".docker",
    "kubeconfig",
];
/// Commands that install what a file of the context names.
const INSTALLS: [&[&str]; 15] = [
    &["npm", "ci"],
    &["npm", "install"],
    &["npm", "i"],
    &["yarn", "install"],
    &["pnpm", "install"],
    &["pip", "install"],
    &["pip3", "install"],
    &["poetry", "install"],
    &["uv", "sync"],
    &["go", "mod", "download"],
    &["bundle", "install"],
    &["composer", "install"],
    &["cargo", "fetch"],
    &["mix", "deps.get"],
    &["dotnet", "restore"],
];

/// A `RUN` as rules look at it.
pub(super) struct Step<'a> {
    pub(super) source: &'a Source,
    pub(super) control: &'a Control,
    pub(super) instruction: &'a Instruction,
    pub(super) run: &'a Run,
    /// What the shell is given; empty for other programs.
    pub(super) script: String,
    pub(super) commands: Vec<(Words, String)>,
    /// Targets of its cache mounts, and of others.
    pub(super) caches: Vec<String>,
    pub(super) mounts: Vec<String>,
}

impl<'a> Step<'a> {
    fn new(source: &'a Source, control: &'a Control, instruction: &'a Instruction, run: &'a Run) -> Self {
        let script = script(run);
        let (mut caches, mut mounts) = (Vec::new(), Vec::new());
        for mount in &run.mounts {
            let fields = mount_fields(mount).unwrap_or_default();
            let value = |keys: &[&str]| {
                let found = fields.iter().find(|field| keys.contains(&field.key.as_str()));
                found.and_then(|field| field.value.as_ref()).map(|word| word.text.clone())
            };
            let Some(target) = value(&["target", "dst", "destination"]) else { continue };
            match value(&["type"]).as_deref() {
                Some("cache") => caches.push(target),
                _ => mounts.push(target),
            }
        }
        let commands = shell::commands(&script);
        Self { source, control, instruction, run, script, commands, caches, mounts }
    }

    /// Where a text stands in the instruction; all of it where it is not found.
    pub(super) fn find(&self, text: &str) -> Span {
        find(self.source, self.instruction, text)
    }

    /// Whether a directory, or one that it lies in, is a mount.
    pub(super) fn is_mounted(&self, dir: &str) -> bool {
        self.caches.iter().chain(&self.mounts).any(|mount| lies_in(dir, mount))
    }
}

/// Whether a path is a directory or lies in it.
pub(super) fn lies_in(path: &str, dir: &str) -> bool {
    let (path, dir) = (path.trim_end_matches('/'), dir.trim_end_matches('/'));
    path == dir || path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

fn find(source: &Source, instruction: &Instruction, text: &str) -> Span {
    let all = instruction.source.span;
    match source.slice(all).find(text) {
        Some(at) if !text.is_empty() => Span::new(all.start + at, all.start + at + text.len()),
        _ => all,
    }
}

/// What a `RUN` gives its shell.
fn script(run: &Run) -> String {
    if run.command.exec {
        let words: Vec<&str> = run.command.args.iter().map(|word| word.text.as_str()).collect();
        return match words.as_slice() {
            [shell, "-c", script] if shell::program(shell).ends_with("sh") => (*script).to_owned(),
            _ => String::new(),
        };
    }
    let mut script = run.command.args.first().map_or("", |word| &word.text).to_owned();
    if script.starts_with("<<") {
        script.clear();
    }
    for heredoc in &run.heredocs {
        script.push('\n');
        script.push_str(&heredoc.body);
    }
    script
}

/// Looks at all stages that count.
pub(crate) fn check(plan: &Plan, stages: &Stages, states: &[Option<State>]) -> Findings {
    let mut findings = Findings::default();
    let (result, needed) = (result_stages(stages), needed(stages));
    for (id, stage) in stages.list.iter().enumerate() {
        if !stages.reachable.get(id).copied().unwrap_or(false) {
            continue;
        }
        if findings.is_full() {
            break;
        }
        let look = Look { plan, stages, stage, in_result: result.get(id).copied().unwrap_or(false) };
        look.base(&mut findings);
        look.steps(&mut findings);
        if id == stages.target {
            look.root(states.get(id).and_then(Option::as_ref), &mut findings);
        }
        if !needed.get(id).copied().unwrap_or(true) {
            let control = plan.control.merged(&stage.from.comments);
            let message = "No stage needs this one, and it is not the last";
            findings.at(&control, "UnusedStage", &stage.from, message);
        }
    }
    findings
}

/// The target and what it builds on: the stages whose layers are in the image.
fn result_stages(stages: &Stages) -> Vec<bool> {
    let mut out = vec![false; stages.list.len()];
    let mut at = Some(stages.target);
    while let Some(stage) =
        at.and_then(|id| stages.list.get(id).filter(|_| !std::mem::replace(&mut out[id], true)))
    {
        at = match &stage.base {
            Base::Stage(base) => Some(*base),
            _ => None,
        };
    }
    out
}

/// The target, and stages that any other builds on or copies from.
fn needed(stages: &Stages) -> Vec<bool> {
    let mut out = vec![false; stages.list.len()];
    let mut mark = |id: StageId| {
        if let Some(needed) = out.get_mut(id) {
            *needed = true;
        }
    };
    mark(stages.target);
    for stage in &stages.list {
        if let Base::Stage(base) = stage.base {
            mark(base);
        }
        for from in stage.steps.iter().flat_map(|step| &step.from) {
            if let crate::plan::From::Stage(id, _) = from {
                mark(*id);
            }
        }
    }
    out
}

struct Look<'a> {
    plan: &'a Plan,
    stages: &'a Stages,
    stage: &'a Stage,
    in_result: bool,
}

impl Look<'_> {
    fn base(&self, findings: &mut Findings) {
        let Base::Image(reference) = &self.stage.base else { return };
        let (from, span) = (&self.stage.from, self.stage.image.span);
        let control = self.plan.control.merged(&from.comments);
        if reference.digest().is_some() {
            return;
        }
        let name = &self.stage.image.text;
        findings.push(
            &control,
            "UnpinnedBaseImage",
            from.lines,
            span,
            format!("Base image {name} is not named by its digest"),
        );
        if reference.tag().is_none_or(|tag| tag == "latest") {
            let message = format!("Base image {name} has no version");
            findings.push(&control, "LatestBaseImage", from.lines, span, message);
        }
    }

    fn root(&self, state: Option<&State>, findings: &mut Findings) {
        let Some(state) = state.filter(|state| !state.open || !state.user.is_empty()) else {
            let user = self.stage.steps.iter().any(|step| matches!(step.instruction.kind, Kind::User(_)));
            if !user {
                self.tell_root(findings);
            }
            return;
        };
        let user = state.image.config.user.split(':').next().unwrap_or("");
        if matches!(user, "" | "root" | "0") {
            self.tell_root(findings);
        }
    }

    fn tell_root(&self, findings: &mut Findings) {
        let control = self.plan.control.merged(&self.stage.from.comments);
        let last = self.stage.steps.iter().rev().find(|step| !step.trigger);
        let last = last.map_or(&self.stage.from, |step| &step.instruction);
        findings.at(&control, "RootUser", last, "The image runs as root");
    }

    fn steps(&self, findings: &mut Findings) {
        let mut whole: Option<&Instruction> = None;
        let mut copied: HashSet<String> = HashSet::new();
        let mut shell_of_text: Option<&Instruction> = None;
        let mut pipefail = false;
        let mut known: HashSet<&str> = HashSet::new();
        for step in self.stage.steps.iter().filter(|step| !step.trigger) {
            let instruction = &step.instruction;
            let control = self.plan.control.merged(&instruction.comments);
            match &instruction.kind {
                Kind::Arg(list) => known.extend(list.iter().map(|arg| arg.name.text.as_str())),
                Kind::Env(pairs) => known.extend(pairs.iter().map(|pair| pair.key.text.as_str())),
                Kind::Shell(words) => pipefail = words.iter().any(|word| word.text.contains("pipefail")),
                Kind::Entrypoint(command) => {
                    shell_of_text = (!command.exec && !command.args.is_empty()).then_some(instruction);
                }
                Kind::Cmd(_) => self.hidden(&control, instruction, shell_of_text, findings),
                Kind::Copy(copy) | Kind::Add(copy) => {
                    let add = matches!(instruction.kind, Kind::Add(_));
                    self.copies(&control, instruction, copy, add, findings);
                    if copy.from.is_none() && copy.sources.iter().any(is_whole) {
                        whole.get_or_insert(instruction);
                    }
                    copied.insert(copy.dest.text.trim_end_matches('/').to_owned());
                }
                Kind::Run(run) => {
                    let look = Step::new(&self.plan.source, &control, instruction, run);
                    apt::check(&look, self.in_result, findings);
                    effects(&look, findings);
                    if !pipefail {
                        pipes(&look, findings);
                    }
                    ownership(&look, &copied, findings);
                    self.global_args(&look, &known, findings);
                    if let Some(copy) = whole {
                        install(&look, copy, findings);
                    }
                }
                _ => {}
            }
        }
        self.entrypoint_after(shell_of_text, findings);
    }

    /// `CMD` after an `ENTRYPOINT` in shell form.
    fn hidden(
        &self,
        control: &Control,
        cmd: &Instruction,
        entrypoint: Option<&Instruction>,
        findings: &mut Findings,
    ) {
        let Some(entrypoint) = entrypoint else { return };
        let message = "CMD has no effect: the ENTRYPOINT of this stage is in shell form";
        if let Some(finding) = findings.at(control, "EntrypointHidesCmd", cmd, message) {
            let span = entrypoint.source.span;
            finding.also.push(crate::Label { span, text: "in shell form".to_owned() });
        }
    }

    /// `CMD` before an `ENTRYPOINT` in shell form.
    fn entrypoint_after(&self, entrypoint: Option<&Instruction>, findings: &mut Findings) {
        let Some(entrypoint) = entrypoint else { return };
        let before = self.stage.steps.iter().filter(|step| !step.trigger).map(|step| &step.instruction);
        let cmd = before
            .take_while(|instruction| instruction.source.span != entrypoint.source.span)
            .filter(|instruction| matches!(instruction.kind, Kind::Cmd(_)))
            .last();
        if let Some(cmd) = cmd {
            let control = self.plan.control.merged(&cmd.comments).into_owned();
            self.hidden(&control, cmd, Some(entrypoint), findings);
        }
    }

    fn copies(
        &self,
        control: &Control,
        instruction: &Instruction,
        copy: &Copy,
        add: bool,
        findings: &mut Findings,
    ) {
        let from_context = copy.from.is_none();
        for source in copy.sources.iter().filter(|_| from_context) {
            let name = source.text.trim_end_matches('/').rsplit('/').next().unwrap_or("");
            let example =
                [".example", ".sample", ".template", ".dist", ".pub"].iter().any(|end| name.ends_with(end));
            let is_key = name.ends_with(".key") || name.ends_with(".p12") || name.ends_with(".pfx");
            if !example && (is_key || SECRET_FILES.contains(&name)) {
                let message = format!("{name} usually holds a secret");
                findings.push(control, "SecretCopied", instruction.lines, source.span, message);
            }
        }
        let plain = |source: &Word| {
            let text = source.text.to_ascii_lowercase();
            !text.contains("://")
                && !text.contains(['$', '*', '?', '['])
                && crate::git::parse(&source.text).is_none()
                && !ARCHIVES.iter().any(|end| text.ends_with(end))
        };
        let unpack = copy.unpack.is_some() || copy.checksum.is_some() || copy.keep_git_dir.is_some();
        if add && !unpack && copy.sources.iter().all(plain) {
            let span = instruction.keyword.span;
            let message = "ADD does here what COPY does";
            findings.push(control, "AddWithoutNeed", instruction.lines, span, message);
        }
        let facts = self.plan.options.context_facts;
        let large = facts.filter(|facts| !facts.has_ignore_file && facts.bytes > LARGE_CONTEXT_BYTES);
        if let Some(facts) = large.filter(|_| from_context)
            && let Some(source) = copy.sources.iter().find(|source| is_whole(source))
        {
            let message = format!(
                "The context of {} MiB is copied, and there is no .dockerignore",
                facts.bytes.div_ceil(1 << 20)
            );
            findings.push(control, "LargeContextWithoutIgnore", instruction.lines, source.span, message);
        }
    }

    /// Arguments of the global scope that a script asks for.
    fn global_args(&self, step: &Step<'_>, known: &HashSet<&str>, findings: &mut Findings) {
        if self.plan.global_names.is_empty() || !step.script.contains('$') {
            return;
        }
        let Ok(asked) = Lexer::new('\\').word(&step.script, &()) else { return };
        let set_here = |name: &str| {
            [format!("{name}="), format!("read {name}"), format!("for {name} ")]
                .iter()
                .any(|text| step.script.contains(text.as_str()))
        };
        for name in
            asked.unset.iter().map(String::as_str).filter(|name| self.plan.global_names.contains(*name))
        {
            let has_value = self.plan.args.get(name).is_some_and(|value| !value.is_empty());
            if findings.is_full()
                || !has_value
                || known.contains(name)
                || self.inherited(name)
                || set_here(name)
            {
                continue;
            }
            let Some(span) = use_of(step, name) else { continue };
            let message =
                format!("${name} is empty here: the ARG before the first FROM is not declared in this stage");
            let (lines, control) = (step.instruction.lines, step.control);
            if let Some(finding) = findings.push(control, "GlobalArgNotInStage", lines, span, message) {
                finding.help = Some(format!("add ARG {name} to the stage, above this line"));
            }
        }
    }

    /// Whether a stage that this one builds on sets a variable.
    fn inherited(&self, name: &str) -> bool {
        let (mut at, mut left) = (&self.stage.base, CHAIN_MAX);
        while let Base::Stage(id) = at
            && let Some(stage) = self.stages.list.get(*id)
        {
            // A long way up is not worth it: then it may be set.
            left = left.saturating_sub(1 + stage.steps.len());
            if left == 0 {
                return true;
            }
            let sets = stage.steps.iter().any(|step| match &step.instruction.kind {
                Kind::Arg(list) => list.iter().any(|arg| arg.name.text == name),
                Kind::Env(pairs) => pairs.iter().any(|pair| pair.key.text == name),
                _ => false,
            });
            if sets {
                return true;
            }
            at = &stage.base;
        }
        false
    }
}

/// Where a script asks for a variable; nowhere where it gives a default or something else stands for the name.
fn use_of(step: &Step<'_>, name: &str) -> Option<Span> {
    let braced = format!("${{{name}}}");
    if step.script.contains(&braced) {
        return Some(step.find(&braced));
    }
    let plain = format!("${name}");
    let whole = |at: usize| {
        let after = step.script.get(at + plain.len()..).and_then(|rest| rest.chars().next());
        !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
    };
    step.script.match_indices(&plain).any(|(at, _)| whole(at)).then(|| step.find(&plain))
}

/// `.`, `./` and the like: all of the context.
fn is_whole(source: &Word) -> bool {
    matches!(source.text.as_str(), "." | "./" | "/" | "./." | "*")
}

/// A `RUN` whose only effect ends with its shell.
fn effects(step: &Step<'_>, findings: &mut Findings) {
    let programs = || step.commands.iter().filter_map(|(words, _)| words.first().map(String::as_str));
    let lines = step.instruction.lines;
    if step.run.command.exec || step.commands.is_empty() {
        return;
    }
    if programs().all(|program| program == "cd") {
        let message = "This changes the directory of its own shell only";
        findings.push(step.control, "CdWithoutEffect", lines, step.find("cd"), message);
    }
    if programs().all(|program| matches!(program, "export" | "source" | ".")) {
        let first = programs().next().unwrap_or("");
        let message = "This sets variables of its own shell only";
        findings.push(step.control, "ExportWithoutEffect", lines, step.find(first), message);
    }
    if step.script.split_whitespace().any(|word| word == "sudo") {
        findings.push(step.control, "SudoInRun", lines, step.find("sudo"), "sudo is not needed in a build");
    }
}

fn pipes(step: &Step<'_>, findings: &mut Findings) {
    let piped = step.commands.iter().any(|(_, after)| after == "|");
    if piped && !step.script.contains("pipefail") {
        let message = "A failure in front of | is not noticed";
        findings.push(step.control, "PipeWithoutPipefail", step.instruction.lines, step.find("|"), message);
    }
}

fn ownership(step: &Step<'_>, copied: &HashSet<String>, findings: &mut Findings) {
    for (words, _) in &step.commands {
        let Some(program @ ("chown" | "chmod" | "chgrp")) = words.first().map(|word| shell::program(word))
        else {
            continue;
        };
        let deep =
            words.iter().any(|word| word.starts_with("-") && word.contains('R') || word == "--recursive");
        let same = |path: &String| copied.contains(path.trim_end_matches('/'));
        if let Some(path) = words.iter().skip(1).find(|path| same(path)).filter(|_| deep) {
            let message = format!("{program} writes all of {path} into a second layer");
            findings.push(
                step.control,
                "OwnershipInLayer",
                step.instruction.lines,
                step.find(program),
                message,
            );
        }
    }
}

fn install(step: &Step<'_>, copy: &Instruction, findings: &mut Findings) {
    for (words, _) in &step.commands {
        let Some(install) = INSTALLS.iter().find(|install| shell::begins(words, install)) else { continue };
        // pip also installs what is named on the spot; of the others the name is a file's.
        let by_file =
            |word: &String| word == "-r" || word == "--requirement" || word.starts_with("--requirement=");
        if install.first().is_some_and(|program| program.starts_with("pip")) && !words.iter().any(by_file) {
            continue;
        }
        let named = words.iter().filter(|word| !word.starts_with('-')).count() > install.len();
        if named && install.first().is_some_and(|program| matches!(*program, "npm" | "pnpm" | "yarn")) {
            continue;
        }
        let message = format!("Any change of the context runs {} again", install.join(" "));
        let span = copy.source.span;
        let found = findings.push(step.control, "CopyBeforeInstall", copy.lines, span, message);
        if let Some(found) = found {
            let text = "this depends on all that is copied".to_owned();
            found.also.push(crate::Label { span: step.find(install.first().unwrap_or(&"")), text });
        }
        return;
    }
}
