//! Several platforms in one run.

use std::time::Duration;

use jiff::Timestamp;
use lapstrake_crds::{EmulationPolicy, ImageBuildStatus, PlatformStatus};
use lapstrake_handoff as handoff;
use lapstrake_handoff::{Outcome, PlatformResult, Request, Success};

use super::tests::{build, fresh, now, settings};
use super::*;
use crate::observe::{Container, Ended, Observed, PodFacts, Why};

/// Plans and applies until nothing changes; what was created is pending.
fn settle(seen: &mut Observed, at: Timestamp) -> Vec<Note> {
    let mut notes = Vec::new();
    for _ in 0..16 {
        let plan = super::plan(seen, &settings(), at);
        let changes = plan.acts() || plan.status.is_some();
        for (name, _) in &plan.delete_pods {
            let pod = seen.pods.iter_mut().find(|pod| pod.name == *name).unwrap();
            (pod.deleting, pod.gone_by) = (true, Some(at + Duration::from_secs(30)));
        }
        // One that no node has goes at once.
        seen.pods.retain(|pod| !pod.deleting || pod.node.is_some());
        if let Some(pod) = plan.create.as_deref() {
            let mut pod = PodFacts::of(pod);
            (pod.phase, pod.created, pod.uid) = ("Pending".into(), Some(at), pod.name.clone());
            seen.pods.push(pod);
        }
        if let Some(status) = plan.status {
            seen.build.status = Some(*status);
        }
        notes.extend(plan.events);
        if !changes {
            break;
        }
    }
    notes
}

fn begun(platforms: &[&str], change: impl FnOnce(&mut lapstrake_crds::ImageBuild)) -> Observed {
    let mut build = build();
    build.spec.platforms = platforms.iter().map(|one| (*one).to_owned()).collect();
    change(&mut build);
    let mut seen = fresh(build, Vec::new());
    settle(&mut seen, now());
    seen
}

fn status(seen: &Observed) -> &ImageBuildStatus {
    seen.build.status.as_ref().unwrap()
}

fn entry<'a>(seen: &'a Observed, platform: &str) -> &'a PlatformStatus {
    status(seen).platforms.iter().find(|entry| entry.platform == platform).unwrap()
}

fn pod<'a>(seen: &'a mut Observed, part: &str) -> &'a mut PodFacts {
    let found = seen.pods.iter_mut().filter(|pod| pod.part == part).max_by_key(|pod| pod.attempt);
    found.unwrap_or_else(|| panic!("no pod of {part}"))
}

fn end(pod: &mut PodFacts, outcome: &Outcome) {
    pod.phase = if outcome.exit_code() == 0 { "Succeeded" } else { "Failed" }.into();
    pod.node = Some("n1".into());
    pod.container = Container::Ended(Ended {
        exit_code: outcome.exit_code().into(),
        reason: "Error".into(),
        message: outcome.encode(),
        started: Some(now()),
        finished: Some(now()),
    });
}

fn pushed(platform: &str, revision: &str) -> Outcome {
    let digest = format!("sha256:{platform}-{revision}");
    let result = PlatformResult {
        platform: platform.into(),
        digest: digest.clone(),
        manifest_bytes: 7,
        attestation: Some(handoff::AttestationManifest { digest: format!("sha256:of-{platform}"), bytes: 9 }),
        ..Default::default()
    };
    Outcome::Success(Success {
        digest,
        platforms: vec![result],
        revision: Some(revision.repeat(40)),
        ..Success::default()
    })
}

fn broken() -> Outcome {
    Outcome::Failure(handoff::Failure::new(handoff::Reason::StepFailed, "exit code 1"))
}

fn request(seen: &Observed, part: &str) -> Request {
    // As it would be made now.
    let parts = super::parts::divide(&seen.build, status(seen), &settings());
    let index = super::parts::index(&seen.build, &parts);
    let part = parts.iter().find(|one| one.has(part)).unwrap_or(&index);
    let asked = super::request::Asked {
        run: "r",
        part,
        sandbox: lapstrake_crds::Sandbox::Baseline,
        pull_secrets: &[],
        status: status(seen),
    };
    Request::parse(super::request::request(&seen.build, &asked, &settings()).unwrap().as_bytes()).unwrap()
}

const TWO: [&str; 2] = ["linux/amd64", "linux/arm64"];

