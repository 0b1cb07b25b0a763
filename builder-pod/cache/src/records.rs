//! A cache that was read: records by what leads to them.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use lapstrake_oci::{Descriptor, Digest};

use crate::doc::{Config, Input, Layer, Record};
use crate::limits::{CHAIN_LAYERS_MAX, RECORDS_MAX};
use crate::{Error, limits};

/// A record of one cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

/// A result: layers, lowest first, as the manifest describes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The layers.
    pub layers: Vec<Descriptor>,
    /// When it was made, where that is known.
    pub created: Option<Timestamp>,
}

/// How one leads to another: by which input, what of it, and what is done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Link {
    from: NodeId,
    input: usize,
    selector: String,
    record: Digest,
    /// How many inputs there are in all.
    inputs: usize,
}

/// What leads to a record: its name, and for each input all records that it may be, with what of them is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The record's name: [`crate::record_digest`] or [`crate::content_record`].
    pub digest: Digest,
    /// Its inputs. None is empty, and none leads back to the record.
    pub inputs: Vec<Vec<(NodeId, String)>>,
}

/// The records of one cache.
#[derive(Debug, Default)]
pub struct Records {
    origins: HashMap<NodeId, Origin>,
    roots: HashMap<Digest, BTreeSet<NodeId>>,
    links: HashMap<Link, BTreeSet<NodeId>>,
    results: HashMap<NodeId, Vec<Found>>,
}

/// The records that one input of an operation may be, each with what of it is used.
pub type Alternatives = Vec<(BTreeSet<NodeId>, Option<Digest>)>;

impl Records {
    /// Reads a config; `layers` are the descriptors of the manifest that it came with.
    ///
    /// A result with a layer that the manifest lacks is left out, as BuildKit does.
    ///
    /// # Errors
    /// [`Error::Malformed`], [`Error::TooLarge`], and [`Error::Damaged`] of loops and positions beyond the lists.
    pub fn parse(config: &[u8], layers: &[Descriptor]) -> Result<Self, Error> {
        let size_bytes = config.len() as u64;
        if size_bytes > limits::DOCUMENT_BYTES_MAX {
            return Err(Error::TooLarge {
                what: "config",
                size_bytes,
                limit_bytes: limits::DOCUMENT_BYTES_MAX,
            });
        }
        let config =
            serde_json::from_slice(config).map_err(|source| Error::Malformed { what: "config", source })?;
        Self::new(&config, layers)
    }

    /// The same of a config that was parsed already.
    ///
    /// # Errors
    /// [`Error::Damaged`] as [`Records::parse`].
    pub fn new(config: &Config, layers: &[Descriptor]) -> Result<Self, Error> {
        if config.records.len() > RECORDS_MAX {
            return Err(Error::Damaged(format!("it has {} records", config.records.len())));
        }
        check_order(&config.records)?;
        let blobs: HashMap<Digest, &Descriptor> = layers.iter().map(|d| (d.digest, d)).collect();
        let mut records = Self::default();
        for (at, record) in config.records.iter().enumerate() {
            records.add(NodeId(at), record, &config.layers, &blobs)?;
        }
        Ok(records)
    }

    fn add(
        &mut self,
        id: NodeId,
        record: &Record,
        layers: &[Layer],
        blobs: &HashMap<Digest, &Descriptor>,
    ) -> Result<(), Error> {
        // Names of another kind ("random:…") are of no use to anybody.
        let Ok(digest) = record.digest.parse::<Digest>() else { return Ok(()) };
        if record.inputs.is_empty() {
            self.roots.entry(digest).or_default().insert(id);
        }
        for (number, input) in record.inputs.iter().enumerate() {
            for link in input {
                let from = NodeId(position(link.link, usize::MAX)?);
                let (selector, inputs) = (link.selector.clone(), record.inputs.len());
                let link = Link { from, input: number, selector, record: digest, inputs };
                self.links.entry(link).or_default().insert(id);
            }
        }
        let linked = |input: &Vec<Input>| {
            let link = |link: &Input| Ok((NodeId(position(link.link, usize::MAX)?), link.selector.clone()));
            input.iter().map(link).collect::<Result<Vec<_>, Error>>()
        };
        let inputs = record.inputs.iter().map(linked).collect::<Result<Vec<_>, _>>()?;
        self.origins.insert(id, Origin { digest, inputs });
        let mut results = Vec::new();
        for result in &record.results {
            let layers = below(layers, result.layer)?;
            results.push((layers, result.created));
        }
        for chain in &record.chains {
            let layers = chain.layers.iter().map(|at| layer(layers, *at));
            results.push((layers.collect::<Result<Vec<_>, _>>()?, chain.created));
        }
        let mut found: Vec<Found> = results
            .into_iter()
            .filter_map(|(layers, created)| {
                let layers: Option<Vec<_>> =
                    layers.iter().map(|l| blobs.get(&l.blob).copied().cloned()).collect();
                layers.filter(|layers| !layers.is_empty()).map(|layers| Found { layers, created })
            })
            .collect();
        found.sort_by_key(|found| std::cmp::Reverse(found.created));
        if !found.is_empty() {
            self.results.insert(id, found);
        }
        Ok(())
    }

