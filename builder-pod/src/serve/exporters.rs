//! What a client says of its exporters, as outputs of a build.
//!
//! Attributes, defaults and refusals are BuildKit's. What is no attribute of an image becomes metadata of the result
//! there; here it is kept aside and has no effect.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lapstrake_oci::{Platform, Reference};

use super::Attributes;
use super::answer::CONFIG;
use super::values::{Packing, bare_switch, boolean, integer, packing, refused, switch};
use crate::annotations::{Annotations, Place};
use crate::attest::Attestation;
use crate::client::{Client, Receiver};
use crate::error::BuildError;
use crate::options::{Attestations, BuildOptions, Destination, Directory, Files, Image, Output};

/// The key by which an exporter is told a time.
const EPOCH: &str = "source-date-epoch";
/// The argument from which a build has it.
const EPOCH_ARG: &str = "build-arg:SOURCE_DATE_EPOCH";

/// Kinds of exporters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An image, pushed or kept.
    Image,
    /// An OCI layout.
    Oci,
    /// An archive for `docker load`.
    Docker,
    /// A directory.
    Local,
    /// The same as one tar.
    Tar,
}

impl Kind {
    fn parse(name: &str) -> Result<Self, BuildError> {
        Ok(match name {
            "image" => Self::Image,
            "oci" => Self::Oci,
            "docker" => Self::Docker,
            "local" => Self::Local,
            "tar" => Self::Tar,
            other => return Err(refused(format!("exporter {other:?} could not be found"))),
        })
    }
}

/// The time that an exporter was told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Epoch {
    /// None: that of the build's result, should it have one.
    #[default]
    OfResult,
    /// This; `None`: that there is none, whatever the result has.
    Told(Option<i64>),
}

impl Epoch {
    /// Which it is, where the result has this one.
    pub(crate) fn or(self, of_result: Option<i64>) -> Option<i64> {
        match self {
            Self::OfResult => of_result,
            Self::Told(told) => told,
        }
    }
}

/// One exporter of a request.
#[derive(Debug, Clone)]
pub(crate) struct Exporter {
    /// Its place among the request's: by it a client tells its own apart.
    pub(crate) id: usize,
    /// What it is.
    pub(crate) kind: Kind,
    /// When all that it makes is from.
    pub(crate) epoch: Epoch,
    /// Of an image.
    image: ImageSaid,
    /// Of files.
    files: Files,
}

#[derive(Debug, Clone, Default)]
struct ImageSaid {
    name: String,
    annotations: Annotations,
    platforms: Vec<Platform>,
    packing: Packing,
    oci: Option<bool>,
    artifact: Option<bool>,
    inline: Option<bool>,
    rewrite: bool,
    push: bool,
    by_digest: bool,
    insecure: bool,
    dangling_prefix: String,
    dangling_if_unnamed: bool,
    tar: bool,
    more: Attributes,
}

/// Reads all exporters of a request: type and attributes of each. `frontend` are the attributes of its frontend, of which
/// `SOURCE_DATE_EPOCH` holds for exporters too.
///
/// # Errors
/// In BuildKit's words, of the first that it would refuse.
pub(crate) fn read(
    asked: impl IntoIterator<Item = (String, Attributes)>,
    frontend: &Attributes,
) -> Result<Vec<Exporter>, BuildError> {
    let epoch = frontend.get(EPOCH_ARG).filter(|text| epoch_of(EPOCH_ARG, text).is_ok());
    let read = |(id, (kind, mut attributes)): (usize, (String, Attributes))| {
        let kind = Kind::parse(&kind)?;
        if let Some(epoch) = epoch {
            attributes.entry(EPOCH.to_owned()).or_insert_with(|| epoch.clone());
        }
        Exporter::read(id, kind, attributes)
    };
    asked.into_iter().enumerate().map(read).collect()
}