#[test]
fn each_platform_has_a_pod_and_an_index_pod_comes_when_all_are_there() {
    let mut seen = begun(&TWO, |_| {});
    assert_eq!(seen.pods.len(), 2);
    assert!(request(&seen, "linux-amd64").output.push_by_digest);
    end(pod(&mut seen, "linux-amd64"), &pushed("linux/amd64", "a"));
    settle(&mut seen, now());
    assert_eq!(seen.pods.len(), 2, "not before all are there");
    assert!(status(&seen).digest.is_none());
    end(pod(&mut seen, "linux-arm64"), &pushed("linux/arm64", "a"));
    settle(&mut seen, now());
    let joined = request(&seen, "index");
    assert_eq!(joined.index.iter().map(|one| one.platform.as_str()).collect::<Vec<_>>(), TWO);
    assert!(!joined.output.push_by_digest && joined.platforms.is_empty());
    let attested = joined.index[1].attestation.as_ref().expect("what was told of it");
    assert_eq!((attested.digest.as_str(), attested.bytes), ("sha256:of-linux/arm64", 9));
    let index = Outcome::Success(Success { digest: "sha256:index".into(), ..Success::default() });
    end(pod(&mut seen, "index"), &index);
    settle(&mut seen, now());
    assert_eq!(status(&seen).digest.as_deref(), Some("sha256:index"));
    assert_eq!(status(&seen).summary.as_ref().unwrap().platforms.as_deref(), Some("linux/amd64,linux/arm64"));
    assert_eq!(entry(&seen, "linux/arm64").digest.as_deref(), Some("sha256:linux/arm64-a"));
    assert_eq!(seen.pods.len(), 3);
}

#[test]
fn a_failed_platform_is_named_and_asked_again_only_that_one_is_built() {
    let mut seen = begun(&TWO, |_| {});
    end(pod(&mut seen, "linux-arm64"), &broken());
    pod(&mut seen, "linux-amd64").container = Container::Running { since: Some(now()) };
    settle(&mut seen, now());
    assert_eq!(status(&seen).completion_time, None, "its sibling goes on to its end");
    end(pod(&mut seen, "linux-amd64"), &pushed("linux/amd64", "a"));
    settle(&mut seen, now());
    let failure = status(&seen).failure.clone().unwrap();
    assert_eq!((failure.reason.as_str(), failure.platform.as_deref()), ("StepFailed", Some("linux/arm64")));
    assert!(status(&seen).conditions[0].message.starts_with("linux/arm64: "));
    let annotations = seen.build.metadata.annotations.get_or_insert_default();
    annotations.insert(lapstrake_crds::annotation::REBUILD.into(), "again".into());
    settle(&mut seen, now());
    let run = status(&seen).run.clone().unwrap().id;
    let parts: Vec<_> = seen.pods.iter().filter(|pod| pod.run == run).map(|pod| pod.part.as_str()).collect();
    assert_eq!(parts, ["linux-arm64"]);
    assert!(entry(&seen, "linux/amd64").kept_from.is_some());
    // The source has moved: what was kept is of another revision, and is built again, from this one.
    end(pod(&mut seen, "linux-arm64"), &pushed("linux/arm64", "b"));
    settle(&mut seen, now());
    assert_eq!(pod(&mut seen, "linux-amd64").run, run);
    let handoff::Source::Git(git) = request(&seen, "linux-amd64").source else { panic!("git") };
    assert_eq!(git.commit, Some("b".repeat(40)));
}

#[test]
fn platforms_that_found_different_commits_are_built_from_the_first_ones() {
    let mut seen = begun(&TWO, |_| {});
    end(pod(&mut seen, "linux-amd64"), &pushed("linux/amd64", "a"));
    settle(&mut seen, now());
    end(pod(&mut seen, "linux-arm64"), &pushed("linux/arm64", "b"));
    settle(&mut seen, now());
    assert_eq!(pod(&mut seen, "linux-arm64").attempt, 2);
    assert!(entry(&seen, "linux/arm64").digest.is_none() && entry(&seen, "linux/amd64").digest.is_some());
    let handoff::Source::Git(git) = request(&seen, "linux-arm64").source else { panic!("git") };
    assert_eq!(git.commit, Some("a".repeat(40)));
}

