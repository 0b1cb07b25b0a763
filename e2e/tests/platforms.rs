//! Several platforms in one ImageBuild: emulated, waited for, and built through the operator's deaths.

use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use lapstrake_crds::{ImageBuildStatus, PlatformStatus};
use lapstrake_e2e::{BuilderPods, Manifest, SYSTEM_NAMESPACE, Test, run, wait_until};
use serde_json::{Value, json};

/// Those that add a node, or kill the operator, disturb the others.
static ALONE: Mutex<()> = Mutex::new(());

fn alone(name: &str, test: impl AsyncFnOnce(&Test) -> Result<()>) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    run(name, test);
}

const DOCKERFILE: &str = "ARG BASE\nFROM ${BASE}\nARG TARGETARCH\n\
     RUN echo \"$TARGETARCH $(dpkg --print-architecture)\" > /built\n";

fn two_platforms(test: &Test, name: &str, emulation: Value) -> Manifest {
    Manifest::inline(name, DOCKERFILE, &test.image(name))
        .arg("BASE", &test.base("debian-multi:bookworm"))
        .set("/spec/platforms", json!(["linux/amd64", "linux/arm64"]))
        .set("/spec/emulation", emulation)
}

fn entry<'a>(status: &'a ImageBuildStatus, platform: &str) -> Result<&'a PlatformStatus> {
    status.platforms.iter().find(|entry| entry.platform == platform).with_context(|| format!("no {platform}"))
}

/// What a step wrote into the image of one architecture, pulled by its index.
fn built_file(image: &str, architecture: &str) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let target = format!("dir:{}", folder.path().display());
    let flags = ["copy", "--src-tls-verify=false", "--override-os=linux", "--override-arch", architecture];
    let output = Command::new("skopeo").args(flags).arg(format!("docker://{image}")).arg(&target).output()?;
    if !output.status.success() {
        bail!("skopeo: {}", String::from_utf8_lossy(&output.stderr));
    }
    let manifest: Value = serde_json::from_slice(&std::fs::read(folder.path().join("manifest.json"))?)?;
    let layers = manifest["layers"].as_array().context("layers")?;
    for layer in layers.iter().rev() {
        let digest = layer["digest"].as_str().context("a digest")?.trim_start_matches("sha256:");
        let file = folder.path().join(digest);
        let tar = Command::new("tar").arg("-xzOf").arg(&file).arg("built").output()?;
        if tar.status.success() {
            return Ok(String::from_utf8_lossy(&tar.stdout).trim().to_owned());
        }
    }
    bail!("no layer of {image} for {architecture} has /built")
}

fn check_image(status: &ImageBuildStatus) -> Result<()> {
    let image = status.image.clone().context("an image")?;
    assert_eq!(built_file(&image, "amd64")?, "amd64 amd64");
    assert_eq!(built_file(&image, "arm64")?, "arm64 arm64", "what its own steps wrote");
    Ok(())
}

/// What each of two pods attested stands in the index that joins what they built.
fn attested(status: &ImageBuildStatus) -> Result<()> {
    let image = status.image.clone().context("an image")?;
    let flags = ["inspect", "--raw", "--tls-verify=false"];
    let output = Command::new("skopeo").args(flags).arg(format!("docker://{image}")).output()?;
    let index: Value = serde_json::from_slice(&output.stdout).context("an index")?;
    let entries = index["manifests"].as_array().context("manifests")?;
    let told: Vec<_> =
        entries.iter().map(|entry| entry["annotations"]["vnd.docker.reference.digest"].as_str()).collect();
    let images: Vec<_> = status.platforms.iter().map(|entry| entry.digest.as_deref()).collect();
    assert_eq!(told, [vec![None, None], images].concat(), "{index:#}");
    let beside: Vec<_> = entries.iter().skip(2).map(|entry| entry["digest"].as_str()).collect();
    let known: Vec<_> = status.platforms.iter().map(|entry| entry.attestation_digest.as_deref()).collect();
    assert_eq!(beside, known);
    Ok(())
}

/// Pods that the status speaks of.
fn planned(status: &ImageBuildStatus) -> u32 {
    let platforms: u32 = status.platforms.iter().filter_map(|entry| entry.attempt).sum();
    platforms + status.index.as_ref().map_or(0, |index| index.attempt)
}

#[test]
fn platforms_that_no_node_has_are_emulated_at_once_in_one_pod() {
    run("emulate", async |test| {
        let pods = BuilderPods::watch(test.pods.clone());
        let build = test.build(&two_platforms(test, "build", json!({ "policy": "Emulate" }))).await?;
        let status = build.status.unwrap_or_default();
        assert_eq!(entry(&status, "linux/arm64")?.emulated, Some(true));
        assert_eq!(pods.names().len(), 1, "one pod builds all: {:?}", pods.names());
        check_image(&status)
    });
}

