use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use lapstrake_crds::{
    GitSource, ImageBuild, ImageBuildSpec, ImageBuildStatus, Output, Reason, Sandbox, SecretReference, Source,
};
use lapstrake_handoff as handoff;

use super::ending::{Ending, Retry, ending};
use super::*;
use crate::observe::{Container, Ended, Observed, Owned, PodFacts, PodSecurity, Refusal, Why};
use crate::schedule::board::Leave;
use crate::schedule::queue::Turn;
use crate::settings::Settings;

pub(super) fn settings() -> Settings {
    Settings {
        builder_image: "registry.example/builder:1".into(),
        architecture: "amd64".into(),
        ..Settings::default()
    }
}

pub(crate) fn build() -> ImageBuild {
    let source = Source {
        git: Some(GitSource { url: "https://git.example/shop/web.git".into(), ..GitSource::default() }),
        ..Source::default()
    };
    let output = Output { image: "registry.example/shop/web".into(), ..Output::default() };
    let mut build = ImageBuild::new("web", ImageBuildSpec { source, output, ..ImageBuildSpec::default() });
    build.metadata.namespace = Some("shop".into());
    build.metadata.uid = Some("uid-web".into());
    build.metadata.generation = Some(1);
    build.metadata.resource_version = Some("1".into());
    build
}

pub(super) fn pod_of(pods: &BTreeMap<String, PodFacts>) -> &PodFacts {
    pods.values().next().expect("a pod")
}

pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).unwrap()
}

pub(crate) fn fresh(build: ImageBuild, pods: Vec<PodFacts>) -> Observed {
    Observed {
        build,
        pods,
        objects: Vec::new(),
        fresh: true,
        pod_security: Some(PodSecurity::Privileged),
        pull_secrets: Vec::new(),
        slots: Vec::new(),
        holders: Vec::new(),
        leave: Some(Leave { turn: Turn::Go, slots: BTreeSet::new() }),
        refusals: BTreeMap::new(),
        follow: crate::follow::Facts::default(),
        contexts: crate::contexts::Facts::default(),
    }
}

/// The pod that is there, or the one that would be made, is refused.
pub(super) fn refuse(seen: &mut Observed, refusal: Refusal) {
    seen.refusals.clear();
    let planned = go(seen).subject;
    let name = if planned.is_empty() { seen.pods[0].name.clone() } else { planned };
    seen.refusals.insert(name, refusal);
}

pub(crate) fn go(seen: &Observed) -> Plan {
    super::plan(seen, &settings(), now())
}

/// Plans once, and gives what is seen afterwards: the pod, pending, and the status.
pub(crate) fn begun() -> Observed {
    let mut seen = fresh(build(), Vec::new());
    let plan = go(&seen);
    let mut pod = PodFacts::of(plan.create.as_deref().expect("a pod"));
    pod.uid = "pod-1".into();
    pod.phase = "Pending".into();
    pod.created = Some(now());
    seen.build.status = plan.status.map(|status| *status);
    seen.pods = vec![pod];
    seen
}

pub(crate) fn end(seen: &mut Observed, message: &str, exit_code: i32) {
    let pod = &mut seen.pods[0];
    pod.phase = if exit_code == 0 { "Succeeded" } else { "Failed" }.into();
    pod.node = Some("n1".into());
    pod.container = Container::Ended(Ended {
        exit_code,
        reason: "Error".into(),
        message: message.into(),
        started: Some(now()),
        finished: Some(now()),
    });
}

pub(super) fn status_of(plan: &Plan) -> &ImageBuildStatus {
    plan.status.as_deref().expect("a status")
}

pub(super) fn reason_of(plan: &Plan) -> &str {
    status_of(plan).reason.as_deref().expect("a reason")
}

pub(super) fn failed(reason: handoff::Reason) -> String {
    handoff::Outcome::Failure(handoff::Failure::new(reason, "told")).encode()
}

