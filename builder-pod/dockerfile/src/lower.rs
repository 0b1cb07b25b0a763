//! From stages to operations and an image config.

mod chmod;
mod config;
mod copy;
mod device;
mod draft;
mod env;
mod expose;
mod hints;
mod mount;
mod name;
mod path;
mod remote;
mod run;
mod signal;
mod stage;
mod state;

use std::collections::BTreeSet;

use lapstrake_llb::pb;
use lapstrake_oci::ImageConfig;

pub(crate) use env::Env;
pub(crate) use mount::fields as mount_fields;
pub(crate) use path::clean as clean_path;
pub(crate) use remote::{http_name, is_http};
pub(crate) use state::State;

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::options::{MainContext, Options};
use crate::plan::{Images, Plan};

/// The outcome: what to solve, and the config of the image around it.
#[derive(Debug, Clone)]
pub struct Lowered {
    /// The graph; without operations, the image has no layers.
    pub definition: pb::Definition,
    /// The image config. Its root file system is the exporter's to fill in; history is complete, with the
    /// entries that have a layer in the order of the layers.
    pub config: ImageConfig,
    /// What the build reads of its context; `None` where it reads nothing.
    pub context: Option<ContextUse>,
    /// Findings that do not stop the build.
    pub warnings: Diagnostics,
    /// How many stages the target needs.
    pub stages: usize,
    /// How many operations the definition has.
    pub steps: usize,
    /// `SOURCE_DATE_EPOCH` as it turned out, seconds since 1970: for the exporter.
    pub epoch: Option<i64>,
}

/// What a build reads of its context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextUse {
    /// All of it.
    Whole,
    /// These paths, sorted, relative to its root; wildcards as written.
    Paths(Vec<String>),
}

impl ContextUse {
    fn of(paths: &BTreeSet<String>) -> Self {
        if paths.contains("/") {
            return Self::Whole;
        }
        Self::Paths(paths.iter().map(|path| path.trim_start_matches('/').to_owned()).collect())
    }
}

pub(crate) fn lower(plan: &Plan, images: &Images) -> Result<Lowered, Diagnostics> {
    let (stages, found) = crate::plan::with_triggers(plan, images);
    let mut lowering = stage::Lowering::new(plan, &stages, images);
    lowering.findings.extend(found);
    lowering.run();
    let mut plan_warnings = plan.warnings.clone();
    plan_warnings.extend(crate::plan::unused_args(&plan.declared, &stages, &plan.options));
    let stage::Lowering { mut findings, states, graph, context_paths, lints, .. } = lowering;
    plan_warnings.extend(lints.0);
    plan_warnings.extend(crate::lint::check_practice(plan, &stages, &states).0);
    findings.extend(violation(plan, &plan_warnings));
    // What only follows from another finding is noise beside it.
    if findings.iter().any(|f| f.code != stage::BASE_FAILED) {
        findings.retain(|f| f.code != stage::BASE_FAILED);
    }
    let target = states.into_iter().nth(stages.target).flatten();
    let Some(state) = target.filter(|_| findings.is_empty()) else {
        if findings.is_empty() {
            let message = "no stage of the file could be built";
            findings.push(Diagnostic::error("no-stage", crate::Span::default(), message));
        }
        let mut all = Diagnostics::of(plan.source.clone(), findings);
        all.extend(plan_warnings);
        return Err(all.finish());
    };
    let config = finish_config(plan, state.image.clone());
    let context_use = ContextUse::of(&context_paths);
    let used = graph.uses_context(state.output);
    let context = context_operation(&plan.options, &context_use);
    let (definition, steps) = graph.finish(state.output, context, &plan.source);
    let warnings = Diagnostics::of(plan.source.clone(), plan_warnings).finish();
    let context = used.then_some(context_use);
    let stages = stages.reachable.iter().filter(|r| **r).count();
    Ok(Lowered { definition, config, context, warnings, stages, steps, epoch: plan.epoch })
}

/// What rules and lowering find; what images hold that are not known is not looked at.
pub(crate) fn findings(plan: &Plan, images: &Images) -> Vec<Diagnostic> {
    let (stages, found) = crate::plan::with_triggers(plan, images);
    let mut stages = stages.into_owned();
    if plan.options.target.as_ref().is_none_or(String::is_empty) {
        stages.all_count();
    }
    let mut lowering = stage::Lowering::new(plan, &stages, images);
    lowering.lenient = true;
    lowering.findings.extend(found);
    lowering.run();
    let mut all = plan.warnings.clone();
    all.extend(crate::plan::unused_args(&plan.declared, &stages, &plan.options));
    let stage::Lowering { findings, lints, states, .. } = lowering;
    all.extend(lints.0);
    all.extend(crate::lint::check_practice(plan, &stages, &states).0);
    all.extend(violation(plan, &all));
    all.extend(findings.into_iter().filter(|finding| finding.code != stage::BASE_FAILED));
    all
}

