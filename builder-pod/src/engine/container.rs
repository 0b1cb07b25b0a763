//! Containers that frontends ask for: mounts as a step has them, and programs that are spoken with.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lapstrake_handoff::Reason;
use lapstrake_llb::pb;
use lapstrake_oci::Platform;
use lapstrake_run::{Changes, Inside, Live, MountSource, SecretVar, StepSpec, Streams, runs_natively};
use lapstrake_solver::Step;
use lapstrake_store::CacheDir;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::exec::{self, Prepared};
use super::mounts::{self, Given};
use super::{Engine, FailedOp, Res};
use crate::error::BuildError;

/// What a container is asked to be.
#[derive(Default)]
pub(crate) struct Wanted {
    /// Its mounts, with what is in them.
    pub(crate) mounts: Vec<(pb::Mount, Option<Res>)>,
    /// Its network, as messages have it.
    pub(crate) network: i32,
    /// Its host name; empty: that of all steps.
    pub(crate) hostname: String,
    /// Lines for `/etc/hosts`.
    pub(crate) hosts: Vec<pb::HostIp>,
    /// The platform of its programs; this machine's where there is none.
    pub(crate) platform: Option<Platform>,
    /// Failures whose remains it shows.
    pub(crate) of: Vec<Arc<FailedOp>>,
}

/// A program in a container.
#[derive(Debug, Clone, Default)]
pub(crate) struct Process {
    /// It and its arguments, environment, directory and user.
    pub(crate) meta: pb::Meta,
    /// Variables with secret values.
    pub(crate) secret_env: Vec<pb::SecretEnv>,
    /// Its privileges, as messages have them.
    pub(crate) security: i32,
    /// What it reads.
    pub(crate) input: lapstrake_run::Input,
}

/// A container. Its first program is the one whose end ends it.
pub(crate) struct Container {
    template: StepSpec,
    platform: Platform,
    /// Where the files of each mount are, topmost first.
    views: Vec<Option<View>>,
    first: Mutex<First>,
    begun: AtomicBool,
    /// Fires when it is to end.
    pub(crate) cancel: CancellationToken,
    /// Programs that have not ended.
    pub(crate) programs: TaskTracker,
    held: Option<Held>,
}

/// Files of a mount.
#[derive(Clone)]
struct View {
    dirs: Vec<PathBuf>,
    below: PathBuf,
}

enum First {
    NotYet,
    Started(Option<Inside>),
}

/// What it lies on; the order is that in which it goes.
struct Held {
    _prepared: Prepared,
    _caches: Vec<CacheDir>,
    _given: Given,
    _of: Vec<Arc<FailedOp>>,
}

impl Drop for Container {
    fn drop(&mut self) {
        let held = self.held.take();
        // Many files may go.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(held));
        }
    }
}

fn refused(why: impl Into<String>) -> BuildError {
    BuildError::new(Reason::RequestInvalid, why)
}

/// The request as the operation of a step, whose writable mounts are all kept apart.
fn as_exec(wanted: &Wanted) -> Result<(pb::ExecOp, Vec<Res>), BuildError> {
    let (mut mounts, mut inputs, mut outputs) = (Vec::new(), Vec::new(), 0);
    for (mount, content) in &wanted.mounts {
        let is_bind = mount.mount_type == pb::MountType::Bind as i32;
        if mount.dest == "/" && !is_bind {
            let kind = pb::MountType::try_from(mount.mount_type).map_or("unknown", |kind| kind.as_str_name());
            return Err(refused(format!("invalid mount type {kind} for /")));
        }
        let mut mount = mount.clone();
        mount.readonly &= mount.dest != "/";
        mount.input = -1;
        if let Some(content) = content {
            mount.input = i64::try_from(inputs.len()).unwrap_or(-1);
            inputs.push(content.clone());
        }
        mount.output = -1;
        if is_bind && !mount.readonly {
            mount.output = outputs;
            outputs += 1;
        }
        mounts.push(mount);
    }
    if !mounts.iter().any(|mount| mount.dest == "/") {
        return Err(refused("root mount is required"));
    }
    let meta = pb::Meta {
        hostname: wanted.hostname.clone(),
        extra_hosts: wanted.hosts.clone(),
        ..pb::Meta::default()
    };
    let exec = pb::ExecOp { meta: Some(meta), mounts, network: wanted.network, ..pb::ExecOp::default() };
    Ok((exec, inputs))
}

