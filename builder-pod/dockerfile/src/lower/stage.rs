//! Goes through the stages and their instructions.

use std::borrow::Cow;
use std::collections::BTreeSet;

use lapstrake_llb::pb;
use lapstrake_oci::{ContainerConfig, ImageConfig, Reference};

use crate::ast::{Instruction, Kind, Word};
use crate::diagnostic::Diagnostic;
use crate::expand::{ExpandError, Lexer};
use crate::limits::DEFINITION_BYTES_MAX;
use crate::lint::{Control, Findings, Ignored};
use crate::lower::draft::{DraftOutput, Graph, named, named_command, operation};
use crate::lower::env::Env;
use crate::lower::hints::Unset;
use crate::lower::name::Counter;
use crate::lower::path;
use crate::lower::state::State;
use crate::options::ResolveMode;
use crate::plan::{Base, From, ImageKey, Images, LocalDir, Plan, Stage, StageId, Stages, Step, trigger_note};
use crate::source::Span;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Code of the finding that a stage can't be lowered since one that it needs could not.
pub(crate) const BASE_FAILED: &str = "base-failed";

/// The result of lowering a piece; a boxed finding is an error.
pub(crate) type Lower<T> = Result<T, Box<Diagnostic>>;

/// Everything that is known while stages are lowered.
pub(crate) struct Lowering<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) stages: &'a Stages,
    pub(crate) images: &'a Images,
    pub(crate) graph: Graph,
    /// Finished stages.
    pub(crate) states: Vec<Option<State>>,
    /// Paths of the context that are read, absolute; `/` is all.
    pub(crate) context_paths: BTreeSet<String>,
    pub(crate) findings: Vec<Diagnostic>,
    /// What rules found.
    pub(crate) lints: Findings,
    /// Variables that the instruction in work asked for and that are not set.
    pub(crate) unset: Vec<Unset>,
    pub(crate) ignored: Option<Ignored>,
    /// Images that are not known may be anything.
    pub(crate) lenient: bool,
}

/// A stage in work.
pub(crate) struct Current {
    pub(crate) state: State,
    pub(crate) counter: Counter,
    pub(crate) ignore_cache: bool,
}

/// An instruction in work.
pub(crate) struct At<'a> {
    pub(crate) step: &'a Step,
    pub(crate) instruction: &'a Instruction,
    /// Which rules report about it.
    pub(crate) control: Cow<'a, Control>,
    /// Of a trigger, whose text is not in the file: where its stage begins.
    pub(crate) place: Option<Span>,
}

impl At<'_> {
    pub(crate) fn lines(&self) -> Option<(u32, u32)> {
        Some(self.instruction.lines)
    }

    /// The instruction as written.
    pub(crate) fn text(&self) -> &str {
        &self.instruction.source.text
    }
}

impl<'a> Lowering<'a> {
    pub(crate) fn new(plan: &'a Plan, stages: &'a Stages, images: &'a Images) -> Self {
        Self {
            plan,
            stages,
            images,
            graph: Graph::new(),
            states: vec![None; stages.list.len()],
            context_paths: BTreeSet::new(),
            findings: Vec::new(),
            lints: Findings::default(),
            unset: Vec::new(),
            ignored: Ignored::new(&plan.options.ignore_patterns),
            lenient: false,
        }
    }

    /// Lowers all stages that the target needs.
    pub(crate) fn run(&mut self) {
        for id in 0..self.stages.list.len() {
            if !self.stages.reachable.get(id).copied().unwrap_or(false) {
                continue;
            }
            match self.stage(id) {
                Ok(state) => self.states[id] = Some(state),
                Err(finding) => self.findings.push(*finding),
            }
            if self.graph.is_too_large() {
                let span = self.stages.list[id].from.source.span;
                let message =
                    format!("the build is larger than the {DEFINITION_BYTES_MAX} bytes that are allowed");
                self.findings.push(Diagnostic::error("too-large", span, message));
                return;
            }
        }
    }

