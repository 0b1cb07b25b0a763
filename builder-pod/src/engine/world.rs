//! What the solver asks of the engine: keys, records, contents and results of vertices.

use async_trait::async_trait;
use lapstrake_handoff::Reason;
use lapstrake_llb::{Vertex, pb};
use lapstrake_oci::Digest;
use lapstrake_solver::{CacheKey, Derivation, OpKey, Record, Step, World};
use lapstrake_store::{SnapshotId, Store, Table};
use serde::{Deserialize, Serialize};

use super::{
    ABOUT, Engine, FailedOp, Res, blob, file, image_name, key, lazy, outside, platform_of, unsupported_source,
};
use crate::error::BuildError;

/// A record as it is kept.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) key: Digest,
    pub(super) results: Vec<Option<SnapshotId>>,
    /// Numbers of results that are not known: another builder's cache had the others only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) missing: Vec<usize>,
    /// How the key that it stands under came to be, for caches that others read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) derivation: Option<Derivation>,
}

impl Kept {
    /// The results that are still there.
    pub(super) fn there(self, store: &Store) -> Vec<Option<Res>> {
        let missing = self.missing;
        let there = |(number, id): (usize, Option<SnapshotId>)| {
            let gone = missing.contains(&number) || id.is_some_and(|id| !store.has_snapshot(id));
            (!gone).then_some(Res::Snapshot(id))
        };
        self.results.into_iter().enumerate().map(there).collect()
    }
}

#[async_trait]
impl World for Engine {
    type Result = Res;
    type Error = BuildError;

    async fn describe(&self, vertex: &Vertex, _step: &Step) -> Result<OpKey, BuildError> {
        let platform = platform_of(vertex, &self.platform);
        match &vertex.op {
            pb::op::Op::Source(source) => {
                if let Some(name) = image_name(source) {
                    let (resolved, limit) = self.images.asked(&name, source, &platform).await?;
                    let diff_ids = &resolved.config.rootfs.diff_ids;
                    return Ok(key::image(&resolved.digest, diff_ids, &platform, limit));
                }
                if source.identifier.starts_with("local://") {
                    return Ok(key::local(vertex));
                }
                if blob::is_blob(source) {
                    return blob::key(source);
                }
                if outside::is_outside(source) {
                    self.bring_bundle(source).await?;
                    return self.outside.key(&self.store, source).await.map_err(|e| located(&e, vertex));
                }
                Err(unsupported_source(&source.identifier))
            }
            pb::op::Op::Exec(exec) => Ok(key::exec(exec, vertex, &platform)),
            pb::op::Op::File(file) => Ok(key::file(file, vertex)),
            pb::op::Op::Merge(merge) => Ok(key::merge(merge, vertex)),
            pb::op::Op::Diff(diff) => Ok(key::diff(diff, vertex)),
            pb::op::Op::Passthrough(op) => Ok(key::passthrough(op, vertex)),
            pb::op::Op::Build(op) => Ok(key::build(op, vertex)),
        }
    }

    fn look_up(&self, key: CacheKey) -> Option<Record<Res>> {
        self.recorded(key)
    }

    fn vouch(&self, key: CacheKey) -> Option<CacheKey> {
        // What was collected in the middle of a chain, and records of others that came without results.
        if let Some(kept) = self.kept(key) {
            return Some(CacheKey(kept.key));
        }
        self.remote.knows(key, &|key| self.derivation(key)).then_some(key)
    }

    fn derived(&self, key: CacheKey, derivation: Derivation) {
        self.remote.derived(key, derivation);
    }

    async fn hash(&self, vertex: &Vertex, input: usize, of: &Res, step: &Step) -> Result<Digest, BuildError> {
        let selectors = key::selectors(vertex, input)?;
        let of = self.realised(of.clone(), step).await?;
        let digest = file::checksum(self, &of, selectors, step).await;
        digest.map_err(|error| FailedOp::of_content(&located(&error, vertex), vertex, input, of))
    }

    async fn run(&self, vertex: &Vertex, inputs: Vec<Res>, step: &Step) -> Result<Vec<Res>, BuildError> {
        let work = || self.run_once(vertex, inputs.clone(), step);
        let result = crate::room::retried(&self.store, Some(step), work).await;
        if let Ok(results) = &result {
            for (output, result) in results.iter().enumerate() {
                if let (Res::Snapshot(Some(id)), Some(text)) = (result, about(vertex, output)) {
                    let id = id.to_string();
                    // The same files that come another way later, as an image's layer, are what they were.
                    if self.store.get(ABOUT, id.as_bytes()).is_none() {
                        self.store.put(ABOUT, id.as_bytes(), text.as_bytes()).ok(); // for people only
                    }
                }
            }
        }
        result.map_err(|error| FailedOp::told(&located(&error, vertex), vertex))
    }

    fn save(&self, key: CacheKey, record: &Record<Res>) {
        let here = |res: &Option<Res>| match res {
            Some(Res::Snapshot(id)) => Some(*id),
            // What is somewhere else becomes a record once it is here.
            Some(Res::Context(_) | Res::Lazy(_)) | None => None,
        };
        let mut all: Vec<Option<Option<SnapshotId>>> = record.results.iter().map(here).collect();
        if all.iter().any(Option::is_none)
            && let Some(older) = self.kept(key).filter(|older| older.key == record.key.0)
        {
            let there = older.there(&self.store);
            lazy::fill(&mut all, there.iter().map(here).collect());
        }
        if all.iter().all(Option::is_none) {
            return;
        }
        let missing = all.iter().enumerate().filter(|(_, result)| result.is_none());
        let missing = missing.map(|(number, _)| number).collect();
        let results = all.into_iter().map(Option::flatten).collect();
        let derivation = self.remote.derivation(key).map(|d| (*d).clone());
        let kept = Kept { key: record.key.0, results, missing, derivation };
        let kept = serde_json::to_vec(&kept).map_err(|e| e.to_string());
        let saved =
            kept.and_then(|v| self.store.put(Table::CACHE, key.0.as_bytes(), &v).map_err(|e| e.to_string()));
        if let Err(error) = saved {
            tracing::warn!("a cache record could not be kept: {error}");
        }
    }

    fn canceled(&self) -> BuildError {
        BuildError::canceled()
    }

    fn panicked(&self, message: &str) -> BuildError {
        BuildError::internal(format!("a mistake of the builder's own: {message}"))
    }
}

/// Says which step failed.
pub(super) fn located(error: &BuildError, vertex: &Vertex) -> BuildError {
    if error.failure().reason == Reason::Canceled {
        return error.clone();
    }
    error.with(|failure| {
        failure.step.get_or_insert_with(|| vertex.name());
        if let Some(location) = vertex.locations.first() {
            failure.line.get_or_insert(location.first_line);
        }
    })
}

/// What the results of a vertex are, in the words that BuildKit has for them.
fn about(vertex: &Vertex, output: usize) -> Option<String> {
    match &vertex.op {
        pb::op::Op::Exec(exec) => {
            let number = i64::try_from(output).ok()?;
            let dest = exec.mounts.iter().find(|mount| mount.output == number).map(|mount| &mount.dest)?;
            let args = exec.meta.as_ref().map(|meta| meta.args.join(" "))?;
            Some(format!("mount {dest} from exec {args}"))
        }
        pb::op::Op::Source(source) => {
            let name = source.identifier.strip_prefix("docker-image://")?;
            Some(format!("pulled from {name}"))
        }
        _ => Some(vertex.name()),
    }
}
