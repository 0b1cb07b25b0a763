use std::collections::BTreeMap;

use lapstrake_crds::{BuildReference, NamedContext};
use lapstrake_handoff::{ContextFrom, Outcome, Request, Success};
use proptest::prelude::*;

use super::*;
use crate::observe::{Observed, PodFacts};
use crate::plan::Plan;
use crate::plan::testing::{build, end, fresh, go};

const ONE: &str = "registry.example/base@sha256:1111";
const TWO: &str = "registry.example/base@sha256:2222";

fn context(name: &str, other: &str) -> NamedContext {
    let build = Some(BuildReference { name: other.into() });
    NamedContext { name: name.into(), build, ..NamedContext::default() }
}

fn seen(others: &[(&str, State)]) -> Observed {
    let mut build = build();
    build.spec.contexts = others.iter().map(|(name, _)| context(&format!("{name}-image"), name)).collect();
    let mut seen = fresh(build, Vec::new());
    others.iter().for_each(|(name, state)| set(&mut seen, name, state.clone()));
    seen
}

fn set(seen: &mut Observed, name: &str, state: State) {
    seen.contexts.others.retain(|other| other.name != name);
    seen.contexts.others.push(Other { name: name.to_owned(), state });
}

/// Plans, applies status and pod.
fn pass(seen: &mut Observed) -> Plan {
    let plan = go(seen);
    if let Some(status) = &plan.status {
        seen.build.status = Some((**status).clone());
    }
    for (name, _) in &plan.delete_pods {
        seen.pods.retain(|pod| pod.name != *name);
    }
    if let Some(pod) = &plan.create {
        let mut pod = PodFacts::of(pod);
        pod.uid = format!("uid-{}", pod.name);
        pod.phase = "Pending".into();
        seen.pods.insert(0, pod);
    }
    plan
}

fn request(plan: &Plan) -> Request {
    let text = &plan.request.as_ref().expect("a request").data.as_ref().expect("data")["request.json"];
    Request::parse(text.as_bytes()).expect("reads")
}

fn image_of(plan: &Plan) -> String {
    match &request(plan).contexts[0].from {
        ContextFrom::Image(image) => image.clone(),
        other => panic!("{other:?}"),
    }
}

fn status(seen: &Observed) -> &ImageBuildStatus {
    seen.build.status.as_ref().expect("a status")
}

fn reason(seen: &Observed) -> String {
    status(seen).reason.clone().expect("a reason")
}

fn message(seen: &Observed) -> String {
    status(seen).condition(ConditionType::Ready).expect("Ready").message.clone()
}

fn pushed(seen: &mut Observed, digest: &str) {
    let success = Success { digest: format!("sha256:{digest}"), ..Success::default() };
    end(seen, &Outcome::Success(success).encode(), 0);
    pass(seen);
}

#[test]
fn a_run_waits_for_the_other_and_takes_exactly_its_image() {
    let mut seen = seen(&[("base", State::Missing)]);
    assert!(pass(&mut seen).create.is_none());
    assert_eq!(reason(&seen), "WaitingForBuild");
    assert_eq!(
        message(&seen),
        "waits for ImageBuild base, whose image is the context base-image: it does not exist yet"
    );
    set(&mut seen, "base", State::NotReady("Building: building on n1".into()));
    assert!(pass(&mut seen).create.is_none());
    assert!(message(&seen).ends_with("it is not Ready yet (Building: building on n1)"), "{}", message(&seen));
    assert!(pass(&mut seen).status.is_none(), "nothing new is nothing to write");
    set(&mut seen, "base", State::Ready(ONE.into()));
    let plan = pass(&mut seen);
    assert_eq!(image_of(&plan), ONE);
    assert_eq!(status(&seen).contexts[0].image, ONE);
}

#[test]
fn another_image_of_the_other_is_a_new_run_and_nothing_else_is() {
    let mut seen = seen(&[("base", State::Ready(ONE.into()))]);
    pass(&mut seen);
    // What happens while it is built waits until that has ended.
    set(&mut seen, "base", State::Ready(TWO.into()));
    assert!(pass(&mut seen).create.is_none());
    set(&mut seen, "base", State::Ready(ONE.into()));
    pushed(&mut seen, "aaaa");
    assert_eq!(reason(&seen), "Succeeded");
    for state in [State::NotReady("Building: x".into()), State::Missing, State::Ready(ONE.into())] {
        set(&mut seen, "base", state.clone());
        let plan = pass(&mut seen);
        assert!(plan.create.is_none() && reason(&seen) == "Succeeded", "{state:?}");
    }
    set(&mut seen, "base", State::Ready(TWO.into()));
    let plan = pass(&mut seen);
    assert_eq!(image_of(&plan), TWO);
    let status = status(&seen);
    assert_eq!(status.why.map(|why| why.as_str()), Some("ContextChanged"));
    let change = status.change.clone().expect("what moved");
    assert_eq!((change.name.as_str(), change.to.as_str()), ("base", "sha256:2222"));
    assert_eq!(change.from.as_deref(), Some("sha256:1111"));
}

