use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use lapstrake_crds::{BaseImageStatus, Follow, FollowStatus, FollowedSource, ImageBuildStatus, SourceStatus};
use lapstrake_handoff::{BaseImage, Outcome, Request, Source, Success};
use proptest::prelude::*;

use super::*;
use crate::observe::Observed;
use crate::plan::testing::{begun, build, end, fresh, go, now};

const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const BASE: &str = "registry.example/base:1";

fn following() -> Follow {
    Follow { source: true, base_images: true, ..Follow::default() }
}

/// A build whose source stands at A, and that has pushed an image of it on a base at digest 1.
fn done() -> Observed {
    let mut build = build();
    build.spec.follow = following();
    let mut seen = fresh(build, Vec::new());
    seen.follow.source = Answer::At(A.into());
    let plan = go(&seen);
    let pod = plan.create.as_deref().expect("a pod").clone();
    seen.build.status = plan.status.map(|status| *status);
    seen.pods = vec![begun().pods.remove(0)];
    let facts = crate::observe::PodFacts::of(&pod);
    (seen.pods[0].name, seen.pods[0].run) = (facts.name, facts.run);
    let success = Success {
        digest: format!("sha256:{}", "d".repeat(64)),
        revision: Some(A.into()),
        base_images: vec![BaseImage { name: BASE.into(), digest: "sha256:1".into(), pinned: false }],
        ..Success::default()
    };
    end(&mut seen, &Outcome::Success(success).encode(), 0);
    let plan = go(&seen);
    seen.build.status = plan.status.map(|status| *status);
    seen
}

fn base_at(seen: &mut Observed, digest: &str) {
    seen.follow.bases = vec![(BASE.into(), Answer::At(digest.into()))];
}

#[test]
fn the_first_run_waits_for_the_first_answer_and_builds_that_commit() {
    let mut build = build();
    build.spec.follow = following();
    let mut seen = fresh(build, Vec::new());
    let plan = go(&seen);
    assert!(plan.create.is_none() && plan.status.is_none() && plan.requeue.is_some(), "{plan:?}");
    seen.follow.source = Answer::At(A.into());
    let plan = go(&seen);
    let text = &plan.request.as_ref().unwrap().data.as_ref().unwrap()["request.json"];
    let Source::Git(git) = Request::parse(text.as_bytes()).unwrap().source else { panic!("git") };
    assert_eq!(git.commit.as_deref(), Some(A));
    let follow = plan.status.as_ref().unwrap().follow.as_ref().unwrap();
    let name = "https://git.example/shop/web.git#HEAD".to_owned();
    assert_eq!(follow.source, Some(FollowedSource { name, revision: A.into() }));
}

#[test]
fn a_place_that_does_not_answer_holds_nothing_and_is_told() {
    let mut build = build();
    build.spec.follow = following();
    let mut seen = fresh(build, Vec::new());
    seen.follow.source = Answer::Silent("no way in".into());
    let plan = go(&seen);
    assert!(plan.create.is_some());
    let follow = plan.status.as_ref().unwrap().follow.clone().unwrap();
    assert_eq!((follow.problem.as_deref(), follow.source), (Some("no way in"), None));
}

#[test]
fn a_new_commit_starts_a_run_that_says_from_where_to_where() {
    let mut seen = done();
    assert!(go(&seen).create.is_none(), "the same commit starts nothing");
    seen.follow.source = Answer::At(B.into());
    let plan = go(&seen);
    let status = plan.status.as_deref().unwrap();
    assert!(plan.create.is_some());
    assert_eq!(status.why.map(|why| why.as_str()), Some("SourceChanged"));
    let change = status.change.clone().unwrap();
    assert_eq!((change.from.as_deref(), change.to.as_str()), (Some(A), B));
    // The commit moves on while the run is under way: it is not overtaken.
    let run = status.run.clone();
    seen.pods = Vec::new();
    let mut pod = crate::observe::PodFacts::of(plan.create.as_deref().unwrap());
    (pod.uid, pod.phase, pod.created) = ("pod-2".into(), "Pending".into(), Some(now()));
    seen.pods.push(pod);
    seen.build.status = plan.status.map(|status| *status);
    seen.follow.source = Answer::At("c".repeat(40));
    let plan = go(&seen);
    assert!(plan.create.is_none() && plan.delete_pods.is_empty(), "{plan:?}");
    assert_eq!(plan.status.map_or(run.clone(), |status| status.run), run);
}

