//! What a build is asked to do, wherever that was written: on a command line, in an ImageBuild, in a
//! builder pod's request.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::annotations::Annotations;
use crate::client::{Client, Receiver};
use crate::named::Named;
use lapstrake_oci::{Platform, Reference};

/// One build.
#[derive(Debug, Clone)]
pub(crate) struct BuildOptions {
    /// Where the context comes from.
    pub(crate) context: Context,
    /// Path of the Dockerfile in the context; `Dockerfile` where absent.
    pub(crate) dockerfile: Option<String>,
    /// Text of the Dockerfile; wins over the path.
    pub(crate) dockerfile_text: Option<String>,
    /// Stage to build.
    pub(crate) target: Option<String>,
    /// Build arguments.
    pub(crate) args: BTreeMap<String, String>,
    /// Labels of the image.
    pub(crate) labels: BTreeMap<String, String>,
    /// Annotations.
    pub(crate) annotations: Annotations,
    /// What is attested.
    pub(crate) attested: crate::attest::Asked,
    /// What is filled in from the source's revision.
    pub(crate) from_source: FromSource,
    /// What stands for stages and images of these names.
    pub(crate) named: BTreeMap<String, Named>,
    /// Platforms to build for, each once; this machine's where there is none.
    pub(crate) platforms: Vec<Platform>,
    /// The image is an index and directories have their platform's name, also of one platform.
    pub(crate) index: bool,
    /// Nothing is taken from the cache.
    pub(crate) no_cache: bool,
    /// Stages whose steps take nothing from it.
    pub(crate) no_cache_stages: Vec<String>,
    /// Creation time of the image and all that has one, seconds since 1970.
    pub(crate) source_date_epoch: Option<i64>,
    /// What steps find around them.
    pub(crate) steps: crate::asked::StepOptions,
    /// Options of the frontend by BuildKit's names.
    pub(crate) frontend: crate::asked::Attributes,
    /// What steps are given beside their files.
    pub(crate) inputs: crate::inputs::Inputs,
    /// How sources are reached.
    pub(crate) reach: crate::reach::Reach,
    /// What to say before the build begins.
    pub(crate) warnings: Vec<String>,
    /// Caches of other builds, the first that knows a step wins.
    pub(crate) cache_from: Vec<lapstrake_handoff::CacheImport>,
    /// Whose directories those caches are that have a path, in place of this machine's.
    pub(crate) client: Option<std::sync::Arc<dyn Receiver>>,
    /// Caches that are written when the build succeeded.
    pub(crate) cache_to: Vec<lapstrake_handoff::CacheExport>,
    /// Where results go; none: the build is run for its cache.
    pub(crate) outputs: Vec<Output>,
}

/// What is filled in from the source's revision, where nothing else is said.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct FromSource {
    /// OCI's standard annotations.
    pub(crate) annotations: bool,
    /// The same as labels.
    pub(crate) labels: bool,
    /// `SOURCE_DATE_EPOCH`, from the commit's time.
    pub(crate) epoch: bool,
}

/// Where a build context comes from.
#[derive(Debug, Clone)]
pub(crate) enum Context {
    /// A directory of this machine.
    Directory(PathBuf),
    /// A Git repository.
    Git {
        /// As `git clone` takes it.
        url: String,
        /// What to check out.
        reference: lapstrake_source::GitRef,
        /// The commit that it stood for when the build was asked for: this one is built.
        commit: Option<String>,
        /// Directory in it.
        path: Option<String>,
        /// With submodules.
        submodules: bool,
        /// With its `.git`.
        keep_git_dir: bool,
    },
    /// A file or archive.
    Http {
        /// Its address.
        url: String,
        /// Checksum that it must have, in hex.
        sha256: Option<String>,
        /// Directory in it.
        path: Option<String>,
    },
    /// A directory of the client that asks for the build.
    Client(LentDir),
    /// Files written out.
    Inline(BTreeMap<String, lapstrake_source::InlineFile>),
}

/// A directory that a client lends over its session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LentDir {
    /// Its name.
    pub(crate) name: String,
    /// The session, where it is not the build's.
    pub(crate) session: String,
    /// The directory that the Dockerfile and its ignore file are in.
    pub(crate) dockerfiles: Option<String>,
}

/// A result of a build.
#[derive(Debug, Clone)]
pub(crate) enum Output {
    /// An image in registries.
    Push(Image),
    /// An OCI image layout: a directory, or a tar where `tar` is set.
    Oci {
        /// Names in it.
        image: Image,
        /// Where to.
        dest: Destination,
        /// As one tar file.
        tar: bool,
    },
    /// An archive for `docker load`.
    Docker {
        /// Names in it.
        image: Image,
        /// Where to.
        dest: Destination,
    },
    /// The file system as a directory.
    Local(Directory, Files),
    /// The file system as one tar file.
    Tar(Destination, Files),
    /// An image in the state directory only.
    Image(Image),
}

