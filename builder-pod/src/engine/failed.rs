//! What is left of a failed operation, for those who want to enter it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lapstrake_handoff::Reason;
use lapstrake_llb::{Vertex, VertexDigest, pb};
use lapstrake_store::{Active, SnapshotId, Store};

use super::exec::Target;
use super::{Engine, Res};
use crate::error::BuildError;

/// What of an operation a failure is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// One of its actions on files.
    Action(usize),
    /// The contents of one of its inputs.
    Content(usize),
}

/// An operation that failed.
pub(crate) struct FailedOp {
    /// Its name.
    pub(crate) digest: VertexDigest,
    /// What of it the failure is about, where that is a part.
    pub(crate) subject: Option<Subject>,
    /// It, as clients know it.
    pub(crate) op: pb::Op,
    /// What people call it.
    pub(crate) description: HashMap<String, String>,
    /// What its mounts began with, by their places; of an operation on files, its inputs.
    pub(crate) inputs: Vec<Option<Res>>,
    /// What is in its mounts now; of an operation on files, what its actions made.
    pub(crate) mounts: Vec<Option<Res>>,
    _left: Vec<Left>,
}

impl std::fmt::Debug for FailedOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FailedOp").field("mounts", &self.mounts.len()).finish_non_exhaustive()
    }
}

/// A snapshot that nothing but the failure knows of; it goes with it.
struct Left {
    store: Store,
    snapshot: SnapshotId,
}

impl Drop for Left {
    fn drop(&mut self) {
        let (store, snapshot) = (self.store.clone(), self.snapshot);
        // Whoever is on it still keeps it; the collector finds it then.
        let remove = move || store.remove_snapshot(snapshot).ok();
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => drop(remove()),
        }
    }
}

fn op(vertex: &Vertex) -> pb::Op {
    let input = |input: &lapstrake_llb::Output| pb::Input {
        digest: input.vertex.to_string(),
        index: i64::from(input.index),
    };
    pb::Op {
        inputs: vertex.inputs.iter().map(input).collect(),
        op: Some(vertex.op.clone()),
        platform: vertex.platform.clone(),
        ..pb::Op::default()
    }
}

impl FailedOp {
    fn new(vertex: &Vertex) -> Self {
        Self {
            digest: vertex.digest,
            subject: None,
            op: op(vertex),
            description: vertex.metadata.description.clone().into_iter().collect(),
            inputs: Vec::new(),
            mounts: Vec::new(),
            _left: Vec::new(),
        }
    }

    /// The failure with the operation that it is of.
    pub(crate) fn told(error: &BuildError, vertex: &Vertex) -> BuildError {
        match error.failed_op() {
            None if error.failure().reason != Reason::Canceled => error.of_op(Arc::new(Self::new(vertex))),
            _ => error.clone(),
        }
    }

    /// The failure to read the contents of an input.
    pub(super) fn of_content(error: &BuildError, vertex: &Vertex, input: usize, of: Res) -> BuildError {
        if error.failure().reason == Reason::Canceled {
            return error.clone();
        }
        let mut failed = Self::new(vertex);
        failed.subject = Some(Subject::Content(input));
        failed.inputs = vec![Some(of)];
        error.of_op(Arc::new(failed))
    }
}

impl Engine {
    /// From now on what a failed step wrote is kept for as long as its failure is known.
    pub(crate) fn keep_failed(&self) {
        self.keeps_failed.store(true, Ordering::Relaxed);
    }

    pub(super) fn keeps_failed(&self, error: &BuildError) -> bool {
        error.failure().reason == Reason::StepFailed && self.may_keep_failed()
    }

    pub(super) fn may_keep_failed(&self) -> bool {
        self.keeps_failed.load(Ordering::Relaxed)
    }

    /// The failure of an action on files, with what the actions left that have to do with it.
    pub(super) fn with_made(
        &self,
        error: &BuildError,
        vertex: &Vertex,
        inputs: Vec<Res>,
        action: usize,
        made: Vec<Option<SnapshotId>>,
    ) -> BuildError {
        let mut failed = FailedOp::new(vertex);
        failed.subject = Some(Subject::Action(action));
        failed.inputs = inputs.into_iter().map(Some).collect();
        let left = |snapshot: &SnapshotId| Left { store: self.store.clone(), snapshot: *snapshot };
        failed._left = made.iter().flatten().map(left).collect();
        failed.mounts = made.into_iter().map(|one| one.map(|one| Res::Snapshot(Some(one)))).collect();
        error.of_op(Arc::new(failed))
    }

    /// The failure of a step with what it left in its mounts.
    pub(super) async fn with_remains(
        &self,
        error: &BuildError,
        vertex: &Vertex,
        exec: &pb::ExecOp,
        inputs: &[Res],
        outputs: Vec<(usize, Target)>,
        discarded: Vec<(String, Active)>,
    ) -> BuildError {
        let input =
            |mount: &pb::Mount| usize::try_from(mount.input).ok().and_then(|at| inputs.get(at)).cloned();
        let mut failed = FailedOp::new(vertex);
        failed.inputs = exec.mounts.iter().map(input).collect();
        failed.mounts = failed.inputs.clone();
        let place = |number: usize| {
            exec.mounts.iter().position(|mount| usize::try_from(mount.output).is_ok_and(|at| at == number))
        };
        let written = outputs.into_iter().filter_map(|(output, target)| match target {
            Target::Written(active) => Some((place(output)?, active)),
            Target::Same(_) => None,
        });
        let unnamed = discarded.into_iter().filter_map(|(dest, active)| {
            let at = exec.mounts.iter().position(|mount| mount.output < 0 && mount.dest == dest);
            Some((at?, active))
        });
        for (at, active) in written.chain(unnamed) {
            let Some(slot) = failed.mounts.get_mut(at) else { continue };
            let store = self.store.clone();
            let commit = tokio::task::spawn_blocking(move || super::commit(&store, active)).await;
            match commit {
                Ok(Ok(snapshot)) => {
                    failed._left.push(Left { store: self.store.clone(), snapshot });
                    *slot = Some(Res::Snapshot(Some(snapshot)));
                }
                Ok(Err(error)) => tracing::warn!("what a failed step wrote is not kept: {error}"),
                Err(error) => tracing::warn!("what a failed step wrote is not kept: {error}"),
            }
        }
        error.of_op(Arc::new(failed))
    }
}
