//! The queue and shared caches in the life of a run: its turn, its slot, and what it gives back.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use lapstrake_crds::{CacheVolume, ImageBuild, ImageBuildStatus, QueueStatus, Reason, WhenBusy, WhenChanged};

use crate::cache::claims::{ANY_PLATFORM, SlotOf, bytes, claim, size};
use crate::cache::slots::{Choice, Entry, Holder, Slot, Wish, choose, enter};
use crate::names;
use crate::observe::PodFacts;
use crate::plan::ending::{Ending, ending};
use crate::plan::objects::{CachePlace, cache_place};
use crate::plan::part::Told;
use crate::plan::parts::{self, Part};
use crate::plan::run::Planner;
use crate::plan::waiting::doing;
use crate::plan::{Enter, GiveBack, share};
use crate::schedule::queue::{Full, Need, Turn, Wait};
use crate::schedule::ticket;
use crate::settings::Settings;
use crate::settings::limits::SLOT_RECHECK;

/// The slot that a pod is made for.
pub(super) struct Grip {
    /// Name of its claim.
    pub claim: String,
    /// The claim, if it has to be made or to grow first.
    pub volume: Option<PersistentVolumeClaim>,
    /// How the pod comes into it.
    pub enter: Enter,
}

/// Slots of a shared cache without which an ImageBuild cannot make the pods that it has yet to make.
pub fn needs(build: &ImageBuild, settings: &Settings) -> Vec<Need> {
    let volume = build.spec.cache.volume.as_ref();
    let Some((volume, name)) = volume.and_then(|volume| Some((volume, volume.name.as_ref()?))) else {
        return Vec::new();
    };
    if volume.when_busy() == WhenBusy::NoCache {
        return Vec::new();
    }
    let none = ImageBuildStatus::default();
    let under_way = |status: &&ImageBuildStatus| status.run.is_some() && status.completion_time.is_none();
    let status = build.status.as_ref().filter(under_way);
    let waits = |part: &&Part| {
        status.is_none_or(|status| {
            let share = share::of(status, part);
            share.pod.is_none() && !share.done && share.failed.is_none()
        })
    };
    parts::divide(build, status.unwrap_or(&none), settings)
        .iter()
        .filter(waits)
        .map(|part| Need { line: line(name, part), limit: volume.slots() })
        .collect()
}

/// Platform of a part's slots, as a label has it.
pub(crate) fn slot_platform(part: &Part) -> String {
    part.cache_key()
        .map_or_else(|| ANY_PLATFORM.to_owned(), |key| names::label_value(&names::platform_label(&key)))
}

fn line(cache: &str, part: &Part) -> String {
    format!("{cache}/{}", slot_platform(part))
}

/// A time as status keeps it, so that it reads back as the same.
fn micro(time: Timestamp) -> Timestamp {
    Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time)
}

