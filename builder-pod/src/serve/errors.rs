//! Errors as clients of BuildKit read them: a gRPC status with typed details.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lapstrake_api::sourcepolicy::PolicyAction;
use lapstrake_api::{Any, rpc};
use lapstrake_handoff::{Failure, Reason};
use lapstrake_llb::protojson::Form;
use prost::Message as _;
use serde_json::json;
use tonic::{Code, Status};

use crate::engine::{FailedOp, Subject};
use crate::error::{BuildError, SourcePlace};

/// Where the types of details are at home.
const TYPES: &str = "github.com/moby/buildkit";

/// The status that says so.
pub(crate) fn status(error: &BuildError) -> Status {
    status_with(error, Vec::new())
}

/// The same with more details.
pub(crate) fn status_with(error: &BuildError, more: Vec<Any>) -> Status {
    let code = match error.failure().reason {
        Reason::Canceled => Code::Cancelled,
        Reason::NotSupported => Code::Unimplemented,
        // Any other code would stand before the message in what clients print.
        _ => Code::Unknown,
    };
    let message = words(error);
    let mut details = Vec::new();
    match error.places() {
        [] => details.extend(source(error)),
        // Clients turn them round.
        places => details.extend(places.iter().rev().map(place)),
    }
    details.extend(denials(error));
    details.extend(failure(error));
    details.extend(more);
    let whole = rpc::Status { code: code as i32, message: message.clone(), details };
    Status::with_details(code, message, whole.encode_to_vec().into())
}

/// What a failure of ours looks like among the details: a frontend hands it through, and a build reads it again.
const FAILURE: &str = "lapstrake.dev/Failure+json";

fn failure(error: &BuildError) -> Option<Any> {
    let value = serde_json::to_vec(error.failure()).ok()?;
    Some(Any { type_url: FAILURE.to_owned(), value })
}

/// The error that a frontend returned: one of ours where it has its cause in one, else that of the file.
pub(crate) fn of_frontend(status: &Status, file: &str) -> BuildError {
    if status.code() == Code::Cancelled {
        return BuildError::canceled();
    }
    let details = rpc::Status::decode(status.details()).unwrap_or_default().details;
    let ours = details.iter().find(|detail| detail.type_url == FAILURE);
    let ours = ours.and_then(|detail| serde_json::from_slice::<Failure>(&detail.value).ok());
    if let Some(failure) = ours {
        return failure.into();
    }
    let place = details.iter().find(|detail| detail.type_url.ends_with("errdefs.Source+json"));
    let place = place.and_then(|detail| serde_json::from_slice::<serde_json::Value>(&detail.value).ok());
    let line = place.and_then(|place| place["ranges"][0]["start"]["line"].as_u64());
    BuildError::new(Reason::DockerfileInvalid, status.message()).with(|failure| {
        failure.file = Some(file.to_owned());
        failure.line = line.and_then(|line| u32::try_from(line).ok());
    })
}

/// What happened in BuildKit's words, where scripts look for them.
fn words(error: &BuildError) -> String {
    let failure = error.failure();
    if let Some(command) = error.process() {
        return format!("process {command:?} did not complete successfully: {error}");
    }
    let command = failure.message.strip_prefix('"').and_then(|m| m.rsplit_once("\" failed with exit code "));
    match (failure.reason, failure.exit_code, command) {
        (Reason::Canceled, ..) => "context canceled".to_owned(),
        (Reason::StepFailed, Some(code), Some((command, _))) => {
            format!("process {command:?} did not complete successfully: exit code: {code}")
        }
        _ => {
            match failure.message.strip_prefix("the context has no file ").and_then(|m| m.split_once("; ")) {
                Some((name, _)) => {
                    format!("failed to read dockerfile: open {name}: no such file or directory")
                }
                None => error.to_string().replacen(": the server answers ", ": invalid response status ", 1),
            }
        }
    }
}

/// A status as a message, with its details.
pub(crate) fn message(status: &Status) -> rpc::Status {
    let whole = rpc::Status::decode(status.details()).unwrap_or_default();
    rpc::Status { code: status.code() as i32, message: status.message().to_owned(), details: whole.details }
}

/// Why the client denies a source: it shows its own words.
fn denials(error: &BuildError) -> Option<Any> {
    let messages: Vec<_> = error.denials().iter().map(|message| json!({ "message": message })).collect();
    let value = json!({ "action": PolicyAction::Deny as i32, "denyMessages": messages });
    let type_url = format!("{TYPES}/policysession.DecisionResponse+json");
    (!messages.is_empty()).then(|| Any { type_url, value: value.to_string().into_bytes() })
}

