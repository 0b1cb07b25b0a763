//! The queue and shared caches, as planning meets them.

use std::collections::BTreeSet;

use lapstrake_crds::{CacheVolume, ImageBuild, Reason, WhenBusy, WhenChanged};
use lapstrake_handoff as handoff;

use super::tests::{begun, build, end, fresh, go, now, reason_of, status_of};
use super::*;
use crate::cache::slots::{Holder, Slot};
use crate::observe::{Container, Observed, PodFacts};
use crate::schedule::board::Leave;
use crate::schedule::queue::{Full, Turn, Wait};

fn wait(position: u32) -> Leave {
    Leave { turn: Turn::Wait(Wait { position, full: Full::Cluster(2) }), slots: BTreeSet::new() }
}

fn queued() -> Observed {
    let mut seen = fresh(build(), Vec::new());
    seen.leave = Some(wait(3));
    let plan = go(&seen);
    seen.build.status = plan.status.map(|status| *status);
    seen
}

fn queue_of(build: &ImageBuild) -> lapstrake_crds::QueueStatus {
    build.status.as_ref().and_then(|status| status.run.as_ref()?.queue.clone()).expect("a place in the queue")
}

#[test]
fn nothing_is_made_before_the_queue_was_asked() {
    let mut seen = fresh(build(), Vec::new());
    seen.leave = None;
    assert_eq!(go(&seen), Plan { ask: true, ..Plan::default() });
}

#[test]
fn a_build_that_waits_says_where_and_why_and_is_written_only_when_that_changes() {
    let mut seen = fresh(build(), Vec::new());
    seen.leave = Some(wait(3));
    let plan = go(&seen);
    assert!(!plan.acts() && plan.admits.is_none(), "nothing is made for it");
    assert_eq!(reason_of(&plan), "Queued");
    let message = &status_of(&plan).conditions[0].message;
    assert_eq!(message, "3rd in namespace shop: the cluster's limit of 2 running builds is reached");
    let mut seen = queued();
    assert_eq!(go(&seen), Plan::default(), "at rest nothing is written");
    assert_eq!(queue_of(&seen.build).position, Some(3));
    seen.leave = Some(wait(2));
    assert_eq!(status_of(&go(&seen)).run.as_ref().unwrap().queue.as_ref().unwrap().position, Some(2));
}

#[test]
fn a_turn_that_comes_makes_the_pod_and_is_kept_in_status() {
    let mut seen = queued();
    let since = queue_of(&seen.build).since;
    seen.leave = Some(Leave { turn: Turn::Go, slots: BTreeSet::new() });
    let plan = go(&seen);
    assert!(plan.create.is_some() && plan.admits.is_some());
    seen.build.status = plan.status.map(|status| *status);
    let queue = queue_of(&seen.build);
    assert_eq!((queue.position, queue.limited_by, queue.since), (None, None, since));
    assert_eq!(queue.admitted.map(|time| time.0), plan.admits, "the board waits for just this");
}

#[test]
fn a_newer_spec_waits_in_the_place_of_the_older() {
    let mut seen = queued();
    let since = queue_of(&seen.build).since;
    let run = seen.build.status.as_ref().unwrap().run.as_ref().unwrap().id.clone();
    seen.build.spec.output.tags = vec!["v2".into()];
    seen.build.metadata.generation = Some(2);
    let plan = go(&seen);
    let status = status_of(&plan);
    assert_ne!(status.run.as_ref().unwrap().id, run);
    assert_eq!(status.run.as_ref().unwrap().queue.as_ref().unwrap().since, since);
    assert!(status.history.is_empty(), "what never began is not told of");
}

#[test]
fn what_takes_the_place_of_a_run_under_way_is_admitted_with_it() {
    let mut seen = begun();
    seen.build.spec.output.tags = vec!["v2".into()];
    seen.build.metadata.generation = Some(2);
    seen.leave = Some(wait(1));
    let plan = go(&seen);
    assert_eq!(plan.delete_pods.len(), 1);
    assert!(status_of(&plan).run.as_ref().unwrap().queue.as_ref().unwrap().admitted.is_some());
}

#[test]
fn suspend_takes_a_build_out_of_the_queue() {
    let mut seen = queued();
    seen.build.spec.suspend = true;
    let plan = go(&seen);
    assert_eq!(reason_of(&plan), "Suspended");
    assert!(status_of(&plan).run.is_none());
}

