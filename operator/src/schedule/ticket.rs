//! What the queue reads off an ImageBuild.
//!
//! Holds: everything comes from the object itself, so that another operator reads the same.
//! Never: decides whose turn it is.

use jiff::Timestamp;
use lapstrake_crds::{ImageBuild, ImageBuildStatus, QueueLimit};

use crate::schedule::queue::{Full, Need, State, Ticket, Turn, Wait};

/// The ticket of an ImageBuild, some of whose pods live or not, and which needs these slots.
pub fn ticket(build: &ImageBuild, lives: bool, needs: Vec<Need>) -> Ticket {
    let meta = &build.metadata;
    let queue = build.status.as_ref().and_then(|status| status.run.as_ref()?.queue.as_ref());
    let created = meta.creation_timestamp.as_ref().map(|time| time.0);
    Ticket {
        uid: meta.uid.clone().unwrap_or_default(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        group: build.spec.queue.group.clone(),
        since: queue.and_then(|queue| Some(queue.since.as_ref()?.0)).or(created).unwrap_or_default(),
        state: state(build, lives),
        admitted: queue.and_then(|queue| Some(queue.admitted.as_ref()?.0)),
        needs,
    }
}

/// The same for one that wants to go on now, whatever it waited for before.
pub fn asking(build: &ImageBuild, lives: bool, needs: Vec<Need>, now: Timestamp) -> Ticket {
    let mut ticket = ticket(build, lives, needs);
    if ticket.state != State::Running {
        ticket.state = State::Waiting;
        ticket.since = since(build, now);
    }
    ticket
}

/// When an ImageBuild that wants to go on came into the queue.
///
/// One that nobody has looked at yet came when it was created: in what order an operator finds those that were
/// made while it was away does not matter. A newer spec or request has the place of the one that still waits.
pub fn since(build: &ImageBuild, now: Timestamp) -> Timestamp {
    let status = build.status.as_ref();
    if let Some(queue) =
        status.filter(|status| under_way(status)).and_then(|status| status.run.as_ref()?.queue.as_ref())
        && let Some(since) = &queue.since
    {
        return since.0;
    }
    let created = build.metadata.creation_timestamp.as_ref().map(|time| time.0);
    created.filter(|_| unseen(build)).unwrap_or(now)
}

fn state(build: &ImageBuild, lives: bool) -> State {
    let status = build.status.as_ref().filter(|status| under_way(status));
    let queue = status.and_then(|status| status.run.as_ref()?.queue.as_ref());
    let admitted = queue.is_some_and(|queue| queue.admitted.is_some());
    if build.metadata.deletion_timestamp.is_some() {
        return if lives { State::Running } else { State::Idle };
    }
    if lives || admitted {
        State::Running
    } else if build.spec.suspend || build.spec.cancel {
        State::Idle
    } else if queue.is_some_and(|queue| queue.limited_by.is_some()) || unseen(build) {
        State::Waiting
    } else if status.is_some() {
        State::Held
    } else {
        State::Idle
    }
}

fn under_way(status: &ImageBuildStatus) -> bool {
    status.run.is_some() && status.completion_time.is_none()
}

/// Whether no operator has looked at it yet.
fn unseen(build: &ImageBuild) -> bool {
    let seen = build.status.as_ref().and_then(|status| status.observed_generation);
    seen.is_none_or(|generation| generation < 0)
}

/// A place as status has it: those far behind are rounded up, so that a long queue is not written anew at
/// every step that it makes.
pub fn rounded(position: u32) -> u32 {
    if position <= 10 {
        return position;
    }
    let mut step = 10_u32;
    loop {
        for factor in [1, 2, 5] {
            let bound = step.saturating_mul(factor);
            if position <= bound || bound == u32::MAX {
                return bound;
            }
        }
        step = step.saturating_mul(10);
    }
}

/// What status says of a place: the limit, and a sentence.
pub fn told(wait: &Wait, namespace: &str) -> (QueueLimit, String) {
    let shown = rounded(wait.position);
    let place = if shown == wait.position && shown <= 10 {
        format!("{} in namespace {namespace}", ordinal(shown))
    } else {
        format!("among the first {shown} in namespace {namespace}")
    };
    let (limit, why) = match &wait.full {
        Full::Cluster(limit) => {
            (QueueLimit::Cluster, format!("the cluster's limit of {} is reached", builds(*limit)))
        }
        Full::Namespace(limit) => {
            (QueueLimit::Namespace, format!("the namespace's limit of {} is reached", builds(*limit)))
        }
        Full::Group(group, limit) => {
            (QueueLimit::Group, format!("group {group}'s limit of {} is reached", builds(*limit)))
        }
        Full::Cache(line, limit) => (QueueLimit::Cache, slots_taken(line, *limit)),
    };
    (limit, format!("{place}: {why}"))
}

/// That a cache has no slot free.
pub fn slots_taken(line: &str, limit: u32) -> String {
    let (cache, platform) = line.split_once('/').unwrap_or((line, ""));
    let of = match platform {
        "" | crate::cache::claims::ANY_PLATFORM => String::new(),
        platform => format!(" for {platform}"),
    };
    match limit {
        1 => format!("the one slot of cache {cache}{of} is taken"),
        limit => format!("all {limit} slots of cache {cache}{of} are taken"),
    }
}

fn builds(limit: u32) -> String {
    if limit == 1 { "one running build".to_owned() } else { format!("{limit} running builds") }
}

fn ordinal(number: u32) -> String {
    let ending = match (number % 10, number % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

/// Whether what status says of the queue differs from what is the case.
pub fn differs(build: &ImageBuild, turn: &Turn) -> bool {
    let shown = build.status.as_ref().and_then(|status| status.run.as_ref()?.queue.as_ref());
    match turn {
        Turn::Go => true,
        Turn::Wait(wait) => shown.is_none_or(|queue| {
            let (limit, _) = told(wait, "");
            queue.position != Some(rounded(wait.position)) || queue.limited_by != Some(limit)
        }),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
    use lapstrake_crds::{ImageBuildSpec, QueueStatus, RunStatus};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn build(queue: Option<QueueStatus>) -> ImageBuild {
        let mut build = ImageBuild::new("web", ImageBuildSpec::default());
        build.metadata.creation_timestamp = Some(Time(at(5)));
        build.status = queue.map(|queue| ImageBuildStatus {
            observed_generation: Some(1),
            run: Some(RunStatus { queue: Some(queue), ..RunStatus::default() }),
            ..ImageBuildStatus::default()
        });
        build
    }

    fn waiting() -> QueueStatus {
        QueueStatus {
            since: Some(MicroTime(at(7))),
            position: Some(3),
            limited_by: Some(QueueLimit::Cluster),
            ..QueueStatus::default()
        }
    }

    #[test]
    fn the_object_alone_says_where_its_build_stands() {
        let admitted = QueueStatus { admitted: Some(MicroTime(at(9))), ..QueueStatus::default() };
        let state = |build: &ImageBuild, lives| ticket(build, lives, Vec::new()).state;
        assert_eq!(state(&build(None), false), State::Waiting, "nobody has looked at it yet");
        assert_eq!(state(&build(Some(waiting())), false), State::Waiting);
        assert_eq!(state(&build(Some(QueueStatus::default())), false), State::Held);
        assert_eq!(state(&build(Some(admitted.clone())), false), State::Running);
        assert_eq!(
            state(&build(Some(waiting())), true),
            State::Running,
            "the operator died before it wrote it"
        );
        let mut over = build(Some(admitted));
        over.status.as_mut().unwrap().completion_time = Some(Time(at(20)));
        assert_eq!(state(&over, false), State::Idle);
        assert_eq!(ticket(&over, false, Vec::new()).admitted, Some(at(9)), "it still says who was served");
        let mut suspended = build(Some(waiting()));
        suspended.spec.suspend = true;
        assert_eq!(state(&suspended, false), State::Idle);
    }

    #[test]
    fn a_newer_spec_has_the_place_of_the_one_that_waits() {
        assert_eq!(since(&build(None), at(100)), at(5), "made while no operator was there");
        assert_eq!(since(&build(Some(waiting())), at(100)), at(7));
        let mut over = build(Some(waiting()));
        over.status.as_mut().unwrap().completion_time = Some(Time(at(20)));
        assert_eq!(since(&over, at(100)), at(100), "asked for anew");
        assert_eq!(asking(&over, false, Vec::new(), at(100)).state, State::Waiting);
    }

    #[test]
    fn a_long_queue_is_not_written_at_every_step() {
        let shown: Vec<u32> = (1..=1000).map(rounded).collect();
        assert_eq!(shown[..11], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 20]);
        assert!(shown.is_sorted());
        let mut different = shown;
        different.dedup();
        assert_eq!(different.len(), 10 + 6, "{different:?}");
        assert_eq!(rounded(u32::MAX), u32::MAX);
    }

    #[test]
    fn a_place_reads_as_a_person_would_say_it() {
        let say = |position, full| told(&Wait { position, full }, "team-a").1;
        assert_eq!(
            say(3, Full::Cluster(10)),
            "3rd in namespace team-a: the cluster's limit of 10 running builds is reached"
        );
        assert_eq!(
            say(12, Full::Namespace(1)),
            "among the first 20 in namespace team-a: the namespace's limit of one running build is reached"
        );
        assert_eq!(
            say(1, Full::Cache("modules/linux-arm64".into(), 3)),
            "1st in namespace team-a: all 3 slots of cache modules for linux-arm64 are taken"
        );
    }
}
