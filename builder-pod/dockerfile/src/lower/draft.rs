//! The graph in the making. Operations get their digests at the end only: the context's operation, which
//! most others rest on, is known when all that is read of it is known.

use std::collections::{BTreeMap, HashMap};

use lapstrake_llb::{Builder, Output, SourceRange, description, pb};
use lapstrake_oci::{Digest, Platform};
use prost::Message as _;

use crate::limits::DEFINITION_BYTES_MAX;
use crate::source::Source;

/// A result of a draft: which, and the number of the result.
pub(crate) type DraftOutput = (usize, u32);

/// The context's place.
pub(crate) const CONTEXT: DraftOutput = (0, 0);

/// An operation that stands in more places remembers so many.
const PLACES_MAX: usize = 16;

/// Inputs of an operation that stand for nothing.
pub(crate) const NO_INPUT: i64 = -1;
/// An output that is thrown away.
pub(crate) const NO_OUTPUT: i64 = -1;

#[derive(Debug, Clone)]
struct Draft {
    op: pb::Op,
    inputs: Vec<DraftOutput>,
    metadata: pb::OpMetadata,
    lines: Vec<(u32, u32)>,
}

/// Operations, inputs before users.
#[derive(Debug)]
pub(crate) struct Graph {
    drafts: Vec<Draft>,
    known: HashMap<Digest, usize>,
    /// What was spent so far, bytes.
    spent: usize,
}

impl Graph {
    pub(crate) fn new() -> Self {
        let context = Draft {
            op: pb::Op::default(),
            inputs: Vec::new(),
            metadata: pb::OpMetadata::default(),
            lines: Vec::new(),
        };
        Self { drafts: vec![context], known: HashMap::new(), spent: 0 }
    }

    /// Counts work that is not an operation; false when all in all it is too much.
    pub(crate) fn spend(&mut self, bytes: usize) -> bool {
        self.spent = self.spent.saturating_add(bytes);
        self.spent <= DEFINITION_BYTES_MAX
    }

    /// True when the definition is too large to go on.
    pub(crate) fn is_too_large(&self) -> bool {
        self.spent > DEFINITION_BYTES_MAX
    }

    /// Adds an operation; an equal one is the same.
    pub(crate) fn add(
        &mut self,
        op: pb::Op,
        inputs: Vec<DraftOutput>,
        metadata: pb::OpMetadata,
        lines: Option<(u32, u32)>,
    ) -> DraftOutput {
        let mut bytes = op.encode_to_vec();
        for (draft, index) in &inputs {
            bytes.extend_from_slice(&draft.to_le_bytes());
            bytes.extend_from_slice(&index.to_le_bytes());
        }
        self.spend(bytes.len() + 64);
        let next = self.drafts.len();
        let index = *self.known.entry(Digest::of(&bytes)).or_insert(next);
        if index == next {
            self.drafts.push(Draft { op, inputs, metadata, lines: lines.into_iter().collect() });
        } else if let Some(lines) = lines
            && self.drafts[index].lines.len() < PLACES_MAX
        {
            self.drafts[index].lines.push(lines);
        }
        (index, 0)
    }

    /// All steps, with the lines where they stand first.
    pub(crate) fn execs(&self) -> impl Iterator<Item = (&pb::ExecOp, (u32, u32))> {
        self.drafts.iter().filter_map(|draft| match &draft.op.op {
            Some(pb::op::Op::Exec(exec)) => Some((exec, draft.lines.first().copied().unwrap_or_default())),
            _ => None,
        })
    }

    fn reachable(&self, target: Option<DraftOutput>) -> Vec<bool> {
        let mut reachable = vec![false; self.drafts.len()];
        if let Some((target, _)) = target {
            reachable[target] = true;
        }
        for index in (0..self.drafts.len()).rev() {
            if reachable[index] {
                for (input, _) in &self.drafts[index].inputs {
                    reachable[*input] = true;
                }
            }
        }
        reachable
    }

    /// Whether `target` reads the context.
    pub(crate) fn uses_context(&self, target: Option<DraftOutput>) -> bool {
        self.reachable(target)[CONTEXT.0]
    }

    /// The definition of `target`, and how many operations it has.
    pub(crate) fn finish(
        mut self,
        target: Option<DraftOutput>,
        context: (pb::Op, pb::OpMetadata),
        source: &Source,
    ) -> (pb::Definition, usize) {
        (self.drafts[0].op, self.drafts[0].metadata) = context;
        let reachable = self.reachable(target);
        let mut builder = Builder::new();
        let file = builder.add_file(source.name(), source.text().as_bytes(), "Dockerfile");
        let mut outputs: BTreeMap<usize, Output> = BTreeMap::new();
        let resolve = |outputs: &BTreeMap<usize, Output>, (draft, index): DraftOutput| {
            outputs.get(&draft).map(|output| Output { index, ..*output })
        };
        for (at, mut draft) in self.drafts.into_iter().enumerate() {
            if !reachable[at] {
                continue;
            }
            let inputs = draft.inputs.iter().filter_map(|input| resolve(&outputs, *input));
            draft.op.inputs = inputs.map(Builder::input).collect();
            let range = |&(first, last): &(u32, u32)| SourceRange { file, start: (first, 0), end: (last, 0) };
            let ranges: Vec<_> = draft.lines.iter().map(range).collect();
            let vertex = builder.add(&draft.op, draft.metadata, &ranges);
            outputs.insert(at, Output { vertex, index: 0 });
        }
        let steps = outputs.len();
        let target = target.and_then(|target| resolve(&outputs, target));
        (builder.finish(target), steps)
    }
}

/// The inputs of an operation in the making; equal ones are one.
#[derive(Debug, Default)]
pub(crate) struct Inputs(pub(crate) Vec<DraftOutput>);

impl Inputs {
    /// The number of an input, [`NO_INPUT`] for the empty file system.
    pub(crate) fn index(&mut self, output: Option<DraftOutput>) -> i64 {
        let Some(output) = output else { return NO_INPUT };
        let at = self.0.iter().position(|known| *known == output).unwrap_or_else(|| {
            self.0.push(output);
            self.0.len() - 1
        });
        at as i64
    }
}

/// An operation as BuildKit's client writes it: with empty constraints.
pub(crate) fn operation(op: pb::op::Op, platform: Option<&Platform>) -> pb::Op {
    pb::Op {
        inputs: Vec::new(),
        op: Some(op),
        platform: platform.map(|p| pb::Platform {
            architecture: p.architecture.clone(),
            os: p.os.clone(),
            variant: p.variant.clone().unwrap_or_default(),
            os_version: p.os_version.clone().unwrap_or_default(),
            os_features: p.os_features.clone(),
        }),
        constraints: Some(pb::WorkerConstraints::default()),
    }
}

/// Metadata with a name.
pub(crate) fn named(name: &str) -> pb::OpMetadata {
    let description = [(description::CUSTOM_NAME.to_owned(), name.to_owned())].into();
    pb::OpMetadata { description, ..pb::OpMetadata::default() }
}

/// Metadata with a name and the instruction as written.
pub(crate) fn named_command(name: &str, command: &str) -> pb::OpMetadata {
    let mut metadata = named(name);
    metadata.description.insert("com.docker.dockerfile.v1.command".to_owned(), command.to_owned());
    metadata
}
