//! What goes wrong, and what the status says of it. That nothing is leaked is seen after each test.

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Pod, ResourceQuota};
use kube::api::{Api, DeleteParams};
use lapstrake_crds::{Failure, ImageBuild, Reason, RunResult};
use lapstrake_e2e::{BuilderPods, FlakyRegistry, Server, ready, reason, run, wait_until};
use serde_json::json;

fn failure(build: &ImageBuild) -> Result<Failure> {
    build.status.as_ref().and_then(|status| status.failure.clone()).context("the status has no failure")
}

/// The message of the condition `Ready`.
fn message(build: &ImageBuild) -> &str {
    let ready = build.status.as_ref().and_then(|s| s.condition(lapstrake_crds::ConditionType::Ready));
    ready.map_or("", |condition| condition.message.as_str())
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
}

#[test]
fn a_base_image_that_does_not_exist_is_named() {
    run("no-base", async |test| {
        let missing = test.base("missing:1");
        let build = test
            .fails(
                &test.manifest("build", "ARG BASE\nFROM ${BASE}\nRUN true\n").set(
                    "/spec/args",
                    json!([
                        { "name": "BASE", "value": missing }
                    ]),
                ),
                Reason::ImageNotFound,
            )
            .await?;
        has(message(&build), &[&missing]);
        test.until_event("build", Reason::ImageNotFound.as_str()).await?;
        Ok(())
    });
}

#[test]
fn a_syntax_error_is_told_with_file_line_and_column() {
    run("syntax", async |test| {
        let manifest = test.manifest("build", "ARG BASE\nFROM ${BASE}\nRNU make\n");
        let build = test.fails(&manifest, Reason::DockerfileInvalid).await?;
        let failure = failure(&build)?;
        assert_eq!((failure.line, failure.column), (Some(3), Some(1)), "{failure:?}");
        assert_eq!(failure.file.as_deref(), Some("Dockerfile"));
        has(message(&build), &["Dockerfile:3:1", "RNU"]);
        assert_eq!(build.status.and_then(|s| s.run).map(|run| run.attempt), Some(1), "not tried again");
        Ok(())
    });
}

#[test]
fn a_frontend_that_is_not_there_is_named() {
    run("frontend", async |test| {
        let dockerfile = format!("# syntax={}\nFROM scratch\nCOPY . /\n", test.image("no-frontend"));
        let build = test.fails(&test.manifest("build", &dockerfile), Reason::ImageNotFound).await?;
        has(message(&build), &["no-frontend"]);
        Ok(())
    });
}

#[test]
fn a_step_without_its_sandbox_is_refused_with_its_place() {
    run("insecure", async |test| {
        let manifest = test.manifest("build", "ARG BASE\nFROM ${BASE}\nRUN --security=insecure true\n");
        let build = test.fails(&manifest, Reason::DockerfileInvalid).await?;
        assert_eq!(failure(&build)?.line, Some(3));
        has(message(&build), &["Dockerfile:3", "security.insecure is not allowed"]);
        Ok(())
    });
}

#[test]
fn a_step_that_fails_is_named_with_its_exit_code_and_last_lines() {
    run("step", async |test| {
        let dockerfile = "ARG BASE\nFROM ${BASE}\nRUN true\nRUN echo the-last-words; exit 42\nRUN printf '%s%s' not- reached\n";
        let build = test.fails(&test.manifest("build", dockerfile), Reason::StepFailed).await?;
        let failure = failure(&build)?;
        assert_eq!((failure.exit_code, failure.line), (Some(42), Some(4)), "{failure:?}");
        has(failure.step.as_deref().unwrap_or_default(), &["RUN echo the-last-words"]);
        has(failure.excerpt.as_deref().unwrap_or_default(), &["the-last-words"]);
        has(message(&build), &["42"]);
        assert!(!test.log(&build).await?.contains("not-reached"), "what follows is not run");
        assert_eq!(build.status.and_then(|s| s.run).map(|run| run.attempt), Some(1), "not tried again");
        Ok(())
    });
}

