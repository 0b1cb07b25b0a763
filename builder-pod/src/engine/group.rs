//! The control group that a step asks for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapstrake_handoff::Reason;
use lapstrake_llb::{Graph, Resources, Vertex, VertexDigest, description, pb};
use lapstrake_run::{ControlGroup, Limits, control_groups_delegated};
use lapstrake_solver::Step;

use super::Engine;
use crate::error::BuildError;

/// Told in the log of a step that asks for a group where none can be made.
const NOT_HERE: &str =
    "the builder was given no control groups: the step runs in the builder's, without limits of its own\n";

impl Engine {
    /// The group of a step: as it asks itself, else below the parent of all steps; `None` for the builder's own. One that
    /// may write its view of the groups has its own where it can.
    pub(super) fn control_group(
        &self,
        meta: &pb::Meta,
        insecure: bool,
        vertex: Option<&Vertex>,
        step: &Step,
    ) -> Result<Option<ControlGroup>, BuildError> {
        let resources = vertex.map(|vertex| self.wishes.of(vertex)).transpose()?.flatten();
        let asked = asked(&meta.cgroup_parent, self.step_inputs().cgroup_parent(), resources);
        match asked {
            Some(_) if !control_groups_delegated() => {
                step.log(2, NOT_HERE.as_bytes());
                Ok(None)
            }
            None if insecure && control_groups_delegated() => Ok(Some(ControlGroup::default())),
            asked => Ok(asked),
        }
    }
}

/// Limits that builds want for their steps, for as long as they are being solved: a step that several want is run once.
#[derive(Default)]
pub(super) struct Wishes(Mutex<HashMap<Wish, Vec<Arc<Graph>>>>);

/// A step, as builds share it.
type Wish = (VertexDigest, bool);

fn wish(vertex: &Vertex) -> Wish {
    (vertex.digest, vertex.metadata.ignore_cache)
}

/// What a vertex says of its limits; nothing is told from no limits.
fn limits(vertex: &Vertex) -> Result<Option<Resources>, BuildError> {
    let told = vertex.metadata.description.get(description::RESOURCES);
    let limits = told.map(|text| text.parse::<Resources>()).transpose();
    limits.map_err(|why| BuildError::new(Reason::RequestInvalid, why))
}

/// The wishes of a graph; dropped, they are taken back.
pub(crate) struct Wished {
    all: Arc<Wishes>,
    graph: Arc<Graph>,
}

impl Wishes {
    fn lock(&self) -> MutexGuard<'_, HashMap<Wish, Vec<Arc<Graph>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Limits of a step: the laxest of all that want it now.
    fn of(&self, vertex: &Vertex) -> Result<Option<Resources>, BuildError> {
        let own = limits(vertex)?;
        let all = self.lock();
        let others = all.get(&wish(vertex)).into_iter().flatten();
        // What another build got wrong is told to that build.
        let others = others.filter_map(|graph| limits(graph.vertex(vertex.digest)?).ok()?);
        Ok(own.into_iter().chain(others).reduce(|one, other| one.laxer(&other)))
    }

    fn enter(self: &Arc<Self>, graph: &Arc<Graph>) -> Wished {
        let mut all = self.lock();
        for vertex in limited(graph) {
            all.entry(wish(vertex)).or_default().push(Arc::clone(graph));
        }
        Wished { all: Arc::clone(self), graph: Arc::clone(graph) }
    }
}

fn limited(graph: &Graph) -> impl Iterator<Item = &Arc<Vertex>> {
    graph.vertices().iter().filter(|vertex| vertex.metadata.description.contains_key(description::RESOURCES))
}

impl Drop for Wished {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        for vertex in limited(&self.graph) {
            let Some(graphs) = all.get_mut(&wish(vertex)) else { continue };
            if let Some(at) = graphs.iter().position(|graph| Arc::ptr_eq(graph, &self.graph)) {
                graphs.swap_remove(at);
            }
            if graphs.is_empty() {
                all.remove(&wish(vertex));
            }
        }
    }
}