/// The operation that failed, with the ids under which what it began with and what it left can be asked for.
pub(crate) fn solve(failed: &FailedOp, inputs: &[String], mounts: &[String]) -> Any {
    let mut value = json!({ "op": Form::Canonical.op(&failed.op) });
    for (key, ids) in [("inputIDs", inputs), ("mountIDs", mounts)] {
        if let (Some(object), false) = (value.as_object_mut(), ids.is_empty()) {
            object.insert(key.to_owned(), json!(ids));
        }
    }
    let subject = failed.subject.map(|subject| match subject {
        Subject::Action(index) => ("file", index),
        Subject::Content(index) => ("cache", index),
    });
    if let (Some(object), Some((name, index))) = (value.as_object_mut(), subject) {
        // What has its default value is left out.
        let index = if index == 0 { json!({}) } else { json!({ "index": index.to_string() }) };
        object.insert(name.to_owned(), index);
    }
    if let (Some(object), false) = (value.as_object_mut(), failed.description.is_empty()) {
        object.insert("description".to_owned(), json!(failed.description));
    }
    Any { type_url: format!("{TYPES}/errdefs.Solve+json"), value: value.to_string().into_bytes() }
}

/// A place that an operation comes from.
fn place(place: &SourcePlace) -> Any {
    let ranges: Vec<_> = place.ranges.iter().map(|range| Form::Canonical.range(range)).collect();
    let value = json!({ "info": Form::Canonical.source_info(&place.info), "ranges": ranges });
    Any { type_url: format!("{TYPES}/errdefs.Source+json"), value: value.to_string().into_bytes() }
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
    fn a_failed_step_is_told_in_the_words_that_scripts_look_for() {
        let error =
            BuildError::new(Reason::StepFailed, "\"/bin/sh -c echo \"a\"; exit 3\" failed with exit code 3");
        let error = error.with(|failure| failure.exit_code = Some(3));
        let expected =
            r#"process "/bin/sh -c echo \"a\"; exit 3" did not complete successfully: exit code: 3"#;
        assert_eq!(status(&error).message(), expected);
    }

    #[test]
    fn a_program_that_can_not_be_started_is_told_by_its_command() {
        let error = BuildError::new(Reason::StepFailed, "no such program").of_process("a b".to_owned());
        assert_eq!(
            status(&error).message(),
            r#"process "a b" did not complete successfully: no such program"#
        );
    }

    #[test]
    fn all_places_of_a_failed_operation_are_told_last_one_first() {
        let op = lapstrake_llb::pb::Op::default();
        let mut builder = lapstrake_llb::Builder::new();
        let source = lapstrake_llb::pb::SourceOp { identifier: "local://a".into(), ..Default::default() };
        let op = lapstrake_llb::pb::Op { op: Some(lapstrake_llb::pb::op::Op::Source(source)), ..op };
        let file = builder.add_file("Made", b"one\ntwo\n", "mine");
        let range = |line| lapstrake_llb::SourceRange { file, start: (line, 0), end: (line, 1) };
        let vertex = builder.add(&op, lapstrake_llb::pb::OpMetadata::default(), &[range(1), range(2)]);
        let definition = builder.finish(Some(lapstrake_llb::Output { vertex, index: 0 }));
        let graph = lapstrake_llb::Graph::decode(&definition).expect("valid");
        let failed = FailedOp::told(&BuildError::new(Reason::StepFailed, "no"), &graph.vertices()[0]);
        let status = status(&failed.placed(&definition));
        let details = rpc::Status::decode(status.details()).expect("a status").details;
        let places = details.iter().filter(|detail| detail.type_url.ends_with("errdefs.Source+json"));
        let places: Vec<serde_json::Value> =
            places.map(|one| serde_json::from_slice(&one.value).expect("JSON")).collect();
        let lines: Vec<_> = places.iter().map(|one| &one["ranges"][0]["start"]["line"]).collect();
        assert_eq!(lines, [2, 1]);
        assert_eq!(
            places[0]["info"],
            json!({ "filename": "Made", "data": BASE64_STANDARD.encode("one\ntwo\n"), "language": "mine" })
        );
    }

    #[test]
    fn what_went_wrong_comes_through_a_frontend_as_it_was() {
        let error =
            BuildError::new(Reason::RegistryUnavailable, "nobody answers").with(|f| f.retryable = true);
        let through = of_frontend(&status(&error), "Dockerfile");
        assert_eq!(through.failure(), error.failure());

        let own = of_frontend(&Status::unknown("unknown instruction"), "Dockerfile");
        assert_eq!(own.failure().reason, Reason::DockerfileInvalid);
        assert_eq!(
            (own.to_string().as_str(), own.failure().file.as_deref()),
            ("unknown instruction", Some("Dockerfile"))
        );
        assert_eq!(of_frontend(&Status::cancelled("x"), "D").failure().reason, Reason::Canceled);
    }

    #[test]
    fn a_canceled_build_is_said_to_be_so_in_the_clients_words() {
        let status = status(&BuildError::canceled());
        assert_eq!((status.code(), status.message()), (Code::Cancelled, "context canceled"));
    }
}
