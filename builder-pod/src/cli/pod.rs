//! `lapstrake-builder pod`: one request in, one outcome out.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use lapstrake_handoff::{
    AttestationManifest, Outcome, PlatformResult, ProgressFormat, Reason, Request, SandboxMode, SourceFacts,
    Success, paths,
};
use lapstrake_registry::{Client, Config, HostsConfig};
use lapstrake_run::sandbox::{Mode, Sandbox, Unavailable};
use tokio_util::sync::CancellationToken;

use crate::annotations::{Annotations, Place};
use crate::asked;
use crate::build::{self, Built};
use crate::error::BuildError;
use crate::export::{Exported, OfPlatform};
use crate::join;
use crate::options::{BuildOptions, FromSource, Image, Output};
use crate::progress::{Format, Progress};
use crate::reach::{self, Reach};
use crate::room;
use crate::wiring;

/// Flags of `pod`.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// The request, as the operator wrote it.
    #[arg(long, default_value = paths::REQUEST_FILE)]
    request: PathBuf,
    /// Where the outcome goes.
    #[arg(long, default_value = paths::TERMINATION_MESSAGE)]
    outcome: PathBuf,
}

/// The sandbox that the request names, if it needs one: read before the sandbox is entered.
pub(crate) fn sandbox_mode(args: &Args) -> Result<Option<Mode>, BuildError> {
    let request = read(args)?;
    Ok(match request.sandbox {
        // Nothing is run.
        _ if !request.index.is_empty() => None,
        SandboxMode::UserNamespace => Some(Mode::UserNamespace),
        SandboxMode::Baseline => Some(Mode::Baseline),
        SandboxMode::Privileged => Some(Mode::Root),
    })
}

/// A failure before anything ran.
pub(crate) fn unavailable(error: &Unavailable) -> BuildError {
    BuildError::new(Reason::SandboxUnavailable, error.to_string())
}

fn read(args: &Args) -> Result<Request, BuildError> {
    let invalid = |message: String| BuildError::new(Reason::RequestInvalid, message);
    let bytes =
        std::fs::read(&args.request).map_err(|e| invalid(format!("{}: {e}", args.request.display())))?;
    Request::parse(&bytes).map_err(|e| invalid(crate::error::chain(&e)))
}

/// Serves the request; the exit code.
pub(crate) fn main(args: &Args, sandbox: Result<Option<Sandbox>, BuildError>) -> u8 {
    let outcome = match sandbox.and_then(|sandbox| serve(args, sandbox.as_ref())) {
        Ok(built) => Outcome::Success(success(&built)),
        Err(error) => {
            eprint_error(&error);
            Outcome::Failure(error.failure().clone())
        }
    };
    let text = outcome.encode();
    if let Err(error) = std::fs::write(&args.outcome, &text) {
        // The log is the only place left.
        tracing::error!("the outcome can't be written to {}: {error}: {text}", args.outcome.display());
    }
    outcome.exit_code()
}

fn eprint_error(error: &BuildError) {
    use std::io::Write as _;
    writeln!(std::io::stderr(), "{}", error.render(lapstrake_dockerfile::Style::Plain)).ok(); // nobody listens
}

fn serve(args: &Args, sandbox: Option<&Sandbox>) -> Result<Built, BuildError> {
    let request = read(args)?;
    let state = PathBuf::from(&request.state_dir);
    if let Some(sandbox) = sandbox {
        sandbox.preflight(&state).map_err(|e| unavailable(&e))?;
    }
    let format = match request.progress {
        ProgressFormat::Plain => Format::Plain,
        ProgressFormat::Json => Format::Json,
    };
    let progress = Progress::new(format);
    let result = match sandbox {
        Some(sandbox) => wiring::block_on(run(&request, &state, sandbox, &progress)),
        None => wiring::block_on(index(&request, &progress)),
    };
    progress.finish();
    result.map_err(|error| counted(&error, &progress))
}

/// A failure with the steps that were done until then.
fn counted(error: &BuildError, progress: &Progress) -> BuildError {
    let counts = progress.counts();
    error.noted(|failure| {
        failure.steps = counts.steps;
        failure.cached_steps = counts.cached;
    })
}

async fn run(
    request: &Request,
    state: &Path,
    sandbox: &Sandbox,
    progress: &Progress,
) -> Result<Built, BuildError> {
    let options = options(request)?;
    let cancel = CancellationToken::new();
    wiring::cancel_on_signals(&cancel);
    let client = Client::new(config(request, &options.reach)?);
    let engine = Arc::new(wiring::engine(state, client, sandbox)?);
    let job = room::begin(engine.store(), room::Host::Pod, request.cache_max_bytes)?;
    let timeout = request.timeout_seconds.map(Duration::from_secs);
    let work = build::build(&engine, &options, progress, &cancel);
    let result = match timeout {
        None => work.await,
        Some(timeout) => {
            tokio::pin!(work);
            tokio::select! {
                result = &mut work => result,
                () = tokio::time::sleep(timeout) => {
                    cancel.cancel();
                    // An image that was pushed at the last moment is one.
                    work.await.map_err(|_| timed_out(timeout))
                }
            }
        }
    };
    // What finished steps made is kept, however the build ended.
    let flushed = wiring::flush(&engine).await;
    let cache_bytes = room::end(engine.store(), job, &cancel).await;
    let built = match result {
        Ok(built) => Built { cache_bytes, image: built.image.map(|image| told(request, image)), ..built },
        Err(error) => return Err(error.noted(|failure| failure.cache_bytes = cache_bytes)),
    };
    if let Err(error) = flushed {
        // The image is where it was asked for; without its cache the next build only takes longer.
        tracing::warn!("what this build made can't be kept for the next one: {error}");
    }
    Ok(built)
}

