//! Named contexts (`--build-context`): what stands for a stage or an image of the Dockerfile.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lapstrake_dockerfile::NamedContext;
use lapstrake_handoff::Reason;
use lapstrake_oci::{Descriptor, Digest, Document, Index, Platform, Reference};
use lapstrake_registry::Progress;
use lapstrake_source::ignore_patterns;
use lapstrake_store::{Durability, Store};
use tokio_util::sync::CancellationToken;

use crate::client::Receiver;
use crate::context::{self, Files};
use crate::engine::{Engine, Place};
use crate::error::{BuildError, chain};
use crate::options::Context;
use crate::reach::Reach;

/// Lists what a directory's readers do not see of it.
const IGNORE: &str = ".dockerignore";
const IGNORE_BYTES_MAX: u64 = 1 << 20;
/// Documents of a layout are no longer than this.
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;

/// What a name is given for.
#[derive(Debug, Clone)]
pub(crate) enum Named {
    /// The empty file system.
    Scratch,
    /// An image of a registry.
    Image(Reference),
    /// A stage of the Dockerfile.
    Stage(String),
    /// Files from anywhere that a main context may come from.
    Files(Context),
    /// An image of an OCI layout, by its tag or digest.
    Layout {
        /// The layout's directory.
        dir: PathBuf,
        /// Tag or digest; the only image where absent.
        image: Option<String>,
    },
}

/// Reads `NAME=VALUE`; `files` reads a value that is a directory or an address.
pub(crate) fn parse(
    text: &str,
    files: impl FnOnce(&str) -> Result<Context, BuildError>,
) -> Result<(String, Named), BuildError> {
    let wrong =
        |why: String| BuildError::new(Reason::RequestInvalid, format!("--build-context {text}: {why}"));
    let (name, value) = text.split_once('=').ok_or_else(|| wrong("it is not NAME=VALUE".to_owned()))?;
    let name = canonical(name).map_err(wrong)?;
    let named = if value == "docker-image://scratch" {
        Named::Scratch
    } else if let Some(image) = value.strip_prefix("docker-image://") {
        Named::Image(image.parse().map_err(|e| wrong(format!("{e}")))?)
    } else if let Some(stage) = value.strip_prefix("target:") {
        Named::Stage(stage.to_owned())
    } else if let Some(layout) = value.strip_prefix("oci-layout://") {
        let (dir, image) = match (layout.split_once('@'), layout.rsplit_once(':')) {
            (Some((dir, digest)), _) => (dir, Some(digest)),
            (None, Some((dir, tag))) if !tag.contains('/') => (dir, Some(tag)),
            _ => (layout, None),
        };
        Named::Layout { dir: PathBuf::from(dir), image: image.map(str::to_owned) }
    } else {
        Named::Files(files(value)?)
    };
    Ok((name, named))
}

/// The name of a context in the form in which names are compared.
pub(crate) fn canonical(name: &str) -> Result<String, String> {
    let name = name.to_lowercase();
    let (own, platform) = match name.split_once("::") {
        Some((own, platform)) => (own, Some(platform)),
        None => (name.as_str(), None),
    };
    if own.is_empty() || own == "scratch" || own == "context" {
        return Err(format!("\"{own}\" can't be the name of a context"));
    }
    let Some(platform) = platform else { return Ok(name) };
    let platform: Platform = platform.parse().map_err(|e| format!("{e}"))?;
    Ok(format!("{own}::{platform}"))
}

/// What the names of contexts stand for, and when they were made, where they have a time.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) contexts: BTreeMap<String, NamedContext>,
    pub(crate) times: BTreeMap<String, i64>,
}

