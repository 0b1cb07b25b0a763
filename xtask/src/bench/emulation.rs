//! What a step of another architecture takes, beside the same step on the machine's own.

use std::fs;
use std::time::Duration;

use anyhow::Result;

use super::engine::{ours, timed};
use super::{Bench, Times, milliseconds, ratio};

const RUNS: usize = 5;
/// Steps that do nothing, to tell what each costs.
const STEPS: u32 = 20;

/// What is measured: a name, and the instructions.
fn work() -> Vec<(&'static str, String)> {
    let shell = "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done";
    vec![
        ("one step", "RUN true\n".to_owned()),
        ("many steps", "RUN true\n".repeat(STEPS as usize)),
        ("a loop of the shell", format!("RUN {shell}\n")),
        ("packing 32 MiB", "RUN head -c 33554432 /dev/zero | tr '\\0' x | gzip -1 >/dev/null\n".to_owned()),
        ("200 processes", "RUN for i in $(seq 200); do /bin/true; done\n".to_owned()),
    ]
}

/// The same Dockerfile for this machine's platform and for arm64, emulated.
pub(super) fn emulation(bench: &Bench<'_>) -> Result<()> {
    let base = format!("{}/debian-multi:bookworm", bench.cluster.base);
    bench.cluster.base_images(&["debian-multi"])?;
    let state = bench.folder("emulation-state")?;
    let mut steps = [[Duration::ZERO; 2]; 2];
    for (at, (name, instructions)) in work().into_iter().enumerate() {
        let context = bench.folder(&format!("emulation-{at}"))?;
        fs::write(context.join("Dockerfile"), format!("FROM {base}\n{instructions}"))?;
        let mut times: [Times; 2] = Default::default();
        for run in 0..=RUNS {
            for (platform, times) in [None, Some("linux/arm64")].iter().zip(&mut times) {
                let mut command = ours(bench, &state, &context)?;
                command.arg("--no-cache");
                command.args(platform.iter().flat_map(|platform| ["--platform", platform]));
                let took = timed(&mut command)?;
                // The first one pulls the base image.
                if run > 0 {
                    times.0.push(took);
                }
            }
        }
        let [native, emulated] = times;
        println!("{name:20} native   {native}");
        println!("{name:20} emulated {emulated}");
        println!("{name:20} {} times as long", ratio(native.median(), emulated.median()));
        if let Some(of) = steps.get_mut(at) {
            *of = [native.median(), emulated.median()];
        }
    }
    let [one, many] = steps;
    for ((name, one), many) in ["native", "emulated"].iter().zip(one).zip(many) {
        let cost = many.saturating_sub(one) / (STEPS - 1);
        println!("a step that does nothing, {name}: {:.2} ms", milliseconds(&cost));
    }
    Ok(())
}