impl Exporter {
    /// Reads one.
    ///
    /// # Errors
    /// In BuildKit's words.
    pub(crate) fn read(id: usize, kind: Kind, said: Attributes) -> Result<Self, BuildError> {
        let mut rest = said;
        let mut exporter =
            Self { id, kind, epoch: Epoch::OfResult, image: ImageSaid::default(), files: Files::default() };
        match kind {
            Kind::Local | Kind::Tar => {
                exporter.epoch = take_epoch(&mut rest)?;
                exporter.files = files(&mut rest)?;
            }
            Kind::Image | Kind::Oci | Kind::Docker => {
                let (annotations, platforms) = annotations(&mut rest)?;
                exporter.epoch = take_epoch(&mut rest)?;
                exporter.image = image(kind, rest)?;
                (exporter.image.annotations, exporter.image.platforms) = (annotations, platforms);
            }
        }
        Ok(exporter)
    }

    /// The same with the annotations that a result says it is to have; where both say, the result does.
    ///
    /// # Errors
    /// In BuildKit's words.
    pub(crate) fn with_annotations(&self, metadata: &HashMap<String, Vec<u8>>) -> Result<Self, BuildError> {
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        let mut said: Attributes = metadata.iter().map(|(key, value)| (key.clone(), text(value))).collect();
        let (more, platforms) = annotations(&mut said)?;
        let mut exporter = self.clone();
        exporter.image.annotations.extend(more);
        exporter.image.platforms.extend(platforms);
        Ok(exporter)
    }

    /// What is said of a result to this exporter alone, in place of what is said to all; none where nothing is.
    pub(crate) fn metadata(&self, of_result: &HashMap<String, Vec<u8>>) -> Option<HashMap<String, Vec<u8>>> {
        let own = |key: &str| key == CONFIG || key.strip_prefix(CONFIG).is_some_and(|of| of.starts_with('/'));
        let own = self.image.more.iter().filter(|(key, _)| own(key));
        let own: Vec<_> = own.map(|(key, value)| (key.clone(), value.clone().into_bytes())).collect();
        (!own.is_empty()).then(|| of_result.clone().into_iter().chain(own).collect())
    }

    /// What was said of it and means nothing here.
    pub(crate) fn ignored(&self) -> impl Iterator<Item = &str> {
        self.image.more.keys().map(String::as_str)
    }

    /// Sets the options of a build that makes this output alone. `result_name` is what the result calls itself
    /// (`image.name` in its metadata), `result_epoch` what time it says that it is from, `attested` what is attested of its parts.
    ///
    /// # Errors
    /// In BuildKit's words, what it refuses once it has the result.
    pub(crate) fn apply(
        &self,
        options: &mut BuildOptions,
        result_name: Option<&str>,
        result_epoch: Option<i64>,
        receiver: &Arc<dyn Receiver>,
        attested: &[Attestation],
    ) -> Result<(), BuildError> {
        options.source_date_epoch = self.epoch.or(result_epoch);
        options.annotations = self.image.annotations.clone();
        self.check(&options.platforms, options.index, attested)?;
        options.outputs = vec![self.output(result_name, options.source_date_epoch, receiver)?];
        Ok(())
    }

    /// What BuildKit refuses when it knows of what the image is.
    fn check(&self, platforms: &[Platform], index: bool, attested: &[Attestation]) -> Result<(), BuildError> {
        if matches!(self.kind, Kind::Local | Kind::Tar) {
            return Ok(());
        }
        let mut several = platforms.len() > 1 || index;
        let image = &self.image;
        if self.kind == Kind::Docker && several {
            return Err(refused("docker exporter does not currently support exporting manifest lists"));
        }
        let missing = |p: &&Platform| {
            !platforms.is_empty() && !platforms.iter().any(|known| known.to_string() == p.to_string())
        };
        if let Some(platform) = image.platforms.iter().find(missing) {
            return Err(refused(format!("invalid annotation: no platform {platform} found in source")));
        }
        if image.oci == Some(false) && image.annotations.needs_oci() {
            return Err(refused("cannot export annotations with \"oci-mediatypes=false\""));
        }
        several |= attested.iter().any(|one| !one.inline_only || self.attestations().inline);
        if several && image.oci == Some(false) && !attested.is_empty() {
            return Err(refused("cannot export attestations with \"oci-mediatypes=false\""));
        }
        if !several && image.annotations.has_index_or_its_descriptor() {
            return Err(refused("index annotations not supported for single platform export"));
        }
        Ok(())
    }

