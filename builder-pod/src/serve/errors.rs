//! Errors as clients of BuildKit read them: a gRPC status with typed details.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lapstrake_api::{Any, rpc};
use lapstrake_handoff::Reason;
use prost::Message as _;
use serde_json::json;
use tonic::{Code, Status};

use crate::error::BuildError;

/// Where the types of details are at home.
const TYPES: &str = "github.com/moby/buildkit";

/// The status that says so.
pub(crate) fn status(error: &BuildError) -> Status {
    let code = match error.failure().reason {
        Reason::Canceled => Code::Cancelled,
        Reason::RequestInvalid => Code::InvalidArgument,
        Reason::NotSupported => Code::Unimplemented,
        Reason::PullDenied | Reason::PushDenied | Reason::SourceDenied => Code::PermissionDenied,
        Reason::ImageNotFound => Code::NotFound,
        _ => Code::Unknown,
    };
    let message = match error.failure().reason {
        Reason::Canceled => "context canceled".to_owned(),
        _ => error.to_string(),
    };
    let mut details = Vec::new();
    details.extend(source(error));
    let whole = rpc::Status { code: code as i32, message: message.clone(), details };
    Status::with_details(code, message, whole.encode_to_vec().into())
}

/// The file and the lines that an error is about.
fn source(error: &BuildError) -> Option<Any> {
    let (file, line) = (error.failure().file.as_ref()?, error.failure().line?);
    let (text, last) = error.source_text()?;
    let value = json!({
        "info": { "filename": file, "data": BASE64_STANDARD.encode(text), "language": "Dockerfile" },
        "ranges": [{ "start": { "line": line }, "end": { "line": last.unwrap_or(line) } }],
    });
    Some(Any { type_url: format!("{TYPES}/errdefs.Source+json"), value: value.to_string().into_bytes() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_canceled_build_is_said_to_be_so_in_the_clients_words() {
        let status = status(&BuildError::canceled());
        assert_eq!((status.code(), status.message()), (Code::Cancelled, "context canceled"));
    }
}
