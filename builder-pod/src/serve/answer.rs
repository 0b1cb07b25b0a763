//! What a frontend makes of a request: results, not all of them worked out yet, and what is said about them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lapstrake_api::{frontend, pb};
use lapstrake_llb::Graph;
use lapstrake_oci::{Digest, Platform};
use prost::Message as _;
use tokio::sync::OnceCell;

use super::attested::Told;
use super::job::Job;
use super::layouts;
use crate::build::Tree;
use crate::error::BuildError;
use crate::platforms::{self, Target};
use crate::policy::{self, Policies};
use crate::progress::HIDDEN;

/// Key of an image's config among what is said about a result; of one of several with `/` and its platform's id.
pub(crate) const CONFIG: &str = "containerimage.config";
/// Key of the list of platforms.
pub(crate) const PLATFORMS: &str = "refs.platforms";

/// A result: what makes it, and once it was needed, the file system.
pub(crate) struct Ref {
    /// Its name in the build.
    pub(crate) id: String,
    /// What makes it.
    pub(crate) definition: pb::Definition,
    graph: Arc<Graph>,
    tree: OnceCell<Tree>,
}

impl Ref {
    /// The result of a definition, under the rules about what it may bring; nothing is worked out.
    ///
    /// # Errors
    /// It is not a graph, or has a source that is denied.
    pub(crate) fn new(definition: pb::Definition, policies: &Policies) -> Result<Arc<Self>, BuildError> {
        let invalid = |e: lapstrake_llb::GraphError| {
            BuildError::new(lapstrake_handoff::Reason::RequestInvalid, crate::error::chain(&e))
        };
        let converted = policy::applied(policies, &definition)?;
        let counts = converted.as_ref().unwrap_or(&definition);
        let graph = Graph::decode(counts).map_err(invalid)?;
        let graph = Arc::new(copied(graph, counts).map_err(invalid)?);
        Ok(Arc::new(Self { id: super::id(), definition, graph, tree: OnceCell::new() }))
    }

    /// Whether it was worked out.
    pub(crate) fn is_there(&self) -> bool {
        self.tree.initialized()
    }

    /// What makes it, decoded.
    pub(crate) fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// The file system.
    pub(crate) async fn tree(&self, job: &Job) -> Result<&Tree, BuildError> {
        self.tree
            .get_or_try_init(|| async {
                layouts::bring(job, &self.graph).await?;
                let platform = crate::engine::native_platform();
                let target = Target { platform, graph: Arc::clone(&self.graph) };
                let trees = platforms::solve(&job.engine, &[target], &job.progress, &job.cancel).await;
                let trees = trees.map_err(|error| error.placed(&self.definition))?;
                trees.into_iter().next().ok_or_else(|| BuildError::internal("a graph had no result"))
            })
            .await
    }
}

/// Directories that are read in place (those of clients, downloads, checkouts) are no file systems of their own: as a
/// result they are copied, which changes nothing of what is in them.
fn copied(graph: Graph, definition: &pb::Definition) -> Result<Graph, lapstrake_llb::GraphError> {
    let Some(target) = graph.target() else { return Ok(graph) };
    let source = graph.vertex(target.vertex).and_then(|vertex| match &vertex.op {
        pb::op::Op::Source(source) if crate::engine::image_name(source).is_none() => Some(vertex.name()),
        _ => None,
    });
    let Some(name) = source else { return Ok(graph) };
    let input = pb::Input { digest: target.vertex.to_string(), index: i64::from(target.index) };
    let op = pb::Op {
        inputs: vec![input],
        op: Some(pb::op::Op::File(lapstrake_llb::copy_of_all())),
        ..pb::Op::default()
    };
    let op = op.encode_to_vec();
    let digest = Digest::of(&op).to_string();
    let pointer =
        pb::Op { inputs: vec![pb::Input { digest: digest.clone(), index: 0 }], ..pb::Op::default() };
    let mut definition = definition.clone();
    definition.def.pop(); // it points to what is now the last but one
    definition.def.extend([op, pointer.encode_to_vec()]);
    let named = [
        (lapstrake_llb::description::CUSTOM_NAME, format!("[internal] copy {name}")),
        (HIDDEN, String::new()),
    ]
    .map(|(key, text)| (key.to_owned(), text));
    definition.metadata.insert(digest, pb::OpMetadata { description: named.into(), ..Default::default() });
    Graph::decode(&definition)
}

/// The results of a request.
#[derive(Clone)]
pub(crate) enum Refs {
    /// One, or the empty file system.
    One(Option<Arc<Ref>>),
    /// Several by their keys, platforms as a rule.
    Many(BTreeMap<String, Option<Arc<Ref>>>),
}

