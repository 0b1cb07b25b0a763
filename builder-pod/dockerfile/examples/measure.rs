//! How long files take to be read and lowered; `cargo xtask bench frontend` runs it beside BuildKit's frontend.
//!
//! `cargo run --release -p lapstrake-dockerfile --example measure -- FILE` writes a file of 1,000 lines and 60 stages, and
//! a line for each run on it: `run NANOSECONDS`. `… --example measure -- --large BYTES` does the same once with each of
//! many texts that are much of one thing: `large NANOSECONDS PEAK-KIB TEXT`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use lapstrake_dockerfile::{Capabilities, Images, Options, ResolvedImage, parse, plan};
use lapstrake_oci::{Digest, ImageConfig};

#[path = "../tests/support/large.rs"]
mod large;

const STAGES: usize = 60;
const RUNS: usize = 200;

/// Stages that build on, copy from and mount one another, with arguments and variables.
fn text() -> String {
    let mut out = String::from("# syntax=docker/dockerfile:1\nARG VERSION=3.20\n");
    for stage in 0..STAGES {
        let base = if stage % 3 == 0 { "alpine:${VERSION}".to_owned() } else { format!("s{}", stage - 1) };
        let _ = write!(
            out,
            "\n# s{stage} does its part\nFROM {base} AS s{stage}\nARG VERSION\nENV STEP={stage} MODE=fast\nLABEL stage=s{stage}\n"
        );
        let _ = write!(out, "WORKDIR /src/$STEP\nCOPY --chown=1000:1000 go.mod go.sum ./\n");
        let _ = write!(
            out,
            "RUN --mount=type=cache,target=/root/.cache make -j4 dep-$STEP && \\\n    echo done\n"
        );
        let _ = write!(out, "COPY . .\nRUN <<EOF\nset -e\nmake all\nmake install\nEOF\n");
        if stage > 0 {
            let _ = writeln!(out, "COPY --from=s{} /src/out /in/", stage - 1);
        }
    }
    out
}

/// Reads and lowers a text; the time, and what came of it.
fn lower(text: &str, options: &Options) -> (Duration, Option<(usize, usize)>) {
    let began = Instant::now();
    let parsed = parse("Dockerfile", text);
    let Ok(plan) = plan(&parsed, options) else { return (began.elapsed(), None) };
    let images = plan.images_assumed(Images::new(), |request| {
        let mut config = ImageConfig::of_platform(&request.key.platform);
        config.config.env = vec!["PATH=/usr/bin:/bin".to_owned()];
        config.rootfs.diff_ids = vec![Digest::of(b"")];
        ResolvedImage { digest: None, config, instead: None }
    });
    let lowered = plan.lower(&images).ok().map(|lowered| (lowered.steps, lowered.definition.def.len()));
    (began.elapsed(), lowered)
}

fn main() -> io::Result<()> {
    let options = Options { capabilities: Capabilities::ALL, ..Options::default() };
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut out = String::new();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [file] => {
            let text = text();
            std::fs::write(file, &text)?;
            for _ in 0..RUNS {
                let (time, lowered) = lower(&text, &options);
                let (steps, vertices) = lowered.ok_or_else(|| io::Error::other("the text is refused"))?;
                let _ = writeln!(out, "run {} {steps} steps, {vertices} vertices", time.as_nanos());
            }
        }
        ["--large", bytes] => {
            let bytes = bytes.parse().map_err(io::Error::other)?;
            for (name, text) in large::texts(bytes) {
                let (time, lowered) = lower(&text, &options);
                let word = if lowered.is_some() { "done" } else { "refused" };
                let _ = writeln!(out, "large {} {} {word}: {name}", time.as_nanos(), peak());
            }
        }
        _ => return Err(io::Error::other("usage: measure FILE | measure --large BYTES")),
    }
    io::stdout().write_all(out.as_bytes())
}

/// Most memory that this process had so far, KiB.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let fields: BTreeMap<_, _> = status.lines().filter_map(|line| line.split_once(':')).collect();
    fields.get("VmHWM").map_or("0", |text| text.trim().trim_end_matches(" kB")).to_owned()
}
