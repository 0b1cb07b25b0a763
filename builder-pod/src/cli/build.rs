//! `lapstrake-builder build`.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Parser;
use lapstrake_dockerfile::Style;
use lapstrake_handoff::Reason;
use lapstrake_oci::Platform;
use lapstrake_registry::{Client, Config, Credentials, HostsConfig};
use lapstrake_run::sandbox::Sandbox;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{cache, output};
use crate::build::{self, Built};
use crate::error::{BuildError, chain};
use crate::in_cluster::InCluster;
use crate::manifest;
use crate::options::{BuildOptions, Context, Image, Output};
use crate::progress::{Format, Progress};
use crate::room;
use crate::wiring;

/// Where state is kept when nothing else is said.
pub(super) const ROOT_DEFAULT: &str = "/var/lib/lapstrake-builder";

/// Flags of `build`, named as `docker buildx build` names them.
/// Given twice, a flag's last value counts, as with `docker`.
#[derive(Debug, Parser)]
#[command(args_override_self = true)]
pub(crate) struct Args {
    /// A directory, a Git URL (`https://….git#ref:dir`), an http(s) address of an archive, or an
    /// ImageBuild manifest (`imagebuild.yaml`).
    #[arg(default_value = ".", value_name = "DIR | URL | IMAGEBUILD")]
    source: String,
    /// Dockerfile, relative to the working directory or the context; `-` reads it from standard input.
    #[arg(short, long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Name of the image; may be given several times.
    #[arg(short, long = "tag", value_name = "NAME[:TAG]")]
    tags: Vec<String>,
    /// Where the result goes, such as `type=oci,dest=image.tar`; types: image, registry, oci, docker, local, tar.
    #[arg(short, long = "output", value_name = "DEST")]
    outputs: Vec<String>,
    /// Push the image to its registry: short for `--output type=registry`.
    #[arg(long)]
    push: bool,
    /// Stage to build; the last one when absent.
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Build argument; without a value it is taken from the environment.
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    build_args: Vec<String>,
    /// Label of the image.
    #[arg(long = "label", value_name = "NAME=VALUE")]
    labels: Vec<String>,
    /// What stands for a stage or image of this name: a directory, an address, docker-image://IMAGE,
    /// oci-layout://DIR[:TAG|@DIGEST], or target:STAGE.
    #[arg(long = "build-context", value_name = "NAME=VALUE")]
    build_contexts: Vec<String>,
    /// Annotation, for manifests or for what stands before it: manifest, index, manifest-descriptor,
    /// index-descriptor, with [PLATFORM] behind the manifest's.
    #[arg(long = "annotation", value_name = "[TYPE:]NAME=VALUE")]
    annotations: Vec<String>,
    /// Fill in from the source's revision: OCI's standard annotations, the same as labels, SOURCE_DATE_EPOCH.
    #[arg(long, value_name = "WHAT", value_delimiter = ',', value_enum)]
    from_source: Vec<FilledIn>,
    /// Platforms to build for; this machine's when absent. Several become one index.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    platform: Vec<String>,
    /// Where emulators for other platforms are looked for before PATH.
    #[arg(long, value_name = "DIR", env = "LAPSTRAKE_EMULATORS")]
    emulators: Option<PathBuf>,
    /// Run every step, whatever the cache has.
    #[arg(long)]
    no_cache: bool,
    /// Run every step of these stages, whatever the cache has.
    #[arg(long, value_name = "STAGE", value_delimiter = ',', conflicts_with = "no_cache")]
    no_cache_filter: Vec<String>,
    #[command(flatten)]
    inputs: super::inputs::InputArgs,
    #[command(flatten)]
    steps: super::steps::StepArgs,
    /// Cache of other builds that is looked into, such as `type=registry,ref=NAME`, `type=local,src=DIR` or a name;
    /// may be given several times.
    #[arg(long = "cache-from", value_name = "CACHE")]
    cache_from: Vec<String>,
    /// Cache that is written, such as `type=registry,ref=NAME,mode=max`, `type=local,dest=DIR`, `type=inline` or a
    /// name; may be given several times.
    #[arg(long = "cache-to", value_name = "CACHE")]
    cache_to: Vec<String>,
    /// Attests how the image was made: `true`, `false`, or `mode=min|max,version=v1|v0.2,builder-id=URL,…`; the image is then an
    /// index, with the attestation beside it.
    #[arg(long, value_name = "ATTRIBUTES", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    provenance: Option<String>,
    /// Attests what is in the image: `true`, `false`, or `generator=IMAGE,…`.
    #[arg(long, value_name = "ATTRIBUTES", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    sbom: Option<String>,
    /// The same as `type=provenance,…` or `type=sbom,…`.
    #[arg(long = "attest", value_name = "type=TYPE,…")]
    attests: Vec<String>,
    /// How progress is shown (on standard error).
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    progress: Format,
    /// Write digest and image name as JSON into this file.
    #[arg(long, value_name = "FILE")]
    metadata_file: Option<PathBuf>,
    /// Show no progress, print the image's digest.
    #[arg(short, long)]
    quiet: bool,
    /// Directory of blobs, snapshots and cache.
    #[arg(long, value_name = "STATE", env = "LAPSTRAKE_ROOT", default_value = ROOT_DEFAULT)]
    root: PathBuf,
    /// Bytes that the state directory may take, such as `20gb`; what is needed least goes when it is more.
    /// Absent: a share of the disk.
    #[arg(long, value_name = "SIZE", env = "LAPSTRAKE_CACHE_SIZE", value_parser = super::size::parse)]
    cache_size: Option<u64>,
    /// Settings of registries (JSON or YAML): mirrors, http, insecure, ca, by host.
    #[arg(long, value_name = "FILE", env = "LAPSTRAKE_REGISTRIES")]
    registries: Option<PathBuf>,
}

