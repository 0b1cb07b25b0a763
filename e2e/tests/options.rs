//! What an ImageBuild asks of its Dockerfile and its steps: hosts, limits, shared memory, options, caches that are not
//! used, named contexts, and sources that a Dockerfile names.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Secret;
use lapstrake_crds::{ConditionType, ImageBuild, Reason, Sandbox, label};
use lapstrake_e2e::{Manifest, Server, Test, ready, reason, run, run_in};
use serde_json::{Value, json};

/// The message of the condition `Ready`.
fn message(build: &ImageBuild) -> &str {
    let ready = build.status.as_ref().and_then(|s| s.condition(ConditionType::Ready));
    ready.map_or("", |condition| condition.message.as_str())
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

/// A step that prints what it finds around itself.
const LOOK: &str = "ARG BASE\nFROM ${BASE}\n\
    RUN grep -v localhost /etc/hosts; hostname; echo \"files $(ulimit -Sn) of $(ulimit -Hn)\"; echo \"core $(ulimit -c)\"; \
    df -k /dev/shm | tail -n 1 | awk '{print \"shm\", $2}'; ls /sys/class/net | tr '\\n' ' '\n";

fn steps(network: &str) -> Value {
    json!({
        "hosts": [
            { "ip": "10.1.2.3", "hostnames": ["db.example", "db"] },
            { "ip": "fd00::7", "hostnames": ["six.example"] },
        ],
        "ulimits": [{ "name": "nofile", "soft": 512, "hard": 1024 }, { "name": "core", "soft": 0 }],
        "shmSize": "96Mi",
        "hostname": "build-box",
        "network": network,
    })
}

async fn steps_find_what_is_asked_for(test: &Test, sandbox: Sandbox) -> Result<()> {
    let built = test.build(&test.manifest("look", LOOK).set("/spec/steps", steps("None"))).await?;
    assert_eq!(built.status.as_ref().and_then(|status| status.sandbox), Some(sandbox));
    let log = test.log(&built).await?;
    has(&log, &["10.1.2.3\tdb.example", "10.1.2.3\tdb", "fd00::7\tsix.example", "build-box"]);
    has(&log, &["files 512 of 1024", "core 0", "shm 98304"]);
    assert!(!log.contains("eth0"), "the step has a loopback device alone:\n{log}");
    // An address is no part of what a step is; a limit is.
    let moved = test.manifest("look", LOOK).set("/spec/steps", steps("None"));
    let moved = moved.set(
        "/spec/steps/hosts",
        json!([{ "ip": "10.9.9.9", "hostnames": ["db.example", "db"] },
        { "ip": "fd00::9", "hostnames": ["six.example"] }]),
    );
    let again = test.build(&moved).await?;
    has(&test.log(&again).await?, &["CACHED"]);
    // More than the pod may have itself.
    let above =
        test.manifest("above", LOOK).set("/spec/steps/ulimits", json!([{ "name": "nofile", "soft": -1 }]));
    let failed = test.fails(&above, Reason::StepFailed).await?;
    has(message(&failed), &["limit nofile: unlimited is above", "ask for less"]);
    // What the image is run with is its own.
    let image = built.status.and_then(|status| status.image).context("an image")?;
    let upon = "ARG UPON\nFROM ${UPON}\nCMD [\"sh\", \"-c\", \"grep -c db.example /etc/hosts; true\"]\n";
    let upon = Manifest::inline("upon", upon, &test.image("upon")).arg("UPON", &image);
    let image = test.build(&upon).await?.status.and_then(|status| status.image).context("an image")?;
    assert_eq!(test.run_image("upon", &image).await?.trim(), "0", "nothing of it is left in the image");
    Ok(())
}

#[test]
fn steps_find_hosts_limits_and_shared_memory_in_a_user_namespace() {
    run("steps", async |test| steps_find_what_is_asked_for(test, Sandbox::UserNamespace).await);
}

#[test]
fn steps_find_hosts_limits_and_shared_memory_where_baseline_is_enforced() {
    let labels = BTreeMap::from([(label::POD_SECURITY_ENFORCE.to_owned(), "baseline".to_owned())]);
    run_in("steps-baseline", labels, async |test| {
        steps_find_what_is_asked_for(test, Sandbox::Baseline).await
    });
}

/// The line of a step's number, such as `#7`, whose name has this text.
fn is_cached(log: &str, step: &str) -> bool {
    let number = log.lines().find(|line| line.contains(step)).and_then(|line| line.split(' ').next());
    number.is_some_and(|number| log.lines().any(|line| line == format!("{number} CACHED")))
}

#[test]
fn steps_of_a_stage_run_again_where_the_cache_is_not_to_be_used() {
    run("no-cache", async |test| {
        let dockerfile = "ARG BASE\nFROM ${BASE} AS kept\nRUN echo kept > /kept\nFROM ${BASE} AS fresh\nRUN echo fresh > /fresh\n\
            FROM ${BASE}\nCOPY --from=kept /kept /\nCOPY --from=fresh /fresh /\n";
        let manifest = || test.manifest("build", dockerfile);
        test.build(&manifest()).await?;
        let built = test.build(&manifest().set("/spec/noCache/stages", json!(["fresh"]))).await?;
        let log = test.log(&built).await?;
        assert!(is_cached(&log, "RUN echo kept") && !is_cached(&log, "RUN echo fresh"), "{log}");
        let built = test.build(&manifest().set("/spec/noCache/all", true)).await?;
        let log = test.log(&built).await?;
        assert!(!is_cached(&log, "RUN echo kept") && !is_cached(&log, "RUN echo fresh"), "{log}");
        // Taken back, it is another spec, and all of it is there.
        let built = test.build(&manifest()).await?;
        let log = test.log(&built).await?;
        assert!(is_cached(&log, "RUN echo kept") && is_cached(&log, "RUN echo fresh"), "{log}");
        Ok(())
    });
}

#[test]
fn target_arguments_and_options_of_the_frontend_count() {
    run("frontend", async |test| {
        let dockerfile = "ARG BASE\nFROM ${BASE} AS small\nARG GREETING=none\nRUN echo \"small says ${GREETING}\"\n\
            FROM small AS large\nRUN echo large\n";
        let manifest = test
            .manifest("build", dockerfile)
            .arg("GREETING", "hello")
            .set("/spec/dockerfile/target", "small")
            .set("/spec/dockerfile/options", json!({ "image-resolve-mode": "pull" }));
        let log = test.log(&test.build(&manifest).await?).await?;
        has(&log, &["small says hello"]);
        assert!(!log.contains("RUN echo large"), "{log}");
        let unknown =
            manifest.clone().set("/spec/dockerfile/options", json!({ "image-resolve-mod": "pull" }));
        let failed = test.fails(&unknown, Reason::DockerfileInvalid).await?;
        has(
            message(&failed),
            &["spec.dockerfile.options", "image-resolve-mod", "did you mean image-resolve-mode?"],
        );
        Ok(())
    });
}

/// A folder with files.
fn folder(files: &[(&str, &str)]) -> Result<tempfile::TempDir> {
    let folder = tempfile::tempdir()?;
    for (path, text) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(path, text)?;
    }
    Ok(folder)
}

