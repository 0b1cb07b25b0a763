//! A cache in the making.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use lapstrake_oci::{Descriptor, Digest, Hasher};

use crate::doc::{Config, Input, Layer, Outcome, Record};

/// A record of a [`Draft`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(usize);

type Links = BTreeSet<(RecordId, String)>;

#[derive(Debug)]
struct Node {
    digest: Digest,
    inputs: Vec<Links>,
    result: Option<(Vec<Descriptor>, Option<Timestamp>)>,
    /// What it is called whatever the order of making.
    name: Digest,
}

/// Records with their results; inputs come before what is made of them.
#[derive(Debug, Default)]
pub struct Draft {
    nodes: Vec<Node>,
    known: HashMap<Digest, RecordId>,
}

impl Draft {
    /// A draft without records.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a record has layers.
    pub fn has_results(&self) -> bool {
        self.nodes.iter().any(|node| node.result.is_some())
    }

    /// A record over inputs, each with all the records that it may be and what of them is used. The same
    /// record is made once. `None` where an input leads nowhere: then nobody could find the record.
    pub fn record(
        &mut self,
        digest: Digest,
        inputs: impl IntoIterator<Item = Vec<(RecordId, Option<Digest>)>>,
    ) -> Option<RecordId> {
        let text = |selector: Option<Digest>| selector.map(|s| s.to_string()).unwrap_or_default();
        let links = |links: Vec<(RecordId, Option<Digest>)>| {
            links.into_iter().map(|(id, selector)| (id, text(selector))).collect()
        };
        self.linked(digest, inputs.into_iter().map(links))
    }

    /// The same, with what is used in the words of a cache that was read.
    pub fn linked(
        &mut self,
        digest: Digest,
        inputs: impl IntoIterator<Item = Vec<(RecordId, String)>>,
    ) -> Option<RecordId> {
        let inputs: Vec<Links> = inputs.into_iter().map(|links| links.into_iter().collect()).collect();
        if inputs.iter().any(BTreeSet::is_empty) {
            return None;
        }
        let name = self.name(&digest, &inputs);
        if let Some(known) = self.known.get(&name) {
            return Some(*known);
        }
        let id = RecordId(self.nodes.len());
        self.nodes.push(Node { digest, inputs, result: None, name });
        self.known.insert(name, id);
        Some(id)
    }

    /// A record's result: layers, lowest first. Of several the newest counts.
    pub fn result(&mut self, id: RecordId, layers: Vec<Descriptor>, created: Option<Timestamp>) {
        let Some(node) = self.nodes.get_mut(id.0) else { return };
        let newer = node.result.as_ref().is_none_or(|(_, old)| *old < created);
        if newer && !layers.is_empty() {
            node.result = Some((layers, created));
        }
    }

    fn name(&self, digest: &Digest, inputs: &[Links]) -> Digest {
        let mut hasher = Hasher::new();
        hasher.update(digest.as_bytes());
        for links in inputs {
            hasher.update(&(links.len() as u64).to_be_bytes());
            let name = |id: &RecordId| self.nodes.get(id.0).map(|node| node.name);
            let named: BTreeSet<_> = links.iter().map(|(id, selector)| (name(id), selector)).collect();
            for (name, selector) in named {
                hasher.update(name.map(|n| *n.as_bytes()).unwrap_or_default().as_slice());
                hasher.update(&(selector.len() as u64).to_be_bytes());
                hasher.update(selector.as_bytes());
            }
        }
        hasher.finish()
    }

    /// The records in an order of their own, and each one's position in it.
    fn ordered(&self) -> (Vec<&Node>, HashMap<RecordId, i64>) {
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        let by = |at: &usize| self.nodes.get(*at).map(|node| (node.digest, node.inputs.len(), node.name));
        order.sort_by_key(by);
        let place = order.iter().enumerate().map(|(place, at)| (RecordId(*at), place as i64)).collect();
        (order.iter().filter_map(|at| self.nodes.get(*at)).collect(), place)
    }

    /// Config and layers, each once, in the config's order. The same records give the same bytes.
    pub fn finish(&self) -> (Config, Vec<Descriptor>) {
        // A layer on others is told by all of them.
        let mut places: BTreeMap<(Digest, Vec<Digest>), (Descriptor, i64)> = BTreeMap::new();
        for (layers, _) in self.nodes.iter().filter_map(|node| node.result.as_ref()) {
            let mut below = Vec::new();
            for layer in layers {
                places.entry((layer.digest, below.clone())).or_insert_with(|| (layer.clone(), 0));
                below.push(layer.digest);
            }
        }
        for (place, (_, at)) in places.values_mut().enumerate() {
            *at = place as i64;
        }
        let at = |layers: &[Digest]| {
            let (top, below) = layers.split_last()?;
            places.get(&(*top, below.to_vec())).map(|(_, at)| *at)
        };
        let layers = places
            .keys()
            .map(|(blob, below)| Layer { blob: *blob, parent: at(below).unwrap_or(-1), annotations: None })
            .collect();
        let records = self.records(|layers, created| {
            let digests: Vec<Digest> = layers.iter().map(|layer| layer.digest).collect();
            let outcome = at(&digests).map(|layer| Outcome { layer, created });
            Record { results: outcome.into_iter().collect(), ..Record::default() }
        });
        let mut seen = BTreeSet::new();
        let descriptors = places.values().map(|(descriptor, _)| descriptor);
        let descriptors = descriptors.filter(|descriptor| seen.insert(descriptor.digest)).cloned().collect();
        (Config { layers, records }, descriptors)
    }

    /// The records, with results as `result` writes them.
    pub(crate) fn records(&self, result: impl Fn(&[Descriptor], Option<Timestamp>) -> Record) -> Vec<Record> {
        let (nodes, place) = self.ordered();
        let written = nodes.into_iter().map(|node| {
            let mut record = match &node.result {
                Some((layers, created)) => result(layers, *created),
                None => Record::default(),
            };
            record.digest = node.digest.to_string();
            record.inputs = node
                .inputs
                .iter()
                .map(|links| {
                    let link = |(id, selector): &(RecordId, String)| {
                        place.get(id).map(|at| Input { selector: selector.clone(), link: *at })
                    };
                    let mut links: Vec<Input> = links.iter().filter_map(link).collect();
                    links.sort_by(|a, b| (a.link, &a.selector).cmp(&(b.link, &b.selector)));
                    links
                })
                .collect();
            record
        });
        written.collect()
    }
}

#[cfg(test)]
#[path = "draft_tests.rs"]
mod tests;