/// Fetches what has to be fetched, makes it known to the engine, and says what the names stand for.
pub(crate) async fn offer(
    engine: &Engine,
    all: &BTreeMap<String, Named>,
    reach: &Reach,
    client: Option<&Arc<dyn Receiver>>,
) -> Result<Known, BuildError> {
    let mut known = Known::default();
    for (name, named) in all {
        let stands_for = match named {
            Named::Scratch => NamedContext::Scratch,
            Named::Image(reference) => NamedContext::Image(reference.clone()),
            Named::Stage(stage) => NamedContext::Stage(stage.clone()),
            Named::Files(from) => {
                let reach = reach.for_context(name);
                let acquired = context::acquire_with_secrets(engine, from, &reach, false).await?;
                known.times.extend(acquired.time.map(|time| (name.clone(), time)));
                match acquired.files {
                    Files::Here(local) => {
                        let rules = local.ignore_rules("Dockerfile");
                        let (_, rules) =
                            rules.map_err(|e| BuildError::new(Reason::DockerfileInvalid, chain(&e)))?;
                        // Beside the main context's name no other one has this prefix.
                        let key = format!("named/{name}");
                        engine.add_context(&key, Arc::new(local.with_ignore(rules)));
                        NamedContext::Local(key)
                    }
                    Files::Lent(dir, lender) => {
                        let ignored =
                            lender.read(Some(&dir.session), &dir.name, IGNORE, IGNORE_BYTES_MAX).await?;
                        NamedContext::Lent {
                            name: dir.name,
                            session: lender.id_or(&dir.session).to_owned(),
                            exclude_patterns: ignored.map(|text| ignore_patterns(&text)).unwrap_or_default(),
                        }
                    }
                }
            }
            Named::Layout { dir, image } if client.is_some() => {
                let digest = image.as_deref().and_then(|image| image.parse().ok());
                let digest = digest.ok_or_else(|| {
                    let text = format!("image layout {}: a client's is asked by digest", dir.display());
                    BuildError::new(Reason::RequestInvalid, text)
                })?;
                if let Some(client) = client {
                    lent(engine, client, dir, digest).await?;
                }
                let reference: Reference =
                    "localhost/oci-layout".parse().map_err(|e| BuildError::internal(format!("{e}")))?;
                NamedContext::Image(reference.with_digest(digest))
            }
            Named::Layout { dir, image } => NamedContext::Image(layout(engine, dir, image.as_deref()).await?),
        };
        known.contexts.insert(name.clone(), stands_for);
    }
    Ok(known)
}

/// Brings an image of a layout of this machine into the store; a name for it.
pub(crate) async fn layout(
    engine: &Engine,
    dir: &Path,
    image: Option<&str>,
) -> Result<Reference, BuildError> {
    let (store, dir, image) = (engine.store().clone(), dir.to_owned(), image.map(str::to_owned));
    let work = move || import(&store, &dir, image.as_deref());
    let digest = tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)??;
    let reference: Reference =
        "localhost/oci-layout".parse().map_err(|e| BuildError::internal(format!("{e}")))?;
    Ok(reference.with_digest(digest))
}

/// Brings an image of a client's layout into the store, as far as the client has it.
pub(crate) async fn lent(
    engine: &Engine,
    client: &Arc<dyn Receiver>,
    name: &Path,
    digest: Digest,
) -> Result<(), BuildError> {
    // The name may have a tag, which the client has looked up.
    let id = name.to_string_lossy();
    let id = id.split(':').next().unwrap_or_default();
    let place = Place::Client { receiver: Arc::clone(client), store: format!("oci:{id}") };
    let wrong = |why: String| BuildError::new(Reason::ImageNotFound, format!("image layout {id}: {why}"));
    let (silent, cancel) = (Progress::none(), CancellationToken::new());
    let mut open = vec![digest];
    while let Some(document) = open.pop() {
        let size = client.content_bytes(&format!("oci:{id}"), document).await?;
        let Some(size) = size.filter(|size| *size <= DOCUMENT_BYTES_MAX) else {
            // Of an index not all images need be there.
            if document == digest {
                return Err(wrong(format!("{digest} is not in it")));
            }
            continue;
        };
        let descriptor = Descriptor::new("", document, size);
        engine.images().fetch_from(&place, &descriptor, &silent, &cancel).await?;
        let mut bytes = Vec::new();
        engine.store().open_blob(&document)?.read_to_end(&mut bytes).map_err(|e| wrong(e.to_string()))?;
        match Document::parse(&bytes, "").map_err(|e| wrong(format!("{document}: {e}")))? {
            Document::Index(index) => open.extend(index.manifests.iter().map(|d| d.digest)),
            Document::Manifest(manifest) => {
                for blob in manifest.layers.iter().chain([&manifest.config]) {
                    engine.images().fetch_from(&place, blob, &silent, &cancel).await?;
                }
            }
        }
    }
    Ok(())
}