    fn stage(&mut self, id: StageId) -> Lower<State> {
        let stage = &self.stages.list[id];
        let mut counter = Counter {
            label: stage.label.clone(),
            total: total(stage),
            done: 0,
            with_platform: self.plan.options.multi_platform,
        };
        let state = self.base(stage, &mut counter)?;
        let name = stage.name.as_deref().unwrap_or("");
        let ignore_cache = self.plan.options.no_cache.holds(name);
        let mut current = Current { state, counter, ignore_cache };
        inherit(&mut current.state);
        for step in &stage.steps {
            let instruction = &step.instruction;
            let control = self.plan.control.merged(&instruction.comments);
            let at = At { step, instruction, control, place: step.trigger.then_some(stage.image.span) };
            if let Err(finding) = self.instruction(&mut current, &at) {
                self.findings.push(placed(stage, step, *finding));
            }
            if self.graph.is_too_large() || self.findings.len() >= crate::limits::ERRORS_MAX {
                break;
            }
        }
        Ok(current.state)
    }

    /// The files and config that a stage starts with.
    fn base(&mut self, stage: &Stage, counter: &mut Counter) -> Lower<State> {
        match &stage.base {
            Base::Scratch => {
                let platform = self.plan.target_platform();
                Ok(State::new(None, empty_image(&platform), platform))
            }
            Base::Stage(base) => {
                let Some(base) = self.states.get(*base).and_then(Option::as_ref) else {
                    return self.failed_before(stage.image.span);
                };
                let mut state = base.clone();
                self.graph.spend(state.bytes());
                state.image.config.on_build.clear();
                state.cmd_set = false;
                state.once.clear();
                Ok(state)
            }
            Base::Image(reference) => self.base_image(stage, reference, counter),
            Base::Context(dir) => self.base_files(stage, dir, counter),
        }
    }

    /// Files that a context names, as the file system of an image that says nothing. They are copied, so that what is
    /// built on them counts by what is in them.
    fn base_files(&mut self, stage: &Stage, dir: &LocalDir, counter: &mut Counter) -> Lower<State> {
        let platform = self.plan.platform_of(stage);
        let files = self.files(&From::Context(dir.clone(), stage.image.span))?;
        let op = operation(pb::op::Op::File(lapstrake_llb::copy_of_all()), None);
        let shown = counter.next(&format!("FROM {}", stage.image.text), &platform, None, false);
        let metadata = named_command(&shown, &stage.from.source.text);
        let inputs = files.into_iter().collect();
        let output = self.graph.add(op, inputs, metadata, Some(stage.from.lines));
        Ok(State::new(Some(output), empty_image(&platform), platform))
    }

    fn base_image(&mut self, stage: &Stage, reference: &Reference, counter: &mut Counter) -> Lower<State> {
        let asked = self.plan.platform_of(stage);
        let key = ImageKey { reference: reference.clone(), platform: asked.clone() };
        let found = match self.images.get(&key) {
            Some(found) => found,
            None if self.lenient => return Ok(unknown_base(&asked)),
            None => return no_config(reference, stage.image.span),
        };
        self.check_platform(stage, &asked, &found.config);
        let mut image = found.config.clone();
        image.created = None;
        // Triggers run here and are not handed on.
        image.config.on_build.clear();
        let platform = asked;
        let reference = found.pinned(reference);
        let empty = image.rootfs.diff_ids.is_empty() && image.history.iter().all(|h| h.empty_layer);
        let output = if empty {
            None
        } else {
            let name = counter.next(&format!("FROM {reference}"), &platform, None, false);
            let metadata = named_command(&name, &stage.from.source.text);
            Some(self.image(&reference, &platform, metadata, Some(stage.from.lines)))
        };
        Ok(State::new(output, image, platform))
    }

