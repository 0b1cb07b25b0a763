//! What a step is: plain data, close in shape to an OCI runtime spec.

use std::net::IpAddr;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::cgroup::ControlGroup;

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
    /// Variables whose values are shown nowhere; they win over `env`.
    #[serde(default)]
    pub secret_env: Vec<SecretVar>,
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
    /// Authorities that it trusts beside those of the image.
    #[serde(default)]
    pub certificates: Option<StepCertificates>,
    /// Runs the step's programs that are not of this machine's architecture.
    #[serde(default)]
    pub emulator: Option<Emulator>,
    /// Nothing that the builder may do is kept from it: all capabilities of the builder's user namespace, no filter of
    /// system calls, all of `/proc` and `/sys`.
    #[serde(default)]
    pub insecure: bool,
    /// The control group that it gets of its own; none leaves it in the builder's.
    #[serde(default)]
    pub control_group: Option<ControlGroup>,
    /// Its standard output is a socket that is its standard input too; [`crate::Executor::run_on`] sets it.
    #[serde(default)]
    pub duplex: bool,
    /// What it reads; other than nothing only for [`crate::Executor::start`].
    #[serde(default)]
    pub input: Input,
}

/// What a step's program has as its standard input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Nothing: it is at its end.
    #[default]
    None,
    /// A pipe.
    Pipe,
    /// A terminal, which is its output too.
    Terminal,
}

/// A program that runs programs of another architecture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Emulator {
    /// Go's name of the architecture that it runs; one for which [`crate::emulated`] has an answer.
    pub architecture: String,
    /// Its file, in the builder's own tree: an absolute path to a program that needs no other file.
    pub interpreter: PathBuf,
}

impl StepSpec {
    /// A step that runs `args` as root in `/`, with defaults for all else.
    pub fn new(args: Vec<String>, rootfs: Rootfs) -> Self {
        Self {
            args,
            env: Vec::new(),
            secret_env: Vec::new(),
            cwd: String::new(),
            user: String::new(),
            rootfs,
            mounts: Vec::new(),
            network: Network::default(),
            hostname: String::new(),
            extra_hosts: Vec::new(),
            rlimits: Vec::new(),
            shm_bytes: None,
            certificates: None,
            emulator: None,
            insecure: false,
            control_group: None,
            duplex: false,
            input: Input::None,
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
    /// A device of the builder's, or a directory of them: what is in it can be opened as a device.
    Device(PathBuf),
    /// Layers, the topmost first.
    Layers {
        /// Layer directories, the topmost first.
        lowers_top_first: Vec<PathBuf>,
        /// What happens to changes.
        changes: Changes,
    },
    /// A file that is in memory only, gone with the step.
    File(StepFile),
    /// An empty file system in memory, gone with the step.
    Tmpfs {
        /// Bytes that fit in; unbounded (half of the memory) when `None`.
        size_bytes: Option<u64>,
    },
}

/// A file that a step is shown, without being on any disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepFile {
    /// What is in it.
    pub contents: SecretBytes,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// What the image has at that place comes first.
    #[serde(default)]
    pub after_own: bool,
}

/// A variable with a secret value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretVar {
    /// Its name.
    pub name: String,
    /// Its value; a zero byte can't be in it.
    pub value: SecretBytes,
}

/// Bytes that no error, log or debug output shows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Wraps them.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes themselves: only for whom they are meant for.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// To the step's helper, which has no other way to learn them.
impl Serialize for SecretBytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for SecretBytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Serde's own messages would repeat the value.
        let bytes = String::deserialize(deserializer).ok().and_then(|text| STANDARD.decode(text).ok());
        bytes.map(Self).ok_or_else(|| serde::de::Error::custom("a secret is not in base64"))
    }
}

/// Authorities that a step trusts beside those of the image. Nothing of it is left in the layer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCertificates {
    /// Certificates in PEM form.
    pub extra: String,
    /// The usual authorities in PEM form, for the variables of programs where the image has none; empty:
    /// then those variables that replace the usual ones are left alone.
    #[serde(default)]
    pub usual: String,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_reach_the_helper_whole_and_nobody_else() {
        let secret = SecretBytes::new([0, 0xff, b'h', b'i']);
        let text = serde_json::to_string(&secret).expect("plain data");
        assert_eq!(serde_json::from_str::<SecretBytes>(&text).expect("reads back"), secret);
        let mut spec = StepSpec::new(vec!["true".to_owned()], Rootfs::default());
        spec.secret_env = vec![SecretVar { name: "TOKEN".to_owned(), value: SecretBytes::new("hunter2") }];
        let shown = format!("{spec:?}");
        assert!(shown.contains("TOKEN") && !shown.contains("hunter2"), "{shown}");
        let error = serde_json::from_str::<SecretBytes>("\"hunter2!\"").expect_err("no base64").to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}
