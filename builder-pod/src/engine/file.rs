//! LLB's file operation on snapshots.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use lapstrake_fileop::{
    Cancel, ChecksumOptions, CopyAction, HashCache, MkdirAction, MkfileAction, ModeChange, Owner, RmAction,
    Selector, SymlinkAction, View,
};
use lapstrake_llb::{Vertex, pb};
use lapstrake_oci::Digest;
use lapstrake_solver::Step;
use lapstrake_source::Local;
use lapstrake_store::{Active, SnapshotId, Store};

use super::{Engine, Res, advice};
use crate::error::BuildError;
use crate::hashes::Hashes;

struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Runs blocking work that looks at a [`Cancel`], and tells it to stop when the step is canceled.
pub(super) async fn blocking<T: Send + 'static>(
    step: &Step,
    work: impl FnOnce(&Cancel) -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    let cancel = Cancel::new();
    // Work whose waiter was dropped has no reader.
    let _guard = CancelOnDrop(cancel.clone());
    let mut task = tokio::task::spawn_blocking({
        let cancel = cancel.clone();
        move || work(&cancel)
    });
    let joined = tokio::select! {
        joined = &mut task => joined,
        () = step.cancel.cancelled() => {
            cancel.cancel();
            task.await
        }
    };
    joined.map_err(BuildError::internal)?
}

/// Something that is read: a mounted snapshot or a directory of the builder.
enum Readable {
    Mounted(OwnedFd),
    Context(Arc<Local>),
}

impl Readable {
    fn open(mounts: &Mounts, of: &Res) -> Result<Self, BuildError> {
        match of {
            Res::Snapshot(id) => Ok(Self::Mounted(mounts.read(*id)?)),
            Res::Context(context) => Ok(Self::Context(Arc::clone(context))),
            Res::Lazy(_) => Err(super::not_realised()),
        }
    }

    fn view(&self) -> View<'_> {
        match self {
            Self::Mounted(root) => View::snapshot(root.as_fd()),
            Self::Context(context) => context.view(),
        }
    }
}

impl Readable {
    /// An error with the way out: a path that is not there has neighbours.
    fn told(&self, error: lapstrake_fileop::Error, hashed: bool) -> BuildError {
        let path = match &error {
            lapstrake_fileop::Error::NotFound(path) => path.clone(),
            _ => return error.into(),
        };
        let view = self.view();
        let advice = advice::missing(&path, matches!(self, Self::Context(_)), |dir| view.names_in(dir));
        let error = BuildError::from(if hashed { error } else { error.looked_for() });
        advice.map_or_else(|| error.clone(), |advice| error.advised(advice))
    }
}

/// What is needed to mount snapshots on a blocking thread.
struct Mounts {
    store: Store,
    userxattr: bool,
    nothing: std::path::PathBuf,
}

impl Mounts {
    fn of(engine: &Engine) -> Self {
        Self { store: engine.store.clone(), userxattr: engine.userxattr(), nothing: engine.nothing.clone() }
    }

    fn read(&self, id: Option<SnapshotId>) -> Result<OwnedFd, BuildError> {
        let Some(id) = id else { return Ok(lapstrake_fileop::open_root(&self.nothing)?) };
        let lowers = super::mountable(self.store.lowers_top_first(id)?)?;
        lapstrake_sys::overlay::mount_detached(&lowers, None, self.userxattr).map_err(BuildError::internal)
    }

    fn write(&self, active: &Active) -> Result<OwnedFd, BuildError> {
        let lowers = super::mountable(active.lowers_top_first())?;
        if lowers.is_empty() {
            return Ok(lapstrake_fileop::open_root(&active.upper())?);
        }
        let (upper, work) = (active.upper(), active.work());
        lapstrake_sys::overlay::mount_detached(&lowers, Some((&upper, &work)), self.userxattr)
            .map_err(BuildError::internal)
    }
}