/// A secret or agent: its id, whether it has to be there, and the lines that ask for it.
type Input = (String, bool, (u32, u32));

/// What a build can be given.
#[derive(Debug, Default)]
pub(crate) struct Given {
    /// Arguments of each stage, with their values.
    pub(crate) args: Vec<Vec<(String, Option<String>)>>,
    pub(crate) secrets: Vec<Input>,
    pub(crate) ssh: Vec<Input>,
}

/// Collects what the steps of the target can be given.
pub(crate) fn given(plan: &Plan, images: &Images) -> Given {
    let (stages, _) = crate::plan::with_triggers(plan, images);
    let mut lowering = stage::Lowering::new(plan, &stages, images);
    lowering.lenient = true;
    lowering.run();
    let args = |state: &Option<State>| state.as_ref().map(|state| state.args.clone()).unwrap_or_default();
    let mut given = Given { args: lowering.states.iter().map(args).collect(), ..Given::default() };
    for (exec, lines) in lowering.graph.execs() {
        for mount in &exec.mounts {
            if let Some(secret) = &mount.secret_opt {
                given.secrets.push((secret.id.clone(), !secret.optional, lines));
            }
            if let Some(ssh) = &mount.ssh_opt {
                let id = if ssh.id.is_empty() { "default" } else { &ssh.id };
                given.ssh.push((id.to_owned(), !ssh.optional, lines));
            }
        }
        let variables = exec.secretenv.iter();
        given.secrets.extend(variables.map(|secret| (secret.id.clone(), !secret.optional, lines)));
    }
    given
}

/// The error of a file that makes one of what rules find.
fn violation(plan: &Plan, warnings: &[Diagnostic]) -> Option<Diagnostic> {
    let names = crate::lint::violated(&plan.control, warnings);
    if names.is_empty() {
        return None;
    }
    let message = format!("lint violation found for rules: {}", names.join(", "));
    let finding = Diagnostic::error("lint-violation", plan.control_span, message);
    Some(finding.note("the file asks for it with check=error=true"))
}

fn finish_config(plan: &Plan, mut image: ImageConfig) -> ImageConfig {
    image.config.labels.extend(plan.options.labels.clone());
    if let Some(target) = &plan.options.target_platform {
        let same = target.os == image.os && target.architecture == image.architecture;
        image.os.clone_from(&target.os);
        image.architecture.clone_from(&target.architecture);
        if target.variant.is_some() || !same {
            image.variant.clone_from(&target.variant);
        }
        if target.os_version.is_some() || !same {
            image.os_version.clone_from(&target.os_version);
        }
    }
    let platform = image.platform();
    (image.os, image.architecture, image.variant) = (platform.os, platform.architecture, platform.variant);
    image.rootfs.diff_ids.clear();
    image
}

/// The operation that reads the context, narrowed to what is used.
fn context_operation(options: &Options, used: &ContextUse) -> (pb::Op, pb::OpMetadata) {
    let (identifier, attrs, name) = match &options.context {
        MainContext::Source { identifier, attrs, name } => (identifier.clone(), attrs.clone(), name.clone()),
        MainContext::Local { name, session, exclude_patterns } => {
            let mut attrs = std::collections::BTreeMap::new();
            if let Some(session) = session {
                attrs.insert("local.session".to_owned(), session.clone());
            }
            if !exclude_patterns.is_empty() {
                attrs.insert("local.excludepatterns".to_owned(), crate::go::json_list(exclude_patterns));
            }
            match used {
                ContextUse::Paths(paths) if !paths.is_empty() => {
                    attrs.insert("local.followpaths".to_owned(), crate::go::json_list(paths));
                }
                _ => {}
            }
            attrs.insert("local.sharedkeyhint".to_owned(), name.clone());
            (format!("local://{name}"), attrs, "[internal] load build context".to_owned())
        }
    };
    let op = pb::op::Op::Source(pb::SourceOp { identifier, attrs });
    (draft::operation(op, None), draft::named(&name))
}