#[test]
fn a_new_build_gets_request_volume_and_pod() {
    let seen = fresh(build(), Vec::new());
    let plan = go(&seen);
    assert!(plan.request.is_some() && plan.volume.is_some() && plan.create.is_some());
    assert_eq!(reason_of(&plan), "Queued");
    let status = status_of(&plan);
    assert_eq!(status.observed_generation, Some(1));
    assert_eq!(status.sandbox, Some(Sandbox::UserNamespace));
    assert_eq!(
        status.conditions.iter().map(|one| one.type_.as_str()).collect::<Vec<_>>(),
        ["Ready", "Reconciling", "Succeeded"]
    );
    let text = &plan.request.as_ref().unwrap().data.as_ref().unwrap()["request.json"];
    let request = handoff::Request::parse(text.as_bytes()).unwrap();
    assert_eq!(request.output.names, ["registry.example/shop/web:latest"]);
    assert_eq!(request.timeout_seconds, Some(3600));
}

#[test]
fn a_cache_of_the_past_creates_nothing() {
    let mut seen = fresh(build(), Vec::new());
    seen.fresh = false;
    seen.pod_security = None;
    assert_eq!(go(&seen), Plan { look_closer: true, ..Plan::default() });
}

#[test]
fn planning_again_changes_nothing() {
    let seen = begun();
    assert_eq!(Plan { requeue: None, ..go(&seen) }, Plan::default());
}

#[test]
fn a_pod_that_is_there_is_adopted() {
    let mut seen = begun();
    // The operator was killed between the creation of the pod and the write of its status.
    seen.build.status = None;
    let plan = go(&seen);
    assert!(plan.create.is_none());
    assert_eq!(status_of(&plan).platforms[0].pod.as_deref(), Some(seen.pods[0].name.as_str()));
}

#[test]
fn a_success_is_put_on_status_once() {
    let mut seen = begun();
    let digest = format!("sha256:{}", "a1".repeat(32));
    let success = handoff::Success {
        digest: digest.clone(),
        platform: "linux/amd64".into(),
        steps: 4,
        cached_steps: 1,
        size_bytes: 10,
        ..handoff::Success::default()
    };
    end(&mut seen, &handoff::Outcome::Success(success).encode(), 0);
    let plan = go(&seen);
    let status = status_of(&plan);
    assert_eq!(status.image, Some(format!("registry.example/shop/web@{digest}")));
    assert_eq!(status.summary.as_ref().unwrap().digest.as_deref(), Some("a1a1a1a1a1a1"));
    assert_eq!(status.summary.as_ref().unwrap().platforms.as_deref(), Some("linux/amd64"));
    assert_eq!((status.platforms[0].steps, status.platforms[0].cached_steps), (Some(4), Some(1)));
    assert_eq!(
        status.conditions.iter().map(|one| one.type_.as_str()).collect::<Vec<_>>(),
        ["Ready", "Succeeded"]
    );
    assert_eq!(status.history.len(), 1);
    assert!(plan.finished.is_some());
    seen.build.status = plan.status.clone().map(|status| *status);
    assert_eq!(go(&seen), Plan::default());
    // Its pod may go: the result stays.
    seen.pods.clear();
    assert_eq!(go(&seen), Plan::default());
    // What does not decide the image does not build it again.
    seen.build.metadata.generation = Some(2);
    seen.build.spec.retries = 0;
    seen.build.spec.suspend = true;
    let plan = go(&seen);
    assert!(plan.create.is_none());
    assert_eq!(status_of(&plan).observed_generation, Some(2));
    assert_eq!(reason_of(&plan), "Succeeded");
}

#[test]
fn a_users_error_is_terminal_and_more_memory_is_a_new_run() {
    let mut seen = begun();
    end(&mut seen, &failed(handoff::Reason::OutOfMemory), 14);
    let plan = go(&seen);
    assert_eq!(reason_of(&plan), "OutOfMemory");
    assert_eq!(status_of(&plan).conditions[1].type_, "Stalled");
    assert_eq!(plan.requeue, None, "a stall is not looked at again");
    seen.build.status = plan.status.map(|status| *status);
    assert!(go(&seen).create.is_none());
    seen.build.spec.pod.priority_class_name = Some("large".into());
    seen.build.metadata.generation = Some(2);
    let plan = go(&seen);
    assert!(plan.create.is_some(), "a failed run is tried again with another pod");
    assert_eq!(plan.delete_pods.len(), 1, "the pod of the old run goes");
}