    fn output(
        &self,
        result_name: Option<&str>,
        epoch: Option<i64>,
        receiver: &Arc<dyn Receiver>,
    ) -> Result<Output, BuildError> {
        let client = Client { receiver: Arc::clone(receiver), exporter: self.id };
        let files = Files { mtime: epoch, ..self.files.clone() };
        let dest = Destination::Client(client.clone());
        Ok(match self.kind {
            Kind::Local => Output::Local(Directory::Client(client), files),
            Kind::Tar => Output::Tar(dest, files),
            Kind::Oci => Output::Oci { image: self.image(result_name)?, dest, tar: self.image.tar },
            Kind::Docker => match self.image.tar {
                true => Output::Docker { image: self.image(result_name)?, dest },
                false => Output::Oci { image: self.image(result_name)?, dest, tar: false },
            },
            Kind::Image => match self.image(result_name)? {
                image if self.image.push && !image.names.is_empty() => Output::Push(image),
                image => Output::Image(image),
            },
        })
    }

    /// What an image store keeps together is together with all that is attested; archives have it where it is asked for.
    fn attestations(&self) -> Attestations {
        let inline = self.image.inline.unwrap_or(self.kind == Kind::Image);
        Attestations { inline, artifact: self.image.artifact.unwrap_or(true) }
    }

    fn image(&self, result_name: Option<&str>) -> Result<Image, BuildError> {
        let said = &self.image;
        let name = match (said.name.as_str(), result_name) {
            ("*", Some(name)) => name,
            (name, _) => name,
        };
        let mut names = Vec::new();
        for name in name.split(',').filter(|_| !name.is_empty()) {
            let parsed: Reference = name.parse().map_err(|e| {
                refused(match self.kind {
                    Kind::Image if said.push => format!("failed to push {name}: {e}"),
                    _ => format!("failed to parse {name}: {e}"),
                })
            })?;
            if said.by_digest && parsed.tag().is_some() {
                return Err(refused(format!(
                    "failed to push {name}: can't push tagged ref {parsed} by digest"
                )));
            }
            names.push(parsed);
        }
        let dangling = !said.dangling_prefix.is_empty() && (!said.dangling_if_unnamed || names.is_empty());
        Ok(Image {
            names,
            asked_name: (!name.is_empty()).then(|| name.to_owned()),
            dangling_prefix: dangling.then(|| said.dangling_prefix.clone()),
            templates: Vec::new(),
            by_digest: said.by_digest,
            compression: said.packing.compression,
            estargz: said.packing.estargz,
            level: said.packing.level,
            force_compression: said.packing.force,
            docker_media_types: said.oci == Some(false),
            keep_times: !said.rewrite,
            mark_rewritten: said.rewrite,
            insecure: said.insecure,
            attestations: self.attestations(),
        })
    }
}

fn image(kind: Kind, mut rest: Attributes) -> Result<ImageSaid, BuildError> {
    let attributes = &mut rest;
    let mut said = ImageSaid { tar: true, packing: packing(attributes)?, ..ImageSaid::default() };
    said.name = attributes.remove("name").unwrap_or_default();
    said.oci = switch(attributes, "oci-mediatypes")?;
    said.artifact = switch(attributes, "oci-artifact")?;
    said.inline = switch(attributes, "attestation-inline")?;
    switch(attributes, "prefer-nondist-layers")?;
    said.rewrite = switch(attributes, "rewrite-timestamp")?.unwrap_or(false);
    if said.packing.estargz && said.oci == Some(false) {
        return Err(refused(
            "exporter option \"compression=estargz\" conflicts with \"oci-mediatypes=false\"",
        ));
    }
    if said.artifact == Some(true) && said.oci == Some(false) {
        return Err(refused("exporter option \"oci-artifact=true\" conflicts with \"oci-mediatypes=false\""));
    }
    if kind == Kind::Image {
        said.push = bare_switch(attributes, "push")?.unwrap_or(false);
        said.by_digest = bare_switch(attributes, "push-by-digest")?.unwrap_or(false);
        said.insecure = bare_switch(attributes, "registry.insecure")?.unwrap_or(false);
        // There is no image store that others read, as with BuildKit's OCI worker: these change nothing.
        for key in ["unpack", "store", "name-canonical", "unsafe-internal-store-allow-incomplete"] {
            bare_switch(attributes, key)?;
        }
        said.dangling_prefix = attributes.remove("dangling-name-prefix").unwrap_or_default();
        said.dangling_if_unnamed = bare_switch(attributes, "danging-name-empty-only")?.unwrap_or(false);
    } else {
        said.tar = bare_switch(attributes, "tar")?.unwrap_or(true);
    }
    said.more = rest;
    Ok(said)
}