#[test]
fn a_source_that_does_not_exist_or_is_not_what_was_promised_is_told() {
    run("source", async |test| {
        let server = Server::start(test.cluster).await?;
        let files = tempfile::tempdir()?;
        std::fs::write(files.path().join("Dockerfile"), "ARG BASE\nFROM ${BASE}\nRUN true\n")?;
        let (url, commit) = server.repository("site", files.path())?;
        let of = |name: &str, source: serde_json::Value| {
            test.manifest(name, "").set("/spec/dockerfile", json!({})).set("/spec/source", source)
        };
        let git = |name: &str, git: serde_json::Value| of(name, json!({ "git": git }));

        let built = test.build(&git("good", json!({ "url": url, "branch": "main" }))).await?;
        let revision = built.status.and_then(|s| s.source).map(|source| source.revision).unwrap_or_default();
        has(&revision, &[&commit]);

        let no_branch = git("no-branch", json!({ "url": url, "branch": "nowhere" }));
        has(message(&test.fails(&no_branch, Reason::SourceNotFound).await?), &["nowhere"]);
        let no_folder = git("no-folder", json!({ "url": url, "path": "not/there" }));
        has(message(&test.fails(&no_folder, Reason::SourceNotFound).await?), &["not/there"]);
        let no_repository = git("no-repository", json!({ "url": server.nothing("git/other.git") }));
        has(message(&test.fails(&no_repository, Reason::SourceNotFound).await?), &["other.git"]);

        let url = server.file("Dockerfile", b"ARG BASE\nFROM ${BASE}\nRUN true\n")?;
        let checked = of("checked", json!({ "http": { "url": url, "sha256": "0".repeat(64) } }));
        has(message(&test.fails(&checked, Reason::ChecksumMismatch).await?), &["0000"]);
        test.build(&of("download", json!({ "http": { "url": url } }))).await?;
        Ok(())
    });
}

#[test]
fn wrong_credentials_refuse_the_push_and_right_ones_that_come_later_do_not() {
    run("push-denied", async |test| {
        if !test.cluster.own {
            println!("SKIPPED, CLUSTER=current: no registry with a password is known there");
            return Ok(());
        }
        let registry = test.cluster.variable("LAPSTRAKE_SECURE_REGISTRY")?;
        let user = test.cluster.variable("LAPSTRAKE_REGISTRY_USER")?;
        let password = std::fs::read_to_string(test.cluster.variable("LAPSTRAKE_REGISTRY_PASSWORD_FILE")?)?;
        let image = format!("{registry}/e2e/{}/denied", test.namespace);
        let manifest = |name: &str| {
            test.manifest(name, "ARG BASE\nFROM ${BASE}\nRUN echo > /a\n").set(
                "/spec/output",
                json!({ "image": image, "secretRef": { "name": format!("{name}-secret") } }),
            )
        };
        test.registry_secret("wrong-secret", registry, user, "not-the-password").await?;
        let wrong = test.fails(&manifest("wrong"), Reason::PushDenied).await?;
        has(message(&wrong), &[registry]);
        assert!(!format!("{:?}", wrong.status).contains("not-the-password"));

        // The Secret comes after the ImageBuild.
        test.apply(&manifest("right")).await?;
        let waiting = test.until_reason("right", Reason::WaitingForSecret).await?;
        has(message(&waiting), &["right-secret"]);
        test.registry_secret("right-secret", registry, user, password.trim()).await?;
        let built = test.ready("right").await?;
        let log = test.log(&built).await?;
        assert!(!log.contains(password.trim()), "the password is in no log");
        Ok(())
    });
}

#[test]
fn a_registry_that_is_down_is_tried_again_until_it_is_up() {
    run("registry-down", async |test| {
        let mut registry = FlakyRegistry::down(test.cluster)?;
        let image = |name: &str| format!("{}/e2e/{}/{name}", registry.address, test.namespace);
        let dockerfile = "ARG BASE\nFROM ${BASE}\nRUN echo > /a\n";
        let without_retry = test
            .manifest("given-up", dockerfile)
            .set("/spec/output/image", image("a"))
            .set("/spec/retries", 0);
        let build = test.fails(&without_retry, Reason::RegistryUnavailable).await?;
        has(message(&build), &[&registry.address]);

        let patient = test
            .manifest("patient", dockerfile)
            .set("/spec/output/image", image("b"))
            .set("/spec/retries", 5);
        test.apply(&patient).await?;
        let waiting = test.until_reason("patient", Reason::ProgressingWithRetry).await?;
        has(message(&waiting), &[&registry.address]);
        registry.up().await?;
        let built = test.ready("patient").await?.status.unwrap_or_default();
        assert!(built.run.is_some_and(|run| run.attempt > 1));
        assert_eq!(built.history.len(), 1, "attempts are one run: {:?}", built.history);
        registry.stop();
        Ok(())
    });
}

const SLEEPS: &str = "ARG BASE\nFROM ${BASE}\nRUN echo asleep; sleep 600\n";

