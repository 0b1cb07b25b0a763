//! What steps are given beside their files: secrets, SSH agents, certificates, proxies, networks.
//!
//! Options name places only; what is in them is read when a step asks for it, so that a Secret that is
//! rotated meanwhile counts, and stays in memory.

mod certificates;
mod mask;
mod secrets;
mod ssh;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use lapstrake_handoff::{Allow, Certificates, Proxy, Request, StepNetwork};
use lapstrake_run::StepCertificates;

use crate::engine::cdi::Granted;
use crate::error::BuildError;
use crate::lender::Lender;
use crate::policy::Policies;

pub(crate) use mask::Masks;
pub(crate) use ssh::Given as GivenAgent;

/// Where files that describe devices are as a rule.
const DEVICE_DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// What a build gives to its steps: places, no contents.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inputs {
    /// For `RUN --mount=type=secret`.
    pub(crate) secrets: Vec<SecretSource>,
    /// For `RUN --mount=type=ssh`.
    pub(crate) ssh: Vec<SshSource>,
    /// Authorities that are trusted beside the usual ones.
    pub(crate) certificates: Certificates,
    /// How the world outside is reached.
    pub(crate) proxy: Proxy,
    /// The network of steps that ask for none.
    pub(crate) network: StepNetwork,
    /// What the Dockerfile may ask for beyond the usual.
    pub(crate) allow: Vec<Allow>,
    /// Whether it may ask for steps without a sandbox.
    pub(crate) insecure: bool,
    /// Devices that it may ask for; every one where a name is empty.
    pub(crate) devices: BTreeSet<String>,
    /// Devices and kinds that need nobody's leave.
    pub(crate) auto_devices: Vec<String>,
    /// Steps are asked for their devices, not the Dockerfile: descriptions may grant them.
    pub(crate) devices_by_step: bool,
    /// Directories of files that describe devices; the usual ones where there is none.
    pub(crate) device_dirs: Vec<PathBuf>,
    /// The control group above those of steps that name none; empty to give them none.
    pub(crate) cgroup_parent: String,
    /// The client, which has what is not here.
    pub(crate) lender: Option<Lender>,
    /// Rules about what is brought from outside.
    pub(crate) policies: Policies,
}

/// A secret, or a folder of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SecretSource {
    /// What is in a file.
    File { id: String, path: PathBuf },
    /// A variable of the builder's own environment.
    Variable { id: String, name: String },
    /// Each file of a folder, by its name behind a prefix.
    Folder { dir: PathBuf, prefix: String },
}

/// An agent by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SshSource {
    pub(crate) id: String,
    pub(crate) from: SshFrom,
    /// Keys of hosts.
    pub(crate) known_hosts: Option<KnownHosts>,
}

/// Keys of hosts, as `known_hosts` has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KnownHosts {
    File(PathBuf),
    Text(String),
}

/// Where an agent's keys are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SshFrom {
    /// Behind another agent's socket.
    Socket(PathBuf),
    /// In files, or folders of them.
    Keys(Vec<PathBuf>),
}

impl Inputs {
    /// What a request gives.
    pub(crate) fn of_request(request: &Request) -> Self {
        let secret = |secret: &lapstrake_handoff::SecretInput| {
            let path = PathBuf::from(&secret.path);
            match &secret.id {
                Some(id) => SecretSource::File { id: id.clone(), path },
                None => SecretSource::Folder { dir: path, prefix: secret.prefix.clone() },
            }
        };
        let agent = |agent: &lapstrake_handoff::SshInput| SshSource {
            id: agent.id.clone(),
            from: SshFrom::Keys(agent.keys.iter().map(PathBuf::from).collect()),
            // A Secret need not have that key.
            known_hosts: agent
                .known_hosts
                .as_ref()
                .map(PathBuf::from)
                .filter(|path| path.exists())
                .map(KnownHosts::File),
        };
        Self {
            secrets: request.secrets.iter().map(secret).collect(),
            ssh: request.ssh.iter().map(agent).collect(),
            certificates: request.certificates.clone(),
            proxy: request.proxy.clone(),
            network: request.network,
            allow: request.allow.clone(),
            ..Self::default()
        }
    }

    /// Whether the Dockerfile may ask for the builder's network by name.
    pub(crate) fn allows_host_network(&self) -> bool {
        self.network == StepNetwork::Host || self.allow.contains(&Allow::NetworkHost)
    }
}

