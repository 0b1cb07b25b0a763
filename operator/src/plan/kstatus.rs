//! What kstatus, and with it Flux, reads from the status of every state that planning can produce.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lapstrake_crds::{ImageBuild, ReasonKind};
use lapstrake_handoff as handoff;
use serde_json::{Value, json};

use super::tests::{begun, build, end, failed, fresh, go, refuse};
use super::*;
use crate::observe::{Container, Observed, Refusal, Why};

/// What kstatus makes of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kstatus {
    Terminating,
    InProgress,
    Failed,
    Current,
}

/// Reads an object of any kind, in kstatus' order.
pub(super) fn kstatus(object: &Value) -> Kstatus {
    if object["metadata"]["deletionTimestamp"].is_string() {
        return Kstatus::Terminating;
    }
    let observed = &object["status"]["observedGeneration"];
    if observed.is_i64() && *observed != object["metadata"]["generation"] {
        return Kstatus::InProgress;
    }
    let none = Vec::new();
    let conditions = object["status"]["conditions"].as_array().unwrap_or(&none);
    // In the order of the list: the first of the two that is True decides.
    for condition in conditions.iter().filter(|condition| condition["status"] == "True") {
        match condition["type"].as_str() {
            Some("Reconciling") => return Kstatus::InProgress,
            Some("Stalled") => return Kstatus::Failed,
            _ => {}
        }
    }
    match conditions.iter().find(|condition| condition["type"] == "Ready") {
        Some(ready) if ready["status"] != "True" => Kstatus::InProgress,
        _ => Kstatus::Current,
    }
}

/// What kstatus makes of an ImageBuild.
pub(super) fn kstatus_of(build: &ImageBuild) -> Kstatus {
    kstatus(&serde_json::to_value(build).unwrap())
}

/// What it must make of a reason.
pub(super) fn meant_by(reason: Reason) -> Kstatus {
    match reason.kind() {
        ReasonKind::Waiting | ReasonKind::Working => Kstatus::InProgress,
        ReasonKind::Success => Kstatus::Current,
        ReasonKind::Failure => Kstatus::Failed,
    }
}

/// Plans, and takes the status over.
fn settle(seen: &mut Observed) -> Kstatus {
    if let Some(status) = go(seen).status {
        seen.build.status = Some(*status);
    }
    kstatus_of(&seen.build)
}

#[test]
fn an_object_that_nobody_has_seen_is_in_progress() {
    let crd = serde_json::to_value(lapstrake_crds::crd()).unwrap();
    let status = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
    // The API server fills in the default of the schema.
    let object = json!({ "metadata": { "generation": 1 }, "status": status["default"] });
    assert_eq!(kstatus(&object), Kstatus::InProgress);
    let object = json!({ "metadata": { "generation": 1 } });
    assert_eq!(kstatus(&object), Kstatus::Current, "without that default it would be taken for done");
}

#[test]
fn what_waits_or_builds_is_in_progress() {
    let why = |reason: &str, message: &str| Why { reason: reason.into(), message: message.into() };
    type Change = Box<dyn Fn(&mut Observed)>;
    let pod = |change: fn(&mut crate::observe::PodFacts)| -> Change {
        Box::new(move |seen| change(&mut seen.pods[0]))
    };
    let cases: Vec<(&str, Change)> = vec![
        ("a pod that nobody has seen", Box::new(|_| {})),
        ("no node", Box::new(move |seen| seen.pods[0].unscheduled = Some(why("Unschedulable", "0/1 nodes")))),
        ("starting", pod(|pod| pod.node = Some("n1".into()))),
        ("running", pod(|pod| pod.container = Container::Running { since: None })),
        ("stopped by somebody", pod(|pod| pod.deleting = true)),
        ("gone", Box::new(|seen| seen.pods.clear())),
        ("canceling", Box::new(|seen| seen.build.spec.cancel = true)),
        (
            "a registry that is down",
            Box::new(|seen| end(seen, &failed(handoff::Reason::RegistryUnavailable), 13)),
        ),
        (
            "another spec",
            Box::new(|seen| {
                seen.build.spec.output.tags = vec!["v2".into()];
                seen.build.metadata.generation = Some(2);
            }),
        ),
    ];
    for (name, change) in cases {
        let mut seen = begun();
        change(&mut seen);
        assert_eq!(settle(&mut seen), Kstatus::InProgress, "{name}");
    }
    for refusal in [
        Refusal::Quota("exceeded quota".into()),
        Refusal::NotYet(Reason::WaitingForServiceAccount, "no".into()),
        Refusal::Leaving("waits".into()),
    ] {
        let mut seen = fresh(build(), Vec::new());
        refuse(&mut seen, refusal.clone());
        assert_eq!(settle(&mut seen), Kstatus::InProgress, "{refusal:?}");
    }
    let mut suspended = fresh(build(), Vec::new());
    suspended.build.spec.suspend = true;
    assert_eq!(settle(&mut suspended), Kstatus::InProgress);
}

#[test]
fn an_end_is_failed_or_current_and_only_for_the_spec_that_it_speaks_of() {
    let success = handoff::Success { digest: "sha256:1".into(), ..handoff::Success::default() };
    let success = handoff::Outcome::Success(success).encode();
    let mut seen = begun();
    end(&mut seen, &success, 0);
    assert_eq!(settle(&mut seen), Kstatus::Current);
    // Edited, and not looked at yet.
    seen.build.metadata.generation = Some(2);
    assert_eq!(kstatus_of(&seen.build), Kstatus::InProgress);
    seen.build.spec.retries = 1;
    assert_eq!(settle(&mut seen), Kstatus::Current, "nothing that decides the image changed");
    seen.build.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    assert_eq!(settle(&mut seen), Kstatus::Terminating);

    let mut seen = begun();
    end(&mut seen, &failed(handoff::Reason::StepFailed), 10);
    assert_eq!(settle(&mut seen), Kstatus::Failed);
    seen.build.metadata.generation = Some(2);
    assert_eq!(kstatus_of(&seen.build), Kstatus::InProgress);

    let mut canceled = fresh(build(), Vec::new());
    canceled.build.spec.cancel = true;
    assert_eq!(settle(&mut canceled), Kstatus::Failed);
    for refusal in [
        Refusal::PodSecurity("violates PodSecurity".into()),
        Refusal::Rejected("no".into()),
        Refusal::NameTaken("taken".into()),
    ] {
        let mut seen = fresh(build(), Vec::new());
        refuse(&mut seen, refusal.clone());
        assert_eq!(settle(&mut seen), Kstatus::Failed, "{refusal:?}");
    }
}

#[test]
fn every_reason_reads_as_what_it_means() {
    for &reason in Reason::ALL {
        let mut build = build();
        let mut status = ImageBuildStatus { observed_generation: Some(1), ..ImageBuildStatus::default() };
        status::say(&mut status, reason, "words", Timestamp::UNIX_EPOCH);
        build.status = Some(status);
        assert_eq!(kstatus_of(&build), meant_by(reason), "{reason}");
    }
}