impl Planner<'_> {
    /// The place in the queue of a run that begins.
    ///
    /// What takes the place of a run that was admitted is admitted; what takes that of one that waits, waits in
    /// its stead.
    pub(super) fn enqueue(&self) -> QueueStatus {
        let under_way = self.old.completion_time.is_none().then_some(self.old.run.as_ref()).flatten();
        let before = under_way.and_then(|run| run.queue.as_ref());
        let lives = under_way.is_some() && self.seen.pods.iter().any(|pod| !pod.ended());
        let since = before
            .and_then(|queue| queue.since.clone())
            .unwrap_or_else(|| MicroTime(micro(ticket::since(self.build(), self.now))));
        let admitted = before.and_then(|queue| queue.admitted.clone());
        QueueStatus {
            since: Some(since),
            admitted: admitted.or_else(|| lives.then(|| MicroTime(micro(self.now)))),
            ..QueueStatus::default()
        }
    }

    /// `suspend` takes a run that waits out of the queue.
    pub(super) fn leave_the_line(&mut self) {
        self.say_without_run(Reason::Suspended, "no new run starts while suspend is set".to_owned());
    }

    /// Whether something newer is asked for, and pods of the run under way are let to their end first.
    pub(super) fn finishes(&self) -> bool {
        let spec = &self.build().spec;
        let under_way = self.old.completion_time.is_none().then_some(self.old.run.as_ref()).flatten();
        let alive = |pod: &PodFacts| {
            under_way.is_some_and(|run| pod.run == run.id)
                && pod.alive(self.now)
                && !pod.deleting
                && !pod.gated
        };
        spec.queue.when_changed == WhenChanged::Finish && !spec.cancel && self.seen.pods.iter().any(alive)
    }

    /// Says what is waited for; status speaks of the spec that the run builds.
    pub(super) fn finish(&mut self) {
        self.draft.observed_generation = self.old.observed_generation;
        let run = self.old.run.as_ref().map(|run| run.id.clone()).unwrap_or_default();
        self.say(
            Reason::Building,
            format!("run {run} comes to its end, then the newer spec is built (queue.whenChanged: Finish)"),
        );
    }

    /// What the pod of a run that was let to its end came to, if that is an image.
    pub(super) fn finished_image(&self) -> Option<lapstrake_handoff::Success> {
        if self.build().spec.queue.when_changed != WhenChanged::Finish || self.old.platforms.len() > 1 {
            return None;
        }
        let run = self.old.run.as_ref()?;
        let name = self.old.platforms.first()?.pod.as_ref()?;
        let pod = self.seen.pods.iter().find(|pod| pod.run == run.id && pod.name == *name && pod.ended())?;
        match ending(pod) {
            Ending::Success(success) => Some(*success),
            Ending::Failure(_) => None,
        }
    }

    /// Whether the run has its place.
    pub(super) fn admitted(&self) -> bool {
        let queue = self.draft.run.as_ref().and_then(|run| run.queue.as_ref());
        queue.is_some_and(|queue| queue.admitted.is_some())
    }

    /// Whether the run in status waits for its turn, and nothing was made for it.
    pub(super) fn waits_in_line(&self) -> bool {
        let queue = self.old.run.as_ref().and_then(|run| run.queue.as_ref());
        self.old.completion_time.is_none()
            && queue.is_some_and(|queue| queue.admitted.is_none())
            && self.seen.pods.iter().all(|pod| pod.ended())
            && self.old.platforms.iter().all(|entry| entry.pod.is_none())
    }

    /// It has its place from now on.
    pub(super) fn admit(&mut self) {
        let now = micro(self.now);
        let Some(run) = &mut self.draft.run else { return };
        let queue = run.queue.get_or_insert_default();
        queue.position = None;
        queue.limited_by = None;
        if queue.admitted.is_none() {
            queue.admitted = Some(MicroTime(now));
            self.plan.admits = Some(now);
        }
    }

    fn queued(&mut self, part: &Part, wait: &Wait) -> Told {
        let namespace = self.build().metadata.namespace.clone().unwrap_or_default();
        let (limit, message) = ticket::told(wait, &namespace);
        if let Some(run) = &mut self.draft.run {
            let queue = run.queue.get_or_insert_default();
            queue.position = Some(ticket::rounded(wait.position));
            queue.limited_by = Some(limit);
        }
        self.going(part, Reason::Queued, message)
    }

    /// The slot for a part's pod, if it takes one; or what the part waits for before it may have a pod.
    pub(super) fn clearance(&mut self, part: &Part) -> Result<Option<Grip>, Told> {
        let Some(leave) = &self.seen.leave else {
            self.plan.ask = true;
            return Err(Told::Going(Reason::Queued, String::new()));
        };
        if !self.admitted()
            && let Turn::Wait(wait) = &leave.turn
        {
            let wait = wait.clone();
            return Err(self.queued(part, &wait));
        }
        let CachePlace::Shared(volume) = cache_place(self.build(), part, self.settings) else {
            return Ok(None);
        };
        let cache = volume.name.clone().unwrap_or_default();
        let line = line(&cache, part);
        let queues = volume.when_busy() == WhenBusy::Queue;
        if queues && !leave.slots.contains(&line) {
            return Err(self.no_slot(part, &line, &volume));
        }
        if !self.seen.fresh {
            // What is planned on a cache's facts is planned again on others.
            self.needs_fresh = true;
            return Ok(None);
        }
        let (user, platform) = (self.name(), slot_platform(part));
        let wish = Wish { cache: &cache, platform: &platform, user: &user, limit: volume.slots() };
        match choose(&self.seen.slots, &self.seen.holders, wish) {
            Choice::Take(slot) => {
                let wanted = bytes(&size(&volume, self.settings));
                let grows = wanted.zip(slot.bytes).is_some_and(|(wanted, has)| wanted > has);
                Ok(Some(self.grip(&volume, &slot, grows)))
            }
            Choice::Grow(number) => {
                let slot = Slot {
                    claim: names::slot(&cache, &platform, number),
                    cache,
                    platform,
                    number,
                    ..Slot::default()
                };
                Ok(Some(self.grip(&volume, &slot, true)))
            }
            Choice::Busy if queues => {
                self.again_in(SLOT_RECHECK);
                Err(self.no_slot(part, &line, &volume))
            }
            Choice::Busy => Ok(None),
        }
    }

    fn no_slot(&mut self, part: &Part, line: &str, volume: &CacheVolume) -> Told {
        if self.admitted() {
            return self.going(part, Reason::Queued, ticket::slots_taken(line, volume.slots()));
        }
        self.queued(part, &Wait { position: 1, full: Full::Cache(line.to_owned(), volume.slots()) })
    }

    fn grip(&self, volume: &CacheVolume, slot: &Slot, make: bool) -> Grip {
        let namespace = self.build().metadata.namespace.clone().unwrap_or_default();
        let of = SlotOf {
            namespace: &namespace,
            cache: &slot.cache,
            platform: &slot.platform,
            number: slot.number,
        };
        Grip {
            claim: slot.claim.clone(),
            volume: make.then(|| claim(of, volume, self.settings)),
            enter: Enter {
                claim: slot.claim.clone(),
                version: (!make).then(|| slot.version.clone()),
                holder_before: slot.leased_to.clone(),
                user: self.name(),
                unused_for: volume.unused_for(),
                pod: None,
                leased: false,
                at: self.now,
            },
        }
    }

    /// Brings a pod that still has its gate into its slot.
    pub(super) fn enter(&mut self, part: &Part, pod: &PodFacts) -> Told {
        if !self.seen.fresh {
            self.needs_fresh = true;
        } else if self.plan.enter.is_none() {
            let me = Holder {
                uid: pod.uid.clone(),
                claim: pod.claim.clone().unwrap_or_default(),
                gated: pod.gated,
            };
            let (slot, leased) = match enter(&self.seen.slots, &self.seen.holders, &me) {
                Entry::Enter => (Slot { claim: me.claim, ..Slot::default() }, true),
                Entry::Lease(slot) => (slot, false),
                Entry::Lost => {
                    self.again_in(SLOT_RECHECK);
                    self.delete(pod);
                    share::forget_pod(&mut self.draft, part);
                    return self.going(
                        part,
                        Reason::Queued,
                        "another pod has its cache slot: looks for the next",
                    );
                }
            };
            let unused_for = self.build().spec.cache.volume.as_ref().and_then(CacheVolume::unused_for);
            self.plan.enter = Some(Enter {
                claim: slot.claim,
                version: Some(slot.version),
                holder_before: slot.leased_to,
                user: self.name(),
                unused_for,
                pod: Some((pod.name.clone(), pod.uid.clone())),
                leased,
                at: self.now,
            });
        }
        self.again_in(SLOT_RECHECK);
        let doing = doing(pod, None, self.now);
        self.going(part, doing.reason, doing.message)
    }

    /// A pod has ended: its volume is free, and as large as its builder says.
    pub(super) fn give_back(&mut self, pod: &PodFacts, used_bytes: Option<u64>) {
        let Some(claim) = pod.claim.clone() else { return };
        let own = !pod.shared_cache;
        if own && used_bytes.is_none() {
            return;
        }
        let holder = (!own).then(|| pod.uid.clone());
        self.plan.give_back.push(GiveBack { claim, holder, used_bytes, at: self.now });
    }

    /// Slots that this ImageBuild had last, whose pods are gone and could not be seen to end.
    pub(super) fn lost_slots(&self) -> Vec<GiveBack> {
        let user = self.name();
        let lost = self.seen.slots.iter().filter(|slot| {
            let lives = self.seen.holders.iter().any(|one| slot.leased_to.as_ref() == Some(&one.uid));
            let known = self.plan.give_back.iter().any(|one| one.claim == slot.claim)
                || self.plan.enter.as_ref().is_some_and(|enter| enter.claim == slot.claim);
            slot.last_user.as_ref() == Some(&user) && !lives && !known && !slot.deleting
        });
        lost.filter_map(|slot| {
            let holder = Some(slot.leased_to.clone()?);
            Some(GiveBack { claim: slot.claim.clone(), holder, used_bytes: None, at: self.now })
        })
        .collect()
    }
}
