use std::collections::HashMap;

use lapstrake_api::pb;
use proptest::prelude::*;

use super::*;

const BUSYBOX: &str = "docker-image://docker.io/library/busybox:latest";
const ALPINE: &str = "docker-image://docker.io/library/alpine:latest";

fn selector(kind: MatchType, identifier: &str) -> Selector {
    Selector { identifier: identifier.to_owned(), match_type: kind as i32, constraints: Vec::new() }
}

fn rule(action: PolicyAction, kind: MatchType, identifier: &str, to: &str) -> Rule {
    let updates = (action == PolicyAction::Convert)
        .then(|| Update { identifier: to.to_owned(), attrs: HashMap::new() });
    Rule { action: action as i32, selector: Some(selector(kind, identifier)), updates }
}

fn allow(identifier: &str) -> Rule {
    rule(PolicyAction::Allow, MatchType::Wildcard, identifier, "")
}

fn deny(identifier: &str) -> Rule {
    rule(PolicyAction::Deny, MatchType::Wildcard, identifier, "")
}

fn convert(from: &str, to: &str) -> Rule {
    rule(PolicyAction::Convert, MatchType::Wildcard, from, to)
}

fn policies(of: &[&[Rule]]) -> Policies {
    let all: Vec<_> = of.iter().map(|rules| Policy { version: 1, rules: rules.to_vec() }).collect();
    Policies::new(&all).expect("valid rules")
}

fn evaluate(of: &[&[Rule]], identifier: &str) -> Result<String, Error> {
    let mut op = SourceOp { identifier: identifier.to_owned(), ..SourceOp::default() };
    policies(of).evaluate(&mut op, None)?;
    Ok(op.identifier)
}

#[test]
fn the_last_rule_of_a_policy_wins() {
    assert_eq!(evaluate(&[&[deny("*"), allow(BUSYBOX)]], BUSYBOX), Ok(BUSYBOX.to_owned()));
    let denied = Err(Error::Denied(BUSYBOX.to_owned()));
    assert_eq!(evaluate(&[&[allow(BUSYBOX), deny("*")]], BUSYBOX), denied);
    // Another policy has a word of its own.
    assert_eq!(evaluate(&[&[allow(BUSYBOX)], &[deny(BUSYBOX)]], BUSYBOX), denied);
    assert_eq!(evaluate(&[&[deny(BUSYBOX)], &[allow(BUSYBOX)]], BUSYBOX), denied);
}

#[test]
fn what_takes_a_place_is_judged_in_its_turn() {
    let rules = [deny("docker-image://docker.io/library/alpine:*"), convert(BUSYBOX, ALPINE)];
    assert_eq!(evaluate(&[&rules], BUSYBOX), Err(Error::Denied(ALPINE.to_owned())));
    let rules = [convert(BUSYBOX, ALPINE), convert(ALPINE, "docker-image://x/debian:12")];
    assert_eq!(evaluate(&[&rules], BUSYBOX), Ok("docker-image://x/debian:12".to_owned()));
}

#[test]
fn patterns_take_no_more_memory_than_is_planned_for() {
    let new = |rules: Vec<Rule>| Policies::new(&[Policy { version: 1, rules }]);
    assert!(new(vec![deny("docker-image://x/*"); PATTERNS_MAX]).is_ok());
    let error = new(vec![deny("docker-image://x/*"); PATTERNS_MAX + 1]).expect_err("too many").to_string();
    assert!(error.contains("name what is known exactly"), "{error}");
    assert!(new(vec![deny(BUSYBOX); PATTERNS_MAX + 1]).is_ok(), "names are no patterns");
    let large = rule(PolicyAction::Deny, MatchType::Regex, r"(\w{1,200}){1,200}", "");
    let error = evaluate(&[&[large]], BUSYBOX).expect_err("too large").to_string();
    assert!(error.contains("size limit"), "{error}");
}

#[test]
fn rules_that_turn_in_a_circle_end() {
    let rules = [convert(BUSYBOX, ALPINE), convert(ALPINE, BUSYBOX)];
    assert_eq!(evaluate(&[&rules], BUSYBOX), Err(Error::TooMany));
}

