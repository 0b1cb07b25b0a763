//! What a step is given beside layers: caches, secrets, SSH agents, certificates.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use lapstrake_fileop::Selector;
use lapstrake_handoff::Reason;
use lapstrake_llb::{Graph, pb};
use lapstrake_run::{MountSource, SecretBytes, SecretVar, StepCertificates, StepFile, StepMount};
use lapstrake_solver::Step;
use lapstrake_ssh::Socket;
use lapstrake_store::{CacheDir, CacheDirKey, Sharing};

use super::exec::{Prepared, step_mount};
use super::{Engine, Res, advice, file};
use crate::error::{BuildError, chain};
use crate::inputs::{GivenAgent, StepInputs};

/// Where OpenSSH looks for the keys of hosts beside a user's own file.
const KNOWN_HOSTS: &str = "/etc/ssh/ssh_known_hosts";

/// What a step has while it runs; dropped, its sockets go.
pub(super) struct Given {
    pub(super) inputs: Arc<StepInputs>,
    pub(super) secret_env: Vec<SecretVar>,
    pub(super) certificates: Option<StepCertificates>,
    /// Secrets that the step would like to have, and the build was not given.
    pub(super) absent: Vec<String>,
    _sockets: Vec<Socket>,
}

impl Given {
    /// The failure without values of secrets, wherever they may have got into it.
    pub(super) fn masked(&self, error: &BuildError) -> BuildError {
        let masks = self.inputs.masks();
        let clean = |text: &str| masks.text(text) == text;
        let failure = error.failure();
        if clean(&failure.message) && clean(&failure.excerpt) {
            return error.clone();
        }
        error.with(|failure| {
            failure.message = masks.text(&failure.message);
            failure.excerpt = masks.text(&failure.excerpt);
        })
    }
}

/// Whether a mount is one of those that are dealt with here.
pub(super) fn is_given(mount: &pb::Mount) -> bool {
    use pb::MountType;
    matches!(MountType::try_from(mount.mount_type), Ok(MountType::Cache | MountType::Secret | MountType::Ssh))
}

/// A cache mount and the directory that it asks for.
struct Wanted<'a> {
    mount: &'a pb::Mount,
    sharing: Sharing,
    /// What a new directory begins with.
    from: Option<Res>,
}

impl Engine {
    /// Drops the caches of steps that take nothing from the cache, as BuildKit does: once in a build, before its steps run.
    pub(crate) async fn drop_caches(&self, graph: &Graph) -> Result<(), BuildError> {
        let ignoring = graph.vertices().iter().filter(|vertex| vertex.metadata.ignore_cache);
        let mounts = ignoring.flat_map(|vertex| match &vertex.op {
            pb::op::Op::Exec(exec) => exec.mounts.as_slice(),
            _ => &[],
        });
        let ids = mounts.filter_map(|mount| mount.cache_opt.as_ref()).map(|options| options.id.clone());
        let ids: Vec<String> = {
            let mut dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
            ids.filter(|id| dropped.insert(id.clone())).collect()
        };
        if ids.is_empty() {
            return Ok(());
        }
        let store = self.store.clone();
        let drop_all = move || ids.iter().try_for_each(|id| store.drop_cache_dirs(id));
        Ok(tokio::task::spawn_blocking(drop_all).await.map_err(BuildError::internal)??)
    }

