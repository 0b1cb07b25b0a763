//! The cluster that the tests run on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::manifest::repository_root;

/// Namespace of the operator.
pub const SYSTEM_NAMESPACE: &str = "lapstrake-system";
/// Port of the registry that tests stop and start, on the host's address; the chart is installed with
/// plain http for it.
pub const FLAKY_REGISTRY_PORT: u16 = 5999;

/// A running cluster with Lapstrake installed.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Whether it is our own, whose programs may be stopped.
    pub own: bool,
    /// Where images are pushed: `host[:port][/path]`.
    pub registry: String,
    /// Whether that registry speaks plain http.
    pub plain_http: bool,
    /// Where base images are: `host[:port]/path`.
    pub base: String,
    /// Address at which pods reach this process, if it is known.
    pub host: Option<String>,
    /// What `lapstrake-cluster env` tells of our own cluster.
    variables: BTreeMap<String, String>,
}

static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();

impl Cluster {
    /// The cluster, once per process: brought up if it is our own, with Lapstrake installed.
    pub fn connect() -> Result<&'static Self> {
        match CLUSTER.get_or_init(|| Self::prepare().map_err(|error| format!("{error:#}"))) {
            Ok(cluster) => Ok(cluster),
            Err(error) => bail!("{error}"),
        }
    }

    fn prepare() -> Result<Self> {
        // `make e2e` has done it already, once for all test programs.
        if std::env::var_os("LAPSTRAKE_INSTALLED").is_none() {
            xtask(&["install"])?;
        }
        match std::env::var("CLUSTER").as_deref() {
            Ok("current") => {
                let registry = std::env::var("REGISTRY").context("CLUSTER=current needs REGISTRY")?;
                let base = std::env::var("BASE").unwrap_or_else(|_| "docker.io/library".into());
                let host = std::env::var("HOST_ADDRESS").ok();
                let settings = std::env::var("REGISTRIES").unwrap_or_else(|_| "{}".into());
                let settings: serde_json::Value = serde_json::from_str(&settings).context("REGISTRIES")?;
                let plain_http = settings[registry.split('/').next().unwrap_or_default()]["http"] == true;
                Ok(Self { own: false, registry, plain_http, base, host, variables: BTreeMap::new() })
            }
            Ok("own" | "") | Err(_) => Self::own(),
            Ok(other) => bail!("CLUSTER={other}: it is either own or current"),
        }
    }

    fn own() -> Result<Self> {
        let told = output(&mut tool_command(&["env"]))?;
        let variables: BTreeMap<String, String> = told
            .lines()
            .filter_map(|line| line.strip_prefix("export ")?.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let registry =
            variables.get("LAPSTRAKE_REGISTRY").context("`lapstrake-cluster env` names no registry")?.clone();
        let host = variables.get("LAPSTRAKE_HOST_ADDRESS").cloned();
        Ok(Self { own: true, base: format!("{registry}/base"), registry, plain_http: true, host, variables })
    }

    /// One of the variables that `lapstrake-cluster env` prints.
    pub fn variable(&self, name: &str) -> Result<&str> {
        self.variables.get(name).map(String::as_str).with_context(|| format!("{name} is not known"))
    }

    /// A client of its API server. Each test has its own, as each has its own runtime.
    pub async fn client(&self) -> Result<Client> {
        let config = if self.own {
            let path = self.variable("KUBECONFIG")?;
            let kubeconfig = Kubeconfig::read_from(path).with_context(|| path.to_owned())?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?
        } else {
            Config::infer().await?
        };
        Ok(Client::try_from(config)?)
    }

    /// Runs `lapstrake-cluster` on our own cluster and gives what it printed. Blocks.
    pub fn tool(&self, arguments: &[&str]) -> Result<String> {
        if !self.own {
            bail!("CLUSTER=current: its node is not ours to {}", arguments.join(" "));
        }
        output(&mut tool_command(arguments))
    }

    /// Runs `kubectl` and gives what it printed. Blocks.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        if self.own {
            return self.tool(&[&["kubectl"], arguments].concat());
        }
        output(Command::new("kubectl").args(arguments))
    }

    /// Runs `helm` and gives what it printed. Blocks.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        if self.own {
            return self.tool(&[&["helm"], arguments].concat());
        }
        let pinned = output(&mut tool_command(&["which", "helm"]))?;
        output(Command::new(pinned.trim()).args(arguments))
    }

    /// The state folder of our own cluster, with the node's volumes, logs and registries.
    pub fn state(&self) -> Result<PathBuf> {
        let kubeconfig = Path::new(self.variable("KUBECONFIG")?);
        Ok(kubeconfig.parent().context("the kubeconfig lies in the state folder")?.to_owned())
    }

    /// What each of the operator's pods answers at a port and path, asked through the API server. Blocks.
    pub fn ask_operators(&self, port: u16, path: &str) -> Result<BTreeMap<String, String>> {
        let selector = "--selector=app.kubernetes.io/component=operator";
        // It may be on its way up, as after a test that killed it; one that was just made has no address yet.
        let wait = ["-n", SYSTEM_NAMESPACE, "rollout", "status", "deploy/lapstrake", "--timeout=5m"];
        self.kubectl(&wait)?;
        let running = "--field-selector=status.phase=Running";
        let names =
            self.kubectl(&["get", "pods", "-n", SYSTEM_NAMESPACE, selector, running, "-o", "name"])?;
        let mut answers = BTreeMap::new();
        for pod in names.lines().filter_map(|name| name.strip_prefix("pod/")) {
            let proxy = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/pods/{pod}:{port}/proxy/{path}");
            answers.insert(pod.to_owned(), self.kubectl(&["get", "--raw", &proxy])?);
        }
        if answers.is_empty() {
            bail!("the operator has no pod");
        }
        Ok(answers)
    }

    /// Address at which pods reach this process.
    pub fn host(&self) -> Result<&str> {
        self.host.as_deref().context("CLUSTER=current: say by HOST_ADDRESS where pods reach this machine")
    }
}

/// `lapstrake-cluster`, which `cargo xtask install` has built beside the tests.
fn tool_command(arguments: &[&str]) -> Command {
    let test = std::env::current_exe().unwrap_or_default();
    let built = test.ancestors().map(|folder| folder.join("lapstrake-cluster")).find(|file| file.is_file());
    let mut command = match built {
        Some(program) => Command::new(program),
        None => xtask_command(&["cluster"]),
    };
    command.args(arguments).current_dir(repository_root());
    command
}

/// Runs `cargo xtask`.
fn xtask(arguments: &[&str]) -> Result<String> {
    output(&mut xtask_command(arguments))
}

fn xtask_command(arguments: &[&str]) -> Command {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(cargo);
    // Those are the tests' own, and would have cargo take everything for changed.
    let ours = std::env::vars_os().map(|(name, _)| name).filter(|name| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" || name == "CARGO_MANIFEST_PATH"
    });
    for name in ours {
        command.env_remove(name);
    }
    command.arg("xtask").args(arguments).current_dir(repository_root());
    command
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed: {}\n{text}\n{errors}", output.status);
    }
    Ok(text)
}
