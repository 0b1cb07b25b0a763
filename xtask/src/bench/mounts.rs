//! What a step's mounts cost: a secret, an agent, a cache, certificates; on this machine, beside its peer.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::engine::{ours, timed};
use super::peer::Peer;
use super::{Bench, Times, milliseconds};
use crate::process::run;

/// How many steps stand in each Dockerfile.
const STEPS: u32 = 20;
const RUNS: u32 = 7;

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
    let peer = Peer::start(bench)?;
    let state = bench.folder("state-mounts")?;
    let inputs = Inputs::make(bench)?;
    let contexts: Vec<PathBuf> =
        KINDS.iter().enumerate().map(|(at, (_, flag))| context(bench, at, flag)).collect::<Result<_>>()?;
    let ours = |context: &Path, more: &[&str]| -> Result<Command> {
        let mut command = ours(bench, &state, context)?;
        command.arg("--no-cache").args(inputs.flags()).args(more);
        Ok(command)
    };
    let theirs = |context: &Path| {
        let mut command = peer.build(context);
        command.args(["--no-cache"]).args(inputs.flags());
        command
    };
    let certificates = inputs.certificates.display().to_string();
    let certificates = ["--step-certificates", "--certificate", &certificates];
    // The first ones pull the base image.
    timed(&mut ours(&contexts[0], &[])?)?;
    timed(&mut theirs(&contexts[0]))?;
    let mut times: Vec<[Times; 2]> = KINDS.iter().map(|_| Default::default()).collect();
    let mut with_certificates = Times::default();
    for _ in 0..RUNS {
        for (context, [ours_took, theirs_took]) in contexts.iter().zip(&mut times) {
            ours_took.0.push(timed(&mut ours(context, &[])?)?);
            theirs_took.0.push(timed(&mut theirs(context))?);
        }
        with_certificates.0.push(timed(&mut ours(&contexts[0], &certificates)?)?);
    }
    let base = [times[0][0].median(), times[0][1].median()];
    println!("{STEPS} steps `RUN true`, and what each mount adds to one:");
    for ((name, _), [ours, theirs]) in KINDS.iter().zip(&times) {
        let (ours_more, theirs_more) = (more(ours, base[0]), more(theirs, base[1]));
        println!("{name:17} lapstrake {ours} {ours_more:+8.2} ms   buildkit {theirs} {theirs_more:+8.2} ms");
    }
    println!(
        "{:17} lapstrake {with_certificates} {:+8.2} ms",
        "certificates",
        more(&with_certificates, base[0])
    );
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
        run(openssl.arg(folder.join("ca.key")).arg("-out").arg(&inputs.certificates))?;
        Ok(inputs)
    }

    /// The same words to both programs.
    fn flags(&self) -> [String; 4] {
        let secret = format!("id=s,src={}", self.secret.display());
        let agent = format!("default={}", self.key.display());
        ["--secret".to_owned(), secret, "--ssh".to_owned(), agent]
    }
}