impl Engine {
    /// Makes a container; none of its programs runs yet.
    pub(crate) async fn container(
        &self,
        wanted: Wanted,
        cancel: CancellationToken,
    ) -> Result<Container, BuildError> {
        let (op, inputs) = as_exec(&wanted)?;
        self.check_allowed(&op)?;
        let step = Step::unwatched(cancel.clone());
        let inputs = self.all_realised(inputs, &step).await?;
        let mut prepared = Prepared::default();
        for mount in op.mounts.iter().filter(|mount| !mounts::is_given(mount)) {
            self.prepare_mount(mount, &inputs, &mut prepared, &step).await?;
        }
        let caches = self.cache_mounts(&op, &inputs, &mut prepared, &step).await?;
        let given = self.give_step(&op, &mut prepared).await?;
        let meta = op.meta.clone().unwrap_or_default();
        let mut template = exec::step_spec(&op, &meta, &mut prepared, &given)?;
        template.control_group = self.control_group(&meta, template.insecure, None, &step)?;
        let views = op.mounts.iter().map(|mount| view(mount, &template)).collect();
        Ok(Container {
            platform: wanted.platform.unwrap_or_else(|| self.platform.clone()),
            template,
            views,
            first: Mutex::new(First::NotYet),
            begun: AtomicBool::new(false),
            cancel,
            programs: TaskTracker::new(),
            held: Some(Held { _prepared: prepared, _caches: caches, _given: given, _of: wanted.of }),
        })
    }

    /// Starts a program in a container.
    pub(crate) async fn start_in(
        &self,
        container: &Container,
        process: Process,
    ) -> Result<(Live, Streams), BuildError> {
        let asked = pb::ExecOp { security: process.security, ..pb::ExecOp::default() };
        super::exec::check_supported(&asked)?;
        self.check_allowed(&asked)?;
        let mut spec = container.template.clone();
        spec.secret_env = self.secret_variables(process.secret_env).await?;
        let meta = process.meta;
        (spec.args, spec.cwd, spec.user) = (meta.args, meta.cwd, meta.user);
        spec.env = meta.env;
        if !spec.env.iter().any(|variable| variable.starts_with("PATH=")) {
            spec.env.push(format!("PATH={}", default_path(&container.platform.os)));
        }
        if process.input == lapstrake_run::Input::Terminal && !spec.env.iter().any(|e| e.starts_with("TERM="))
        {
            spec.env.push("TERM=xterm".to_owned());
        }
        spec.input = process.input;
        spec.insecure = process.security == pb::SecurityMode::Insecure as i32;
        // What is for another system is started as it is: who asks for that knows what is in it.
        if container.platform.os == self.platform.os && !runs_natively(&container.platform.architecture) {
            spec.emulator = self.emulator_of(&container.platform)?;
        }
        let mut first = container.first.lock().await;
        if container.cancel.is_cancelled() {
            return Err(refused("container is closed"));
        }
        let inside = match &*first {
            First::NotYet => None,
            First::Started(Some(inside)) => Some(inside.clone()),
            First::Started(None) => return Err(refused("the container's first program has ended")),
        };
        let started = self.executor.start(&spec, inside.as_ref(), &container.cancel).await;
        let (live, streams) = started.map_err(|error| exec::not_run(&error))?;
        if inside.is_none() {
            *first = First::Started(live.inside());
            container.begun.store(true, Ordering::Release);
        }
        Ok((live, streams))
    }

    async fn secret_variables(&self, asked: Vec<pb::SecretEnv>) -> Result<Vec<SecretVar>, BuildError> {
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let inputs = self.step_inputs();
        let handle = tokio::runtime::Handle::current();
        let read = move || {
            let _runtime = handle.enter();
            mounts::secret_variables(&asked, &inputs).map(|(variables, _)| variables)
        };
        tokio::task::spawn_blocking(read).await.map_err(BuildError::internal)?
    }
}