/// The digest of what selectors take from a result.
pub(super) async fn checksum(
    engine: &Engine,
    of: &Res,
    selectors: Vec<Selector>,
    step: &Step,
) -> Result<Digest, BuildError> {
    let (mounts, of) = (Mounts::of(engine), of.clone());
    blocking(step, move |cancel| {
        let readable = Readable::open(&mounts, &of)?;
        let hashes = Hashes::new(&mounts.store);
        // Snapshots of overlay have no stable device numbers; only directories of the builder are remembered.
        let cache: Option<&dyn HashCache> = matches!(of, Res::Context(_)).then_some(&hashes);
        let mut options = ChecksumOptions { cache, ..ChecksumOptions::default() };
        let sums = match &readable {
            Readable::Context(context) => context.sums(),
            Readable::Mounted(_) => None,
        };
        if sums.is_some() {
            // Nobody writes to it behind our back.
            options.settle = std::time::Duration::ZERO;
        }
        let digest = |selector: &Selector| {
            if let Some(known) = sums.and_then(|sums| sums.get(selector)) {
                return Ok(known);
            }
            let digest = lapstrake_fileop::checksum(&readable.view(), selector, &options, cancel)?;
            sums.iter().for_each(|sums| sums.put(selector, digest));
            Ok(digest)
        };
        let digests = selectors.iter().map(digest).collect::<Result<Vec<_>, _>>();
        let digests = digests.map_err(|error| readable.told(error, true))?;
        Ok(super::key::joined(&digests))
    })
    .await
}

/// Copies what a context shows into a snapshot that is never committed, for a step to mount.
pub(super) async fn materialize(
    engine: &Engine,
    context: Arc<Local>,
    path: String,
    step: &Step,
) -> Result<Active, BuildError> {
    let mounts = Mounts::of(engine);
    blocking(step, move |cancel| {
        let active = mounts.store.prepare(None)?;
        let root = mounts.write(&active)?;
        // The whole path is kept, so that the mount's selector means the same as in the context.
        let (src, dst) = match path.trim_matches('/') {
            "" => ("/".to_owned(), "/".to_owned()),
            path => (format!("/{path}"), format!("/{path}")),
        };
        let action = CopyAction {
            // A directory with its owner and mode; of the whole only what is in it.
            dir_copy_contents: src == "/",
            src,
            dst,
            follow_symlink: true,
            create_dest_path: true,
            ..CopyAction::default()
        };
        lapstrake_fileop::copy(&context.view(), root.as_fd(), &action, cancel)?;
        Ok(active)
    })
    .await
}

/// Copies what is at `path` of a result to the same path in a directory of the builder.
pub(super) async fn fill(
    engine: &Engine,
    from: Res,
    path: String,
    into: std::path::PathBuf,
    step: &Step,
) -> Result<(), BuildError> {
    let mounts = Mounts::of(engine);
    blocking(step, move |cancel| {
        let readable = Readable::open(&mounts, &from)?;
        let root = lapstrake_fileop::open_root(&into)?;
        let path = format!("/{}", path.trim_matches('/'));
        let action = CopyAction {
            // A directory with its owner and mode; of the whole only what is in it.
            dir_copy_contents: path == "/",
            src: path.clone(),
            dst: path,
            follow_symlink: true,
            create_dest_path: true,
            ..CopyAction::default()
        };
        lapstrake_fileop::copy(&readable.view(), root.as_fd(), &action, cancel)?;
        Ok(())
    })
    .await
}

/// Performs the actions of a file operation.
pub(super) async fn run(
    engine: &Engine,
    op: &pb::FileOp,
    vertex: &Vertex,
    inputs: Vec<Res>,
    step: &Step,
) -> Result<Vec<Res>, BuildError> {
    let (mounts, op, keeps) = (Mounts::of(engine), op.clone(), engine.may_keep_failed());
    let mut operation = Operation { mounts, inputs: inputs.clone(), made: HashMap::new(), at: 0 };
    let work = move |cancel: &Cancel| {
        let done = operation.perform(&op, cancel);
        let made = if done.is_err() && keeps { operation.remains(&op) } else { Vec::new() };
        Ok((done, operation.at, made))
    };
    match blocking(step, work).await? {
        (Err(error), at, made) if engine.keeps_failed(&error) => {
            Err(engine.with_made(&error, vertex, inputs, at, made))
        }
        (done, ..) => done,
    }
}

/// A file system in the making.
struct Made {
    active: Active,
    root: OwnedFd,
}

struct Operation {
    mounts: Mounts,
    inputs: Vec<Res>,
    /// Results of actions by number: still open, or committed.
    made: HashMap<i64, Result<Made, SnapshotId>>,
    /// The action that is performed.
    at: usize,
}

