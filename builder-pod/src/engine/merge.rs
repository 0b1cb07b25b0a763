//! LLB's merge and diff operations: file systems out of the layers of others.
//!
//! A layer that is put over other ones is made of hard links, so that it costs no data. It remembers whose layer it
//! is: as a blob it is the same one, whatever it lies on.

use std::path::PathBuf;
use std::sync::Arc;

use lapstrake_image::{ApplyOptions, stack_changes, stack_layer};
use lapstrake_llb::pb;
use lapstrake_solver::Step;
use lapstrake_store::{CommitOptions, Record, SnapshotId, SnapshotInfo, Store, Table};

use super::file::{blocking, materialize};
use super::{CREATED, Engine, Res, mountable};
use crate::error::{BuildError, chain, is_no_space};

/// Of a snapshot that has another one's layer: which.
const LAYER_OF: Table = Table::named("layer-of");
/// Snapshots that say what goes of what they will be laid over.
const BARE: Table = Table::named("bare-layers");

/// The snapshot whose layer this one has, if it is still there.
pub(crate) fn origin(store: &Store, id: SnapshotId) -> Option<SnapshotInfo> {
    let value = store.get(LAYER_OF, id.to_string().as_bytes())?;
    let origin = String::from_utf8(value).ok()?.parse().ok()?;
    store.has_snapshot(origin).then(|| store.snapshot(origin))?
}

/// Whether a snapshot's marks of deletion hold though nothing lies below it.
pub(crate) fn is_bare(store: &Store, id: SnapshotId) -> bool {
    store.get(BARE, id.to_string().as_bytes()).is_some()
}

/// All inputs over each other, the first one at the bottom.
pub(super) async fn merge(
    engine: &Engine,
    op: &pb::MergeOp,
    inputs: Vec<Res>,
    step: &Step,
) -> Result<Res, BuildError> {
    let mut all = Vec::new();
    for input in &op.inputs {
        // As BuildKit: what is nothing adds nothing.
        if let Some(id) = snapshot_at(engine, &inputs, input.input, step).await? {
            all.push(id);
        }
    }
    let stack = Stack::of(engine);
    blocking(step, move |_| {
        let mut ids = all.into_iter();
        let Some(mut top) = ids.next() else { return Ok(Res::Snapshot(None)) };
        for id in ids {
            for layer in stack.store.chain_bottom_first(id)? {
                top = stack.over(Some(top), &layer)?;
            }
        }
        Ok(Res::Snapshot(Some(top)))
    })
    .await
}

/// What the upper file system changes over the lower one.
pub(super) async fn diff(
    engine: &Engine,
    op: &pb::DiffOp,
    inputs: Vec<Res>,
    step: &Step,
) -> Result<Res, BuildError> {
    let lower = op.lower.as_ref().map_or(-1, |input| input.input);
    let upper = op.upper.as_ref().map_or(-1, |input| input.input);
    let lower = snapshot_at(engine, &inputs, lower, step).await?;
    let upper = snapshot_at(engine, &inputs, upper, step).await?;
    let (Some(lower_id), true) = (lower, lower != upper) else {
        // Over nothing all is new; over itself nothing is.
        return Ok(Res::Snapshot(upper.filter(|_| lower != upper)));
    };
    let stack = Stack::of(engine);
    blocking(step, move |_| Ok(Res::Snapshot(stack.difference(lower_id, upper)?))).await
}

/// An input of an operation as a snapshot; `None` is the empty file system.
async fn snapshot_at(
    engine: &Engine,
    inputs: &[Res],
    at: i64,
    step: &Step,
) -> Result<Option<SnapshotId>, BuildError> {
    let Ok(at) = usize::try_from(at) else { return Ok(None) };
    match inputs.get(at) {
        None => Err(BuildError::internal("an operation names an input that it does not have")),
        Some(Res::Snapshot(id)) => Ok(*id),
        Some(Res::Lazy(_)) => Err(super::not_realised()),
        Some(Res::Context(context)) => {
            let copy = materialize(engine, Arc::clone(context), String::new(), step).await?;
            engine.commit(copy).map(Some)
        }
    }
}

/// What is needed on a blocking thread.
struct Stack {
    store: Store,
    userxattr: bool,
}

impl Stack {
    fn of(engine: &Engine) -> Self {
        Self { store: engine.store.clone(), userxattr: engine.userxattr() }
    }

    fn lowers(&self, of: Option<SnapshotId>) -> Result<Vec<PathBuf>, BuildError> {
        match of {
            None => Ok(Vec::new()),
            Some(id) => mountable(self.store.lowers_top_first(id)?),
        }
    }

