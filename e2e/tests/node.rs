//! The operator and the node die and come back. One test at a time, since these disturb everything.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use lapstrake_e2e::{BuilderPods, SYSTEM_NAMESPACE, Test, run, wait_until};
use serde_json::json;

static ALONE: Mutex<()> = Mutex::new(());

const OPERATOR: &str = "app.kubernetes.io/component=operator";

fn alone(name: &str, test: impl AsyncFnOnce(&Test) -> Result<()>) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    run(name, test);
}

/// Kills every operator pod without a chance to clean up.
async fn kill_operator(test: &Test) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(test.client.clone(), SYSTEM_NAMESPACE);
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    pods.delete_collection(&now, &ListParams::default().labels(OPERATOR)).await?;
    Ok(())
}

async fn replicas(test: &Test, count: i32) -> Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(test.client.clone(), SYSTEM_NAMESPACE);
    let patch = Patch::Merge(json!({ "spec": { "replicas": count } }));
    deployments.patch("lapstrake", &PatchParams::default(), &patch).await?;
    wait_until(&deployments, "lapstrake", "scaled", |deployment| {
        let status = deployment.and_then(|deployment| deployment.status.as_ref());
        status.is_some_and(|s| s.ready_replicas.unwrap_or(0) == count && s.replicas.unwrap_or(0) == count)
    })
    .await?;
    Ok(())
}

const SLOW: &str = "ARG BASE\nFROM ${BASE}\nRUN echo asleep; sleep 8\nRUN echo pushed-next > /file\n";

/// When the operator is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    Applied,
    PodCreated,
    StepRuns,
    PodEnded,
    TwiceInARow,
}

async fn killed_at(test: &Test, moment: Moment) -> Result<()> {
    let pods = BuilderPods::watch(test.pods.clone());
    test.apply(&test.manifest("build", SLOW)).await?;
    match moment {
        Moment::Applied => kill_operator(test).await?,
        Moment::PodCreated => {
            test.until("build", "in a pod", |build| {
                let status = build.status.as_ref();
                status.is_some_and(|s| s.platforms.iter().any(|platform| platform.pod.is_some()))
            })
            .await?;
            kill_operator(test).await?;
        }
        Moment::StepRuns => {
            test.until_log("build", "asleep").await?;
            kill_operator(test).await?;
        }
        Moment::PodEnded => {
            let pod = test.until_log("build", "asleep").await?;
            // Away while the pod ends: nobody is there to see it.
            replicas(test, 0).await?;
            wait_until(&test.pods, &pod, "ended", |pod| {
                let phase =
                    pod.and_then(|pod| pod.status.as_ref()).and_then(|status| status.phase.as_deref());
                phase == Some("Succeeded")
            })
            .await?;
            replicas(test, 1).await?;
        }
        Moment::TwiceInARow => {
            kill_operator(test).await?;
            test.until_log("build", "asleep").await?;
            kill_operator(test).await?;
        }
    }
    let status = test.ready("build").await?.status.unwrap_or_default();
    assert_eq!(pods.names().len(), 1, "{moment:?}: built once: {:?}", pods.names());
    assert_eq!(status.history.len(), 1, "{moment:?}: {:?}", status.history);
    assert_eq!(status.run.map(|run| run.attempt), Some(1), "{moment:?}");
    assert!(status.digest.is_some(), "{moment:?}");
    Ok(())
}

macro_rules! killed {
    ($($test:ident: $moment:ident,)+) => {$(
        #[test]
        fn $test() {
            let name = format!("killed-{:?}", Moment::$moment).to_lowercase();
            alone(&name, async |test| killed_at(test, Moment::$moment).await);
        }
    )+};
}

killed! {
    an_operator_killed_right_after_apply_builds_once: Applied,
    an_operator_killed_when_the_pod_is_there_builds_once: PodCreated,
    an_operator_killed_while_a_step_runs_builds_once: StepRuns,
    an_operator_that_is_away_when_the_pod_ends_loses_no_result: PodEnded,
    an_operator_killed_again_and_again_builds_once: TwiceInARow,
}

#[test]
fn of_two_operators_one_works_and_the_other_takes_over() {
    alone("two", async |test| {
        replicas(test, 2).await?;
        let pods = BuilderPods::watch(test.pods.clone());
        for name in ["one", "two", "three"] {
            test.apply(&test.manifest(name, SLOW)).await?;
        }
        test.until_log("one", "asleep").await?;
        let operators: Api<Pod> = Api::namespaced(test.client.clone(), SYSTEM_NAMESPACE);
        let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
            Api::namespaced(test.client.clone(), SYSTEM_NAMESPACE);
        let lease = leases.get("lapstrake").await?;
        let holder = lease.spec.and_then(|spec| spec.holder_identity).context("somebody holds the Lease")?;
        let listed = operators.list(&ListParams::default().labels(OPERATOR)).await?;
        let leader =
            listed.items.iter().find(|pod| holder.contains(&pod.name_any())).context("the leader")?;
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        operators.delete(&leader.name_any(), &now).await?;
        for name in ["one", "two", "three"] {
            let status = test.ready(name).await?.status.unwrap_or_default();
            assert_eq!(status.history.len(), 1, "{name}");
        }
        assert_eq!(pods.names().len(), 3, "each built once: {:?}", pods.names());
        replicas(test, 1).await
    });
}

#[test]
fn a_node_that_restarts_loses_no_build() {
    alone("node-restart", async |test| {
        if !test.cluster.own {
            println!("SKIPPED, CLUSTER=current: its node is not ours to restart");
            return Ok(());
        }
        let pods = BuilderPods::watch(test.pods.clone());
        test.apply(&test.manifest("build", SLOW)).await?;
        test.until_log("build", "asleep").await?;
        let cluster = test.cluster;
        tokio::task::spawn_blocking(|| cluster.tool(&["restart-node", "--kill"])).await??;
        let status = test.ready("build").await?.status.unwrap_or_default();
        let attempts = status.run.map(|run| run.attempt).unwrap_or_default();
        assert_eq!(pods.names().len(), usize::try_from(attempts)?, "a pod for each attempt");
        assert_eq!(status.history.len(), 1, "{:?}", status.history);
        println!("node restarted in mid build: {attempts} attempt(s)");
        Ok(())
    });
}

#[test]
fn an_api_server_that_restarts_loses_no_build() {
    alone("api-restart", async |test| {
        if !test.cluster.own {
            println!("SKIPPED, CLUSTER=current: its API server is not ours to restart");
            return Ok(());
        }
        test.apply(&test.manifest("build", SLOW)).await?;
        test.until_log("build", "asleep").await?;
        let cluster = test.cluster;
        tokio::task::spawn_blocking(|| cluster.tool(&["restart", "kube-apiserver"])).await??;
        let status = test.ready("build").await?.status.unwrap_or_default();
        assert_eq!(status.run.map(|run| run.attempt), Some(1));
        assert_eq!(status.history.len(), 1, "{:?}", status.history);
        Ok(())
    });
}
