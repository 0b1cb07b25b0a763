//! The queue over the watch caches: what every reconcile asks, and who is to be looked at again.
//!
//! Holds: between an answer and its admission nothing else is answered, since both happen under one lock
//! or in one step; what was admitted counts until the caches show it.
//! Never: calls the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::reflector::{ObjectRef, Store};
use lapstrake_crds::{ImageBuild, label};
use tokio::sync::watch;
use tracing::warn;

use crate::observe::PodFacts;
use crate::plan::needs;
use crate::schedule::admissions::Admissions;
use crate::schedule::queue::{Limits, Line, State, Ticket, Turn, Turns, turns};
use crate::schedule::ticket::{asking, differs, ticket};
use crate::settings::Settings;

/// What an ImageBuild may do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leave {
    /// Whether it may run.
    pub turn: Turn,
    /// Lines of shared caches in which a slot is its own to take.
    pub slots: BTreeSet<String>,
}

/// The queue of all ImageBuilds that this operator serves.
#[derive(Default)]
pub struct Board {
    inner: Mutex<Inner>,
    changes: watch::Sender<()>,
}

/// How long the queue waits for caches that do not fill before it goes by those that have.
const READY_WAIT: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Inner {
    admissions: Admissions,
    caches: Vec<(Store<ImageBuild>, Store<Pod>)>,
}

impl Inner {
    fn builds(&self) -> Vec<std::sync::Arc<ImageBuild>> {
        self.caches.iter().flat_map(|(builds, _)| builds.state()).collect()
    }

    /// Uids of ImageBuilds that have pods which live, and how many of those are on each line.
    fn living(&self) -> (BTreeMap<String, String>, BTreeMap<Line, u32>) {
        let mut owners = BTreeMap::new();
        let mut taken: BTreeMap<Line, u32> = BTreeMap::new();
        for pod in self.caches.iter().flat_map(|(_, pods)| pods.state()) {
            let facts = PodFacts::of(&pod);
            if facts.stopped() {
                continue;
            }
            let namespace = pod.namespace().unwrap_or_default();
            let labels = pod.labels();
            if let (Some(cache), Some(platform)) =
                (labels.get(label::CACHE), labels.get(label::CACHE_PLATFORM))
            {
                *taken.entry((namespace.clone(), format!("{cache}/{platform}"))).or_default() += 1;
            }
            if let Some(uid) = labels.get(label::BUILD_UID).filter(|_| !facts.ended()) {
                owners.insert(uid.clone(), namespace);
            }
        }
        (owners, taken)
    }

    /// All tickets by what the caches show, with what was admitted over it, and the slots that are taken.
    fn tickets(&mut self, settings: &Settings) -> (Vec<Ticket>, BTreeMap<Line, u32>) {
        let (mut living, taken) = self.living();
        let mut tickets: Vec<Ticket> = self
            .builds()
            .iter()
            .map(|build| {
                let lives = living.remove(&build.uid().unwrap_or_default()).is_some();
                ticket(build, lives, needs(build, settings))
            })
            .collect();
        // Pods outlive an ImageBuild that was deleted for as long as they take to stop.
        tickets.extend(living.into_iter().map(|(uid, namespace)| Ticket {
            uid,
            namespace,
            group: None,
            since: Timestamp::UNIX_EPOCH,
            state: State::Running,
            admitted: None,
            needs: Vec::new(),
        }));
        self.admissions.settle(&tickets);
        self.admissions.overlay(&mut tickets);
        (tickets, taken)
    }
}

impl Board {
    /// Counts the ImageBuilds and pods of these caches too.
    pub fn serve(&self, builds: Store<ImageBuild>, pods: Store<Pod>) {
        self.lock().caches.push((builds, pods));
    }

    /// Forgets everything: this operator does not work any more.
    pub fn clear(&self) {
        *self.lock() = Inner::default();
    }

    /// Says that a cache changed.
    pub fn touch(&self) {
        self.changes.send_replace(());
    }

    /// Tells of each change of a cache.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Waits until all caches are filled: before, what runs is not known.
    pub async fn ready(&self) {
        let caches = self.lock().caches.clone();
        let filled = async {
            for (builds, pods) in &caches {
                if builds.wait_until_ready().await.is_err() || pods.wait_until_ready().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(READY_WAIT, filled).await.is_err() {
            warn!("the queue does not see all of its namespaces: a limit may be exceeded");
        }
    }

    /// What this ImageBuild, which wants to go on, may do.
    ///
    /// It is given as it was read last, which the caches may not show yet.
    pub fn leave(&self, build: &ImageBuild, lives: bool, settings: &Settings, now: Timestamp) -> Leave {
        let needs = needs(build, settings);
        if needs.is_empty() && is_open(&settings.queue, build) {
            return Leave { turn: Turn::Go, slots: BTreeSet::new() };
        }
        let mut inner = self.lock();
        let mine = asking(build, lives, needs, now);
        let (mut tickets, taken) = inner.tickets(settings);
        tickets.retain(|ticket| ticket.uid != mine.uid);
        let uid = mine.uid.clone();
        tickets.push(mine);
        inner.admissions.overlay(&mut tickets);
        let Turns { mut turns, slots } = turns(&tickets, &taken, &settings.queue);
        // It has no turn to wait for if it runs already.
        let turn = turns.remove(&uid).unwrap_or(Turn::Go);
        Leave {
            turn,
            slots: slots.into_iter().filter(|(other, _)| *other == uid).map(|(_, line)| line).collect(),
        }
    }

    /// An ImageBuild is admitted, at the time that its status will say.
    pub fn grant(&self, uid: &str, at: Timestamp) {
        self.lock().admissions.grant(uid, at);
    }

    /// Nothing came of it, or it is over.
    pub fn release(&self, uid: &str) {
        self.lock().admissions.release(uid);
    }

    /// ImageBuilds whose turn it is, or whose place is not what their status says.
    pub fn due(&self, settings: &Settings) -> Vec<ObjectRef<ImageBuild>> {
        let mut inner = self.lock();
        let (tickets, taken) = inner.tickets(settings);
        let waits = |ticket: &Ticket| {
            ticket.state == State::Waiting || (ticket.state == State::Running && !ticket.needs.is_empty())
        };
        if !tickets.iter().any(waits) {
            return Vec::new();
        }
        let Turns { turns, slots } = turns(&tickets, &taken, &settings.queue);
        let goes_on: BTreeSet<&str> = slots.iter().map(|(uid, _)| uid.as_str()).collect();
        let builds = inner.builds();
        let due = builds.iter().filter(|build| {
            let uid = build.uid().unwrap_or_default();
            match turns.get(&uid) {
                Some(turn) => differs(build, turn),
                None => goes_on.contains(uid.as_str()),
            }
        });
        due.map(|build| ObjectRef::from_obj(&**build)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether no limit can hold this one up.
fn is_open(limits: &Limits, build: &ImageBuild) -> bool {
    let own = limits.namespaces.get(build.metadata.namespace.as_deref().unwrap_or_default());
    limits.cluster.is_none()
        && limits.namespace.is_none()
        && own.is_none_or(|own| own.builds.is_none())
        && build.spec.queue.group.is_none()
}
