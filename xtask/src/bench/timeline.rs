//! Watches ImageBuilds and their pods, and notes when what happened.

use std::collections::BTreeMap;
use std::io::BufReader;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde_json::Value;

use crate::cluster::Cluster;

/// What happens to a build, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mark {
    /// The ImageBuild is there.
    Created,
    /// Its pod is there.
    Pod,
    /// The pod has a node.
    Scheduled,
    /// The pod's status says that the builder has ended.
    Ended,
    /// The ImageBuild is Ready.
    Ready,
}

/// One build as it was seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// When each thing was first seen.
    pub(super) marks: BTreeMap<Mark, Timestamp>,
    /// Status of the ImageBuild.
    pub(super) status: Value,
    /// Name of its pod.
    pub(super) pod: String,
    /// Value of the annotation that asks for the run that is watched; empty for the first.
    asked: String,
    /// Pods of runs before.
    old: Vec<String>,
}

/// Two running watches.
#[derive(Debug)]
pub(super) struct Timeline {
    watches: Vec<Child>,
    events: Receiver<(Timestamp, Value)>,
    builds: BTreeMap<String, Seen>,
}

impl Timeline {
    /// Starts to watch a namespace.
    pub(super) fn watch(cluster: &Cluster, namespace: &str) -> Result<Self> {
        let (sender, events) = mpsc::channel();
        let watches = ["imagebuilds", "pods"]
            .map(|kind| watch(cluster, namespace, kind, sender.clone()))
            .into_iter()
            .collect::<Result<_>>()?;
        Ok(Self { watches, events, builds: BTreeMap::new() })
    }

    /// What happens from now on is another run, asked for by the annotation `lapstrake.dev/rebuild`.
    pub(super) fn again(&mut self, name: &str, asked: &str) {
        let Seen { pod, mut old, .. } = self.builds.remove(name).unwrap_or_default();
        old.push(pod);
        self.builds.insert(name.to_owned(), Seen { asked: asked.to_owned(), old, ..Seen::default() });
    }

    /// Waits until the ImageBuild and its pod have ended well.
    pub(super) fn ready(&mut self, name: &str) -> Result<Seen> {
        loop {
            if let Some(seen) = self.builds.get(name)
                && seen.marks.contains_key(&Mark::Ready)
                && seen.marks.contains_key(&Mark::Ended)
            {
                return Ok(seen.clone());
            }
            let (at, object) = self.events.recv().context("both watches have ended")?;
            self.note(at, &object)?;
        }
    }

    fn note(&mut self, at: Timestamp, object: &Value) -> Result<()> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let build = text("/kind") == "ImageBuild";
        let name = text(if build { "/metadata/name" } else { "/metadata/labels/lapstrake.dev~1build" });
        let seen = self.builds.entry(name).or_default();
        let marks = if build {
            if text("/metadata/annotations/lapstrake.dev~1rebuild") != seen.asked {
                return Ok(());
            }
            if condition(object, "Stalled") == "True" {
                bail!("{} failed: {}", text("/metadata/name"), object["status"]);
            }
            seen.status = object["status"].clone();
            let handled = text("/status/lastHandledRebuild") == seen.asked;
            vec![(Mark::Created, true), (Mark::Ready, handled && condition(object, "Ready") == "True")]
        } else {
            let pod = text("/metadata/name");
            if seen.old.contains(&pod) {
                return Ok(());
            }
            seen.pod = pod;
            let ended = object.pointer("/status/containerStatuses/0/state/terminated").is_some();
            let scheduled = condition(object, "PodScheduled") == "True";
            vec![(Mark::Pod, true), (Mark::Scheduled, scheduled), (Mark::Ended, ended)]
        };
        for (mark, _) in marks.into_iter().filter(|(_, holds)| *holds) {
            seen.marks.entry(mark).or_insert(at);
        }
        Ok(())
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        for watch in &mut self.watches {
            watch.kill().ok(); // It may have ended by itself,
            watch.wait().ok(); // and how it did is of no interest.
        }
    }
}

/// Status of a condition, or an empty text.
pub(super) fn condition(object: &Value, name: &str) -> String {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == name);
    found.and_then(|condition| condition["status"].as_str()).unwrap_or_default().to_owned()
}

fn watch(
    cluster: &Cluster,
    namespace: &str,
    kind: &str,
    sender: Sender<(Timestamp, Value)>,
) -> Result<Child> {
    let mut command = cluster.kubectl(["--namespace", namespace, "get", kind, "--watch", "--output", "json"]);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot start kubectl")?;
    let stdout = child.stdout.take().context("its output is a pipe")?;
    thread::spawn(move || {
        let objects = serde_json::Deserializer::from_reader(BufReader::new(stdout)).into_iter::<Value>();
        for object in objects.map_while(Result::ok) {
            if sender.send((Timestamp::now(), object)).is_err() {
                break;
            }
        }
    });
    Ok(child)
}
