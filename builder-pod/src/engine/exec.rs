//! LLB's exec operation: a step.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::path::PathBuf;

use lapstrake_handoff::Reason;
use lapstrake_llb::{Vertex, pb};
use lapstrake_oci::Platform;
use lapstrake_run::{
    Changes, ExtraHost, MountSource, Network, Rlimit, Rootfs, RunError, StepExit, StepMount, StepSpec, Stream,
};
use lapstrake_solver::Step;
use lapstrake_store::{Active, SnapshotId};

use super::mounts::{self, Given};
use super::{Engine, Res, advice, cdi, file};
use crate::error::{BuildError, chain, is_no_space};

/// How much of a step's last output goes along with its failure.
const EXCERPT_LINES: usize = 20;
const EXCERPT_BYTES_MAX: usize = 4096;

/// A step on its way: the snapshots that receive its changes, by output.
#[derive(Default)]
pub(super) struct Prepared {
    pub(super) spec: Option<Rootfs>,
    pub(super) mounts: Vec<StepMount>,
    pub(super) outputs: Vec<(usize, Target)>,
    /// Copies that live as long as the step.
    pub(super) scratch: Vec<Active>,
    /// What is written to mounts that are no outputs, by their places, where it is kept should the step fail.
    pub(super) discarded: Vec<(String, Active)>,
}

/// Where an output of a step comes from.
pub(super) enum Target {
    Written(Active),
    /// A read-only mount yields what it was.
    Same(Option<SnapshotId>),
}

impl Engine {
    pub(super) async fn exec(
        &self,
        exec: &pb::ExecOp,
        vertex: &Vertex,
        platform: &Platform,
        inputs: Vec<Res>,
        step: &Step,
    ) -> Result<Vec<Res>, BuildError> {
        let exec = &*with_absolute_mounts(exec);
        let meta =
            exec.meta.as_ref().ok_or_else(|| BuildError::internal("an exec operation has no command"))?;
        check_supported(exec)?;
        self.check_allowed(exec)?;
        let mut prepared = Prepared::default();
        for mount in exec.mounts.iter().filter(|mount| !mounts::is_given(mount)) {
            self.prepare_mount(mount, &inputs, &mut prepared, step).await?;
        }
        // A turn at a cache is waited for before a slot is taken: whoever has the turn needs a slot to end it.
        let caches = self.cache_mounts(exec, &inputs, &mut prepared, step).await?;
        let permit = tokio::select! {
            permit = self.slots.acquire() => permit.map_err(BuildError::internal)?,
            () = step.cancel.cancelled() => return Err(BuildError::canceled()),
        };
        let given = self.give_step(exec, &mut prepared).await?;
        let devices = self.devices(exec, step).await?;
        prepared.mounts.extend(devices.mounts);
        let mut spec = step_spec(exec, meta, &mut prepared, &given)?;
        spec.env.extend(devices.env);
        spec.control_group = self.control_group(meta, spec.insecure, Some(vertex), step)?;
        let mut tail = Tail::default();
        let mut masked = given.inputs.masks().filter();
        let mut show = |stream: usize, bytes: &[u8]| {
            tail.push(bytes);
            step.log(if stream == 0 { 1 } else { 2 }, bytes);
        };
        let mut sink = |stream: Stream, bytes: &[u8]| {
            let stream = usize::from(stream == Stream::Stderr);
            masked.push(stream, bytes, |bytes| show(stream, bytes));
        };
        let exit = self.run_step(spec, platform, &mut sink, &step.cancel).await;
        masked.finish(&mut show);
        drop((permit, caches));
        // Looked at while the step's files are still there.
        let disk_full = tail.says_no_space() || is_full(self.store.root());
        let judged = exit
            .and_then(|exit| judge(exit, meta, &tail, disk_full, &given.absent))
            .map_err(|error| given.masked(&error));
        let Prepared { outputs, scratch, discarded, .. } = prepared;
        let judged = match judged {
            Err(error) if self.keeps_failed(&error) => {
                return Err(self.with_remains(&error, vertex, exec, &inputs, outputs, discarded).await);
            }
            judged => judged,
        };
        let (outputs, refuse) = if judged.is_ok() { (outputs, Vec::new()) } else { (Vec::new(), outputs) };
        // A failed step may leave many files: that they go must not hold up others.
        tokio::task::spawn_blocking(move || drop((scratch, discarded, refuse)))
            .await
            .map_err(BuildError::internal)?;
        judged?;
        in_order(outputs)?.into_iter().map(|target| self.finish(target)).collect()
    }

