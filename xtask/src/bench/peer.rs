//! The peer: `buildkitd` with its `buildctl`, as released, on the same machine at the same time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Bench;
use crate::cluster::{self, cache};
use crate::process::{output, run};

/// Cgroup of its steps, in every hierarchy.
pub(super) const CGROUP: &str = "lapstrake-bench";
const CMD: &str = "github.com/moby/buildkit/cmd/";

/// A running `buildkitd`; ended and swept away when dropped.
#[derive(Debug)]
pub(super) struct Peer {
    buildctl: PathBuf,
    address: String,
    daemon: Child,
    state: PathBuf,
}

impl Peer {
    /// Compiles it if need be, and starts it with a state of its own.
    pub(super) fn start(bench: &Bench<'_>) -> Result<Self> {
        let programs = compile(bench.root)?;
        let state = bench.folder("buildkit")?;
        let runc = output(Command::new(cluster::tool(bench.root)?).args(["which", "ctr"]))?;
        let runc = Path::new(runc.trim()).with_file_name("runc");
        let address = format!("unix://{}/buildkitd.sock", state.display());
        let registry = bench.cluster.registry.split('/').next().unwrap_or_default();
        // Its default settings but for places, the registry, and steps on the host's network as ours are.
        let config = format!(
            "root = \"{state}/root\"\n\
             [grpc]\naddress = [\"{address}\"]\n\
             [otel]\nsocketPath = \"{state}/otel.sock\"\n\
             [worker.containerd]\nenabled = false\n\
             [worker.oci]\nbinary = \"{runc}\"\nnetworkMode = \"host\"\n\
             defaultCgroupParent = \"{CGROUP}\"\nsnapshotter = \"overlayfs\"\n\
             [registry.\"{registry}\"]\nhttp = true\n",
            state = state.display(),
            runc = runc.display(),
        );
        let file = state.join("buildkitd.toml");
        fs::write(&file, config).with_context(|| file.display().to_string())?;
        let log = File::create(state.join("log"))?;
        // It refuses to start when no runc is on its PATH, whatever its configuration says.
        let folders = runc.parent().into_iter().map(Path::to_path_buf);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(folders.chain(std::env::split_paths(&path)))?;
        let daemon = Command::new(programs.join("buildkitd"))
            .env("PATH", path)
            .arg("--config")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start buildkitd")?;
        let mut peer = Self { buildctl: programs.join("buildctl"), address, daemon, state };
        peer.wait()?;
        println!("peer: {}", output(Command::new(programs.join("buildkitd")).arg("--version"))?.trim());
        Ok(peer)
    }

    /// The same, but none with `BENCH_PEER=none`: where other work keeps the cores busy, it takes many minutes.
    pub(super) fn wanted(bench: &Bench<'_>) -> Result<Option<Self>> {
        if std::env::var("BENCH_PEER").is_ok_and(|word| word == "none") {
            println!("BENCH_PEER=none: no peer is measured");
            return Ok(None);
        }
        Self::start(bench).map(Some)
    }

    fn wait(&mut self) -> Result<()> {
        while !self.control().args(["debug", "workers"]).output()?.status.success() {
            if let Some(status) = self.daemon.try_wait()? {
                let log = fs::read_to_string(self.state.join("log")).unwrap_or_default();
                bail!("buildkitd ended with {status}:\n{log}");
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// `buildctl`, told of the daemon.
    pub(super) fn control(&self) -> Command {
        let mut command = Command::new(&self.buildctl);
        command.args(["--addr", &self.address]);
        command
    }

    /// A build of a folder, as `buildctl` is told of it.
    pub(super) fn build(&self, context: &Path) -> Command {
        let mut command = self.control();
        command.args(["build", "--progress", "plain", "--frontend", "dockerfile.v0"]);
        for name in ["context", "dockerfile"] {
            command.arg("--local").arg(format!("{name}={}", context.display()));
        }
        command
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if matches!(self.daemon.try_wait(), Ok(Some(_))) {
            return;
        }
        // Asked, not killed: it takes its mounts away itself.
        let asked = run(Command::new("kill").arg(self.daemon.id().to_string()));
        if asked.is_ok() {
            self.daemon.wait().ok(); // It was ours and has ended, however it ended.
        }
        sweep();
    }
}

/// Removes what a `buildkitd` that has ended leaves in cgroups.
pub(super) fn sweep() {
    // Version 2 has one hierarchy, version 1 has one in each folder.
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for group in hierarchies.chain([root.to_owned()]).map(|hierarchy| hierarchy.join(CGROUP)) {
        fs::remove_dir(group.join("buildkit")).ok(); // Most hierarchies have none.
        fs::remove_dir(group).ok();
    }
}

/// Compiles both programs from the versions pinned in `bench/peers/go.mod`.
pub(super) fn compile(root: &Path) -> Result<PathBuf> {
    let folder = cache().join("bench-peers");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    println!("compiling buildkitd and buildctl, about 2 minutes the first time on 2 cores");
    let module = root.join("bench/peers");
    let listed = output(
        Command::new("go")
            .args(["list", "-m", "-f", "{{.Version}}", "github.com/moby/buildkit"])
            .current_dir(&module),
    )?;
    run(Command::new("go")
        .args(["build", "-o"])
        .arg(&folder)
        .arg(format!("-ldflags=-X github.com/moby/buildkit/version.Version={}", listed.trim()))
        .args(["buildctl", "buildkitd"].map(|name| format!("{CMD}{name}")))
        .current_dir(&module))?;
    Ok(folder)
}