/// A file, or what takes its bytes.
#[derive(Debug, Clone)]
pub(crate) enum Destination {
    /// A path.
    Path(PathBuf),
    /// Standard output.
    Stdout,
    /// A client.
    Client(Client),
}

/// A directory, here or at a client.
#[derive(Debug, Clone)]
pub(crate) enum Directory {
    /// A path.
    Path(PathBuf),
    /// A client.
    Client(Client),
}

/// How a file system goes out as files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Files {
    /// Each platform's files are below a directory of its name; unset: where there are several platforms.
    pub(crate) platform_split: Option<bool>,
    /// A part of the file system in place of the whole.
    pub(crate) source: Option<String>,
    /// What the destination has beside them is removed there.
    pub(crate) delete: bool,
    /// The time that everything gets, seconds since 1970.
    pub(crate) mtime: Option<i64>,
    /// What stands before the names of attestations.
    pub(crate) attestation_prefix: String,
}

/// How an image is made and named.
#[derive(Debug, Clone, Default)]
pub(crate) struct Image {
    /// Its names.
    pub(crate) names: Vec<Reference>,
    /// Names with placeholders, until the source is known.
    pub(crate) templates: Vec<String>,
    /// What a client called it, where a client asked: told to it as it is.
    pub(crate) asked_name: Option<String>,
    /// A further name is this one with the digest.
    pub(crate) dangling_prefix: Option<String>,
    /// Pushed under its digest, without tags.
    pub(crate) by_digest: bool,
    /// How layers are compressed.
    pub(crate) compression: lapstrake_handoff::Compression,
    /// gzip is eStargz: readers find each file in it.
    pub(crate) estargz: bool,
    /// Level of that compression.
    pub(crate) level: Option<i32>,
    /// Layers that are there in another compression are packed anew, a base image's too.
    pub(crate) force_compression: bool,
    /// Docker's media types in place of OCI's.
    pub(crate) docker_media_types: bool,
    /// Files keep their times where `SOURCE_DATE_EPOCH` is given: config and history alone have it.
    pub(crate) keep_times: bool,
    /// Layers whose files were given other times say so, as BuildKit's do.
    pub(crate) mark_rewritten: bool,
    /// Its registries are reached by plain http, or https whose certificate nobody checks.
    pub(crate) insecure: bool,
    /// What is attested of it, and how that is packed.
    pub(crate) attestations: Attestations,
}

/// How what is attested of an image goes along with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attestations {
    /// Also what is only for outputs that hold an image and its attestations together.
    pub(crate) inline: bool,
    /// As artifacts that refer to the image; otherwise as manifests of the old kind.
    pub(crate) artifact: bool,
}

impl Default for Attestations {
    fn default() -> Self {
        Self { inline: false, artifact: true }
    }
}

impl Image {
    /// Adds a name, which may have placeholders.
    pub(crate) fn add_name(&mut self, name: &str) -> Result<(), String> {
        match crate::naming::is_template(name) {
            true => self.templates.push(name.to_owned()),
            false => self.names.push(name.parse().map_err(|e| format!("{e}"))?),
        }
        Ok(())
    }
}

impl Output {
    /// The image that it is, where it is one.
    pub(crate) fn image(&self) -> Option<&Image> {
        match self {
            Self::Push(image) | Self::Image(image) => Some(image),
            Self::Oci { image, .. } | Self::Docker { image, .. } => Some(image),
            Self::Local(..) | Self::Tar(..) => None,
        }
    }

    /// The same, to be changed.
    pub(crate) fn image_mut(&mut self) -> Option<&mut Image> {
        match self {
            Self::Push(image) | Self::Image(image) => Some(image),
            Self::Oci { image, .. } | Self::Docker { image, .. } => Some(image),
            Self::Local(..) | Self::Tar(..) => None,
        }
    }
}

impl BuildOptions {
    /// A build of a context with everything else as users would choose it.
    pub(crate) fn new(context: Context) -> Self {
        Self {
            context,
            dockerfile: None,
            dockerfile_text: None,
            target: None,
            args: BTreeMap::new(),
            labels: BTreeMap::new(),
            annotations: Annotations::default(),
            attested: crate::attest::Asked::default(),
            from_source: FromSource::default(),
            named: BTreeMap::new(),
            platforms: Vec::new(),
            index: false,
            no_cache: false,
            no_cache_stages: Vec::new(),
            source_date_epoch: None,
            steps: crate::asked::StepOptions::default(),
            frontend: crate::asked::Attributes::default(),
            inputs: crate::inputs::Inputs::default(),
            reach: crate::reach::Reach::default(),
            warnings: Vec::new(),
            cache_from: Vec::new(),
            client: None,
            cache_to: Vec::new(),
            outputs: Vec::new(),
        }
    }
}