    /// What a step may have is decided with its Dockerfile; whoever describes operations himself is asked here.
    pub(crate) fn check_allowed(&self, exec: &pb::ExecOp) -> Result<(), BuildError> {
        let inputs = self.step_inputs();
        let refused = |what: &str| Err(BuildError::new(Reason::StepFailed, format!("{what} is not allowed")));
        if exec.security == pb::SecurityMode::Insecure as i32 && !inputs.allows_insecure() {
            return refused("security.insecure");
        }
        if exec.network == pb::NetMode::Host as i32 && !inputs.allows_host_network() {
            return refused("network.host");
        }
        Ok(())
    }

    /// What the step is given for the devices that it asks for.
    async fn devices(&self, exec: &pb::ExecOp, step: &Step) -> Result<cdi::Edits, BuildError> {
        let (dirs, wanted) = (self.step_inputs().device_dirs(), exec.cdi_devices.clone());
        let granted = self.step_inputs().granted_devices();
        let work = move || cdi::edits(&dirs, &wanted, &granted);
        let edits = tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)??;
        for note in &edits.notes {
            step.log(2, format!("{note}\n").as_bytes());
        }
        Ok(edits)
    }

    fn finish(&self, target: Target) -> Result<Res, BuildError> {
        Ok(Res::Snapshot(match target {
            Target::Same(id) => id,
            Target::Written(active) => Some(self.commit(active)?),
        }))
    }

    pub(super) async fn prepare_mount(
        &self,
        mount: &pb::Mount,
        inputs: &[Res],
        prepared: &mut Prepared,
        step: &Step,
    ) -> Result<(), BuildError> {
        let output = usize::try_from(mount.output).ok();
        let is_root = mount.dest == "/";
        if let Some(source) = without_input(mount)? {
            prepared.mounts.push(step_mount(mount, source));
            return Ok(());
        }
        let input = match usize::try_from(mount.input) {
            Ok(at) => {
                inputs.get(at).cloned().ok_or_else(|| BuildError::internal("a mount names no input"))?
            }
            Err(_) => Res::Snapshot(None),
        };
        let id = match input {
            Res::Snapshot(id) => id,
            Res::Lazy(_) => return Err(super::not_realised()),
            Res::Context(context) => {
                let active = file::materialize(self, context, mount.selector.clone(), step).await?;
                let layers = MountSource::Layers {
                    lowers_top_first: vec![active.upper()],
                    changes: if mount.readonly { Changes::Refused } else { Changes::Discarded },
                };
                prepared.scratch.push(active);
                prepared.mounts.push(step_mount(mount, layers));
                return Ok(());
            }
        };
        let keeps = output.is_some() || (self.may_keep_failed() && !is_root);
        let written = (!mount.readonly && keeps).then(|| self.store.prepare(id)).transpose()?;
        let mut lowers_top_first = self.lowers(id)?;
        if lowers_top_first.is_empty() && !is_root {
            // An overlay has something below.
            lowers_top_first.push(self.nothing.clone());
        }
        if is_root {
            let (upper, work) = match &written {
                Some(active) => (Some(active.upper()), Some(active.work())),
                None => (None, None),
            };
            prepared.spec = Some(Rootfs { lowers_top_first, upper, work });
        } else {
            let changes = match &written {
                Some(active) => Changes::Kept { upper: active.upper(), work: active.work() },
                None if mount.readonly => Changes::Refused,
                None => Changes::Discarded,
            };
            prepared.mounts.push(step_mount(mount, MountSource::Layers { lowers_top_first, changes }));
        }
        match (output, written) {
            (Some(output), written) => {
                prepared.outputs.push((output, written.map_or(Target::Same(id), Target::Written)));
            }
            (None, written) => prepared.discarded.extend(written.map(|active| (mount.dest.clone(), active))),
        }
        Ok(())
    }
}

