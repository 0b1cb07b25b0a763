//! Measures what a collection costs the steps that run beside it: snapshots made and written with nothing else going
//! on, and while another thread removes what is old.
//!
//! `cargo run --release -p lapstrake-store --example collect -- DIR`
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lapstrake_store::{CommitOptions, Result, Rule, SnapshotId, Store};

/// Snapshots that are there to be removed, with this many files each.
const OLD: usize = 600;
const FILES: usize = 20;
/// Steps that are measured.
const STEPS: usize = 200;

fn snapshot(store: &Store, parent: Option<SnapshotId>) -> Result<SnapshotId> {
    let active = store.prepare(parent)?;
    for file in 0..FILES {
        // What can't be written fails the commit as well.
        std::fs::write(active.upper().join(file.to_string()), vec![1; 8192]).ok();
    }
    store.commit(active, CommitOptions::default())
}

/// Median and slowest of a hundred.
fn steps(store: &Store) -> Result<(Duration, Duration)> {
    let _job = store.job();
    let (mut times, mut parent) = (Vec::new(), None);
    for step in 0..STEPS {
        let start = Instant::now();
        parent = Some(snapshot(store, parent.filter(|_| step % 20 != 0))?);
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok((times[STEPS / 2], times[STEPS * 99 / 100]))
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let store = Store::open(std::env::args_os().nth(1).ok_or("give a directory for the store")?)?;
    for round in 0..3 {
        let quiet = steps(&store)?;
        for _ in 0..OLD {
            snapshot(&store, None)?;
        }
        store.flush()?;
        let ended = AtomicBool::new(false);
        let (busy, removed) = std::thread::scope(|scope| {
            let collector = scope.spawn(|| {
                let mut removed = 0;
                while !ended.load(Ordering::SeqCst) {
                    removed += store.collect(&Rule::down_to(0)).map_or(0, |done| done.removed.len());
                }
                removed
            });
            let busy = steps(&store);
            ended.store(true, Ordering::SeqCst);
            (busy, collector.join().unwrap_or(0))
        });
        println!("round {round}: alone {quiet:?}, beside the removal of {removed}: {:?}", busy?);
    }
    Ok(())
}
