//! LLB's build operation: a definition that another operation made, and what it makes.

use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapstrake_handoff::Reason;
use lapstrake_llb::{Graph, Vertex, VertexDigest, newer, pb};
use lapstrake_solver::Step;
use prost::Message as _;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Engine, Res, file, not_realised};
use crate::error::{BuildError, chain};
use crate::platforms::{self, Target};
use crate::policy;
use crate::progress::{Format, Progress};

/// The only builder: definitions are made as they are.
const LLB_BUILDER: i64 = -1;
/// The input that has the definition, and the file in it where nothing else is said.
const DEFINITION: &str = "buildkit.llb.definition";
/// The attribute that names the file.
const FILENAME: &str = "llbbuild.filename";
/// Bytes of a definition at most.
const DEFINITION_BYTES_MAX: u64 = 16 << 20;

/// Build operations that go on, and those that they wait for: one that would wait for itself is refused.
#[derive(Default)]
pub(super) struct Waits(Mutex<HashMap<VertexDigest, HashSet<VertexDigest>>>);

/// A wait that goes on.
struct Waiting<'a> {
    waits: &'a Waits,
    of: VertexDigest,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.waits.lock().remove(&self.of);
    }
}

impl Waits {
    fn lock(&self) -> MutexGuard<'_, HashMap<VertexDigest, HashSet<VertexDigest>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a wait; none where it would never end.
    fn begin(&self, of: VertexDigest, for_all: HashSet<VertexDigest>) -> Option<Waiting<'_>> {
        let mut waits = self.lock();
        let mut open: Vec<VertexDigest> = for_all.iter().copied().collect();
        let mut seen = HashSet::new();
        while let Some(next) = open.pop() {
            if next == of {
                return None;
            }
            if seen.insert(next) {
                open.extend(waits.get(&next).into_iter().flatten());
            }
        }
        waits.insert(of, for_all);
        Some(Waiting { waits: self, of })
    }
}

fn invalid(why: impl Into<String>) -> BuildError {
    BuildError::new(Reason::RequestInvalid, why)
}

impl Engine {
    /// Makes what the definition in an input makes.
    pub(super) async fn build(
        self: &Arc<Self>,
        op: &pb::BuildOp,
        vertex: &Vertex,
        inputs: &[Res],
        step: &Step,
    ) -> Result<Res, BuildError> {
        if op.builder != LLB_BUILDER {
            return Err(invalid("only LLB builder is currently allowed"));
        }
        let missing = || invalid(format!("no llb definition input {DEFINITION} found"));
        let input = op.inputs.get(DEFINITION).ok_or_else(missing)?.input;
        let input = usize::try_from(input).ok().and_then(|at| inputs.get(at));
        let input = input.ok_or_else(|| invalid("a build operation names no input"))?.clone();
        let name = op.attrs.get(FILENAME).filter(|name| !name.is_empty());
        let name = name.cloned().unwrap_or_else(|| DEFINITION.to_owned());
        let definition = self.definition_in(input, name, step).await?;
        let converted = policy::applied(&self.policies(), &definition)?;
        let graph =
            Graph::decode(converted.as_ref().unwrap_or(&definition)).map_err(|e| invalid(chain(&e)))?;
        let is_build = |vertex: &&Arc<Vertex>| matches!(vertex.op, pb::op::Op::Build(_));
        let builds = graph.vertices().iter().filter(is_build).map(|vertex| vertex.digest).collect();
        let waiting = self.waits.begin(vertex.digest, builds);
        let _waiting = waiting.ok_or_else(|| invalid("a build operation would wait for itself"))?;
        let target = Target { platform: self.platform.clone(), graph: Arc::new(graph) };
        let quiet = || Progress::new(Format::Quiet);
        let progress = self.progress.get().cloned().unwrap_or_else(quiet);
        let trees = Box::pin(platforms::solve(self, &[target], &progress, &step.cancel)).await?;
        let tree = trees.into_iter().next().unwrap_or_default();
        self.snapshot_of(&tree, &step.cancel).await.map(Res::Snapshot)
    }

    async fn definition_in(&self, of: Res, name: String, step: &Step) -> Result<pb::Definition, BuildError> {
        let (root, copy) = match of {
            Res::Snapshot(id) => (self.mount(id)?, None),
            Res::Context(context) => {
                let copy = file::materialize(self, context, name.clone(), step).await?;
                (lapstrake_fileop::open_root(&copy.upper())?, Some(copy))
            }
            Res::Lazy(_) => return Err(not_realised()),
        };
        let read = move || {
            let wrong = |why: String| invalid(format!("open {name}: {why}"));
            // A pipe would wait for a writer.
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file =
                lapstrake_sys::fs::open_in_root(&root, name.trim_start_matches('/'), flags, Mode::empty())
                    .map_err(|error| match error.errno {
                        Errno::NOENT | Errno::NOTDIR => wrong("no such file or directory".to_owned()),
                        errno => wrong(errno.to_string()),
                    })?;
            let stat = rustix::fs::fstat(&file).map_err(|error| wrong(error.to_string()))?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(wrong("it is no regular file".to_owned()));
            }
            let mut bytes = Vec::new();
            let mut file = std::fs::File::from(file).take(DEFINITION_BYTES_MAX + 1);
            file.read_to_end(&mut bytes).map_err(|error| wrong(error.to_string()))?;
            if bytes.len() as u64 > DEFINITION_BYTES_MAX {
                let why = format!("{name} exceeds maximum allowed size of {DEFINITION_BYTES_MAX} bytes");
                return Err(invalid(why));
            }
            drop(copy);
            let definition = newer::Definition::decode(bytes.as_slice());
            definition.map(pb::Definition::from).map_err(|error| wrong(error.to_string()))
        };
        tokio::task::spawn_blocking(read).await.map_err(BuildError::internal)?
    }
}

#[cfg(test)]
mod tests {
    use lapstrake_oci::Digest;

    use super::*;

    #[test]
    fn a_build_that_would_wait_for_itself_is_refused() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|name| VertexDigest(Digest::of(name)));
        let waits = Waits::default();
        assert!(waits.begin(a, HashSet::from([a])).is_none());
        let first = waits.begin(a, HashSet::from([b])).expect("b is another one");
        let second = waits.begin(b, HashSet::from([c])).expect("c is another one");
        assert!(waits.begin(c, HashSet::from([a])).is_none(), "c would wait for a, b and itself");
        drop(first);
        assert!(waits.begin(c, HashSet::from([a])).is_some());
        drop(second);
        assert!(waits.lock().is_empty());
    }
}
