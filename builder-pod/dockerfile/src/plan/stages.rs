//! Stages, what they build on and what they copy from.

use std::collections::{BTreeMap, HashMap};

use lapstrake_oci::{Platform, Reference};

use crate::ast::{self, Dockerfile, Instruction, Kind, Word};
use crate::diagnostic::Diagnostic;
use crate::expand::Lexer;
use crate::limits::ERRORS_MAX;
use crate::options::{NamedContext, Options};
use crate::plan::GlobalArgs;
use crate::source::Span;
use crate::suggest;

/// More places of a cycle are not shown.
const CYCLE_PLACES_MAX: usize = 10;

/// Index of a stage in the file.
pub(crate) type StageId = usize;

/// All stages and what the target needs of them.
#[derive(Debug, Clone)]
pub(crate) struct Stages {
    pub(crate) list: Vec<Stage>,
    pub(crate) target: StageId,
    /// Stages that the target needs, by index.
    pub(crate) reachable: Vec<bool>,
    /// The last stage of each name.
    by_name: HashMap<String, StageId>,
    contexts: BTreeMap<String, NamedContext>,
    /// The platform to build for.
    platform: Platform,
}

/// A stage.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    /// The name that progress shows; empty where it is the only one.
    pub(crate) label: String,
    /// Its own name, lower case.
    pub(crate) name: Option<String>,
    pub(crate) base: Base,
    /// `--platform`.
    pub(crate) platform: Option<Platform>,
    pub(crate) from: Instruction,
    /// The image as the Dockerfile names it.
    pub(crate) image: Word,
    pub(crate) steps: Vec<Step>,
}

/// What a stage builds on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Base {
    Scratch,
    Stage(StageId),
    Image(Reference),
    /// A directory of the engine's, or a client's.
    Context(LocalDir),
}

/// An instruction of a stage with what it copies from or mounts, in order.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) instruction: Instruction,
    /// `COPY`: at most one; `RUN`: one per mount.
    pub(crate) from: Vec<From>,
    /// A trigger of the base: errors point at the stage.
    pub(crate) trigger: bool,
}

/// A directory that is no part of the main context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LocalDir {
    pub(crate) name: String,
    pub(crate) session: Option<String>,
    pub(crate) exclude_patterns: Vec<String>,
}

impl LocalDir {
    pub(crate) fn named(name: &str) -> Self {
        Self { name: name.to_owned(), session: None, exclude_patterns: Vec::new() }
    }
}

/// Where files come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    /// Nowhere or the build context, as the instruction has it.
    Default,
    Stage(StageId, Span),
    Image(Reference, Span),
    /// A directory of the engine's, or a client's.
    Context(LocalDir, Span),
    Scratch,
}

impl Stages {
    /// Takes every stage for one that is needed.
    pub(crate) fn all_count(&mut self) {
        self.reachable.iter_mut().for_each(|reachable| *reachable = true);
    }

    /// What is given for a name, on this platform before all others.
    fn given(&self, name: &str, platform: &Platform) -> Option<&NamedContext> {
        let name = name.to_lowercase();
        let special = self.contexts.get(&format!("{name}::{platform}"));
        special.or_else(|| self.contexts.get(&name))
    }

    /// Names of stages, for suggestions.
    pub(crate) fn names(&self) -> Vec<String> {
        self.list.iter().filter_map(|s| s.name.clone()).collect()
    }
}

