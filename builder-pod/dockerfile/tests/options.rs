//! What the caller asks for beside the Dockerfile, and what it is told.

mod support;

use std::collections::BTreeMap;

use lapstrake_dockerfile::{
    Capabilities, ContextUse, Diagnostics, ExtraHost, Images, Lowered, MainContext, NamedContext, Network,
    NoCache, Options, ResolveMode, Severity, Ulimit, parse, plan,
};
use lapstrake_llb::{Graph, description, pb};

fn lower(text: &str, options: &Options) -> Result<Lowered, Diagnostics> {
    let plan = plan(&parse("Dockerfile", text), options)?;
    plan.lower(&support::resolve(&plan))
}

fn lowered(text: &str, options: &Options) -> Lowered {
    lower(text, options).expect("a valid Dockerfile")
}

fn execs(lowered: &Lowered) -> Vec<pb::ExecOp> {
    let graph = Graph::decode(&lowered.definition).expect("a valid graph");
    let exec = |op: &pb::op::Op| match op {
        pb::op::Op::Exec(exec) => Some(exec.clone()),
        _ => None,
    };
    graph.vertices().iter().filter_map(|v| exec(&v.op)).collect()
}

fn sources(lowered: &Lowered) -> Vec<pb::SourceOp> {
    let graph = Graph::decode(&lowered.definition).expect("a valid graph");
    let source = |op: &pb::op::Op| match op {
        pb::op::Op::Source(source) => Some(source.clone()),
        _ => None,
    };
    graph.vertices().iter().filter_map(|v| source(&v.op)).collect()
}

#[test]
fn options_of_steps_reach_every_step() {
    let options = Options {
        network: Network::None,
        hostname: "box".to_owned(),
        extra_hosts: vec![ExtraHost { host: "a".to_owned(), address: "1.2.3.4".parse().expect("valid") }],
        ulimits: vec![Ulimit { name: "nofile".to_owned(), soft: 1, hard: 2 }],
        shm_size_bytes: 64,
        cgroup_parent: "cg".to_owned(),
        build_args: [("HTTPS_PROXY".to_owned(), "p".to_owned())].into(),
        capabilities: Capabilities::ALL,
        ..Options::default()
    };
    let steps = execs(&lowered("FROM a\nRUN x\nRUN --network=host y\n", &options));
    for step in &steps {
        let meta = step.meta.clone().unwrap_or_default();
        assert_eq!((meta.hostname.as_str(), meta.cgroup_parent.as_str()), ("box", "cg"));
        assert_eq!((meta.extra_hosts[0].ip.as_str(), meta.ulimit[0].hard), ("1.2.3.4", 2));
        assert_eq!(meta.proxy_env.unwrap_or_default().https_proxy, "p");
        assert!(!meta.env.iter().any(|e| e.contains("PROXY")), "proxies are no part of a step");
        assert_eq!(step.mounts[1].tmpfs_opt, Some(pb::TmpfsOpt { size: 64 }));
    }
    assert_eq!([steps[0].network, steps[1].network], [pb::NetMode::None as i32, pb::NetMode::Host as i32]);
}

#[test]
fn limits_of_steps_stand_beside_their_operations() {
    let steps = |resources: &str| {
        let options = Options { resources: resources.parse().expect("valid"), ..Options::default() };
        let lowered = lowered("FROM a\nRUN x\nCOPY --from=b / /\n", &options);
        let graph = Graph::decode(&lowered.definition).expect("a valid graph");
        let steps = graph.vertices().iter().map(|vertex| {
            let limits = vertex.metadata.description.get(description::RESOURCES).cloned();
            (vertex.digest.to_string(), limits)
        });
        steps.collect::<Vec<_>>()
    };
    let (free, limited) = (steps(""), steps("memory=4096;cpuquota=5000"));
    let given: Vec<_> = limited.iter().filter_map(|(_, limits)| limits.as_deref()).collect();
    assert_eq!(given, ["memory=4096;cpuquota=5000"], "of the one step that runs a program");
    let digests =
        |of: &[(String, Option<String>)]| of.iter().map(|(digest, _)| digest.clone()).collect::<Vec<_>>();
    assert_eq!(digests(&free), digests(&limited), "they are no part of what a step is");
}

