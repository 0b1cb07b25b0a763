//! Caches of other builds: a second source of records, whose results are fetched only when something needs them.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapstrake_bucket::Bucket;
use lapstrake_cache::{Alternatives, Found, NodeId, Records, content_record, inline, record_digest};
use lapstrake_oci::{Descriptor, Digest, Reference};
use lapstrake_registry::Client;
use lapstrake_solver::{CacheKey, Derivation};
use lapstrake_store::{SnapshotId, chain_id};

use super::Res;
use crate::client::Receiver;

/// Where the blobs of a cache are.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// In a registry's repository.
    Registry {
        /// The name of the cache.
        name: Reference,
        /// The client that reaches it.
        client: Client,
    },
    /// In an OCI layout.
    Directory(PathBuf),
    /// In a content store of a client.
    Client {
        /// The client.
        receiver: Arc<dyn Receiver>,
        /// Its name for the store.
        store: String,
    },
    /// In an object store.
    Bucket(Bucket),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registry { name, .. } => name.fmt(f),
            Self::Directory(path) => path.display().fmt(f),
            Self::Client { store, .. } => f.write_str(store),
            Self::Bucket(bucket) => bucket.fmt(f),
        }
    }
}

/// A file system whose layers are somewhere else.
pub(crate) struct Lazy {
    /// The layers, lowest first.
    pub(crate) layers: Vec<LazyLayer>,
}

/// A layer that is somewhere else.
#[derive(Clone)]
pub(crate) struct LazyLayer {
    /// Its blob, without annotations.
    pub(crate) blob: Descriptor,
    /// The digest of its tar.
    pub(crate) diff_id: Digest,
    /// Its chain id.
    pub(crate) chain: Digest,
    /// When it was made, RFC 3339.
    pub(crate) created: Option<String>,
    /// What made it, where that is told.
    pub(crate) about: Option<String>,
    /// Where it is.
    pub(crate) place: Arc<Place>,
}

impl Lazy {
    /// The chain id of the whole.
    pub(crate) fn chain(&self) -> Option<Digest> {
        self.layers.last().map(|layer| layer.chain)
    }

    /// A result of a cache; `None` where a layer does not say what it unpacks to.
    fn of(found: &Found, place: &Arc<Place>) -> Option<Self> {
        let mut layers = Vec::with_capacity(found.layers.len());
        let mut below: Option<Digest> = None;
        for layer in &found.layers {
            let diff_id: Digest = layer.annotations.get(inline::UNCOMPRESSED)?.parse().ok()?;
            let chain = chain_id(below.as_ref(), &diff_id);
            below = Some(chain);
            layers.push(LazyLayer {
                blob: Descriptor::new(&layer.media_type, layer.digest, layer.size),
                diff_id,
                chain,
                created: layer.annotations.get(inline::CREATED_AT).cloned(),
                about: layer.annotations.get(inline::DESCRIPTION).cloned(),
                place: Arc::clone(place),
            });
        }
        Some(Self { layers })
    }
}

/// A cache that was read.
pub(crate) struct Cache {
    /// What it knows.
    pub(crate) records: Records,
    place: Arc<Place>,
}

/// For each cache the records that one result of a key is.
type Nodes = Vec<BTreeSet<NodeId>>;

#[derive(Default)]
struct State {
    nodes: HashMap<(CacheKey, u32), Arc<Nodes>>,
    hits: HashMap<CacheKey, Vec<Option<Res>>>,
    /// Names of caches whose results could not be had, and those of them that nobody was told of yet.
    lost: BTreeSet<String>,
    untold: Vec<String>,
}

/// All caches that a build reads, and what is known of keys.
#[derive(Default)]
pub(crate) struct Remote {
    caches: Mutex<Vec<Arc<Cache>>>,
    state: Mutex<State>,
    derivations: Arc<Mutex<Derivations>>,
}

/// Derivations of one age at most: records of the store have theirs with them.
const DERIVATIONS_MAX: usize = 1 << 16;

