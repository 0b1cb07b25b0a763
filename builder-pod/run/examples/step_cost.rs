//! What a step itself costs: runs a program that does nothing, again and again.
//!
//! `step_cost ROOTFS STATE [COUNT]`, as root; ROOTFS has `/bin/true`. Prints the median and the
//! slowest in milliseconds.

use std::io::Write;
use std::path::PathBuf;
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
    Ok(())
}

async fn measure(
    rootfs: &std::path::Path,
    state: &std::path::Path,
    network: Network,
    count: usize,
) -> Result<Vec<f64>, Box<dyn std::error::Error>> {
    let executor = Executor::new(&state.join("run"))?;
    let mut times = Vec::with_capacity(count);
    let mut lowers = vec![rootfs.to_owned()];
    for number in 0..count {
        let step = state.join(format!("{network:?}-{number}"));
        let (upper, work) = (step.join("upper"), step.join("work"));
        std::fs::create_dir_all(&upper)?;
        std::fs::create_dir_all(&work)?;
        let spec = StepSpec {
            args: vec!["/bin/true".to_owned()],
            env: Vec::new(),
            cwd: "/".to_owned(),
            user: String::new(),
            rootfs: Rootfs { lowers_top_first: lowers.clone(), upper: Some(upper.clone()), work: Some(work) },
            mounts: Vec::new(),
            network,
            hostname: String::new(),
            extra_hosts: Vec::new(),
            rlimits: Vec::new(),
            shm_bytes: None,
        };
        let start = Instant::now();
        let exit = executor.run(&spec, &mut |_, _| {}, &CancellationToken::new()).await?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        if !exit.success() {
            return Err(format!("the step ended with {}", exit.code).into());
        }
        // As in a build: each step stands on the one before.
        lowers.insert(0, upper);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}