#[test]
fn names_stand_for_images_repositories_and_downloads() {
    run("contexts", async |test| {
        let server = Server::start(test.cluster).await?;
        let (git, _) =
            server.repository("assets", folder(&[("web/page", "a page\n"), ("other", "x")])?.path())?;
        let motto = server.private_file("motto", b"a motto\n", "a-token")?;
        test.create::<Secret>(
            json!({ "metadata": { "name": "token" }, "stringData": { "token": "a-token" } }),
        )
        .await?;
        // `base/image` is in no registry: the context stands for it.
        let dockerfile = "FROM base/image:1\nCOPY --from=assets /page /\nCOPY --from=motto / /motto\n\
            RUN cat /page /motto/*\n";
        let context = |motto: Value| {
            json!([
                { "name": "base/image:1", "image": test.base("busybox:1") },
                { "name": "assets", "git": { "url": git, "branch": "main", "path": "web" } },
                { "name": "motto", "http": motto },
            ])
        };
        let manifest = |motto: Value| {
            Manifest::inline("build", dockerfile, &test.image("build")).set("/spec/contexts", context(motto))
        };
        let denied = manifest(json!({ "url": motto })).set("/spec/retries", 0);
        let failed = test.apply(&denied).await.map(drop);
        failed?;
        let failed = test.ended("build").await?;
        assert!(!ready(&failed), "nobody has it without the token");
        let with = json!({ "url": motto, "secretRef": { "name": "token" } });
        let built = test.build(&manifest(with)).await?;
        has(&test.log(&built).await?, &["a page", "a motto"]);
        Ok(())
    });
}

fn base(test: &Test, text: &str) -> Manifest {
    test.manifest("base", &format!("ARG BASE\nFROM ${{BASE}}\nRUN echo {text} > /version\n"))
}

fn upper(test: &Test) -> Manifest {
    Manifest::inline("upper", "FROM below\nCMD [\"cat\", \"/version\"]\n", &test.image("upper"))
        .set("/spec/contexts", json!([{ "name": "below", "build": { "name": "base" } }]))
}

#[test]
fn an_image_build_waits_for_the_one_below_and_follows_it() {
    run("upon-build", async |test| {
        test.apply(&upper(test)).await?;
        let waits = |build: &ImageBuild| reason(build) == Reason::WaitingForBuild.as_str();
        let waiting = test.until("upper", "waiting for the other", waits).await?;
        assert_eq!(
            message(&waiting),
            "waits for ImageBuild base, whose image is the context below: it does not exist yet"
        );
        let below = test.build(&base(test, "1")).await?.status.and_then(|status| status.image);
        let built = test.ready("upper").await?.status.context("a status")?;
        assert_eq!(built.contexts.first().map(|context| context.image.clone()), below);
        // Nothing but another image of the one below starts a run.
        test.apply(&base(test, "2")).await?;
        let moved = test
            .until("upper", "built again by itself", |build| {
                build
                    .status
                    .as_ref()
                    .and_then(|status| status.why)
                    .is_some_and(|why| why.as_str() == "ContextChanged")
                    && ready(build)
            })
            .await?;
        let status = moved.status.context("a status")?;
        let change = status.change.context("what moved")?;
        assert_eq!(change.name, "base");
        assert_ne!(change.from, Some(change.to));
        assert_eq!(status.history.len(), 2, "one run for each image below: {:?}", status.history);
        let printed = test.run_image("two", &status.image.context("an image")?).await?;
        assert_eq!(printed.trim(), "2");
        Ok(())
    });
}

