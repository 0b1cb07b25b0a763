//! How long a large file takes: 1,000 lines of 60 stages, read and lowered.
//! `cargo run --release -p lapstrake-dockerfile --example measure`

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Instant;

use lapstrake_dockerfile::{Capabilities, Images, Options, ResolvedImage, parse, plan};
use lapstrake_oci::{Digest, ImageConfig};

const STAGES: usize = 60;
const RUNS: usize = 50;

/// Stages that build on, copy from and mount one another, with arguments and variables.
fn text() -> String {
    let mut out = String::from("# syntax=docker/dockerfile:1\nARG VERSION=3.20\n");
    for stage in 0..STAGES {
        let base = if stage % 3 == 0 { "alpine:${VERSION}".to_owned() } else { format!("s{}", stage - 1) };
        let _ = write!(
            out,
            "\n# s{stage} does its part\nFROM {base} AS s{stage}\nARG VERSION\nENV STEP={stage} MODE=fast\n"
        );
        let _ = write!(out, "WORKDIR /src/$STEP\nCOPY --chown=1000:1000 go.mod go.sum ./\n");
        let _ = write!(
            out,
            "RUN --mount=type=cache,target=/root/.cache make -j4 dep-$STEP && \\\n    echo done\n"
        );
        let _ = write!(out, "COPY . .\nRUN <<EOF\nset -e\nmake all\nEOF\n");
        if stage > 0 {
            let _ = writeln!(out, "COPY --from=s{} /src/out /in/", stage - 1);
        }
    }
    out
}

fn main() -> std::io::Result<()> {
    let text = text();
    let options = Options { capabilities: Capabilities::ALL, ..Options::default() };
    let mut times = Vec::new();
    let mut steps = 0;
    for _ in 0..RUNS {
        let began = Instant::now();
        let parsed = parse("Dockerfile", &text);
        let Ok(plan) = plan(&parsed, &options) else { continue };
        let mut images = Images::new();
        for request in plan.images_needed(&images) {
            let mut config = ImageConfig::of_platform(&request.key.platform);
            config.rootfs.diff_ids = vec![Digest::of(b"")];
            images.insert(request.key, ResolvedImage { digest: None, config });
        }
        if let Ok(lowered) = plan.lower(&images) {
            steps = lowered.steps;
            times.push(began.elapsed());
        }
    }
    times.sort();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    let lines = text.lines().count();
    let line = format!(
        "{lines} lines, {STAGES} stages, {steps} operations: {middle:?} (median of {})\n",
        times.len()
    );
    std::io::stdout().write_all(line.as_bytes())
}