/// Outputs by number, each once and none left out: who asks for one finds it at its place.
fn in_order<T>(mut outputs: Vec<(usize, T)>) -> Result<Vec<T>, BuildError> {
    outputs.sort_by_key(|(number, _)| *number);
    match outputs.iter().enumerate().all(|(at, (number, _))| at == *number) {
        true => Ok(outputs.into_iter().map(|(_, output)| output).collect()),
        false => Err(BuildError::internal("an exec operation lacks one of its outputs")),
    }
}

/// The same, with mounts whose places are relative below the step's working directory.
fn with_absolute_mounts(exec: &pb::ExecOp) -> Cow<'_, pb::ExecOp> {
    if exec.mounts.iter().all(|mount| mount.dest.is_empty() || mount.dest.starts_with('/')) {
        return Cow::Borrowed(exec);
    }
    let mut exec = exec.clone();
    let cwd = exec.meta.as_ref().map_or("/", |meta| meta.cwd.as_str()).to_owned();
    for mount in exec.mounts.iter_mut().filter(|mount| !mount.dest.is_empty() && !mount.dest.starts_with('/'))
    {
        mount.dest = lapstrake_fileop::path::clean_lexically(&format!("/{cwd}/{}", mount.dest));
    }
    Cow::Owned(exec)
}

/// What is no mode of a step is refused, never taken for another one.
pub(super) fn check_supported(exec: &pb::ExecOp) -> Result<(), BuildError> {
    let known = [pb::SecurityMode::Sandbox as i32, pb::SecurityMode::Insecure as i32];
    match known.contains(&exec.security) {
        true => Ok(()),
        false => Err(BuildError::new(Reason::StepFailed, format!("invalid security mode {}", exec.security))),
    }
}

pub(super) fn step_spec(
    exec: &pb::ExecOp,
    meta: &pb::Meta,
    prepared: &mut Prepared,
    given: &Given,
) -> Result<StepSpec, BuildError> {
    let rootfs = prepared.spec.take().ok_or_else(|| BuildError::internal("an exec operation has no root"))?;
    Ok(StepSpec {
        args: meta.args.clone(),
        env: environment(meta, &given.inputs.proxy()),
        secret_env: given.secret_env.clone(),
        cwd: meta.cwd.clone(),
        user: meta.user.clone(),
        rootfs,
        mounts: std::mem::take(&mut prepared.mounts),
        network: network(exec)?,
        hostname: meta.hostname.clone(),
        extra_hosts: extra_hosts(meta)?,
        rlimits: meta.ulimit.iter().map(rlimit).collect(),
        shm_bytes: None,
        certificates: given.certificates.clone(),
        emulator: None,
        insecure: exec.security == pb::SecurityMode::Insecure as i32,
        control_group: None,
        duplex: false,
        input: lapstrake_run::Input::None,
    })
}

/// What a mount shows that shows no input; `None` where it does.
fn without_input(mount: &pb::Mount) -> Result<Option<MountSource>, BuildError> {
    match pb::MountType::try_from(mount.mount_type) {
        Ok(pb::MountType::Bind) => Ok(None),
        Ok(pb::MountType::Tmpfs) => {
            let size = mount.tmpfs_opt.as_ref().and_then(|t| u64::try_from(t.size).ok());
            Ok(Some(MountSource::Tmpfs { size_bytes: size.filter(|size| *size > 0) }))
        }
        Ok(kind) => {
            let kind = kind.as_str_name().to_lowercase();
            Err(BuildError::new(Reason::NotSupported, format!("mounts of type {kind} are not supported yet")))
        }
        Err(_) => Err(BuildError::internal("an exec operation has a mount of an unknown type")),
    }
}

pub(super) fn step_mount(mount: &pb::Mount, source: MountSource) -> StepMount {
    StepMount {
        target: PathBuf::from(&mount.dest),
        source,
        subpath: PathBuf::from(mount.selector.trim_start_matches('/')),
        readonly: mount.readonly,
        nosuid: false,
        noexec: false,
    }
}

