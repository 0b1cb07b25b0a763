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
/// The peer takes minutes for one.
const PEERS_RUNS: u32 = 1;
/// Bytes of one layer that do not compress well.
const LAYER_KIB: u32 = 64;

/// What it takes to write a cache of what was built already, to build with it where nothing is, and to have the files.
pub(super) fn share(bench: &Bench<'_>) -> Result<()> {
    let peer = Peer::wanted(bench)?;
    let context = context(bench)?;
    let mut times: [[Times; 4]; 2] = Default::default();
    let name = |who: &str, run: u32| {
        format!("{}/bench/cache:{who}-{}-{run}", bench.cluster.registry, std::process::id())
    };
    let state = bench.folder("share-state")?;
    timed(&mut ours(bench, &state, &context)?)?;
    for run in 0..RUNS {
        share_ours(bench, &state, &context, &name("lapstrake", run), &mut times[0])?;
        if let Some(peer) = peer.as_ref().filter(|_| run < PEERS_RUNS) {
            share_peers(bench, peer, &context, &name("buildkit", run), &mut times[1])?;
        }
    }
    let who: &[&str] = if peer.is_some() { &["lapstrake", "buildkit"] } else { &["lapstrake"] };
    for who in who {
        let (layers, bytes) = size(bench, &name(who, 0))?;
        println!("{who:10} {layers} layers, {bytes} bytes in the registry");
    }
    let what = ["rebuild", "with export", "import", "import, files"];
    for (who, of) in who.iter().zip(&times) {
        for (what, times) in what.iter().zip(of) {
            println!("{who:10} {what:14} {times}");
        }
    }
    if peer.is_none() {
        return Ok(());
    }
    for (what, (ours, theirs)) in what.iter().zip(times[0].iter().zip(&times[1])) {
        println!("{what}: buildkit takes {} times as long", ratio(ours.median(), theirs.median()));
    }
    Ok(())
}

fn share_ours(
    bench: &Bench<'_>,
    state: &Path,
    context: &Path,
    name: &str,
    times: &mut [Times; 4],
) -> Result<()> {
    let [rebuild, export, imports @ ..] = times;
    rebuild.0.push(timed(&mut ours(bench, state, context)?)?);
    let to = format!("type=registry,ref={name},mode=max");
    export.0.push(timed(ours(bench, state, context)?.args(["--cache-to", &to]))?);
    for (times, files) in imports.iter_mut().zip([false, true]) {
        let empty = bench.folder("share-empty")?;
        let mut build = ours(bench, &empty.join("state"), context)?;
        build.args(["--cache-from", name]);
        if files {
            build.arg("-o").arg(empty.join("files"));
        }
        times.0.push(timed(&mut build)?);
        fs::remove_dir_all(&empty).with_context(|| empty.display().to_string())?;
    }
    Ok(())
}

fn share_peers(
    bench: &Bench<'_>,
    peer: &Peer,
    context: &Path,
    name: &str,
    times: &mut [Times; 4],
) -> Result<()> {
    let [rebuild, export, imports @ ..] = times;
    timed(&mut peer.build(context))?; // It must have it all.
    rebuild.0.push(timed(&mut peer.build(context))?);
    let to = format!("type=registry,ref={name},mode=max");
    export.0.push(timed(peer.build(context).args(["--export-cache", &to]))?);
    for (times, files) in imports.iter_mut().zip([false, true]) {
        output(peer.control().args(["prune", "--all"]))?;
        let empty = bench.folder("share-empty")?;
        let mut build = peer.build(context);
        build.args(["--import-cache", &format!("type=registry,ref={name}")]);
        if files {
            build.arg("--output").arg(format!("type=local,dest={}", empty.join("files").display()));
        }
        times.0.push(timed(&mut build)?);
        fs::remove_dir_all(&empty).with_context(|| empty.display().to_string())?;
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
