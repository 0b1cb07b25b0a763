//! From `kubectl apply` to Ready on a real node, and where the time goes.

use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::timeline::{Mark, Seen, Timeline};
use super::{Bench, Times, load};
use crate::process::{feed, output, run};

/// Everything that is made here lies in it.
pub(super) const NAMESPACE: &str = "lapstrake-bench";
const RUNS: usize = 10;
const TRIVIAL: &str = "ARG BASE\nFROM ${BASE}\nRUN true\n";
/// Two stages that sleep, and one that nothing needs.
const SEED: &str = "\
ARG BASE
FROM ${BASE} AS one
RUN sleep 5 && echo one > /result
FROM ${BASE} AS two
RUN sleep 5 && echo two > /result
FROM ${BASE} AS unused
RUN sleep 60
FROM ${BASE}
COPY --from=one /result /one
COPY --from=two /result /two
";

/// A trivial build: a new ImageBuild in both sandboxes, one without a volume, and one built again.
pub(super) fn apply(bench: &Bench<'_>) -> Result<()> {
    in_namespace(bench, |timeline| {
        for (name, pod, cache) in [
            ("user-namespace", json!({ "sandbox": "UserNamespace" }), json!({})),
            ("baseline", json!({ "sandbox": "Baseline" }), json!({})),
            ("no-volume", json!({}), json!({ "emptyDir": {} })),
            ("again", json!({}), json!({})),
        ] {
            let mut split = Split::default();
            // The first one warms the cluster, and is not counted.
            for number in 0..=RUNS {
                let again = name == "again";
                let unique = if again { name.to_owned() } else { format!("{name}-{number}") };
                let mut build = manifest(bench, &unique, TRIVIAL);
                build["spec"]["pod"] = pod.clone();
                build["spec"]["cache"] = cache.clone();
                if again && number > 0 {
                    let asked = number.to_string();
                    timeline.again(name, &asked);
                    build["metadata"]["annotations"] = json!({ "lapstrake.dev/rebuild": asked });
                }
                let one = one(bench, timeline, &build)?;
                if number > 0 {
                    split.add(one);
                }
            }
            println!("\n-- {name} (load {})", load());
            split.print();
        }
        Ok(())
    })
}

/// Two stages of `sleep 5` side by side.
pub(super) fn seed(bench: &Bench<'_>) -> Result<()> {
    in_namespace(bench, |timeline| {
        let mut split = Split::default();
        for number in 0..3 {
            split.add(one(bench, timeline, &manifest(bench, &format!("seed-{number}"), SEED))?);
        }
        split.print();
        let over = split.total().saturating_sub(Duration::from_secs(5));
        println!("beyond the 5 s that each of them sleeps: {} ms", over.as_millis());
        Ok(())
    })
}

/// Does it in a namespace of its own, which is taken away at the end.
pub(super) fn in_namespace(bench: &Bench<'_>, body: impl FnOnce(&mut Timeline) -> Result<()>) -> Result<()> {
    let delete = || run(&mut bench.cluster.kubectl(["delete", "namespace", NAMESPACE, "--ignore-not-found"]));
    delete()?;
    run(&mut bench.cluster.kubectl(["create", "namespace", NAMESPACE]))?;
    let account = ["--namespace", NAMESPACE, "wait", "serviceaccount/default", "--for=create"];
    run(&mut bench.cluster.kubectl(account))?;
    let done = body(&mut Timeline::watch(&bench.cluster, NAMESPACE)?);
    delete()?;
    done
}

/// An ImageBuild of an inline Dockerfile.
pub(super) fn manifest(bench: &Bench<'_>, name: &str, dockerfile: &str) -> Value {
    json!({
        "apiVersion": "lapstrake.dev/v1alpha1",
        "kind": "ImageBuild",
        "metadata": { "name": name, "namespace": NAMESPACE },
        "spec": {
            "source": { "inline": {} },
            "dockerfile": { "inline": dockerfile },
            "args": [{ "name": "BASE", "value": format!("{}/busybox:1", bench.cluster.base) }],
            "output": { "image": format!("{}/bench/{name}", bench.cluster.registry) },
        },
    })
}

/// One build from apply to Ready: what passed, by name.
fn one(bench: &Bench<'_>, timeline: &mut Timeline, build: &Value) -> Result<Vec<(&'static str, Duration)>> {
    let name = build["metadata"]["name"].as_str().context("it has a name")?;
    let start = Timestamp::now();
    feed(
        bench.cluster.kubectl(["apply", "-f", "-"]).stdout(std::process::Stdio::null()),
        &build.to_string(),
    )?;
    let seen = timeline.ready(name)?;
    let mut log = bench.cluster.kubectl(["--namespace", NAMESPACE, "logs", "--timestamps"]);
    let log = output(log.arg(&seen.pod))?;
    let mut lines = log.lines().filter_map(|line| line.split(' ').next()?.parse::<Timestamp>().ok());
    let first = lines.next().context("the builder wrote a log")?;
    let last = lines.next_back().unwrap_or(first);
    Ok(parts(start, &seen, first, last))
}

fn parts(start: Timestamp, seen: &Seen, first: Timestamp, last: Timestamp) -> Vec<(&'static str, Duration)> {
    let at = |mark: Mark| seen.marks.get(&mark).copied().unwrap_or(start);
    let between = |from: Timestamp, to: Timestamp| to.duration_since(from).try_into().unwrap_or_default();
    let told = |name: &str| {
        let path = format!("/platforms/0/timings/{name}Milliseconds");
        Duration::from_millis(seen.status.pointer(&path).and_then(Value::as_u64).unwrap_or_default())
    };
    vec![
        (TOTAL, between(at(Mark::Created), at(Mark::Ready))),
        ("  ImageBuild -> its pod (operator)", between(at(Mark::Created), at(Mark::Pod))),
        ("  pod -> scheduled (scheduler, volume)", between(at(Mark::Pod), at(Mark::Scheduled))),
        ("  scheduled -> first line of the log (kubelet)", between(at(Mark::Scheduled), first)),
        ("  first -> last line of the log (builder)", between(first, last)),
        ("    source, as status tells", told("source")),
        ("    solve, as status tells", told("solve")),
        ("    push, as status tells", told("push")),
        ("  last line -> pod's status says so (kubelet)", between(last, at(Mark::Ended))),
        ("  pod's status -> Ready (operator)", between(at(Mark::Ended), at(Mark::Ready))),
        ("before: kubectl apply -> ImageBuild", between(start, at(Mark::Created))),
    ]
}

const TOTAL: &str = "ImageBuild -> Ready";

/// The parts of several builds.
#[derive(Debug, Default)]
struct Split(Vec<(&'static str, Times)>);

impl Split {
    fn add(&mut self, parts: Vec<(&'static str, Duration)>) {
        for (name, took) in parts {
            match self.0.iter_mut().find(|(known, _)| *known == name) {
                Some((_, times)) => times.0.push(took),
                None => self.0.push((name, Times(vec![took]))),
            }
        }
    }

    fn total(&self) -> Duration {
        self.0.iter().find(|(name, _)| *name == TOTAL).map(|(_, times)| times.median()).unwrap_or_default()
    }

    fn print(&self) {
        for (name, times) in &self.0 {
            println!("{name:48} {times}");
        }
    }
}