#[test]
fn a_new_spec_waits_for_others_that_are_being_built_too() {
    let mut seen = seen(&[("base", State::Ready(ONE.into()))]);
    pass(&mut seen);
    pushed(&mut seen, "aaaa");
    set(&mut seen, "base", State::NotReady("Building: x".into()));
    seen.build.spec.output.tags = vec!["v2".into()];
    seen.build.metadata.generation = Some(2);
    pass(&mut seen);
    assert_eq!(reason(&seen), "WaitingForBuild");
    set(&mut seen, "base", State::Ready(TWO.into()));
    assert_eq!(image_of(&pass(&mut seen)), TWO);
    // Both moved: what is told is the one that status can say more of.
    assert_eq!(status(&seen).why.map(|why| why.as_str()), Some("ContextChanged"));
}

#[test]
fn a_change_of_one_waits_until_the_others_are_ready() {
    let mut seen = seen(&[("base", State::Ready(ONE.into())), ("tools", State::Ready(ONE.into()))]);
    pass(&mut seen);
    pushed(&mut seen, "aaaa");
    set(&mut seen, "base", State::Ready(TWO.into()));
    set(&mut seen, "tools", State::NotReady("Building: x".into()));
    assert!(pass(&mut seen).create.is_none() && reason(&seen) == "Succeeded");
    set(&mut seen, "tools", State::Ready(TWO.into()));
    let plan = pass(&mut seen);
    assert_eq!(request(&plan).contexts.len(), 2);
    assert_eq!(image_of(&plan), TWO);
}

#[test]
fn a_circle_is_told_and_builds_nothing() {
    let mut seen = seen(&[("base", State::Ready(ONE.into()))]);
    pass(&mut seen);
    pushed(&mut seen, "aaaa");
    seen.contexts.circle = Some(["web", "base", "web"].map(str::to_owned).to_vec());
    set(&mut seen, "base", State::Ready(TWO.into()));
    assert!(pass(&mut seen).create.is_none() && reason(&seen) == "Succeeded", "what stands goes on to stand");
    seen.build.metadata.generation = Some(2);
    seen.build.spec.output.tags = vec!["v2".into()];
    let plan = pass(&mut seen);
    assert_eq!(reason(&seen), "SpecInvalid");
    assert!(message(&seen).contains("web → base → web"), "{}", message(&seen));
    assert!(plan.create.is_none() && plan.requeue.is_some());
    seen.contexts.circle = None;
    assert_eq!(image_of(&pass(&mut seen)), TWO);
}

#[test]
fn circles_are_found_however_long() {
    let graph = |edges: &[(&str, &str)]| -> BTreeMap<String, Vec<String>> {
        let mut graph: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (from, to) in edges {
            graph.entry((*from).to_owned()).or_default().push((*to).to_owned());
        }
        graph
    };
    let mut web = build();
    web.spec.contexts = vec![context("a", "a")];
    let found = |edges: &[(&str, &str)]| {
        let graph = graph(edges);
        circle(&web, &|name| graph.get(name).cloned().unwrap_or_default()).map(|way| way.join(" "))
    };
    assert_eq!(found(&[("a", "b"), ("b", "c")]), None);
    assert_eq!(found(&[("a", "web")]).as_deref(), Some("web a web"));
    assert_eq!(found(&[("a", "b"), ("b", "c"), ("c", "web")]).as_deref(), Some("web a b c web"));
    // One that does not lead back is another one's trouble.
    assert_eq!(found(&[("a", "b"), ("b", "a")]), None);
}

#[test]
fn an_image_build_is_ready_for_others_when_its_present_spec_is_built() {
    assert_eq!(State::of(None), State::Missing);
    let mut other = build();
    assert!(matches!(State::of(Some(&other)), State::NotReady(_)));
    let mut seen = fresh(other.clone(), Vec::new());
    pass(&mut seen);
    pushed(&mut seen, "aaaa");
    other = seen.build.clone();
    assert_eq!(State::of(Some(&other)), State::Ready("registry.example/shop/web@sha256:aaaa".into()));
    other.metadata.generation = Some(2);
    assert!(matches!(State::of(Some(&other)), State::NotReady(_)), "the new spec is not built yet");
}