fn files(attributes: &mut Attributes) -> Result<Files, BuildError> {
    let mut files = Files {
        attestation_prefix: attributes.remove("attestation-prefix").unwrap_or_default(),
        ..Files::default()
    };
    if let Some(text) = attributes.remove("platform-split") {
        let split = boolean(&text)
            .map_err(|why| refused(format!("non-bool value for platform-split: {text}: {why}")));
        files.platform_split = Some(split?);
    }
    if let Some(text) = attributes.remove("mode") {
        files.delete = match text.trim().to_lowercase().as_str() {
            "" | "copy" => false,
            "delete" => true,
            _ => return Err(refused(format!("invalid local exporter mode {text:?}"))),
        };
    }
    if let Some(source) = attributes.remove("src") {
        if source.is_empty() {
            return Err(refused("empty value for src; omit it to export the entire filesystem"));
        }
        files.source = Some(source);
    }
    Ok(files)
}

fn epoch_of(key: &str, text: &str) -> Result<Option<i64>, BuildError> {
    match text {
        "" => Ok(None),
        text => integer(text).map(Some).map_err(|why| refused(format!("invalid {key}: {why}: {why}"))),
    }
}

fn take_epoch(attributes: &mut Attributes) -> Result<Epoch, BuildError> {
    match attributes.remove(EPOCH) {
        None => Ok(Epoch::OfResult),
        Some(text) => epoch_of(EPOCH, &text).map(Epoch::Told),
    }
}

/// Takes `annotation[-TYPE][[PLATFORM]].KEY` out of attributes; the platforms that they name.
fn annotations(attributes: &mut Attributes) -> Result<(Annotations, Vec<Platform>), BuildError> {
    let (mut all, mut platforms) = (Annotations::default(), Vec::new());
    let mut rest = BTreeMap::new();
    for (key, value) in std::mem::take(attributes) {
        let Some((kind, platform, name)) = annotation_key(&key) else {
            rest.insert(key, value);
            continue;
        };
        let place = match kind {
            None | Some("manifest") => Place::Manifest,
            Some("index") => Place::Index,
            Some("manifest-descriptor") => Place::ManifestDescriptor,
            Some("index-descriptor") => Place::IndexDescriptor,
            Some(other) => return Err(refused(format!("unrecognized annotation type {other}"))),
        };
        let platform: Option<Platform> =
            platform.map(|text| text.parse().map_err(|e| refused(format!("{e}")))).transpose()?;
        platforms.extend(platform.clone());
        all.put(place, platform, name, &value);
    }
    *attributes = rest;
    Ok((all, platforms))
}

/// Type, platform and name of an annotation's key.
fn annotation_key(key: &str) -> Option<(Option<&str>, Option<&str>, &str)> {
    let rest = key.strip_prefix("annotation")?;
    let end = rest.find(['.', '[']).filter(|_| !rest.is_empty())?;
    let (kind, rest) = rest.split_at(end);
    let kind =
        match kind {
            "" => None,
            kind => Some(kind.strip_prefix('-').filter(|kind| {
                !kind.is_empty() && kind.bytes().all(|b| b.is_ascii_lowercase() || b == b'-')
            })?),
        };
    let (platform, rest) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (platform, rest) = rest.split_once(']')?;
            let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'/' | b'-');
            (Some(platform).filter(|p| !p.is_empty() && p.bytes().all(known))?.into(), rest)
        }
        None => (None, rest),
    };
    let name = rest.strip_prefix('.')?;
    (!name.is_empty() && !name.contains(char::is_whitespace)).then_some((kind, platform, name))
}

#[cfg(test)]
#[path = "exporters_tests.rs"]
mod tests;
