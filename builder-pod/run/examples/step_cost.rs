//! What a step itself costs: runs a program that does nothing, again and again.
//!
//! `step_cost ROOTFS STATE [COUNT]`, as root; ROOTFS has `/bin/true`. Prints the median and the
//! slowest in milliseconds, then what COUNT of them take side by side.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use lapstrake_run::sandbox::{self, Mode};
use lapstrake_run::{Executor, Network, Rootfs, StepSpec};
use tokio_util::sync::CancellationToken;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    lapstrake_run::helper_main();
    sandbox::enter(Mode::Auto)?;
    let arguments: Vec<String> = std::env::args().collect();
    let [rootfs, state] = [1, 2].map(|n| arguments.get(n).map(PathBuf::from));
    let (rootfs, state) = rootfs.zip(state).ok_or("usage: step_cost ROOTFS STATE [COUNT]")?;
    let count = arguments.get(3).map_or(Ok(40), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for network in [Network::Host, Network::None] {
        let times = runtime.block_on(measure(&rootfs, &state, network, count))?;
        let [median, slowest] = [times[times.len() / 2], times[times.len() - 1]];
        writeln!(
            std::io::stdout(),
            "{network:?}: median {median:.2} ms, slowest {slowest:.2} ms of {count}"
        )?;
    }
    let (total, left) = runtime.block_on(all_at_once(&rootfs, &state, count))?;
    writeln!(std::io::stdout(), "{count} at once: {total:.2} ms, {left} descriptors left open")?;
    Ok(())
}

fn spec(rootfs: Rootfs, network: Network) -> StepSpec {
    StepSpec { network, ..StepSpec::new(vec!["/bin/true".to_owned()], rootfs) }
}

fn fresh(state: &Path, name: &str, lowers: &[PathBuf]) -> std::io::Result<Rootfs> {
    let (upper, work) = (state.join(name).join("upper"), state.join(name).join("work"));
    std::fs::create_dir_all(&upper)?;
    std::fs::create_dir_all(&work)?;
    Ok(Rootfs { lowers_top_first: lowers.to_vec(), upper: Some(upper), work: Some(work) })
}

fn open_descriptors() -> std::io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/fd")?.count())
}

async fn all_at_once(
    rootfs: &Path,
    state: &Path,
    count: usize,
) -> Result<(f64, usize), Box<dyn std::error::Error>> {
    let executor = Arc::new(Executor::new(&state.join("run"))?);
    let before = open_descriptors()?;
    let start = Instant::now();
    let mut steps = tokio::task::JoinSet::new();
    for number in 0..count {
        let spec = spec(fresh(state, &format!("parallel-{number}"), &[rootfs.to_owned()])?, Network::Host);
        let executor = Arc::clone(&executor);
        steps.spawn(async move { executor.run(&spec, &mut |_, _| {}, &CancellationToken::new()).await });
    }
    while let Some(exit) = steps.join_next().await {
        if !exit??.success() {
            return Err("a step failed".into());
        }
    }
    Ok((start.elapsed().as_secs_f64() * 1000.0, open_descriptors()?.saturating_sub(before)))
}

async fn measure(
    rootfs: &Path,
    state: &Path,
    network: Network,
    count: usize,
) -> Result<Vec<f64>, Box<dyn std::error::Error>> {
    let executor = Executor::new(&state.join("run"))?;
    let mut times = Vec::with_capacity(count);
    let mut lowers = vec![rootfs.to_owned()];
    for number in 0..count {
        let place = fresh(state, &format!("{network:?}-{number}"), &lowers)?;
        let upper = place.upper.clone();
        let spec = spec(place, network);
        let start = Instant::now();
        let exit = executor.run(&spec, &mut |_, _| {}, &CancellationToken::new()).await?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        if !exit.success() {
            return Err(format!("the step ended with {}", exit.code).into());
        }
        // As in a build: each step stands on the one before.
        lowers.splice(0..0, upper);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}