#[test]
fn a_base_image_that_moved_starts_one_run() {
    let mut seen = done();
    base_at(&mut seen, "sha256:1");
    assert!(go(&seen).create.is_none());
    base_at(&mut seen, "sha256:2");
    let plan = go(&seen);
    let status = plan.status.as_deref().unwrap();
    assert_eq!(status.why.map(|why| why.as_str()), Some("BaseImageChanged"));
    let change = status.change.clone().unwrap();
    assert_eq!((change.name.as_str(), change.to.as_str()), (BASE, "sha256:2"));
}

#[test]
fn an_operator_that_starts_anew_starts_no_run_before_it_asked() {
    let mut seen = done();
    seen.follow = Facts { source: Answer::Unknown, bases: vec![(BASE.into(), Answer::Unknown)] };
    let plan = go(&seen);
    assert!(plan.create.is_none() && plan.status.is_none(), "{plan:?}");
}

#[test]
fn a_pinned_base_image_never_moves() {
    let mut seen = done();
    seen.build.status.as_mut().unwrap().base_images[0].pinned = true;
    base_at(&mut seen, "sha256:2");
    assert!(go(&seen).create.is_none());
}

#[test]
fn another_branch_is_not_built_at_the_commit_of_the_old_one() {
    let mut seen = done();
    seen.build.spec.source.git.as_mut().unwrap().branch = Some("next".into());
    seen.build.metadata.generation = Some(2);
    seen.follow.source = Answer::Unknown;
    assert!(go(&seen).create.is_none(), "where the new branch stands is worth waiting for");
    seen.follow.source = Answer::Silent("away".into());
    let plan = go(&seen);
    let text = &plan.request.as_ref().unwrap().data.as_ref().unwrap()["request.json"];
    let Source::Git(git) = Request::parse(text.as_bytes()).unwrap().source else { panic!("git") };
    assert_eq!(git.commit, None);
}

fn answers() -> impl Strategy<Value = Answer> {
    prop_oneof![
        Just(Answer::Unknown),
        Just(Answer::Silent("why".into())),
        "[12]".prop_map(|digit| Answer::At(digit.repeat(40))),
    ]
}

proptest! {
    /// Acting on a wish grants it: the same answers wish for the same name of a run.
    #[test]
    fn a_wish_that_was_acted_on_is_content(
        first in answers(), second in answers(), base in answers(), other in answers(),
        built in "[12]", base_built in "[12]", succeeded in any::<bool>(), asked in any::<bool>(),
        base_moves in any::<bool>(),
    ) {
        let mut build = build();
        build.spec.follow = following();
        let mut status = ImageBuildStatus {
            source: Some(SourceStatus { revision: built.repeat(40), ..Default::default() }),
            base_images: vec![BaseImageStatus {
                image: BASE.into(), digest: base_built.repeat(40), pinned: false,
            }],
            completion_time: Some(Time(Timestamp::UNIX_EPOCH)),
            ..ImageBuildStatus::default()
        };
        for (source, base) in [(first, base), (second, other)] {
            let facts = Facts { source, bases: vec![(BASE.into(), base)] };
            let granted = wish(&build, &status, &facts, asked);
            status.follow = Some(FollowStatus {
                source: granted.source.clone(),
                base_images: granted.base_images.clone(),
                problem: granted.problem.clone(),
            });
            // The run that follows builds what it was told, or fails and leaves all as it was.
            if succeeded {
                if let Some(source) = &granted.source {
                    status.source = Some(SourceStatus { revision: source.revision.clone(), ..Default::default() });
                }
                for moved in granted.base_images.iter().filter(|_| base_moves) {
                    status.base_images = vec![moved.clone()];
                }
            }
            let again = wish(&build, &status, &facts, false);
            prop_assert_eq!(&again.source, &granted.source);
            prop_assert_eq!(&again.base_images, &granted.base_images);
            prop_assert!(again.change.is_none(), "{:?}", again.change);
        }
    }
}
