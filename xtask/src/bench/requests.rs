//! What the operator asks of the API server: for a build, and when nothing happens.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::apply::{in_namespace, manifest};
use super::{Bench, load};
use crate::install;
use crate::process::{feed, output};

/// Builds that are counted together.
const BUILDS: u64 = 6;
/// How long nothing is done.
const REST: Duration = Duration::from_secs(30);
/// How often that is tried until nobody else builds either.
const RESTS: u32 = 6;
const TRIVIAL: &str = "ARG BASE\nFROM ${BASE}\nRUN true\n";
/// Verbs that change nothing.
const READS: [&str; 3] = ["get", "list", "watch"];

/// Requests by verb and resource.
type Requests = BTreeMap<(String, String), u64>;

/// Counts the operator's requests while it builds and while it rests.
pub(super) fn requests(bench: &Bench<'_>) -> Result<()> {
    in_namespace(bench, |timeline| {
        let mut build = |name: &str| -> Result<()> {
            let build = manifest(bench, name, TRIVIAL);
            let mut apply = bench.cluster.kubectl(["apply", "-f", "-"]);
            feed(apply.stdout(std::process::Stdio::null()), &build.to_string())?;
            timeline.ready(name).map(drop)
        };
        // What is asked once, as for a namespace's labels, is no part of a build.
        build("first")?;
        let before = read(bench)?;
        for number in 0..BUILDS {
            build(&format!("build-{number}"))?;
        }
        let after = read(bench)?;
        println!("a new ImageBuild, from apply to Ready ({BUILDS} one after another):");
        print(&difference(&before, &after)?, BUILDS);

        for left in (0..RESTS).rev() {
            let before = read(bench)?;
            thread::sleep(REST);
            let after = read(bench)?;
            let asked = difference(&before, &after)?;
            // Somebody else may use the cluster.
            let others = before.under_way + after.under_way > 0
                || asked.keys().any(|(verb, resource)| verb == "create" && resource == "pods");
            if others && left > 0 {
                continue;
            }
            println!("at rest, with {} finished ImageBuilds of ours, in {} s:", BUILDS + 1, REST.as_secs());
            print(&asked, 1);
            if others {
                println!("not at rest: others built at the same time");
            }
            break;
        }
        println!("(load {})", load());
        Ok(())
    })
}

/// What the operator told at one time.
struct Told {
    /// Name of its pod, whose counters begin with it.
    pod: String,
    requests: Requests,
    /// ImageBuilds that are under way.
    under_way: u64,
}

/// Asks the operator that leads.
fn read(bench: &Bench<'_>) -> Result<Told> {
    let selector = format!("app.kubernetes.io/instance={}", install::RELEASE);
    let mut pods = bench.cluster.kubectl(["--namespace", install::NAMESPACE, "get", "pods"]);
    pods.args(["--selector", &selector, "--field-selector", "status.phase=Running"]);
    let pods = output(pods.args(["--output", "jsonpath={.items[*].metadata.name}"]))?;
    for pod in pods.split_whitespace() {
        let path = format!("/api/v1/namespaces/{}/pods/{pod}:8080/proxy/metrics", install::NAMESPACE);
        let text = output(&mut bench.cluster.kubectl(["get", "--raw", &path]))?;
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        if value("lapstrake_leader") == Some(1) {
            let under_way = value("lapstrake_imagebuilds{ready=\"Unknown\"}").unwrap_or_default();
            return Ok(Told { pod: pod.to_owned(), requests: parse(&text), under_way });
        }
    }
    bail!("no operator leads")
}

fn parse(text: &str) -> Requests {
    let counts = text.lines().filter_map(|line| {
        let (labels, count) = line.strip_prefix("lapstrake_api_requests_total{")?.split_once("} ")?;
        let label = |name: &str| {
            let rest = labels.split(',').find_map(|pair| pair.strip_prefix(name))?;
            Some(rest.trim_matches(['=', '"']).to_owned())
        };
        Some(((label("verb")?, label("resource")?), count.parse().ok()?))
    });
    counts.collect()
}

fn difference(before: &Told, after: &Told) -> Result<Requests> {
    ensure!(before.pod == after.pod, "another operator leads than before: {} and {}", before.pod, after.pod);
    let before = &before.requests;
    let more = after.requests.iter().map(|(key, count)| {
        let more = count.saturating_sub(before.get(key).copied().unwrap_or_default());
        (key.clone(), more)
    });
    Ok(more.filter(|(_, count)| *count > 0).collect())
}

fn print(requests: &Requests, of: u64) {
    let each = |count: u64| count as f64 / of as f64;
    for ((verb, resource), count) in requests {
        println!("  {verb:7} {resource:24} {:6.1}", each(*count));
    }
    let writes = requests.iter().filter(|((verb, _), _)| !READS.contains(&verb.as_str()));
    let (leases, others): (Vec<_>, Vec<_>) = writes.partition(|((_, resource), _)| resource == "leases");
    let sum = |of: &[(&(String, String), &u64)]| of.iter().map(|(_, count)| **count).sum::<u64>();
    let all = requests.values().sum();
    println!(
        "  in all {:.1}; writes {:.1}, and {:.1} of the Lease of who leads",
        each(all),
        each(sum(&others)),
        each(sum(&leases))
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_in_between_is_told_by_verb_and_resource() {
        let text = "# HELP lapstrake_api_requests Requests.\n\
                    lapstrake_api_requests_total{verb=\"patch\",resource=\"imagebuilds/status\"} 7\n\
                    lapstrake_api_requests_total{verb=\"list\",resource=\"pods\"} 1\n\
                    lapstrake_leader 1\n";
        let told = |pod: &str, requests| Told { pod: pod.to_owned(), requests, under_way: 0 };
        let after = told("one", parse(text));
        let key = |verb: &str, resource: &str| (verb.to_owned(), resource.to_owned());
        assert_eq!(after.requests.len(), 2);
        let before = Requests::from([(key("patch", "imagebuilds/status"), 3), (key("list", "pods"), 1)]);
        let more = difference(&told("one", before.clone()), &after).unwrap();
        assert_eq!(more, Requests::from([(key("patch", "imagebuilds/status"), 4)]));
        assert!(difference(&told("another", before), &after).is_err(), "its counters began elsewhere");
    }
}
