//! What a step's mounts cost: a secret, an agent, a cache, certificates; on this machine, beside its peer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::engine::{children_time, ours, timed};
use super::peer::Peer;
use super::{Bench, Times, milliseconds};
use crate::process::{output, run};

/// How many steps stand in each Dockerfile.
const STEPS: u32 = 20;
const RUNS: u32 = 7;
/// The peer takes ten times as long for each.
const PEERS_RUNS: u32 = 3;

/// Name, and the flag of each step.
const KINDS: [(&str, &str); 6] = [
    ("nothing", ""),
    ("secret, file", "--mount=type=secret,id=s"),
    ("secret, variable", "--mount=type=secret,id=s,env=S"),
    ("ssh", "--mount=type=ssh"),
    ("cache", "--mount=type=cache,target=/cache"),
    ("cache, locked", "--mount=type=cache,id=l,target=/cache,sharing=locked"),
];

/// What one mount adds to a step.
pub(super) fn mounts(bench: &Bench<'_>) -> Result<()> {
    let peer = Peer::wanted(bench)?;
    let state = bench.folder("state-mounts")?;
    let inputs = Inputs::make(bench)?;
    let contexts: Vec<PathBuf> =
        KINDS.iter().enumerate().map(|(at, (_, flag))| context(bench, at, flag)).collect::<Result<_>>()?;
    let ours = |context: &Path, more: &[&str]| -> Result<Command> {
        let mut command = ours(bench, &state, context)?;
        command.arg("--no-cache").args(inputs.flags()).args(more);
        Ok(command)
    };
    let theirs = |peer: &Peer, context: &Path| {
        let mut command = peer.build(context);
        command.args(["--no-cache"]).args(inputs.flags());
        command
    };
    let certificates = inputs.certificates.display().to_string();
    let certificates = ["--step-certificates", "--certificate", &certificates];
    // The first ones pull the base image.
    timed(&mut ours(&contexts[0], &[])?)?;
    if let Some(peer) = &peer {
        timed(&mut theirs(peer, &contexts[0]))?;
    }
    let mut times: Vec<[Times; 2]> = KINDS.iter().map(|_| Default::default()).collect();
    let mut with_certificates = Times::default();
    // What does not depend on who else wants a core.
    let mut processor = [Duration::ZERO; KINDS.len() + 1];
    for run in 0..RUNS {
        for (at, (context, [ours_took, theirs_took])) in contexts.iter().zip(&mut times).enumerate() {
            let before = children_time()?;
            ours_took.0.push(timed(&mut ours(context, &[])?)?);
            processor[at] += children_time()?.saturating_sub(before);
            if let Some(peer) = peer.as_ref().filter(|_| run < PEERS_RUNS) {
                theirs_took.0.push(timed(&mut theirs(peer, context))?);
            }
        }
        let before = children_time()?;
        with_certificates.0.push(timed(&mut ours(&contexts[0], &certificates)?)?);
        processor[KINDS.len()] += children_time()?.saturating_sub(before);
    }
    let base = [times[0][0].median(), times[0][1].median()];
    let processor = processor.map(|time| milliseconds(&time) / f64::from(RUNS * STEPS));
    println!("{STEPS} steps `RUN true`, and what each mount adds to one:");
    let certificates = ("certificates", &with_certificates);
    let ours = KINDS.iter().zip(&times).map(|((name, _), [ours, _])| (*name, ours)).chain([certificates]);
    for ((name, times), processor_ms) in ours.zip(processor) {
        let (more, more_ms) = (more(times, base[0]), processor_ms - processor[0]);
        println!("lapstrake {name:17} {times} {more:+8.2} ms, of a processor's time {more_ms:+6.2} ms");
    }
    println!("lapstrake, a step with nothing: {:.2} ms of a processor's time", processor[0]);
    for ((name, _), [_, theirs]) in KINDS.iter().zip(&times).filter(|_| peer.is_some()) {
        println!("buildkit  {name:17} {theirs} {:+8.2} ms", more(theirs, base[1]));
    }
    Ok(())
}

/// Milliseconds that a step takes longer than one without a mount.
fn more(of: &Times, base: Duration) -> f64 {
    let signed = |time: Duration| milliseconds(&time);
    (signed(of.median()) - signed(base)) / f64::from(STEPS)
}

fn context(bench: &Bench<'_>, number: usize, flag: &str) -> Result<PathBuf> {
    let folder = bench.folder(&format!("mounts-{number}"))?;
    let step = format!("RUN {flag} true\n").repeat(STEPS as usize);
    let text = format!("FROM {}/busybox:1\n{step}", bench.cluster.base);
    fs::write(folder.join("Dockerfile"), text).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

/// Files that are given to both.
struct Inputs {
    secret: PathBuf,
    key: PathBuf,
    certificates: PathBuf,
}

impl Inputs {
    fn make(bench: &Bench<'_>) -> Result<Self> {
        let folder = bench.folder("inputs")?;
        let inputs =
            Self { secret: folder.join("s"), key: folder.join("key"), certificates: folder.join("ca.pem") };
        fs::write(&inputs.secret, "a token of some forty characters, no more")?;
        run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&inputs.key))?;
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=bench", "-keyout"]);
        // `output`, since it draws while it makes a key.
        output(openssl.arg(folder.join("ca.key")).arg("-out").arg(&inputs.certificates))?;
        Ok(inputs)
    }

    /// The same words to both programs.
    fn flags(&self) -> [String; 4] {
        let secret = format!("id=s,src={}", self.secret.display());
        let agent = format!("default={}", self.key.display());
        ["--secret".to_owned(), secret, "--ssh".to_owned(), agent]
    }
}
