//! The life of a run: begun, attempted, retried, ended.

use std::time::Duration;

use jiff::Timestamp;
use lapstrake_crds::{Change, ImageBuild, ImageBuildStatus, Reason, RunResult, RunStatus, Sandbox, Why};

use crate::follow::{Moved, Wish, wish};
use crate::names;
use crate::observe::{Observed, Owned, PodFacts, PodSecurity, Refusal};
use crate::plan::ending::{Broken, Ending, Retry, ending, gone};
use crate::plan::identity::{Identity, Requests};
use crate::plan::objects::{CachePlace, cache_claim, cache_place, request_map};
use crate::plan::pod::{PodFor, pod};
use crate::plan::request::request;
use crate::plan::waiting::doing;
use crate::plan::{Finished, Note, Plan, status};
use crate::settings::{KeepPods, Settings, limits};

/// One pass of planning.
pub(super) struct Planner<'a> {
    seen: &'a Observed,
    settings: &'a Settings,
    now: Timestamp,
    /// Status as it is.
    old: ImageBuildStatus,
    /// Status as it should be.
    pub(super) draft: ImageBuildStatus,
    plan: Plan,
    /// What was decided needs fresh facts even if it is only a status.
    needs_fresh: bool,
    /// What following asks for.
    wish: Wish,
}

impl<'a> Planner<'a> {
    pub(super) fn new(seen: &'a Observed, settings: &'a Settings, now: Timestamp) -> Self {
        let old = seen.build.status.clone().unwrap_or_default();
        Self {
            seen,
            settings,
            now,
            draft: old.clone(),
            old,
            plan: Plan::default(),
            needs_fresh: false,
            wish: Wish::default(),
        }
    }

    pub(super) fn plan(mut self) -> Plan {
        let requests = Requests::of(&self.seen.build, &self.old);
        let asked = !requests.by_hand_handled(&self.old);
        self.wish = wish(&self.seen.build, &self.old, &self.seen.follow, asked);
        let requests = requests.with_wish(&self.wish);
        self.follow_problem();
        let wanted = Identity::of(&self.seen.build, &requests);
        self.draft.observed_generation = self.seen.build.metadata.generation;
        match self.current(&wanted, &requests) {
            Some(run) if self.old.completion_time.is_some() => self.settled(&run),
            Some(run) => self.go_on(run),
            None => self.start(&wanted.id(), requests),
        }
        if (self.plan.acts() || self.needs_fresh) && !self.seen.fresh {
            return Plan::closer_look();
        }
        status::tidy(&mut self.draft);
        if self.draft != self.old {
            self.plan.status = Some(Box::new(self.draft));
        } else {
            self.plan.events.clear();
            self.plan.finished = None;
        }
        self.plan
    }

    /// Says what cannot be followed, once that is known.
    fn follow_problem(&mut self) {
        let problem = self.wish.problem.clone();
        if self.old.follow.as_ref().and_then(|follow| follow.problem.as_ref()) == problem.as_ref()
            || (problem.is_none() && self.seen.follow.unknown(&self.build().spec.follow))
        {
            return;
        }
        let follow = self.draft.follow.get_or_insert_default();
        follow.problem = problem.map(|text| text.chars().take(1024).collect());
    }