#[test]
fn a_run_that_takes_too_long_is_stopped() {
    run("timeout", async |test| {
        let manifest = test.manifest("build", SLEEPS).set("/spec/timeout", "5s");
        let build = test.fails(&manifest, Reason::TimedOut).await?;
        has(message(&build), &["5 s", "spec.timeout"]);
        Ok(())
    });
}

#[test]
fn cancel_stops_the_run_and_taking_it_back_builds() {
    run("cancel", async |test| {
        let dockerfile = "ARG BASE\nFROM ${BASE}\nARG SLEEP=600\nRUN echo asleep; sleep ${SLEEP}\n";
        test.apply(&test.manifest("build", dockerfile)).await?;
        test.until_log("build", "asleep").await?;
        test.patch("build", json!({ "spec": { "cancel": true } })).await?;
        let build = test.ended("build").await?;
        assert_eq!(reason(&build), Reason::Canceled.as_str(), "{:?}", build.status);
        let pods: Api<Pod> = test.pods.clone();
        lapstrake_e2e::wait_gone(&pods, lapstrake_crds::label::BUILD, |pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            matches!(phase, Some("Succeeded" | "Failed"))
        })
        .await?;
        let args =
            json!([{ "name": "BASE", "value": test.base("busybox:1") }, { "name": "SLEEP", "value": "0" }]);
        test.patch("build", json!({ "spec": { "cancel": false, "args": args } })).await?;
        let built = test.until("build", "built after all", ready).await?.status.unwrap_or_default();
        assert_eq!(built.history.len(), 2);
        assert!(built.history.iter().any(|entry| entry.result == RunResult::Canceled));
        Ok(())
    });
}

#[test]
fn suspend_starts_nothing_until_it_is_taken_back() {
    run("suspend", async |test| {
        let pods = BuilderPods::watch(test.pods.clone());
        let manifest =
            test.manifest("build", "ARG BASE\nFROM ${BASE}\nRUN true\n").set("/spec/suspend", true);
        test.apply(&manifest).await?;
        test.until_reason("build", Reason::Suspended).await?;
        assert!(pods.names().is_empty());
        test.patch("build", json!({ "spec": { "suspend": false } })).await?;
        test.ready("build").await?;
        Ok(())
    });
}

#[test]
fn a_pod_that_is_deleted_in_mid_build_is_replaced_by_another_attempt() {
    run("pod-deleted", async |test| {
        let dockerfile = "ARG BASE\nFROM ${BASE}\nRUN echo kept > /kept\nRUN echo asleep; sleep 10\n";
        test.apply(&test.manifest("build", dockerfile)).await?;
        let pod = test.until_log("build", "asleep").await?;
        test.pods.delete(&pod, &DeleteParams::default()).await?;
        let built = test.ready("build").await?.status.unwrap_or_default();
        let attempt = built.run.context("a run")?;
        assert_eq!(attempt.attempt, 2, "{attempt:?}");
        has(attempt.last_attempt_message.as_deref().unwrap_or_default(), &[&pod]);
        let platform = built.platforms.first().context("a platform")?;
        assert!(platform.cached_steps > Some(0), "what the first attempt finished is kept: {platform:?}");

        test.apply(&test.manifest("once", SLEEPS).set("/spec/retries", 0)).await?;
        let pod = test.until_log("once", "asleep").await?;
        test.pods.delete(&pod, &DeleteParams::default()).await?;
        let build = test.ended("once").await?;
        assert_eq!(reason(&build), Reason::PodDeleted.as_str(), "{:?}", build.status);
        Ok(())
    });
}

#[test]
fn a_step_that_uses_up_the_memory_is_told_as_such() {
    run("step-oom", async |test| {
        let manifest = test
            .manifest("build", "ARG BASE\nFROM ${BASE}\nRUN tail /dev/zero\n")
            .set("/spec/pod/resources", json!({ "limits": { "memory": "128Mi" } }));
        let build = test.fails(&manifest, Reason::OutOfMemory).await?;
        has(message(&build), &["memory"]);
        assert_eq!(failure(&build)?.line, Some(3), "which step it was");
        Ok(())
    });
}

#[test]
fn a_builder_that_is_killed_for_its_memory_is_told_as_such() {
    run("builder-oom", async |test| {
        // Files on a tmpfs count as the pod's memory; the largest process in it is the builder.
        let manifest = test
            .manifest("build", "ARG BASE\nFROM ${BASE}\nRUN dd if=/dev/zero of=/file bs=64k count=4096\n")
            .set("/spec/cache", json!({ "emptyDir": { "medium": "Memory" } }))
            .set("/spec/retries", 0)
            .set("/spec/pod/resources", json!({ "limits": { "memory": "96Mi" } }));
        let build = test.fails(&manifest, Reason::OutOfMemory).await?;
        has(message(&build), &["memory"]);
        Ok(())
    });
}