/// What a frontend made of a request.
#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) refs: Refs,
    /// What is said about them: configs of images, answers to questions.
    pub(crate) metadata: HashMap<String, Vec<u8>>,
    /// What is attested of them, by their platforms.
    pub(crate) attestations: BTreeMap<String, Vec<Told>>,
}

/// A result with the platform that it is for and its place in the answer.
pub(crate) struct Of {
    /// Its key where there are several.
    pub(crate) key: Option<String>,
    /// The platform that it is for.
    pub(crate) platform: Platform,
    /// The result; none is the empty file system.
    pub(crate) result: Option<Arc<Ref>>,
}

/// The list of platforms as clients write it.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct PlatformList {
    #[serde(default)]
    platforms: Option<Vec<PlatformEntry>>,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct PlatformEntry {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Platform")]
    platform: OciPlatform,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct OciPlatform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
}

/// The list of these platforms, for an answer's metadata.
pub(crate) fn platform_list(platforms: &[Platform]) -> Vec<u8> {
    let entry = |platform: &Platform| PlatformEntry {
        id: platform.to_string(),
        platform: OciPlatform {
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            variant: platform.variant.clone(),
        },
    };
    let list = PlatformList { platforms: Some(platforms.iter().map(entry).collect()) };
    serde_json::to_vec(&list).unwrap_or_default()
}

impl Answer {
    /// One result about which nothing is said.
    pub(crate) fn one(result: Option<Arc<Ref>>) -> Self {
        Self { refs: Refs::One(result), metadata: HashMap::new(), attestations: BTreeMap::new() }
    }

    /// All results in the order of the platforms.
    ///
    /// # Errors
    /// What is said about platforms can't be read, or names a result that is not there.
    pub(crate) fn all(&self) -> Result<Vec<Of>, BuildError> {
        let wrong = |why: String| BuildError::new(lapstrake_handoff::Reason::RequestInvalid, why);
        let list = self.platforms()?;
        let platform = |entry: &PlatformEntry| {
            Platform::new(&entry.platform.os, &entry.platform.architecture, entry.platform.variant.as_deref())
        };
        match (&self.refs, list) {
            (Refs::One(result), list) => {
                let only = list.as_ref().and_then(|list| list.first()).map(platform);
                let of_config = match only.is_some() {
                    true => None,
                    false => self.platform_of_config()?,
                };
                let platform = only.or(of_config).unwrap_or_else(crate::engine::native_platform);
                Ok(vec![Of { key: None, platform, result: result.clone() }])
            }
            (Refs::Many(refs), Some(list)) => {
                let of = |entry: &PlatformEntry| {
                    let none = || wrong(format!("there is no result for platform {}", entry.id));
                    let result = refs.get(&entry.id).ok_or_else(none)?.clone();
                    Ok(Of { key: Some(entry.id.clone()), platform: platform(entry), result })
                };
                list.iter().map(of).collect()
            }
            (Refs::Many(refs), None) if refs.is_empty() => {
                Ok(vec![Of { key: None, platform: crate::engine::native_platform(), result: None }])
            }
            (Refs::Many(refs), None) => {
                let of = |(key, result): (&String, &Option<Arc<Ref>>)| {
                    let parsed = key.parse::<Platform>();
                    let platform =
                        parsed.map_err(|e| wrong(format!("result {key} is for no platform: {e}")))?;
                    Ok(Of { key: Some(key.clone()), platform, result: result.clone() })
                };
                refs.iter().map(of).collect()
            }
        }
    }

    /// Whether the frontend named platforms.
    pub(crate) fn names_platforms(&self) -> bool {
        self.metadata.contains_key(PLATFORMS)
    }

    /// The platforms that the frontend named, checked as BuildKit does.
    fn platforms(&self) -> Result<Option<Vec<PlatformEntry>>, BuildError> {
        let wrong = |why: String| BuildError::new(lapstrake_handoff::Reason::RequestInvalid, why);
        let Some(text) = self.metadata.get(PLATFORMS) else { return Ok(None) };
        let list: Option<PlatformList> =
            serde_json::from_slice(text).map_err(|e| wrong(format!("the list of platforms: {e}")))?;
        let list = list.and_then(|list| list.platforms).unwrap_or_default();
        if list.is_empty() {
            return Err(wrong("invalid empty platforms index for exporter".to_owned()));
        }
        for entry in &list {
            if entry.id.is_empty() {
                return Err(wrong("invalid empty platform key for exporter".to_owned()));
            }
            let (os, architecture) = (&entry.platform.os, &entry.platform.architecture);
            if os.is_empty() || architecture.is_empty() {
                return Err(wrong(format!("invalid platform value {{{architecture} {os}}} for exporter")));
            }
        }
        Ok(Some(list))
    }

