//! A Dockerfile whose `# syntax=` line names the image of another frontend: that one is run and asked what to build,
//! as the daemon does it for its clients.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lapstrake_handoff::{Reason, StepNetwork};
use tokio_util::sync::CancellationToken;

use crate::build::{Solved, abortable};
use crate::context::{self, Files};
use crate::engine::Engine;
use crate::error::BuildError;
use crate::front::Loaded;
use crate::named::{self, Named};
use crate::options::{BuildOptions, Context};
use crate::progress::Progress;
use crate::serve::single;

/// The main context among the local sources.
const CONTEXT: &str = "context";
/// The directory that the Dockerfile and its ignore file are in.
const DOCKERFILE: &str = "dockerfile";

/// What a frontend's image made of a context.
pub(crate) struct Asked {
    /// The options with all that comes from source and frontend filled in.
    pub(crate) options: BuildOptions,
    /// File systems and configs.
    pub(crate) solved: Vec<Solved>,
}

/// Asks a frontend's image, and works out what it answers.
pub(crate) async fn solve(
    engine: &Arc<Engine>,
    loaded: &Loaded,
    image: &str,
    progress: &Progress,
    cancel: &CancellationToken,
) -> Result<Asked, BuildError> {
    let mut options = loaded.options.clone();
    let caches = crate::import::caches(engine, &options.cache_from, None, progress, cancel);
    caches.await?;
    let file = file_name(loaded);
    abortable(cancel, lend(engine, loaded, file)).await?;
    let mut opts = attributes(&options, file);
    opts.extend(abortable(cancel, contexts(engine, &options)).await?);
    let request = single::Request { image: image.to_owned(), opts, file: loaded.dockerfile.name.clone() };
    let answered = single::solve(engine, request, progress, cancel).await?;
    options.source_date_epoch = options.source_date_epoch.or(answered.epoch);
    options.index |= answered.several;
    options.platforms = answered.solved.iter().map(|solved| solved.platform.clone()).collect();
    Ok(Asked { options, solved: answered.solved })
}

/// The Dockerfile's name in the directory that the frontend finds it in: one from elsewhere stands there alone.
fn file_name(loaded: &Loaded) -> &str {
    let name = &loaded.dockerfile.name;
    match loaded.options.dockerfile_text {
        Some(_) => name.rsplit('/').next().unwrap_or(name),
        None => name,
    }
}

/// Makes the context and the Dockerfile's directory known, from which the frontend takes what it wants.
async fn lend(engine: &Engine, loaded: &Loaded, name: &str) -> Result<(), BuildError> {
    let Files::Here(here) = &loaded.acquired.files else {
        return Err(BuildError::internal("a directory of a client is lent by the client"));
    };
    engine.add_open(CONTEXT, Arc::new(here.whole()?));
    let dockerfile = match &loaded.options.dockerfile_text {
        None => here.whole()?,
        Some(text) => {
            let file = lapstrake_source::InlineFile { content: text.clone().into_bytes(), executable: false };
            let files = Context::Inline(BTreeMap::from([(name.to_owned(), file)]));
            let acquired = context::acquire(engine.store(), &files, &loaded.options.reach, false).await?;
            match acquired.files {
                Files::Here(local) => local,
                Files::Lent(..) => return Err(BuildError::internal("an inline file is at a client")),
            }
        }
    };
    engine.add_open(DOCKERFILE, Arc::new(dockerfile));
    Ok(())
}

/// The named contexts as attributes, made known to the engine.
async fn contexts(engine: &Engine, options: &BuildOptions) -> Result<HashMap<String, String>, BuildError> {
    let mut all = HashMap::new();
    for (name, named) in &options.named {
        let value = match named {
            Named::Scratch => "docker-image://scratch".to_owned(),
            Named::Image(reference) => format!("docker-image://{reference}"),
            Named::Stage(stage) => {
                let why = format!("context {name}: another frontend knows nothing of target:{stage}");
                return Err(BuildError::new(Reason::NotSupported, why));
            }
            Named::Files(from) => {
                let reach = options.reach.for_context(name);
                let key = format!("named/{name}");
                match context::acquire_with_secrets(engine, from, &reach, false).await?.files {
                    Files::Here(local) => engine.add_open(&key, Arc::new(local)),
                    Files::Lent(..) => return Err(BuildError::internal("a named context is at a client")),
                }
                format!("local:{key}")
            }
            Named::Layout { dir, image } => {
                format!("docker-image://{}", named::layout(engine, dir, image.as_deref()).await?)
            }
        };
        all.insert(format!("context:{name}"), value);
    }
    Ok(all)
}

/// A build as attributes of BuildKit's frontends.
fn attributes(options: &BuildOptions, file: &str) -> HashMap<String, String> {
    let mut all: HashMap<String, String> = options.steps.attributes().into_iter().collect();
    let mut set = |name: &str, value: String| all.insert(name.to_owned(), value);
    set("filename", file.to_owned());
    if let Some(target) = &options.target {
        set("target", target.clone());
    }
    let platforms: Vec<String> = options.platforms.iter().map(ToString::to_string).collect();
    if !platforms.is_empty() {
        set("platform", platforms.join(","));
    }
    if options.index {
        set("multi-platform", "true".to_owned());
    }
    match (options.no_cache, options.no_cache_stages.as_slice()) {
        (true, _) => drop(set("no-cache", String::new())),
        (false, []) => {}
        (false, stages) => drop(set("no-cache", stages.join(","))),
    }
    match options.inputs.network {
        StepNetwork::Default => {}
        StepNetwork::None => drop(set("force-network-mode", "none".to_owned())),
        StepNetwork::Host => drop(set("force-network-mode", "host".to_owned())),
    }
    if let Some(seconds) = options.source_date_epoch {
        set("build-arg:SOURCE_DATE_EPOCH", seconds.to_string());
    }
    options.args.iter().for_each(|(name, value)| drop(set(&format!("build-arg:{name}"), value.clone())));
    options.labels.iter().for_each(|(name, value)| drop(set(&format!("label:{name}"), value.clone())));
    options.frontend.iter().for_each(|(name, value)| drop(set(name, value.clone())));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_told_in_the_attributes_that_every_frontend_knows() {
        let mut options = BuildOptions::new(Context::Inline(BTreeMap::new()));
        options.target = Some("last".to_owned());
        options.args.insert("A".to_owned(), "1".to_owned());
        options.labels.insert("l".to_owned(), "2".to_owned());
        options.platforms = ["linux/amd64", "linux/arm64"].map(|p| p.parse().expect("a platform")).into();
        options.no_cache_stages = vec!["a".to_owned(), "b".to_owned()];
        options.source_date_epoch = Some(7);
        options.steps.hostname = Some("box".to_owned());
        options.inputs.network = StepNetwork::None;
        let attributes = attributes(&options, "dir/Dockerfile");
        for (name, value) in [
            ("filename", "dir/Dockerfile"),
            ("target", "last"),
            ("build-arg:A", "1"),
            ("label:l", "2"),
            ("platform", "linux/amd64,linux/arm64"),
            ("no-cache", "a,b"),
            ("build-arg:SOURCE_DATE_EPOCH", "7"),
            ("hostname", "box"),
            ("force-network-mode", "none"),
        ] {
            assert_eq!(attributes.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert_eq!(attributes.len(), 9, "{attributes:?}");
    }
}