/// What can be filled in from the source's revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FilledIn {
    /// Annotations org.opencontainers.image.source, revision, version and created.
    Annotations,
    /// The same as labels.
    Labels,
    /// The commit's time.
    Epoch,
}

/// As clap exits where it finds the mistake.
const USAGE_EXIT_CODE: u8 = 2;

/// A mistake on the command line.
fn usage(message: impl Into<String>) -> BuildError {
    BuildError::new(Reason::RequestInvalid, message)
}

/// Runs the build and says how it ended; the exit code.
pub(crate) fn main(args: &Args, sandbox: &Sandbox) -> u8 {
    let format = if args.quiet { Format::Quiet } else { args.progress };
    let progress = Progress::new(format);
    let result = wiring::block_on(run(args, sandbox, &progress));
    progress.finish();
    match result {
        Ok(built) => {
            if args.quiet
                && let Some(image) = &built.image
            {
                // The one thing that scripts read.
                writeln!(std::io::stdout(), "{}", image.manifest.digest).ok(); // a closed pipe wants nothing
            }
            0
        }
        Err(error) => failed(&error),
    }
}

/// Tells a person why nothing came of it; the exit code.
pub(crate) fn failed(error: &BuildError) -> u8 {
    let style = if console::colors_enabled_stderr() { Style::Color } else { Style::Plain };
    writeln!(std::io::stderr(), "{}", error.render(style)).ok(); // nobody listens
    match error.failure().reason {
        Reason::RequestInvalid => USAGE_EXIT_CODE,
        reason => reason.class().exit_code(),
    }
}

async fn run(args: &Args, sandbox: &Sandbox, progress: &Progress) -> Result<Built, BuildError> {
    let options = options(args)?;
    let cancel = CancellationToken::new();
    wiring::cancel_on_signals(&cancel);
    let credentials = Credentials::from_environment().map_err(|e| usage(e.full()))?;
    let hosts = match &args.registries {
        None => HostsConfig::default(),
        Some(path) => read_hosts(path)?,
    };
    let client = Client::new(Config { hosts, credentials, ..Config::default() });
    let engine =
        Arc::new(wiring::engine(&args.root, client, sandbox)?.with_emulators(args.emulators.as_deref()));
    let job = room::begin(engine.store(), room::Host::Laptop, args.cache_size)?;
    let result = build::build(&engine, &options, progress, &cancel).await;
    // What finished steps made is kept, however the build ended.
    let flushed = wiring::flush(&engine).await;
    let cache_bytes = room::end(engine.store(), job, &cancel).await;
    let built = Built { cache_bytes, ..result? };
    flushed?;
    if let Some(path) = &args.metadata_file {
        write_metadata(path, &built)?;
    }
    Ok(built)
}

