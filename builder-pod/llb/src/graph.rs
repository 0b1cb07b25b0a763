use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lapstrake_oci::{Digest, DigestError};
use prost::Message as _;

use crate::{Output, VertexDigest, description, name, pb};

/// More operations than this in one definition are refused.
const OPS_MAX: usize = 100_000;

/// A checked graph: what a target needs, inputs before users.
#[derive(Debug, Clone)]
pub struct Graph {
    vertices: Vec<Arc<Vertex>>,
    by_digest: HashMap<VertexDigest, usize>,
    target: Option<Output>,
    files: Vec<SourceFile>,
}

/// One operation of a graph.
#[derive(Debug)]
pub struct Vertex {
    /// Its identity.
    pub digest: VertexDigest,
    /// The operation.
    pub op: pb::op::Op,
    /// The platform that it asks for.
    pub platform: Option<pb::Platform>,
    /// What it works on, in the operation's order.
    pub inputs: Vec<Output>,
    /// What does not belong to its identity: names, cache wishes.
    pub metadata: pb::OpMetadata,
    /// Where it comes from.
    pub locations: Vec<Location>,
    name: String,
}

/// Lines of a source file, from 1, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Index into [`Graph::files`].
    pub file: usize,
    /// First line.
    pub first_line: u32,
    /// Last line.
    pub last_line: u32,
}

/// A file that vertices come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Its name as the user knows it.
    pub name: String,
    /// Its contents.
    pub text: String,
}

/// Why a definition is not a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// More than the limit.
    #[error("definition has {0} operations, more than the {OPS_MAX} that are allowed")]
    TooLarge(usize),
    /// Bytes are not a protobuf operation.
    #[error("operation {index} of the definition can't be decoded: {why}")]
    Decode {
        /// Position in the definition.
        index: usize,
        /// The decoder's words.
        why: String,
    },
    /// An input's digest is malformed.
    #[error("operation {vertex} has a malformed input: {source}")]
    InputDigest {
        /// The operation.
        vertex: VertexDigest,
        /// What is wrong.
        source: DigestError,
    },
    /// An input is not in the definition.
    #[error("operation {vertex} needs {input}, which is not in the definition")]
    MissingInput {
        /// The operation.
        vertex: VertexDigest,
        /// What it points to.
        input: String,
    },
    /// An output number that the input can't have.
    #[error("operation {vertex} asks for output {index} of {input}, which has no such output")]
    OutputIndex {
        /// The operation.
        vertex: VertexDigest,
        /// What it points to.
        input: VertexDigest,
        /// The number.
        index: i64,
    },
    /// Kind of operation unknown here.
    #[error("operation {0} is of a kind that is not known")]
    UnknownOp(VertexDigest),
    /// The last operation is not a pointer to one result.
    #[error("the last operation of the definition must point to exactly one result")]
    NoTarget,
}

impl Graph {
    /// Reads and checks a definition. One without operations is the empty file system.
    pub fn decode(definition: &pb::Definition) -> Result<Self, GraphError> {
        let files = source_files(definition);
        if definition.def.is_empty() {
            return Ok(Self { vertices: Vec::new(), by_digest: HashMap::new(), target: None, files });
        }
        if definition.def.len() > OPS_MAX {
            return Err(GraphError::TooLarge(definition.def.len()));
        }
        let mut ops = HashMap::with_capacity(definition.def.len());
        let mut last = None;
        for (index, bytes) in definition.def.iter().enumerate() {
            let op = pb::Op::decode(bytes.as_slice())
                .map_err(|e| GraphError::Decode { index, why: e.to_string() })?;
            let digest = VertexDigest(Digest::of(bytes));
            last = Some(digest);
            ops.insert(digest, op);
        }
        let pointer_digest = last.ok_or(GraphError::NoTarget)?;
        let pointer = ops.get(&pointer_digest).ok_or(GraphError::NoTarget)?;
        let [input] = pointer.inputs.as_slice() else { return Err(GraphError::NoTarget) };
        if pointer.op.is_some() {
            return Err(GraphError::NoTarget);
        }
        let target = resolve(pointer_digest, input, &ops)?;
        let locations = locations(definition, files.len());
        let mut graph = Self { vertices: Vec::new(), by_digest: HashMap::new(), target: Some(target), files };
        graph.visit(target.vertex, &ops, definition, &locations)?;
        Ok(graph)
    }