#[test]
fn a_run_that_may_finish_is_not_touched_by_a_newer_spec() {
    let mut seen = begun();
    seen.pods[0].node = Some("n1".into());
    seen.pods[0].container = Container::Running { since: Some(now()) };
    seen.build.spec.queue.when_changed = WhenChanged::Finish;
    seen.build.spec.output.tags = vec!["v2".into()];
    seen.build.metadata.generation = Some(2);
    let plan = go(&seen);
    assert!(!plan.acts());
    assert_eq!(status_of(&plan).observed_generation, Some(1), "it speaks of what is built");
    seen.build.status = plan.status.map(|status| *status);
    assert_eq!(go(&seen), Plan::default());
    let success = handoff::Success { digest: "sha256:1".into(), ..handoff::Success::default() };
    end(&mut seen, &handoff::Outcome::Success(success).encode(), 0);
    let plan = go(&seen);
    let status = status_of(&plan);
    assert_eq!(status.history[0].digest.as_deref(), Some("sha256:1"), "its work is told");
    assert_eq!(status.run.as_ref().unwrap().generation, Some(2));
}

fn sharing(when_busy: WhenBusy) -> Observed {
    let mut build = build();
    let volume = CacheVolume {
        name: Some("modules".into()),
        slots: Some(2),
        when_busy: Some(when_busy),
        ..CacheVolume::default()
    };
    build.spec.cache.volume = Some(volume);
    let mut seen = fresh(build, Vec::new());
    seen.leave = Some(Leave { turn: Turn::Go, slots: ["modules/any".to_owned()].into() });
    seen
}

fn slot(number: u32, leased_to: Option<&str>) -> Slot {
    Slot {
        claim: format!("modules-slot-any-{number}"),
        version: "7".into(),
        cache: "modules".into(),
        platform: "any".into(),
        number,
        leased_to: leased_to.map(str::to_owned),
        bytes: Some(10 << 30),
        ..Slot::default()
    }
}

fn holder(uid: &str, claim: u32) -> Holder {
    Holder { uid: uid.into(), claim: slot(claim, None).claim, gated: false }
}

fn state_claim(plan: &Plan) -> Option<String> {
    PodFacts::of(plan.create.as_deref().expect("a pod")).claim
}

/// The pod is made, and has its gate.
fn gated(mut seen: Observed) -> Observed {
    let plan = go(&seen);
    let mut pod = PodFacts::of(plan.create.as_deref().expect("a pod"));
    assert!(pod.gated && pod.shared_cache, "it mounts nothing yet");
    pod.uid = "me".into();
    pod.phase = "Pending".into();
    pod.created = Some(now());
    seen.holders.push(Holder { uid: "me".into(), claim: pod.claim.clone().unwrap(), gated: true });
    seen.build.status = plan.status.map(|status| *status);
    seen.pods = vec![pod];
    seen
}

#[test]
fn the_first_build_of_a_shared_cache_makes_its_first_slot() {
    let plan = go(&sharing(WhenBusy::Queue));
    let claim = plan.volume.as_ref().expect("a claim");
    assert!(claim.metadata.owner_references.is_none(), "it outlives the ImageBuild");
    assert_eq!(state_claim(&plan), claim.metadata.name);
    let enter = plan.enter.expect("how it comes in");
    assert_eq!((enter.version, enter.pod, enter.leased), (None, None, false));
}

#[test]
fn a_free_slot_is_taken_over_the_version_that_was_seen() {
    let mut seen = sharing(WhenBusy::Queue);
    seen.slots = vec![slot(0, Some("other")), slot(1, Some("gone"))];
    seen.holders = vec![holder("other", 0)];
    let plan = go(&seen);
    assert!(plan.volume.is_none());
    assert_eq!(state_claim(&plan).as_deref(), Some("modules-slot-any-1"));
    assert_eq!(plan.enter.expect("how it comes in").version.as_deref(), Some("7"));
}

#[test]
fn with_all_slots_taken_a_build_waits_or_goes_without() {
    let busy = |when_busy| {
        let mut seen = sharing(when_busy);
        seen.slots = vec![slot(0, Some("a")), slot(1, Some("b"))];
        seen.holders = vec![holder("a", 0), holder("b", 1)];
        go(&seen)
    };
    let plan = busy(WhenBusy::Queue);
    assert!(plan.create.is_none());
    let status = status_of(&plan);
    assert_eq!(
        status.run.as_ref().unwrap().queue.as_ref().unwrap().limited_by,
        Some(lapstrake_crds::QueueLimit::Cache)
    );
    assert!(status.conditions[0].message.contains("all 2 slots of cache modules are taken"));
    let plan = busy(WhenBusy::NoCache);
    assert_eq!(state_claim(&plan), None);
    assert!(plan.enter.is_none() && !PodFacts::of(plan.create.as_deref().unwrap()).gated);
}