impl Engine {
    /// Makes the limits of a graph's steps known to whoever runs one of them first.
    pub(crate) fn wish(&self, graph: &Arc<Graph>) -> Wished {
        self.wishes.enter(graph)
    }
}

fn asked(own: &str, of_all: &str, resources: Option<Resources>) -> Option<ControlGroup> {
    let parent = if own.is_empty() { of_all } else { own };
    let resources = resources.unwrap_or_default();
    if parent.is_empty() && resources.is_empty() {
        return None;
    }
    let limits = Limits {
        memory_bytes: resources.memory,
        memory_swap_bytes: resources.memory_swap,
        cpu_shares: resources.cpu_shares,
        cpu_period_us: resources.cpu_period,
        cpu_quota_us: resources.cpu_quota,
        cpuset_cpus: resources.cpuset_cpus,
        cpuset_mems: resources.cpuset_mems,
    };
    Some(ControlGroup { parent: parent.to_owned(), limits })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_a_group_of_its_own_where_anything_asks_for_one() {
        let parsed = |text: &str| text.parse::<Resources>().expect("valid");
        let group = |own, of_all, resources: Option<&str>| asked(own, of_all, resources.map(parsed));
        assert_eq!(group("", "", None), None);
        assert_eq!(group("", "", Some("")), None);
        assert_eq!(group("a", "b", None).map(|group| group.parent).as_deref(), Some("a"));
        assert_eq!(group("", "b", None).map(|group| group.parent).as_deref(), Some("b"));
        let limited = group("", "", Some("memory=4096;cpusetcpus=0")).expect("a group");
        assert_eq!((limited.parent.as_str(), limited.limits.memory_bytes), ("", Some(4096)));
        assert_eq!(limited.limits.cpuset_cpus.as_deref(), Some("0"));
    }

    /// A graph of one step.
    fn graph(limits: Option<&str>) -> Arc<Graph> {
        let mounts = vec![pb::Mount { dest: "/".to_owned(), ..pb::Mount::default() }];
        let exec = pb::ExecOp { mounts, ..pb::ExecOp::default() };
        let op = pb::Op { op: Some(pb::op::Op::Exec(exec)), ..pb::Op::default() };
        let limits = limits.map(|limits| (description::RESOURCES.to_owned(), limits.to_owned()));
        let said = pb::OpMetadata { description: limits.into_iter().collect(), ..pb::OpMetadata::default() };
        let mut builder = lapstrake_llb::Builder::new();
        let vertex = builder.add(&op, said, &[]);
        let target = lapstrake_llb::Output { vertex, index: 0 };
        Arc::new(Graph::decode(&builder.finish(Some(target))).expect("a graph"))
    }

    #[test]
    fn a_step_that_several_want_has_the_laxest_limits_of_those_that_are_there() {
        let wishes = Arc::new(Wishes::default());
        let of = |graph: &Arc<Graph>| wishes.of(&graph.vertices()[0]);
        let memory = |graph: &Arc<Graph>| of(graph).expect("valid").and_then(|limits| limits.memory);
        let (strict, lax, silent) = (graph(Some("memory=1")), graph(Some("memory=2")), graph(None));
        let entered = wishes.enter(&strict);
        assert_eq!(
            (memory(&strict), memory(&silent)),
            (Some(1), Some(1)),
            "who says nothing asks for nothing"
        );
        let second = wishes.enter(&lax);
        assert_eq!(memory(&strict), Some(2));
        drop(second);
        assert_eq!(memory(&strict), Some(1));
        let (free, wrong) = (wishes.enter(&graph(Some(""))), wishes.enter(&graph(Some("memory=much"))));
        assert_eq!(memory(&strict), None, "no limit is the laxest");
        assert!(of(&graph(Some("memory=much"))).is_err());
        drop((entered, free, wrong));
        assert!(wishes.lock().is_empty());
    }
}
