//! A cache in a registry: what one pod built from an empty state, no other runs again from an empty state.

use anyhow::{Context, Result};
use lapstrake_crds::{ImageBuild, PlatformStatus};
use lapstrake_e2e::{Manifest, Test, example, run};
use serde_json::json;

fn platform(build: &ImageBuild) -> Result<&PlatformStatus> {
    build.status.as_ref().and_then(|status| status.platforms.first()).context("a platform")
}

/// Builds the same under two names with empty states: the second finds it all.
async fn again(test: &Test, first: &Manifest, second: &Manifest) -> Result<[ImageBuild; 2]> {
    let one = test.build(first).await?;
    assert_eq!(platform(&one)?.cached_steps, Some(0), "the first finds nothing");
    let two = test.build(second).await?;
    let (made, found) = (platform(&one)?, platform(&two)?);
    assert_ne!(made.pod, found.pod, "another pod");
    assert!(found.steps.is_some_and(|steps| steps > 0));
    assert_eq!(found.cached_steps, found.steps, "nothing runs:\n{}", test.log(&two).await?);
    Ok([one, two])
}

#[test]
fn another_pod_with_an_empty_state_runs_nothing() {
    run("registry-cache", async |test| {
        let image = test.image("registry-cache");
        let build = |name: &str| {
            let manifest = example(test.cluster, "registry-cache", &image)?;
            anyhow::Ok(manifest.set("/metadata/name", name))
        };
        let [one, two] = again(test, &build("one")?, &build("two")?).await?;
        let digest = |build: &ImageBuild| build.status.as_ref().and_then(|status| status.digest.clone());
        assert_eq!(digest(&one), digest(&two), "the same image");
        // Of a changed step only that one runs, and what stands on it.
        let changed = build("three")?.arg("UNUSED", "x").set(
            "/spec/dockerfile/inline",
            "ARG BASE\nFROM ${BASE} AS tide\n\
             RUN echo \"The tide table was computed on $(date -u +%F).\" > /table\n\n\
             FROM ${BASE}\nCOPY --from=tide /table /table\nRUN sed 's/^/Port: /' /table > /notice\n",
        );
        let three = test.build(&changed).await?;
        let found = platform(&three)?;
        assert_eq!(found.steps.zip(found.cached_steps).map(|(all, cached)| all - cached), Some(1));
        Ok(())
    });
}

#[test]
fn an_image_that_carries_its_cache_is_one() {
    run("inline-cache", async |test| {
        let build = |name: &str| {
            test.manifest(
                name,
                "ARG BASE\nFROM ${BASE}\nRUN date +%s%N > /made\nRUN cp /made /copied\nCMD cat /copied\n",
            )
            .set("/spec/output/image", test.image("web"))
            .set("/spec/output/tags", json!(["latest"]))
            .set(
                "/spec/cache",
                json!({ "emptyDir": {}, "registry": {
                        "from": [{ "image": format!("{}:latest", test.image("web")) }], "inline": true,
                    } }),
            )
        };
        let mut printed = Vec::new();
        for (number, build) in again(test, &build("one"), &build("two")).await?.iter().enumerate() {
            let image = build.status.as_ref().and_then(|status| status.image.clone()).context("an image")?;
            printed.push(test.run_image(&format!("image-{number}"), &image).await?);
        }
        assert_eq!(printed[0], printed[1], "the steps' own work");
        Ok(())
    });
}