    /// Takes the directories of a step's cache mounts, which are in use until they are dropped.
    ///
    /// They are taken in one order by all steps: two that want the same two never wait for each other.
    pub(super) async fn cache_mounts(
        &self,
        exec: &pb::ExecOp,
        inputs: &[Res],
        prepared: &mut Prepared,
        step: &Step,
    ) -> Result<Vec<CacheDir>, BuildError> {
        let mut wanted: BTreeMap<(String, Option<String>), Vec<Wanted<'_>>> = BTreeMap::new();
        for mount in &exec.mounts {
            let Some(options) = mount.cache_opt.as_ref().filter(|_| is_given(mount)) else { continue };
            let sharing = match pb::CacheSharingOpt::try_from(options.sharing) {
                Ok(pb::CacheSharingOpt::Private) => Sharing::Private,
                Ok(pb::CacheSharingOpt::Locked) => Sharing::Locked,
                Ok(pb::CacheSharingOpt::Shared) | Err(_) => Sharing::Shared,
            };
            let from = usize::try_from(mount.input).ok().and_then(|input| inputs.get(input)).cloned();
            let from = from.filter(|res| !matches!(res, Res::Snapshot(None)));
            let base = match &from {
                None => None,
                Some(from) => Some(self.cache_base(from, mount, step).await?),
            };
            let key = (options.id.clone(), base);
            wanted.entry(key).or_default().push(Wanted { mount, sharing, from });
        }
        let mut taken = Vec::with_capacity(wanted.len());
        for ((id, base), mounts) in wanted {
            let key = CacheDirKey { id, base };
            taken.push(self.cache_mount(&key, &mounts, prepared, step).await?);
        }
        Ok(taken)
    }

    /// What a cache begins with, in words: another content, another cache.
    async fn cache_base(&self, from: &Res, mount: &pb::Mount, step: &Step) -> Result<String, BuildError> {
        if let (Res::Snapshot(Some(id)), "" | "/") = (from, mount.selector.as_str()) {
            // A whole image is not read for this.
            return Ok(format!("snapshot {id}"));
        }
        let selector = Selector { path: mount.selector.clone(), follow_links: true, ..Selector::default() };
        let digest = file::checksum(self, from, vec![selector], step).await?;
        Ok(format!("{} {digest}", mount.selector))
    }

    /// One directory for all mounts of a step that name it: none of them waits for another one.
    async fn cache_mount(
        &self,
        key: &CacheDirKey,
        mounts: &[Wanted<'_>],
        prepared: &mut Prepared,
        step: &Step,
    ) -> Result<CacheDir, BuildError> {
        let strictest = |sharing: &Sharing| match sharing {
            Sharing::Locked => 2,
            Sharing::Private => 1,
            Sharing::Shared => 0,
        };
        let sharing =
            mounts.iter().map(|wanted| wanted.sharing).max_by_key(strictest).unwrap_or(Sharing::Shared);
        let dir = tokio::select! {
            dir = self.store.cache_dir(key, sharing) => dir?,
            () = step.cancel.cancelled() => return Err(BuildError::canceled()),
        };
        if dir.is_fresh()
            && let Some(Wanted { mount, from: Some(from), .. }) = mounts.first()
        {
            file::fill(self, from.clone(), mount.selector.clone(), dir.path().to_owned(), step).await?;
            dir.ready()?;
        }
        for wanted in mounts {
            let selector = wanted.mount.selector.trim_matches('/');
            if wanted.from.is_none() && !selector.is_empty() {
                let root = lapstrake_sys::fs::open_root(dir.path()).map_err(BuildError::internal)?;
                lapstrake_sys::fs::create_dirs(&root, selector, 0o755.into())
                    .map_err(BuildError::internal)?;
            }
            prepared.mounts.push(step_mount(wanted.mount, MountSource::Bind(dir.path().to_owned())));
        }
        Ok(dir)
    }

    /// Reads the secrets that a step asks for, and starts its agents.
    pub(super) async fn give_step(
        &self,
        exec: &pb::ExecOp,
        prepared: &mut Prepared,
    ) -> Result<Given, BuildError> {
        let inputs = self.step_inputs();
        let sockets = self.store.side_dir("ssh")?;
        let exec = exec.clone();
        // Files may be anything, a pipe included.
        let handle = tokio::runtime::Handle::current();
        let work = move || {
            // Sockets are served by the runtime.
            let _runtime = handle.enter();
            read(&exec, inputs, sockets)
        };
        let (given, mounts) = tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)??;
        prepared.mounts.extend(mounts);
        Ok(given)
    }
}

