//! Measures a store of many layers: opening it, finding a chain, its account, a collection of half of it.
//!
//! `cargo run --release -p lapstrake-store --example layers -- DIR [LAYERS [IMAGES]]`
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::time::Instant;

use lapstrake_oci::Digest;
use lapstrake_store::{CommitOptions, LayerFacts, Rule, Store, Table, chain_id};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let root = args.next().ok_or("give a directory for the store")?;
    let mut number = |default| args.next().map_or(Ok(default), |text| text.parse::<u32>());
    let (layers, images) = (number(200)?, number(5)?);
    let store = Store::open(&root)?;
    let start = Instant::now();
    for image in 0..images {
        let (mut parent, mut chain) = (None, None);
        for layer in 0..layers {
            let active = store.prepare(parent)?;
            std::fs::write(active.upper().join("file"), vec![1; 5000])?;
            let diff_id = Digest::of(format!("{image} {layer}").as_bytes());
            let id = chain_id(chain.as_ref(), &diff_id);
            let facts = LayerFacts { diff_id, chain_id: id, tar_bytes: 5000, blobs: Vec::new() };
            let key = active.id().to_string().into_bytes();
            parent = Some(store.commit(active, CommitOptions { layer: Some(facts), records: Vec::new() })?);
            store.put(Table::CACHE, diff_id.as_bytes(), &key)?;
            chain = Some(id);
        }
    }
    let all = layers * images;
    println!("{all} layers in chains of {layers}: {:?} each", start.elapsed() / all.max(1));
    let start = Instant::now();
    drop(store);
    println!("close: {:?}", start.elapsed());
    let start = Instant::now();
    let store = Store::open(&root)?;
    println!("open: {:?}", start.elapsed());
    let some: Vec<_> = store.snapshots();
    let start = Instant::now();
    for snapshot in &some {
        store.lowers_top_first(snapshot.id)?;
    }
    println!("directories of a chain: {:?}", start.elapsed() / all.max(1));
    for round in ["first", "again"] {
        let start = Instant::now();
        let total = store.usage()?.total_bytes();
        println!("account, {round}: {:?} ({total} bytes)", start.elapsed());
    }
    let total = store.usage()?.total_bytes();
    let start = Instant::now();
    let done = store.collect(&Rule::down_to(total / 2))?;
    println!("collection of {}: {:?}", done.removed.len(), start.elapsed());
    let index = std::fs::metadata(store.root().join("index.redb"))?.len();
    println!("index: {index} bytes");
    Ok(())
}
