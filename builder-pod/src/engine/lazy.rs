//! From a result that is somewhere else to a snapshot, when something needs it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use lapstrake_cache::NodeId;
use lapstrake_oci::Digest;
use lapstrake_solver::{CacheKey, Derivation, Record, Step, World as _};
use lapstrake_store::{SnapshotId, Table};
use tokio_util::sync::CancellationToken;

use super::world::Kept;
use super::{Cache, Engine, Lazy, Res};
use crate::error::BuildError;

/// One at a time for what begins with the same layer: results of one build share most of theirs.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    fn of(&self, first: Digest) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(first).or_default())
    }
}

/// What moves, bytes so far, bytes in all.
type Status = dyn Fn(&str, u64, u64) + Send + Sync;

/// Who is told of a fetch, and who may end it.
#[derive(Clone)]
pub(crate) struct Watch {
    pub(super) cancel: CancellationToken,
    pub(super) status: Arc<Status>,
}

impl Watch {
    /// A vertex' own.
    pub(super) fn of(step: &Step) -> Self {
        let reporter = step.clone();
        let status = Arc::new(move |name: &str, done, total| reporter.status(name, done, total));
        Self { cancel: step.cancel.clone(), status }
    }

    /// Nobody is told.
    pub(crate) fn silent(cancel: &CancellationToken) -> Self {
        Self { cancel: cancel.clone(), status: Arc::new(|_, _, _| ()) }
    }
}

/// Adds to results those that only others have.
pub(super) fn fill<T>(results: &mut Vec<Option<T>>, others: Vec<Option<T>>) {
    if results.len() < others.len() {
        results.resize_with(others.len(), || None);
    }
    for (result, other) in results.iter_mut().zip(others) {
        if result.is_none() {
            *result = other;
        }
    }
}

/// A mistake of ours: operations are given what is here.
pub(super) fn not_realised() -> BuildError {
    BuildError::internal("an operation was given a result that is still somewhere else")
}

impl Engine {
    /// The results under a key that are there, here or in a cache, and the key for what comes after.
    pub(super) fn recorded(&self, key: CacheKey) -> Option<Record<Res>> {
        let mut found = self.kept(key).map(|kept| (CacheKey(kept.key), kept.there(&self.store)));
        let has = |results: &[Option<Res>]| results.iter().all(Option::is_some);
        if found.as_ref().is_none_or(|(_, results)| !has(results))
            && let Some(others) = self.remote.look_up(key, &|key| self.derivation(key))
        {
            let (_, results) = found.get_or_insert((key, Vec::new()));
            fill(results, others);
        }
        let (key, results) = found?;
        results.iter().any(Option::is_some).then_some(Record { key, results })
    }

    /// The record under a key as it is kept, whatever became of its results.
    pub(super) fn kept(&self, key: CacheKey) -> Option<Kept> {
        serde_json::from_slice(&self.store.get(Table::CACHE, key.0.as_bytes())?).ok()
    }

    /// How a key came to be, here or in an earlier build.
    pub(crate) fn derivation(&self, key: CacheKey) -> Option<Arc<Derivation>> {
        self.remote.derivation(key).or_else(|| self.kept(key)?.derivation.map(Arc::new))
    }

    /// What is known as a result of a key: what the build found or made, else what a cache has that nothing asked for.
    pub(crate) fn result_of(&self, key: CacheKey, output: u32) -> Option<Res> {
        let output = output as usize;
        let hit = || self.remote.hit(key)?.into_iter().nth(output)?;
        let here = || self.kept(key)?.there(&self.store).into_iter().nth(output)?;
        let there =
            || self.remote.look_up(key, &|key| self.derivation(key))?.into_iter().nth(output).flatten();
        hit().or_else(here).or_else(there)
    }

    /// The records that a result is in caches of other builds.
    pub(crate) fn same_in_caches(&self, key: CacheKey, output: u32) -> Vec<(Arc<Cache>, BTreeSet<NodeId>)> {
        self.remote.same(key, output, &|key| self.derivation(key))
    }

    /// Whether all layers of a result can be had, as far as that costs no more than asking.
    pub(crate) async fn is_there(&self, lazy: &Lazy) -> bool {
        for layer in &lazy.layers {
            if !self.images.is_there(&layer.place, layer.blob.digest).await {
                return false;
            }
        }
        true
    }

    /// A result that operations can work on.
    pub(super) async fn realised(&self, result: Res, step: &Step) -> Result<Res, BuildError> {
        match result {
            Res::Lazy(lazy) => Ok(Res::Snapshot(self.realise(&lazy, &Watch::of(step)).await?)),
            here => Ok(here),
        }
    }

    pub(super) async fn all_realised(&self, results: Vec<Res>, step: &Step) -> Result<Vec<Res>, BuildError> {
        let mut realised = Vec::with_capacity(results.len());
        for result in results {
            realised.push(self.realised(result, step).await?);
        }
        Ok(realised)
    }

    /// The snapshot of a result, if all of it was unpacked already.
    pub(crate) fn unpacked(&self, lazy: &Lazy) -> Option<SnapshotId> {
        self.store.snapshot_of_chain(&lazy.chain()?)
    }

    /// Fetches and unpacks what is missing of a result, and keeps it as one of ours.
    pub(crate) async fn realise(&self, lazy: &Lazy, step: &Watch) -> Result<Option<SnapshotId>, BuildError> {
        let Some(first) = lazy.layers.first() else { return Ok(None) };
        let turn = self.turns.of(first.chain);
        let _turn = turn.lock().await;
        let layers = lazy.layers.clone();
        let snapshot =
            self.images.unpack_all(&self.store, layers, self.userxattr(), step).await.map_err(|e| {
                self.lose(&first.place, &e);
                let message = format!("a result of cache {} can't be had: {e}", first.place);
                BuildError::new(e.failure().reason, message)
            })?;
        if snapshot.is_some() {
            self.remember_origins(lazy);
            // This and what lies below it are records of ours now.
            for (key, results) in self.remote.settle(|lazy| self.unpacked(lazy)) {
                self.save(key, &Record { key, results });
            }
        }
        Ok(snapshot)
    }

    /// A cache that lacks what it promised is left out from now on; one that is only canceled or has no room is not.
    pub(crate) fn lose(&self, place: &super::remote::Place, error: &BuildError) {
        use lapstrake_handoff::Reason;
        if !matches!(error.failure().reason, Reason::Canceled | Reason::DiskFull) {
            self.remote.lose(place);
        }
    }

    /// Layers keep the time at which they were made, and the word of what made them.
    fn remember_origins(&self, lazy: &Lazy) {
        for layer in &lazy.layers {
            let Some(id) = self.store.snapshot_of_chain(&layer.chain) else { continue };
            let key = id.to_string().into_bytes();
            for (table, told) in [(super::CREATED, &layer.created), (super::ABOUT, &layer.about)] {
                if let (Some(told), None) = (told, self.store.get(table, &key)) {
                    self.store.put(table, &key, told.as_bytes()).ok(); // the layer is then of no known origin
                }
            }
        }
    }
}
