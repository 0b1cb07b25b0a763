//! LLB: the graph that the engine solves, and its bytes.
//!
//! Job: build a [`Definition`](pb::Definition) from operations ([`Builder`]) and read one back as a
//! checked [`Graph`]. The messages are BuildKit's (`solver/pb/ops.proto`), from a published crate but for what it lacks.
//! Holds: a vertex is named by the sha256 of its operation's bytes, so an edge can only point to
//! what existed before it and a graph has no cycle; a graph holds only vertices that its target needs,
//! inputs before users.
//! Never: knows how an operation is run.

mod build;
mod graph;
mod name;
pub mod newer;
pub mod pb;
pub mod protojson;
mod resources;

pub use build::{Builder, SourceRange, encode};
pub use graph::{Graph, GraphError, Location, SourceFile, Vertex};
pub use resources::{RESOURCE_NAMES, Resources};

use lapstrake_oci::Digest;

/// The digest of an operation's bytes: the identity of a vertex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexDigest(pub Digest);

impl std::fmt::Display for VertexDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// One of the results of a vertex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Output {
    /// The vertex.
    pub vertex: VertexDigest,
    /// Which of its results, from 0.
    pub index: u32,
}

/// The operation whose result a definition names, by its digest as it stands there; none where there is no definition.
pub fn head(definition: &pb::Definition) -> Option<String> {
    let last = <pb::Op as prost::Message>::decode(definition.def.last()?.as_slice()).ok()?;
    Some(last.inputs.into_iter().next()?.digest)
}

/// The operation that copies all of its only input onto nothing: the same files, as a file system of its own.
pub fn copy_of_all() -> pb::FileOp {
    let copy = pb::FileActionCopy {
        src: "/".to_owned(),
        dest: "/".to_owned(),
        mode: -1,
        dir_copy_contents: true,
        create_dest_path: true,
        timestamp: -1,
        ..pb::FileActionCopy::default()
    };
    // -1 is nothing, as its base; 0 the input, and the result.
    let action = pb::FileAction {
        input: -1,
        secondary_input: 0,
        output: 0,
        action: Some(pb::file_action::Action::Copy(copy)),
    };
    pb::FileOp { actions: vec![action] }
}

/// Keys of [`pb::OpMetadata::description`].
pub mod description {
    /// The name that progress shows for the vertex.
    pub const CUSTOM_NAME: &str = "llb.customname";
    /// Limits of a step, as [`crate::Resources`] are written.
    pub const RESOURCES: &str = "lapstrake.resources";
}
