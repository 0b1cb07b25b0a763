//! The chart, installed on the cluster.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use crate::cluster::{Cluster, target};
use crate::images::Images;
use crate::process::run;

/// Namespace of the operator.
pub(crate) const NAMESPACE: &str = "lapstrake-system";
/// Name of the release.
pub(crate) const RELEASE: &str = "lapstrake";

/// Installs or upgrades the chart and waits until the operator is ready.
pub(crate) fn install(root: &Path, cluster: &Cluster, images: &Images) -> Result<()> {
    let values = json!({
        "image": { "repository": images.operator.0, "tag": images.operator.1 },
        "builder": { "image": { "repository": images.builder.0, "tag": images.builder.1 } },
        "registries": cluster.registries,
        // A cluster for demo and tests shall be left as it was.
        "crds": { "keep": false },
    });
    let file = target(root).join("values.json");
    fs::write(&file, values.to_string()).with_context(|| file.display().to_string())?;
    let mut helm = cluster.helm(["upgrade", "--install", RELEASE])?;
    helm.arg(root.join("charts/lapstrake"));
    helm.args(["--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "3m", "--values"]);
    helm.arg(&file);
    println!("installing the chart with Helm, release {RELEASE} in namespace {NAMESPACE}");
    let installed = run(helm.stdout(std::process::Stdio::null()));
    if installed.is_err() {
        // What a person would look at next.
        run(&mut cluster.kubectl(["-n", NAMESPACE, "get", "pods", "-o", "wide"])).ok();
        run(&mut cluster.kubectl(["-n", NAMESPACE, "logs", "deploy/lapstrake", "--tail", "50"])).ok();
    }
    installed
}

/// Takes the chart and all ImageBuilds away.
pub(crate) fn uninstall(cluster: &Cluster) -> Result<()> {
    // While the operator runs, so that it ends what is under way.
    run(&mut cluster.kubectl(["delete", "imagebuilds", "--all", "--all-namespaces", "--wait"])).ok();
    run(&mut cluster.helm([
        "uninstall",
        RELEASE,
        "--namespace",
        NAMESPACE,
        "--wait",
        "--ignore-not-found",
    ])?)?;
    run(&mut cluster.kubectl(["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait"]))
}
