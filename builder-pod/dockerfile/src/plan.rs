//! From the tree to the stages that a target needs.

mod args;
mod epoch;
mod image;
mod stages;
mod triggers;

use std::collections::{BTreeMap, BTreeSet};

use lapstrake_oci::{Digest, ImageConfig, Platform, Reference};

pub(crate) use args::{GlobalArgs, GlobalDecl, build_arg, global as global_args, unused as unused_args};
pub(crate) use stages::{Base, From, LocalDir, Stage, StageId, Stages, Step};
pub(crate) use triggers::{note as trigger_note, resolve as with_triggers};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::go;
use crate::lint::{self, Control};
use crate::lower::{self, Lowered};
use crate::options::Options;
use crate::parse::Parsed;
use crate::source::{Source, Span};

/// Names an image config that lowering needs: a reference on a platform.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageKey {
    /// With a tag or digest (`latest` where the Dockerfile says neither).
    pub reference: Reference,
    /// The platform of the stage.
    pub platform: Platform,
}

/// An image config that lowering needs, and where the Dockerfile asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRequest {
    /// Which image.
    pub key: ImageKey,
    /// Where it is named.
    pub span: Span,
}

/// An image config as the registry gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// Digest of the index or manifest that the reference stood for; pins the build to it.
    pub digest: Option<Digest>,
    /// The config of the platform's image.
    pub config: ImageConfig,
    /// The image that was taken in place of the one that was asked for.
    pub instead: Option<Reference>,
}

impl ResolvedImage {
    /// The image as it is pinned, where that is known.
    pub(crate) fn pinned(&self, asked: &Reference) -> Reference {
        let reference = self.instead.as_ref().unwrap_or(asked);
        self.digest.map_or_else(|| reference.clone(), |digest| reference.with_digest(digest))
    }
}

/// Image configs by what they were asked for.
pub type Images = BTreeMap<ImageKey, ResolvedImage>;

/// The stages that a target needs, checked as far as possible without image configs.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(crate) source: Source,
    pub(crate) escape: char,
    pub(crate) options: Options,
    pub(crate) args: GlobalArgs,
    pub(crate) stages: Stages,
    pub(crate) warnings: Vec<Diagnostic>,
    /// Which rules report, and where that is said.
    pub(crate) control: Control,
    pub(crate) control_span: Span,
    /// Names of `ARG` instructions before the first `FROM`, and the instructions.
    pub(crate) global_names: BTreeSet<String>,
    pub(crate) global_decls: Vec<GlobalDecl>,
    /// Names of `ARG` instructions.
    pub(crate) declared: BTreeSet<String>,
    pub(crate) epoch: Option<i64>,
}

/// Picks the stages that the target of `options` needs. Findings of `parsed` that are errors end it.
pub fn plan(parsed: &Parsed, options: &Options) -> Result<Plan, Diagnostics> {
    plan_with_all(parsed, options).map_err(Diagnostics::without_echoes)
}

/// A download or repository whose time a build asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct EpochSource {
    /// Name of the stage that it is in, lower case: the key for [`Options::context_times`].
    pub stage: String,
    /// The operation that brings it.
    pub source: lapstrake_llb::pb::SourceOp,
}

/// Where `SOURCE_DATE_EPOCH` is the name of a stage: what has to be asked for its time before [`plan`] (the time of the
/// commit; of a file that of its last change as the server has it, else of the newest file in it). `None`: nothing.
pub fn epoch_source(parsed: &Parsed, options: &Options) -> Result<Option<EpochSource>, Diagnostics> {
    let (args, _) = args::global(&parsed.ast, options);
    match epoch::source(&parsed.ast, &args, options) {
        Ok(found) => Ok(found.map(|(stage, source)| EpochSource { stage, source })),
        Err(finding) => Err(Diagnostics::of(parsed.source().clone(), vec![*finding]).finish()),
    }
}