#[test]
fn a_source_that_is_another_one_each_time_is_given_up_when_no_retry_is_left() {
    let mut seen = begun(&TWO, |build| build.spec.retries = 2);
    end(pod(&mut seen, "linux-amd64"), &pushed("linux/amd64", "a"));
    for revision in ["b", "c", "d"] {
        settle(&mut seen, now());
        assert!(status(&seen).failure.is_none());
        end(pod(&mut seen, "linux-arm64"), &pushed("linux/arm64", revision));
    }
    settle(&mut seen, now());
    assert_eq!(pod(&mut seen, "linux-arm64").attempt, 3, "one and two retries");
    let failure = status(&seen).failure.clone().unwrap();
    assert_eq!(failure.reason, "SourceUnavailable");
    assert_eq!(failure.platform.as_deref(), Some("linux/arm64"));
    assert!(failure.message.contains("source.http.sha256"), "{}", failure.message);
}

fn placeless(seen: &mut Observed) {
    let message = "0/1 nodes are available".into();
    pod(seen, "linux-arm64").unscheduled = Some(Why { reason: "Unschedulable".into(), message });
}

#[test]
fn a_platform_without_a_node_waits_and_says_so_and_is_emulated_when_its_time_is_up() {
    for policy in [EmulationPolicy::Native, EmulationPolicy::PreferNative] {
        let mut seen = begun(&TWO, |build| build.spec.emulation.policy = policy);
        placeless(&mut seen);
        settle(&mut seen, now() + Duration::from_secs(299));
        assert_eq!(entry(&seen, "linux/arm64").reason.as_deref(), Some("WaitingForNode"));
        assert_eq!(pod(&mut seen, "linux-arm64").attempt, 1);
        let notes = settle(&mut seen, now() + Duration::from_secs(300));
        let moved = policy == EmulationPolicy::PreferNative;
        assert_eq!(notes.iter().any(|note| note.action == "Emulate"), moved);
        let entry = entry(&seen, "linux/arm64").clone();
        assert_eq!(entry.emulated, moved.then_some(true));
        assert_eq!(entry.architecture.as_deref(), Some(if moved { "amd64" } else { "arm64" }));
        assert_eq!(pod(&mut seen, "linux-arm64").attempt, if moved { 2 } else { 1 });
        assert_eq!(entry.retries, None, "no retry is used up");
    }
}

#[test]
fn a_dead_node_takes_its_own_platform_and_holds_up_neither_the_run_nor_its_end() {
    let mut seen = begun(&TWO, |_| {});
    let arm = pod(&mut seen, "linux-arm64");
    arm.node = Some("dead".into());
    arm.container = Container::Running { since: Some(now()) };
    (arm.deleting, arm.gone_by) = (true, Some(now() + Duration::from_secs(30)));
    settle(&mut seen, now() + Duration::from_secs(89));
    assert_eq!(entry(&seen, "linux/arm64").attempt, Some(1), "it may still end");
    settle(&mut seen, now() + Duration::from_secs(90));
    assert_eq!(entry(&seen, "linux/arm64").attempt, Some(2));
    assert_eq!(entry(&seen, "linux/amd64").attempt, Some(1));
    settle(&mut seen, now() + Duration::from_secs(120));
    assert_eq!(seen.pods.iter().filter(|pod| pod.part == "linux-arm64").count(), 2, "beside the lost one");
    seen.build.spec.cancel = true;
    for pod in &mut seen.pods {
        pod.node = Some("dead".into());
    }
    settle(&mut seen, now() + Duration::from_secs(121));
    assert_eq!(status(&seen).reason.as_deref(), Some("Canceling"));
    settle(&mut seen, now() + Duration::from_secs(300));
    assert_eq!(status(&seen).reason.as_deref(), Some("Canceled"));
}

#[test]
fn what_has_not_begun_when_a_platform_fails_is_not_waited_for() {
    let mut seen = begun(&TWO, |build| build.spec.emulation.policy = EmulationPolicy::Native);
    placeless(&mut seen);
    end(pod(&mut seen, "linux-amd64"), &broken());
    settle(&mut seen, now());
    assert_eq!(status(&seen).reason.as_deref(), Some("StepFailed"));
    assert_eq!(entry(&seen, "linux/arm64").reason.as_deref(), Some("Canceled"));
    assert!(!seen.pods.iter().any(|pod| pod.part == "linux-arm64"));
}
