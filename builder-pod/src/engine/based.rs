//! Directories of the builder where an operation needs a file system that it can change: they are copied then.

use std::sync::Arc;

use lapstrake_llb::{Vertex, pb};
use lapstrake_solver::Step;

use super::{Engine, Res, file};
use crate::error::BuildError;

impl Engine {
    /// The inputs of an operation, with those that it builds upon as snapshots.
    pub(super) async fn based(
        &self,
        vertex: &Vertex,
        mut inputs: Vec<Res>,
        step: &Step,
    ) -> Result<Vec<Res>, BuildError> {
        let below: Vec<i64> = match &vertex.op {
            pb::op::Op::Exec(exec) => {
                let root = exec.mounts.iter().filter(|mount| mount.dest == "/" || mount.output >= 0);
                root.map(|mount| mount.input).collect()
            }
            pb::op::Op::File(file) => file.actions.iter().map(|action| action.input).collect(),
            _ => return Ok(inputs),
        };
        for at in below {
            let Some(input) = usize::try_from(at).ok().and_then(|at| inputs.get_mut(at)) else { continue };
            if let Res::Context(context) = input {
                let copy = file::materialize(self, Arc::clone(context), String::new(), step).await?;
                *input = Res::Snapshot(Some(self.commit(copy)?));
            }
        }
        Ok(inputs)
    }
}