/// The same with all that rules find.
pub(crate) fn plan_with_all(parsed: &Parsed, options: &Options) -> Result<Plan, Diagnostics> {
    let source = parsed.source().clone();
    if parsed.diagnostics.has_errors() {
        let mut all = parsed.diagnostics.clone();
        if let Ok((control, _)) = control(parsed, options) {
            let (args, _) = args::global(&parsed.ast, options);
            all.extend(lint::check_file(parsed, options, &control, &args).0);
        }
        return Err(all.finish());
    }
    let mut findings = Diagnostics::new(source.clone());
    findings.extend(syntax(parsed, options));
    findings.extend(removed(options));
    let (mut args, found) = args::global(&parsed.ast, options);
    findings.extend(found);
    let mut options = options.clone();
    let epoch = epoch::resolve(&parsed.ast, &mut args, &mut options).unwrap_or_else(|finding| {
        findings.extend([*finding]);
        None
    });
    let options = &options;
    let (stages, found) = stages::collect(&parsed.ast, options, &args);
    findings.extend(found);
    let (control, control_span) = match control(parsed, options) {
        Ok(found) => found,
        Err(finding) => {
            findings.extend([*finding]);
            (Control::default(), Span::default())
        }
    };
    let reported = |finding: &&Diagnostic| lint::rule(finding.code).is_none_or(|rule| control.reports(rule));
    let mut warnings: Vec<_> = parsed.diagnostics.iter().filter(reported).cloned().collect();
    warnings.extend(control.unknown().map(|name| {
        let message = format!("no rule is called {name}");
        Diagnostic::warning("unknown-rule", control_span, message).suggest(lint::nearest(name))
    }));
    warnings.extend(lint::check_file(parsed, options, &control, &args).0);
    let declared = args::declared(&parsed.ast);
    let global_decls = args::global_decls(&parsed.ast);
    let global_names = global_decls.iter().map(|decl| decl.name.clone()).collect();
    if findings.has_errors() {
        findings.extend(warnings);
        findings.extend(args::unused(&declared, &stages, options));
        return Err(findings.finish());
    }
    let escape = parsed.ast.escape;
    let options = with_special_args(options);
    Ok(Plan {
        source,
        escape,
        options,
        args,
        stages,
        warnings,
        control,
        control_span,
        global_names,
        global_decls,
        declared,
        epoch,
    })
}

/// Which rules report: the `check` directive says it, and the build arg `BUILDKIT_DOCKERFILE_CHECK` instead of it.
fn control(parsed: &Parsed, options: &Options) -> Result<(Control, Span), Box<Diagnostic>> {
    let directive = parsed.ast.directives.iter().find(|d| d.name == "check");
    let (text, span) = match (build_arg(options, "BUILDKIT_DOCKERFILE_CHECK"), directive) {
        (Some(text), _) => (text, Span::default()),
        (None, Some(directive)) => (directive.value.split(' ').next().unwrap_or(""), directive.span),
        (None, None) => return Ok((Control::default(), Span::default())),
    };
    let control = Control::parse(text).map_err(|why| {
        let message = format!("failed to parse check options: {why}");
        let help = "write skip=Rule,Rule or skip=all, error=true, experimental=Rule, with ; between them";
        Box::new(Diagnostic::error("invalid-check", span, message).help(help))
    })?;
    Ok((control, span))
}

impl Plan {
    /// The images whose configs are still needed, given those that are `known`. Ask again with the answers
    /// until it is empty: triggers of a base image may need further images.
    pub fn images_needed(&self, known: &Images) -> Vec<ImageRequest> {
        image::needed(self, known)
    }

    /// What is `known` with an answer of `assume` for each image that is still needed: for who looks at a file where no
    /// registry is asked.
    pub fn images_assumed(
        &self,
        mut known: Images,
        mut assume: impl FnMut(&ImageRequest) -> ResolvedImage,
    ) -> Images {
        loop {
            let needed = self.images_needed(&known);
            if needed.is_empty() {
                return known;
            }
            for request in needed {
                let image = assume(&request);
                known.insert(request.key, image);
            }
        }
    }

