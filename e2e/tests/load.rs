//! Many builds at once.

use std::time::Instant;

use lapstrake_e2e::{BuilderPods, run};

/// How many; the node has room for a part of them at a time.
const COUNT: usize = 50;

#[test]
fn fifty_builds_at_once_all_end_ready_and_each_is_built_once() {
    run("load", async |test| {
        let pods = BuilderPods::watch(test.pods.clone());
        let started = Instant::now();
        for number in 0..COUNT {
            let dockerfile = format!("ARG BASE\nFROM ${{BASE}}\nRUN echo {number} > /number\n");
            test.apply(&test.manifest(&format!("build-{number}"), &dockerfile)).await?;
        }
        let applied = started.elapsed();
        let mut digests = std::collections::BTreeSet::new();
        for number in 0..COUNT {
            let status = test.ready(&format!("build-{number}")).await?.status.unwrap_or_default();
            digests.extend(status.digest);
        }
        println!("{COUNT} builds applied in {applied:.1?}, all ready in {:.1?}", started.elapsed());
        assert_eq!(digests.len(), COUNT, "each has an image of its own");
        assert_eq!(pods.names().len(), COUNT, "each was built once");
        Ok(())
    });
}