#[test]
fn what_the_spec_asks_of_steps_and_names_reaches_the_builder() {
    let mut build = build();
    let plain = go(&fresh(build.clone(), Vec::new()));
    let spec: lapstrake_crds::ImageBuildSpec = serde_json::from_value(serde_json::json!({
        "source": build.spec.source,
        "output": build.spec.output,
        "dockerfile": { "options": { "image-resolve-mode": "pull" } },
        "steps": {
            "hosts": [{ "ip": "10.0.0.7", "hostnames": ["db", "db.example"] }],
            "ulimits": [{ "name": "nofile", "soft": 5 }],
            "shmSize": "64Mi", "hostname": "box", "network": "None",
        },
        "noCache": { "stages": ["test"] },
        "contexts": [
            { "name": "image", "image": "registry.example/a:1" },
            { "name": "files", "git": { "url": "git@git.example:a.git", "secretRef": { "name": "key" } } },
        ],
    }))
    .expect("a spec");
    build.spec = spec;
    let plan = go(&fresh(build.clone(), Vec::new()));
    let asked = request(&plan);
    let hosts: Vec<_> = asked.steps.hosts.iter().map(|host| host.name.as_str()).collect();
    assert_eq!(hosts, ["db", "db.example"]);
    let limit = &asked.steps.ulimits[0];
    assert_eq!((limit.name.as_str(), limit.soft, limit.hard), ("nofile", 5, 5));
    assert_eq!((asked.steps.shm_bytes, asked.steps.hostname.as_deref()), (Some(64 << 20), Some("box")));
    assert_eq!(asked.network, lapstrake_handoff::StepNetwork::None);
    assert_eq!(asked.no_cache_stages, ["test"]);
    assert_eq!(asked.frontend_options["image-resolve-mode"], "pull");
    let ContextFrom::Git(git) = &asked.contexts[1].from else { panic!("{:?}", asked.contexts) };
    let folder = git.credentials.clone().expect("credentials");
    let pod = plan.create.as_deref().and_then(|pod| pod.spec.clone()).expect("a pod");
    let mounts = pod.containers[0].volume_mounts.clone().unwrap_or_default();
    let mount =
        mounts.iter().find(|mount| mount.mount_path == folder).expect("mounted where the builder looks");
    let volume = pod.volumes.iter().flatten().find(|volume| volume.name == mount.name).expect("a volume");
    let secret = volume.secret.as_ref().expect("a Secret");
    assert_eq!(secret.secret_name.as_deref(), Some("key"));
    let keys: Vec<_> = secret.items.iter().flatten().map(|item| item.key.as_str()).collect();
    assert_eq!(keys, ["ssh-privatekey", "known_hosts"], "no more of it than the builder needs");
    assert_ne!(plain.subject, plan.subject, "it is another run");
}

#[test]
fn an_address_that_is_none_is_told_where_the_schema_did_not_see_it() {
    let mut build = build();
    let alias = lapstrake_crds::HostAlias { ip: "10.0.0".into(), hostnames: vec!["db".into()] };
    build.spec.steps.hosts = vec![alias];
    let mut seen = fresh(build, Vec::new());
    pass(&mut seen);
    assert_eq!(reason(&seen), "SpecInvalid");
    assert!(message(&seen).contains("10.0.0"), "{}", message(&seen));
}

/// What may happen to the other one and to this one.
#[derive(Clone, Debug)]
enum Happens {
    Other(u8),
    Edit,
    Ends(u8),
    Pass,
}

proptest! {
    #[test]
    fn whatever_the_other_does_the_last_run_ends_with_its_image(story in proptest::collection::vec(prop_oneof![
        3 => (0_u8..5).prop_map(Happens::Other),
        1 => Just(Happens::Edit),
        2 => (0_u8..4).prop_map(Happens::Ends),
        4 => Just(Happens::Pass),
    ], 1..40)) {
        let mut seen = seen(&[("base", State::Missing)]);
        for happens in story {
            match happens {
                Happens::Other(0) => set(&mut seen, "base", State::Missing),
                Happens::Other(1) => set(&mut seen, "base", State::NotReady("Building: x".into())),
                Happens::Other(n) => {
                    set(&mut seen, "base", State::Ready(format!("registry.example/base@sha256:{n}")));
                }
                Happens::Edit => {
                    let generation = seen.build.metadata.generation.unwrap_or_default() + 1;
                    seen.build.metadata.generation = Some(generation);
                    seen.build.spec.output.tags = vec![format!("v{generation}")];
                }
                Happens::Ends(n) => {
                    if seen.pods.first().is_some_and(|pod| !pod.ended()) {
                        pushed(&mut seen, &format!("{n}"));
                    }
                }
                Happens::Pass => drop(pass(&mut seen)),
            }
            prop_assert!(seen.pods.iter().filter(|pod| !pod.ended()).count() <= 1);
        }
        set(&mut seen, "base", State::Ready(TWO.into()));
        for _ in 0..12 {
            pass(&mut seen);
            if seen.pods.first().is_some_and(|pod| !pod.ended()) {
                pushed(&mut seen, "ffff");
            }
        }
        prop_assert!(pass(&mut seen).status.is_none(), "it comes to rest");
        prop_assert_eq!(reason(&seen), "Succeeded");
        prop_assert_eq!(&status(&seen).contexts[0].image, TWO);
    }
}
