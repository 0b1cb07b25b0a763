//! The life of one part of a run: launched, watched, moved, tried again.

use std::time::Duration;

use lapstrake_crds::{EmulationPolicy, Reason, ReasonKind};
use lapstrake_handoff::Success;

use crate::names;
use crate::observe::{Owned, PodFacts, Refusal};
use crate::plan::ending::{Broken, Ending, Retry, ending, gone, lost};
use crate::plan::objects::{CachePlace, cache_claim, cache_place, request_map};
use crate::plan::parts::{Kind, Part};
use crate::plan::pod::{PodFor, pod};
use crate::plan::request::{Asked, request};
use crate::plan::run::Planner;
use crate::plan::turn::Grip;
use crate::plan::waiting::doing;
use crate::plan::{share, status};
use crate::settings::limits;

/// Where a part stands after a pass.
#[derive(Debug)]
pub(super) enum Told {
    /// It is under way, or waits for something.
    Going(Reason, String),
    /// All that it has to push is pushed; with what was said of it, if that was found just now.
    Done(Option<Box<Success>>),
    /// It has failed for good; status says how.
    Failed,
}

impl<'a> Planner<'a> {
    /// What became of the attempt under way, if there is one.
    pub(super) fn watch(&mut self, part: &Part) -> Option<Told> {
        let share = share::of(&self.draft, part);
        if share.done && !part.whole {
            return Some(Told::Done(None));
        }
        if share.failed.is_some() {
            return Some(Told::Failed);
        }
        if let Some(pod) = self.pod_of(part) {
            return Some(self.observe(part, pod));
        }
        share.pod.map(|name| {
            self.needs_fresh = true;
            self.broke(part, gone(&name))
        })
    }