#[test]
fn what_is_worth_a_retry_is_tried_with_backoff_until_the_budget_ends() {
    let mut seen = begun();
    for (attempt, wait) in [(1, 10), (2, 20)] {
        end(&mut seen, &failed(handoff::Reason::RegistryUnavailable), 13);
        let plan = go(&seen);
        assert_eq!(reason_of(&plan), "ProgressingWithRetry");
        assert_eq!(plan.requeue, Some(Duration::from_secs(wait)), "attempt {attempt}");
        assert_eq!(status_of(&plan).run.as_ref().unwrap().attempt, attempt + 1);
        seen.build.status = plan.status.map(|status| *status);
        assert!(go(&seen).create.is_none(), "not before its time");
        let later = now() + Duration::from_secs(wait);
        let plan = super::plan(&seen, &settings(), later);
        let mut pod = PodFacts::of(plan.create.as_deref().expect("the next attempt"));
        assert_eq!(pod.attempt, attempt + 1);
        pod.phase = "Pending".into();
        seen.pods = vec![pod];
        seen.build.status = plan.status.map(|status| *status);
    }
    end(&mut seen, &failed(handoff::Reason::RegistryUnavailable), 13);
    assert_eq!(reason_of(&go(&seen)), "RegistryUnavailable");
}

#[test]
fn a_pod_that_is_gone_without_a_result_is_tried_again() {
    let mut seen = begun();
    seen.pods.clear();
    seen.fresh = false;
    assert!(go(&seen).look_closer, "a cache may lag");
    seen.fresh = true;
    let plan = go(&seen);
    assert_eq!(reason_of(&plan), "ProgressingWithRetry");
    assert!(
        status_of(&plan)
            .run
            .as_ref()
            .unwrap()
            .last_attempt_message
            .as_ref()
            .unwrap()
            .starts_with("PodDeleted")
    );
}

#[test]
fn a_changed_spec_stops_the_run_under_way_first() {
    let mut seen = begun();
    seen.build.spec.output.tags = vec!["v2".into()];
    seen.build.metadata.generation = Some(2);
    let plan = go(&seen);
    assert!(plan.create.is_none(), "never two pods");
    assert_eq!(plan.delete_pods.len(), 1);
    let status = status_of(&plan);
    assert_eq!(status.history[0].result, RunResult::Canceled);
    assert_eq!(status.why, Some(lapstrake_crds::Why::SpecChanged));
    seen.build.status = plan.status.map(|status| *status);
    seen.pods[0].deleting = true;
    assert_eq!(go(&seen), Plan::default(), "waits");
    seen.pods.clear();
    assert!(go(&seen).create.is_some());
}

#[test]
fn cancel_stops_the_pod_keeps_the_record_and_can_be_taken_back() {
    let mut seen = begun();
    seen.build.spec.cancel = true;
    let plan = go(&seen);
    assert_eq!((reason_of(&plan), plan.delete_pods.len()), ("Canceling", 1));
    seen.build.status = plan.status.map(|status| *status);
    seen.pods.clear();
    let plan = go(&seen);
    assert_eq!(reason_of(&plan), "Canceled");
    assert_eq!(status_of(&plan).history[0].result, RunResult::Canceled);
    seen.build.status = plan.status.map(|status| *status);
    assert_eq!(go(&seen), Plan::default());
    seen.build.spec.cancel = false;
    let plan = go(&seen);
    assert_eq!(PodFacts::of(plan.create.as_deref().unwrap()).attempt, 2, "under a name of its own");
}

#[test]
fn suspend_starts_nothing_and_stops_nothing() {
    let mut seen = fresh(build(), Vec::new());
    seen.build.spec.suspend = true;
    let plan = go(&seen);
    assert!(plan.create.is_none());
    assert_eq!(reason_of(&plan), "Suspended");
    let mut seen = begun();
    seen.build.spec.suspend = true;
    assert!(go(&seen).delete_pods.is_empty());
}