    /// Depth first without recursion: a definition may be a chain of any length.
    fn visit(
        &mut self,
        root: VertexDigest,
        ops: &HashMap<VertexDigest, pb::Op>,
        definition: &pb::Definition,
        locations: &BTreeMap<String, Vec<Location>>,
    ) -> Result<(), GraphError> {
        let mut stack = vec![(root, false)];
        while let Some((digest, inputs_done)) = stack.pop() {
            if self.by_digest.contains_key(&digest) {
                continue;
            }
            let op = ops
                .get(&digest)
                .ok_or_else(|| GraphError::MissingInput { vertex: digest, input: digest.to_string() })?;
            let inputs: Vec<Output> =
                op.inputs.iter().map(|i| resolve(digest, i, ops)).collect::<Result<_, _>>()?;
            if !inputs_done {
                stack.push((digest, true));
                stack.extend(inputs.iter().rev().map(|i| (i.vertex, false)));
                continue;
            }
            let key = digest.to_string();
            let metadata = definition.metadata.get(&key).cloned().unwrap_or_default();
            let inner = op.op.clone().ok_or(GraphError::UnknownOp(digest))?;
            let name = metadata.description.get(description::CUSTOM_NAME).cloned().unwrap_or_else(|| {
                let input = |at: usize| Some(self.vertex(inputs.get(at)?.vertex)?.name.as_str());
                name::of(&inner, inputs.len(), input)
            });
            self.by_digest.insert(digest, self.vertices.len());
            self.vertices.push(Arc::new(Vertex {
                digest,
                op: inner,
                platform: op.platform.clone(),
                inputs,
                metadata,
                locations: locations.get(&key).cloned().unwrap_or_default(),
                name,
            }));
        }
        Ok(())
    }

    /// All vertices, inputs before users.
    pub fn vertices(&self) -> &[Arc<Vertex>] {
        &self.vertices
    }

    /// The vertex of this digest.
    pub fn vertex(&self, digest: VertexDigest) -> Option<&Arc<Vertex>> {
        self.by_digest.get(&digest).map(|i| &self.vertices[*i])
    }

    /// The wanted result; `None` is the empty file system.
    pub fn target(&self) -> Option<Output> {
        self.target
    }

    /// The files that vertices come from.
    pub fn files(&self) -> &[SourceFile] {
        &self.files
    }
}

impl Vertex {
    /// The name that progress shows.
    pub fn name(&self) -> String {
        self.name.clone()
    }
}

/// How many results an operation has: numbers are given without gaps, so no more than there are places for.
fn outputs(op: &pb::Op) -> i64 {
    let count = |numbers: &mut dyn Iterator<Item = i64>| {
        let (count, last) = numbers.fold((0i64, -1), |(count, last), number| (count + 1, number.max(last)));
        last.saturating_add(1).clamp(0, count)
    };
    match &op.op {
        Some(pb::op::Op::Exec(exec)) => count(&mut exec.mounts.iter().map(|m| m.output)),
        Some(pb::op::Op::Passthrough(op)) => i64::try_from(op.outputs.len()).unwrap_or(i64::MAX),
        Some(pb::op::Op::File(file)) => count(&mut file.actions.iter().map(|a| a.output)),
        Some(_) => 1,
        None => 0,
    }
}

fn resolve(
    vertex: VertexDigest,
    input: &pb::Input,
    ops: &HashMap<VertexDigest, pb::Op>,
) -> Result<Output, GraphError> {
    let digest = input.digest.parse().map_err(|source| GraphError::InputDigest { vertex, source })?;
    let digest = VertexDigest(digest);
    let op =
        ops.get(&digest).ok_or_else(|| GraphError::MissingInput { vertex, input: input.digest.clone() })?;
    match u32::try_from(input.index) {
        Ok(index) if input.index < outputs(op) => Ok(Output { vertex: digest, index }),
        _ => Err(GraphError::OutputIndex { vertex, input: digest, index: input.index }),
    }
}

fn source_files(definition: &pb::Definition) -> Vec<SourceFile> {
    let infos = definition.source.iter().flat_map(|s| &s.infos);
    infos
        .map(|i| SourceFile { name: i.filename.clone(), text: String::from_utf8_lossy(&i.data).into_owned() })
        .collect()
}