#[test]
fn a_full_disk_is_told_as_such() {
    run("disk-full", async |test| {
        let manifest = test
            .manifest("build", "ARG BASE\nFROM ${BASE}\nRUN dd if=/dev/zero of=/file bs=1M count=256\n")
            .set("/spec/retries", 0);
        let manifest = if test.cluster.own {
            manifest.set(
                "/spec/cache",
                json!({ "volume": { "size": "64Mi", "storageClassName": "local-sized" } }),
            )
        } else {
            manifest.set("/spec/cache", json!({ "emptyDir": { "medium": "Memory", "sizeLimit": "64Mi" } }))
        };
        let build = test.fails(&manifest, Reason::DiskFull).await?;
        has(message(&build).to_lowercase().as_str(), &["no space left"]);
        Ok(())
    });
}

#[test]
fn an_imagebuild_that_is_deleted_in_mid_build_takes_everything_with_it() {
    run("deleted", async |test| {
        test.apply(&test.manifest("build", SLEEPS)).await?;
        test.until_log("build", "asleep").await?;
        test.builds.delete("build", &DeleteParams::default()).await?;
        wait_until(&test.builds, "build", "gone", |seen| seen.is_none()).await?;
        test.nothing_is_left().await
    });
}

#[test]
fn a_spec_that_changes_in_mid_build_is_what_is_built() {
    run("changed", async |test| {
        test.apply(&test.manifest("build", SLEEPS)).await?;
        test.until_log("build", "asleep").await?;
        let pods = BuilderPods::watch(test.pods.clone());
        let changed = test.manifest("build", "ARG BASE\nFROM ${BASE}\nRUN echo > /new\n");
        let built = test.build(&changed).await?;
        let status = built.status.unwrap_or_default();
        assert_eq!(status.run.and_then(|run| run.generation), built.metadata.generation);
        let old = status.history.iter().find(|entry| entry.generation == Some(1)).context("the first run")?;
        assert_eq!(old.result, RunResult::Canceled, "{old:?}");
        assert_eq!(pods.names().len(), 2, "one pod for each: {:?}", pods.names());
        Ok(())
    });
}

#[test]
fn a_pod_that_no_node_takes_is_waiting_and_says_for_what() {
    run("unschedulable", async |test| {
        let manifest = test
            .manifest("build", "ARG BASE\nFROM ${BASE}\nRUN true\n")
            .set("/spec/pod/nodeSelector", json!({ "example.org/no-such": "node" }));
        test.apply(&manifest).await?;
        let build = test.until_reason("build", Reason::WaitingForNode).await?;
        has(message(&build), &["node"]);
        test.patch("build", json!({ "spec": { "pod": { "nodeSelector": null } } })).await?;
        test.ready("build").await?;
        Ok(())
    });
}

#[test]
fn a_quota_without_room_is_waiting_and_not_a_failure() {
    run("quota", async |test| {
        let quota = json!({ "metadata": { "name": "none" }, "spec": { "hard": { "pods": "0" } } });
        test.create::<ResourceQuota>(quota).await?;
        let quotas: Api<ResourceQuota> = Api::namespaced(test.client.clone(), &test.namespace);
        wait_until(&quotas, "none", "in force", |quota| {
            quota.is_some_and(|quota| quota.status.as_ref().is_some_and(|status| status.hard.is_some()))
        })
        .await?;
        test.apply(&test.manifest("build", "ARG BASE\nFROM ${BASE}\nRUN true\n")).await?;
        let build = test.until_reason("build", Reason::WaitingForQuota).await?;
        has(message(&build), &["quota"]);
        quotas.delete("none", &DeleteParams::default()).await?;
        test.ready("build").await?;
        Ok(())
    });
}

#[test]
fn a_namespace_that_admits_no_builder_pod_is_told_as_such() {
    let labels = [("pod-security.kubernetes.io/enforce".to_owned(), "restricted".to_owned())];
    lapstrake_e2e::run_in("restricted", labels.into(), async |test| {
        let manifest = test.manifest("build", "ARG BASE\nFROM ${BASE}\nRUN true\n");
        let build = test.fails(&manifest, Reason::SandboxUnavailable).await?;
        has(message(&build), &["restricted"]);
        Ok(())
    });
}
