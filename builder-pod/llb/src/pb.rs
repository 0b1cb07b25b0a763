//! BuildKit's messages, and what the published crate does not have of them yet.

pub use bollard_buildkit_proto::pb::*;

/// A vertex.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Op {
    /// What it works on.
    #[prost(message, repeated, tag = "1")]
    pub inputs: Vec<Input>,
    /// The platform that it asks for.
    #[prost(message, optional, tag = "10")]
    pub platform: Option<Platform>,
    /// Who may do it.
    #[prost(message, optional, tag = "11")]
    pub constraints: Option<WorkerConstraints>,
    /// What is done; nothing in a pointer to a result.
    #[prost(oneof = "op::Op", tags = "2, 3, 4, 5, 6, 7, 8")]
    pub op: Option<op::Op>,
}

/// Parts of [`Op`].
pub mod op {
    /// What is done.
    #[allow(clippy::large_enum_variant, reason = "it has the form of the crate's own, which users match on")]
    #[derive(Clone, PartialEq, ::prost::Oneof)]
    pub enum Op {
        /// A command.
        #[prost(message, tag = "2")]
        Exec(super::ExecOp),
        /// Something from outside.
        #[prost(message, tag = "3")]
        Source(super::SourceOp),
        /// File operations.
        #[prost(message, tag = "4")]
        File(super::FileOp),
        /// A definition that an input has.
        #[prost(message, tag = "5")]
        Build(super::BuildOp),
        /// File systems over each other.
        #[prost(message, tag = "6")]
        Merge(super::MergeOp),
        /// What one file system changes over another.
        #[prost(message, tag = "7")]
        Diff(super::DiffOp),
        /// Inputs as they are, all of which are made.
        #[prost(message, tag = "8")]
        Passthrough(super::PassthroughOp),
    }
}

/// Hands some of its inputs on once all of them are made.
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct PassthroughOp {
    /// What tells it from others over the same inputs.
    #[prost(string, tag = "1")]
    pub id: String,
    /// For each result the input that it is.
    #[prost(int64, repeated, tag = "2")]
    pub outputs: Vec<i64>,
}