/// The inputs of the builds of one engine, and what of them must not be shown.
#[derive(Default)]
pub(crate) struct StepInputs {
    inputs: Inputs,
    masks: Masks,
}

/// Sockets that were made; builds share the directory that they are in.
static SOCKETS: AtomicU64 = AtomicU64::new(0);

impl StepInputs {
    pub(crate) fn new(inputs: Inputs) -> Self {
        let masks = Masks::default();
        for address in [&inputs.proxy.http, &inputs.proxy.https].into_iter().flatten() {
            masks.learn_password(address);
        }
        Self { inputs, masks }
    }

    /// What no output may show.
    pub(crate) fn masks(&self) -> &Masks {
        &self.masks
    }

    /// A secret's value, which from here on is masked; `None` where the build was not given it. Blocking.
    pub(crate) fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, BuildError> {
        let mut value = secrets::read(&self.inputs.secrets, id)?;
        if let (None, Some(lender)) = (&value, &self.inputs.lender) {
            value = tokio::runtime::Handle::current().block_on(lender.secret(id))?;
        }
        if let Some(value) = &value {
            self.masks.learn(value);
        }
        Ok(value)
    }

    /// Whether steps may be without a sandbox.
    pub(crate) fn allows_insecure(&self) -> bool {
        self.inputs.insecure
    }

    /// Whether steps may ask for the builder's network by name.
    pub(crate) fn allows_host_network(&self) -> bool {
        self.inputs.allows_host_network()
    }

    /// Rules about what is brought from outside.
    pub(crate) fn policies(&self) -> &Policies {
        &self.inputs.policies
    }

    /// Names of the secrets that the build was given. Blocking.
    pub(crate) fn secret_ids(&self) -> Vec<String> {
        self.inputs.secrets.iter().flat_map(secrets::ids).collect()
    }

    /// Names of the agents that the build was given.
    pub(crate) fn agent_ids(&self) -> Vec<String> {
        self.inputs.ssh.iter().map(|agent| agent.id.clone()).collect()
    }

    /// An agent; `None` where the build was not given it. Blocking.
    pub(crate) fn agent(&self, id: &str) -> Result<Option<GivenAgent>, BuildError> {
        match (ssh::open(&self.inputs.ssh, id)?, &self.inputs.lender) {
            (None, Some(lender)) => tokio::runtime::Handle::current().block_on(lender.agent(id)),
            (found, _) => Ok(found),
        }
    }

    /// What the client says of an agent that it does not have. Blocking.
    pub(crate) fn why_no_agent(&self, id: &str) -> Option<String> {
        let lender = self.inputs.lender.as_ref()?;
        Some(tokio::runtime::Handle::current().block_on(lender.why_no_agent(id)))
    }

    /// A name for a socket that no other step has.
    pub(crate) fn socket_name(&self) -> String {
        SOCKETS.fetch_add(1, Ordering::Relaxed).to_string()
    }

    /// Directories of files that describe devices; later ones win.
    pub(crate) fn device_dirs(&self) -> Vec<PathBuf> {
        match self.inputs.device_dirs.as_slice() {
            [] => DEVICE_DIRS.map(PathBuf::from).to_vec(),
            dirs => dirs.to_vec(),
        }
    }

    /// The control group above those of steps that name none.
    pub(crate) fn cgroup_parent(&self) -> &str {
        &self.inputs.cgroup_parent
    }

    /// Devices that steps may have.
    pub(crate) fn granted_devices(&self) -> Granted {
        Granted { names: self.inputs.devices.clone(), auto: self.inputs.auto_devices.clone() }
    }

    /// What steps trust beside the image's own authorities. Blocking.
    pub(crate) fn certificates(&self) -> Result<Option<StepCertificates>, BuildError> {
        match self.inputs.certificates.in_steps {
            true => certificates::for_steps(&self.inputs.certificates.files),
            false => Ok(None),
        }
    }

    /// The proxy's variables for steps.
    pub(crate) fn proxy(&self) -> Vec<(&'static str, &str)> {
        let proxy = &self.inputs.proxy;
        if !proxy.in_steps {
            return Vec::new();
        }
        let named = [("HTTP_PROXY", &proxy.http), ("HTTPS_PROXY", &proxy.https), ("NO_PROXY", &proxy.no)];
        named.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))).collect()
    }
}
