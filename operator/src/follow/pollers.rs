//! Asks the places that ImageBuilds follow, each as often as the most eager of its followers wants.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::channel::mpsc;
use futures::stream::FuturesUnordered;
use kube::runtime::reflector::{ObjectRef, Store};
use lapstrake_crds::{ImageBuild, ImageBuildStatus};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tracing::{debug, info};

use super::{Answer, Facts, Registries, Target, git, schedule};
use crate::plan::Requests;

/// Places that are asked in the same moment.
const QUESTIONS_MAX: usize = 8;
/// Longest sleep between two looks at what is due.
const SLEEP_MAX: Duration = Duration::from_secs(600);

/// All places that are followed. Dropping it asks no more.
pub struct Pollers {
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    places: Mutex<HashMap<Target, Place>>,
    registries: Registries,
    news: Notify,
}

struct Place {
    followers: HashMap<ObjectRef<ImageBuild>, Follower>,
    answer: Answer,
    asked: u64,
    failures: u32,
    /// When it is asked next; none while it is being asked.
    due: Option<Instant>,
}

#[derive(Clone)]
struct Follower {
    interval: Duration,
    /// Request by hand that wants an answer of after it was seen, and whether it has one.
    request: Option<(String, bool)>,
}

impl Drop for Pollers {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pollers {
    /// Asks nothing yet. A follower whose place moved is sent to `trigger`; those that are not in `builds`
    /// any more are forgotten.
    pub fn new(
        registries: Registries,
        trigger: mpsc::Sender<ObjectRef<ImageBuild>>,
        builds: Store<ImageBuild>,
    ) -> Self {
        let shared = Arc::new(Shared { places: Mutex::default(), registries, news: Notify::new() });
        let task = tokio::spawn(ask_for_ever(shared.clone(), trigger, builds)).abort_handle();
        Self { shared, task }
    }

    /// What is known of what an ImageBuild follows; what it did not follow before is asked for from now on.
    pub fn look(&self, build: &ImageBuild) -> Facts {
        let status = build.status.clone().unwrap_or_default();
        let follow = &build.spec.follow;
        let who = ObjectRef::from_obj(build);
        let source = Target::source(build).filter(|_| follow.source);
        let bases: Vec<&str> = status
            .base_images
            .iter()
            .filter(|base| follow.base_images && !base.pinned)
            .map(|base| base.image.as_str())
            .collect();
        let wanted: Vec<Target> = source
            .iter()
            .cloned()
            .chain(bases.iter().map(|name| Target::Image((*name).to_owned())))
            .collect();
        let mut places = self.shared.places.lock().unwrap_or_else(PoisonError::into_inner);
        let left = |target: &Target, place: &mut Place| {
            if !wanted.contains(target) {
                place.followers.remove(&who);
            }
            !place.followers.is_empty()
        };
        places.retain(left);
        let request = hand(build, &status);
        let mut answers = BTreeMap::new();
        for target in wanted {
            let place = places.entry(target.clone()).or_insert_with(Place::new);
            answers.insert(target, place.look(&who, follow.interval(), request.as_deref()));
        }
        drop(places);
        self.shared.news.notify_one();
        let mut answer = |target: &Target| answers.get(target).cloned().unwrap_or_default();
        Facts {
            source: source.as_ref().map(&mut answer).unwrap_or_default(),
            bases: bases
                .into_iter()
                .map(|name| (name.to_owned(), answer(&Target::Image(name.to_owned()))))
                .collect(),
        }
    }
}

/// The request by hand that was not acted on yet: its run wants to know where things stand now.
fn hand(build: &ImageBuild, status: &ImageBuildStatus) -> Option<String> {
    let requests = Requests::of(build, status);
    (!requests.by_hand_handled(status)).then(|| format!("{requests:?}"))
}

impl Place {
    fn new() -> Self {
        let due = Some(Instant::now());
        Self { followers: HashMap::new(), answer: Answer::Unknown, asked: 0, failures: 0, due }
    }

    fn look(&mut self, who: &ObjectRef<ImageBuild>, interval: Duration, request: Option<&str>) -> Answer {
        let known = self.followers.get(who);
        let eager = self.interval();
        let request = match (request, known.and_then(|one| one.request.as_ref())) {
            (Some(new), Some((old, done))) if new == old => Some((old.clone(), *done)),
            // A place that has never been asked will answer late enough.
            (Some(new), _) => Some((new.to_owned(), false)),
            (None, _) => None,
        };
        let waits = request.as_ref().is_some_and(|(_, done)| !done);
        self.followers.insert(who.clone(), Follower { interval, request });
        if let Some(due) = &mut self.due {
            let now = Instant::now();
            if waits {
                *due = now;
            } else if interval < eager {
                *due = (*due).min(now + interval);
            }
        }
        if waits { Answer::Unknown } else { self.answer.clone() }
    }