/// Reads the stages, resolves their names, picks the target and what it needs.
pub(super) fn collect(ast: &Dockerfile, options: &Options, args: &GlobalArgs) -> (Stages, Vec<Diagnostic>) {
    let mut findings = Vec::new();
    let mut stages = Stages {
        list: Vec::new(),
        target: 0,
        reachable: Vec::new(),
        by_name: HashMap::new(),
        contexts: options.named_contexts.clone(),
        platform: options.target_platform.clone().unwrap_or_else(|| options.build_platform.clone()),
    };
    let mut replaced = false;
    for instruction in &ast.instructions {
        if findings.len() >= ERRORS_MAX {
            break;
        }
        match &instruction.kind {
            Kind::From(from) => {
                let found = stage(&stages, ast, args, instruction, from);
                let index = stages.list.len();
                if let Some(name) = &from.name {
                    stages.by_name.insert(name.text.clone(), index);
                }
                let stage = found.unwrap_or_else(|finding| {
                    findings.push(*finding);
                    broken(instruction, from)
                });
                let platform = stage.platform.as_ref().unwrap_or(&stages.platform);
                replaced =
                    from.name.as_ref().is_some_and(|name| stages.given(&name.text, platform).is_some());
                stages.list.push(stage);
            }
            // Another place has the stage's result.
            _ if replaced => {}
            _ => {
                let Some(stage) = stages.list.last_mut() else { continue };
                let instruction = instruction.clone();
                stage.steps.push(Step { instruction, from: Vec::new(), trigger: false });
            }
        }
    }
    link(&mut stages, &mut findings);
    name_them(&mut stages);
    target(&mut stages, options, &mut findings);
    if findings.is_empty() {
        findings.extend(cycle(&stages));
    }
    if findings.is_empty() {
        reach(&mut stages, &mut findings);
    }
    (stages, findings)
}

type Found<T> = Result<T, Box<Diagnostic>>;

fn stage(
    stages: &Stages,
    ast: &Dockerfile,
    args: &GlobalArgs,
    instruction: &Instruction,
    from: &ast::From,
) -> Found<Stage> {
    let image = expand(ast, args, &from.image, "base name")?;
    let platform = match &from.platform {
        None => None,
        Some(word) => {
            let text = expand(ast, args, word, "platform")?;
            Some(text.text.parse().map_err(|error: lapstrake_oci::PlatformError| {
                let near = text.text.replace(['-', '_', ' '], "/");
                let finding = Diagnostic::error("invalid-platform", word.span, error.to_string())
                    .note("a platform is written os/architecture[/variant], for example linux/arm64");
                Box::new(finding.suggest(near.parse::<Platform>().is_ok().then_some(near)))
            })?)
        }
    };
    let on: Option<&Platform> = platform.as_ref();
    let on = on.unwrap_or(&stages.platform);
    let base = match from.name.as_ref().filter(|name| stages.given(&name.text, on).is_some()) {
        Some(name) => base(stages, &Word { text: name.text.clone(), span: image.span }, on)?,
        None => base(stages, &image, on)?,
    };
    let name = from.name.as_ref().map(|n| n.text.clone());
    let label = name.clone().unwrap_or_else(|| format!("stage-{}", stages.list.len()));
    Ok(Stage { label, name, base, platform, from: instruction.clone(), image, steps: Vec::new() })
}

/// Stands for a stage whose `FROM` is broken, so that the rest can be checked.
fn broken(instruction: &Instruction, from: &ast::From) -> Stage {
    let name = from.name.as_ref().map(|n| n.text.clone());
    let (from, image) = (instruction.clone(), from.image.clone());
    Stage { label: String::new(), name, base: Base::Scratch, platform: None, from, image, steps: Vec::new() }
}

/// A word of `FROM` with global arguments put in.
fn expand(ast: &Dockerfile, args: &GlobalArgs, word: &Word, what: &str) -> Found<Word> {
    let expansion = Lexer::new(ast.escape)
        .word(&word.text, args)
        .map_err(|error| Box::new(Diagnostic::error("expansion", word.span, error.to_string())))?;
    if !expansion.text.is_empty() {
        return Ok(Word { text: expansion.text, span: word.span });
    }
    let message = format!("{what} ({}) should not be blank", word.text);
    let finding = Diagnostic::error("blank-from", word.span, message);
    let Some(unset) = expansion.unset.first() else { return Err(Box::new(finding)) };
    let finding = finding.note(format!("{unset} is not set: FROM sees only ARG before the first FROM"));
    Err(Box::new(match suggest::nearest(unset, args.names()) {
        Some(near) => finding.help(format!("did you mean {near}?")),
        None => finding.help(format!("declare it with ARG {unset}=… before the first FROM")),
    }))
}