#[test]
fn parts_that_were_matched_go_into_what_takes_the_place() {
    let to = "docker-image://mirror/golang:${1}-x";
    let from = "docker-image://docker.io/library/golang:*";
    let golang = "docker-image://docker.io/library/golang:1.19";
    let expected = Ok("docker-image://mirror/golang:1.19-x".to_owned());
    assert_eq!(evaluate(&[&[convert(from, to)]], golang), expected);
    let regex =
        rule(PolicyAction::Convert, MatchType::Regex, r"docker\.io/library/golang:(.*)", "mirror/go:$1");
    assert_eq!(evaluate(&[&[regex]], golang), Ok("docker-image://mirror/go:1.19".to_owned()));
    let exact = rule(PolicyAction::Convert, MatchType::Exact, from, to);
    assert_eq!(evaluate(&[&[exact]], golang), Ok(golang.to_owned()));
}

#[test]
fn attributes_are_conditions_and_results() {
    let constraint = |condition: AttrMatch, value: &str| AttrConstraint {
        key: "k".to_owned(),
        value: value.to_owned(),
        condition: condition as i32,
    };
    let judge = |condition, value: &str, have: &str| {
        let mut deny = deny("*");
        deny.selector.as_mut().expect("one").constraints.push(constraint(condition, value));
        let mut op = SourceOp { identifier: "http://a".to_owned(), ..SourceOp::default() };
        op.attrs.insert("k".to_owned(), have.to_owned());
        policies(&[&[deny]]).evaluate(&mut op, None).is_err()
    };
    assert!(judge(AttrMatch::Equal, "v", "v") && !judge(AttrMatch::Equal, "v", "w"));
    assert!(judge(AttrMatch::Notequal, "v", "w") && !judge(AttrMatch::Notequal, "v", "v"));
    assert!(judge(AttrMatch::Matches, "^v+$", "vvv") && !judge(AttrMatch::Matches, "^v+$", "w"));

    let mut with = convert("http://a", "");
    with.updates.as_mut().expect("one").attrs.insert("http.checksum".to_owned(), "sha256:1".to_owned());
    let mut op = SourceOp { identifier: "http://a".to_owned(), ..SourceOp::default() };
    assert_eq!(policies(&[&[with]]).evaluate(&mut op, None), Ok(true));
    assert_eq!((op.identifier.as_str(), op.attrs["http.checksum"].as_str()), ("http://a", "sha256:1"));
}

#[test]
fn what_can_not_be_read_is_told() {
    let broken = |rule: Rule| Policies::new([&Policy { version: 1, rules: vec![rule] }]);
    let no_selector = Rule { action: 0, selector: None, updates: None };
    assert_eq!(
        broken(no_selector).map(drop),
        Err(Error::Invalid("invalid nil selector in policy".to_owned()))
    );
    let mut unknown = allow("*");
    unknown.action = 9;
    assert!(matches!(broken(unknown), Err(Error::Invalid(_))));
    // Only where it counts, as with buildkitd.
    let stars = broken(deny("a**b")).expect("read");
    let mut op = SourceOp { identifier: "c".to_owned(), ..SourceOp::default() };
    let error = stars.evaluate(&mut op, None).expect_err("two stars");
    assert!(error.to_string().contains("invalid wildcard: \"**\""), "{error}");
    let mut without = convert("*", "");
    without.updates = None;
    let error = broken(without).expect("read").evaluate(&mut op, None).expect_err("no destination");
    assert_eq!(error.to_string(), "error mutating source policy: missing destination for convert rule");
}

fn source(identifier: &str) -> pb::Op {
    let source = SourceOp { identifier: identifier.to_owned(), ..SourceOp::default() };
    pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() }
}

