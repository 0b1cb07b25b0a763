//! Measures what the store adds to a step: forty snapshots with a record each, then the flush.
//!
//! `cargo run --release -p lapstrake-store --example steps -- DIR`
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::Instant;

use lapstrake_store::{CommitOptions, Store, Table};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::env::args_os().nth(1).ok_or("give a directory for the store")?;
    let start = Instant::now();
    let store = Store::open(root)?;
    println!("open: {:?}", start.elapsed());
    let mut parent = None;
    let start = Instant::now();
    for step in 0u32..40 {
        let active = store.prepare(parent)?;
        std::fs::write(active.upper().join("file"), step.to_string())?;
        let id = store.commit(active, CommitOptions::default())?;
        store.put(Table::CACHE, &step.to_be_bytes(), id.to_string().as_bytes())?;
        parent = Some(id);
    }
    println!("a step: {:?}", start.elapsed() / 40);
    let start = Instant::now();
    store.flush()?;
    println!("flush: {:?}", start.elapsed());
    Ok(())
}