    /// Lowers to LLB. `images` holds all that [`Plan::images_needed`] named.
    pub fn lower(&self, images: &Images) -> Result<Lowered, Diagnostics> {
        lower::lower(self, images)
    }

    /// What rules and lowering find in all that the options ask for (every stage, where they name no target). An image
    /// that is not in `images` may set and hold anything.
    pub(crate) fn findings(&self, images: &Images) -> Vec<Diagnostic> {
        lower::findings(self, images)
    }

    /// The finding for an image that could not be had, at the place that asks for it.
    pub fn image_error(&self, request: &ImageRequest, why: &str) -> Diagnostics {
        let message = format!("base image {} can't be resolved: {why}", request.key.reference);
        let names = self.stages.names();
        let word = self.source.slice(request.span);
        let finding = Diagnostic::error("base-image", request.span, message)
            .suggest(crate::suggest::nearest(word, names.iter().map(String::as_str)));
        Diagnostics::of(self.source.clone(), vec![finding])
    }

    /// The file that the plan is about.
    pub fn source(&self) -> &Source {
        &self.source
    }
}

/// The built-in frontend stands for `docker/dockerfile` images of version 1; others are no matter of this crate. The
/// build arg `BUILDKIT_SYNTAX` takes the directive's place.
fn syntax(parsed: &Parsed, options: &Options) -> Option<Diagnostic> {
    let directive = parsed.ast.directives.iter().find(|d| d.name == "syntax");
    let (text, span) = match build_arg(options, "BUILDKIT_SYNTAX") {
        Some(text) => (text.split(' ').next()?, Span::default()),
        None => (parsed.syntax()?, directive?.span),
    };
    let image: Reference = match text.parse() {
        Ok(image) => image,
        Err(error) => {
            let error: lapstrake_oci::ReferenceError = error;
            return Some(Diagnostic::error("invalid-syntax", span, format!("syntax directive: {error}")));
        }
    };
    if is_ours(&image) {
        return None;
    }
    Some(
        Diagnostic::not_yet(span, format!("frontend {image}")).note(
            "docker/dockerfile of version 1 is built in; others are asked by builds, and for nothing else",
        ),
    )
}

/// Build args that were options once.
fn removed(options: &Options) -> Option<Diagnostic> {
    let on = build_arg(options, "BUILDKIT_DISABLE_FILEOP").is_some_and(|value| go::bool(value) == Some(true));
    let message = "support for \"BUILDKIT_DISABLE_FILEOP\" build-arg was removed in BuildKit 0.11";
    on.then(|| {
        let finding = Diagnostic::error("removed-option", Span::default(), message);
        finding.help("leave the build argument out: copies are made without it")
    })
}

/// Build args that are options of the builder.
fn with_special_args(options: &Options) -> Options {
    let mut options = options.clone();
    if let Some(name) = build_arg(&options, "BUILDKIT_SANDBOX_HOSTNAME").filter(|name| !name.is_empty()) {
        options.hostname = name.to_owned();
    }
    if let Some(namespace) = build_arg(&options, "BUILDKIT_CACHE_MOUNT_NS") {
        options.cache_namespace = namespace.to_owned();
    }
    options
}

/// Whether a frontend image is the one that this library stands for: `docker/dockerfile` of version 1.
pub fn is_built_in(image: &str) -> bool {
    image.parse().is_ok_and(|image| is_ours(&image))
}

fn is_ours(image: &Reference) -> bool {
    let ours = image.registry() == "docker.io"
        && matches!(image.repository(), "docker/dockerfile" | "docker/dockerfile-upstream");
    ours && image.tag().is_none_or(is_known_version)
}

/// Tags of the versions whose language is ours: `1`, `1.7`, `1.7.1`, `1-labs`, `latest`, `labs`, `master`.
fn is_known_version(tag: &str) -> bool {
    let version = tag.split_once('-').map_or(tag, |(version, _)| version);
    matches!(version, "latest" | "labs" | "master" | "main" | "stable" | "1") || version.starts_with("1.")
}