/// What programs do that an emulator has to get right: a package manager and a compiler with their many
/// children, a child by its absolute path, a script by its first line, a look at what one is oneself.
const FOREIGN: &str = "ARG BASE\nFROM --platform=linux/arm64 ${BASE}\n\
     RUN test \"$(uname -m) $(dpkg --print-architecture)\" = 'aarch64 arm64'\n\
     RUN printf '#!/usr/bin/perl\\nprint qq(a script\\\\n);\\n' > /script && chmod 755 /script && test \"$(/script)\" = 'a script'\n\
     RUN test \"$(/usr/bin/env -i /bin/sh -c 'echo $0')\" = /bin/sh\n\
     RUN test \"$(/usr/bin/readlink /proc/self/exe)\" = /usr/bin/readlink\n\
     RUN apt-get update -qq && apt-get install -qq -y --no-install-recommends gcc libc6-dev >/dev/null\n\
     RUN printf '#include <stdio.h>\\nint main(){puts(\"compiled\");return 0;}' > /a.c && gcc -o /a /a.c && \\\n\
     test \"$(/a)\" = compiled && test $(od -An -tx1 -j18 -N1 /a) = b7\n";

#[test]
fn emulated_steps_in_a_pod_install_packages_compile_and_run_scripts() {
    run("emulated-steps", async |test| {
        let base = test.base("debian-multi:bookworm");
        let manifest = Manifest::inline("build", FOREIGN, &test.image("build"))
            .arg("BASE", &base)
            .set("/spec/platforms", json!(["linux/amd64"]));
        let build = test.build(&manifest).await?;
        let status = build.status.unwrap_or_default();
        let steps = status.platforms.first().and_then(|entry| entry.steps);
        assert!(steps.is_some_and(|steps| steps >= 6), "{steps:?}");
        Ok(())
    });
}

#[test]
fn a_platform_that_waited_in_vain_is_emulated_and_an_index_pod_joins_them() {
    alone("prefer-native", async |test| {
        let pods = BuilderPods::watch(test.pods.clone());
        let emulation = json!({ "policy": "PreferNative", "after": "5s" });
        let manifest = two_platforms(test, "build", emulation)
            .set("/spec/output/attestations", json!({ "provenance": {} }));
        let build = test.build(&manifest).await?;
        let status = build.status.unwrap_or_default();
        let arm = entry(&status, "linux/arm64")?;
        assert_eq!((arm.emulated, arm.architecture.as_deref()), (Some(true), Some("amd64")));
        assert_eq!(u32::try_from(pods.names().len())?, planned(&status), "{:?}", pods.names());
        assert!(pods.names().iter().any(|name| name.contains("-index-")));
        test.until_event("build", "WaitingForNode").await?;
        attested(&status)?;
        check_image(&status)
    });
}

/// Taint of nodes that nobody is behind.
const FAKE: &str = "lapstrake.dev/e2e-fake";

/// A node of another architecture that nobody is behind. Its Lease makes it look alive.
async fn fake_node(test: &Test, name: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(test.client.clone());
    let node: Node = serde_json::from_value(json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/arch": "arm64", "kubernetes.io/os": "linux" } },
    }))?;
    nodes.create(&Default::default(), &node).await?;
    let now = jiff::Timestamp::now();
    let capacity = json!({ "cpu": "8", "memory": "16Gi", "pods": "20", "ephemeral-storage": "100Gi" });
    let ready = json!([{ "type": "Ready", "status": "True", "reason": "Fake", "message": "a test's",
        "lastHeartbeatTime": now, "lastTransitionTime": now }]);
    let status = json!({ "status": { "capacity": capacity, "allocatable": capacity, "conditions": ready } });
    nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    // Not the one of a node that is not ready, which the node controller would take away with its next look; but one that
    // keeps the pods of others away.
    let taint = json!({ "spec": { "taints": [{ "key": FAKE, "effect": "NoSchedule" }] } });
    nodes.patch(name, &PatchParams::default(), &Patch::Merge(taint)).await?;
    renew(test, name).await
}

async fn renew(test: &Test, name: &str) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(test.client.clone(), "kube-node-lease");
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": name },
        "spec": { "holderIdentity": name, "leaseDurationSeconds": 3600, "renewTime": jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string() },
    });
    leases.patch(name, &PatchParams::apply("lapstrake-e2e").force(), &Patch::Apply(&lease)).await?;
    Ok(())
}