fn base(stages: &Stages, image: &Word, platform: &Platform) -> Found<Base> {
    if image.text == "scratch" {
        return Ok(Base::Scratch);
    }
    match context(stages, image, platform)? {
        Some(From::Image(reference, _)) => return Ok(Base::Image(reference)),
        Some(From::Stage(stage, _)) => return Ok(Base::Stage(stage)),
        Some(From::Context(name, _)) => return Ok(Base::Context(name)),
        Some(From::Default | From::Scratch) => return Ok(Base::Scratch),
        None => {}
    }
    if let Some(stage) = stages.by_name.get(&image.text) {
        return Ok(Base::Stage(*stage));
    }
    reference(stages, image).map(Base::Image)
}

/// What a name stands for that a context is given for.
fn context(stages: &Stages, word: &Word, platform: &Platform) -> Found<Option<From>> {
    let found = stages.given(&word.text, platform).or_else(|| {
        // An image may be meant by its full name.
        let full: Reference = word.text.parse().ok()?;
        let same = |name: &str| {
            name.parse::<Reference>()
                .is_ok_and(|known| known.name() == full.name() && tag(&known) == tag(&full))
        };
        let mut plain = None;
        for (key, context) in &stages.contexts {
            match key.split_once("::") {
                Some((name, of)) if same(name) && of == platform.to_string() => return Some(context),
                None if same(key) => plain = Some(context),
                _ => {}
            }
        }
        plain
    });
    Ok(match found {
        Some(NamedContext::Scratch) => Some(From::Scratch),
        None => None,
        Some(NamedContext::Image(reference)) => {
            let word = Word { text: reference.to_string(), span: word.span };
            Some(From::Image(self::reference(stages, &word)?, word.span))
        }
        Some(NamedContext::Local(name)) => Some(From::Context(LocalDir::named(name), word.span)),
        Some(NamedContext::Lent { name, session, exclude_patterns }) => {
            let dir = LocalDir {
                session: Some(session.clone()),
                exclude_patterns: exclude_patterns.clone(),
                ..LocalDir::named(name)
            };
            Some(From::Context(dir, word.span))
        }
        Some(NamedContext::Stage(stage)) => match stages.by_name.get(&stage.to_lowercase()) {
            Some(stage) => Some(From::Stage(*stage, word.span)),
            None => {
                let message = format!("the context {} is the stage {stage}, which is not there", word.text);
                return Err(Box::new(Diagnostic::error("unknown-target", word.span, message)));
            }
        },
    })
}

/// No tag is the same as `latest`.
fn tag(reference: &Reference) -> &str {
    reference.tag().unwrap_or("latest")
}

fn reference(stages: &Stages, word: &Word) -> Found<Reference> {
    let reference: Reference = word.text.parse().map_err(|error: lapstrake_oci::ReferenceError| {
        let names = stages.names();
        let near = suggest::nearest(&word.text, names.iter().map(String::as_str));
        let lower = word.text.to_lowercase();
        let finding = Diagnostic::error("invalid-image", word.span, error.to_string());
        Box::new(match near {
            None if lower != word.text && lower.parse::<Reference>().is_ok() => {
                finding.help(format!("names of images are in lower case: {lower}"))
            }
            near => finding.suggest(near),
        })
    })?;
    match (reference.tag(), reference.digest()) {
        (None, None) => reference
            .with_tag("latest")
            .map_err(|error| Box::new(Diagnostic::error("invalid-image", word.span, error.to_string()))),
        _ => Ok(reference),
    }
}

/// Resolves what each instruction copies from.
fn link(stages: &mut Stages, findings: &mut Vec<Diagnostic>) {
    let mut links = Vec::new();
    for (at, stage) in stages.list.iter().enumerate() {
        for (index, step) in stage.steps.iter().enumerate() {
            match sources(stages, &step.instruction.kind) {
                Ok(from) if from.is_empty() => {}
                Ok(from) => links.push((at, index, from)),
                Err(finding) => findings.push(*finding),
            }
            if findings.len() >= ERRORS_MAX {
                return;
            }
        }
    }
    for (at, index, from) in links {
        stages.list[at].steps[index].from = from;
    }
}

