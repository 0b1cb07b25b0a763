//! `ONBUILD` triggers, which run right after the `FROM` of a child.

use std::borrow::Cow;

use crate::ast::{Instruction, Kind};
use crate::diagnostic::{Diagnostic, Severity};
use crate::limits::TRIGGERS_MAX;
use crate::parse;
use crate::plan::stages::{self, Base, From, Stage, StageId, Stages, Step};
use crate::plan::{ImageKey, Images, Plan};
use crate::source::Span;

/// The stages with the triggers of their bases put in front, as far as the bases are known.
pub(crate) fn resolve<'a>(plan: &'a Plan, images: &Images) -> (Cow<'a, Stages>, Vec<Diagnostic>) {
    let mut stages = Cow::Borrowed(&plan.stages);
    let mut findings = Vec::new();
    let mut done = vec![false; stages.list.len()];
    let has_own = |stage: &Stage| stage.steps.iter().any(|s| matches!(s.instruction.kind, Kind::Onbuild(_)));
    let with_triggers: Vec<bool> = stages.list.iter().map(has_own).collect();
    let mut total = 0;
    loop {
        // A trigger may make further stages needed, whose bases may have triggers.
        let open: Vec<StageId> = (0..done.len()).filter(|i| stages.reachable[*i] && !done[*i]).collect();
        if open.is_empty() {
            return (stages, findings);
        }
        for id in open {
            done[id] = true;
            if matches!(stages.list[id].base, Base::Stage(base) if !with_triggers[base]) {
                continue;
            }
            let steps = match triggers(plan, &stages, id, images) {
                Ok(steps) if steps.is_empty() => continue,
                Ok(steps) => steps,
                Err(finding) => {
                    findings.push(*finding);
                    continue;
                }
            };
            let stage = &mut stages.to_mut().list[id];
            total += steps.len();
            if total > TRIGGERS_MAX {
                let message = format!("more than {TRIGGERS_MAX} ONBUILD triggers would run");
                findings.push(Diagnostic::error("too-many-triggers", stage.image.span, message));
                return (stages, findings);
            }
            stage.steps.splice(0..0, steps);
        }
        if let Cow::Owned(owned) = &mut stages {
            stages::reach(owned, &mut findings);
            if findings.iter().any(|f| f.severity == Severity::Error) {
                return (stages, findings);
            }
        }
    }
}

fn triggers(
    plan: &Plan,
    stages: &Stages,
    id: StageId,
    images: &Images,
) -> Result<Vec<Step>, Box<Diagnostic>> {
    let stage = &stages.list[id];
    let span = stage.image.span;
    let instructions: Vec<Instruction> = match &stage.base {
        Base::Scratch | Base::Context(_) => Vec::new(),
        Base::Stage(base) => {
            let steps = stages.list[*base].steps.iter().filter(|step| !step.trigger);
            let triggers = steps.filter_map(|step| match &step.instruction.kind {
                Kind::Onbuild(onbuild) => Some((*onbuild.trigger).clone()),
                _ => None,
            });
            triggers.collect()
        }
        Base::Image(reference) => {
            let key = ImageKey { reference: reference.clone(), platform: plan.platform_of(stage) };
            let config = images.get(&key).map(|image| &image.config.config);
            let texts = config.map_or(&[][..], |c| c.on_build.as_slice());
            texts.iter().map(|text| foreign(text, span)).collect::<Result<_, _>>()?
        }
    };
    let lines = stage.from.lines;
    let step = |instruction: Instruction| {
        if instruction.kind == Kind::Invalid {
            let message = "a trigger of the base can't be understood";
            return Err(Box::new(
                Diagnostic::error("invalid-trigger", span, message).note(note(&instruction)),
            ));
        }
        let from = stages::sources(stages, &instruction.kind).map_err(|finding| {
            Box::new(Diagnostic { span, also: Vec::new(), ..*finding }.note(note(&instruction)))
        })?;
        let from = from.into_iter().map(|from| from.at(span)).collect();
        Ok(Step { instruction: Instruction { lines, ..instruction }, from, trigger: true })
    };
    instructions.into_iter().map(step).collect()
}

/// A trigger of an image's config.
fn foreign(text: &str, span: Span) -> Result<Instruction, Box<Diagnostic>> {
    let parsed = parse::parse("ONBUILD", text);
    // Only the stage errors are expected: a trigger is one instruction without a FROM.
    let error = parsed.diagnostics.iter().find(|d| d.severity == Severity::Error && d.code != "no-stage");
    let mut instructions = parsed.ast.instructions.into_iter();
    match (error, instructions.next(), instructions.next()) {
        (None, Some(instruction), None) => Ok(instruction),
        (error, ..) => {
            let why = error.map_or("it is not a single instruction", |d| d.message.as_str());
            let message = format!("ONBUILD trigger of the base image can't be used: {why}");
            Err(Box::new(Diagnostic::error("invalid-trigger", span, message).note(format!("it is: {text}"))))
        }
    }
}

/// Says which trigger a finding is about.
pub(crate) fn note(instruction: &Instruction) -> String {
    format!("in a trigger of the base: ONBUILD {}", instruction.source.text)
}

impl From {
    fn at(self, span: Span) -> Self {
        match self {
            Self::Stage(stage, _) => Self::Stage(stage, span),
            Self::Image(reference, _) => Self::Image(reference, span),
            other => other,
        }
    }
}