    /// The pod of the attempt under way.
    pub(super) fn pod_of(&self, part: &Part) -> Option<&'a PodFacts> {
        let attempt = share::of(&self.draft, part).attempt;
        let run = self.draft.run.as_ref()?;
        self.seen.pods.iter().find(|pod| pod.run == run.id && part.has(&pod.part) && pod.attempt == attempt)
    }

    /// Goes on with a part that has no pod.
    pub(super) fn advance(&mut self, part: &Part) -> Told {
        let share = share::of(&self.draft, part);
        if let Some(due) = share.retry_after.filter(|due| *due > self.now) {
            let wait = Duration::try_from(due.duration_since(self.now)).unwrap_or_default();
            self.again_in(wait);
            let message = self.remembered(part);
            return self.going(part, Reason::ProgressingWithRetry, message);
        }
        self.attempt(part)
    }

    /// Stops a part whose builder has not started, since the run has failed without it.
    pub(super) fn stop(&mut self, part: &Part) -> Told {
        if let Some(pod) = self.pod_of(part) {
            self.delete(pod);
        }
        let failed = self.draft.failure.as_ref().and_then(|failure| failure.platform.clone());
        let message = match failed {
            Some(platform) => format!("not built, since {platform} failed"),
            None => "not built, since another platform failed".to_owned(),
        };
        share::stop(&mut self.draft, part, &message);
        Told::Failed
    }

    /// What was last said of a part.
    fn remembered(&self, part: &Part) -> String {
        let of_run = || Some(self.draft.conditions.first()?.message.clone());
        let message = if part.whole { of_run() } else { share::message(&self.draft, part) };
        message.unwrap_or_default()
    }

    /// Says what a part does; a wait that is new is an Event too.
    pub(super) fn going(&mut self, part: &Part, reason: Reason, message: impl Into<String>) -> Told {
        let message = message.into();
        let before = if part.whole { self.old.reason.clone() } else { share::reason(&self.old, part) };
        let waits = reason.kind() == ReasonKind::Waiting
            && !matches!(reason, Reason::Queued | Reason::ProgressingWithRetry);
        if waits && before.as_deref() != Some(reason.as_str()) {
            let message = named(part, &message);
            self.note(false, "Wait", reason, message);
        }
        share::say(&mut self.draft, part, reason, &message);
        Told::Going(reason, message)
    }

    /// Gets the pod of this attempt, or says what it waits for.
    fn attempt(&mut self, part: &Part) -> Told {
        let attempt = share::of(&self.draft, part).attempt;
        let run = self.draft.run.as_ref().map(|run| run.id.clone()).unwrap_or_default();
        let name = names::pod(&self.name(), &run, attempt, part.key());
        let claim = self.claim_of(part);
        // A pod that is going has the volume, or the name, until it is gone.
        let in_the_way = |pod: &&PodFacts| {
            let others = pod.run != run || part.has(&pod.part) || (claim.is_some() && pod.claim == claim);
            pod.name == name || (pod.alive(self.now) && others)
        };
        let pods: &'a [PodFacts] = &self.seen.pods;
        if let Some(other) = pods.iter().find(in_the_way) {
            self.delete(other);
            if let Some(wait) = other.lost_in(self.now) {
                self.again_in(wait);
            }
            let message = format!("waits until pod {} of the attempt before has stopped", other.name);
            return self.going(part, Reason::Queued, message);
        }
        match self.seen.refusals.get(&name) {
            Some(refusal) => self.refused(part, refusal.clone()),
            // One at a time: what is planned next is planned on facts that know of this one.
            None if self.plan.create.is_some() => {
                self.going(part, Reason::Queued, "waits for its pod to be made")
            }
            None => match self.clearance(part) {
                Ok(grip) => self.launch(part, &run, attempt, name, grip),
                Err(told) => told,
            },
        }
    }

    /// Claim of the volume that a part's cache is on.
    pub(super) fn claim_of(&self, part: &Part) -> Option<String> {
        let on_volume = part.kind == Kind::Build
            && matches!(cache_place(self.build(), part, self.settings), CachePlace::Volume(_));
        on_volume.then(|| names::cache(&self.name(), part.cache_key().as_deref()))
    }

    fn launch(&mut self, part: &Part, run: &str, attempt: u32, name: String, grip: Option<Grip>) -> Told {
        let (build, settings) = (self.build(), self.settings);
        let sandbox = self.draft.sandbox.unwrap_or_default();
        let pull_secrets = &self.seen.pull_secrets;
        let asked = Asked { run, part, sandbox, pull_secrets, status: &self.draft };
        let text = match request(build, &asked, settings) {
            Ok(text) => text,
            Err(problem) => {
                return self.broke(part, Broken::new(Reason::SpecInvalid, Retry::Never, problem));
            }
        };
        if let CachePlace::Volume(volume) = cache_place(build, part, settings) {
            self.plan.volume = Some(Box::new(cache_claim(build, part, &volume, settings)));
        }
        self.plan.subject = name.clone();
        self.plan.request = Some(Box::new(request_map(build, name.clone(), run, text, settings)));
        let slot = grip.as_ref().map(|grip| grip.claim.clone());
        if let Some(grip) = grip {
            self.plan.volume = grip.volume.map(Box::new);
            self.plan.enter = Some(grip.enter);
            self.again_in(limits::SLOT_RECHECK);
        }
        self.admit();
        let of = PodFor { run, attempt, part, sandbox, pull_secrets, slot: slot.as_deref() };
        self.plan.create = Some(Box::new(pod(build, of, settings)));
        // As the pod will be seen next, so that the next pass has nothing to change.
        let next = PodFacts { name, created: Some(self.now), ..PodFacts::default() };
        share::record_pod(&mut self.draft, part, &next);
        let wanted = self.wanted();
        self.plan.delete_objects =
            self.seen.objects.iter().filter(|one| !wanted.contains(one)).cloned().collect();
        let doing = doing(&next, None, self.now);
        self.going(part, doing.reason, doing.message)
    }

    /// What the run needs beside its pods.
    fn wanted(&self) -> Vec<Owned> {
        let mut wanted = Vec::new();
        for part in self.parts.iter().chain(&self.index) {
            wanted.extend(share::of(&self.draft, part).pod.map(Owned::Request));
            wanted.extend(self.claim_of(part).map(Owned::Volume));
            // What its own kind of node left is there for the next time that there is such a node.
            let native = Part { architecture: None, ..part.clone() };
            wanted.extend(self.claim_of(&native).map(Owned::Volume));
        }
        wanted
    }

    fn refused(&mut self, part: &Part, refusal: Refusal) -> Told {
        match refusal {
            Refusal::Quota(mut message) => {
                self.again_in(limits::QUOTA_RECHECK);
                // This quota has no room for any pod that says nothing about what it counts.
                if message.contains("must specify") {
                    message.push_str(": set it in pod.resources");
                }
                self.going(part, Reason::WaitingForQuota, message)
            }
            Refusal::NotYet(reason, message) => {
                self.again_in(limits::QUOTA_RECHECK);
                self.going(part, reason, message)
            }
            Refusal::Leaving(message) => {
                self.again_in(limits::LEAVING_RECHECK);
                self.going(part, Reason::Queued, message)
            }
            Refusal::PodSecurity(message) => {
                let message = format!(
                    "{message}; pod.sandbox: Baseline is admitted where Pod Security baseline is enforced"
                );
                self.broke(part, Broken::new(Reason::SandboxUnavailable, Retry::Never, message))
            }
            Refusal::Rejected(mut message) => {
                // A LimitRange puts its own defaults beside the operator's.
                if message.contains("resources.") || message.contains(" usage per ") {
                    message.push_str(
                        "; set pod.resources.requests and pod.resources.limits to what the namespace allows",
                    );
                }
                self.broke(part, Broken::new(Reason::PodRejected, Retry::Never, message))
            }
            Refusal::NameTaken(message) => {
                self.broke(part, Broken::new(Reason::PodRejected, Retry::Never, message))
            }
        }
    }

    /// Status from the pod of this attempt.
    pub(super) fn observe(&mut self, part: &Part, pod: &PodFacts) -> Told {
        share::record_pod(&mut self.draft, part, pod);
        if !self.admitted() {
            self.admit();
        }
        if pod.ended() {
            return match ending(pod) {
                Ending::Success(success) => {
                    self.give_back(pod, success.cache_bytes);
                    self.pushed(part, success)
                }
                Ending::Failure(broken) => {
                    self.give_back(pod, broken.detail.as_ref().and_then(|detail| detail.cache_bytes));
                    self.broke(part, *broken)
                }
            };
        }
        if pod.lost(self.now) {
            self.needs_fresh = true;
            return self.broke(part, lost(pod));
        }
        if let Some(refusal) = self.seen.refusals.get(&pod.name) {
            return self.refused(part, refusal.clone());
        }
        if pod.gated && !pod.deleting {
            return self.enter(part, pod);
        }
        if pod.shared_cache && pod.claim.as_ref().is_some_and(|claim| misses(pod, claim)) {
            self.delete(pod);
            share::forget_pod(&mut self.draft, part);
            self.needs_fresh = true;
            return self.going(part, Reason::Queued, "its cache slot was deleted: looks for the next");
        }
        self.restore_volume(part, pod);
        let secret = self.build().spec.output.secret_ref.as_ref().map(|secret| secret.name.as_str());
        let doing = doing(pod, secret, self.now);
        doing.recheck.into_iter().for_each(|wait| self.again_in(wait));
        if let Some(broken) = doing.given_up {
            self.delete(pod);
            return self.broke(part, broken);
        }
        if doing.reason == Reason::WaitingForNode {
            return self.without_node(part, pod, doing.message);
        }
        self.going(part, doing.reason, doing.message)
    }

    pub(super) fn pushed(&mut self, part: &Part, success: Box<Success>) -> Told {
        if part.kind == Kind::Index {
            return Told::Done(Some(success));
        }
        share::succeed(&mut self.draft, part, &success);
        if !part.whole {
            status::source(&mut self.draft, &success);
            status::base_images(&mut self.draft, &success);
            let message = format!("{} is built: {}", part.told(), success.digest);
            self.note(false, "Push", Reason::Pushing, message);
        }
        Told::Done(Some(success))
    }

    /// No node takes the pod: the part waits on, or moves to nodes of another architecture.
    fn without_node(&mut self, part: &Part, pod: &PodFacts, mut message: String) -> Told {
        let emulation = &self.build().spec.emulation;
        let native = part.architecture.is_some() && !part.platforms.iter().any(|one| part.emulates(one));
        let chosen =
            part.wish(self.build()).is_some_and(|wish| wish.node_selector.contains_key("kubernetes.io/arch"));
        if !native || chosen || part.kind == Kind::Index {
            return self.going(part, Reason::WaitingForNode, message);
        }
        let Some(there) = self.architecture_there_is(part) else {
            return self.going(part, Reason::WaitingForNode, message);
        };
        let what = part.told();
        if emulation.policy != EmulationPolicy::PreferNative {
            message.push_str("; emulation.policy: PreferNative would emulate it elsewhere");
            return self.going(part, Reason::WaitingForNode, message);
        }
        let after: Duration = emulation.after.into();
        let since = pod.created.unwrap_or(self.now);
        let waited = Duration::try_from(self.now.duration_since(since)).unwrap_or_default();
        if waited < after {
            self.again_in(after - waited);
            message.push_str(&format!(
                "; from {} s on, {what} will be emulated on {there} instead (emulation.after)",
                after.as_secs()
            ));
            return self.going(part, Reason::WaitingForNode, message);
        }
        // The pod goes with the next pass: first it has to stand in status why.
        self.needs_fresh = true;
        self.again_in(Duration::ZERO);
        let share = share::of(&self.draft, part);
        share::move_to(&mut self.draft, part, &share, &there);
        let message =
            format!("no node took {what} for {} s: it is emulated on {there} instead", waited.as_secs());
        self.note(true, "Emulate", Reason::WaitingForNode, message.clone());
        self.going(part, Reason::Queued, message)
    }

    /// An architecture other than the part's that nodes have, as far as is known.
    fn architecture_there_is(&self, part: &Part) -> Option<String> {
        let seen = self
            .draft
            .platforms
            .iter()
            .filter(|entry| entry.node.is_some())
            .find_map(|entry| entry.architecture.clone());
        let there = seen.unwrap_or_else(|| self.settings.architecture.clone());
        (part.architecture.as_deref() != Some(there.as_str())).then_some(there)
    }

    /// Makes the cache volume again if somebody deleted it before the pod was placed: without it the
    /// pod would wait for ever.
    fn restore_volume(&mut self, part: &Part, pod: &PodFacts) {
        let Some(name) = self.claim_of(part) else { return };
        let missing = misses(pod, &name) && !self.seen.objects.contains(&Owned::Volume(name));
        if missing
            && self.plan.volume.is_none()
            && let CachePlace::Volume(volume) = cache_place(self.build(), part, self.settings)
        {
            self.plan.subject = pod.name.clone();
            let claim = cache_claim(self.build(), part, &volume, self.settings);
            self.plan.volume = Some(Box::new(claim));
        }
    }

    /// An attempt broke: another follows, or the part has failed.
    pub(super) fn broke(&mut self, part: &Part, broken: Broken) -> Told {
        let share = share::of(&self.draft, part);
        let another = match broken.retry {
            Retry::Never => false,
            Retry::Counted => share.retries < self.build().spec.retries,
            Retry::Free => share.uncounted < limits::FREE_ATTEMPTS_MAX,
        };
        if !another {
            return self.failed(part, &broken);
        }
        let wait = share::backoff(share.attempt);
        share::retry(&mut self.draft, part, &share, &broken, self.now + wait);
        self.again_in(wait);
        let message = format!(
            "attempt {} broke, another follows in {} s: {}",
            share.attempt,
            wait.as_secs(),
            broken.message
        );
        self.note(true, "Retry", broken.reason, named(part, &message));
        self.going(part, Reason::ProgressingWithRetry, message)
    }

    pub(super) fn failed(&mut self, part: &Part, broken: &Broken) -> Told {
        let known = self.draft.platforms.first().map(|entry| entry.platform.clone());
        let told = broken.detail.as_ref().and_then(|detail| detail.platform.clone());
        let platform = match (part.kind, part.platforms.as_slice()) {
            (Kind::Index, _) => None,
            (Kind::Build, []) => known.filter(|name| name != share::PLATFORM_UNKNOWN),
            (Kind::Build, [one]) => Some(one.clone()),
            (Kind::Build, _) => told,
        };
        let failure = status::failure(broken, platform);
        share::fail(&mut self.draft, part, broken, &status::place(&failure));
        if !part.whole && self.draft.failure.is_some() {
            // The first one is what the run failed for; this one is told beside it.
            self.note(true, "Build", broken.reason, named(part, &status::place(&failure)));
        } else {
            self.draft.failure = Some(failure);
        }
        Told::Failed
    }
}

/// Whether the scheduler found no volume of this name for the pod, which it does not look for again.
fn misses(pod: &PodFacts, claim: &str) -> bool {
    let words =
        ["not found", "is being deleted"].map(|state| format!("persistentvolumeclaim {claim:?} {state}"));
    let told = pod.unscheduled.as_ref().filter(|_| pod.node.is_none());
    told.is_some_and(|why| words.iter().any(|one| why.message.contains(one)))
}

/// A sentence about a part, where there are several.
pub(super) fn named(part: &Part, message: &str) -> String {
    if part.whole { message.to_owned() } else { format!("{}: {message}", part.told()) }
}