    /// A snapshot on `below` with the layer of another.
    fn over(&self, below: Option<SnapshotId>, layer: &SnapshotInfo) -> Result<SnapshotId, BuildError> {
        let active = self.store.prepare(below)?;
        let options = ApplyOptions {
            userxattr: self.userxattr,
            lowers_top_first: mountable(active.lowers_top_first())?,
        };
        let lowers = match is_bare(&self.store, layer.id) {
            true => None,
            false => Some(self.lowers(layer.parent)?),
        };
        let from = self.store.snapshot_dir(layer.id);
        let stacked = stack_layer(&from, lowers.as_deref(), &active.upper(), &options);
        let skipped = stacked.map_err(|error| failed(&error))?;
        let mut records = vec![created(active.id())];
        if skipped.is_empty() {
            let origin = origin(&self.store, layer.id).map_or(layer.id, |origin| origin.id);
            records.push(Record {
                table: LAYER_OF,
                key: active.id().to_string().into_bytes(),
                value: origin.to_string().into_bytes(),
            });
        }
        // Over nothing, or over what itself waits for it, the deletions wait for what comes below.
        if below.is_none_or(|below| is_bare(&self.store, below)) {
            records.push(bare(active.id()));
        }
        let made = self.store.commit(active, CommitOptions { layer: None, records })?;
        self.store.shares_files(layer.id);
        Ok(made)
    }

    /// The layers that `upper` has more than `lower`, where it was made on it; else one layer of all that differs.
    fn difference(
        &self,
        lower: SnapshotId,
        upper: Option<SnapshotId>,
    ) -> Result<Option<SnapshotId>, BuildError> {
        let chain = upper.map(|id| self.store.chain_bottom_first(id)).transpose()?.unwrap_or_default();
        if let Some(at) = chain.iter().position(|layer| layer.id == lower) {
            let mut top = None;
            for layer in chain.get(at + 1..).unwrap_or_default() {
                top = Some(self.over(top, layer)?);
            }
            return Ok(top);
        }
        let (lowers, uppers) = (self.lowers(Some(lower))?, self.lowers(upper)?);
        let active = self.store.prepare(None)?;
        let options = ApplyOptions { userxattr: self.userxattr, lowers_top_first: Vec::new() };
        stack_changes(&uppers, &lowers, &active.upper(), &options).map_err(|error| failed(&error))?;
        let records = vec![created(active.id()), bare(active.id())];
        let made = self.store.commit(active, CommitOptions { layer: None, records })?;
        chain.iter().for_each(|layer| self.store.shares_files(layer.id));
        Ok(Some(made))
    }
}

fn created(id: SnapshotId) -> Record {
    Record {
        table: CREATED,
        key: id.to_string().into_bytes(),
        value: crate::time::now_precise().into_bytes(),
    }
}

fn bare(id: SnapshotId) -> Record {
    Record { table: BARE, key: id.to_string().into_bytes(), value: b"1".to_vec() }
}

fn failed(error: &lapstrake_image::Error) -> BuildError {
    match error.is_no_space() || is_no_space(error) {
        true => BuildError::new(lapstrake_handoff::Reason::DiskFull, chain(error)),
        false => BuildError::internal(chain(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileTypeExt as _;

    use super::*;

    fn snapshot(store: &Store, parent: Option<SnapshotId>, files: &[&str]) -> SnapshotId {
        let active = store.prepare(parent).expect("prepared");
        for file in files {
            std::fs::write(active.upper().join(file), file).expect("written");
        }
        store.commit(active, CommitOptions::default()).expect("committed")
    }

    fn names(store: &Store, id: SnapshotId) -> Vec<String> {
        let entries = std::fs::read_dir(store.snapshot_dir(id)).expect("a directory");
        let mut names: Vec<_> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_difference_is_the_layers_in_between_or_one_that_leads_from_here_to_there() {
        let (store, _dir) = Store::temporary().expect("a store");
        let stack = Stack { store: store.clone(), userxattr: true };
        let base = snapshot(&store, None, &["a"]);
        let top = snapshot(&store, Some(base), &["b"]);
        let made_on_it = stack.difference(base, Some(top)).expect("made").expect("something");
        assert_eq!(names(&store, made_on_it), ["b"]);
        assert_eq!(origin(&store, made_on_it).map(|origin| origin.id), Some(top));

        // What the second of two layers deletes is not in the first one.
        let active = store.prepare(Some(top)).expect("prepared");
        let device = rustix::fs::FileType::CharacterDevice;
        let at = active.upper().join("a");
        rustix::fs::mknodat(rustix::fs::CWD, at, device, rustix::fs::Mode::empty(), 0).expect("a whiteout");
        let without = store.commit(active, CommitOptions::default()).expect("committed");
        let two = stack.difference(base, Some(without)).expect("made").expect("something");
        let other = snapshot(&store, None, &["a", "c"]);
        let mut merged = other;
        for layer in store.chain_bottom_first(two).expect("a chain") {
            merged = stack.over(Some(merged), &layer).expect("made");
        }
        let whiteout = std::fs::symlink_metadata(store.snapshot_dir(merged).join("a")).expect("a whiteout");
        assert!(whiteout.file_type().is_char_device());

        let other = snapshot(&store, None, &["c"]);
        let apart = stack.difference(top, Some(other)).expect("made").expect("something");
        assert_eq!(names(&store, apart), ["a", "b", "c"]);
        assert!(is_bare(&store, apart));
        // Laid over what it was taken from, it deletes.
        let layer = store.snapshot(apart).expect("there");
        let merged = stack.over(Some(top), &layer).expect("made");
        for gone in ["a", "b"] {
            let meta = std::fs::symlink_metadata(store.snapshot_dir(merged).join(gone)).expect("a whiteout");
            assert!(meta.file_type().is_char_device(), "{gone}");
        }
        assert_eq!(store.parent(merged).expect("there"), Some(top));
    }
}
