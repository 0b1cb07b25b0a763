//! Runs that start by themselves.

use std::fs;

use anyhow::Context;
use lapstrake_crds::ImageBuild;
use lapstrake_e2e::{Manifest, Server, run};
use serde_json::json;

fn why(build: &ImageBuild) -> &str {
    build.status.as_ref().and_then(|status| status.why).map_or("", |why| why.as_str())
}

#[test]
fn a_commit_starts_a_run_that_builds_it_and_says_what_moved() {
    run("follow", async |test| {
        let server = Server::start(test.cluster).await?;
        let files = tempfile::tempdir()?;
        let dockerfile = files.path().join("Dockerfile");
        fs::write(&dockerfile, "ARG BASE\nFROM ${BASE}\nCMD [\"echo\", \"first\"]\n")?;
        let (url, first) = server.repository("web", files.path())?;
        let manifest = Manifest::git("web", &url, &test.image("web"))
            .arg("BASE", &test.base("busybox:1"))
            .set("/spec/follow", json!({ "source": true, "interval": "5s" }));
        let status = test.build(&manifest).await?.status.context("a status")?;
        assert_eq!(status.source.map(|source| source.revision), Some(first.clone()));

        fs::write(&dockerfile, "ARG BASE\nFROM ${BASE}\nCMD [\"echo\", \"second\"]\n")?;
        let (_, second) = server.repository("web", files.path())?;
        let moved = test
            .until("web", "built again by itself", |build| {
                let source = build.status.as_ref().and_then(|status| status.source.as_ref());
                source.is_some_and(|source| source.revision == second)
            })
            .await?;
        assert_eq!(why(&moved), "SourceChanged");
        let status = moved.status.context("a status")?;
        let change = status.change.context("what moved")?;
        assert_eq!((change.from.as_deref(), change.to.as_str()), (Some(first.as_str()), second.as_str()));
        assert_eq!(status.history.len(), 2, "one run for each commit: {:?}", status.history);
        let printed = test.run_image("second", &status.image.context("an image")?).await?;
        assert_eq!(printed.trim(), "second");
        Ok(())
    });
}

#[test]
fn a_base_image_starts_a_run_of_what_is_built_upon_it() {
    run("follow-base", async |test| {
        let base = test.manifest("base", "ARG BASE\nFROM ${BASE}\nRUN echo 1 > /version\n");
        let below = test.build(&base).await?.status.context("a status")?;
        let name = test.image("base");
        let upper = Manifest::inline(
            "upper",
            "ARG BASE\nFROM ${BASE}\nCMD [\"cat\", \"/version\"]\n",
            &test.image("upper"),
        )
        .arg("BASE", &name)
        .set("/spec/follow", json!({ "baseImages": true, "interval": "5s" }));
        test.build(&upper).await?;
        test.apply(&test.manifest("base", "ARG BASE\nFROM ${BASE}\nRUN echo 2 > /version\n")).await?;
        let moved = test.until("upper", "built again by itself", |build| {
            why(build) == "BaseImageChanged" && lapstrake_e2e::ready(build)
        });
        let status = moved.await?.status.context("a status")?;
        let change = status.change.context("what moved")?;
        assert_eq!(change.from, below.digest);
        let printed = test.run_image("two", &status.image.context("an image")?).await?;
        assert_eq!(printed.trim(), "2");
        Ok(())
    });
}
