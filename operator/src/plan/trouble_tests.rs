//! Trouble around the builder pod: what it waits for, what is in its way, and what the user is told.

use std::time::Duration;

use lapstrake_crds::SecretReference;
use lapstrake_handoff as handoff;

use super::identity::{Identity, Requests};
use super::tests::{begun, build, end, failed, fresh, go, now, reason_of, refuse, settings, status_of};
use super::*;
use crate::observe::{Observed, Refusal, Why};
use crate::settings::{KeepPods, Settings};

fn why(reason: &str, message: &str) -> Why {
    Why { reason: reason.into(), message: message.into() }
}

fn message(plan: &Plan) -> &str {
    &status_of(plan).conditions[0].message
}

#[test]
fn what_is_made_again_has_names_of_its_own() {
    let (one, mut two) = (build(), build());
    two.metadata.uid = Some("uid-of-the-next".into());
    let id = |build| Identity::of(build, &Requests::default()).id();
    assert_ne!(id(&one), id(&two), "the old one's pod may still be going");
    assert_eq!(id(&one), id(&build()));
}

#[test]
fn attempts_whose_builder_never_started_take_nothing_from_the_retries() {
    /// Breaks the attempt under way and goes on to the next, if there is one.
    fn next(seen: &mut Observed, started: bool) -> bool {
        let pod = &mut seen.pods[0];
        pod.phase = "Failed".into();
        pod.reason = "NodeShutdown".into();
        if started {
            pod.container = crate::observe::Container::Ended(crate::observe::Ended {
                started: Some(now()),
                ..Default::default()
            });
        }
        seen.build.status = go(seen).status.map(|status| *status);
        if seen.build.status.as_ref().unwrap().reason.as_deref() != Some("ProgressingWithRetry") {
            return false;
        }
        let later = now() + Duration::from_secs(301);
        let plan = plan(seen, &settings(), later);
        seen.pods = vec![crate::observe::PodFacts::of(plan.create.as_deref().expect("another attempt"))];
        seen.build.status = plan.status.map(|status| *status);
        true
    }
    let mut seen = begun();
    for _ in 0..3 {
        assert!(next(&mut seen, false), "free");
    }
    assert!(next(&mut seen, true) && next(&mut seen, true), "two retries, all of them");
    assert!(next(&mut seen, false) && next(&mut seen, false), "five free ones in all");
    let mut counted = seen.clone();
    assert!(!next(&mut seen, false), "no free one is left");
    assert!(!next(&mut counted, true), "no retry is left");
    let run = seen.build.status.unwrap().run.unwrap();
    assert_eq!((run.attempt, run.uncounted_attempts), (8, Some(5)));
}

#[test]
fn what_is_missing_is_waited_for_and_said() {
    let mut seen = fresh(build(), Vec::new());
    let cases = [
        (
            Refusal::NotYet(Reason::WaitingForServiceAccount, "create it".into()),
            "WaitingForServiceAccount",
            "create it",
        ),
        (Refusal::Leaving("waits until it is gone".into()), "Queued", "gone"),
        (
            Refusal::Quota("failed quota: q: must specify limits.memory for: builder".into()),
            "WaitingForQuota",
            "set it in pod.resources",
        ),
    ];
    for (refusal, reason, words) in cases {
        refuse(&mut seen, refusal);
        let plan = go(&seen);
        assert_eq!(reason_of(&plan), reason);
        assert!(message(&plan).contains(words), "{}", message(&plan));
        assert!(plan.requeue.is_some() && plan.finished.is_none());
        let mut next = seen.clone();
        next.build.status = plan.status.map(|status| *status);
        assert_eq!(go(&next).status, None, "said once");
        next.refusals.clear();
        assert!(go(&next).create.is_some(), "tried again");
    }
}

#[test]
fn a_limit_range_that_refuses_the_operators_defaults_names_the_way_out() {
    let mut seen = fresh(build(), Vec::new());
    for words in [
        "spec.containers[0].resources.requests: Invalid value: \"256Mi\": must be less than or equal to memory limit of 96Mi",
        "maximum memory usage per Container is 200Mi, but limit is 256Mi",
    ] {
        refuse(&mut seen, Refusal::Rejected(words.into()));
        let plan = go(&seen);
        assert_eq!(reason_of(&plan), "PodRejected");
        assert!(message(&plan).contains("set pod.resources"), "{}", message(&plan));
    }
}

#[test]
fn a_secret_that_cannot_be_mounted_is_named_with_what_it_lacks() {
    let cases = [
        (
            "MountVolume.SetUp failed for volume \"docker-config\" : secret \"push\" not found",
            "the Secret push that output.secretRef names does not exist",
        ),
        (
            "MountVolume.SetUp failed for volume \"docker-config\" : references non-existent secret key: .dockerconfigjson",
            "the Secret push has no key .dockerconfigjson",
        ),
    ];
    for (words, told) in cases {
        let mut seen = begun();
        seen.build.spec.output.secret_ref = Some(SecretReference { name: "push".into() });
        seen.pods[0].node = Some("n1".into());
        seen.pods[0].hint = Some(why("FailedMount", words));
        let plan = go(&seen);
        assert_eq!(reason_of(&plan), "WaitingForSecret");
        assert!(message(&plan).contains(told), "{}", message(&plan));
    }
    // Another volume's trouble is not the Secret's, whatever its words.
    let mut seen = begun();
    seen.pods[0].node = Some("n1".into());
    seen.pods[0].hint = Some(why("FailedMount", "volume \"state\" : secret \"csi-login\" not found"));
    assert_eq!(reason_of(&go(&seen)), "WaitingForVolume");
}