/// Of an image that has its own index nobody has to know what stands in that; an outcome has little room.
fn told(request: &Request, mut image: Exported) -> Exported {
    if !request.output.push_by_digest {
        image.platforms.iter_mut().for_each(|of| of.attestation = None);
    }
    image
}

/// Joins what was built before.
async fn index(request: &Request, progress: &Progress) -> Result<Built, BuildError> {
    let cancel = CancellationToken::new();
    wiring::cancel_on_signals(&cancel);
    let client = Client::new(config(request, &Reach::of(request)?)?).with_cancel(cancel.clone());
    let work = join::join(&client, request, progress);
    let timeout = Duration::from_secs(request.timeout_seconds.unwrap_or(3600));
    let limited = async { tokio::time::timeout(timeout, work).await.map_err(|_| timed_out(timeout))? };
    build::abortable(&cancel, limited).await
}

fn timed_out(timeout: Duration) -> BuildError {
    let message =
        format!("the build took longer than its timeout of {} s; raise spec.timeout", timeout.as_secs());
    BuildError::new(Reason::TimedOut, message)
}

fn config(request: &Request, reach: &Reach) -> Result<Config, BuildError> {
    let hosts = match &request.registries_config {
        None => HostsConfig::default(),
        Some(path) => super::build::read_hosts(Path::new(path))?,
    };
    reach::registry(request, hosts, reach)
}

/// The request as options.
fn options(request: &Request) -> Result<BuildOptions, BuildError> {
    let invalid = |message: String| BuildError::new(Reason::RequestInvalid, message);
    let context = asked::context(&request.source);
    let platforms = request.platforms.iter().map(|text| text.parse().map_err(|e| invalid(format!("{e}"))));
    let platforms = platforms.collect::<Result<Vec<_>, _>>()?;
    let mut image = Image {
        by_digest: request.output.push_by_digest,
        compression: request.output.compression,
        level: request.output.compression_level,
        docker_media_types: request.output.docker_media_types,
        ..Image::default()
    };
    for name in &request.output.names {
        image.add_name(name).map_err(invalid)?;
    }
    let mut options = BuildOptions::new(context);
    options.dockerfile = request.dockerfile.path.clone();
    options.dockerfile_text = request.dockerfile.inline.clone();
    options.target = request.dockerfile.target.clone();
    options.args = request.args.clone();
    let (args, warnings) = reach::args(request)?;
    options.args.extend(args);
    options.warnings = warnings;
    options.reach = Reach::of(request)?;
    options.labels = request.output.labels.clone();
    let places: &[Place] = match platforms.len() {
        0 | 1 => &[Place::Manifest],
        _ => &[Place::Manifest, Place::Index],
    };
    options.annotations = Annotations::everywhere(&request.output.annotations, places);
    options.from_source = FromSource {
        annotations: request.output.annotations_from_source,
        labels: request.output.labels_from_source,
        epoch: request.source_date_epoch_from_source,
    };
    options.platforms = platforms;
    options.no_cache = request.no_cache;
    asked::of_request(request, &mut options)?;
    options.inputs = crate::inputs::Inputs::of_request(request);
    options.reach.complete(&mut options.inputs.proxy);
    options.cache_from.clone_from(&request.cache_from);
    options.cache_to.clone_from(&request.cache_to);
    options.source_date_epoch = match options.args.get("SOURCE_DATE_EPOCH").filter(|t| !t.is_empty()) {
        None => request.source_date_epoch,
        // What is no number is the name of something that has a time: the Dockerfile's frontend knows.
        Some(text) => text.parse().ok(),
    };
    options.outputs = vec![Output::Push(image)];
    Ok(options)
}

fn success(built: &Built) -> Success {
    let mut success = Success {
        revision: built.revision.clone(),
        base_images: built.base_images.clone(),
        steps: built.steps.0,
        cached_steps: built.steps.1,
        timings: built.timings,
        cache_bytes: built.cache_bytes,
        platform: built.platform.as_ref().map(ToString::to_string).unwrap_or_default(),
        names: built.names.clone(),
        names_left_out: built.left_out.clone(),
        facts: Some(built.facts.clone()).filter(|facts| *facts != SourceFacts::default()),
        ..Success::default()
    };
    if let Some(image) = &built.image {
        success.digest = image.manifest.digest.to_string();
        success.config_digest = image.config.to_string();
        success.media_type = image.manifest.media_type.clone();
        success.size_bytes = image.size_bytes;
        success.manifest_bytes = image.manifest.size;
        let of = |of: &OfPlatform| PlatformResult {
            platform: of.platform.to_string(),
            digest: of.manifest.digest.to_string(),
            manifest_bytes: of.manifest.size,
            media_type: of.manifest.media_type.clone(),
            size_bytes: of.size_bytes,
            attestation: of.attestation.as_ref().map(|manifest| AttestationManifest {
                digest: manifest.digest.to_string(),
                bytes: manifest.size,
            }),
        };
        success.platforms = image.platforms.iter().map(of).collect();
    }
    success
}