/// Where programs are looked for, as each system has it.
fn default_path(os: &str) -> &'static str {
    match os {
        "windows" => r"c:\Windows\System32;c:\Windows;C:\Windows\System32\WindowsPowerShell\v1.0",
        _ => lapstrake_run::PATH_DEFAULT,
    }
}

/// Where the files of a mount are found from outside.
fn view(mount: &pb::Mount, spec: &StepSpec) -> Option<View> {
    let dirs = |lowers: &[PathBuf], upper: Option<&PathBuf>| {
        upper.into_iter().chain(lowers).cloned().collect::<Vec<_>>()
    };
    if mount.dest == "/" {
        let dirs = dirs(&spec.rootfs.lowers_top_first, spec.rootfs.upper.as_ref());
        return Some(View { dirs, below: PathBuf::new() });
    }
    let found = spec.mounts.iter().find(|one| one.target.as_os_str() == mount.dest.as_str())?;
    let dirs = match &found.source {
        MountSource::Bind(path) => vec![path.clone()],
        MountSource::Layers { lowers_top_first, changes } => match changes {
            Changes::Kept { upper, .. } => dirs(lowers_top_first, Some(upper)),
            Changes::Refused | Changes::Discarded => dirs(lowers_top_first, None),
        },
        _ => return None,
    };
    Some(View { dirs, below: found.subpath.clone() })
}

impl Container {
    /// Whether its first program has been started. Does not wait for one that is just being started, as the state itself would.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// The files of one of its mounts, to look at. Blocking.
    pub(crate) fn look_into(&self, mount: usize, userxattr: bool) -> Result<(OwnedFd, PathBuf), BuildError> {
        let view = self.views.get(mount).cloned().flatten();
        let view =
            view.ok_or_else(|| refused(format!("mount {mount} has no files that can be looked at")))?;
        let root = match view.dirs.as_slice() {
            [only] => lapstrake_fileop::open_root(only)?,
            dirs => {
                lapstrake_sys::overlay::mount_detached(dirs, None, userxattr).map_err(BuildError::internal)?
            }
        };
        Ok((root, view.below))
    }

    /// Ends it, and waits until nothing of it runs.
    pub(crate) async fn release(&self) {
        self.cancel.cancel();
        // Who was about to start a program has seen that, or has started it.
        drop(self.first.lock().await);
        self.programs.close();
        self.programs.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(dest: &str, kind: pb::MountType, readonly: bool) -> (pb::Mount, Option<Res>) {
        let mount =
            pb::Mount { dest: dest.into(), mount_type: kind.into(), readonly, ..pb::Mount::default() };
        (mount, None)
    }

    #[test]
    fn a_container_has_a_root_of_files() {
        let wanted = Wanted { mounts: vec![mount("/a", pb::MountType::Bind, false)], ..Wanted::default() };
        let error = as_exec(&wanted).map(drop).expect_err("no root");
        assert_eq!(error.failure().message, "root mount is required");
        let wanted = Wanted { mounts: vec![mount("/", pb::MountType::Tmpfs, false)], ..Wanted::default() };
        let error = as_exec(&wanted).map(drop).expect_err("no files");
        assert_eq!(error.failure().message, "invalid mount type TMPFS for /");
    }

    #[test]
    fn each_mount_that_is_written_keeps_its_changes_apart() {
        let mounts = vec![
            mount("/", pb::MountType::Bind, true),
            mount("/r", pb::MountType::Bind, true),
            mount("/c", pb::MountType::Cache, false),
            mount("/w", pb::MountType::Bind, false),
        ];
        let (op, _) = as_exec(&Wanted { mounts, ..Wanted::default() }).expect("valid");
        let outputs: Vec<_> = op.mounts.iter().map(|mount| (mount.output, mount.readonly)).collect();
        assert_eq!(outputs, [(0, false), (-1, true), (-1, false), (1, false)]);
    }
}
