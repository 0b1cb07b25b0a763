//! Package managers with cache mounts on a volume: what was downloaded once is not downloaded again by
//! another pod, and no image has the cache in it.

use anyhow::{Context, Result};
use kube::api::DeleteParams;
use lapstrake_crds::ImageBuild;
use lapstrake_e2e::{Manifest, Test, run};
use serde_json::json;

/// A package manager, and how it tells what it fetches.
struct Case {
    name: &'static str,
    base: &'static str,
    dockerfile: &'static str,
    /// File that pins the packages, before and after one more is asked for.
    lock: [(&'static str, &'static str); 2],
    /// Words on the line of a package that is fetched from the network.
    fetched: &'static str,
    /// A package of the first lock file, and one that only the second has.
    packages: [&'static str; 2],
}

fn manifest(test: &Test, case: &Case, lock: (&str, &str)) -> Manifest {
    let files = json!([{ "path": lock.0, "content": lock.1 }]);
    Manifest::inline(case.name, case.dockerfile, &test.image(case.name))
        .arg("BASE", &test.base(case.base))
        .set("/spec/source/inline", json!({ "files": files }))
}

fn pod(build: &ImageBuild) -> Result<String> {
    let status = build.status.as_ref().context("a status")?;
    status.platforms.iter().find_map(|one| one.pod.clone()).context("a pod")
}

/// Lines of a build's log that tell of a download, with this package in them.
fn downloads(log: &str, case: &Case, package: &str) -> usize {
    log.lines().filter(|line| line.contains(case.fetched) && line.contains(package)).count()
}

fn downloads_only_what_is_new(case: &Case) {
    run(&format!("cache-{}", case.name), async |test| {
        let [old, new] = case.packages;
        let first = test.build(&manifest(test, case, case.lock[0])).await?;
        let log = test.log(&first).await?;
        assert!(downloads(&log, case, old) > 0, "the first build fetches {old}:\n{log}");
        test.pods.delete(&pod(&first)?, &DeleteParams::default()).await?;

        test.apply(&manifest(test, case, case.lock[1])).await?;
        let generation = test.builds.get(case.name).await?.metadata.generation;
        let second = test.ready(case.name).await?;
        assert_eq!(second.metadata.generation, generation);
        assert_ne!(pod(&first)?, pod(&second)?, "another pod");
        let log = test.log(&second).await?;
        assert_eq!(downloads(&log, case, old), 0, "{old} is in the cache:\n{log}");
        assert!(downloads(&log, case, new) > 0, "only {new} is new:\n{log}");

        // The program's own eyes: what it finds where the cache was mounted.
        let image = second.status.and_then(|status| status.image).context("an image")?;
        let printed = test.run_image("image", &image).await?;
        assert_eq!(printed.trim(), "cache: empty", "the image has no cache in it");
        Ok(())
    });
}

#[test]
fn pip() {
    downloads_only_what_is_new(&Case {
        name: "pip",
        base: "python:3",
        dockerfile: "ARG BASE\nFROM ${BASE}\nCOPY requirements.txt /\n\
             RUN --mount=type=cache,target=/cache/pip \
             python3 -m pip download --progress-bar=off --dest /cache/pip -r /requirements.txt && \
             python3 -m pip install --no-index --find-links /cache/pip --target /lib-python -r /requirements.txt\n\
             CMD [\"sh\", \"-c\", \"if ls /cache/pip/* 2>/dev/null; then echo cache: full; else echo cache: empty; fi\"]\n",
        lock: [
            ("requirements.txt", "cowsay==6.1\n"),
            ("requirements.txt", "cowsay==6.1\niniconfig==2.1.0\n"),
        ],
        fetched: "Downloading",
        packages: ["cowsay-", "iniconfig-"],
    });
}

#[test]
fn go() {
    downloads_only_what_is_new(&Case {
        name: "go",
        base: "golang:1",
        dockerfile: "ARG BASE\nFROM ${BASE}\nWORKDIR /src\nCOPY go.mod ./\n\
             RUN --mount=type=cache,target=/cache/go GOMODCACHE=/cache/go GOFLAGS=-mod=mod go mod download -x\n\
             CMD [\"sh\", \"-c\", \"if ls /cache/go/* 2>/dev/null; then echo cache: full; else echo cache: empty; fi\"]\n",
        lock: [
            ("go.mod", "module example.org/x\n\ngo 1.24.0\n\nrequire rsc.io/sampler v1.3.0\n"),
            (
                "go.mod",
                "module example.org/x\n\ngo 1.24.0\n\nrequire (\n\trsc.io/quote/v3 v3.1.0\n\trsc.io/sampler v1.3.0\n)\n",
            ),
        ],
        // `# get https://…/rsc.io/sampler/@v/v1.3.0.zip: 200 OK (0.1s)`
        fetched: ".zip: 200",
        packages: ["rsc.io/sampler/@v/", "rsc.io/quote/v3/@v/"],
    });
}

#[test]
fn apt() {
    downloads_only_what_is_new(&Case {
        name: "apt",
        base: "debian:bookworm",
        // The lists are fetched anew each time: packages are what counts.
        dockerfile: "ARG BASE\nFROM ${BASE}\nCOPY packages /\n\
             RUN --mount=type=cache,target=/var/cache/apt,sharing=locked rm -f /etc/apt/apt.conf.d/docker-clean && \
             apt-get update -q && xargs apt-get install --yes --no-install-recommends -q < /packages\n\
             CMD [\"sh\", \"-c\", \"if ls /var/cache/apt/archives/*.deb 2>/dev/null; then echo cache: full; \
             else echo cache: empty; fi\"]\n",
        lock: [("packages", "hello\n"), ("packages", "hello\ntree\n")],
        // `Get:1 http://… bookworm/main amd64 hello amd64 2.10-3 [53.0 kB]`
        fetched: " amd64 ",
        packages: [" hello amd64", " tree amd64"],
    });
}
