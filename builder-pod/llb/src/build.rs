use std::collections::BTreeMap;

use lapstrake_oci::Digest;
use prost::Message as _;

use crate::{Output, VertexDigest, pb};

/// A range of lines in the file that a vertex comes from; lines and characters count from 1 and 0, as
/// BuildKit's source maps have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceRange {
    /// Which of the definition's files.
    pub file: u32,
    /// First line and character.
    pub start: (u32, u32),
    /// Last line and character.
    pub end: (u32, u32),
}

/// Collects operations and yields a definition.
#[derive(Debug, Default)]
pub struct Builder {
    order: Vec<VertexDigest>,
    ops: BTreeMap<VertexDigest, Vec<u8>>,
    metadata: BTreeMap<VertexDigest, pb::OpMetadata>,
    ranges: BTreeMap<VertexDigest, Vec<SourceRange>>,
    files: Vec<pb::SourceInfo>,
}

impl Builder {
    /// No operations.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a file that source ranges point into and returns its number.
    pub fn add_file(&mut self, name: &str, text: &[u8], language: &str) -> u32 {
        self.files.push(pb::SourceInfo {
            filename: name.to_owned(),
            data: text.to_vec(),
            definition: None,
            language: language.to_owned(),
        });
        (self.files.len() - 1) as u32
    }

    /// The input message that points to `output`.
    pub fn input(output: Output) -> pb::Input {
        pb::Input { digest: output.vertex.to_string(), index: i64::from(output.index) }
    }

    /// Adds an operation. The same operation added twice is one vertex: the first metadata stays,
    /// ranges add up.
    pub fn add(&mut self, op: &pb::Op, metadata: pb::OpMetadata, ranges: &[SourceRange]) -> VertexDigest {
        let bytes = encode(op);
        let digest = VertexDigest(Digest::of(&bytes));
        if self.ops.insert(digest, bytes).is_none() {
            self.order.push(digest);
        }
        self.metadata.entry(digest).or_insert(metadata);
        let known = self.ranges.entry(digest).or_default();
        known.extend(ranges.iter().filter(|r| !known.contains(r)).copied().collect::<Vec<_>>());
        digest
    }

    /// The definition whose result is `target`; `None` is an empty file system (`FROM scratch` and
    /// nothing else), which BuildKit writes as a definition without operations.
    pub fn finish(mut self, target: Option<Output>) -> pb::Definition {
        let Some(target) = target else {
            return pb::Definition {
                source: Some(pb::Source { infos: self.files, ..Default::default() }),
                ..Default::default()
            };
        };
        let pointer = pb::Op { inputs: vec![Self::input(target)], ..Default::default() };
        let pointer_digest = self.add(&pointer, pb::OpMetadata::default(), &[]);
        let locations =
            self.ranges.iter().filter(|(_, ranges)| !ranges.is_empty()).map(|(digest, ranges)| {
                let locations = ranges.iter().map(|r| pb::Location {
                    source_index: r.file as i32,
                    ranges: vec![pb::Range { start: Some(position(r.start)), end: Some(position(r.end)) }],
                });
                (digest.to_string(), pb::Locations { locations: locations.collect() })
            });
        let source = pb::Source { locations: locations.collect(), infos: self.files };
        // The pointer must come last, wherever an equal operation stood before.
        self.order.retain(|d| *d != pointer_digest);
        self.order.push(pointer_digest);
        pb::Definition {
            def: self.order.iter().filter_map(|d| self.ops.remove(d)).collect(),
            metadata: self.metadata.into_iter().map(|(d, m)| (d.to_string(), m)).collect(),
            source: Some(source),
        }
    }
}

/// The bytes of an operation as BuildKit's Go clients write them: what all operations have first, the
/// kind last, so that equal operations have equal digests wherever they were made.
pub fn encode(op: &pb::Op) -> Vec<u8> {
    let kind = pb::Op { op: op.op.clone(), ..Default::default() };
    let common = pb::Op { op: None, ..op.clone() };
    let mut bytes = common.encode_to_vec();
    bytes.extend(kind.encode_to_vec());
    bytes
}

fn position((line, character): (u32, u32)) -> pb::Position {
    pb::Position { line: line as i32, character: character as i32 }
}
