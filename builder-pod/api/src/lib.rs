//! BuildKit's gRPC interface: messages, servers and clients.
//!
//! Job: one place for the generated code of a published crate, and for the few messages that it lacks.
//! Holds: field numbers and names are BuildKit's and containerd's own; nothing is renumbered or renamed.
//! Never: knows what is done with a message.

mod call;
pub mod content;
pub mod exporter;
mod newer;
pub mod policysession;
pub mod reflection;

pub use bollard_buildkit_proto::fsutil::types as fsutil;
pub use bollard_buildkit_proto::google::rpc;
pub use bollard_buildkit_proto::health;
pub use bollard_buildkit_proto::moby::buildkit::secrets::v1 as secrets;
pub use bollard_buildkit_proto::moby::buildkit::v1 as control;
pub use bollard_buildkit_proto::moby::buildkit::v1::{apicaps, frontend, sourcepolicy, types};
pub use bollard_buildkit_proto::moby::filesync::packet as filesync;
pub use bollard_buildkit_proto::moby::filesync::v1 as auth;
pub use bollard_buildkit_proto::moby::sshforward::v1 as sshforward;
pub use bollard_buildkit_proto::moby::upload::v1 as upload;
pub use lapstrake_llb::pb;
pub use newer::{ControlServer, LlbBridgeServer, ProxyNetwork};

/// Largest message, either way: what containerd and BuildKit allow.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

pub use bollard_buildkit_proto::google::protobuf::{Any, Timestamp};

/// A time as messages have it. One before 1970 becomes 1970.
pub fn timestamp(time: std::time::SystemTime) -> Timestamp {
    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}