    fn build(&self) -> &'a ImageBuild {
        &self.seen.build
    }

    fn platform(&self) -> Option<&'a str> {
        self.build().spec.platforms.first().map(String::as_str)
    }

    /// The run in status, if it is the one that is asked for.
    fn current(&self, wanted: &Identity, requests: &Requests) -> Option<RunStatus> {
        let run = self.old.run.as_ref()?;
        let ended = self.old.completion_time.is_some();
        // The same generation is the same spec, even if another version of the operator hashes it
        // otherwise: an upgrade builds nothing again.
        let untouched = run.generation.is_some()
            && run.generation == self.build().metadata.generation
            && *requests == Requests::handled(&self.old);
        let stands = untouched
            || if ended && status::succeeded(&self.old) {
                wanted.builds_the_same(&run.id)
            } else {
                run.id == wanted.id()
            };
        // Taking `cancel` back asks for the image again.
        let uncanceled = ended && status::canceled(&self.old) && !self.build().spec.cancel;
        (stands && !uncanceled).then(|| run.clone())
    }

    /// The wanted run has ended: nothing to do but to tidy.
    fn settled(&mut self, run: &RunStatus) {
        let succeeded = status::succeeded(&self.old);
        for pod in &self.seen.pods {
            // A pod whose sidecar goes on would stay for ever.
            let keep = pod.ended()
                && !pod.sidecar
                && pod.run == run.id
                && match self.settings.keep_pods {
                    KeepPods::All => true,
                    KeepPods::Failed => !succeeded,
                    KeepPods::None => false,
                };
            if !keep {
                self.delete(pod);
            }
        }
        status::observe_generation(&mut self.draft);
        status::shorten_history(&mut self.draft, &self.seen.build, self.now);
        if let Some(due) = status::history_expires(&self.draft, &self.seen.build) {
            let wait = Duration::try_from(due.duration_since(self.now)).unwrap_or_default();
            self.requeue(wait.max(Duration::from_secs(1)));
        }
    }

    /// Something else is wanted than what status speaks of.
    fn start(&mut self, id: &str, requests: Requests) {
        let attempt = match &self.old.run {
            Some(run) if run.id == id => run.attempt + 1,
            _ => 1,
        };
        let old: Vec<&PodFacts> =
            self.seen.pods.iter().filter(|pod| pod.run != id || pod.attempt != attempt).collect();
        if let Some((reason, message)) = self.obstacle() {
            self.seen.pods.iter().filter(|pod| pod.alive()).for_each(|pod| self.delete(pod));
            self.supersede(&message);
            self.handled(requests);
            if reason == Reason::SandboxUnavailable {
                self.plan.requeue = Some(limits::STALLED_RECHECK);
            }
            return self.say_without_run(reason, message);
        }
        if self.build().spec.suspend {
            old.iter().filter(|pod| pod.alive()).for_each(|pod| self.delete(pod));
            self.supersede("the spec changed, and suspend is set");
            return self
                .say_without_run(Reason::Suspended, "no new run starts while suspend is set".to_owned());
        }
        // The first answer is worth waiting for: it says which commit this run builds. Nothing is written, so
        // that nobody takes the old status for the new spec's.
        if self.wish.undecided {
            self.draft = self.old.clone();
            self.plan.requeue = Some(limits::FOLLOW_RECHECK);
            return;
        }
        let Some(sandbox) = self.sandbox() else {
            self.needs_fresh = true;
            return;
        };
        old.into_iter().for_each(|pod| self.delete(pod));
        self.supersede("a newer spec or request took its place");
        self.begin(id, attempt, sandbox, requests);
        self.attempt(id, attempt);
    }

    /// What stands in the way of any run of this spec.
    fn obstacle(&self) -> Option<(Reason, String)> {
        let spec = &self.build().spec;
        if spec.cancel {
            return Some((Reason::Canceled, "no run starts while cancel is set".to_owned()));
        }
        if spec.platforms.len() > 1 {
            let message = format!(
                "an image for several platforms at once ({}) is not supported yet: keep one of platforms, \
                 and write an ImageBuild for each",
                spec.platforms.join(", ")
            );
            return Some((Reason::NotSupported, message));
        }
        if spec.source.kind().is_none() {
            return Some((
                Reason::SpecInvalid,
                "source needs exactly one of git, http and inline".to_owned(),
            ));
        }
        let sandbox = self.sandbox()?;
        if self.seen.pod_security == Some(PodSecurity::Restricted) {
            return Some((
                Reason::SandboxUnavailable,
                "the namespace enforces Pod Security restricted, where no builder can run: build in a \
                 namespace that enforces baseline or nothing (a change of the label is noticed within a minute)"
                    .to_owned(),
            ));
        }
        request(
            self.build(),
            "",
            self.platform(),
            sandbox,
            &self.seen.pull_secrets,
            self.settings,
            &self.draft,
        )
        .err()
        .map(|message| (Reason::SpecInvalid, message))
    }

    /// The sandbox to use, unless the namespace has not been looked at.
    fn sandbox(&self) -> Option<Sandbox> {
        let level = self.seen.pod_security?;
        Some(match (self.build().spec.pod.sandbox, level) {
            (Sandbox::Auto, PodSecurity::Baseline) => Sandbox::Baseline,
            (Sandbox::Auto, _) => Sandbox::UserNamespace,
            (chosen, _) => chosen,
        })
    }

    /// Closes a run that is under way, since another takes its place.
    fn supersede(&mut self, why: &str) {
        if self.old.run.is_none() || self.old.completion_time.is_some() || self.old.start_time.is_none() {
            return;
        }
        status::close(
            &mut self.draft,
            RunResult::Canceled,
            Reason::Canceled,
            why,
            self.now,
            &self.seen.build,
        );
        self.note(false, "Supersede", Reason::Canceled, format!("the run under way was stopped: {why}"));
        self.finished(RunResult::Canceled, Reason::Canceled);
    }

    fn handled(&mut self, requests: Requests) {
        self.draft.last_handled_rebuild = requests.rebuild;
        self.draft.last_handled_reconcile_at = requests.reconcile_at;
        self.draft.last_handled_force_at = requests.force_at;
        if requests.source.is_some() || !requests.base_images.is_empty() || self.draft.follow.is_some() {
            let follow = self.draft.follow.get_or_insert_default();
            follow.source = requests.source;
            follow.base_images = requests.base_images;
        }
    }

    /// Why a run starts, and what moved if that is why.
    fn why(&self, requests: &Requests) -> (Why, Option<Change>) {
        if self.old.run.is_none() && self.old.history.is_empty() {
            return (Why::Created, None);
        }
        if !requests.by_hand_handled(&self.old) {
            return (Why::Requested, None);
        }
        let run = self.old.run.as_ref();
        if run.is_some_and(|run| run.generation != self.build().metadata.generation) {
            return (Why::SpecChanged, None);
        }
        match self.wish.change.clone() {
            Some(Moved::Source(change)) => (Why::SourceChanged, Some(change)),
            Some(Moved::BaseImage(change)) => (Why::BaseImageChanged, Some(change)),
            None => (Why::SpecChanged, None),
        }
    }

    fn begin(&mut self, id: &str, attempt: u32, sandbox: Sandbox, requests: Requests) {
        let (why, change) = self.why(&requests);
        self.draft.change = change;
        self.handled(requests);
        let platform = self.platform();
        status::begin(&mut self.draft, &self.seen.build, id, attempt, why, sandbox, platform, self.now);
        self.note(false, "Build", Reason::Starting, format!("run {id} starts ({})", why.as_str()));
    }

    /// Looks again after `wait` at the latest.
    fn requeue(&mut self, wait: Duration) {
        self.plan.requeue = Some(self.plan.requeue.map_or(wait, |other| other.min(wait)));
    }

    /// The wanted run is under way.
    fn go_on(&mut self, run: RunStatus) {
        let pods: &'a [PodFacts] = &self.seen.pods;
        let mine = pods.iter().find(|pod| pod.run == run.id && pod.attempt == run.attempt);
        if self.build().spec.cancel {
            return self.cancel(mine);
        }
        if let Some(pod) = mine {
            return self.observe(pod);
        }
        if let Some(name) = status::recorded_pod(&self.draft) {
            let broken = gone(name);
            self.needs_fresh = true;
            return self.broke(broken);
        }
        if let Some(due) = run.retry_after.as_ref().map(|due| due.0).filter(|due| *due > self.now) {
            let wait = Duration::try_from(due.duration_since(self.now)).unwrap_or_default();
            self.plan.requeue = Some(wait);
            return status::observe_generation(&mut self.draft);
        }
        self.attempt(&run.id, run.attempt);
    }

    /// Gets the pod of this attempt, or says what it waits for.
    fn attempt(&mut self, id: &str, attempt: u32) {
        let pods: &'a [PodFacts] = &self.seen.pods;
        let name = names::pod(&self.name(), id, attempt, self.platform());
        if let Some(pod) = pods.iter().find(|pod| pod.name == name && !pod.deleting) {
            return self.observe(pod);
        }
        // A pod that is going has the volume, or the name, until it is gone.
        if let Some(other) = pods.iter().find(|pod| pod.alive() || pod.name == name) {
            self.delete(other);
            return self.say(
                Reason::Queued,
                format!("waits until pod {} of the run before has stopped", other.name),
            );
        }
        match &self.seen.refusal {
            Some(refusal) => self.refused(refusal.clone()),
            None => self.launch(id, attempt, name),
        }
    }

    fn launch(&mut self, id: &str, attempt: u32, name: String) {
        let (build, settings, platform) = (self.build(), self.settings, self.platform());
        let sandbox = self.draft.sandbox.unwrap_or_default();
        let text = match request(build, id, platform, sandbox, &self.seen.pull_secrets, settings, &self.draft)
        {
            Ok(text) => text,
            Err(problem) => {
                let broken = Broken::new(Reason::SpecInvalid, Retry::Never, problem);
                return self.broke(broken);
            }
        };
        let mut wanted = vec![Owned::Request(names::request(&self.name(), id, platform))];
        if let CachePlace::Volume(volume) = cache_place(build, settings) {
            wanted.push(Owned::Volume(names::cache(&self.name(), platform)));
            self.plan.volume = Some(Box::new(cache_claim(build, platform, &volume, settings)));
        }
        self.plan.delete_objects =
            self.seen.objects.iter().filter(|one| !wanted.contains(one)).cloned().collect();
        self.plan.request = Some(Box::new(request_map(build, id, platform, text, settings)));
        let of = PodFor { run: id, attempt, platform, sandbox, pull_secrets: &self.seen.pull_secrets };
        self.plan.create = Some(Box::new(pod(build, of, settings)));
        // As the pod will be seen next, so that the next pass has nothing to change.
        let next = PodFacts { name: name.clone(), created: Some(self.now), ..PodFacts::default() };
        status::record_pod(&mut self.draft, &next);
        if let Some(run) = &mut self.draft.run {
            run.retry_after = None;
        }
        let doing = doing(&next, None, None, self.now);
        self.say(doing.reason, doing.message);
    }

    fn refused(&mut self, refusal: Refusal) {
        match refusal {
            Refusal::Quota(mut message) => {
                self.plan.requeue = Some(limits::QUOTA_RECHECK);
                // This quota has no room for any pod that says nothing about what it counts.
                if message.contains("must specify") {
                    message.push_str(": set it in pod.resources");
                }
                self.say(Reason::WaitingForQuota, message);
            }
            Refusal::NotYet(reason, message) => {
                self.plan.requeue = Some(limits::QUOTA_RECHECK);
                self.say(reason, message);
            }
            Refusal::Leaving(message) => {
                self.plan.requeue = Some(limits::LEAVING_RECHECK);
                self.say(Reason::Queued, message);
            }
            Refusal::PodSecurity(message) => {
                let message = format!(
                    "{message}; pod.sandbox: Baseline is admitted where Pod Security baseline is enforced"
                );
                self.broke(Broken::new(Reason::SandboxUnavailable, Retry::Never, message));
            }
            Refusal::Rejected(mut message) => {
                // A LimitRange puts its own defaults beside the operator's.
                if message.contains("resources.") || message.contains(" usage per ") {
                    message.push_str(
                        "; set pod.resources.requests and pod.resources.limits to what the namespace allows",
                    );
                }
                self.broke(Broken::new(Reason::PodRejected, Retry::Never, message));
            }
            Refusal::NameTaken(message) => {
                self.broke(Broken::new(Reason::PodRejected, Retry::Never, message))
            }
        }
    }

    /// Status from the pod of this attempt.
    fn observe(&mut self, pod: &PodFacts) {
        status::record_pod(&mut self.draft, pod);
        if pod.ended() {
            return match ending(pod) {
                Ending::Success(success) => self.succeeded(&success),
                Ending::Failure(broken) => self.broke(*broken),
            };
        }
        self.seen
            .pods
            .iter()
            .filter(|other| other.alive() && other.name != pod.name)
            .for_each(|other| self.delete(other));
        if let Some(refusal) = &self.seen.refusal {
            return self.refused(refusal.clone());
        }
        self.restore_volume(pod);
        let secret = self.build().spec.output.secret_ref.as_ref().map(|secret| secret.name.as_str());
        let doing = doing(pod, self.seen.progress, secret, self.now);
        self.plan.requeue = doing.recheck;
        match doing.given_up {
            Some(broken) => {
                self.delete(pod);
                self.broke(broken);
            }
            None => self.say(doing.reason, doing.message),
        }
    }

    /// Makes the cache volume again if somebody deleted it before the pod was placed: without it the
    /// pod would wait for ever.
    fn restore_volume(&mut self, pod: &PodFacts) {
        let name = names::cache(&self.name(), self.platform());
        // The scheduler does not look again once the claim is gone.
        let words =
            ["not found", "is being deleted"].map(|state| format!("persistentvolumeclaim {name:?} {state}"));
        let missing = pod.node.is_none()
            && pod.unscheduled.as_ref().is_some_and(|why| words.iter().any(|one| why.message.contains(one)))
            && !self.seen.objects.contains(&Owned::Volume(name));
        if missing && let CachePlace::Volume(volume) = cache_place(self.build(), self.settings) {
            let claim = cache_claim(self.build(), self.platform(), &volume, self.settings);
            self.plan.volume = Some(Box::new(claim));
        }
    }

    fn cancel(&mut self, mine: Option<&PodFacts>) {
        let alive: Vec<&PodFacts> = self.seen.pods.iter().filter(|pod| pod.alive()).collect();
        if let Some(pod) = alive.first() {
            let message = format!("pod {} is being stopped", pod.name);
            alive.iter().for_each(|pod| self.delete(pod));
            return self.say(Reason::Canceling, message);
        }
        if let Some(pod) = mine.filter(|pod| pod.ended()) {
            status::record_pod(&mut self.draft, pod);
            if let Ending::Success(success) = ending(pod) {
                return self.succeeded(&success);
            }
        }
        self.needs_fresh = true;
        self.fail(Broken::new(Reason::Canceled, Retry::Never, "the run was stopped, since cancel is set"));
    }

    fn succeeded(&mut self, success: &lapstrake_handoff::Success) {
        status::succeed(&mut self.draft, &self.seen.build, success, self.now);
        let message = format!("pushed {}", self.draft.image.clone().unwrap_or_default());
        self.note(false, "Push", Reason::Succeeded, message);
        self.finished(RunResult::Succeeded, Reason::Succeeded);
    }

    /// An attempt broke: another follows, or the run has failed.
    fn broke(&mut self, broken: Broken) {
        let Some(run) = self.draft.run.clone() else {
            return self.fail(broken);
        };
        let uncounted = run.uncounted_attempts.unwrap_or_default();
        let another = match broken.retry {
            Retry::Never => false,
            // The attempts of this run after its first, without those that do not count.
            Retry::Counted => run.attempt.saturating_sub(uncounted) <= self.build().spec.retries,
            Retry::Free => uncounted < limits::FREE_ATTEMPTS_MAX,
        };
        if !another {
            return self.fail(broken);
        }
        let wait = backoff(run.attempt);
        status::retry(&mut self.draft, &broken, run.attempt + 1, self.now, wait);
        if let (Retry::Free, Some(run)) = (broken.retry, &mut self.draft.run) {
            run.uncounted_attempts = Some(uncounted + 1);
        }
        self.plan.requeue = Some(wait);
        let message = format!(
            "attempt {} broke, another follows in {} s: {}",
            run.attempt,
            wait.as_secs(),
            broken.message
        );
        self.note(true, "Retry", broken.reason, message.clone());
        self.say(Reason::ProgressingWithRetry, message);
    }

    fn fail(&mut self, broken: Broken) {
        status::fail(&mut self.draft, &self.seen.build, &broken, self.now);
        let result = if broken.reason == Reason::Canceled { RunResult::Canceled } else { RunResult::Failed };
        self.note(result == RunResult::Failed, "Build", broken.reason, status::place(&broken));
        self.finished(result, broken.reason);
    }

    fn finished(&mut self, result: RunResult, reason: Reason) {
        let length = |ms: Option<i64>| ms.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
        let took = length(self.draft.duration_milliseconds).unwrap_or_default();
        let started = self.draft.platforms.first().and_then(|entry| entry.started.as_ref());
        let waited = self.draft.start_time.as_ref().zip(started).and_then(|(start, started)| {
            length(Some(started.0.duration_since(start.0).as_secs().saturating_mul(1000).max(0)))
        });
        self.plan.finished = Some(Finished { result, reason, took, waited });
    }

    /// Sets the conditions; a wait that is new is an Event too.
    fn say(&mut self, reason: Reason, message: String) {
        let waits = reason.kind() == lapstrake_crds::ReasonKind::Waiting
            && !matches!(reason, Reason::Queued | Reason::ProgressingWithRetry);
        if waits && self.old.reason.as_deref() != Some(reason.as_str()) {
            self.note(reason != Reason::Suspended, "Wait", reason, message.clone());
        }
        status::say(&mut self.draft, reason, &message, self.now);
    }

    /// Sets the conditions where there is no run to speak of.
    fn say_without_run(&mut self, reason: Reason, message: String) {
        // Without a run in status the same spec starts one as soon as nothing is in its way.
        self.draft.run = None;
        self.draft.start_time = None;
        self.draft.completion_time = None;
        self.draft.duration_milliseconds = None;
        self.draft.platforms.clear();
        self.draft.failure = None;
        if reason.kind() == lapstrake_crds::ReasonKind::Failure {
            self.draft.failure =
                Some(status::failure(&Broken::new(reason, Retry::Never, message.as_str()), None));
            if self.old.reason.as_deref() != Some(reason.as_str()) {
                self.note(true, "Refuse", reason, message.clone());
            }
        }
        self.say(reason, message);
    }

    fn note(&mut self, warning: bool, action: &'static str, reason: Reason, message: String) {
        self.plan.events.push(Note { warning, action, reason, message });
    }

    fn delete(&mut self, pod: &PodFacts) {
        if !pod.deleting && !self.plan.delete_pods.iter().any(|(name, _)| *name == pod.name) {
            self.plan.delete_pods.push((pod.name.clone(), pod.uid.clone()));
        }
    }

    fn name(&self) -> String {
        self.build().metadata.name.clone().unwrap_or_default()
    }
}

/// Wait after the attempt with this number.
fn backoff(attempt: u32) -> Duration {
    let factor = 1_u32 << attempt.saturating_sub(1).min(16);
    limits::BACKOFF_MIN.saturating_mul(factor).min(limits::BACKOFF_MAX)
}
