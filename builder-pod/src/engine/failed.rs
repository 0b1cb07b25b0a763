//! What is left of a failed operation, for those who want to enter it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lapstrake_handoff::Reason;
use lapstrake_llb::{Vertex, pb};
use lapstrake_store::{SnapshotId, Store};

use super::exec::Target;
use super::{Engine, Res};
use crate::error::BuildError;

/// An operation that failed.
pub(crate) struct FailedOp {
    /// It, as clients know it.
    pub(crate) op: pb::Op,
    /// What people call it.
    pub(crate) description: HashMap<String, String>,
    /// What its mounts began with, by their places.
    pub(crate) inputs: Vec<Option<Res>>,
    /// What is in its mounts now.
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
            op: op(vertex),
            description: vertex.metadata.description.clone().into_iter().collect(),
            inputs: Vec::new(),
            mounts: Vec::new(),
            _left: Vec::new(),
        }
    }

    /// The failure with the operation that it is of.
    pub(super) fn told(error: &BuildError, vertex: &Vertex) -> BuildError {
        match error.failed_op() {
            None if error.failure().reason != Reason::Canceled => error.of_op(Arc::new(Self::new(vertex))),
            _ => error.clone(),
        }
    }
}

impl Engine {
    /// From now on what a failed step wrote is kept for as long as its failure is known.
    pub(crate) fn keep_failed(&self) {
        self.keeps_failed.store(true, Ordering::Relaxed);
    }

    pub(super) fn keeps_failed(&self, error: &BuildError) -> bool {
        error.failure().reason == Reason::StepFailed && self.keeps_failed.load(Ordering::Relaxed)
    }

    /// The failure of a step with what it left in its mounts.
    pub(super) async fn with_remains(
        &self,
        error: &BuildError,
        vertex: &Vertex,
        exec: &pb::ExecOp,
        inputs: &[Res],
        outputs: Vec<(usize, Target)>,
    ) -> BuildError {
        let input =
            |mount: &pb::Mount| usize::try_from(mount.input).ok().and_then(|at| inputs.get(at)).cloned();
        let mut failed = FailedOp::new(vertex);
        failed.inputs = exec.mounts.iter().map(input).collect();
        failed.mounts = failed.inputs.clone();
        for (output, target) in outputs {
            let number = i64::try_from(output).unwrap_or(-1);
            let at = exec.mounts.iter().position(|mount| mount.output == number);
            let Some(slot) = at.and_then(|at| failed.mounts.get_mut(at)) else { continue };
            let Target::Written(active) = target else { continue };
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
