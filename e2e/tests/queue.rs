//! Limits and fairness: three namespaces, one of which floods.
//!
//! The operator is started anew with a limit, and without it at the end: nothing else may run meanwhile.

use anyhow::{Context, Result};
use jiff::Timestamp;
use lapstrake_crds::ImageBuild;
use lapstrake_e2e::{AsItWas, RELEASE, SYSTEM_NAMESPACE, Test, install, run};
use serde_json::json;

const FLOOD: usize = 12;
const CALM: usize = 2;
const LIMIT: usize = 2;

/// When a build was admitted, and when its run ended.
fn span(build: &ImageBuild) -> Result<(Timestamp, Timestamp)> {
    let status = build.status.as_ref().context("a status")?;
    let queue = status.run.as_ref().and_then(|run| run.queue.as_ref()).context("a place in the queue")?;
    let admitted = queue.admitted.as_ref().context("an admission")?;
    Ok((admitted.0, status.completion_time.as_ref().context("an end")?.0))
}

async fn floods(flood: &Test, calm: &[&Test]) -> Result<()> {
    let as_it_was = AsItWas::remember(flood)?;
    let mut limited = as_it_was.values.clone();
    limited["queue"] = json!({ "cluster": LIMIT });
    install(flood, RELEASE, SYSTEM_NAMESPACE, &limited)?;
    let dockerfile = "ARG BASE\nFROM ${BASE}\nRUN sleep 2\n";
    for number in 0..FLOOD {
        flood.apply(&flood.manifest(&format!("flood-{number}"), dockerfile).without_cache()).await?;
    }
    // Those of one second are admitted in an order of the operator's choice, and some may have ended already.
    let is_known = |build: &ImageBuild| {
        let run = build.status.as_ref().and_then(|status| status.run.as_ref());
        run.is_some_and(|run| run.queue.is_some())
    };
    for number in 0..FLOOD {
        flood.until(&format!("flood-{number}"), "in the queue", is_known).await?;
    }
    for (test, number) in calm.iter().flat_map(|test| (0..CALM).map(move |number| (test, number))) {
        test.apply(&test.manifest(&format!("calm-{number}"), dockerfile).without_cache()).await?;
    }
    let mut spans = Vec::new();
    let mut of_flood = Vec::new();
    for number in 0..FLOOD {
        let span = span(&flood.ready(&format!("flood-{number}")).await?)?;
        of_flood.push(span);
        spans.push(span);
    }
    let mut of_calm = Vec::new();
    for (test, number) in calm.iter().flat_map(|test| (0..CALM).map(move |number| (test, number))) {
        let span = span(&test.ready(&format!("calm-{number}")).await?)?;
        of_calm.push(span);
        spans.push(span);
    }
    for (admitted, _) in &spans {
        // An end in status has whole seconds: what ended in the same second may have been before.
        let second = Timestamp::from_second(admitted.as_second())?;
        let at_once = spans.iter().filter(|(from, to)| from <= admitted && *to > second).count();
        assert!(at_once <= LIMIT, "{at_once} ran at {admitted}: {spans:#?}");
    }
    let calm_was_served = of_calm.iter().map(|(admitted, _)| *admitted).max().context("a calm one")?;
    let after = of_flood.iter().filter(|(admitted, _)| *admitted > calm_was_served).count();
    assert!(after > 0, "the calm namespaces waited for the whole flood: {spans:#?}");
    let mut order: Vec<Timestamp> = of_flood.iter().map(|(admitted, _)| *admitted).collect();
    order.sort();
    assert_eq!(order.len(), FLOOD);
    Ok(())
}

#[test]
fn a_namespace_that_floods_does_not_hold_up_the_others() {
    run("flood", async |flood| {
        let one = flood.beside("calm-a").await?;
        let two = flood.beside("calm-b").await?;
        let result = floods(flood, &[&one, &two]).await;
        for test in [one, two] {
            test.close().await?;
        }
        result
    });
}