#[test]
fn a_node_of_the_architecture_gets_the_pod_and_status_says_that_it_waits_there() {
    alone("fake-node", async |test| {
        let node = format!("fake-arm64-{}", test.namespace);
        let tolerant =
            json!([{ "platform": "linux/arm64", "tolerations": [{ "key": FAKE, "operator": "Exists" }] }]);
        let manifest = two_platforms(test, "build", json!({ "policy": "Native" }))
            .set("/spec/pod/perPlatform", tolerant)
            .without_cache();
        let nodes: Api<Node> = Api::all(test.client.clone());
        test.apply(&manifest).await?;
        test.until("build", "told to wait for a node", |build| {
            let entry = build.status.as_ref().and_then(|status| entry(status, "linux/arm64").ok());
            entry.is_some_and(|entry| {
                entry.reason.as_deref() == Some("WaitingForNode") && entry.node.is_none()
            })
        })
        .await?;
        let seen = async {
            fake_node(test, &node).await?;
            let build = test
                .until("build", "on the new node", |build| {
                    let entry = build.status.as_ref().and_then(|status| entry(status, "linux/arm64").ok());
                    entry.is_some_and(|entry| entry.node.as_deref() == Some(node.as_str()))
                })
                .await?;
            let status = build.status.unwrap_or_default();
            let pod = entry(&status, "linux/arm64")?.pod.clone().context("a pod")?;
            let found = test.pods.get(&pod).await?;
            assert_eq!(found.status.and_then(|status| status.phase).as_deref(), Some("Pending"));
            let told = test
                .until("build", "told that the node is silent", |build| {
                    let entry = build.status.as_ref().and_then(|status| entry(status, "linux/arm64").ok());
                    let message = entry.and_then(|entry| entry.message.as_deref()).unwrap_or_default();
                    message.contains("does not start it")
                })
                .await?;
            let status = told.status.unwrap_or_default();
            assert!(status.digest.is_none(), "no image without every platform");
            // The pod of a node that nobody is behind never goes: the run ends all the same.
            test.patch("build", json!({ "spec": { "cancel": true } })).await?;
            test.ended("build").await.map(drop)
        }
        .await;
        nodes.delete(&node, &DeleteParams::default()).await.ok(); // It may not have been made.
        let leases: Api<Lease> = Api::namespaced(test.client.clone(), "kube-node-lease");
        leases.delete(&node, &DeleteParams::default()).await.ok(); // As above.
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        test.pods.delete_collection(&now, &ListParams::default()).await?;
        seen
    });
}

#[test]
fn an_operator_killed_at_twenty_moments_of_a_build_with_retries_makes_one_right_index() {
    alone("killed-twenty", async |test| {
        let pods = BuilderPods::watch(test.pods.clone());
        let emulation = json!({ "policy": "PreferNative", "after": "10s" });
        let slow = format!("{DOCKERFILE}RUN sleep 20\n");
        let manifest = two_platforms(test, "build", emulation)
            .set("/spec/dockerfile/inline", slow)
            .set("/spec/retries", 5);
        test.apply(&manifest).await?;
        let operators: Api<Pod> = Api::namespaced(test.client.clone(), SYSTEM_NAMESPACE);
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        let labels = ListParams::default().labels("app.kubernetes.io/component=operator");
        let mut chance = u64::from(std::process::id());
        let mut broken = 0;
        for kill in 0..20 {
            chance = chance.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // A random moment is what is asked for, not one at which something has come to pass.
            tokio::time::sleep(Duration::from_millis(200 + (chance >> 33) % 2500)).await;
            operators.delete_collection(&now, &labels).await?;
            // Every fifth time a builder that runs goes too, so that there are attempts after the first.
            if kill % 5 == 4 {
                let pods = test.pods.list(&ListParams::default()).await?.items;
                let runs = |pod: &&Pod| {
                    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
                };
                if let Some(pod) = pods.iter().find(runs) {
                    broken += u32::from(test.pods.delete(&pod.name_any(), &now).await.is_ok());
                }
            }
        }
        let status = test.ready("build").await?.status.unwrap_or_default();
        assert_eq!(status.history.len(), 1, "one run: {:?}", status.history);
        assert_eq!(u32::try_from(pods.names().len())?, planned(&status), "{:?}", pods.names());
        assert!(broken > 0, "no builder was killed beside the operator");
        println!("{broken} builders killed beside the operator, {} pods", pods.names().len());
        wait_until(&operators, &operators.list(&labels).await?.items[0].name_any(), "there", |pod| {
            pod.is_some()
        })
        .await?;
        check_image(&status)
    });
}
