//! Memory of an operator that knows many finished ImageBuilds.
//!
//! One is built for real. The others are copies of it and of its pod, as the operator and the kubelet left
//! them, made while they are suspended. A run's name is a hash of the spec, and `suspend` is no part of it:
//! when they are let go the operator finds all of them finished.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::apply::{NAMESPACE, in_namespace, manifest};
use super::timeline::condition;
use super::{Bench, load};
use crate::install;
use crate::process::{feed, output, run};

const COUNT: usize = 1000;
/// Objects of one call of kubectl.
const PIECE: usize = 250;
/// The field manager that the operator writes status with.
const MANAGER: &str = "--field-manager=lapstrake-operator";
/// A status comes alone; kubectl would miss the spec.
const STATUS_ONLY: [&str; 6] =
    ["apply", "--server-side", "--subresource=status", "--force-conflicts", "--validate=false", MANAGER];

/// Reads the operator's memory before there are a thousand, with them, and after a new start.
pub(super) fn memory(bench: &Bench<'_>) -> Result<()> {
    println!("operator that knows few: {}", read(bench)?);
    in_namespace(bench, |timeline| {
        let wanted = manifest(bench, "first", "ARG BASE\nFROM ${BASE}\nRUN true\n");
        feed(bench.cluster.kubectl(["apply", "-f", "-"]).stdout(Stdio::null()), &wanted.to_string())?;
        let pod = timeline.ready("first")?.pod;
        let build = get(bench, &["imagebuild", "first"])?;
        let pod = get(bench, &["pod", &pod])?;
        copies(bench, &build, &pod)?;
        println!("with {COUNT} finished ImageBuilds and their pods: {}", read(bench)?);
        // Each of them is looked at again.
        let note = ["--namespace", NAMESPACE, "annotate", "imagebuilds", "--all", "example.org/note=1"];
        run(bench.cluster.kubectl(note).stdout(Stdio::null()))?;
        println!("after all of them were touched: {}", read(bench)?);
        restart(bench)?;
        println!("after a new start: {}", read(bench)?);
        let builds = get(bench, &["imagebuilds"])?;
        let builds = builds["items"].as_array().into_iter().flatten();
        let ready = builds.filter(|build| condition(build, "Ready") == "True").count();
        let pods = get(bench, &["pods"])?["items"].as_array().map_or(0, Vec::len);
        println!("{ready} of {COUNT} are Ready, and none was built again: {pods} pods (load {})", load());
        Ok(())
    })
}

fn get(bench: &Bench<'_>, what: &[&str]) -> Result<Value> {
    let mut get = bench.cluster.kubectl(["--namespace", NAMESPACE, "get", "--output", "json"]);
    Ok(serde_json::from_str(&output(get.args(what))?)?)
}

/// Makes the copies, pods after their owners, status after both.
fn copies(bench: &Bench<'_>, build: &Value, pod: &Value) -> Result<()> {
    let names: Vec<String> = (1..COUNT).map(|number| format!("copy-{number}")).collect();
    let metadata = |name: &str| json!({ "name": name, "namespace": NAMESPACE });
    let plain = |of: &Value, name: &str| {
        let mut copy = json!({ "apiVersion": of["apiVersion"], "kind": of["kind"], "spec": of["spec"] });
        copy["metadata"] = metadata(name);
        copy
    };
    let suspended = |suspend: bool| {
        names.iter().map(move |name| {
            let mut copy = plain(build, name);
            copy["spec"]["suspend"] = json!(suspend);
            copy
        })
    };
    write(bench, &["create"], suspended(true))?;
    let made = get(bench, &["imagebuilds"])?;
    let uids = made["items"].as_array().context("a list")?.iter();
    let uids = uids.map(|one| (one["metadata"]["name"].clone(), one["metadata"]["uid"].clone()));
    let owned = uids.filter(|(name, _)| name != "first").map(|(name, uid)| {
        let mut copy = plain(pod, name.as_str().unwrap_or_default());
        let mut metadata = pod["metadata"].clone();
        for key in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
            metadata.as_object_mut().map(|metadata| metadata.remove(key));
        }
        metadata["name"] = name.clone();
        metadata["labels"]["lapstrake.dev/build"] = name.clone();
        metadata["labels"]["lapstrake.dev/build-uid"] = uid.clone();
        metadata["ownerReferences"][0]["name"] = name;
        metadata["ownerReferences"][0]["uid"] = uid;
        copy["metadata"] = metadata;
        // Nothing shall run it: it has ended.
        copy["spec"].as_object_mut().map(|spec| spec.remove("nodeName"));
        copy["spec"]["schedulingGates"] = json!([{ "name": "lapstrake.dev/ended" }]);
        copy
    });
    write(bench, &["create"], owned)?;
    for of in [pod, build] {
        let status = names.iter().map(|name| {
            let mut status = of["status"].clone();
            if of["kind"] == "ImageBuild" {
                status["platforms"][0]["pod"] = json!(name);
            }
            json!({
                "apiVersion": of["apiVersion"], "kind": of["kind"],
                "metadata": metadata(name), "status": status,
            })
        });
        write(bench, &STATUS_ONLY, status)?;
    }
    write(bench, &["apply", "--server-side", "--force-conflicts"], suspended(false))
}

fn write(bench: &Bench<'_>, how: &[&str], objects: impl Iterator<Item = Value>) -> Result<()> {
    let objects: Vec<Value> = objects.collect();
    for piece in objects.chunks(PIECE) {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": piece });
        let mut command = bench.cluster.kubectl(how.iter().copied());
        feed(command.args(["-f", "-"]).stdout(Stdio::null()), &list.to_string())?;
    }
    Ok(())
}

/// Starts the operator anew, and waits until the old one is gone.
fn restart(bench: &Bench<'_>) -> Result<()> {
    let before = process()?;
    for verb in ["restart", "status"] {
        let target = format!("deployment/{}", install::RELEASE);
        let mut rollout = bench.cluster.kubectl(["--namespace", install::NAMESPACE, "rollout", verb]);
        run(rollout.arg(&target).stdout(Stdio::null()))?;
    }
    while before.as_ref().is_some_and(|process| process.exists()) {
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// The operator's process, where the node is this machine.
fn process() -> Result<Option<PathBuf>> {
    for entry in fs::read_dir("/proc")? {
        let folder = entry?.path();
        let line = fs::read(folder.join("cmdline")).unwrap_or_default();
        if line.starts_with(b"/lapstrake-operator\0run\0") {
            return Ok(Some(folder));
        }
    }
    Ok(None)
}

/// Its memory, once it no longer changes.
fn read(bench: &Bench<'_>) -> Result<String> {
    if !bench.cluster.own {
        bail!("the operator's memory can be read only where the node is this machine: CLUSTER=own");
    }
    let mut last = String::new();
    loop {
        let process = process()?.context("no operator runs")?;
        let field = |file: &str, name: &str| -> Result<u64> {
            let text = fs::read_to_string(process.join(file))?;
            let line = text.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
            Ok(line.trim().trim_end_matches("kB").trim().parse()?)
        };
        let mib = |kib: u64| kib as f64 / 1024.0;
        let now = format!(
            "RSS {:.1} MiB, PSS {:.1} MiB, anonymous {:.1} MiB, peak {:.1} MiB",
            mib(field("status", "VmRSS:")?),
            mib(field("smaps_rollup", "Pss:")?),
            mib(field("status", "RssAnon:")?),
            mib(field("status", "VmHWM:")?),
        );
        if now == last {
            return Ok(now);
        }
        last = now;
        thread::sleep(Duration::from_secs(5));
    }
}