#[test]
fn image_builds_in_a_circle_are_told_and_one_that_leaves_it_is_built() {
    run("circle", async |test| {
        let of = |name: &str, below: &str| {
            Manifest::inline(name, "FROM below\nRUN true\n", &test.image(name))
                .set("/spec/contexts", json!([{ "name": "below", "build": { "name": below } }]))
        };
        let own = test.apply(&of("own", "own")).await.expect_err("no ImageBuild is its own context");
        has(&format!("{own:#}"), &["name another one in contexts[].build"]);
        test.apply(&of("one", "two")).await?;
        test.apply(&of("two", "one")).await?;
        let circle = |build: &ImageBuild| message(build).contains("contexts go round in a circle");
        test.until("one", "in a circle", circle).await?;
        let told = test.until("two", "in a circle", circle).await?;
        assert_eq!(reason(&told), Reason::SpecInvalid.as_str());
        has(message(&told), &["two → one → two"]);
        test.apply(
            &of("two", "one")
                .set("/spec/contexts", json!([{ "name": "below", "image": test.base("busybox:1") }])),
        )
        .await?;
        test.until("two", "built", ready).await?;
        test.until("one", "built upon it", ready).await?;
        Ok(())
    });
}

#[test]
fn a_dockerfile_adds_downloads_and_repositories() {
    run("add", async |test| {
        let server = Server::start(test.cluster).await?;
        let file = server.file("hello.txt", b"hello from a download\n")?;
        let (git, commit) = server.repository(
            "boats",
            folder(&[("dinghy/planks", "four planks\n"), ("README", "all boats\n")])?.path(),
        )?;
        let dockerfile = format!(
            "ARG BASE\nFROM ${{BASE}}\nADD {file} /hello\nADD {git}#main:dinghy /dinghy\nADD --keep-git-dir {git}?commit={commit} /all\n\
             RUN cat /hello /dinghy/planks /all/README && test -d /all/.git && ! test -e /dinghy/.git\n"
        );
        let built = test.build(&test.manifest("build", &dockerfile)).await?;
        has(&test.log(&built).await?, &["hello from a download", "four planks", "all boats"]);
        let sum = format!("sha256:{}", "0".repeat(64));
        let wrong = format!("ARG BASE\nFROM ${{BASE}}\nADD --checksum={sum} {file} /hello\n");
        let failed = test.fails(&test.manifest("wrong", &wrong), Reason::ChecksumMismatch).await?;
        has(message(&failed), &["sha256:0000"]);
        Ok(())
    });
}

/// Broken Dockerfiles behind `ARG BASE` and `FROM ${BASE} AS one`, and what a person reads of each.
const BROKEN: &[(&str, &str, &[&str])] = &[
    ("typo", "RNU make\n", &["Dockerfile:3:1", "RNU", "did you mean RUN?"]),
    ("flag", "COPY --form=one /a /b\n", &["Dockerfile:3:6", "--form", "did you mean"]),
    (
        "cycle",
        "FROM one AS two\nCOPY --from=two /a /b\n",
        &["Dockerfile:4:13", "circular dependency", "4 | COPY --from=two /a /b"],
    ),
    ("mount", "RUN --mount=type=cache,taget=/x true\n", &["Dockerfile:3:", "taget", "did you mean"]),
    ("heredoc", "RUN <<END\necho\n", &["Dockerfile:3:5", "3 | RUN <<END"]),
    ("chmod", "COPY --chmod=89 /a /b\n", &["Dockerfile:3:", "89"]),
    ("several", "RNU make\nCOPI a b\n", &["Dockerfile:3:1", "RNU", "and 1 more error", "COPI"]),
];

#[test]
fn a_mistake_in_a_dockerfile_is_read_in_kubectl_describe() {
    run("describe", async |test| {
        for (name, text, _) in BROKEN {
            test.apply(&test.manifest(name, &format!("ARG BASE\nFROM ${{BASE}} AS one\n{text}"))).await?;
        }
        for (name, _, parts) in BROKEN {
            let build = test.ended(name).await?;
            assert_eq!(reason(&build), Reason::DockerfileInvalid.as_str(), "{name}: {}", message(&build));
            test.until_event(name, Reason::DockerfileInvalid.as_str()).await?;
            let arguments = ["describe", "imagebuild", name, "-n", &test.namespace];
            let shown = test.cluster.kubectl(&arguments)?;
            println!("--- {name}\n{shown}");
            has(&shown, parts);
            // The line itself, as a compiler shows it.
            has(&shown, &[" | ", "^"]);
            has(&shown, &["Line:", "Column:", "Reason:", "DockerfileInvalid"]);
        }
        Ok(())
    });
}