#[test]
fn only_what_is_copied_is_asked_of_the_context() {
    let text = "FROM a\nARG D=sub\nCOPY b ./$D/x* /z/\nRUN --mount=source=m,target=/m x\n";
    let context = MainContext::Local {
        name: "context".to_owned(),
        session: Some("s1".to_owned()),
        exclude_patterns: vec!["*.md".to_owned(), "!a<b".to_owned()],
    };
    let out = lowered(text, &Options { context, ..Options::default() });
    let paths = ["b", "m", "sub/x*"].map(str::to_owned).to_vec();
    assert_eq!(out.context, Some(ContextUse::Paths(paths)));
    let sources = sources(&out);
    let local = sources.iter().find(|s| s.identifier == "local://context").expect("is read");
    let expected: BTreeMap<_, _> = [
        ("local.session", "s1"),
        ("local.excludepatterns", r#"["*.md","!a\u003cb"]"#),
        ("local.followpaths", r#"["b","m","sub/x*"]"#),
        ("local.sharedkeyhint", "context"),
    ]
    .into_iter()
    .map(|(k, v)| (k.to_owned(), v.to_owned()))
    .collect();
    assert_eq!(local.attrs, expected);
}

#[test]
fn the_whole_context_and_none_of_it_are_told_apart() {
    assert_eq!(lowered("FROM a\nCOPY . /\nCOPY b /\n", &Options::default()).context, Some(ContextUse::Whole));
    assert_eq!(lowered("FROM a\nCOPY <<x /y\nx\n", &Options::default()).context, None);
    let tmpfs = "FROM a\nRUN --mount=type=tmpfs,target=/t x\n";
    assert_eq!(lowered(tmpfs, &Options::default()).context, None);
}

#[test]
fn a_context_can_be_another_source() {
    let context = MainContext::Source {
        identifier: "git://h/r.git#main".to_owned(),
        attrs: [("git.fullurl".to_owned(), "https://h/r.git".to_owned())].into(),
        name: "[internal] load git source".to_owned(),
    };
    let out = lowered("FROM scratch\nCOPY a b\n", &Options { context, ..Options::default() });
    assert_eq!(sources(&out)[0].identifier, "git://h/r.git#main");
}

#[test]
fn the_cache_can_be_left_out_for_all_or_for_named_stages() {
    let text = "FROM a AS One\nRUN x\nFROM one\nRUN y\n";
    let ignored = |no_cache| {
        let out = lowered(text, &Options { no_cache, ..Options::default() });
        let graph = Graph::decode(&out.definition).expect("a valid graph");
        graph.vertices().iter().filter(|v| v.metadata.ignore_cache).count()
    };
    assert_eq!(ignored(NoCache::Nothing), 0);
    assert_eq!(ignored(NoCache::All), 2);
    assert_eq!(ignored(NoCache::Stages(vec!["ONE".to_owned()])), 1);
}

#[test]
fn images_are_asked_for_once_and_never_for_unused_stages() {
    let text =
        "FROM unused AS u\nRUN x\nFROM a:1 AS b\nFROM a:1\nCOPY --from=c:2 / /\nCOPY --from=c:2 /x /\n";
    let plan = plan(&parse("Dockerfile", text), &Options::default()).expect("valid");
    let needed = plan.images_needed(&Images::new());
    let names: Vec<_> = needed.iter().map(|r| r.key.reference.to_string()).collect();
    assert_eq!(names, ["docker.io/library/a:1", "docker.io/library/c:2"]);
    let error = plan.image_error(&needed[1], "not found");
    assert_eq!(
        error.to_string(),
        "Dockerfile:5:13: base image docker.io/library/c:2 can't be resolved: not found"
    );
    assert!(plan.lower(&Images::new()).is_err_and(|e| e.to_string().contains("is not known")));
}

#[test]
fn the_way_of_looking_up_images_is_handed_on() {
    let out = lowered("FROM a\n", &Options { resolve_mode: ResolveMode::Pull, ..Options::default() });
    assert_eq!(sources(&out)[0].attrs.get("image.resolvemode").map(String::as_str), Some("pull"));
}

#[test]
fn builder_settings_can_come_as_build_args() {
    let set = |name: &str, value: &str| Options {
        build_args: [(name.to_owned(), value.to_owned())].into(),
        ..Options::default()
    };
    let out = lowered("FROM a\nRUN x\n", &set("BUILDKIT_SANDBOX_HOSTNAME", "h"));
    assert_eq!(execs(&out)[0].meta.clone().unwrap_or_default().hostname, "h");
    let refused = lower("FROM a\n", &set("BUILDKIT_SYNTAX", "example/other:1")).expect_err("is not built in");
    assert!(refused.to_string().contains("frontend docker.io/example/other:1 is not supported yet"));
    let stays =
        lower("# syntax=example/other\nFROM a\n", &set("BUILDKIT_SYNTAX", "docker/dockerfile:1.7-labs"));
    assert!(stays.is_ok());
}

#[test]
fn the_time_may_be_that_of_a_context() {
    let text = "ARG SOURCE_DATE_EPOCH=context\nFROM scratch\nARG SOURCE_DATE_EPOCH\nWORKDIR /a\n";
    let created = |text: &str, options: &Options| {
        let config = lowered(text, options).config;
        (config.history[0].created.clone(), config.history[0].created_by.clone().unwrap_or_default())
    };
    let times = BTreeMap::from([("context".to_owned(), 86_400), ("other".to_owned(), 0)]);
    let options = Options { context_times: times, ..Options::default() };
    let (time, by) = created(text, &options);
    assert_eq!((time.as_deref(), by.as_str()), (Some("1970-01-02T00:00:00Z"), "ARG SOURCE_DATE_EPOCH=86400"));
    // A directory has no time: then there is none.
    let (time, by) = created(text, &Options::default());
    assert_eq!((time, by.as_str()), (None, "ARG SOURCE_DATE_EPOCH"));
    let mut other = Options {
        named_contexts: [("other".to_owned(), NamedContext::Local("x".to_owned()))].into(),
        ..options
    };
    other.build_args.insert("SOURCE_DATE_EPOCH".to_owned(), "other".to_owned());
    assert_eq!(created(text, &other).0.as_deref(), Some("1970-01-01T00:00:00Z"));
}

#[test]
fn a_time_that_is_none_says_why() {
    let says = |value: &str, stage: &str| {
        let text = format!("FROM {stage}\nFROM scratch\nWORKDIR /a\n");
        let build_args = BTreeMap::from([("SOURCE_DATE_EPOCH".to_owned(), value.to_owned())]);
        lower(&text, &Options { build_args, ..Options::default() }).expect_err("no time").to_string()
    };
    assert!(
        says("contxt", "scratch AS s").contains("invalid SOURCE_DATE_EPOCH: contxt (did you mean context?)")
    );
    assert!(says("s", "alpine AS s\nADD https://h/x /").contains("must use FROM scratch"));
    assert!(says("s", "scratch AS s\nRUN x").contains("unsupported RUN instruction"));
    assert!(says("s", "scratch AS s").contains("exactly one remote ADD"));
    assert!(says("s", "scratch AS s\nADD x /").contains("must be a single HTTP(S) or Git ADD"));
}

#[test]
fn the_time_may_be_that_of_a_stage_that_is_nothing_but_a_download() {
    let text = "ARG HOST=h\nFROM scratch AS When\nARG FILE=a.tar\nADD https://$HOST/$FILE /\n\
                FROM scratch\nWORKDIR /a\n";
    let build_args = BTreeMap::from([("SOURCE_DATE_EPOCH".to_owned(), "when".to_owned())]);
    let mut options = Options { build_args, ..Options::default() };
    let asked = |text: &str, options: &Options| {
        let parsed = parse("Dockerfile", text);
        lapstrake_dockerfile::epoch_source(&parsed, options).expect("no errors")
    };
    let found = asked(text, &options).expect("a stage");
    assert_eq!((found.stage.as_str(), found.source.identifier.as_str()), ("when", "https://h/a.tar"));
    assert_eq!(found.source.attrs["http.filename"], "a.tar");
    options.context_times.insert(found.stage, 86_400);
    let out = lowered(text, &options);
    assert_eq!(out.config.history[0].created.as_deref(), Some("1970-01-02T00:00:00Z"));
    assert_eq!(out.epoch, Some(86_400));

    let git = "FROM scratch AS when\nADD --keep-git-dir=true https://h/r.git#v1 /\nFROM scratch\n";
    let found = asked(git, &options).expect("a stage").source;
    assert_eq!(found.identifier, "git://h/r.git#v1");
    assert_eq!(found.attrs["git.keepgitdir"], "true");
    options.build_args.insert("SOURCE_DATE_EPOCH".to_owned(), "context".to_owned());
    assert_eq!(asked(text, &options), None, "a context is known to the caller");
}

#[test]
fn a_context_may_be_for_one_platform_only() {
    let context = |name: &str, to: &str| (name.to_owned(), NamedContext::Local(to.to_owned()));
    let options = |platform: &str| Options {
        target_platform: Some(platform.parse().expect("valid")),
        named_contexts: [
            context("base::linux/arm64", "arm"),
            context("base", "any"),
            context("pinned:latest", "p"),
        ]
        .into(),
        capabilities: Capabilities::ALL,
        ..Options::default()
    };
    let sources = |text: &str, platform: &str| {
        let graph = Graph::decode(&lowered(text, &options(platform)).definition).expect("a valid graph");
        let source = |op: &pb::op::Op| match op {
            pb::op::Op::Source(source) => Some(source.identifier.clone()),
            _ => None,
        };
        graph.vertices().iter().filter_map(|vertex| source(&vertex.op)).collect::<Vec<_>>()
    };
    let copy = "FROM scratch\nCOPY --from=base / /\n";
    assert_eq!(sources(copy, "linux/arm64"), ["local://arm"]);
    assert_eq!(sources(copy, "linux/amd64"), ["local://any"]);
    assert_eq!(sources("FROM --platform=linux/arm64 base\n", "linux/amd64"), ["local://arm"]);
    // In place of a stage, and by another name of the same image.
    assert_eq!(sources("FROM x AS base\nRUN gone\nFROM base\nRUN x\n", "linux/amd64"), ["local://any"]);
    assert_eq!(sources("FROM docker.io/library/pinned\nRUN x\n", "linux/amd64"), ["local://p"]);
}

#[test]
fn files_that_a_context_names_are_a_base_without_a_word() {
    let options = Options {
        named_contexts: [("files".to_owned(), NamedContext::Local("x".to_owned()))].into(),
        capabilities: Capabilities::ALL,
        ..Options::default()
    };
    let out = lowered("FROM files AS a\nRUN ls\n", &options);
    assert_eq!(out.config.config.working_dir, "/");
    assert_eq!(out.config.history.len(), 1, "the files themselves are said by the exporter");
    let graph = Graph::decode(&out.definition).expect("a valid graph");
    let names: Vec<_> = graph.vertices().iter().map(|vertex| vertex.name()).collect();
    assert_eq!(names, ["[context x] load from client", "[1/2] FROM files", "[2/2] RUN ls"]);
}

#[test]
fn findings_are_data() {
    let parsed = parse("sub/Dockerfile", "FROM a\nRUNN x\nRUN a \\\n\n  b\n");
    let json = parsed.diagnostics.to_json();
    assert_eq!(json[0]["line"], 2);
    assert_eq!(json[0]["length"], 4);
    assert_eq!(json[0]["help"], "did you mean RUN?");
    assert_eq!(json[1]["severity"], "warning");
    let first = parsed.diagnostics.first_error().expect("one");
    assert_eq!((first.code, first.severity), ("unknown-instruction", Severity::Error));
    assert_eq!(
        parsed.diagnostics.short(first),
        "sub/Dockerfile:2:1: unknown instruction: RUNN (did you mean RUN?)"
    );
}

#[test]
fn a_label_given_by_the_caller_wins_and_the_target_platform_is_the_images() {
    let options = Options {
        labels: [("a".to_owned(), "caller".to_owned())].into(),
        target_platform: Some("linux/arm64".parse().expect("valid")),
        ..Options::default()
    };
    let out = lowered("FROM --platform=linux/amd64 x\nLABEL a=file b=file\n", &options);
    let labels: Vec<_> = out.config.config.labels.into_iter().collect();
    assert_eq!(labels, [("a".into(), "caller".into()), ("b".into(), "file".into())]);
    assert_eq!((out.config.os.as_str(), out.config.architecture.as_str()), ("linux", "arm64"));
}

#[test]
fn an_error_in_a_base_is_told_once() {
    let text = "FROM a AS b\nWORKDIR ${X:?no}\nFROM b AS c\nFROM c\nCOPY --from=b / /\nUSER ${Y:?why}\n";
    let refused = lower(text, &Options::default()).expect_err("has errors");
    assert_eq!(refused.to_string(), "Dockerfile:2:9: X: no\nDockerfile:6:6: Y: why");
}

#[test]
fn a_step_that_stands_twice_knows_both_places() {
    let out = lowered("FROM a AS x\nRUN same\nFROM a\nRUN same\nCOPY --from=x / /\n", &Options::default());
    let graph = Graph::decode(&out.definition).expect("a valid graph");
    let step = graph.vertices().iter().find(|v| v.name().contains("RUN same")).expect("is there");
    let lines: Vec<_> = step.locations.iter().map(|l| l.first_line).collect();
    assert_eq!(lines, [2, 4]);
}