    fn image(
        &mut self,
        reference: &Reference,
        platform: &lapstrake_oci::Platform,
        metadata: pb::OpMetadata,
        lines: Option<(u32, u32)>,
    ) -> DraftOutput {
        let mode = match self.plan.options.resolve_mode {
            ResolveMode::Default => None,
            ResolveMode::Pull => Some("pull"),
            ResolveMode::Local => Some("local"),
        };
        let attrs = mode.map(|mode| ("image.resolvemode".to_owned(), mode.to_owned()));
        let source = pb::SourceOp {
            identifier: format!("docker-image://{reference}"),
            attrs: attrs.into_iter().collect(),
        };
        let op = operation(pb::op::Op::Source(source), Some(platform));
        self.graph.add(op, Vec::new(), metadata, lines)
    }

    /// The files that `--from` or a mount's `from` names.
    pub(crate) fn files(&mut self, from: &From) -> Lower<Option<DraftOutput>> {
        match from {
            From::Default | From::Scratch => Ok(None),
            From::Context(dir, span) => {
                let name = &dir.name;
                let mut attrs = std::collections::BTreeMap::new();
                attrs.insert("local.sharedkeyhint".to_owned(), name.clone());
                attrs.extend(dir.session.iter().map(|id| ("local.session".to_owned(), id.clone())));
                if !dir.exclude_patterns.is_empty() {
                    let patterns = crate::go::json_list(&dir.exclude_patterns);
                    attrs.insert("local.excludepatterns".to_owned(), patterns);
                }
                let source = pb::SourceOp { identifier: format!("local://{name}"), attrs };
                let op = operation(pb::op::Op::Source(source), None);
                let line = self.plan.source.line_of(span.start);
                let metadata = named(&format!("[context {name}] load from client"));
                Ok(Some(self.graph.add(op, Vec::new(), metadata, Some((line, line)))))
            }
            From::Stage(stage, span) => match self.states.get(*stage).and_then(Option::as_ref) {
                Some(state) => Ok(state.output),
                None => self.failed_before(*span),
            },
            From::Image(reference, span) => {
                let platform = self.plan.target_platform();
                let key = ImageKey { reference: reference.clone(), platform: platform.clone() };
                let found = match self.images.get(&key) {
                    Some(found) => found,
                    None if self.lenient => return Ok(None),
                    None => return no_config(reference, *span),
                };
                let image = &found.config;
                if image.rootfs.diff_ids.is_empty() && image.history.iter().all(|h| h.empty_layer) {
                    return Ok(None);
                }
                let pinned = found.pinned(reference);
                let metadata = named(&format!("FROM {pinned}"));
                let line = self.plan.source.line_of(span.start);
                Ok(Some(self.image(&pinned, &platform, metadata, Some((line, line)))))
            }
        }
    }

    /// A stage that is needed has errors of its own, which are reported; nothing is added to them.
    fn failed_before<T>(&self, span: Span) -> Lower<T> {
        let finding = Diagnostic::error(BASE_FAILED, span, "the stage that this needs has errors");
        Err(Box::new(finding))
    }

    fn instruction(&mut self, current: &mut Current, at: &At<'_>) -> Lower<()> {
        self.unset.clear();
        self.look_at(current, at);
        let done = self.lower_instruction(current, at);
        self.report_unset(current, at);
        done
    }

    fn lower_instruction(&mut self, current: &mut Current, at: &At<'_>) -> Lower<()> {
        match &at.instruction.kind {
            Kind::Add(copy) => self.copy(current, at, copy, true),
            Kind::Copy(copy) => self.copy(current, at, copy, false),
            Kind::Run(run) => self.run_step(current, at, run),
            Kind::Workdir(word) => self.workdir(current, at, word),
            Kind::Arg(list) => self.arg(current, at, list),
            Kind::Env(list) => self.env(current, list),
            Kind::From(_) | Kind::Invalid => Ok(()),
            other => self.config(current, at, other),
        }
    }

    /// The lexer of the file.
    pub(crate) fn lexer(&self) -> Lexer {
        Lexer::new(self.plan.escape)
    }

    /// A word with the stage's variables put in.
    pub(crate) fn expand(&mut self, env: &Env, word: &Word) -> Lower<Word> {
        self.expand_with(&self.lexer(), env, word)
    }