/// What `--from` and `from=` of an instruction mean.
pub(crate) fn sources(stages: &Stages, kind: &Kind) -> Found<Vec<From>> {
    match kind {
        Kind::Copy(copy) => match &copy.from {
            Some(word) => Ok(vec![copy_from(stages, word)?]),
            None => Ok(Vec::new()),
        },
        Kind::Run(run) => run.mounts.iter().map(|mount| mount_from(stages, mount)).collect(),
        _ => Ok(Vec::new()),
    }
}

fn no_variables(word: &Word, message: &str) -> Found<()> {
    let plain = Lexer::new('\\').word(&word.text, &());
    if plain.is_ok_and(|p| p.text == word.text) {
        return Ok(());
    }
    let help = "name a stage with FROM and an ARG from before the first FROM, and copy from that";
    Err(Box::new(Diagnostic::error("variable-in-from", word.span, message).help(help)))
}

fn copy_from(stages: &Stages, word: &Word) -> Found<From> {
    no_variables(
        word,
        "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope \
         as a workaround",
    )?;
    if let Ok(index) = word.text.parse::<i64>() {
        return match usize::try_from(index).ok().filter(|index| *index < stages.list.len()) {
            Some(index) => Ok(From::Stage(index, word.span)),
            None => {
                let message = format!("invalid stage index {index}");
                let note = format!("the file has {} stages, counted from 0", stages.list.len());
                Err(Box::new(Diagnostic::error("invalid-stage-index", word.span, message).note(note)))
            }
        };
    }
    named_from(stages, word)
}

fn mount_from(stages: &Stages, mount: &Word) -> Found<From> {
    // The mount as a whole is checked when it is lowered; here only its source matters.
    let Ok(fields) = crate::lower::mount_fields(mount) else { return Ok(From::Default) };
    let Some(word) = fields.into_iter().rev().find(|f| f.key == "from").and_then(|f| f.value) else {
        return Ok(From::Default);
    };
    if word.text.find('$').is_some_and(|at| at + 1 < word.text.len()) {
        let message = "'from' doesn't support variable expansion, define alias stage instead";
        return Err(Box::new(Diagnostic::error("variable-in-from", word.span, message)));
    }
    if word.text.is_empty() { Ok(From::Default) } else { named_from(stages, &word) }
}

fn named_from(stages: &Stages, word: &Word) -> Found<From> {
    if let Some(from) = context(stages, word, &stages.platform)? {
        return Ok(from);
    }
    if let Some(stage) = stages.by_name.get(&word.text.to_lowercase()) {
        return Ok(From::Stage(*stage, word.span));
    }
    if word.text == "scratch" {
        return Ok(From::Scratch);
    }
    Ok(From::Image(reference(stages, word)?, word.span))
}

/// BuildKit shows no stage name where there is just one; an image that is copied from counts as one.
fn name_them(stages: &mut Stages) {
    let images = |step: &Step| {
        step.from.iter().any(|f| matches!(f, From::Image(..) | From::Context(..) | From::Scratch))
            || matches!(&step.instruction.kind, Kind::Run(run) if !run.mounts.is_empty())
    };
    if let [only] = stages.list.as_mut_slice()
        && !only.steps.iter().any(images)
    {
        only.label.clear();
    }
}

fn target(stages: &mut Stages, options: &Options, findings: &mut Vec<Diagnostic>) {
    stages.target = stages.list.len().saturating_sub(1);
    let Some(name) = options.target.as_deref().filter(|name| !name.is_empty()) else { return };
    match stages.by_name.get(&name.to_lowercase()) {
        Some(stage) => stages.target = *stage,
        None => {
            let names = stages.names();
            let message = format!("target stage {name:?} could not be found");
            let finding = Diagnostic::error("unknown-target", Span::default(), message);
            findings.push(match suggest::nearest(name, names.iter().map(String::as_str)) {
                Some(near) => finding.help(format!("did you mean {near}?")),
                None if names.is_empty() => finding.note("no stage of the file has a name"),
                None => finding.note(format!("the stages are {}", names.join(", "))),
            });
        }
    }
}

