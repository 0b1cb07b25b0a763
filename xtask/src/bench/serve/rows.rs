//! The rows.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::bail;

use super::super::engine::timed;
use super::contexts::{COLD_RUNS, Contexts};
use super::daemon::Daemon;
use super::{Measured, Row};

/// Clients that build at the same time.
const CLIENTS: usize = 50;

pub(super) const ALL: &[Row] = &[
    Row { name: "steps40", runs: 5, measure: |d, c, run| anew(d, c, "steps40", run) },
    Row { name: "fan16", runs: 5, measure: |d, c, run| anew(d, c, "fan16", run) },
    Row { name: "diamond", runs: 5, measure: |d, c, run| anew(d, c, "diamond", run) },
    Row { name: "lazy-context", runs: COLD_RUNS, measure: lazy },
    Row { name: "files20000-cold", runs: COLD_RUNS, measure: small_cold },
    Row { name: "files20000-unchanged", runs: 7, measure: |d, c, run| again(d, c, "small-0", run) },
    Row { name: "files20000-one-changed", runs: 5, measure: small_changed },
    Row { name: "layer200-export-push", runs: 3, measure: layer },
    Row { name: "apt-install", runs: 3, measure: |d, c, run| anew(d, c, "apt", run) },
    Row { name: "rebuild-unchanged", runs: 21, measure: |d, c, run| again(d, c, "tree", run) },
    Row { name: "rebuild-50-at-once", runs: 5, measure: at_once },
    Row { name: "pull20", runs: COLD_RUNS, measure: pull },
];

/// All steps are run; what the build stands on is there.
fn anew(daemon: &Daemon, contexts: &Contexts, name: &str, run: usize) -> Measured {
    let context = contexts.of(name);
    if run == 0 {
        timed(&mut daemon.build(&context))?;
    }
    Ok((timed(daemon.build(&context).arg("--no-cache"))?, None))
}

/// Nothing has changed.
fn again(daemon: &Daemon, contexts: &Contexts, name: &str, run: usize) -> Measured {
    let context = contexts.of(name);
    if run == 0 {
        timed(&mut daemon.build(&context))?;
    }
    Ok((timed(&mut daemon.build(&context))?, None))
}

fn lazy(daemon: &Daemon, contexts: &Contexts, run: usize) -> Measured {
    let took = timed(&mut daemon.counted_build(&contexts.of(&format!("lazy-{run}"))))?;
    Ok((took, Some(format!("{:.2} MiB sent", daemon.sent() as f64 / 1024.0 / 1024.0))))
}

fn small_cold(daemon: &Daemon, contexts: &Contexts, run: usize) -> Measured {
    Ok((timed(&mut daemon.build(&contexts.of(&format!("small-{run}"))))?, None))
}

fn small_changed(daemon: &Daemon, contexts: &Contexts, run: usize) -> Measured {
    let file = contexts.of("small-0").join("files/7/777");
    std::fs::write(file, format!("changed for {} in run {run}", daemon.name()))?;
    Ok((timed(&mut daemon.build(&contexts.of("small-0")))?, None))
}

/// A layer that is there as files, compressed and pushed.
fn layer(daemon: &Daemon, contexts: &Contexts, run: usize) -> Measured {
    let build = || {
        let mut build = daemon.build(&contexts.of("layer"));
        build.arg("--opt").arg(format!("build-arg:RUN={}-{run}", daemon.name()));
        build
    };
    timed(&mut build())?;
    let name = format!("{}/{}/layer:{run}", contexts.registry, daemon.name());
    Ok((timed(build().args(["--output", &format!("type=image,name={name},push=true")]))?, None))
}

fn at_once(daemon: &Daemon, contexts: &Contexts, _: usize) -> Measured {
    let context = contexts.of("tree");
    timed(&mut daemon.build(&context))?;
    let start = Instant::now();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut build: Command = daemon.build(&context);
        clients.push(build.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    }
    for mut client in clients {
        if !client.wait()?.success() {
            bail!("one of {CLIENTS} clients failed");
        }
    }
    Ok((start.elapsed(), None))
}

fn pull(daemon: &Daemon, contexts: &Contexts, run: usize) -> Measured {
    Ok((timed(&mut daemon.build(&contexts.of(&format!("pull20-{run}"))))?, None))
}