    /// The records of an operation's output: `record` over these inputs. All inputs must lead to a record.
    pub fn find(&self, record: &Digest, inputs: &[Alternatives]) -> BTreeSet<NodeId> {
        let Some((first, rest)) = inputs.split_first() else {
            return self.roots.get(record).cloned().unwrap_or_default();
        };
        let led = |number: usize, input: &Alternatives| {
            let mut led = BTreeSet::new();
            for (from, selector) in input {
                for from in from {
                    let selector = selector.map(|s| s.to_string()).unwrap_or_default();
                    let link =
                        Link { from: *from, input: number, selector, record: *record, inputs: inputs.len() };
                    led.extend(self.links.get(&link).into_iter().flatten());
                }
            }
            led
        };
        let mut all = led(0, first);
        for (number, input) in rest.iter().enumerate() {
            if all.is_empty() {
                break;
            }
            let these = led(number + 1, input);
            all.retain(|id| these.contains(id));
        }
        all
    }

    /// What leads to a record; `None` of one whose name is of no use to anybody.
    pub fn origin(&self, id: NodeId) -> Option<&Origin> {
        self.origins.get(&id)
    }

    /// Results of a record, the newest first.
    pub fn results(&self, id: NodeId) -> &[Found] {
        self.results.get(&id).map_or(&[], Vec::as_slice)
    }

    /// How many records have a result.
    pub fn results_count(&self) -> usize {
        self.results.len()
    }
}

fn position(at: i64, len: usize) -> Result<usize, Error> {
    usize::try_from(at)
        .ok()
        .filter(|at| *at < len)
        .ok_or_else(|| Error::Damaged(format!("something points at number {at}, which is not there")))
}

fn layer(layers: &[Layer], at: i64) -> Result<&Layer, Error> {
    let missing = || Error::Damaged(format!("there is no layer {at}"));
    layers.get(position(at, layers.len())?).ok_or_else(missing)
}

/// A layer and all below it, lowest first.
fn below(layers: &[Layer], top: i64) -> Result<Vec<&Layer>, Error> {
    let mut chain = Vec::new();
    let mut at = top;
    while at != -1 {
        let one = layer(layers, at)?;
        if chain.len() >= CHAIN_LAYERS_MAX.min(layers.len()) {
            return Err(Error::Damaged("layers lie upon each other in a loop, or are too many".to_owned()));
        }
        chain.push(one);
        at = one.parent;
    }
    chain.reverse();
    Ok(chain)
}

/// Records must not lead to themselves, and no input may be nothing.
fn check_order(records: &[Record]) -> Result<(), Error> {
    // Depth first without recursion: 0 is new, 1 is being looked at, 2 is done.
    let mut seen = vec![0u8; records.len()];
    for start in 0..records.len() {
        let mut stack = vec![(start, false)];
        while let Some((at, leaving)) = stack.pop() {
            let (Some(state), Some(record)) = (seen.get_mut(at), records.get(at)) else { continue };
            if leaving {
                *state = 2;
                continue;
            }
            match *state {
                0 => *state = 1,
                1 => return Err(Error::Damaged("a record leads to itself".to_owned())),
                _ => continue,
            }
            stack.push((at, true));
            for input in &record.inputs {
                if input.is_empty() {
                    return Err(Error::Damaged(format!("record {at} has an empty input")));
                }
                for link in input {
                    let to = position(link.link, records.len())?;
                    match seen.get(to) {
                        Some(1) => return Err(Error::Damaged("a record leads to itself".to_owned())),
                        Some(0) => stack.push((to, false)),
                        _ => {}
                    }
                }
            }
        }
    }
    Ok(())
}