/// Brings an image of a layout, all of its platforms that are there, into the store.
fn import(store: &Store, dir: &Path, image: Option<&str>) -> Result<Digest, BuildError> {
    let wrong = |why: String| {
        BuildError::new(Reason::ImageNotFound, format!("image layout {}: {why}", dir.display()))
    };
    let bytes = std::fs::read(dir.join("index.json")).map_err(|e| wrong(format!("index.json: {e}")))?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|e| wrong(format!("index.json: {e}")))?;
    let tag = |d: &lapstrake_oci::Descriptor| d.annotations.get("org.opencontainers.image.ref.name").cloned();
    let wanted = |d: &&lapstrake_oci::Descriptor| match image {
        Some(image) => d.digest.to_string() == image || tag(d).as_deref() == Some(image),
        None => true,
    };
    let found: HashSet<Digest> = index.manifests.iter().filter(wanted).map(|d| d.digest).collect();
    let mut found = found.into_iter();
    let (Some(digest), None) = (found.next(), found.next()) else {
        let tags: Vec<String> = index.manifests.iter().filter_map(tag).collect();
        return Err(wrong(format!(
            "{} is not one image of it; it has {}",
            image.unwrap_or("the layout"),
            tags.join(", ")
        )));
    };
    let mut open = vec![digest];
    while let Some(digest) = open.pop() {
        let path = dir.join("blobs/sha256").join(digest.hex());
        let read = std::fs::read(&path).ok().filter(|b| b.len() as u64 <= DOCUMENT_BYTES_MAX);
        let Some(bytes) = read else { continue };
        if Digest::of(&bytes) != digest {
            return Err(wrong(format!("blob {digest} is damaged")));
        }
        store.put_blob(&bytes)?;
        match Document::parse(&bytes, "").map_err(|e| wrong(format!("{digest}: {e}")))? {
            Document::Index(index) => open.extend(index.manifests.iter().map(|d| d.digest)),
            Document::Manifest(manifest) => {
                for blob in manifest.layers.iter().chain([&manifest.config]) {
                    copy_blob(store, dir, blob.digest).map_err(|e| wrong(format!("{}: {e}", blob.digest)))?;
                }
            }
        }
    }
    Ok(digest)
}

fn copy_blob(store: &Store, dir: &Path, digest: Digest) -> Result<(), Box<dyn std::error::Error>> {
    if store.blob_size_bytes(&digest).is_some() {
        return Ok(());
    }
    let mut file = File::open(dir.join("blobs/sha256").join(digest.hex()))?;
    let mut writer = store.blob_writer()?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let count = file.read(&mut buffer)?;
        let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else { break };
        std::io::Write::write_all(&mut writer, piece)?;
    }
    writer.commit_with(Some(digest), Durability::Batched)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(String, Named), BuildError> {
        parse(text, |value| Ok(Context::Directory(PathBuf::from(value))))
    }

    #[test]
    fn values_read_as_buildx_reads_them() {
        let named = |text: &str| parsed(text).expect("valid").1;
        assert!(matches!(named("a=docker-image://alpine:3"), Named::Image(r) if r.tag() == Some("3")));
        assert!(matches!(named("a=target:base"), Named::Stage(s) if s == "base"));
        assert!(matches!(named("A=dir"), Named::Files(Context::Directory(_))));
        let layout = |text: &str| match named(text) {
            Named::Layout { dir, image } => (dir.display().to_string(), image),
            other => panic!("{other:?}"),
        };
        assert_eq!(layout("a=oci-layout:///x/y:1"), ("/x/y".to_owned(), Some("1".to_owned())));
        assert_eq!(layout("a=oci-layout://x@sha256:1"), ("x".to_owned(), Some("sha256:1".to_owned())));
        assert_eq!(layout("a=oci-layout://x/y"), ("x/y".to_owned(), None));
        assert_eq!(parsed("Base::linux/aarch64=x").expect("valid").0, "base::linux/arm64");
        assert!(matches!(named("a=docker-image://scratch"), Named::Scratch));
        for text in ["a", "=b", "scratch=x", "a=docker-image://Ä", "a::b/c/d/e=x", "::linux/amd64=x"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }
}
