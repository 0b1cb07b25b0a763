//! The daemons side by side: the same client, `buildctl`, asks ours and `buildkitd`, in turns.
//!
//! Both are started with one configuration and an empty state, and keep it over all rows as a daemon in daily use does. In each
//! row each of them does the same, first one, then the other, and the one that began begins last the next time.
//! `BENCH_ROWS="steps40 fan16"` measures those alone. Needs no cluster, but the programs that ours brings along.

mod contexts;
mod daemon;
mod rows;

use std::env;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::contexts::Contexts;
use self::daemon::{Daemon, Registry};
use super::{Times, load, milliseconds};
use crate::cluster::cache;
use crate::images;

/// The time that something took, and what else there is to say of it.
type Measured = Result<(Duration, Option<String>)>;

/// What a row measures.
struct Row {
    name: &'static str,
    /// How often each daemon does it.
    runs: usize,
    /// Does it once, and says what else there is to say of it.
    measure: fn(&Daemon, &Contexts, usize) -> Measured,
}

/// Measures all rows, or those that are named, and prints the table of docs/benchmarks.md.
pub(super) fn serve(root: &Path) -> Result<()> {
    let wanted = env::var("BENCH_ROWS").unwrap_or_default();
    let wanted: Vec<&str> = wanted.split_whitespace().collect();
    if let Some(unknown) = wanted.iter().find(|name| !rows::ALL.iter().any(|row| row.name == **name)) {
        bail!("no row is called {unknown}");
    }
    let programs = match env::var_os("LAPSTRAKE_PROGRAMS") {
        Some(folder) => folder.into(),
        None => images::programs(root)?,
    };
    // A short path: sockets lie below it.
    let scratch = cache().join(format!("bs-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    let measured = measure(root, &programs, &scratch, |name| wanted.is_empty() || wanted.contains(&name));
    fs::remove_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    measured
}

fn measure(root: &Path, programs: &Path, scratch: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let registry = Registry::start(root, scratch)?;
    let contexts = Contexts::make(root, programs, scratch, &registry)?;
    let ours = Daemon::ours(programs, scratch, &registry)?;
    let theirs = Daemon::theirs(root, scratch, &registry)?;
    println!("peer: {}", theirs.version()?);
    println!("| what | Lapstrake | BuildKit | times as fast | of a processor's time | load |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for row in rows::ALL.iter().filter(|row| wanted(row.name)) {
        let mut times: [Times; 2] = Default::default();
        let mut processor: [Times; 2] = Default::default();
        let mut notes: [Option<String>; 2] = Default::default();
        for run in 0..row.runs {
            let mut turns = [(0, &ours), (1, &theirs)];
            if run % 2 == 1 {
                turns.reverse();
            }
            for (at, daemon) in turns {
                let before = daemon.processor()?;
                let (took, note) = (row.measure)(daemon, &contexts, run)
                    .with_context(|| format!("{} of {}", row.name, daemon.name()))?;
                times[at].0.push(took);
                processor[at].0.push(daemon.processor()?.saturating_sub(before));
                notes[at] = note.or(notes[at].take());
            }
        }
        let shown = |at: usize| match &notes[at] {
            Some(note) => format!("{}; {note}", cell(&times[at])),
            None => cell(&times[at]),
        };
        let ratio = super::ratio(times[0].median(), times[1].median());
        // What does not depend on who else wants a core. Of a row that prepares something, that is in it.
        let [a, b] = processor.each_ref().map(Times::median);
        let processor = format!("{:.2} s, {:.2} s: {}", a.as_secs_f64(), b.as_secs_f64(), super::ratio(a, b));
        println!("| {} | {} | {} | **{ratio}** | {processor} | {} |", row.name, shown(0), shown(1), load());
    }
    println!("| memory after it all | {} | {} | | | |", ours.memory()?, theirs.memory()?);
    Ok(())
}

/// The median with the fastest and the slowest, in seconds where there are many.
fn cell(times: &Times) -> String {
    let sorted = times.sorted();
    let (Some(first), Some(last)) = (sorted.first(), sorted.last()) else { return String::new() };
    match milliseconds(&times.median()) {
        median if median < 1000.0 => {
            format!("{median:.0} ms ({:.0} - {:.0})", milliseconds(first), milliseconds(last))
        }
        median => {
            format!("{:.2} s ({:.2} - {:.2})", median / 1000.0, first.as_secs_f64(), last.as_secs_f64())
        }
    }
}