impl Operation {
    fn perform(&mut self, op: &pb::FileOp, cancel: &Cancel) -> Result<Vec<Res>, BuildError> {
        let first_action = self.inputs.len() as i64;
        let mut outputs: Vec<Option<i64>> = Vec::new();
        for (at, action) in op.actions.iter().enumerate() {
            self.at = at;
            let number = first_action + at as i64;
            let onto_again = op.actions[at + 1..].iter().any(|a| a.input == action.input);
            let mut onto = self.onto(action.input, onto_again)?;
            // What is changed is no content that an operation is known by: nobody has looked into it before.
            let from = action.secondary_input;
            let hashed = from < first_action && !op.actions.iter().any(|other| other.input == from);
            let done = self.act(action, &mut onto, hashed, cancel);
            self.made.insert(number, Ok(onto));
            done?;
            if let Ok(output) = usize::try_from(action.output) {
                if output >= op.actions.len() {
                    return Err(BuildError::internal("a file operation has an output without a place"));
                }
                if outputs.len() <= output {
                    outputs.resize(output + 1, None);
                }
                outputs[output] = Some(number);
            }
        }
        let mut results = Vec::with_capacity(outputs.len());
        for number in outputs {
            let number =
                number.ok_or_else(|| BuildError::internal("a file operation lacks one of its outputs"))?;
            results.push(Res::Snapshot(Some(self.commit(number)?)));
        }
        Ok(results)
    }

    /// What the failed action was about to make and what another one made for it, by the places of the actions.
    fn remains(&mut self, op: &pb::FileOp) -> Vec<Option<SnapshotId>> {
        let mut made = vec![None; op.actions.len()];
        let first_action = self.inputs.len();
        let read = op.actions.get(self.at).and_then(|action| usize::try_from(action.secondary_input).ok());
        let read = read.and_then(|number| number.checked_sub(first_action));
        for at in [Some(self.at), read].into_iter().flatten() {
            if let (Some(slot), Ok(number)) = (made.get_mut(at), i64::try_from(first_action + at)) {
                *slot = self.commit(number).ok(); // an action that had not begun made nothing
            }
        }
        made
    }

    /// The file system that an action changes. `again`: another action starts from the same one.
    fn onto(&mut self, input: i64, again: bool) -> Result<Made, BuildError> {
        if !again
            && let Some(Ok(_)) = self.made.get(&input)
            && let Some(Ok(made)) = self.made.remove(&input)
        {
            return Ok(made);
        }
        let parent = match usize::try_from(input).ok().and_then(|i| self.inputs.get(i)) {
            Some(Res::Snapshot(id)) => *id,
            Some(Res::Context(_)) => {
                return Err(BuildError::internal("a file operation can't change a local source"));
            }
            Some(Res::Lazy(_)) => return Err(super::not_realised()),
            None if input < 0 => None,
            None => Some(self.commit(input)?),
        };
        let active = self.mounts.store.prepare(parent)?;
        let root = self.mounts.write(&active)?;
        Ok(Made { active, root })
    }

    fn commit(&mut self, number: i64) -> Result<SnapshotId, BuildError> {
        let missing = || BuildError::internal("a file operation uses a result that is not there");
        let id = match self.made.remove(&number).ok_or_else(missing)? {
            Err(id) => id,
            Ok(made) => {
                drop(made.root);
                super::commit(&self.mounts.store, made.active)?
            }
        };
        self.made.insert(number, Err(id));
        Ok(id)
    }

