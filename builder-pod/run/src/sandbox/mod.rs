//! The sandbox that the builder itself lives in, and that steps' namespaces are made in.
//!
//! [`enter`] is called first in `main`, while the process has one thread. Afterwards the process
//! has a private mount namespace and full power inside its user namespace, and nobody else may
//! look into it. [`Sandbox::preflight`] then proves by a real set-up that steps can run.

mod split;

use std::path::Path;

use lapstrake_sys::caps::{self, CapabilitySet};
use lapstrake_sys::idmap::IdMap;
use lapstrake_sys::process::{self, Namespaces};
use lapstrake_sys::{Errno, mount};

use crate::error::RunError;
use crate::init::step_capabilities;
use crate::launch::Launcher;
use crate::protocol::Stage;
use crate::spec::{Network, Rootfs, StepSpec};

/// Which sandbox is asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// Whatever this process turns out to be in.
    #[default]
    Auto,
    /// Real root of the machine (a laptop): steps are root of the machine with a container's limits.
    Root,
    /// A pod with a user namespace and SYS_ADMIN inside it.
    UserNamespace,
    /// A pod with a user namespace and without SYS_ADMIN.
    Baseline,
}

impl std::str::FromStr for Mode {
    type Err = String;

    /// The names of `spec.pod.sandbox`; `Privileged` is root of the machine, by explicit wish.
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "Auto" | "" => Self::Auto,
            "Root" | "Privileged" => Self::Root,
            "UserNamespace" => Self::UserNamespace,
            "Baseline" => Self::Baseline,
            other => {
                return Err(format!(
                    "no such sandbox: \"{other}\" (Auto, UserNamespace, Baseline, Privileged)"
                ));
            }
        })
    }
}

/// What this process has: read once, judged by [`choose`].
#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    euid: u32,
    users: IdMap,
    groups: IdMap,
    effective: CapabilitySet,
    pid: i32,
}

/// The sandbox that was entered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    mode: Mode,
    nested: bool,
    users: IdMap,
}

/// What the self-check saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The mode in force; never `Auto`.
    pub mode: Mode,
    /// The builder made a user namespace of its own inside the pod's.
    pub nested: bool,
    /// The user id outside that uid 0 of the pod is; 0 is the machine's root.
    pub root_outside: u32,
    /// How many user ids there are.
    pub ids: u64,
    /// Overlay keeps its marks in `user.overlay.*`.
    pub userxattr: bool,
}

/// Why steps cannot run here, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; {way_out}")]
pub struct Unavailable {
    /// One clear reason.
    pub reason: String,
    /// What a person can change.
    pub way_out: String,
}

impl Unavailable {
    fn new(reason: impl Into<String>, way_out: impl Into<String>) -> Self {
        Self { reason: reason.into(), way_out: way_out.into() }
    }
}

/// The plan for a mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    mode: Mode,
    /// Make a user namespace of our own.
    nest: bool,
    /// Leave a parent behind that reaps and passes signals on: process 1 of a pod gets the orphans.
    split: bool,
}

/// Moves this process into the sandbox. First thing in `main`, after [`crate::helper_main`].
///
/// In a pod this returns in a child: the parent stays behind, passes signals on, reaps, and ends
/// with the child's exit code.
pub fn enter(mode: Mode) -> Result<Sandbox, Unavailable> {
    let facts = Facts::read().map_err(|error| Unavailable::new(error.to_string(), "is /proc mounted?"))?;
    let plan = choose(mode, &facts)?;
    if plan.split {
        let maps = plan.nest.then(|| (facts.users.nested(), facts.groups.nested()));
        split::leave_parent_behind(maps)?;
    }
    process::unshare(Namespaces::MOUNT).map_err(no_mount_namespace)?;
    mount::isolate_propagation(true).map_err(no_mount_namespace)?;
    process::hide_from_peers().map_err(|error| {
        Unavailable::new(error.to_string(), "the builder must be able to hide from its steps")
    })?;
    Ok(Sandbox { mode: plan.mode, nested: plan.nest, users: facts.users })
}

impl Facts {
    fn read() -> lapstrake_sys::Result<Self> {
        Ok(Self {
            euid: rustix::process::geteuid().as_raw(),
            users: IdMap::of_users()?,
            groups: IdMap::of_groups()?,
            effective: caps::effective()?,
            pid: rustix::process::getpid().as_raw_nonzero().get(),
        })
    }
}

