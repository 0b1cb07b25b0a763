//! What `docs/benchmarks.md` reports, measured: `make bench`, or `make bench BENCH="steps rebuild"`.
//!
//! Each figure is the median of several runs, with the fastest and the slowest beside it, and the load of
//! the machine at that moment. Nothing here passes or fails: a figure is compared by people.

mod apply;
mod emulation;
mod engine;
mod frontend;
mod memory;
mod mounts;
mod peer;
mod requests;
mod serve;
mod share;
mod timeline;

use std::env;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cluster::{Cluster, cache};
use crate::process::{output, run as run_command};
use crate::{images, install};

/// What can be measured, in the order in which it is.
const NAMES: [&str; 12] = [
    "frontend",
    "serve",
    "steps",
    "mounts",
    "rebuild",
    "share",
    "emulation",
    "gzip",
    "apply",
    "seed",
    "requests",
    "memory",
];

/// What every measurement works with.
#[derive(Debug)]
struct Bench<'a> {
    root: &'a Path,
    cluster: Cluster,
    /// Where the release binaries are.
    programs: PathBuf,
    /// Folder of our own, removed at the end.
    scratch: PathBuf,
}

/// Measures what is named, or all.
pub(crate) fn run(root: &Path, names: &[String]) -> Result<()> {
    let mut names = chosen(names)?;
    // These need no cluster.
    for (name, measure) in
        [("frontend", frontend::frontend as fn(&Path) -> Result<()>), ("serve", serve::serve)]
    {
        if names.first() == Some(&name) {
            println!("\n== {} (load {})", names.remove(0), load());
            measure(root)?;
            if names.is_empty() {
                return Ok(());
            }
        }
    }
    let cluster = Cluster::connect(root)?;
    // Other binaries than those of the tree, to compare two versions.
    let programs = match env::var_os("LAPSTRAKE_PROGRAMS") {
        Some(folder) => PathBuf::from(folder),
        None => images::programs(root)?,
    };
    let needs_operator = names.iter().any(|name| ["apply", "seed", "requests", "memory"].contains(name));
    if needs_operator && env::var_os("LAPSTRAKE_INSTALLED").is_none() {
        install::install(root, &cluster, &images::make(root, &cluster)?)?;
    }
    let scratch = cache().join(format!("bench-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    let bench = Bench { root, cluster, programs, scratch };
    bench.print_machine()?;
    let measured = names.iter().try_for_each(|name| {
        println!("\n== {name} (load {})", load());
        match *name {
            "steps" => engine::steps(&bench),
            "mounts" => mounts::mounts(&bench),
            "rebuild" => engine::rebuild(&bench),
            "emulation" => emulation::emulation(&bench),
            "share" => share::share(&bench),
            "gzip" => bench.gzip(),
            "apply" => apply::apply(&bench),
            "seed" => apply::seed(&bench),
            "requests" => requests::requests(&bench),
            _ => memory::memory(&bench),
        }
    });
    fs::remove_dir_all(&bench.scratch).with_context(|| bench.scratch.display().to_string())?;
    measured
}

/// The names from the command line, or those of `BENCH`, or all.
fn chosen(names: &[String]) -> Result<Vec<&'static str>> {
    let from_make = env::var("BENCH").unwrap_or_default();
    let mut wanted: Vec<&str> = names.iter().map(String::as_str).collect();
    if wanted.is_empty() {
        wanted = from_make.split_whitespace().collect();
    }
    if let Some(unknown) = wanted.iter().find(|name| !NAMES.contains(name)) {
        bail!("no benchmark is called {unknown}: there are {}", NAMES.join(", "));
    }
    Ok(NAMES.into_iter().filter(|name| wanted.is_empty() || wanted.contains(name)).collect())
}

impl Bench<'_> {
    /// One of our release binaries.
    fn program(&self, name: &str) -> Command {
        Command::new(self.programs.join(format!("lapstrake-{name}")))
    }

    /// A fresh folder.
    fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.scratch.join(name);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(folder)
    }

    fn print_machine(&self) -> Result<()> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let kernel = read("/proc/sys/kernel/osrelease")?;
        let memory = read("/proc/meminfo")?;
        let memory = memory.lines().next().unwrap_or_default().trim_start_matches("MemTotal:").trim();
        let mut findmnt = Command::new("findmnt");
        let disk = output(findmnt.args(["-n", "-o", "FSTYPE", "-T"]).arg(&self.scratch))?;
        let date = output(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))?;
        println!(
            "{}: {cores} cores, {memory}, kernel {}, {}, load {}",
            date.trim(),
            kernel.trim(),
            disk.trim(),
            load()
        );
        Ok(())
    }

    /// A layer of 200 MiB, packed by us and by the `gzip` program.
    fn gzip(&self) -> Result<()> {
        let layer = self.scratch.join("layer.tar");
        let go = output(Command::new("go").args(["env", "GOROOT"]))?;
        // Programs, archives and text, about as an image of a language has them.
        run_command(Command::new("tar").args(["-C", go.trim(), "-cf"]).arg(&layer).arg("."))?;
        println!("a tar of the Go toolchain");
        let mut example = Command::new("cargo");
        example.args([
            "run",
            "--locked",
            "--quiet",
            "--release",
            "-p",
            "lapstrake-image",
            "--example",
            "gzip",
        ]);
        example.arg("--").arg(&layer).current_dir(self.root);
        for _ in 0..3 {
            run_command(&mut example)?;
        }
        Ok(())
    }
}

/// Times of several runs.
#[derive(Clone, Debug, Default)]
struct Times(Vec<Duration>);

impl Times {
    fn sorted(&self) -> Vec<Duration> {
        let mut times = self.0.clone();
        times.sort();
        times
    }

    fn median(&self) -> Duration {
        let times = self.sorted();
        times.get(times.len() / 2).copied().unwrap_or_default()
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = self.sorted();
        let at = |n: usize| times.get(n).map_or(0.0, milliseconds);
        let last = times.len().saturating_sub(1);
        let median = milliseconds(&self.median());
        write!(f, "{median:8.1} ms  ({:.1} - {:.1}, {} runs)", at(0), at(last), times.len())
    }
}

fn milliseconds(time: &Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// How often `ours` goes into `theirs`.
fn ratio(ours: Duration, theirs: Duration) -> String {
    format!("{:.1}", theirs.as_secs_f64() / ours.as_secs_f64().max(f64::EPSILON))
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| path.to_owned())
}

/// Load of the last minute.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_is_the_median_and_shows_the_spread() {
        let times = Times([30, 10, 50, 20, 40].map(Duration::from_millis).to_vec());
        assert_eq!(times.median(), Duration::from_millis(30));
        assert_eq!(times.to_string(), "    30.0 ms  (10.0 - 50.0, 5 runs)");
        assert_eq!(Times::default().to_string(), "     0.0 ms  (0.0 - 0.0, 0 runs)");
    }

    #[test]
    fn an_unknown_benchmark_is_refused_with_those_there_are() {
        let error = chosen(&["stpes".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("stpes") && error.contains(&NAMES.join(", ")), "{error}");
        assert_eq!(chosen(&["gzip".to_owned(), "steps".to_owned()]).unwrap(), ["steps", "gzip"]);
    }
}
