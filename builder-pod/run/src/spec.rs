//! What a step is: plain data, close in shape to an OCI runtime spec.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The host name of a step that asks for none.
pub const HOSTNAME_DEFAULT: &str = "buildkitsandbox";

/// The search path of a step whose environment has none.
pub const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Size of `/dev/shm` when the step asks for none.
pub const SHM_BYTES_DEFAULT: u64 = 64 << 20;

/// One step: a program, what it sees, and where its changes go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepSpec {
    /// The program and its arguments. A program without a slash is looked up in `PATH`.
    pub args: Vec<String>,
    /// `NAME=value`; `PATH` and `HOME` get defaults when missing.
    #[serde(default)]
    pub env: Vec<String>,
    /// Working directory in the root file system; created when missing. Empty is `/`.
    #[serde(default)]
    pub cwd: String,
    /// `user[:group]`, names or numbers, looked up in the image; empty is root.
    #[serde(default)]
    pub user: String,
    /// The root file system.
    pub rootfs: Rootfs,
    /// What else is mounted, parents before children whatever the order here.
    #[serde(default)]
    pub mounts: Vec<StepMount>,
    /// Which network it sees.
    #[serde(default)]
    pub network: Network,
    /// Its host name; [`HOSTNAME_DEFAULT`] when empty.
    #[serde(default)]
    pub hostname: String,
    /// More lines for `/etc/hosts`.
    #[serde(default)]
    pub extra_hosts: Vec<ExtraHost>,
    /// Limits beside the defaults.
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    /// Size of `/dev/shm` in bytes; [`SHM_BYTES_DEFAULT`] when none.
    #[serde(default)]
    pub shm_bytes: Option<u64>,
}

impl StepSpec {
    /// A step that runs `args` as root in `/`, with defaults for all else.
    pub fn new(args: Vec<String>, rootfs: Rootfs) -> Self {
        Self {
            args,
            env: Vec::new(),
            cwd: String::new(),
            user: String::new(),
            rootfs,
            mounts: Vec::new(),
            network: Network::default(),
            hostname: String::new(),
            extra_hosts: Vec::new(),
            rlimits: Vec::new(),
            shm_bytes: None,
        }
    }
}

impl StepMount {
    /// All of `source` at `target`, writable where the source is.
    pub fn new(target: impl Into<PathBuf>, source: MountSource) -> Self {
        Self {
            target: target.into(),
            source,
            subpath: PathBuf::new(),
            readonly: false,
            nosuid: false,
            noexec: false,
        }
    }
}

/// The layers that a step stands on, and where its changes go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// Layer directories, the topmost first; none is an empty image.
    pub lowers_top_first: Vec<PathBuf>,
    /// Directory that receives the changes in overlay's form; `None` makes the root read-only.
    #[serde(default)]
    pub upper: Option<PathBuf>,
    /// An empty directory on the same file system as `upper`, used by one step only.
    #[serde(default)]
    pub work: Option<PathBuf>,
}

/// Something mounted into the step's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepMount {
    /// Where, in the step's root; created when missing, without a trace in the layer.
    pub target: PathBuf,
    /// What.
    pub source: MountSource,
    /// Only a part of the source: a path in it, resolved inside it. Empty is the whole.
    #[serde(default)]
    pub subpath: PathBuf,
    /// The step cannot write to it.
    #[serde(default)]
    pub readonly: bool,
    /// Its setuid bits and file capabilities count for nothing.
    #[serde(default)]
    pub nosuid: bool,
    /// Its files cannot be executed.
    #[serde(default)]
    pub noexec: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A file, directory or socket of the builder; what lies mounted below it is not taken along.
    Bind(PathBuf),
    /// Layers, the topmost first.
    Layers {
        /// Layer directories, the topmost first.
        lowers_top_first: Vec<PathBuf>,
        /// What happens to changes.
        changes: Changes,
    },
    /// An empty file system in memory, gone with the step.
    Tmpfs {
        /// Bytes that fit in; unbounded (half of the memory) when `None`.
        size_bytes: Option<u64>,
    },
}

/// What happens to changes in mounted layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Changes {
    /// There are none: the mount is read-only.
    Refused,
    /// The step may write; all is thrown away when it ends.
    Discarded,
    /// They are kept, in overlay's form.
    Kept {
        /// Receives them.
        upper: PathBuf,
        /// An empty directory on the same file system, used by one step only.
        work: PathBuf,
    },
}

/// Which network a step sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// The builder's own.
    #[default]
    Host,
    /// Nothing but a loopback device of its own.
    None,
}

/// A name for `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtraHost {
    /// The name.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
}

/// A resource limit by its name without `RLIMIT_`, in lower case (`nofile`, `nproc`, `core`, …).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Which.
    pub name: String,
    /// The limit in force; `None` is unlimited.
    pub soft: Option<u64>,
    /// How far it may be raised; `None` is unlimited.
    pub hard: Option<u64>,
}

/// Which stream a piece of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepExit {
    /// Its exit code; 128 + the signal's number when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// It was killed (SIGKILL, or a shell's 137 for it), and the kernel counted out-of-memory kills
    /// in the builder's cgroup while it ran.
    pub oom_killed: bool,
}

impl StepExit {
    /// It ended by itself with code 0.
    pub fn success(&self) -> bool {
        self.code == 0
    }
}
