//! The control group that a step asks for.

use lapstrake_handoff::Reason;
use lapstrake_llb::{Resources, Vertex, description, pb};
use lapstrake_run::{ControlGroup, Limits, control_groups_delegated};
use lapstrake_solver::Step;

use super::Engine;
use crate::error::BuildError;

/// Told in the log of a step that asks for a group where none can be made.
const NOT_HERE: &str =
    "the builder was given no control groups: the step runs in the builder's, without limits of its own\n";

impl Engine {
    /// The group of a step: as it asks itself, else below the parent of all steps; `None` for the builder's own.
    pub(super) fn control_group(
        &self,
        meta: &pb::Meta,
        vertex: Option<&Vertex>,
        step: &Step,
    ) -> Result<Option<ControlGroup>, BuildError> {
        let resources = vertex.and_then(|vertex| vertex.metadata.description.get(description::RESOURCES));
        let asked =
            asked(&meta.cgroup_parent, self.step_inputs().cgroup_parent(), resources.map(String::as_str))?;
        match asked {
            Some(_) if !control_groups_delegated() => {
                step.log(2, NOT_HERE.as_bytes());
                Ok(None)
            }
            asked => Ok(asked),
        }
    }
}

fn asked(own: &str, of_all: &str, resources: Option<&str>) -> Result<Option<ControlGroup>, BuildError> {
    let parent = if own.is_empty() { of_all } else { own };
    let resources = resources.unwrap_or_default().parse::<Resources>();
    let resources = resources.map_err(|why| BuildError::new(Reason::RequestInvalid, why))?;
    if parent.is_empty() && resources.is_empty() {
        return Ok(None);
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
    Ok(Some(ControlGroup { parent: parent.to_owned(), limits }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_a_group_of_its_own_where_anything_asks_for_one() {
        let group = |own, of_all, resources| asked(own, of_all, resources).expect("valid");
        assert_eq!(group("", "", None), None);
        assert_eq!(group("", "", Some("")), None);
        assert_eq!(group("a", "b", None).map(|group| group.parent).as_deref(), Some("a"));
        assert_eq!(group("", "b", None).map(|group| group.parent).as_deref(), Some("b"));
        let limited = group("", "", Some("memory=4096;cpusetcpus=0")).expect("a group");
        assert_eq!((limited.parent.as_str(), limited.limits.memory_bytes), ("", Some(4096)));
        assert_eq!(limited.limits.cpuset_cpus.as_deref(), Some("0"));
        assert!(asked("", "", Some("memory=much")).is_err());
    }
}
