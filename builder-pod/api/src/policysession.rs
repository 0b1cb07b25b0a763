//! Policies that a client decides: one call, which is asked of a session (`sourcepolicy/policysession` in BuildKit).

use std::collections::HashMap;

use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::{call, frontend, pb, sourcepolicy};

/// What is to be decided: a source, and what is known of it.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct CheckPolicyRequest {
    /// The platform that it is wanted for.
    #[prost(message, optional, tag = "1")]
    pub platform: Option<pb::Platform>,
    /// The source, and what is known of it.
    #[prost(message, optional, tag = "2")]
    pub source: Option<frontend::ResolveSourceMetaResponse>,
    /// What is supported.
    #[prost(map = "string, bool", tag = "3")]
    pub caps: HashMap<String, bool>,
}

/// A decision, or what has to be known before.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct CheckPolicyResponse {
    /// One of the two.
    #[prost(oneof = "check_policy_response::Result", tags = "1, 2")]
    pub result: Option<check_policy_response::Result>,
}

/// Parts of [`CheckPolicyResponse`].
pub mod check_policy_response {
    /// A decision, or what has to be known before.
    #[allow(clippy::large_enum_variant, reason = "it has the form that generated code has")]
    #[derive(Clone, PartialEq, ::prost::Oneof)]
    pub enum Result {
        /// It is decided.
        #[prost(message, tag = "1")]
        Decision(super::DecisionResponse),
        /// More has to be known.
        #[prost(message, tag = "2")]
        Request(crate::frontend::ResolveSourceMetaRequest),
    }
}

/// A decision.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct DecisionResponse {
    /// What is to be done.
    #[prost(enumeration = "sourcepolicy::PolicyAction", tag = "1")]
    pub action: i32,
    /// Why it is denied.
    #[prost(message, repeated, tag = "2")]
    pub deny_messages: Vec<DenyMessage>,
    /// What counts in place of it.
    #[prost(message, optional, tag = "3")]
    pub update: Option<pb::SourceOp>,
}

/// A reason, in a client's words.
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct DenyMessage {
    /// The words.
    #[prost(string, tag = "1")]
    pub message: String,
}

/// The path of the call.
pub const CHECK_POLICY: &str = "/moby.buildkit.v1.sourcepolicy.policysession.PolicyVerifier/CheckPolicy";

/// Asks what a client decides.
///
/// # Errors
/// The client's.
pub async fn check_policy(
    channel: Channel,
    request: CheckPolicyRequest,
) -> Result<Response<CheckPolicyResponse>, Status> {
    call::unary(&mut call::client(channel), CHECK_POLICY, Request::new(request)).await
}