#[test]
fn an_annotation_asks_for_a_run_and_its_removal_for_none() {
    let mut seen = begun();
    end(
        &mut seen,
        &handoff::Outcome::Success(handoff::Success {
            digest: "sha256:1".into(),
            ..handoff::Success::default()
        })
        .encode(),
        0,
    );
    seen.build.status = go(&seen).status.map(|status| *status);
    let ask = |seen: &mut Observed, pairs: &[(&str, &str)]| {
        seen.build.metadata.annotations =
            Some(pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect());
        go(seen)
    };
    // forceAt counts only while it equals requestedAt.
    assert!(ask(&mut seen, &[("reconcile.fluxcd.io/forceAt", "t1")]).create.is_none());
    let plan =
        ask(&mut seen, &[("reconcile.fluxcd.io/forceAt", "t1"), ("reconcile.fluxcd.io/requestedAt", "t1")]);
    assert_eq!(status_of(&plan).last_handled_force_at.as_deref(), Some("t1"));
    assert_eq!(status_of(&plan).last_handled_reconcile_at.as_deref(), Some("t1"));
    let plan = ask(&mut seen, &[("lapstrake.dev/rebuild", "again")]);
    assert!(plan.create.is_some());
    assert_eq!(status_of(&plan).why, Some(lapstrake_crds::Why::Requested));
    assert_eq!(status_of(&plan).digest.as_deref(), Some("sha256:1"), "the last image stays named");
    seen.build.status = plan.status.map(|status| *status);
    seen.pods = vec![PodFacts { phase: "Pending".into(), ..PodFacts::of(plan.create.as_deref().unwrap()) }];
    assert!(ask(&mut seen, &[]).delete_pods.is_empty());
}

#[test]
fn what_cannot_be_done_is_said_before_a_pod_exists() {
    let mut restricted = fresh(build(), Vec::new());
    restricted.pod_security = Some(PodSecurity::Restricted);
    let mut large = fresh(build(), Vec::new());
    large.build.spec.dockerfile.inline = Some("#".repeat(1_000_000));
    for (seen, reason) in [(restricted, "SandboxUnavailable"), (large, "SpecInvalid")] {
        let plan = go(&seen);
        assert!(plan.create.is_none() && plan.request.is_none());
        assert_eq!(reason_of(&plan), reason);
        let mut seen = seen;
        seen.build.status = plan.status.map(|status| *status);
        assert_eq!(Plan { requeue: None, ..go(&seen) }, Plan::default(), "{reason}");
    }
}

#[test]
fn a_quota_is_waited_for_and_a_refusal_is_not() {
    let mut seen = fresh(build(), Vec::new());
    refuse(&mut seen, Refusal::Quota("exceeded quota: q".into()));
    let plan = go(&seen);
    assert_eq!(reason_of(&plan), "WaitingForQuota");
    assert!(plan.requeue.is_some());
    seen.build.status = plan.status.map(|status| *status);
    seen.refusals.clear();
    assert!(go(&seen).create.is_some(), "tried again");
    refuse(&mut seen, Refusal::Rejected("no".into()));
    assert_eq!(reason_of(&go(&seen)), "PodRejected");
    refuse(&mut seen, Refusal::PodSecurity("violates PodSecurity".into()));
    assert_eq!(reason_of(&go(&seen)), "SandboxUnavailable");
}

#[test]
fn a_pending_pod_says_what_it_waits_for() {
    let why = |reason: &str, message: &str| Why { reason: reason.into(), message: message.into() };
    type Change = Box<dyn Fn(&mut PodFacts)>;
    let cases: Vec<(&str, Change)> = vec![
        (
            "WaitingForNode",
            Box::new(move |pod| pod.unscheduled = Some(why("Unschedulable", "0/1 nodes are available"))),
        ),
        ("Queued", Box::new(move |pod| pod.unscheduled = Some(why("SchedulingGated", "")))),
        (
            "WaitingForVolume",
            Box::new(move |pod| {
                pod.unscheduled =
                    Some(why("Unschedulable", "pod has unbound immediate PersistentVolumeClaims"))
            }),
        ),
        ("Starting", Box::new(|pod| pod.node = Some("n1".into()))),
        (
            "WaitingForBuilderImage",
            Box::new(move |pod| {
                pod.taken = Some(now());
                pod.container = Container::Waiting(why("ImagePullBackOff", "no"));
            }),
        ),
        (
            "BuilderImageUnavailable",
            Box::new(move |pod| {
                pod.taken = Some(now() - Duration::from_secs(301));
                pod.container = Container::Waiting(why("ErrImagePull", "no"));
            }),
        ),
        ("Building", Box::new(|pod| pod.container = Container::Running { since: Some(now()) })),
    ];
    for (reason, change) in cases {
        let mut seen = begun();
        change(&mut seen.pods[0]);
        let plan = go(&seen);
        let found = plan.status.as_deref().unwrap_or(seen.build.status.as_ref().unwrap()).reason.clone();
        assert_eq!(found.as_deref(), Some(reason));
    }
}