/// How keys came to be, the latest at least.
#[derive(Default)]
struct Derivations {
    young: HashMap<CacheKey, Arc<Derivation>>,
    old: HashMap<CacheKey, Arc<Derivation>>,
}

impl Derivations {
    fn insert(&mut self, key: CacheKey, derivation: Derivation) {
        if self.young.len() >= DERIVATIONS_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, Arc::new(derivation));
    }

    fn get(&self, key: CacheKey) -> Option<Arc<Derivation>> {
        self.young.get(&key).or_else(|| self.old.get(&key)).cloned()
    }
}

impl Remote {
    /// None of these caches, for a build beside this one.
    pub(super) fn beside(&self) -> Self {
        Self { derivations: Arc::clone(&self.derivations), ..Self::default() }
    }

    fn derivations(&self) -> MutexGuard<'_, Derivations> {
        self.derivations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a cache; those that were added before are asked first.
    pub(crate) fn add(&self, records: Records, place: Place) {
        if self.state().lost.contains(&place.to_string()) {
            return;
        }
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        caches.push(Arc::new(Cache { records, place: Arc::new(place) }));
        // What was looked up without it may be found now.
        self.state().nodes.clear();
    }

    /// Leaves a cache out from now on, since what it promised can't be had: nothing of it is a hit any more.
    pub(crate) fn lose(&self, place: &Place) {
        let name = place.to_string();
        let others = |cache: &Arc<Cache>| cache.place.to_string() != name;
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).retain(others);
        let from_it = |result: &Res| match result {
            Res::Lazy(lazy) => lazy.layers.iter().any(|layer| layer.place.to_string() == name),
            Res::Snapshot(_) | Res::Context(_) => false,
        };
        let mut state = self.state();
        state.hits.retain(|_, results| !results.iter().flatten().any(from_it));
        state.nodes.clear();
        if state.lost.insert(name.clone()) {
            state.untold.push(name);
        }
    }

    /// Names of the caches that were lost since the last call.
    pub(crate) fn lost(&self) -> Vec<String> {
        std::mem::take(&mut self.state().untold)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn caches(&self) -> Vec<Arc<Cache>> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn derived(&self, key: CacheKey, derivation: Derivation) {
        self.derivations().insert(key, derivation);
    }

    /// How a key came to be, if that was in this process.
    pub(super) fn derivation(&self, key: CacheKey) -> Option<Arc<Derivation>> {
        self.derivations().get(key)
    }

    /// Results that caches gave for a key; `None` are those that they lack.
    pub(super) fn hit(&self, key: CacheKey) -> Option<Vec<Option<Res>>> {
        self.state().hits.get(&key).cloned()
    }

    /// Takes the hits whose results are all snapshots now, as `snapshot` tells.
    pub(super) fn settle(
        &self,
        snapshot: impl Fn(&Lazy) -> Option<SnapshotId>,
    ) -> Vec<(CacheKey, Vec<Option<Res>>)> {
        let here = |results: &[Option<Res>]| {
            let here = results.iter().map(|result| match result {
                Some(Res::Lazy(lazy)) => snapshot(lazy).map(|id| Some(Res::Snapshot(Some(id)))),
                other => Some(other.clone()),
            });
            here.collect::<Option<Vec<_>>>()
        };
        let mut state = self.state();
        let settled: Vec<_> =
            state.hits.iter().filter_map(|(key, results)| Some((*key, here(results)?))).collect();
        for (key, _) in &settled {
            state.hits.remove(key);
        }
        settled
    }

    /// Looks a key up in all caches: those of its results that they have, if any. `derivation` tells how keys came
    /// to be.
    pub(super) fn look_up(
        &self,
        key: CacheKey,
        derivation: &dyn Fn(CacheKey) -> Option<Arc<Derivation>>,
    ) -> Option<Vec<Option<Res>>> {
        let caches = self.caches();
        if caches.is_empty() {
            return None;
        }
        if let Some(results) = self.hit(key).filter(|results| results.iter().all(Option::is_some)) {
            return Some(results);
        }
        let derived = derivation(key)?;
        // A base image is a record without a result.
        if derived.inputs.is_empty() || derived.outputs == 0 {
            return None;
        }
        let results: Vec<Option<Res>> = (0..derived.outputs)
            .map(|output| {
                let nodes = self.nodes(key, output, &caches, derivation);
                let found = caches.iter().zip(nodes.iter()).find_map(|(cache, nodes)| {
                    let found = nodes.iter().flat_map(|node| cache.records.results(*node));
                    found.filter_map(|found| Lazy::of(found, &cache.place)).next()
                });
                found.map(|lazy| Res::Lazy(Arc::new(lazy)))
            })
            .collect();
        if results.iter().all(Option::is_none) {
            return None;
        }
        self.state().hits.insert(key, results.clone());
        Some(results)
    }

    /// Whether a cache has a record of a key, with a result or without.
    pub(super) fn knows(
        &self,
        key: CacheKey,
        derivation: &dyn Fn(CacheKey) -> Option<Arc<Derivation>>,
    ) -> bool {
        let caches = self.caches();
        let outputs = match derivation(key) {
            Some(derived) if !caches.is_empty() && !derived.inputs.is_empty() => derived.outputs,
            _ => return false,
        };
        (0..outputs)
            .any(|output| self.nodes(key, output, &caches, derivation).iter().any(|nodes| !nodes.is_empty()))
    }

    /// The records that a result is, by the caches that have it.
    pub(super) fn same(
        &self,
        key: CacheKey,
        output: u32,
        derivation: &dyn Fn(CacheKey) -> Option<Arc<Derivation>>,
    ) -> Vec<(Arc<Cache>, BTreeSet<NodeId>)> {
        let caches = self.caches();
        if caches.is_empty() {
            return Vec::new();
        }
        let nodes = self.nodes(key, output, &caches, derivation);
        let same = caches.into_iter().zip(nodes.iter().cloned());
        same.filter(|(_, nodes)| !nodes.is_empty()).collect()
    }

    /// The records that a result is, in each cache. Without recursion: a build may be a chain of any length.
    fn nodes(
        &self,
        key: CacheKey,
        output: u32,
        caches: &[Arc<Cache>],
        derivation: &dyn Fn(CacheKey) -> Option<Arc<Derivation>>,
    ) -> Arc<Nodes> {
        let mut stack = vec![(key, output)];
        let mut entered = BTreeSet::new();
        while let Some(&(key, output)) = stack.last() {
            if self.state().nodes.contains_key(&(key, output)) {
                stack.pop();
                continue;
            }
            let derived = derivation(key);
            let inputs = derived.iter().flat_map(|d| d.inputs.iter().filter_map(|input| input.key));
            let missing: Vec<_> = {
                let state = self.state();
                inputs.filter(|input| !state.nodes.contains_key(input)).collect()
            };
            // The second time all that can be known of inputs is known.
            if entered.insert((key, output)) && !missing.is_empty() {
                stack.extend(missing);
                continue;
            }
            let nodes = match &derived {
                Some(derived) => self.found(derived, output, caches),
                None => vec![BTreeSet::new(); caches.len()],
            };
            self.state().nodes.insert((key, output), Arc::new(nodes));
            stack.pop();
        }
        self.state().nodes.get(&(key, output)).cloned().unwrap_or_default()
    }

    fn found(&self, derived: &Derivation, output: u32, caches: &[Arc<Cache>]) -> Nodes {
        let record = record_digest(&derived.operation, output);
        let state = self.state();
        let in_cache = |(at, cache): (usize, &Arc<Cache>)| {
            let alternatives = derived.inputs.iter().map(|input| {
                let mut these: Alternatives = Vec::new();
                if let Some(nodes) = input.key.and_then(|key| state.nodes.get(&key)?.get(at).cloned()) {
                    these.push((nodes, input.selector));
                }
                if let Some(content) = &input.content {
                    these.push((cache.records.find(&content_record(content), &[]), None));
                }
                these
            });
            cache.records.find(&record, &alternatives.collect::<Vec<_>>())
        };
        caches.iter().enumerate().map(in_cache).collect()
    }
}