    fn act(
        &mut self,
        action: &pb::FileAction,
        onto: &mut Made,
        hashed: bool,
        cancel: &Cancel,
    ) -> Result<(), BuildError> {
        use pb::file_action::Action;
        let root = onto.root.as_fd();
        let kind = action
            .action
            .as_ref()
            .ok_or_else(|| BuildError::internal("a file operation has an empty action"))?;
        match kind {
            Action::Copy(copy) => {
                let owner = self.owner(copy.owner.as_ref(), onto)?;
                let copy = copy_action(copy, owner)?;
                let from = self.read(action.secondary_input)?;
                lapstrake_fileop::copy(&from.view(), root, &copy, cancel)
                    .map_err(|e| from.told(e, hashed))?;
            }
            Action::Mkfile(file) => {
                let owner = self.owner(file.owner.as_ref(), onto)?;
                let mkfile = MkfileAction {
                    path: file.path.clone(),
                    mode: mode(file.mode),
                    data: file.data.clone(),
                    owner,
                    timestamp_ns: timestamp(file.timestamp),
                };
                lapstrake_fileop::mkfile(root, &mkfile)?;
            }
            Action::Mkdir(dir) => {
                let owner = self.owner(dir.owner.as_ref(), onto)?;
                let mkdir = MkdirAction {
                    path: dir.path.clone(),
                    mode: mode(dir.mode),
                    make_parents: dir.make_parents,
                    owner,
                    timestamp_ns: timestamp(dir.timestamp),
                };
                lapstrake_fileop::mkdir(root, &mkdir)?;
            }
            Action::Symlink(link) => {
                let owner = self.owner(link.owner.as_ref(), onto)?;
                let symlink = SymlinkAction {
                    target: link.oldpath.clone(),
                    path: link.newpath.clone(),
                    owner,
                    timestamp_ns: timestamp(link.timestamp),
                };
                lapstrake_fileop::symlink(root, &symlink)?;
            }
            Action::Rm(rm) => {
                let rm = RmAction {
                    path: rm.path.clone(),
                    allow_not_found: rm.allow_not_found,
                    allow_wildcard: rm.allow_wildcard,
                };
                lapstrake_fileop::rm(root, &rm)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, input: i64) -> Result<Readable, BuildError> {
        if let Some(res) = usize::try_from(input).ok().and_then(|i| self.inputs.get(i)) {
            return Readable::open(&self.mounts, res);
        }
        let id = if input < 0 { None } else { Some(self.commit(input)?) };
        Readable::open(&self.mounts, &Res::Snapshot(id))
    }

    /// Looks an owner up in the file system that it names, which is as a rule the one that is changed.
    fn owner(&self, owner: Option<&pb::ChownOpt>, onto: &Made) -> Result<Option<Owner>, BuildError> {
        let Some(owner) = owner else { return Ok(None) };
        let mut names_in = None;
        let mut text = |opt: &Option<pb::UserOpt>| match opt.as_ref().and_then(|u| u.user.as_ref()) {
            None => String::new(),
            Some(pb::user_opt::User::ById(id)) => id.to_string(),
            Some(pb::user_opt::User::ByName(name)) => {
                names_in = Some(name.input);
                name.name.clone()
            }
        };
        let (user, group) = (text(&owner.user), text(&owner.group));
        let text = if group.is_empty() {
            user
        } else {
            format!("{}:{group}", if user.is_empty() { "0" } else { &user })
        };
        if text.is_empty() {
            return Ok(None);
        }
        let elsewhere = match names_in.and_then(|i| usize::try_from(i).ok()).and_then(|i| self.inputs.get(i))
        {
            Some(Res::Snapshot(id)) => Some(self.mounts.read(*id)?),
            _ => None,
        };
        let root = elsewhere.as_ref().map_or(onto.root.as_fd(), |root| root.as_fd());
        Ok(Some(lapstrake_fileop::lookup_user(root, &text)?))
    }
}

fn mode(bits: i32) -> u32 {
    u32::try_from(bits).unwrap_or(0) & 0o7777
}

/// LLB says "none" by -1.
fn timestamp(ns: i64) -> Option<i64> {
    (ns >= 0).then_some(ns)
}

/// LLB's copy as plain data.
pub(super) fn copy_action(copy: &pb::FileActionCopy, owner: Option<Owner>) -> Result<CopyAction, BuildError> {
    let mode = if !copy.mode_str.is_empty() {
        Some(ModeChange::parse(&copy.mode_str)?)
    } else if copy.mode >= 0 {
        Some(ModeChange::parse(&format!("{:o}", copy.mode))?)
    } else {
        None
    };
    Ok(CopyAction {
        src: copy.src.clone(),
        dst: copy.dest.clone(),
        owner,
        mode,
        follow_symlink: copy.follow_symlink,
        dir_copy_contents: copy.dir_copy_contents,
        attempt_unpack: copy.attempt_unpack_docker_compatibility,
        create_dest_path: copy.create_dest_path,
        allow_wildcard: copy.allow_wildcard,
        allow_empty_wildcard: copy.allow_empty_wildcard,
        timestamp_ns: timestamp(copy.timestamp),
        include_patterns: copy.include_patterns.clone(),
        exclude_patterns: copy.exclude_patterns.clone(),
        required_paths: copy.required_paths.clone(),
        always_replace_existing_dest_paths: copy.always_replace_existing_dest_paths,
    })
}
