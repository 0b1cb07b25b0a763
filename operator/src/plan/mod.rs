//! Facts in, decision out: what should exist for one ImageBuild, and what its status should say.
//!
//! Holds: planning again after a plan was applied changes nothing; a pod is created only when no
//! other pod of the same part of the ImageBuild lives; a run that has ended stays ended until something new is asked
//! for; anything but a status write is decided only on facts read from the API server just now.
//! Never: I/O, a clock, chance.

mod begin;
mod caches;
mod ending;
mod identity;
pub(crate) mod inputs;
mod objects;
mod part;
mod parts;
mod pod;
mod request;
mod revision;
mod run;
mod share;
mod status;
mod turn;
mod waiting;

#[cfg(test)]
mod kstatus;
#[cfg(test)]
mod platforms_tests;
#[cfg(test)]
mod simulate;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trouble_tests;
#[cfg(test)]
mod turn_tests;

/// What tests of other modules start from.
#[cfg(test)]
pub(crate) mod testing {
    pub(crate) use super::tests::{begun, build, end, fresh, go, now};
}

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use lapstrake_crds::{ImageBuildStatus, Reason, RunResult};

pub use ending::{Broken, Ending, Retry};
pub use identity::{Identity, Requests};
pub use pod::docker_config_path;
pub use turn::needs;
pub(crate) use waiting::MISSING_INPUT;

use crate::observe::{Observed, Owned};
use crate::settings::Settings;

/// What is to be done for one ImageBuild, in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Nothing may be done on facts from a cache: look at the API server itself and plan again.
    pub look_closer: bool,
    /// Nothing may be done without the queue's leave: ask for it and plan again.
    pub ask: bool,
    /// The ImageBuild is admitted by this plan, at this time.
    pub admits: Option<Timestamp>,
    /// Pods that must go, by name and uid.
    pub delete_pods: Vec<(String, String)>,
    /// Other objects that must go.
    pub delete_objects: Vec<Owned>,
    /// Name of the pod that the three after this are for.
    pub subject: String,
    /// Cache volume that must be there.
    pub volume: Option<Box<PersistentVolumeClaim>>,
    /// Request that must be there.
    pub request: Option<Box<ConfigMap>>,
    /// Pod to create, once the two before are there.
    pub create: Option<Box<Pod>>,
    /// How the pod that was created, or one that was before, comes into its cache slot.
    pub enter: Option<Enter>,
    /// What pods that have ended give back.
    pub give_back: Vec<GiveBack>,
    /// Status to write; none if it is as it should be.
    pub status: Option<Box<ImageBuildStatus>>,
    /// What to tell the user, once the status is written.
    pub events: Vec<Note>,
    /// The run ended with this plan: to be counted once the status is written.
    pub finished: Option<Finished>,
    /// When to look again though nothing may happen.
    pub requeue: Option<Duration>,
}

/// How a pod comes into a slot of a shared cache: its uid is written onto the claim, then its gate goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enter {
    /// Name of the claim.
    pub claim: String,
    /// Version of the claim that is written over; none: the one that this plan's volume has.
    pub version: Option<String>,
    /// Who stood on it: if somebody else does by now, it is not written over.
    pub holder_before: Option<String>,
    /// ImageBuild that uses it.
    pub user: String,
    /// How long the slot is kept unused.
    pub unused_for: Option<Duration>,
    /// Name and uid of the pod; none: the one that this plan creates.
    pub pod: Option<(String, String)>,
    /// The slot is its own already: only the gate is left.
    pub leased: bool,
    /// Now.
    pub at: Timestamp,
}

/// A volume that a pod has done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GiveBack {
    /// Name of the claim.
    pub claim: String,
    /// Uid of the pod whose lease it was; none: it was not lent.
    pub holder: Option<String>,
    /// How much the cache takes, if the builder told.
    pub used_bytes: Option<u64>,
    /// Now.
    pub at: Timestamp,
}

/// An Event on the ImageBuild.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Whether something went wrong.
    pub warning: bool,
    /// What the operator did or found, as a word.
    pub action: &'static str,
    /// Why, as a word.
    pub reason: Reason,
    /// In a sentence.
    pub message: String,
}

/// A run that has just ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// How.
    pub result: RunResult,
    /// Why.
    pub reason: Reason,
    /// From its start to its end.
    pub took: Duration,
    /// From its start until the builder of its last attempt ran, if it ever did.
    pub waited: Option<Duration>,
}

impl Plan {
    /// Whether more than a status write is asked for.
    fn acts(&self) -> bool {
        self.create.is_some()
            || self.volume.is_some()
            || self.request.is_some()
            || self.enter.is_some()
            || !self.delete_pods.is_empty()
            || !self.delete_objects.is_empty()
    }

    fn closer_look() -> Self {
        Self { look_closer: true, ..Self::default() }
    }
}

/// What is to be done for the ImageBuild that was `seen`.
pub fn plan(seen: &Observed, settings: &Settings, now: Timestamp) -> Plan {
    // Everything that belongs to it has an owner reference: the cluster takes it away.
    if seen.build.metadata.deletion_timestamp.is_some() {
        return Plan::default();
    }
    run::Planner::new(seen, settings, now).plan()
}
