//! `docker buildx`, as released: compiled from its pinned version (`bench/peers/go.mod`) where it is not there yet.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::Cluster;
use crate::manifest::repository_root;
use crate::test::output;

const MODULE: &str = "github.com/docker/buildx";

/// A client with settings and files of its own.
#[derive(Debug)]
pub struct Buildx {
    program: PathBuf,
    kubeconfig: Option<String>,
    folder: TempDir,
}

impl Buildx {
    /// A client that knows nothing yet; the first one of a machine takes a minute.
    pub fn new(cluster: &Cluster) -> Result<Self> {
        static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let program = PROGRAM.get_or_init(|| program().map_err(|error| format!("{error:#}")));
        let program = program.clone().map_err(anyhow::Error::msg)?;
        let kubeconfig = cluster.variable("KUBECONFIG").ok().map(str::to_owned);
        Ok(Self { program, kubeconfig, folder: tempfile::tempdir()? })
    }

    /// Its working directory.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file into its working directory.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        std::fs::write(self.folder().join(name), text).with_context(|| name.to_owned())
    }

    /// Reads a file of its working directory.
    pub fn read(&self, name: &str) -> Result<String> {
        std::fs::read_to_string(self.folder().join(name)).with_context(|| name.to_owned())
    }

    /// Runs it; all that it printed. Blocks.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        self.finish(command)
    }

    /// Runs it with a terminal to draw on. Blocks.
    pub fn run_in_terminal(&self, arguments: &[&str]) -> Result<String> {
        let line = format!("{} {}", self.program.display(), arguments.join(" "));
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
        self.finish(command)
    }

    fn finish(&self, mut command: Command) -> Result<String> {
        let folder = self.folder();
        command.current_dir(folder).stdin(Stdio::null());
        command.env("BUILDX_CONFIG", folder.join(".buildx")).env("DOCKER_CONFIG", folder.join(".docker"));
        command.env("NO_COLOR", "1").env_remove("SSH_AUTH_SOCK");
        if let Some(kubeconfig) = &self.kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        let out = command.output().with_context(|| format!("cannot start {command:?}"))?;
        let told =
            [out.stdout, out.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        if !out.status.success() {
            bail!("{command:?}: {}\n{told}", out.status);
        }
        Ok(told)
    }
}

/// BuildKit's Dockerfile frontend as a program of its own, as released.
pub fn dockerfile_frontend() -> Result<PathBuf> {
    let peers = peers()?;
    let place = peers.display().to_string();
    let package = "github.com/moby/buildkit/frontend/dockerfile/cmd/dockerfile-frontend";
    // A program that needs no library runs in an image that has none.
    output(go(&["build", "-o", &place, package]).env("CGO_ENABLED", "0"))?;
    Ok(peers.join("dockerfile-frontend"))
}

/// Where what was compiled once is kept.
fn peers() -> Result<PathBuf> {
    let cache =
        std::env::var_os("LAPSTRAKE_CACHE").map_or_else(|| "/var/cache/lapstrake".into(), PathBuf::from);
    let peers = cache.join("bench-peers");
    std::fs::create_dir_all(&peers)?;
    Ok(peers)
}

fn go(arguments: &[&str]) -> Command {
    let mut go = Command::new("go");
    go.args(arguments).current_dir(repository_root().join("bench/peers"));
    go
}

fn program() -> Result<PathBuf> {
    let peers = peers()?;
    let version = String::from_utf8(output(&mut go(&["list", "-m", "-f", "{{.Version}}", MODULE]))?)?;
    let flags = format!("-ldflags=-X {MODULE}/version.Version={}", version.trim());
    let place = peers.display().to_string();
    output(&mut go(&["build", "-o", &place, &flags, &format!("{MODULE}/cmd/buildx")]))?;
    Ok(peers.join("buildx"))
}