fn locations(definition: &pb::Definition, files: usize) -> BTreeMap<String, Vec<Location>> {
    let line = |p: Option<&pb::Position>| p.and_then(|p| u32::try_from(p.line).ok());
    let of = |l: &pb::Location| {
        let file = usize::try_from(l.source_index).ok().filter(|f| *f < files)?;
        let range = l.ranges.first()?;
        let first_line = line(range.start.as_ref())?;
        Some(Location { file, first_line, last_line: line(range.end.as_ref()).unwrap_or(first_line) })
    };
    let all = definition.source.iter().flat_map(|s| &s.locations);
    all.map(|(digest, l)| (digest.clone(), l.locations.iter().filter_map(of).collect())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, SourceRange};

    fn source(identifier: &str) -> pb::Op {
        pb::Op {
            op: Some(pb::op::Op::Source(pb::SourceOp {
                identifier: identifier.to_owned(),
                attrs: BTreeMap::new(),
            })),
            ..Default::default()
        }
    }

    fn merge(inputs: &[Output]) -> pb::Op {
        let merge =
            pb::MergeOp { inputs: (0..inputs.len()).map(|i| pb::MergeInput { input: i as i64 }).collect() };
        pb::Op {
            inputs: inputs.iter().map(|o| Builder::input(*o)).collect(),
            op: Some(pb::op::Op::Merge(merge)),
            ..Default::default()
        }
    }

    fn add(builder: &mut Builder, op: &pb::Op) -> Output {
        Output { vertex: builder.add(op, pb::OpMetadata::default(), &[]), index: 0 }
    }

    #[test]
    fn an_output_number_beyond_all_places_is_refused() {
        for output in [0, 1, i64::MAX] {
            let mounts = vec![pb::Mount { dest: "/".to_owned(), output, ..Default::default() }];
            let exec = pb::ExecOp { mounts, ..Default::default() };
            let op = pb::Op { op: Some(pb::op::Op::Exec(exec)), ..Default::default() };
            let mut builder = Builder::new();
            let vertex = builder.add(&op, pb::OpMetadata::default(), &[]);
            let index = u32::try_from(output).unwrap_or(u32::MAX);
            let graph = Graph::decode(&builder.finish(Some(Output { vertex, index })));
            assert_eq!(graph.is_ok(), output == 0, "{output}: {graph:?}");
        }
    }

    #[test]
    fn what_the_target_does_not_need_is_not_in_the_graph() {
        let mut builder = Builder::new();
        let (a, b) = (add(&mut builder, &source("local://a")), add(&mut builder, &source("local://b")));
        add(&mut builder, &source("local://unused"));
        let top = add(&mut builder, &merge(&[a, b]));
        let graph = Graph::decode(&builder.finish(Some(top))).expect("valid");
        let order: Vec<_> = graph.vertices().iter().map(|v| v.digest).collect();
        assert_eq!(order, [a.vertex, b.vertex, top.vertex]);
        assert_eq!(graph.target(), Some(top));
    }

    #[test]
    fn a_chain_of_any_length_is_read_without_recursion() {
        let mut builder = Builder::new();
        let mut last = add(&mut builder, &source("local://a"));
        for _ in 0..20_000 {
            last = add(&mut builder, &merge(&[last]));
        }
        assert_eq!(Graph::decode(&builder.finish(Some(last))).expect("valid").vertices().len(), 20_001);
    }

    #[test]
    fn source_lines_follow_their_vertex() {
        let mut builder = Builder::new();
        let file = builder.add_file("Dockerfile", b"FROM a\n", "Dockerfile");
        let range = SourceRange { file, start: (1, 0), end: (1, 6) };
        let vertex = builder.add(&source("local://a"), pb::OpMetadata::default(), &[range]);
        let graph = Graph::decode(&builder.finish(Some(Output { vertex, index: 0 }))).expect("valid");
        assert_eq!(graph.vertices()[0].locations, [Location { file: 0, first_line: 1, last_line: 1 }]);
        assert_eq!(graph.files()[0].name, "Dockerfile");
    }

    #[test]
    fn damaged_definitions_are_refused_by_name() {
        let mut builder = Builder::new();
        let a = add(&mut builder, &source("local://a"));
        let bad = add(&mut builder, &merge(&[Output { index: 7, ..a }]));
        let error = Graph::decode(&builder.finish(Some(bad))).expect_err("no output 7");
        assert!(matches!(error, GraphError::OutputIndex { index: 7, .. }), "{error}");

        let garbage = pb::Definition { def: vec![vec![0xff; 9]], ..Default::default() };
        assert!(matches!(Graph::decode(&garbage), Err(GraphError::Decode { index: 0, .. })));
    }
}
