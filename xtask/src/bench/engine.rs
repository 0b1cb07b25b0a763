//! The builder alone, on this machine, beside its peer.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::peer::Peer;
use super::{Bench, Times, ratio};
use crate::process::spelled;

/// How many steps stand in the long Dockerfile; the short one has one.
const STEPS: u32 = 40;
const RUNS: u32 = 7;
/// Files in the context of the rebuild.
const FILES: usize = 300;

/// What one more `RUN true` costs.
pub(super) fn steps(bench: &Bench<'_>) -> Result<()> {
    let peer = Peer::start(bench)?;
    let contexts = [context_of(bench, "long", STEPS)?, context_of(bench, "short", 1)?];
    let state = bench.folder("state")?;
    // The first ones pull the base image.
    for context in &contexts {
        timed(&mut ours(bench, &state, context)?)?;
        timed(&mut peer.build(context))?;
    }
    let mut times: [[Times; 2]; 2] = Default::default();
    let mut processor = [Duration::ZERO; 2];
    for _ in 0..RUNS {
        for (context, of) in contexts.iter().zip(0..) {
            let before = children_time()?;
            times[0][of].0.push(timed(ours(bench, &state, context)?.arg("--no-cache"))?);
            processor[of] += children_time()?.saturating_sub(before);
            times[1][of].0.push(timed(peer.build(context).arg("--no-cache"))?);
        }
    }
    let mut costs = [Duration::ZERO; 2];
    for ((name, [long, short]), cost) in ["lapstrake", "buildkit"].into_iter().zip(&times).zip(&mut costs) {
        *cost = long.median().saturating_sub(short.median()) / (STEPS - 1);
        println!("{name:10} {STEPS} steps {long}");
        println!("{name:10}  1 step  {short}");
        println!("{name:10} a step  {:8.2} ms", super::milliseconds(cost));
    }
    println!("a step of buildkit takes {} times as long", ratio(costs[0], costs[1]));
    // What does not depend on who else wants a core.
    let [long, short] = processor.map(|time| time / RUNS);
    let cost = long.saturating_sub(short) / (STEPS - 1);
    println!("lapstrake  a step  {:8.2} ms of a processor's time", super::milliseconds(&cost));
    Ok(())
}

/// What a build takes in which nothing has changed.
pub(super) fn rebuild(bench: &Bench<'_>) -> Result<()> {
    let peer = Peer::start(bench)?;
    let context = tree(bench)?;
    let state = bench.folder("state")?;
    let image = format!("{}/bench/rebuild", bench.cluster.registry);
    for push in [false, true] {
        let ours = || -> Result<Command> {
            let mut command = ours(bench, &state, &context)?;
            if push {
                command.args(["--push", "--tag", &format!("{image}:ours")]);
            }
            Ok(command)
        };
        let theirs = || {
            let mut command = peer.build(&context);
            if push {
                command.args(["--output", &format!("type=image,name={image}:theirs,push=true")]);
            }
            command
        };
        let first = [timed(&mut ours()?)?, timed(&mut theirs())?];
        let mut times: [Times; 2] = Default::default();
        for _ in 0..3 * RUNS {
            times[0].0.push(timed(&mut ours()?)?);
            times[1].0.push(timed(&mut theirs())?);
        }
        let with = if push { "with push" } else { "no output" };
        for ((name, again), first) in ["lapstrake", "buildkit"].into_iter().zip(&times).zip(first) {
            println!("{name:10} {with}: first {:8.1} ms, again {again}", super::milliseconds(&first));
        }
        println!("buildkit takes {} times as long", ratio(times[0].median(), times[1].median()));
    }
    Ok(())
}

/// `lapstrake-builder build`.
pub(super) fn ours(bench: &Bench<'_>, state: &Path, context: &Path) -> Result<Command> {
    let registries = bench.scratch.join("registries.json");
    fs::write(&registries, bench.cluster.registries.to_string())?;
    let mut command = bench.program("builder");
    command.args(["build", "--progress", "plain", "--root"]).arg(state);
    command.arg("--registries").arg(&registries).arg(context);
    Ok(command)
}

/// Time of a processor that was spent by our children that have ended, and by theirs.
pub(super) fn children_time() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("a name in parentheses")?;
    // The kernel tells hundredths of a second, whatever its own clock is.
    let times = fields.split_whitespace().skip(13).take(2).map(str::parse::<u64>);
    Ok(Duration::from_millis(10 * times.sum::<Result<u64, _>>()?))
}

/// The wall time of a command that must end well.
pub(super) fn timed(command: &mut Command) -> Result<Duration> {
    let start = Instant::now();
    let ended = command.stdin(Stdio::null()).output().with_context(|| spelled(command))?;
    let took = start.elapsed();
    if !ended.status.success() {
        bail!("{} failed:\n{}", spelled(command), String::from_utf8_lossy(&ended.stderr));
    }
    Ok(took)
}

fn context_of(bench: &Bench<'_>, name: &str, steps: u32) -> Result<PathBuf> {
    let folder = bench.folder(name)?;
    let mut dockerfile = format!("FROM {}/busybox:1\n", bench.cluster.base);
    for _ in 0..steps {
        dockerfile.push_str("RUN true\n");
    }
    fs::write(folder.join("Dockerfile"), dockerfile)?;
    Ok(folder)
}

/// A context of some folders of sources, and a Dockerfile of three stages and ten steps.
fn tree(bench: &Bench<'_>) -> Result<PathBuf> {
    let folder = bench.folder("tree")?;
    for number in 0..FILES {
        let place = folder.join(format!("src/module-{}", number % 12));
        fs::create_dir_all(&place)?;
        let mut text = String::new();
        for line in 0..100 {
            writeln!(text, "line {line} of file {number}")?;
        }
        fs::write(place.join(format!("file-{number}.txt")), text)?;
    }
    fs::write(folder.join("list"), "one\ntwo\n")?;
    let base = format!("{}/busybox:1", bench.cluster.base);
    let dockerfile = format!(
        "FROM {base} AS deps\nWORKDIR /deps\nCOPY list .\nRUN cat list > installed\n\
         FROM {base} AS build\nWORKDIR /app\nCOPY --from=deps /deps/installed .\nCOPY src src\n\
         RUN cat src/*/* | sha256sum > out\nRUN wc -c out > size\n\
         FROM {base}\nCOPY --from=build /app/out /app/size /\nRUN echo built > /note\nCMD [\"cat\", \"/out\"]\n"
    );
    fs::write(folder.join("Dockerfile"), dockerfile)?;
    Ok(folder)
}
