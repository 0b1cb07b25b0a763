//! The life of a run: begun, attempted, retried, ended.

use std::time::Duration;

use jiff::Timestamp;
use lapstrake_crds::{Change, ImageBuild, ImageBuildStatus, Reason, RunResult, RunStatus, Sandbox, Why};

use crate::contexts;
use crate::follow::{Moved, Wish, wish};
use crate::observe::{Observed, PodFacts, PodSecurity};
use crate::plan::ending::{Broken, Ending, Retry, ending};
use crate::plan::identity::{Identity, Requests};
use crate::plan::part::{Told, named};
use crate::plan::parts::{self, Part};
use crate::plan::request::{Asked, request};
use crate::plan::{Finished, Note, Plan, begin, revision, share, status};
use crate::settings::{KeepPods, Settings, limits};

/// One pass of planning.
pub(super) struct Planner<'a> {
    pub(super) seen: &'a Observed,
    pub(super) settings: &'a Settings,
    pub(super) now: Timestamp,
    /// Status as it is.
    pub(super) old: ImageBuildStatus,
    /// Status as it should be.
    pub(super) draft: ImageBuildStatus,
    pub(super) plan: Plan,
    /// What was decided needs fresh facts even if it is only a status.
    pub(super) needs_fresh: bool,
    /// What following asks for.
    wish: Wish,
    /// What contexts ask for that are other ImageBuilds.
    contexts: contexts::Wish,
    /// Parts of the run that build.
    pub(super) parts: Vec<Part>,
    /// The part that joins them, if there is more than one.
    pub(super) index: Option<Part>,
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
            contexts: contexts::Wish::default(),
            parts: Vec::new(),
            index: None,
        }
    }

    pub(super) fn plan(mut self) -> Plan {
        let requests = Requests::of(&self.seen.build, &self.old);
        let asked = !requests.by_hand_handled(&self.old);
        self.wish = wish(&self.seen.build, &self.old, &self.seen.follow, asked);
        self.contexts = contexts::wish(&self.seen.build, &self.old, &self.seen.contexts, asked);
        let requests = requests.with_wish(&self.wish).with_contexts(&self.contexts.contexts);
        self.follow_problem();
        let wanted = Identity::of(&self.seen.build, &requests);
        self.draft.observed_generation = self.seen.build.metadata.generation;
        match self.current(&wanted, &requests) {
            Some(_) if self.build().spec.suspend && self.waits_in_line() => self.leave_the_line(),
            None if self.finishes() => self.finish(),
            Some(run) if self.old.completion_time.is_some() => self.settled(&run),
            Some(_) => self.go_on(),
            None => self.start(&wanted, requests),
        }
        if self.plan.ask {
            return Plan { ask: true, ..Plan::default() };
        }
        if (self.plan.acts() || self.needs_fresh) && !self.seen.fresh {
            return Plan::closer_look();
        }
        status::tidy(&mut self.draft);
        let lost = self.lost_slots();
        if self.draft != self.old {
            self.plan.status = Some(Box::new(self.draft));
        } else {
            self.plan.events.clear();
            self.plan.finished = None;
            self.plan.give_back.clear();
        }
        self.plan.give_back.extend(lost);
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

    pub(super) fn build(&self) -> &'a ImageBuild {
        &self.seen.build
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
        let kept = match self.settings.keep_pods {
            KeepPods::All => true,
            KeepPods::Failed => !status::succeeded(&self.old),
            KeepPods::None => false,
        };
        let ended = self.old.completion_time.as_ref().map_or(self.now, |time| time.0);
        let due = self.settings.keep_pods_for.and_then(|length| ended.checked_add(length).ok());
        let kept = kept && due.is_none_or(|due| due > self.now);
        for pod in &self.seen.pods {
            // A pod whose sidecar goes on would stay for ever.
            if kept && pod.ended() && !pod.sidecar && pod.run == run.id {
                due.into_iter().for_each(|due| self.again_at(due));
            } else {
                self.delete(pod);
            }
        }
        status::observe_generation(&mut self.draft);
        status::shorten_history(&mut self.draft, &self.seen.build, self.now);
        if let Some(due) = status::history_expires(&self.draft, &self.seen.build) {
            self.again_at(due);
        }
    }

    /// Something else is wanted than what status speaks of.
    fn start(&mut self, wanted: &Identity, requests: Requests) {
        let id = wanted.id();
        let id = id.as_str();
        let attempt = match &self.old.run {
            Some(run) if run.id == id => run.attempt + 1,
            _ => 1,
        };
        let old: Vec<&PodFacts> =
            self.seen.pods.iter().filter(|pod| pod.run != id || pod.attempt < attempt).collect();
        if let Some((reason, message)) = self.obstacle() {
            self.seen.pods.iter().filter(|pod| !pod.ended()).for_each(|pod| self.delete(pod));
            self.supersede(&message);
            self.handled(requests);
            if reason == Reason::SandboxUnavailable || self.contexts.circle.is_some() {
                self.plan.requeue = Some(limits::STALLED_RECHECK);
            }
            return self.say_without_run(reason, message);
        }
        if self.build().spec.suspend {
            old.iter().filter(|pod| !pod.ended()).for_each(|pod| self.delete(pod));
            self.supersede("the spec changed, and suspend is set");
            return self
                .say_without_run(Reason::Suspended, "no new run starts while suspend is set".to_owned());
        }
        if let Some(why) = self.contexts.waits.clone() {
            old.iter().filter(|pod| !pod.ended()).for_each(|pod| self.delete(pod));
            self.supersede("a newer spec or request took its place");
            return self.say_without_run(Reason::WaitingForBuild, why);
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
        self.begin(wanted, attempt, sandbox, requests);
        self.go_on();
    }

    /// What stands in the way of any run of this spec.
    fn obstacle(&self) -> Option<(Reason, String)> {
        let spec = &self.build().spec;
        if spec.cancel {
            return Some((Reason::Canceled, "no run starts while cancel is set".to_owned()));
        }
        if spec.source.kind().is_none() {
            return Some((
                Reason::SpecInvalid,
                "source needs exactly one of git, http and inline".to_owned(),
            ));
        }
        if let Some(circle) = self.contexts.circle.clone() {
            return Some((Reason::SpecInvalid, circle));
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
        parts::divide(self.build(), &ImageBuildStatus::default(), self.settings).iter().find_map(|part| {
            let pull_secrets = &self.seen.pull_secrets;
            let asked = Asked { run: "", part, sandbox, pull_secrets, status: &self.draft };
            let problem = request(self.build(), &asked, self.settings).err()?;
            Some((Reason::SpecInvalid, problem))
        })
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
        // It never began: there is nothing to tell of it.
        if self.waits_in_line() {
            return;
        }
        if let Some(success) = self.finished_image() {
            self.draft.digest = Some(success.digest.clone());
            let message = format!("pushed {}, before {why}", success.digest);
            let (result, reason) = (RunResult::Succeeded, Reason::Succeeded);
            status::close(&mut self.draft, result, reason, &message, self.now, &self.seen.build);
            self.note(false, "Push", reason, message);
            return self.finished(result, reason);
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
        self.draft.contexts = requests.contexts;
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
        if let Some(change) = self.contexts.change.clone() {
            return (Why::ContextChanged, Some(change));
        }
        match self.wish.change.clone() {
            Some(Moved::Source(change)) => (Why::SourceChanged, Some(change)),
            Some(Moved::BaseImage(change)) => (Why::BaseImageChanged, Some(change)),
            None => (Why::SpecChanged, None),
        }
    }

    fn begin(&mut self, wanted: &Identity, attempt: u32, sandbox: Sandbox, requests: Requests) {
        let (why, change) = self.why(&requests);
        self.draft.change = change;
        self.handled(requests);
        let parts = parts::divide(self.build(), &ImageBuildStatus::default(), self.settings);
        let run = RunStatus {
            id: wanted.id(),
            inputs: Some(wanted.inputs().to_owned()),
            generation: self.build().metadata.generation,
            attempt,
            queue: Some(self.enqueue()),
            ..RunStatus::default()
        };
        begin::begin(&mut self.draft, &self.seen.build, &parts, run, self.now);
        self.draft.why = Some(why);
        self.draft.sandbox = Some(sandbox);
        let kept = self.draft.platforms.iter().filter(|entry| entry.kept_from.is_some()).count();
        let mut message = format!("run {} starts ({})", wanted.id(), why.as_str());
        if kept > 0 {
            message.push_str(&format!("; {kept} of {} platforms are kept", self.draft.platforms.len()));
        }
        self.note(false, "Build", Reason::Starting, message);
    }

    /// The run in status is under way.
    fn go_on(&mut self) {
        self.parts = parts::divide(self.build(), &self.draft, self.settings);
        self.index = (self.parts.len() > 1).then(|| parts::index(self.build(), &self.parts));
        if self.build().spec.cancel {
            return self.cancel();
        }
        self.sweep();
        let parts = self.parts.clone();
        let told = self.build_parts(&parts);
        self.roll_up(&parts, told);
    }

    /// Pods that belong to no attempt under way must go.
    fn sweep(&mut self) {
        let run = self.draft.run.as_ref().map(|run| run.id.clone()).unwrap_or_default();
        let pods: &'a [PodFacts] = &self.seen.pods;
        let now = self.now;
        for pod in pods.iter().filter(|pod| pod.alive(now)) {
            let mine =
                pod.run == run
                    && self.parts.iter().chain(&self.index).any(|part| {
                        part.has(&pod.part) && share::of(&self.draft, part).attempt == pod.attempt
                    });
            if !mine {
                self.delete(pod);
            }
        }
    }

    /// Goes on with all parts that build.
    fn build_parts(&mut self, parts: &[Part]) -> Vec<Told> {
        let mut told: Vec<Option<Told>> = parts.iter().map(|part| self.watch(part)).collect();
        let retries = self.build().spec.retries;
        for revision::Odd { place, again } in revision::agree(&mut self.draft, parts, retries) {
            let Some(part) = parts.get(place) else { continue };
            self.needs_fresh = true;
            told[place] = if again {
                let message = "built another revision than its siblings: it is built again".to_owned();
                self.note(false, "Rebuild", Reason::Building, named(part, &message));
                None
            } else {
                let message = "the source was another one than for its siblings, each time that it was fetched, and no \
                               retry is left: name a commit, or the checksum of the archive (source.http.sha256)";
                Some(self.failed(part, &Broken::new(Reason::SourceUnavailable, Retry::Never, message)))
            };
        }
        let losing = parts.iter().any(|part| share::of(&self.draft, part).failed.is_some());
        parts
            .iter()
            .zip(told)
            .map(|(part, told)| match told {
                // What has begun goes on to its end: its work is kept.
                Some(Told::Going(..)) if losing && !self.runs(part) => self.stop(part),
                None if losing => self.stop(part),
                None => self.advance(part),
                Some(told) => told,
            })
            .collect()
    }

    /// Whether the builder of a part runs.
    fn runs(&self, part: &Part) -> bool {
        self.pod_of(part).is_some_and(|pod| pod.started() && !pod.ended() && !pod.lost(self.now))
    }

    /// What the parts together come to.
    fn roll_up(&mut self, parts: &[Part], told: Vec<Told>) {
        if told.iter().all(|one| matches!(one, Told::Done(_))) {
            let success = told.into_iter().find_map(|one| match one {
                Told::Done(success) => success,
                _ => None,
            });
            return match (self.index.clone(), success) {
                (Some(index), _) => self.join(&index),
                (None, Some(success)) => self.succeeded(&success),
                // Not by anything that we write: a whole part's success ends its run at once.
                (None, None) => self.fail(Reason::Internal, "the image's digest was lost".to_owned()),
            };
        }
        if !told.iter().any(|one| matches!(one, Told::Going(..))) {
            return self.failed_run();
        }
        let (reason, message) = summary(parts, &told);
        self.say(reason, message);
    }

    /// Every platform is there: their index is pushed.
    fn join(&mut self, index: &Part) {
        let told = match self.watch(index) {
            Some(told) => told,
            None => self.advance(index),
        };
        match told {
            Told::Done(Some(success)) => self.succeeded(&success),
            Told::Done(None) => {}
            Told::Failed => self.failed_run(),
            Told::Going(Reason::Building | Reason::FetchingSource, message) => {
                self.say(Reason::Pushing, message)
            }
            Told::Going(reason, message) => self.say(reason, named(index, &message)),
        }
    }

    fn cancel(&mut self) {
        let pods: &'a [PodFacts] = &self.seen.pods;
        let now = self.now;
        let alive: Vec<&PodFacts> = pods.iter().filter(|pod| pod.alive(now)).collect();
        if let Some(pod) = alive.first() {
            let message = match alive.len() {
                1 => format!("pod {} is being stopped", pod.name),
                count => format!("{count} pods are being stopped"),
            };
            alive.iter().filter_map(|pod| pod.lost_in(now)).for_each(|wait| self.again_in(wait));
            alive.iter().for_each(|pod| self.delete(pod));
            for part in &self.parts {
                if self.pod_of(part).is_some() {
                    share::say(&mut self.draft, part, Reason::Canceling, &message);
                }
            }
            return self.say(Reason::Canceling, message);
        }
        for part in self.parts.clone().iter().chain(&self.index.clone()) {
            let Some(pod) = self.pod_of(part).filter(|pod| pod.ended()) else { continue };
            share::record_pod(&mut self.draft, part, pod);
            if let Ending::Success(success) = ending(pod) {
                let last = part.whole || part.kind == parts::Kind::Index;
                if let (Told::Done(_), true) = (self.pushed(part, success.clone()), last) {
                    return self.succeeded(&success);
                }
            }
        }
        self.needs_fresh = true;
        let message = "the run was stopped, since cancel is set";
        let broken = Broken::new(Reason::Canceled, Retry::Never, message);
        self.draft.failure = Some(status::failure(&broken, None));
        for entry in self.draft.platforms.iter_mut().filter(|entry| entry.digest.is_none()) {
            entry.reason = Some(Reason::Canceled.as_str().to_owned());
        }
        self.fail(Reason::Canceled, message.to_owned());
    }

    fn succeeded(&mut self, success: &lapstrake_handoff::Success) {
        status::succeed(&mut self.draft, &self.seen.build, success, self.now);
        let message = format!("pushed {}", self.draft.image.clone().unwrap_or_default());
        self.note(false, "Push", Reason::Succeeded, message);
        self.finished(RunResult::Succeeded, Reason::Succeeded);
    }

    /// The run has failed, as status says already.
    fn failed_run(&mut self) {
        let (reason, message) = match &self.draft.failure {
            Some(failure) => {
                let mut message = status::place(failure);
                if let Some(platform) = failure.platform.as_ref().filter(|_| self.draft.platforms.len() > 1) {
                    message = format!("{platform}: {message}");
                }
                (failure.reason.parse().unwrap_or(Reason::Internal), message)
            }
            None => (Reason::Internal, "the run failed".to_owned()),
        };
        self.fail(reason, message);
    }

    fn fail(&mut self, reason: Reason, message: String) {
        let result = if reason == Reason::Canceled { RunResult::Canceled } else { RunResult::Failed };
        status::fail(&mut self.draft, &self.seen.build, result, reason, &message, self.now);
        self.note(result == RunResult::Failed, "Build", reason, message);
        self.finished(result, reason);
    }

    fn finished(&mut self, result: RunResult, reason: Reason) {
        let length = |ms: Option<i64>| ms.and_then(|ms| u64::try_from(ms).ok()).map(Duration::from_millis);
        let took = length(self.draft.duration_milliseconds).unwrap_or_default();
        let built = self.draft.platforms.iter().filter(|entry| entry.kept_from.is_none());
        let started = built.filter_map(|entry| entry.started.as_ref()).min_by_key(|time| time.0);
        let waited = self.draft.start_time.as_ref().zip(started).and_then(|(start, started)| {
            length(Some(started.0.duration_since(start.0).as_secs().saturating_mul(1000).max(0)))
        });
        self.plan.finished = Some(Finished { result, reason, took, waited });
    }

    pub(super) fn say(&mut self, reason: Reason, message: String) {
        status::say(&mut self.draft, reason, &message, self.now);
    }

    /// Sets the conditions where there is no run to speak of.
    pub(super) fn say_without_run(&mut self, reason: Reason, message: String) {
        // Without a run in status the same spec starts one as soon as nothing is in its way.
        self.draft.run = None;
        self.draft.start_time = None;
        self.draft.completion_time = None;
        self.draft.duration_milliseconds = None;
        self.draft.platforms.clear();
        self.draft.index = None;
        self.draft.failure = None;
        let new = self.old.reason.as_deref() != Some(reason.as_str());
        if reason.kind() == lapstrake_crds::ReasonKind::Failure {
            self.draft.failure =
                Some(status::failure(&Broken::new(reason, Retry::Never, message.as_str()), None));
            if new {
                self.note(true, "Refuse", reason, message.clone());
            }
        } else if new && reason != Reason::Queued {
            self.note(reason != Reason::Suspended, "Wait", reason, message.clone());
        }
        self.say(reason, message);
    }

    pub(super) fn note(&mut self, warning: bool, action: &'static str, reason: Reason, message: String) {
        self.plan.events.push(Note { warning, action, reason, message });
    }

    /// Has the plan looked at again at this time at the latest.
    pub(super) fn again_in(&mut self, wait: Duration) {
        self.plan.requeue = Some(self.plan.requeue.map_or(wait, |other| other.min(wait)));
    }

    /// The same, at this time at the latest.
    fn again_at(&mut self, due: Timestamp) {
        let wait = Duration::try_from(due.duration_since(self.now)).unwrap_or_default();
        self.again_in(wait.max(Duration::from_secs(1)));
    }

    pub(super) fn delete(&mut self, pod: &PodFacts) {
        if !pod.deleting && !self.plan.delete_pods.iter().any(|(name, _)| *name == pod.name) {
            self.plan.delete_pods.push((pod.name.clone(), pod.uid.clone()));
        }
    }

    pub(super) fn name(&self) -> String {
        self.build().metadata.name.clone().unwrap_or_default()
    }
}

/// What is said of a run whose parts are at different things: of those that work what most is yet to
/// come of, else what is waited for.
fn summary(parts: &[Part], told: &[Told]) -> (Reason, String) {
    const ORDER: [Reason; 6] = [
        Reason::Building,
        Reason::FetchingSource,
        Reason::Starting,
        Reason::Pushing,
        Reason::Canceling,
        Reason::WaitingForNode,
    ];
    let rank = |reason: Reason| match ORDER.iter().position(|one| *one == reason) {
        Some(place) => place,
        None if matches!(reason, Reason::Queued | Reason::ProgressingWithRetry) => ORDER.len() + 1,
        None => ORDER.len(),
    };
    let going = |told: &Told| match told {
        Told::Going(reason, _) => Some(*reason),
        _ => None,
    };
    let reason = told.iter().filter_map(going).min_by_key(|reason| rank(*reason)).unwrap_or(Reason::Queued);
    let message = parts
        .iter()
        .zip(told)
        .map(|(part, told)| match told {
            Told::Going(_, message) => named(part, message),
            Told::Done(_) => format!("{} is done", part.told()),
            Told::Failed => format!("{} failed", part.told()),
        })
        .collect::<Vec<_>>()
        .join("; ");
    (reason, message)
}