    /// The platform of the only image's config; none where nothing is said of one.
    fn platform_of_config(&self) -> Result<Option<Platform>, BuildError> {
        let Ok(Some(config)) = self.config(None) else { return Ok(None) };
        match (config.os.is_empty(), config.architecture.is_empty()) {
            (false, false) => Ok(Some(config.platform())),
            (true, true) => Ok(None),
            _ => Err(BuildError::new(
                lapstrake_handoff::Reason::RequestInvalid,
                "invalid image config: os and architecture must be specified together",
            )),
        }
    }

    /// The config of an image, if the frontend made one.
    ///
    /// # Errors
    /// It can't be read.
    pub(crate) fn config(&self, key: Option<&str>) -> Result<Option<lapstrake_oci::ImageConfig>, BuildError> {
        let own = key.and_then(|key| self.metadata.get(&format!("{CONFIG}/{key}")));
        let Some(text) = own.or_else(|| self.metadata.get(CONFIG)) else { return Ok(None) };
        let wrong = |e: serde_json::Error| {
            let message = format!("the image config that the frontend returned can't be read: {e}");
            BuildError::new(lapstrake_handoff::Reason::RequestInvalid, message)
        };
        if text == b"null" {
            let message = "invalid null image config for export";
            return Err(BuildError::new(lapstrake_handoff::Reason::RequestInvalid, message));
        }
        serde_json::from_slice(text).map(Some).map_err(wrong)
    }

    /// As a message; its results stay known to the build.
    pub(crate) fn to_message(&self, job: &Job) -> frontend::Result {
        let message = |result: &Option<Arc<Ref>>| match result {
            Some(result) => {
                job.keep(result);
                frontend::Ref { id: result.id.clone(), def: Some(result.definition.clone()) }
            }
            None => frontend::Ref::default(),
        };
        let result = match &self.refs {
            Refs::One(result) => frontend::result::Result::Ref(message(result)),
            Refs::Many(refs) => {
                let refs = refs.iter().map(|(key, result)| (key.clone(), message(result))).collect();
                frontend::result::Result::Refs(frontend::RefMap { refs })
            }
        };
        let attested = |(key, all): (&String, &Vec<Told>)| {
            let attestation = all.iter().map(|told| told.to_message(job)).collect();
            (key.clone(), frontend::Attestations { attestation })
        };
        frontend::Result {
            metadata: self.metadata.clone(),
            attestations: self.attestations.iter().map(attested).collect(),
            result: Some(result),
        }
    }

    /// From a message, whose results the build knows by their ids or has to work out.
    pub(crate) fn from_message(job: &Job, message: frontend::Result) -> Result<Self, tonic::Status> {
        use frontend::result::Result as R;
        let by_id = |id: &str| match id {
            "" => Ok(None),
            id => job.kept(id).map(Some),
        };
        let of = |reference: &frontend::Ref| match (&reference.def, reference.id.as_str()) {
            (Some(definition), "") if !definition.def.is_empty() => {
                Ref::new(definition.clone(), &job.engine.policies())
                    .map(Some)
                    .map_err(|e| super::errors::status(&e))
            }
            (_, id) => by_id(id),
        };
        let mut attestations = BTreeMap::new();
        for (key, all) in &message.attestations {
            let told = all
                .attestation
                .iter()
                .map(|one| Told::of(one, one.r#ref.as_ref().map(of).transpose()?.flatten()));
            attestations.insert(key.clone(), told.collect::<Result<_, tonic::Status>>()?);
        }
        let refs =
            match message.result {
                None => Refs::One(None),
                Some(R::RefDeprecated(id)) => Refs::One(by_id(&id)?),
                Some(R::Ref(reference)) => Refs::One(of(&reference)?),
                Some(R::RefsDeprecated(map)) => Refs::Many(
                    map.refs
                        .iter()
                        .map(|(key, id)| Ok((key.clone(), by_id(id)?)))
                        .collect::<Result<_, tonic::Status>>()?,
                ),
                Some(R::Refs(map)) => Refs::Many(
                    map.refs
                        .iter()
                        .map(|(key, one)| Ok((key.clone(), of(one)?)))
                        .collect::<Result<_, tonic::Status>>()?,
                ),
            };
        Ok(Self { refs, metadata: message.metadata, attestations })
    }
}