/// The step's variables and, behind them, the proxy's, which do not enter the cache key.
fn environment(meta: &pb::Meta, builders: &[(&str, &str)]) -> Vec<String> {
    let mut env = meta.env.clone();
    let own = meta.proxy_env.as_ref().map(|proxy| {
        [
            ("HTTP_PROXY", &*proxy.http_proxy),
            ("HTTPS_PROXY", &proxy.https_proxy),
            ("FTP_PROXY", &proxy.ftp_proxy),
            ("NO_PROXY", &proxy.no_proxy),
            ("ALL_PROXY", &proxy.all_proxy),
        ]
    });
    for (name, value) in own.iter().flatten().chain(builders) {
        for name in [(*name).to_owned(), name.to_lowercase()] {
            let set = env.iter().any(|e| e.split_once('=').is_some_and(|(n, _)| n == name));
            if !value.is_empty() && !set {
                env.push(format!("{name}={value}"));
            }
        }
    }
    env
}

fn network(exec: &pb::ExecOp) -> Result<Network, BuildError> {
    match pb::NetMode::try_from(exec.network) {
        Ok(pb::NetMode::None) => Ok(Network::None),
        // Steps have the builder's network anyway; whether one may name it was decided with the Dockerfile.
        Ok(pb::NetMode::Unset | pb::NetMode::Host) => Ok(Network::Host),
        Err(_) => Err(BuildError::internal("an exec operation asks for an unknown network")),
    }
}

fn extra_hosts(meta: &pb::Meta) -> Result<Vec<ExtraHost>, BuildError> {
    let host = |h: &pb::HostIp| match h.ip.parse() {
        Ok(ip) => Ok(ExtraHost { name: h.host.clone(), ip }),
        Err(_) => Err(BuildError::internal(format!("extra host {} has no valid address", h.host))),
    };
    meta.extra_hosts.iter().map(host).collect()
}

fn rlimit(limit: &pb::Ulimit) -> Rlimit {
    let bound = |n: i64| u64::try_from(n).ok();
    Rlimit { name: limit.name.clone(), soft: bound(limit.soft), hard: bound(limit.hard) }
}

/// Less room than this for what a step writes counts as none: a block or two may be left over.
const FULL_BYTES: u64 = 128 << 10;

/// Programs have many words for a full disk, so the disk is asked too.
fn is_full(state: &std::path::Path) -> bool {
    rustix::fs::statvfs(state).is_ok_and(|disk| {
        let no_inode = disk.f_files > 0 && disk.f_favail == 0;
        no_inode || disk.f_bavail.saturating_mul(disk.f_frsize) < FULL_BYTES
    })
}

/// A message names a command, but is not as long as a script may be.
const COMMAND_CHARS_MAX: usize = 300;

fn shortened(command: &str) -> String {
    match command.char_indices().nth(COMMAND_CHARS_MAX) {
        Some((at, _)) => format!("{}…", &command[..at]),
        None => command.to_owned(),
    }
}

/// What the way that a step ended means.
/// Why a step could not be run to its end.
pub(super) fn not_run(error: &RunError) -> BuildError {
    let reason = match error {
        RunError::Canceled => return BuildError::canceled(),
        _ if is_no_space(error) => Reason::DiskFull,
        _ if error.is_users() => Reason::StepFailed,
        RunError::Sandbox { .. } => Reason::SandboxUnavailable,
        _ => Reason::Internal,
    };
    BuildError::new(reason, chain(error))
}

fn judge(
    exit: Result<StepExit, RunError>,
    meta: &pb::Meta,
    tail: &Tail,
    disk_full: bool,
    absent: &[String],
) -> Result<(), BuildError> {
    let exit = match exit {
        Ok(exit) => exit,
        Err(error) => {
            let error = not_run(&error);
            return Err(match error.failure().reason {
                Reason::StepFailed => error.of_process(shortened(&meta.args.join(" "))),
                _ => error,
            });
        }
    };
    let valid = if meta.valid_exit_codes.is_empty() {
        exit.code == 0
    } else {
        meta.valid_exit_codes.contains(&exit.code)
    };
    if valid && !exit.oom_killed {
        return Ok(());
    }
    let command = shortened(&meta.args.join(" "));
    let (reason, message) = if exit.oom_killed {
        let hint = "out of memory: the step was killed for using more than it or the builder may have; raise that limit";
        (Reason::OutOfMemory, format!("\"{command}\": {hint}"))
    } else if disk_full {
        (
            Reason::DiskFull,
            format!("\"{command}\" failed with exit code {}: no space left on the builder's disk", exit.code),
        )
    } else {
        (Reason::StepFailed, format!("\"{command}\" failed with exit code {}", exit.code))
    };
    let error = BuildError::new(reason, message);
    let error = error.with(|failure| {
        failure.exit_code = Some(exit.code);
        failure.excerpt = tail.text();
    });
    let advice = (reason == Reason::StepFailed).then(|| advice::exit(exit.code, absent)).flatten();
    Err(advice.map_or_else(|| error.clone(), |advice| error.advised(advice)))
}

