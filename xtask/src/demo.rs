//! The demo: what a newcomer sees of Lapstrake first.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::images;
use crate::install;
use crate::process::{feed, output, run, spelled};

/// The example that is built, also its name and that of the pod.
const NAME: &str = "hello";

/// Shows a build from `kubectl apply` to the running image.
pub(crate) fn up(root: &Path) -> Result<()> {
    chapter("A cluster");
    let cluster = Cluster::connect(root)?;
    chapter("Lapstrake builds its own images");
    let images = images::make(root, &cluster)?;
    chapter("The chart");
    install::install(root, &cluster, &images)?;

    chapter("A build");
    let manifest = manifest(root, &cluster)?;
    shown(&mut cluster.kubectl(["delete", "imagebuild,pod", NAME, "--ignore-not-found"]))?;
    println!("$ kubectl apply -f examples/{NAME}/imagebuild.yaml");
    feed(&mut cluster.kubectl(["apply", "-f", "-"]), &manifest.to_string())?;
    follow(&cluster)?;
    let ended =
        run(&mut cluster.kubectl(["wait", "imagebuild", NAME, "--for=condition=Ready", "--timeout=120s"]));
    println!();
    shown(&mut cluster.kubectl(["get", "imagebuild", NAME]))?;
    if ended.is_err() {
        run(&mut cluster.kubectl(["describe", "imagebuild", NAME]))?;
        bail!("the build did not end well, see above");
    }

    chapter("The image, run as a pod");
    let image = field(&cluster, &["imagebuild", NAME], "{.status.image}")?;
    shown(&mut cluster.kubectl(["run", NAME, "--restart=Never", &format!("--image={image}")]))?;
    run(&mut cluster.kubectl([
        "wait",
        "pod",
        NAME,
        "--for=jsonpath={.status.phase}=Succeeded",
        "--timeout=120s",
    ]))?;
    shown(&mut cluster.kubectl(["logs", NAME]))?;
    let look = if cluster.own { "eval \"$(cargo xtask cluster env)\" and then kubectl" } else { "kubectl" };
    println!("\nLook around with {look}; take everything away with `make demo-down`.");
    Ok(())
}

/// Leaves nothing of it behind.
pub(crate) fn down(root: &Path) -> Result<()> {
    let cluster = Cluster::choose(root)?;
    if cluster.own {
        return crate::cluster::forward(root, &["down".into()]);
    }
    run(&mut cluster.kubectl(["delete", "pod", NAME, "--ignore-not-found"]))?;
    install::uninstall(&cluster)
}

/// The example, with the names that are this cluster's.
fn manifest(root: &Path, cluster: &Cluster) -> Result<Value> {
    let file = root.join("examples").join(NAME).join("imagebuild.yaml");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let mut manifest: Value = serde_saphyr::from_str(&text).with_context(|| file.display().to_string())?;
    manifest["spec"]["output"]["image"] = json!(format!("{}/demo/{NAME}", cluster.registry));
    manifest["spec"]["args"] = json!([{ "name": "BASE", "value": format!("{}/busybox:1", cluster.base) }]);
    Ok(manifest)
}

/// Shows the builder pod's log while it is written.
fn follow(cluster: &Cluster) -> Result<()> {
    run(cluster
        .kubectl(["wait", "imagebuild", NAME, "--for=jsonpath={.status.platforms[0].pod}", "--timeout=60s"])
        .stdout(std::process::Stdio::null()))?;
    let pod = field(cluster, &["imagebuild", NAME], "{.status.platforms[0].pod}")?;
    run(cluster
        .kubectl([
            "wait",
            "pod",
            &pod,
            "--for=jsonpath={.status.containerStatuses[0].containerID}",
            "--timeout=120s",
        ])
        .stdout(std::process::Stdio::null()))?;
    shown(&mut cluster.kubectl(["logs", "--follow", &pod]))
}

fn field(cluster: &Cluster, of: &[&str], path: &str) -> Result<String> {
    let mut get = cluster.kubectl(["get"]);
    let text = output(get.args(of).arg("-o").arg(format!("jsonpath={path}")))?;
    if text.is_empty() {
        bail!("{} has no {path}", of.join(" "));
    }
    Ok(text)
}

fn chapter(title: &str) {
    println!("\n== {title}");
}

/// Runs a command after showing it as a person would type it.
fn shown(command: &mut Command) -> Result<()> {
    let line = spelled(command);
    println!("$ {}", line.strip_prefix("lapstrake-cluster ").unwrap_or(&line));
    run(command)
}
