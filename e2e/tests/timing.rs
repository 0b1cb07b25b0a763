//! What runs, what does not, and at the same time as what.
//!
//! Times are printed; what is asserted is only what another order of things would break by a lot.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use lapstrake_crds::{ImageBuild, PlatformStatus, Timings, Why, annotation};
use lapstrake_e2e::{ready, run};

/// One at a time: these look at how long things take.
static ALONE: Mutex<()> = Mutex::new(());

fn platform(build: &ImageBuild) -> Result<PlatformStatus> {
    build.status.as_ref().and_then(|status| status.platforms.first()).cloned().context("a platform")
}

fn in_builder_milliseconds(timings: &Timings) -> i64 {
    [timings.source_milliseconds, timings.solve_milliseconds, timings.push_milliseconds]
        .into_iter()
        .flatten()
        .sum()
}

/// Two stages that sleep, and one that nothing needs.
const SEED: &str = "\
ARG BASE
FROM ${BASE} AS one
RUN sleep 5 && echo one > /result
FROM ${BASE} AS two
RUN sleep 5 && echo two > /result
FROM ${BASE} AS unused
RUN echo the-unused-stage-runs && sleep 60
FROM ${BASE}
COPY --from=one /result /one
COPY --from=two /result /two
CMD [\"cat\", \"/one\", \"/two\"]
";

#[test]
fn stages_that_do_not_need_each_other_run_at_the_same_time_and_an_unused_one_never() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    run("seed", async |test| {
        let build = test.build(&test.manifest("seed", SEED)).await?;
        let seen = platform(&build)?;
        let timings = seen.timings.context("timings")?;
        let solve = timings.solve_milliseconds.context("a time of the solve")?;
        println!("two stages of sleep 5: {solve} ms; {timings:?}");
        assert!((5000..9500).contains(&solve), "one after the other it would be more than 10 s: {solve} ms");
        let log = test.log(&build).await?;
        assert!(!log.contains("the-unused-stage-runs") && !log.contains("[unused"), "{log}");
        let printed =
            test.run_image("image", &build.status.and_then(|s| s.image).unwrap_or_default()).await?;
        assert_eq!(printed, "one\ntwo\n");
        Ok(())
    });
}

#[test]
fn a_rebuild_by_annotation_runs_nothing_and_gives_the_same_image() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    run("rebuild", async |test| {
        let dockerfile = "ARG BASE\nFROM ${BASE}\nRUN sleep 5\nRUN date > /now\nCOPY . /src\n";
        let manifest = test.manifest("rebuild", dockerfile);
        let first = test.build(&manifest).await?;
        let ran = platform(&first)?;
        assert_eq!(ran.cached_steps, Some(0), "nothing was there to begin with");

        test.annotate("rebuild", annotation::REBUILD, "please").await?;
        let second = test
            .until("rebuild", "built again", |build| {
                let handled = build.status.as_ref().and_then(|status| status.last_handled_rebuild.as_deref());
                handled == Some("please") && ready(build)
            })
            .await?;
        let again = platform(&second)?;
        let (one, two) = (first.status.unwrap_or_default(), second.status.unwrap_or_default());
        assert_ne!(again.pod, ran.pod, "in a new pod");
        assert_eq!(two.why, Some(Why::Requested));
        assert_eq!((again.steps, again.cached_steps), (ran.steps, ran.steps), "nothing runs");
        assert_eq!(two.digest, one.digest, "the same image");
        let timings = again.timings.context("timings")?;
        let took = in_builder_milliseconds(&timings);
        println!("rebuild of an unchanged source: {took} ms in the pod; {timings:?}");
        assert!(took < 5000, "the step that sleeps 5 s alone takes longer: {timings:?}");
        assert_eq!(two.history.len(), 2, "{:?}", two.history);
        Ok(())
    });
}

#[test]
fn fluxs_annotations_are_echoed_and_start_a_run_that_finds_everything_in_the_cache() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    run("flux", async |test| {
        let manifest = test.manifest("flux", "ARG BASE\nFROM ${BASE}\nRUN true\n");
        let first = test.build(&manifest).await?.status.unwrap_or_default();
        test.annotate("flux", annotation::RECONCILE_REQUESTED_AT, "one").await?;
        let looked = test
            .until("flux", "looked at again", |build| {
                let status = build.status.as_ref();
                status.is_some_and(|s| s.last_handled_reconcile_at.as_deref() == Some("one")) && ready(build)
            })
            .await?
            .status
            .unwrap_or_default();
        // Whether anything moved is found out by a run; here nothing did.
        let platform = looked.platforms.first().context("a platform")?;
        assert_eq!(platform.steps, platform.cached_steps);
        assert_eq!(looked.digest, first.digest);
        // Without its twin, `forceAt` asks for nothing.
        assert_eq!(looked.last_handled_force_at, None);
        let both = serde_json::json!({ "metadata": { "annotations": {
            annotation::RECONCILE_REQUESTED_AT: "two",
            annotation::RECONCILE_FORCE_AT: "two",
        }}});
        test.patch("flux", both).await?;
        let forced = test
            .until("flux", "built by force", |build| {
                let status = build.status.as_ref();
                status.is_some_and(|s| s.last_handled_force_at.as_deref() == Some("two")) && ready(build)
            })
            .await?
            .status
            .unwrap_or_default();
        assert_eq!(forced.last_handled_reconcile_at.as_deref(), Some("two"));
        assert_ne!(forced.run.map(|run| run.id), looked.run.map(|run| run.id));
        assert_eq!(forced.digest, first.digest);
        Ok(())
    });
}

#[test]
fn the_same_spec_is_never_built_again_by_itself() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    run("once", async |test| {
        let manifest = test.manifest("once", "ARG BASE\nFROM ${BASE}\nRUN true\n");
        let pods = lapstrake_e2e::BuilderPods::watch(test.pods.clone());
        let first = test.build(&manifest).await?;
        // Applied again unchanged, and touched where it does not matter.
        test.apply(&manifest).await?;
        test.annotate("once", "example.org/note", "of no matter").await?;
        test.patch("once", serde_json::json!({ "spec": { "history": { "limit": 3 } } })).await?;
        let generation = first.metadata.generation.map(|generation| generation + 1);
        let seen = test
            .until("once", "seen in its new generation", |build| {
                build.status.as_ref().and_then(|status| status.observed_generation) == generation
                    && ready(build)
            })
            .await?;
        let run_of = |build: &ImageBuild| build.status.as_ref().and_then(|s| s.run.clone()).map(|run| run.id);
        assert_eq!(run_of(&seen), run_of(&first));
        assert_eq!(pods.names().len(), 1, "{:?}", pods.names());
        Ok(())
    });
}