/// Reads settings of registries.
pub(crate) fn read_hosts(path: &Path) -> Result<HostsConfig, BuildError> {
    let failed = |e: String| usage(format!("settings of registries {}: {e}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| failed(e.to_string()))?;
    serde_saphyr::from_str(&text).map_err(|e| failed(e.to_string()))
}

fn options(args: &Args) -> Result<BuildOptions, BuildError> {
    let mut named = Image::default();
    for tag in &args.tags {
        named.add_name(tag).map_err(|e| usage(format!("--tag: {e}")))?;
    }
    let path = Path::new(&args.source);
    let is_manifest = path.is_file() && path.extension().is_some_and(|e| e == "yaml" || e == "yml");
    let (mut options, in_cluster) = match is_manifest {
        true => manifest::read(path)?,
        false => (BuildOptions::new(context(&args.source)?), InCluster::default()),
    };
    dockerfile(args, &mut options)?;
    options.target = args.target.clone().or(options.target);
    options.no_cache |= args.no_cache;
    options.no_cache_stages.extend(args.no_cache_filter.iter().cloned());
    args.inputs.add_to(&mut options.inputs).map_err(usage)?;
    args.steps.add_to(&mut options)?;
    for arg in &args.build_args {
        match arg.split_once('=') {
            Some((name, value)) => options.args.insert(name.to_owned(), value.to_owned()),
            // As buildx: a name alone takes the environment's value, and is nothing where it has none.
            None => std::env::var(arg).ok().and_then(|value| options.args.insert(arg.clone(), value)),
        };
    }
    for label in &args.labels {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        options.labels.insert(name.to_owned(), value.to_owned());
    }
    for text in &args.build_contexts {
        let (name, named) = crate::named::parse(text, context)?;
        options.named.insert(name, named);
    }
    for text in &args.annotations {
        options.annotations.add(text).map_err(usage)?;
    }
    // Beside what a manifest asks for.
    let asked = |what| args.from_source.contains(&what);
    options.from_source.annotations |= asked(FilledIn::Annotations);
    options.from_source.labels |= asked(FilledIn::Labels);
    options.from_source.epoch |= asked(FilledIn::Epoch);
    if !args.platform.is_empty() {
        let platforms = args.platform.iter();
        let platforms =
            platforms.map(|p| p.parse::<Platform>().map_err(|e| usage(format!("--platform: {e}"))));
        options.platforms = platforms.collect::<Result<_, _>>()?;
    }
    attested(args, &mut options)?;
    outputs(args, named, &mut options)?;
    for text in &args.cache_from {
        options.cache_from.push(cache::import(text).map_err(usage)?);
    }
    for text in &args.cache_to {
        options.cache_to.push(cache::export(text).map_err(usage)?);
    }
    in_cluster.settle(&mut options);
    special_args(&mut options)?;
    if let Ok(text) = std::env::var("SOURCE_DATE_EPOCH")
        && !options.args.contains_key("SOURCE_DATE_EPOCH")
    {
        options.args.insert("SOURCE_DATE_EPOCH".to_owned(), text);
    }
    // What is no number is the name of something that has a time: the Dockerfile's frontend knows.
    if let Some(seconds) = options.args.get("SOURCE_DATE_EPOCH").and_then(|text| text.parse().ok()) {
        options.source_date_epoch = Some(seconds);
    }
    Ok(options)
}

/// What is to be attested, as buildx reads it: short forms over the long one, and both over a manifest's.
fn attested(args: &Args, options: &mut BuildOptions) -> Result<(), BuildError> {
    if args.attests.is_empty() && args.provenance.is_none() && args.sbom.is_none() {
        return Ok(());
    }
    let mut all = std::collections::BTreeMap::new();
    let mut add = |kind: &str, text: &str| match text {
        "false" => drop(all.remove(&format!("attest:{kind}"))),
        "true" => drop(all.insert(format!("attest:{kind}"), String::new())),
        text => drop(all.insert(format!("attest:{kind}"), text.to_owned())),
    };
    for text in &args.attests {
        let mut fields: Vec<&str> = text.split(',').collect();
        let at = fields.iter().position(|field| field.starts_with("type="));
        let at = at.ok_or_else(|| usage(format!("--attest {text}: it has no type=TYPE")))?;
        let kind = fields.remove(at).trim_start_matches("type=");
        let disabled = fields.contains(&"disabled=true");
        fields.retain(|field| !field.starts_with("disabled="));
        match disabled {
            true => add(kind, "false"),
            false => add(kind, &fields.join(",")),
        }
    }
    for (kind, text) in [("provenance", &args.provenance), ("sbom", &args.sbom)] {
        if let Some(text) = text {
            add(kind, text);
        }
    }
    options.attested = crate::attest::Asked::of(all.iter()).map_err(usage)?;
    Ok(())
}

/// Build arguments that BuildKit's clients know as options.
fn special_args(options: &mut BuildOptions) -> Result<(), BuildError> {
    let on = |name: &str| {
        let value = options.args.get(name).map(String::as_str);
        matches!(value, Some("1" | "t" | "T" | "true" | "TRUE" | "True"))
    };
    let (inline, keep) = (on("BUILDKIT_INLINE_CACHE"), on("BUILDKIT_CONTEXT_KEEP_GIT_DIR"));
    options.index |= on("BUILDKIT_MULTI_PLATFORM");
    if inline && !options.cache_to.iter().any(|cache| cache.to == lapstrake_handoff::CacheTarget::Inline) {
        options.cache_to.push(cache::export("type=inline").map_err(usage)?);
    }
    if let Context::Git { keep_git_dir, .. } = &mut options.context {
        *keep_git_dir |= keep;
    }
    Ok(())
}

/// An ImageBuild's own output counts where the command line names none: its image is made, and pushed
/// only when that is asked for.
fn outputs(args: &Args, named: Image, options: &mut BuildOptions) -> Result<(), BuildError> {
    let own = match options.outputs.pop() {
        Some(Output::Push(image)) => Some(image),
        _ => None,
    };
    let mut image = own.unwrap_or_default();
    if !named.names.is_empty() || !named.templates.is_empty() {
        (image.names, image.templates) = (named.names, named.templates);
    }
    for text in &args.outputs {
        options.outputs.push(output::parse(text, &image).map_err(usage)?);
    }
    if args.push {
        if image.names.is_empty() && image.templates.is_empty() {
            return Err(usage("--push needs a name: give --tag NAME"));
        }
        options.outputs.push(Output::Push(image));
    } else if options.outputs.is_empty() {
        options.outputs.push(Output::Image(Image { ..image }));
    }
    Ok(())
}

fn dockerfile(args: &Args, options: &mut BuildOptions) -> Result<(), BuildError> {
    let Some(file) = &args.file else { return Ok(()) };
    if file.as_os_str() == "-" {
        let text = std::io::read_to_string(std::io::stdin()).map_err(|e| usage(format!("--file -: {e}")))?;
        options.dockerfile_text = Some(text);
        return Ok(());
    }
    let Context::Directory(dir) = &options.context else {
        // In a repository or archive the path is one of its own.
        options.dockerfile = Some(file.display().to_string());
        return Ok(());
    };
    // As buildx: relative to the working directory. One outside of the context is read here.
    let inside = match (file.canonicalize(), dir.canonicalize()) {
        (Ok(file), Ok(dir)) => file.strip_prefix(dir).ok().map(Path::to_path_buf),
        _ => None,
    };
    match inside {
        Some(path) => options.dockerfile = Some(path.display().to_string()),
        None => {
            let failed = |e| usage(format!("--file {}: {e}", file.display()));
            options.dockerfile_text = Some(std::fs::read_to_string(file).map_err(failed)?);
            options.dockerfile = Some(file.display().to_string());
        }
    }
    Ok(())
}

fn context(text: &str) -> Result<Context, BuildError> {
    if Path::new(text).is_dir() {
        return Ok(Context::Directory(PathBuf::from(text)));
    }
    let none = || usage(format!("{text} is no directory, Git URL, http address or ImageBuild manifest"));
    remote_context(text)?.ok_or_else(none)
}

/// A context that an address names; none where it is no address.
pub(crate) fn remote_context(text: &str) -> Result<Option<Context>, BuildError> {
    if let Some(git) = git_url(text)? {
        let reference = match (git.checksum, git.reference) {
            (Some(commit), _) => lapstrake_source::GitRef::Commit(commit),
            (None, Some(name)) => lapstrake_source::GitRef::Any(name),
            (None, None) => lapstrake_source::GitRef::Default,
        };
        let path = Some(git.subdir).filter(|p| !p.is_empty());
        return Ok(Some(Context::Git {
            url: git.remote,
            reference,
            commit: None,
            path,
            submodules: git.submodules.unwrap_or(true),
            keep_git_dir: git.keep_git_dir.unwrap_or(false),
        }));
    }
    if text.starts_with("http://") || text.starts_with("https://") {
        return Ok(Some(Context::Http { url: text.to_owned(), sha256: None, path: None }));
    }
    Ok(None)
}

fn git_url(text: &str) -> Result<Option<lapstrake_source::GitUrl>, BuildError> {
    let parse = |text: &str| lapstrake_source::parse_git_url(text).map_err(|e| usage(chain(&e)));
    // A repository of this machine: what stands behind its path is read as behind Git's own scheme.
    let Some(path) = text.strip_prefix("file://") else { return parse(text) };
    let url = parse(&format!("git://{path}"))?;
    Ok(url.map(|url| lapstrake_source::GitUrl { remote: url.remote.replacen("git://", "file://", 1), ..url }))
}

/// The keys are those of buildx.
fn write_metadata(path: &Path, built: &Built) -> Result<(), BuildError> {
    let mut metadata = serde_json::Map::new();
    if let Some(image) = &built.image {
        metadata.insert("containerimage.digest".to_owned(), json!(image.manifest.digest));
        if image.platforms.len() == 1 {
            metadata.insert("containerimage.config.digest".to_owned(), json!(image.config));
        }
        metadata.insert("containerimage.descriptor".to_owned(), json!(image.manifest));
        metadata.insert("image.name".to_owned(), json!(built.names.join(",")));
    }
    let text = serde_json::to_string_pretty(&metadata).map_err(BuildError::internal)?;
    std::fs::write(path, text).map_err(|e| usage(format!("--metadata-file {}: {e}", path.display())))
}