#[test]
fn objects_of_older_runs_go_with_the_next_run() {
    let mut seen = fresh(build(), Vec::new());
    seen.build.spec.cache.empty_dir = Some(Default::default());
    seen.objects = vec![Owned::Request("web-old".into()), Owned::Volume("web-cache".into())];
    let plan = go(&seen);
    assert_eq!(plan.delete_objects, seen.objects);
    assert!(plan.volume.is_none());
}

#[test]
fn a_deleted_build_is_left_to_the_cluster() {
    let mut seen = begun();
    seen.build.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    seen.pods.clear();
    assert_eq!(go(&seen), Plan::default());
}

/// Table of reference order: the first signal that matches decides.
#[test]
fn a_pods_end_is_classified_by_its_first_signal() {
    type Case = (&'static str, fn(&mut PodFacts), Reason, Retry);
    let cases: Vec<Case> = vec![
        (
            "a disruption beats the exit code",
            |pod| {
                pod.disrupted =
                    Some(Why { reason: "PreemptionByScheduler".into(), message: "preempted".into() });
                ended(pod, 10, "Error", &failed(handoff::Reason::StepFailed));
            },
            Reason::Evicted,
            Retry::Counted,
        ),
        (
            "a lost node",
            |pod| {
                pod.disrupted = Some(Why { reason: "DeletionByTaintManager".into(), message: String::new() })
            },
            Reason::NodeLost,
            Retry::Free,
        ),
        (
            "its own disk limit",
            |pod| {
                pod.reason = "Evicted".into();
                pod.message =
                    "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi.".into();
                ended(pod, 137, "Error", "");
            },
            Reason::DiskFull,
            Retry::Never,
        ),
        (
            "its own disk limit, with the condition that the kubelet adds",
            |pod| {
                pod.reason = "Evicted".into();
                pod.message = "Usage of EmptyDir volume \"state\" exceeds the limit \"1Gi\".".into();
                pod.disrupted = Some(Why { reason: "TerminationByKubelet".into(), message: String::new() });
            },
            Reason::DiskFull,
            Retry::Never,
        ),
        (
            "the node's disk",
            |pod| {
                pod.reason = "Evicted".into();
                pod.message = "The node was low on resource: ephemeral-storage.".into();
                ended(pod, 137, "Error", "");
            },
            Reason::Evicted,
            Retry::Counted,
        ),
        ("a node that shuts down", |pod| pod.reason = "NodeShutdown".into(), Reason::NodeLost, Retry::Free),
        ("a node that is full", |pod| pod.reason = "OutOfcpu".into(), Reason::PodFailed, Retry::Free),
        (
            "out of memory",
            |pod| {
                pod.oom_killed = Some("builder".into());
                ended(pod, 137, "OOMKilled", "");
            },
            Reason::OutOfMemory,
            Retry::Never,
        ),
        (
            "the kubelet's deadline",
            |pod| {
                pod.reason = "DeadlineExceeded".into();
                ended(pod, 16, "Error", &failed(handoff::Reason::Canceled));
            },
            Reason::TimedOut,
            Retry::Never,
        ),
        (
            "stopped by somebody",
            |pod| ended(pod, 16, "Error", &failed(handoff::Reason::Canceled)),
            Reason::PodDeleted,
            Retry::Counted,
        ),
        (
            "a step",
            |pod| ended(pod, 10, "Error", &failed(handoff::Reason::StepFailed)),
            Reason::StepFailed,
            Retry::Never,
        ),
        (
            "a registry",
            |pod| ended(pod, 13, "Error", &failed(handoff::Reason::RegistryUnavailable)),
            Reason::RegistryUnavailable,
            Retry::Counted,
        ),
        ("killed without a word", |pod| ended(pod, 137, "Error", ""), Reason::PodFailed, Retry::Counted),
        (
            "not started",
            |pod| ended(pod, 128, "StartError", "exec format error"),
            Reason::PodFailed,
            Retry::Counted,
        ),
        (
            "no user namespaces",
            |pod| ended(pod, 128, "StartError", "failed to set MOUNT_ATTR_IDMAP"),
            Reason::SandboxUnavailable,
            Retry::Never,
        ),
        (
            "a sandbox, by exit code",
            |pod| ended(pod, 17, "Error", ""),
            Reason::SandboxUnavailable,
            Retry::Never,
        ),
        ("a panic", |pod| ended(pod, 101, "Error", ""), Reason::Internal, Retry::Never),
        (
            "well, but without a result",
            |pod| ended(pod, 0, "Completed", ""),
            Reason::Internal,
            Retry::Counted,
        ),
    ];
    for (name, change, reason, retry) in cases {
        let mut pod = PodFacts { name: "p".into(), phase: "Failed".into(), ..PodFacts::default() };
        change(&mut pod);
        let Ending::Failure(broken) = ending(&pod) else { panic!("{name}") };
        assert_eq!((broken.reason, broken.retry), (reason, retry), "{name}");
        assert!(!broken.message.is_empty());
    }
}

#[test]
fn a_result_counts_whatever_befell_its_pod() {
    let mut pod =
        PodFacts { phase: "Failed".into(), reason: "DeadlineExceeded".into(), ..PodFacts::default() };
    pod.disrupted = Some(Why::default());
    ended(&mut pod, 0, "Completed", r#"{"success":{"digest":"sha256:1"}}"#);
    assert!(matches!(ending(&pod), Ending::Success(_)));
}

#[test]
fn every_reason_of_the_builder_is_a_reason_of_status() {
    for reason in handoff::Reason::ALL {
        assert!(reason.as_str().parse::<Reason>().is_ok(), "{reason}");
    }
}

fn ended(pod: &mut PodFacts, exit_code: i32, reason: &str, message: &str) {
    pod.container = Container::Ended(Ended {
        exit_code,
        reason: reason.into(),
        message: message.into(),
        started: Some(now()),
        finished: Some(now()),
    });
}

fn pod_in(sandbox: Sandbox, change: impl FnOnce(&mut ImageBuild)) -> k8s_openapi::api::core::v1::Pod {
    let mut build = build();
    change(&mut build);
    let part = super::parts::divide(&build, &ImageBuildStatus::default(), &settings()).remove(0);
    let of = super::pod::PodFor { run: "r", attempt: 1, part: &part, sandbox, slot: None, pull_secrets: &[] };
    super::pod::pod(&build, of, &settings())
}

#[test]
fn both_sandboxes_are_unprivileged_and_differ_in_one_capability() {
    for (sandbox, mounts) in [(Sandbox::UserNamespace, true), (Sandbox::Baseline, false)] {
        let spec = pod_in(sandbox, |_| {}).spec.unwrap();
        let context = spec.containers[0].security_context.clone().unwrap();
        assert_eq!(spec.host_users, Some(false));
        assert_eq!(spec.automount_service_account_token, Some(false));
        assert!(context.privileged.is_none());
        assert_eq!(context.proc_mount.as_deref(), Some("Unmasked"));
        assert_eq!(context.seccomp_profile.is_some(), mounts);
        assert_eq!(context.app_armor_profile.is_some(), mounts);
        let capabilities = context.capabilities.unwrap();
        assert_eq!(capabilities.drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(capabilities.add.unwrap().contains(&"SYS_ADMIN".to_owned()), mounts);
        assert!(spec.volumes.unwrap().iter().all(|volume| volume.host_path.is_none()));
        assert_eq!(context.read_only_root_filesystem, Some(true));
    }
}

#[test]
fn a_platform_chooses_the_node_and_credentials_are_mounted_where_the_request_says() {
    let pod = pod_in(Sandbox::Baseline, |build| {
        build.spec.platforms = vec!["linux/arm64".into()];
        build.spec.output.secret_ref = Some(SecretReference { name: "push".into() });
    });
    let spec = pod.spec.unwrap();
    assert_eq!(spec.node_selector.unwrap()["kubernetes.io/arch"], "arm64");
    let mounts = spec.containers[0].volume_mounts.clone().unwrap();
    let mount = mounts.iter().find(|mount| mount.name == "docker-config").unwrap();
    assert!(docker_config_path().starts_with(&mount.mount_path));
    let labels = pod.metadata.labels.unwrap();
    assert_eq!(labels["lapstrake.dev/platform"], "linux-arm64");
    assert_eq!(labels["lapstrake.dev/attempt"], "1");
}