#[test]
fn a_volume_that_is_not_there_says_why() {
    let mut seen = begun();
    seen.pods[0].unscheduled =
        Some(why("Unschedulable", "0/1 nodes: pod has unbound immediate PersistentVolumeClaims"));
    seen.pods[0].hint = Some(why("ProvisioningFailed", "storageclass \"gold\" not found"));
    let plan = go(&seen);
    assert_eq!(reason_of(&plan), "WaitingForVolume");
    assert!(
        message(&plan).contains("gold") && message(&plan).contains("cache.emptyDir"),
        "{}",
        message(&plan)
    );
}

#[test]
fn a_volume_that_was_deleted_under_a_waiting_pod_is_made_again() {
    let mut seen = begun();
    let going = "0/1 nodes are available: persistentvolumeclaim \"web-cache\" is being deleted. not found";
    seen.pods[0].unscheduled = Some(why("Unschedulable", going));
    assert!(go(&seen).volume.is_some(), "the scheduler's words are old");
    seen.pods[0].unscheduled =
        Some(why("Unschedulable", "0/1 nodes are available: persistentvolumeclaim \"web-cache\" not found."));
    let plan = go(&seen);
    assert_eq!(plan.volume.as_ref().and_then(|claim| claim.metadata.name.as_deref()), Some("web-cache"));
    assert!(plan.create.is_none() && plan.delete_pods.is_empty());
    // It is there, and only the scheduler has not noticed.
    seen.objects = vec![Owned::Volume("web-cache".into())];
    assert_eq!(go(&seen).volume, None);
    // A claim of the name that is not ours is not touched: the user learns of it.
    seen.objects.clear();
    refuse(&mut seen, Refusal::Leaving("waits".into()));
    let plan = go(&seen);
    assert_eq!((reason_of(&plan), plan.volume.is_none()), ("Queued", true));
}

#[test]
fn a_lower_history_limit_holds_at_once() {
    let mut seen = begun();
    super::tests::end(&mut seen, &super::tests::failed(lapstrake_handoff::Reason::StepFailed), 10);
    seen.build.status = go(&seen).status.map(|status| *status);
    assert_eq!(seen.build.status.as_ref().unwrap().history.len(), 1);
    seen.build.spec.history.limit = 0;
    seen.build.metadata.generation = Some(2);
    assert!(status_of(&go(&seen)).history.is_empty());
}

#[test]
fn a_platform_says_what_it_is_doing() {
    let mut seen = begun();
    assert_eq!(seen.build.status.as_ref().unwrap().platforms[0].reason.as_deref(), Some("Queued"));
    seen.pods[0].container = crate::observe::Container::Running { since: Some(now()) };
    assert_eq!(status_of(&go(&seen)).platforms[0].reason.as_deref(), Some("Building"));
}

#[test]
fn a_step_that_was_killed_for_its_memory_is_named_if_the_builder_could_tell() {
    let mut failure = lapstrake_handoff::Failure::new(lapstrake_handoff::Reason::StepFailed, "exit code 137");
    (failure.file, failure.line) = (Some("Dockerfile".into()), Some(7));
    let mut seen = begun();
    super::tests::end(&mut seen, &lapstrake_handoff::Outcome::Failure(failure).encode(), 10);
    seen.pods[0].oom_killed = Some("builder".into());
    let plan = go(&seen);
    assert_eq!(reason_of(&plan), "OutOfMemory");
    assert!(message(&plan).starts_with("Dockerfile:7: "), "{}", message(&plan));
}

#[test]
fn pods_are_kept_for_their_logs_as_long_as_is_configured() {
    let mut seen = begun();
    end(&mut seen, &failed(handoff::Reason::StepFailed), 1);
    seen.build.status = go(&seen).status.map(|status| *status);
    let at = |seconds: u64, keep_pods, length: Option<u64>| {
        let keep_pods_for = length.map(Duration::from_secs);
        let settings = Settings { keep_pods, keep_pods_for, ..settings() };
        let plan = super::plan(&seen, &settings, now() + Duration::from_secs(seconds));
        (plan.delete_pods.len(), plan.requeue)
    };
    for keep in [KeepPods::All, KeepPods::Failed] {
        assert_eq!(at(1_000_000, keep, None), (0, None), "{keep:?}: until the next run");
        assert_eq!(at(40, keep, Some(60)), (0, Some(Duration::from_secs(20))), "{keep:?}");
        assert_eq!(at(60, keep, Some(60)), (1, None), "{keep:?}: their time is up");
    }
    assert_eq!(at(0, KeepPods::None, Some(60)).0, 1);
}