    fn interval(&self) -> Duration {
        self.followers.values().map(|one| one.interval).min().unwrap_or(SLEEP_MAX)
    }

    /// Takes an answer; gives those whose build may depend on it.
    fn answered(
        &mut self,
        target: &Target,
        answer: Answer,
        waiting: &[(ObjectRef<ImageBuild>, String)],
    ) -> Vec<ObjectRef<ImageBuild>> {
        self.asked += 1;
        self.failures = if matches!(answer, Answer::Silent(_)) { self.failures.saturating_add(1) } else { 0 };
        let wait = schedule::wait(&target.to_string(), self.interval(), self.asked, self.failures);
        self.due = Some(Instant::now() + wait);
        for (who, request) in waiting {
            if let Some(Follower { request: Some((asked, done)), .. }) = self.followers.get_mut(who)
                && asked == request
            {
                *done = true;
            }
        }
        // A request that came while the question was under way wants another one.
        if self.followers.values().any(|one| one.request.as_ref().is_some_and(|(_, done)| !done)) {
            self.due = Some(Instant::now());
        }
        if self.answer == answer {
            return waiting.iter().map(|(who, _)| who.clone()).collect();
        }
        self.answer = answer;
        self.followers.keys().cloned().collect()
    }
}

type Waiting = Vec<(ObjectRef<ImageBuild>, String)>;

impl Shared {
    /// Takes up to `room` of the places that are due, and tells when the next one is.
    fn due(&self, room: usize, builds: &Store<ImageBuild>) -> (Vec<(Target, Waiting)>, Duration) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let mut taken = Vec::new();
        let mut next = SLEEP_MAX;
        places.retain(|target, place| {
            let Some(due) = place.due else { return true };
            if due > now {
                next = next.min(due - now);
                return true;
            }
            place.followers.retain(|who, _| builds.get(who).is_some());
            if place.followers.is_empty() {
                return false;
            }
            if taken.len() < room {
                place.due = None;
                let waits = |(who, one): (&ObjectRef<ImageBuild>, &Follower)| {
                    let (request, done) = one.request.clone()?;
                    (!done).then(|| (who.clone(), request))
                };
                taken.push((target.clone(), place.followers.iter().filter_map(waits).collect()));
            }
            true
        });
        (taken, next)
    }

    async fn ask(&self, target: Target, waiting: Waiting) -> (Target, Waiting, Answer) {
        let said = match &target {
            Target::Git { url, reference } => git::ask(self.registries.plain(), url, reference).await,
            Target::Image(name) => self.registries.ask(name).await,
        };
        let answer = match said {
            Ok(at) => Answer::At(at),
            Err(why) => Answer::Silent(why),
        };
        debug!(place = %target, ?answer, "asked");
        (target, waiting, answer)
    }
}

async fn ask_for_ever(
    shared: Arc<Shared>,
    mut trigger: mpsc::Sender<ObjectRef<ImageBuild>>,
    builds: Store<ImageBuild>,
) {
    let mut questions = FuturesUnordered::new();
    loop {
        let (due, next) = shared.due(QUESTIONS_MAX - questions.len(), &builds);
        for (target, waiting) in due {
            questions.push(shared.ask(target, waiting));
        }
        let full = questions.len() >= QUESTIONS_MAX;
        tokio::select! {
            Some((target, waiting, answer)) = questions.next(), if !questions.is_empty() => {
                let moved = {
                    let mut places = shared.places.lock().unwrap_or_else(PoisonError::into_inner);
                    places.get_mut(&target).map(|place| place.answered(&target, answer, &waiting))
                };
                let moved = moved.unwrap_or_default();
                if !moved.is_empty() {
                    info!(place = %target, followers = moved.len(), "news of a place that is followed");
                }
                for who in moved {
                    // Full: the build is looked at for another reason soon, or at the next answer.
                    trigger.try_send(who).ok();
                }
            }
            () = shared.news.notified(), if !full => {}
            () = tokio::time::sleep(next), if !full => {}
        }
    }
}
