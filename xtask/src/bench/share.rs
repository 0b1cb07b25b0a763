//! A cache of many layers, written to a registry and read from it by one that has nothing, beside the peer.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::engine::{ours, timed};
use super::peer::Peer;
use super::{Bench, Times, ratio};
use crate::process::output;

/// Layers of the result.
const LAYERS: u32 = 200;
const RUNS: u32 = 3;
/// Bytes of one layer that do not compress well.
const LAYER_KIB: u32 = 64;

/// What it takes to write a cache of what was built already, to build with it where nothing is, and to have the files.
pub(super) fn share(bench: &Bench<'_>) -> Result<()> {
    let peer = Peer::start(bench)?;
    let context = context(bench)?;
    let state = bench.folder("share-state")?;
    timed(&mut ours(bench, &state, &context)?)?;
    timed(&mut peer.build(&context))?;
    let name = |who: &str| format!("{}/bench/cache:{who}", bench.cluster.registry);
    let mut times: [[Times; 4]; 2] = Default::default();
    for run in 0..RUNS {
        let tag = |who: &str| name(&format!("{who}-{}-{run}", std::process::id()));
        let (own, theirs) = (tag("lapstrake"), tag("buildkit"));
        let to = |name: &str| format!("type=registry,ref={name},mode=max");
        times[0][0].0.push(timed(&mut ours(bench, &state, &context)?)?);
        times[1][0].0.push(timed(&mut peer.build(&context))?);
        times[0][1].0.push(timed(ours(bench, &state, &context)?.arg("--cache-to").arg(to(&own)))?);
        times[1][1].0.push(timed(peer.build(&context).arg("--export-cache").arg(to(&theirs)))?);
        // Each reads its own, from nothing.
        for (at, files) in [(2, false), (3, true)] {
            let empty = bench.folder(&format!("share-empty-{run}-{at}"))?;
            let (ours_at, peers_at) = (empty.join("ours"), empty.join("peers"));
            let mut build = ours(bench, &empty.join("state"), &context)?;
            build.arg("--cache-from").arg(&own);
            if files {
                build.arg("-o").arg(&ours_at);
            }
            times[0][at].0.push(timed(&mut build)?);
            output(peer.control().args(["prune", "--all"]))?;
            let mut build = peer.build(&context);
            build.arg("--import-cache").arg(format!("type=registry,ref={theirs}"));
            if files {
                build.arg("--output").arg(format!("type=local,dest={}", peers_at.display()));
            }
            times[1][at].0.push(timed(&mut build)?);
            fs::remove_dir_all(&empty).with_context(|| empty.display().to_string())?;
            // The peer has it all again, as for the next export it must.
            timed(&mut peer.build(&context))?;
        }
        if run == 0 {
            for (who, name) in [("lapstrake", &own), ("buildkit", &theirs)] {
                let (layers, bytes) = size(bench, name)?;
                println!("{who:10} {layers} layers, {bytes} bytes in the registry");
            }
        }
    }
    let what = ["rebuild", "with export", "import", "import, files"];
    for (who, of) in ["lapstrake", "buildkit"].into_iter().zip(&times) {
        for (what, times) in what.iter().zip(of) {
            println!("{who:10} {what:14} {times}");
        }
    }
    for (what, (ours, theirs)) in what.iter().zip(times[0].iter().zip(&times[1])) {
        println!("{what}: buildkit takes {} times as long", ratio(ours.median(), theirs.median()));
    }
    Ok(())
}

fn context(bench: &Bench<'_>) -> Result<PathBuf> {
    let folder = bench.folder("share")?;
    let mut dockerfile = format!("FROM {}/busybox:1\n", bench.cluster.base);
    for layer in 0..LAYERS {
        writeln!(dockerfile, "RUN head -c {LAYER_KIB}k /dev/urandom >/layer-{layer}")?;
    }
    fs::write(folder.join("Dockerfile"), dockerfile)?;
    Ok(folder)
}

/// Layers and bytes of a cache: manifest, config and layers.
fn size(bench: &Bench<'_>, name: &str) -> Result<(usize, u64)> {
    let (repository, tag) = name.rsplit_once(':').context("a name with a tag")?;
    let (host, path) = repository.split_once('/').context("a name with a registry")?;
    let url = format!("http://{host}/v2/{path}/manifests/{tag}");
    let accept = "Accept: application/vnd.oci.image.manifest.v1+json";
    let text =
        output(Command::new("curl").args(["-sSf", "-H", accept, &url]).current_dir(bench.root as &Path))?;
    let manifest: Value = serde_json::from_str(&text)?;
    let size = |blob: &Value| blob["size"].as_u64().unwrap_or_default();
    let layers = manifest["layers"].as_array().map_or(&[][..], Vec::as_slice);
    let bytes = layers.iter().map(size).sum::<u64>() + size(&manifest["config"]) + text.len() as u64;
    Ok((layers.len(), bytes))
}