#[test]
fn what_rests_on_a_converted_source_is_named_anew() {
    let build = |image: &str| {
        let mut builder = lapstrake_llb::Builder::new();
        let base = builder.add(&source(image), pb::OpMetadata::default(), &[]);
        let input = lapstrake_llb::Builder::input(lapstrake_llb::Output { vertex: base, index: 0 });
        let copy = pb::Op {
            inputs: vec![input],
            op: Some(pb::op::Op::File(lapstrake_llb::copy_of_all())),
            ..pb::Op::default()
        };
        let said = pb::OpMetadata { ignore_cache: true, ..pb::OpMetadata::default() };
        let top = builder.add(&copy, said, &[]);
        builder.finish(Some(lapstrake_llb::Output { vertex: top, index: 0 }))
    };
    let of = policies(&[&[convert(BUSYBOX, ALPINE)]]);
    let mut before = build(BUSYBOX);
    assert_eq!(applied(&of, &before).expect("allowed"), Some(build(ALPINE)));
    // In whatever order operations stand, but for the last.
    before.def.swap(0, 1);
    let mut expected = build(ALPINE);
    expected.def.swap(0, 1);
    assert_eq!(applied(&of, &before).expect("allowed"), Some(expected));
    assert_eq!(applied(&of, &build(ALPINE)).expect("allowed"), None);
    let error = applied(&policies(&[&[deny(BUSYBOX)]]), &build(BUSYBOX)).expect_err("denied");
    let expected = format!(
        "failed to load LLB: error evaluating the source policy: source {BUSYBOX:?} denied by policy: source denied by policy"
    );
    assert_eq!(error.to_string(), expected);
}

proptest! {
    #[test]
    fn every_policy_comes_to_an_end_and_to_one_answer(
        rules in proptest::collection::vec((0..3i32, 0..3i32, "[ab*]{1,3}", "[ab]{1,3}|\\$\\{1\\}a"), 0..8),
        identifier in "[ab]{1,4}",
    ) {
        let rule = |(action, kind, from, to): &(i32, i32, String, String)| Rule {
            action: *action,
            selector: Some(Selector { identifier: from.clone(), match_type: *kind, constraints: Vec::new() }),
            updates: Some(Update { identifier: to.clone(), attrs: HashMap::new() }),
        };
        let policy = Policy { version: 1, rules: rules.iter().map(rule).collect() };
        let of = Policies::new([&policy]).expect("valid kinds");
        let mut op = SourceOp { identifier, ..SourceOp::default() };
        let first = of.evaluate(&mut op, None);
        if first.is_ok() {
            // What counts is not changed again.
            let settled = op.clone();
            prop_assert_eq!(of.evaluate(&mut op, None), Ok(false));
            prop_assert_eq!(op, settled);
        }
    }
}

#[test]
fn a_rule_about_a_bundle_holds_for_the_repository_that_comes_from_it() {
    let repository = || SourceOp {
        identifier: "git://example.com/a.git".to_owned(),
        attrs: [("git.bundle".to_owned(), "docker-image+blob://r.example/b@sha256:1".to_owned())].into(),
    };
    let denied = policies(&[&[deny("docker-image+blob://r.example/*")]]).evaluate(&mut repository(), None);
    assert_eq!(denied, Err(Error::Denied("docker-image+blob://r.example/b@sha256:1".to_owned())));
    let mut op = repository();
    let mirror = convert("docker-image+blob://r.example/*", "docker-image+blob://mirror.example/$1");
    assert_eq!(policies(&[&[mirror]]).evaluate(&mut op, None), Ok(true));
    assert_eq!(op.attrs["git.bundle"], "docker-image+blob://mirror.example/b@sha256:1");
}

/// Somebody who answers each question with the same source, converted.
#[derive(Debug, Default)]
struct Circle(std::sync::atomic::AtomicUsize);

impl Judge for Circle {
    fn check(&self, asked: &mut Question<'_>) -> Result<bool, Error> {
        asked.ask()?;
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Ok(true)
    }
}

#[test]
fn who_decides_is_asked_ten_times_about_a_source_at_most() {
    let circle = std::sync::Arc::new(Circle::default());
    let policies = Policies::default().with_judge(std::sync::Arc::clone(&circle) as _);
    let mut op = SourceOp { identifier: "http://a".to_owned(), ..SourceOp::default() };
    let error = policies.evaluate(&mut op, None).expect_err("a circle");
    assert_eq!(error.to_string(), "too many policy requests");
    assert_eq!(circle.0.load(std::sync::atomic::Ordering::SeqCst), 10);
}