/// Variables with secret values, and ids of those that are wanted and not there. Blocking.
pub(super) fn secret_variables(
    asked: &[pb::SecretEnv],
    inputs: &StepInputs,
) -> Result<(Vec<SecretVar>, Vec<String>), BuildError> {
    let (mut secret_env, mut absent) = (Vec::new(), Vec::new());
    for variable in asked {
        match inputs.secret(&variable.id)? {
            Some(value) => {
                let value = SecretBytes::new(value);
                secret_env.push(SecretVar { name: variable.name.clone(), value });
            }
            None if variable.optional => {
                absent.push(variable.id.clone());
                // As BuildKit: the variable is there, and empty.
                secret_env.push(SecretVar { name: variable.name.clone(), value: SecretBytes::default() });
            }
            None => return Err(no_secret(&variable.id, inputs)),
        }
    }
    Ok((secret_env, absent))
}

fn read(
    exec: &pb::ExecOp,
    inputs: Arc<StepInputs>,
    sockets: PathBuf,
) -> Result<(Given, Vec<StepMount>), BuildError> {
    let mut mounts = Vec::new();
    let (secret_env, mut absent) = secret_variables(&exec.secretenv, &inputs)?;
    let mut served = Vec::new();
    let mut hosts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for mount in &exec.mounts {
        if let Some(options) = &mount.secret_opt {
            match inputs.secret(&options.id)? {
                Some(value) => mounts.push(secret(mount, options, value)),
                None if options.optional => absent.push(options.id.clone()),
                None => return Err(no_secret(&options.id, &inputs)),
            }
        }
        if let Some(options) = &mount.ssh_opt {
            match inputs.agent(&options.id)? {
                Some(GivenAgent { agent, known_hosts }) => {
                    let dir = sockets.join(inputs.socket_name());
                    let socket = Socket::serve(agent, dir, options.mode, options.uid, options.gid);
                    let socket = socket.map_err(|e| BuildError::new(Reason::StepFailed, chain(&e)))?;
                    let bind = step_mount(mount, MountSource::Bind(socket.path()));
                    mounts.push(StepMount { nosuid: true, noexec: true, ..bind });
                    served.push(socket);
                    hosts.extend(known_hosts.map(|text| (options.id.clone(), text)));
                }
                None if options.optional => {}
                None => return Err(no_agent(&options.id, &inputs)),
            }
        }
    }
    if !hosts.is_empty() {
        mounts.push(known_hosts(hosts.into_values().flatten().collect()));
    }
    let certificates = inputs.certificates()?;
    Ok((Given { inputs, secret_env, certificates, absent, _sockets: served }, mounts))
}

fn secret(mount: &pb::Mount, options: &pb::SecretOpt, value: Vec<u8>) -> StepMount {
    let file = StepFile {
        contents: SecretBytes::new(value),
        mode: options.mode & 0o777,
        uid: options.uid,
        gid: options.gid,
        after_own: false,
    };
    let noexec = options.mode & 0o111 == 0;
    StepMount { readonly: true, nosuid: true, noexec, ..step_mount(mount, MountSource::File(file)) }
}

fn known_hosts(text: Vec<u8>) -> StepMount {
    let file = StepFile { contents: SecretBytes::new(text), mode: 0o644, uid: 0, gid: 0, after_own: true };
    let mount = StepMount::new(KNOWN_HOSTS, MountSource::File(file));
    StepMount { readonly: true, nosuid: true, noexec: true, ..mount }
}

fn no_secret(id: &str, inputs: &StepInputs) -> BuildError {
    let message = format!("secret {id}: not found: the step requires it");
    BuildError::new(Reason::SecretNotFound, message).advised(advice::secret(id, &inputs.secret_ids()))
}

fn no_agent(id: &str, inputs: &StepInputs) -> BuildError {
    let id = if id.is_empty() { "default" } else { id };
    let message = match inputs.why_no_agent(id) {
        Some(why) => format!("SSH agent {id}: not found: the step requires it: {why}"),
        None => format!("SSH agent {id}: not found: the step requires it"),
    };
    BuildError::new(Reason::SecretNotFound, message).advised(advice::agent(id, &inputs.agent_ids()))
}