/// The last lines that a step printed.
#[derive(Default)]
struct Tail {
    lines: VecDeque<String>,
    partial: Vec<u8>,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.partial.len() > EXCERPT_BYTES_MAX {
                let line = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
                self.partial.clear();
                self.lines.push_back(line);
                if self.lines.len() > EXCERPT_LINES {
                    self.lines.pop_front();
                }
            }
        }
    }

    fn text(&self) -> String {
        let mut text: Vec<String> = self.lines.iter().cloned().collect();
        if !self.partial.is_empty() {
            text.push(String::from_utf8_lossy(&self.partial).into_owned());
        }
        text.join("\n")
    }

    fn says_no_space(&self) -> bool {
        self.text().contains("No space left on device")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_explain_a_failure() {
        let mut tail = Tail::default();
        for n in 0..30 {
            tail.push(format!("line {n}\nhalf").as_bytes());
            tail.push(b" a line\n");
        }
        tail.push(b"no end");
        let text = tail.text();
        assert!(text.ends_with("half a line\nno end") && text.lines().count() == EXCERPT_LINES + 1, "{text}");
    }

    #[test]
    fn an_output_that_is_not_made_is_an_error_and_no_silence() {
        assert_eq!(in_order(vec![(1, 'b'), (0, 'a')]).ok(), Some(vec!['a', 'b']));
        for lacking in [vec![(1, 'b')], vec![(0, 'a'), (2, 'c')], vec![(0, 'a'), (0, 'b')]] {
            assert!(in_order(lacking).is_err());
        }
    }

    #[test]
    fn an_unknown_security_mode_is_refused() {
        assert!(check_supported(&pb::ExecOp::default()).is_ok());
        let unknown = pb::ExecOp { security: 7, ..Default::default() };
        let error = check_supported(&unknown).expect_err("refused");
        assert_eq!(error.failure().message, "invalid security mode 7");
    }

    #[test]
    fn a_proxy_is_set_where_the_step_has_none() {
        let proxy_env = pb::ProxyEnv { https_proxy: "arg".into(), ..Default::default() };
        let meta =
            pb::Meta { env: vec!["HTTP_PROXY=own".into()], proxy_env: Some(proxy_env), ..Default::default() };
        let env = environment(&meta, &[("HTTP_PROXY", "b"), ("HTTPS_PROXY", "b"), ("NO_PROXY", "local")]);
        let expected = [
            "HTTP_PROXY=own",
            "HTTPS_PROXY=arg",
            "https_proxy=arg",
            "http_proxy=b",
            "NO_PROXY=local",
            "no_proxy=local",
        ];
        assert_eq!(env, expected);
    }

    #[test]
    fn an_exit_code_is_judged_and_named() {
        let meta = pb::Meta { args: vec!["make".into()], ..Default::default() };
        let exit = |code, oom_killed| Ok(StepExit { code, signal: None, oom_killed });
        assert!(judge(exit(0, false), &meta, &Tail::default(), false, &[]).is_ok());
        let error = judge(exit(2, false), &meta, &Tail::default(), false, &[]).expect_err("failed");
        assert_eq!((error.failure().reason, error.failure().exit_code), (Reason::StepFailed, Some(2)));
        let error = judge(exit(137, true), &meta, &Tail::default(), false, &[]).expect_err("killed");
        assert_eq!(error.failure().reason, Reason::OutOfMemory);
    }
}