fn needs(stage: &Stage) -> impl Iterator<Item = (StageId, Span)> {
    stage.steps.iter().flat_map(|step| &step.from).filter_map(|from| match from {
        From::Stage(stage, span) => Some((*stage, *span)),
        _ => None,
    })
}

/// A stage on the path of a search for cycles.
struct Visit {
    stage: StageId,
    /// What it needs and was not looked at.
    open: Vec<(StageId, Span)>,
    /// Where the stage before it needs it.
    needed: Option<Span>,
}

impl Visit {
    fn new(stages: &Stages, stage: StageId, needed: Option<Span>) -> Self {
        Self { stage, open: needs(&stages.list[stage]).collect(), needed }
    }
}

/// The first cycle of copies, with the places that close it.
fn cycle(stages: &Stages) -> Option<Diagnostic> {
    let mut done = vec![false; stages.list.len()];
    let mut on_path = vec![false; stages.list.len()];
    for start in 0..stages.list.len() {
        let mut path: Vec<Visit> = Vec::new();
        if !done[start] {
            path.push(Visit::new(stages, start, None));
            on_path[start] = true;
        }
        while let Some(last) = path.last_mut() {
            let stage = last.stage;
            let Some((next, span)) = last.open.pop() else {
                (done[stage], on_path[stage]) = (true, false);
                path.pop();
                continue;
            };
            if on_path[next] {
                return Some(cycle_found(stages, &path, next, span));
            }
            if !done[next] {
                on_path[next] = true;
                path.push(Visit::new(stages, next, Some(span)));
            }
        }
    }
    None
}

/// The end of `path` needs `next`, which is on it, at `span`.
fn cycle_found(stages: &Stages, path: &[Visit], next: StageId, span: Span) -> Diagnostic {
    let label = |s: StageId| match stages.list[s].label.as_str() {
        "" => format!("stage-{s}"),
        label => label.to_owned(),
    };
    let last = path.last().map_or(next, |visit| visit.stage);
    let message = format!("circular dependency detected on stage: {}", label(next));
    let mut finding = Diagnostic::error("stage-cycle", span, message);
    finding.label = match next == last {
        true => "the stage needs itself here".to_owned(),
        false => format!("stage {} needs {} here", label(last), label(next)),
    };
    let from = path.iter().position(|visit| visit.stage == next).unwrap_or(0);
    // A cycle may be as long as the file; its start says enough.
    for pair in path[from..].windows(2).take(CYCLE_PLACES_MAX) {
        if let Some(span) = pair[1].needed {
            let text = format!("stage {} needs {} here", label(pair[0].stage), label(pair[1].stage));
            finding = finding.also(span, text);
        }
    }
    finding
}

/// Marks what the target needs; a stage can only need earlier ones.
pub(super) fn reach(stages: &mut Stages, findings: &mut Vec<Diagnostic>) {
    stages.reachable = vec![false; stages.list.len()];
    let mut open = vec![stages.target];
    while let Some(at) = open.pop() {
        if stages.list.get(at).is_none() || std::mem::replace(&mut stages.reachable[at], true) {
            continue;
        }
        let stage = &stages.list[at];
        if let Base::Stage(base) = stage.base {
            open.push(base);
        }
        for (next, span) in needs(stage) {
            if next >= at {
                let other = &stages.list[next];
                let message = format!(
                    "cannot copy from stage {:?}, it needs to be defined before current stage {:?}",
                    other.label, stage.label
                );
                findings.push(
                    Diagnostic::error("stage-order", span, message)
                        .also(other.from.source.span, format!("stage {:?} is defined here", other.label)),
                );
            }
            open.push(next);
        }
    }
}