#[test]
fn a_pod_with_its_gate_goes_on_whoever_was_killed_in_between() {
    let mut seen = gated(sharing(WhenBusy::Queue));
    // Killed before its uid was written, then before the gate was taken away.
    seen.slots = vec![slot(0, None)];
    let enter = go(&seen).enter.expect("how it comes in");
    assert_eq!((enter.leased, enter.version.as_deref()), (false, Some("7")));
    assert_eq!(enter.pod.map(|(_, uid)| uid).as_deref(), Some("me"));
    seen.slots = vec![slot(0, Some("me"))];
    assert!(go(&seen).enter.expect("how it comes in").leased);
    seen.fresh = false;
    assert!(go(&seen).look_closer, "never on facts of the past");
}

#[test]
fn what_waits_for_a_slot_looks_again_by_itself() {
    let mut seen = sharing(WhenBusy::Queue);
    assert!(go(&seen).requeue.is_some(), "writing onto the new claim may meet its volume's controller");
    seen.slots = vec![slot(0, Some("a")), slot(1, Some("b"))];
    seen.holders = vec![holder("a", 0), holder("b", 1)];
    assert!(go(&seen).requeue.is_some(), "its board thinks that a slot is free, so nobody will wake it");
    let mut seen = gated(sharing(WhenBusy::Queue));
    for leased_to in [None, Some("me")] {
        seen.slots = vec![slot(0, leased_to)];
        let plan = go(&seen);
        assert!(plan.enter.is_some() && plan.requeue.is_some(), "{leased_to:?}");
    }
    seen.slots = vec![slot(0, Some("other"))];
    seen.holders.push(holder("other", 0));
    assert!(go(&seen).requeue.is_some(), "the pod that is deleted now may be seen no more");
}

#[test]
fn a_pod_whose_slot_another_got_goes_and_another_slot_is_looked_for() {
    let mut seen = gated(sharing(WhenBusy::Queue));
    seen.slots = vec![slot(0, Some("other"))];
    seen.holders.push(holder("other", 0));
    let plan = go(&seen);
    assert_eq!(plan.delete_pods.len(), 1);
    assert!(plan.enter.is_none());
    seen.build.status = plan.status.map(|status| *status);
    seen.pods.clear();
    seen.holders.remove(0);
    let plan = go(&seen);
    assert_eq!(state_claim(&plan).as_deref(), Some("modules-slot-any-1"));
    assert_eq!(status_of(&plan).run.as_ref().unwrap().attempt, 1, "it was not the build's fault");
}

#[test]
fn a_pod_that_has_ended_gives_its_slot_back_with_its_size_once() {
    let mut seen = gated(sharing(WhenBusy::Queue));
    seen.pods[0].gated = false;
    let success =
        handoff::Success { digest: "sha256:1".into(), cache_bytes: Some(123), ..handoff::Success::default() };
    end(&mut seen, &handoff::Outcome::Success(success).encode(), 0);
    seen.fresh = false;
    let plan = go(&seen);
    let back = plan.give_back.first().expect("a slot");
    assert_eq!((back.holder.as_deref(), back.used_bytes), (Some("me"), Some(123)));
    seen.build.status = plan.status.map(|status| *status);
    assert!(go(&seen).give_back.is_empty(), "at rest nothing is written");
}

#[test]
fn a_slot_whose_pod_vanished_is_given_back_too() {
    let mut seen = gated(sharing(WhenBusy::Queue));
    seen.pods.clear();
    seen.holders.clear();
    let mine = |leased_to| Slot { last_user: Some("web".into()), ..slot(0, leased_to) };
    seen.slots = vec![mine(Some("me"))];
    let plan = go(&seen);
    assert_eq!(reason_of(&plan), Reason::ProgressingWithRetry.as_str());
    assert_eq!(plan.give_back.first().and_then(|back| back.holder.as_deref()), Some("me"));
    seen.build.status = plan.status.map(|status| *status);
    seen.slots = vec![mine(None)];
    assert!(go(&seen).give_back.is_empty());
}

#[test]
fn a_slot_that_was_deleted_before_its_pod_was_placed_is_not_waited_for() {
    let mut seen = gated(sharing(WhenBusy::Queue));
    let pod = &mut seen.pods[0];
    pod.gated = false;
    let message =
        format!("0/1 nodes are available: persistentvolumeclaim {:?} not found.", pod.claim.clone().unwrap());
    pod.unscheduled = Some(crate::observe::Why { reason: "Unschedulable".into(), message });
    let plan = go(&seen);
    assert_eq!(plan.delete_pods.len(), 1);
    assert!(status_of(&plan).platforms.iter().all(|entry| entry.pod.is_none()), "another follows");
}
