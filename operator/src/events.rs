//! Events on ImageBuilds, so that `kubectl describe` tells the story.

use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Resource, ResourceExt};
use lapstrake_crds::{ImageBuild, ImageBuildStatus, field_manager};

use crate::names::short_hash;
use crate::plan::Note;

/// Longest note that the API takes.
const NOTE_BYTES_MAX: usize = 1024;
/// Longest name of an object.
const NAME_BYTES_MAX: usize = 253;
/// Who reports.
const CONTROLLER: &str = "lapstrake.dev/operator";

/// Writes Events.
#[derive(Clone)]
pub struct Recorder {
    client: kube::Client,
    identity: String,
}

impl Recorder {
    /// Writes in the name of this operator.
    pub fn new(client: kube::Client, identity: String) -> Self {
        Self { client, identity }
    }

    /// Writes one Event. The same note on the same attempt of a run is written once.
    pub async fn publish(
        &self,
        build: &ImageBuild,
        status: Option<&ImageBuildStatus>,
        note: &Note,
    ) -> Result<(), kube::Error> {
        let namespace = build.namespace().unwrap_or_default();
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let event = event(build, status, note, &self.identity, jiff::Timestamp::now());
        let params = PostParams { field_manager: Some(field_manager().to_owned()), ..PostParams::default() };
        match events.create(&params, &event).await {
            Err(kube::Error::Api(refused)) if refused.reason == "AlreadyExists" => Ok(()),
            result => result.map(|_| ()),
        }
    }
}

fn event(
    build: &ImageBuild,
    status: Option<&ImageBuildStatus>,
    note: &Note,
    identity: &str,
    now: jiff::Timestamp,
) -> Event {
    let run = status.and_then(|status| status.run.as_ref());
    let key = format!(
        "{}/{:?}/{:?}/{}/{}/{}",
        build.uid().unwrap_or_default(),
        run.map(|run| (&run.id, run.attempt)),
        build.metadata.generation,
        note.action,
        note.reason,
        note.message,
    );
    let hash = short_hash(key.as_bytes(), 16);
    let name = build.name_any();
    let base = name.get(..NAME_BYTES_MAX - hash.len() - 1).unwrap_or(&name);
    let mut text = note.message.clone();
    while text.len() > NOTE_BYTES_MAX {
        text.pop();
    }
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{base}.{hash}")),
            namespace: build.namespace(),
            ..ObjectMeta::default()
        },
        action: Some(note.action.to_owned()),
        reason: Some(note.reason.as_str().to_owned()),
        note: Some(text),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
        event_time: Some(MicroTime(now)),
        regarding: Some(build.object_ref(&())),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(identity.chars().take(128).collect()),
        ..Event::default()
    }
}