    pub(crate) fn expand_with(&mut self, lexer: &Lexer, env: &Env, word: &Word) -> Lower<Word> {
        let expansion = lexer.word(&word.text, env).map_err(|error| expansion_error(&error, word.span))?;
        if !self.lints.is_full() {
            self.unset.extend(expansion.unset.into_iter().map(|name| Unset::new(name, word.span, env)));
        }
        let text = expansion.text;
        self.graph.spend(text.len());
        Ok(Word { text, span: word.span })
    }

    fn workdir(&mut self, current: &mut Current, at: &At<'_>, word: &Word) -> Lower<()> {
        let word = self.expand(&current.state.env, word)?;
        if !current.state.dir_set && !word.text.starts_with('/') {
            let message = format!(
                "Relative workdir {:?} can have unexpected results if the base image changes",
                word.text
            );
            self.lint_at(at, "WorkdirRelativePath", word.span, message);
        }
        let state = &mut current.state;
        state.dir_set = true;
        let dir = path::absolute(&state.image.config.working_dir, &word.text);
        state.image.config.working_dir.clone_from(&dir);
        state.dir.clone_from(&dir);
        let layer = dir != "/";
        if layer {
            self.make_dir(current, at, &dir);
        }
        current.state.record(format!("WORKDIR {dir}"), layer, false, self.plan.epoch);
        Ok(())
    }
}

/// How many steps of a stage are counted in their names.
fn total(stage: &Stage) -> usize {
    let base = usize::from(matches!(stage.base, Base::Image(_) | Base::Context(_)));
    let counts = |step: &&Step| {
        // All triggers count, whatever they are; so does BuildKit.
        step.trigger
            || matches!(step.instruction.kind, Kind::Add(_) | Kind::Copy(_) | Kind::Run(_) | Kind::Workdir(_))
    };
    base + stage.steps.iter().filter(counts).count()
}

/// Takes over what the image config says of environment, directory and user.
fn inherit(state: &mut State) {
    let ContainerConfig { env, working_dir, user, .. } = &mut state.image.config;
    let has_path = env.iter().any(|e| e.split_once('=').map_or(e.as_str(), |(key, _)| key) == "PATH");
    if !has_path && state.platform.os != "windows" {
        env.push(format!("PATH={DEFAULT_PATH}"));
    }
    for entry in env.iter() {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        state.env.set(name, value);
    }
    if !working_dir.is_empty() {
        *working_dir = path::absolute(working_dir, working_dir);
        state.dir.clone_from(working_dir);
    }
    if !user.is_empty() {
        state.user.clone_from(user);
    }
}

/// Errors of a trigger point at the stage, since its text is not in the file.
fn placed(stage: &Stage, step: &Step, finding: Diagnostic) -> Diagnostic {
    if !step.trigger {
        return finding;
    }
    let note = trigger_note(&step.instruction);
    Diagnostic { span: stage.image.span, also: Vec::new(), label: String::new(), ..finding }.note(note)
}

/// The config of an image that says nothing.
fn empty_image(platform: &lapstrake_oci::Platform) -> ImageConfig {
    let mut image = ImageConfig::of_platform(platform);
    image.config.working_dir = "/".to_owned();
    image.config.env = vec![format!("PATH={DEFAULT_PATH}")];
    image
}

/// Stands for an image that nobody asked for.
fn unknown_base(platform: &lapstrake_oci::Platform) -> State {
    let image = ImageConfig::of_platform(platform);
    let mut state = State::new(None, image, platform.clone());
    state.open = true;
    state
}

fn no_config<T>(reference: &Reference, span: Span) -> Lower<T> {
    let message = format!("the config of image {reference} is not known");
    Err(Box::new(Diagnostic::error("base-image", span, message)))
}

pub(crate) fn expansion_error(error: &ExpandError, span: Span) -> Box<Diagnostic> {
    Box::new(Diagnostic::error("expansion", span, error.to_string()))
}
