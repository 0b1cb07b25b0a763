//! Measures how fast a layer is packed, against one core of the `gzip` program.
//!
//! `cargo run --release -p lapstrake-image --example gzip -- FILE` (a tar of some 200 MiB; without FILE,
//! made-up text). Also measures unpacking it, as root.
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::io::{self, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use lapstrake_image::compress::{Compressor, Kind};
use lapstrake_image::{ApplyOptions, apply_layer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let data = match std::env::args_os().nth(1) {
        Some(path) => std::fs::read(path)?,
        None => text(200 << 20),
    };
    println!("{} MiB, {} cores", data.len() >> 20, threads());
    let report = |name: &str, seconds: f64, packed: usize| {
        let speed = data.len() as f64 / 1e6 / seconds;
        println!("{name:32} {seconds:6.2} s {speed:7.1} MB/s {:7.1} MB", packed as f64 / 1e6);
    };
    for (name, kind, level, threads) in [
        ("gzip -6, 1 thread", Kind::Gzip, 6, 1),
        ("gzip -6, all threads", Kind::Gzip, 6, threads()),
        ("gzip -1, all threads", Kind::Gzip, 1, threads()),
        ("zstd -3, all threads", Kind::Zstd, 3, threads()),
    ] {
        let start = Instant::now();
        let mut compressor = Compressor::new(Vec::new(), kind, Some(level), threads);
        for piece in data.chunks(128 << 10) {
            compressor.write_all(piece)?;
        }
        let made = compressor.finish()?;
        report(name, start.elapsed().as_secs_f64(), made.out.len());
        if level == 6 && threads > 1 {
            unpack(&made.out)?;
        }
    }
    match Command::new("gzip").args(["-6", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() {
        Err(e) => println!("gzip program: {e}"),
        Ok(mut child) => {
            let start = Instant::now();
            let (mut input, mut output) = (child.stdin.take(), child.stdout.take());
            let packed = std::thread::scope(|scope| {
                let reader = scope.spawn(move || output.as_mut().map(|o| io::copy(o, &mut io::sink())));
                let written = input.as_mut().map(|i| i.write_all(&data));
                drop(input.take());
                (written, reader.join())
            });
            child.wait()?;
            let size = packed.1.ok().flatten().transpose()?.unwrap_or(0);
            report("the gzip program -6", start.elapsed().as_secs_f64(), usize::try_from(size)?);
        }
    }
    Ok(())
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Unpacks the layer, where that is possible here.
fn unpack(blob: &[u8]) -> io::Result<()> {
    let upper = std::env::temp_dir().join(format!("lapstrake-gzip-example-{}", std::process::id()));
    std::fs::create_dir(&upper)?;
    let start = Instant::now();
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    match apply_layer(blob, media_type, &upper, &ApplyOptions { userxattr: true, ..Default::default() }) {
        Ok(applied) => println!(
            "{:32} {:6.2} s, {} entries",
            "unpacked into a directory",
            start.elapsed().as_secs_f64(),
            applied.entries
        ),
        Err(e) => println!("not unpacked: {e}"),
    }
    std::fs::remove_dir_all(&upper)
}

fn text(length: usize) -> Vec<u8> {
    let mut state = 7u64;
    let mut out = Vec::with_capacity(length + 16);
    while out.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        out.extend_from_slice(format!("word{} ", (state >> 33) % 50_000).as_bytes());
    }
    out.truncate(length);
    out
}