/// Decides by facts alone.
fn choose(wanted: Mode, facts: &Facts) -> Result<Plan, Unavailable> {
    if facts.euid != 0 {
        return Err(Unavailable::new(
            format!("the builder runs as user {}, not as root", facts.euid),
            "run it as root, or in a pod with `hostUsers: false` and `runAsUser: 0`",
        ));
    }
    let admin = facts.effective.contains(CapabilitySet::SYS_ADMIN);
    let machine_root = facts.users.is_identity();
    let mode = match wanted {
        Mode::Auto if machine_root => Mode::Root,
        Mode::Auto if admin => Mode::UserNamespace,
        Mode::Auto => Mode::Baseline,
        mode => mode,
    };
    match mode {
        Mode::Root if !admin => Err(Unavailable::new(
            "the builder is root of the machine, but without the capability SYS_ADMIN",
            "set `hostUsers: false` on the pod, on a node whose kubelet and container runtime support user \
             namespaces (some runtimes ignore the field in silence); on a laptop, run it as root",
        )),
        Mode::UserNamespace | Mode::Baseline if facts.users.outside(0) == Some(0) => Err(Unavailable::new(
            "the pod has no user namespace of its own: its root is the node's root",
            "the container runtime ignored `hostUsers: false`; user namespaces for pods need containerd 2.0 \
             or CRI-O 1.25, runc 1.2 or crun 1.9, and Linux 6.3",
        )),
        Mode::UserNamespace if !admin => Err(Unavailable::new(
            "the pod lacks the capability SYS_ADMIN, which the sandbox mode `UserNamespace` needs",
            "use the sandbox mode `Baseline`, or allow SYS_ADMIN in the namespace's Pod Security level",
        )),
        Mode::Root => Ok(Plan { mode, nest: false, split: facts.pid == 1 }),
        _ => {
            // Without these a step could not get a container's usual capabilities, or keep others.
            let needed = step_capabilities() | CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN;
            let nest = mode == Mode::Baseline || !facts.effective.contains(needed);
            Ok(Plan { mode, nest, split: nest || facts.pid == 1 })
        }
    }
}

fn no_mount_namespace(error: lapstrake_sys::Error) -> Unavailable {
    let way_out = match error.errno {
        Errno::NOSPC => "raise the node's sysctl user.max_mnt_namespaces",
        _ => "the pod's seccomp or AppArmor profile must allow mounts (AppArmor: `Unconfined`)",
    };
    Unavailable::new(format!("no mount namespace of our own ({error})"), way_out)
}

impl Sandbox {
    /// The mode in force; never `Auto`.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Sets up a step for real, with layers below `state_dir`, and says what is missing. Blocking.
    pub fn preflight(&self, state_dir: &Path) -> Result<Report, Unavailable> {
        let dir = state_dir.join("preflight");
        // Of a builder that was killed here: what it mounted is not mounted twice.
        std::fs::remove_dir_all(&dir).ok();
        let checked = self.check(&dir);
        std::fs::remove_dir_all(&dir).ok(); // A few empty directories at worst.
        checked
    }

    fn check(&self, dir: &Path) -> Result<Report, Unavailable> {
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| dir.join(name));
        for path in [&lower, &upper, &work] {
            std::fs::create_dir_all(path).map_err(|error| {
                Unavailable::new(
                    format!("cannot write to the state directory ({}: {error})", path.display()),
                    "give the builder a writable volume with room on it",
                )
            })?;
        }
        let launcher = Launcher::new(dir).map_err(explain)?;
        let rootfs = Rootfs { lowers_top_first: vec![lower], upper: Some(upper), work: Some(work) };
        let spec = StepSpec { network: Network::None, ..StepSpec::new(vec!["/".to_owned()], rootfs) };
        crate::executor::probe_blocking(&launcher, spec).map_err(explain)?;
        Ok(Report {
            mode: self.mode,
            nested: self.nested,
            root_outside: self.users.outside(0).unwrap_or(u32::MAX),
            ids: self.users.len(),
            userxattr: launcher.userxattr(),
        })
    }
}

/// One reason with its way out for what the probe ran into.
fn explain(error: RunError) -> Unavailable {
    let reason = error.to_string();
    let RunError::Sandbox { stage, errno, .. } = &error else {
        return Unavailable::new(
            reason,
            "the state directory's file system must allow mounts and attributes",
        );
    };
    let denied = [Errno::PERM.raw_os_error(), Errno::ACCESS.raw_os_error()].contains(errno);
    let full = *errno == Errno::NOSPC.raw_os_error();
    let way_out = match stage {
        Stage::Namespaces if full => {
            "raise the node's sysctls user.max_pid_namespaces, user.max_mnt_namespaces and user.max_net_namespaces"
        }
        Stage::Namespaces => {
            "the pod's seccomp profile forbids namespaces: in the mode `Baseline` leave seccompProfile unset and \
             the kubelet's seccompDefault off"
        }
        Stage::Overlay if denied => {
            "an AppArmor profile may forbid mounts (set it to `Unconfined`), or the kernel is older than 5.11"
        }
        Stage::Overlay => {
            "the state directory must lie on a file system that can hold overlay's upper layer (ext4, xfs, btrfs \
             or tmpfs; not overlay itself, not NFS)"
        }
        Stage::Proc => "set `procMount: Unmasked` on the pod's container, so that a /proc can be mounted",
        Stage::Confine => "the kernel must have seccomp filters, and the pod may not set noNewPrivileges",
        _ if denied => "an AppArmor or seccomp profile forbids it: set AppArmor to `Unconfined`",
        _ => "see the security guide for what the sandbox needs of a node",
    };
    Unavailable::new(reason, way_out)
}

#[cfg(test)]
mod tests;
