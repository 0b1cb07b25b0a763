//! The records that lead to a build's results: by definition, by contents, and by what caches that it read know
//! beside.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lapstrake_cache::{Draft, NodeId, RecordId, content_record, record_digest};
use lapstrake_solver::{CacheKey, Derivation};

use crate::engine::{Cache, Engine, Res};

/// The records of a build: what leads to its results, with the results themselves.
pub(super) struct Collected {
    pub(super) draft: Draft,
    pub(super) results: Vec<(RecordId, Res)>,
}

/// For each input all records that it may be, and what of them is used.
type Links = Vec<Vec<(RecordId, String)>>;

#[derive(Default)]
struct Collector {
    draft: Draft,
    known: HashMap<(CacheKey, u32), Option<RecordId>>,
    /// What records of caches are here; a cache is told by its address.
    theirs: HashMap<(usize, NodeId), Option<RecordId>>,
    /// Those caches, so that no other one comes to their addresses.
    held: HashMap<usize, Arc<Cache>>,
}

/// Follows keys from the targets down. Without recursion: a build may be a chain of any length.
pub(super) fn collect(engine: &Engine, targets: impl IntoIterator<Item = (CacheKey, u32)>) -> Collected {
    let mut all = Collector::default();
    let mut results = Vec::new();
    let mut entered = HashSet::new();
    let mut stack: Vec<_> = targets.into_iter().collect();
    while let Some(&(key, output)) = stack.last() {
        if all.known.contains_key(&(key, output)) {
            stack.pop();
            continue;
        }
        let Some(derived) = engine.derivation(key) else {
            all.known.insert((key, output), None);
            continue;
        };
        let inputs = derived.inputs.iter().filter_map(|input| input.key);
        let missing: Vec<_> = inputs.filter(|input| !all.known.contains_key(input)).collect();
        if entered.insert((key, output)) && !missing.is_empty() {
            stack.extend(missing);
            continue;
        }
        let id = all.record(engine, key, output, &derived);
        // Base images have records, but no layers: they are where they came from.
        let is_source = derived.inputs.is_empty();
        if let Some(id) = id.filter(|_| !is_source)
            && let Some(result) = engine.result_of(key, output)
        {
            results.push((id, result));
        }
    }
    Collected { draft: all.draft, results }
}

impl Collector {
    /// The record of one result; those of its inputs were made before.
    fn record(
        &mut self,
        engine: &Engine,
        key: CacheKey,
        output: u32,
        derived: &Derivation,
    ) -> Option<RecordId> {
        let mut links = self.links(derived);
        let same = engine.same_in_caches(key, output);
        self.held.extend(same.iter().map(|(cache, _)| (Arc::as_ptr(cache).addr(), Arc::clone(cache))));
        let records = same.iter().flat_map(|(cache, nodes)| nodes.iter().map(move |node| (cache, *node)));
        // A step that was found by its definition alone was not asked for the contents that it reads: the cache knows them.
        for (cache, node) in records.clone() {
            let Some(origin) = cache.records.origin(node) else { continue };
            for (links, input) in links.iter_mut().zip(&origin.inputs) {
                for (from, selector) in input {
                    links.extend(self.of_cache(cache, *from).map(|id| (id, selector.clone())));
                }
            }
        }
        let id = self.draft.linked(record_digest(&derived.operation, output), links);
        self.known.insert((key, output), id);
        self.theirs.extend(records.map(|(cache, node)| (place(cache, node), id)));
        id
    }

    /// How a key came to be, as links.
    fn links(&mut self, derived: &Derivation) -> Links {
        let mut inputs = Vec::with_capacity(derived.inputs.len());
        for input in &derived.inputs {
            let mut links = Vec::new();
            if let Some(id) = input.key.and_then(|key| self.known.get(&key).copied().flatten()) {
                links.push((id, input.selector.map(|s| s.to_string()).unwrap_or_default()));
            }
            let content = input.content.map(|content| content_record(&content));
            if let Some(id) = content.and_then(|content| self.draft.record(content, [])) {
                links.push((id, String::new()));
            }
            inputs.push(links);
        }
        inputs
    }

    /// A record of a cache with all that leads to it, unless the build came by it already. It has no results: the build asked for
    /// none.
    fn of_cache(&mut self, cache: &Arc<Cache>, node: NodeId) -> Option<RecordId> {
        let mut stack = vec![node];
        while let Some(&node) = stack.last() {
            if self.theirs.contains_key(&place(cache, node)) {
                stack.pop();
                continue;
            }
            let Some(origin) = cache.records.origin(node) else {
                self.theirs.insert(place(cache, node), None);
                continue;
            };
            let all = origin.inputs.iter().flatten().map(|(from, _)| *from);
            let missing: Vec<_> =
                all.filter(|from| !self.theirs.contains_key(&place(cache, *from))).collect();
            // No record of a cache leads to itself: all of them come to be known.
            if !missing.is_empty() {
                stack.extend(missing);
                continue;
            }
            let known = |(from, selector): &(NodeId, String)| {
                Some((self.theirs.get(&place(cache, *from)).copied().flatten()?, selector.clone()))
            };
            let links: Links =
                origin.inputs.iter().map(|input| input.iter().filter_map(known).collect()).collect();
            let id = self.draft.linked(origin.digest, links);
            self.theirs.insert(place(cache, node), id);
        }
        self.theirs.get(&place(cache, node)).copied().flatten()
    }
}

fn place(cache: &Arc<Cache>, node: NodeId) -> (usize, NodeId) {
    (Arc::as_ptr(cache).addr(), node)
}
