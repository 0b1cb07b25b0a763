//! The cluster that images, chart, demo and tests work on: our own one, or the kubeconfig's.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::process::{output, run, which};

/// A cluster and the places around it.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// Program that brings our own cluster up; it also has kubectl and Helm for any other.
    tool: PathBuf,
    /// Whether it is our own.
    pub(crate) own: bool,
    /// Where images are pushed: `host[:port][/path]`.
    pub(crate) registry: String,
    /// Where base images are: `host[:port]/path`.
    pub(crate) base: String,
    /// What the builder is told of registries, by host.
    pub(crate) registries: Value,
}

impl Cluster {
    /// The one that the environment chooses, brought up if it is our own.
    pub(crate) fn connect(root: &Path) -> Result<Self> {
        let cluster = Self::choose(root)?;
        if cluster.own {
            run(Command::new(&cluster.tool).arg("up"))?;
        } else {
            output(&mut cluster.kubectl(["version"]))
                .context("CLUSTER=current: the kubeconfig's cluster does not answer")?;
        }
        Self::choose(root) // Only a running cluster knows its addresses.
    }

    /// The one that the environment chooses, as it is.
    pub(crate) fn choose(root: &Path) -> Result<Self> {
        let tool = tool(root)?;
        match env::var("CLUSTER").as_deref() {
            Ok("current") => Self::current(tool),
            Ok("own" | "") | Err(_) => Self::own(tool),
            Ok(other) => bail!("CLUSTER={other}: it is either own or current"),
        }
    }

    fn own(tool: PathBuf) -> Result<Self> {
        // Before it is up there is nothing to tell; the addresses are fixed then.
        let told = output(Command::new(&tool).arg("env")).unwrap_or_default();
        let variable = |name: &str| {
            told.lines()
                .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
                .find_map(|(key, value)| (key == name).then(|| value.to_owned()))
        };
        let registry = variable("LAPSTRAKE_REGISTRY").unwrap_or_else(|| "10.244.0.1:5000".into());
        let mut registries = json!({ &registry: { "http": true } });
        if let (Some(secure), Some(ca)) =
            (variable("LAPSTRAKE_SECURE_REGISTRY"), variable("LAPSTRAKE_REGISTRY_CA"))
        {
            let ca = fs::read_to_string(&ca).with_context(|| ca.clone())?;
            registries[secure] = json!({ "ca": [ca] });
        }
        if let Some(host) = variable("LAPSTRAKE_HOST_ADDRESS") {
            // Where the tests have a registry of their own that comes and goes.
            registries[format!("{host}:{FLAKY_REGISTRY_PORT}")] = json!({ "http": true });
        }
        Ok(Self { tool, own: true, base: format!("{registry}/base"), registry, registries })
    }

    fn current(tool: PathBuf) -> Result<Self> {
        let Ok(registry) = env::var("REGISTRY") else {
            bail!(
                "CLUSTER=current needs REGISTRY: where you and the cluster may push and pull, such as \
                 REGISTRY=registry.example/me"
            );
        };
        let base = env::var("BASE").unwrap_or_else(|_| "docker.io/library".into());
        let registries = match env::var("REGISTRIES") {
            Ok(text) => serde_json::from_str(&text).context("REGISTRIES is no JSON object")?,
            Err(_) => json!({}),
        };
        Ok(Self { tool, own: false, registry, base, registries })
    }

    /// `kubectl` on this cluster.
    pub(crate) fn kubectl<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Command {
        let mut command = if self.own {
            let mut command = Command::new(&self.tool);
            command.arg("kubectl");
            command
        } else {
            Command::new("kubectl")
        };
        command.args(arguments);
        command
    }

    /// `helm` on this cluster.
    pub(crate) fn helm<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Result<Command> {
        let mut command = if self.own {
            let mut command = Command::new(&self.tool);
            command.arg("helm");
            command
        } else if which("helm").is_some() {
            Command::new("helm")
        } else {
            Command::new(output(Command::new(&self.tool).args(["which", "helm"]))?.trim())
        };
        command.args(arguments);
        Ok(command)
    }

    /// Puts base images into our own cluster's registry; another cluster pulls them from where they are.
    pub(crate) fn base_images(&self, names: &[&str]) -> Result<()> {
        if self.own {
            run(Command::new(&self.tool).arg("images").args(names))?;
        }
        Ok(())
    }
}

/// What the examples are built from, beside what every cluster of ours has.
pub(crate) const BASE_IMAGES: &[&str] = &["golang", "node", "rust", "python", "debian-multi"];
/// Port of the registry that tests stop and start, on the host's address.
pub(crate) const FLAKY_REGISTRY_PORT: u16 = 5999;

/// Runs `lapstrake-cluster` itself.
pub(crate) fn forward(root: &Path, arguments: &[String]) -> Result<()> {
    run(Command::new(tool(root)?).args(arguments))
}

/// Whether a cluster is there that is to stay: the kubeconfig's, or our own when it serves.
pub(crate) fn is_up(root: &Path) -> bool {
    let current = env::var("CLUSTER").is_ok_and(|word| word == "current");
    current || tool(root).is_ok_and(|tool| output(Command::new(tool).arg("status")).is_ok())
}

/// Builds `lapstrake-cluster`, which Go does in a moment when nothing changed.
pub(crate) fn tool(root: &Path) -> Result<PathBuf> {
    let program = target(root).join("lapstrake-cluster");
    let mut build = Command::new("go");
    build
        .args(["build", "-buildvcs=false", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(root.join("e2e/cluster"));
    run(&mut build)?;
    Ok(program)
}

/// Cargo's target folder.
pub(crate) fn target(root: &Path) -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root.join(folder),
        None => root.join("target"),
    }
}

/// Where built things are kept.
pub(crate) fn cache() -> PathBuf {
    env::var_os("LAPSTRAKE_CACHE").map_or_else(|| "/var/cache/lapstrake".into(), PathBuf::from)
}
