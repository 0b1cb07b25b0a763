//! BuildKit's own clients on our daemon and on the real buildkitd: is it the same?
//!
//! `cargo test -p lapstrake-builder --test clients [-- NAME... --list --theirs]`. A case (`cases/*.txt`, read by `case.rs`)
//! is a few files and a script that calls `buildctl` or `buildx`; it is run once for each daemon, in a folder and a
//! repository of its own. All that it leaves in `$OUT`, what it pushed, whether it failed, and the line of the error are
//! compared (`facts.rs`). Each daemon has one state for all cases, as in daily use. Needs root, Go, Git and the package
//! registries; `--theirs` runs the cases with buildkitd alone, which tests the cases; `--facts`
//! prints then what is compared.
#![allow(clippy::print_stdout, reason = "a test program prints how its tests went")]

mod case;
mod facts;
mod image;
mod servers;
mod world;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Barrier, mpsc};
use std::time::{Duration, Instant};

use lapstrake_testkit::peer::{self, Peer};
use lapstrake_testkit::registry::{Options, Registry};

use crate::case::Case;
use crate::facts::Facts;
use crate::servers::Servers;
use crate::world::{Done, World};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// At most so many differences of a case are printed.
const SHOWN_MAX: usize = 25;
/// Names by which Dockerfiles call the base image.
const BASES: [(&str, &[&str]); 1] = [("busybox", &["latest", "1", "1.36"])];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let names: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    let cases = match case::all() {
        Ok(cases) => cases,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let all = cases.len();
    let chosen = |case: &Case| names.is_empty() || names.iter().any(|name| case.name.contains(name.as_str()));
    let cases: Vec<Case> = cases.into_iter().filter(chosen).collect();
    if has("--list") {
        cases.iter().for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    if cases.is_empty() {
        println!("\nrunning 0 tests\n\ntest result: ok. 0 passed; 0 failed");
        return ExitCode::SUCCESS;
    }
    match Suite::new(&cases, has("--theirs"), has("--facts")).and_then(|suite| suite.run(&cases, all)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What all cases share.
struct Suite {
    registry: Registry,
    ours: Option<World>,
    theirs: World,
    start: u64,
    shows: bool,
    _servers: Servers,
    _dir: lapstrake_testkit::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Suite {
    fn new(cases: &[Case], theirs_alone: bool, shows: bool) -> Result<Self> {
        let user = Command::new("id").arg("-u").output()?.stdout;
        if user.trim_ascii() != b"0" {
            return Err("this suite needs root: steps are namespaces and overlays".into());
        }
        // Overlays do not stack on every file system that /tmp may be; the paths of sockets must be short.
        // A short path: there are sockets deep in it.
        fs::create_dir_all(peer::cache())?;
        let dir = tempfile::Builder::new().prefix("cl-").tempdir_in(peer::cache())?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let registry = runtime.block_on(Registry::start(Options::default()))?;
        let layout = peer::base_image("busybox");
        for (name, tags) in BASES {
            for tag in tags {
                registry.put_layout(&format!("library/{name}"), tag, &layout)?;
            }
        }
        let host = registry.host();
        let servers = Servers::start(dir.path(), cases)?;
        let administrator = dir.path().join("provenance.d");
        provenance(&administrator)?;
        let config = format!(
            "insecure-entitlements = [\"network.host\", \"security.insecure\"]\n\
             provenanceEnvDir = \"{}\"\n\
             [registry.\"docker.io\"]\nmirrors = [\"{host}\"]\n[registry.\"{host}\"]\nhttp = true\n",
            administrator.display()
        );
        let world = |who: &'static str| -> Result<World> {
            let at = dir.path().join(who);
            let state = at.join("s");
            fs::create_dir_all(&state)?;
            let daemon = match who {
                "t" => Peer::start(&state, &config)?,
                _ => Peer::start_ours(&state, env!("CARGO_BIN_EXE_lapstrake-builder").as_ref(), &config)?,
            };
            World::new(who, at, daemon, &host, &servers, cases)
        };
        let ours = if theirs_alone { None } else { Some(world("o")?) };
        let theirs = world("t")?;
        let start = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        Ok(Self { registry, ours, theirs, start, shows, _servers: servers, _dir: dir, _runtime: runtime })
    }

    /// Runs and compares all; whether all are the same.
    fn run(&self, cases: &[Case], all: usize) -> Result<bool> {
        println!("\nrunning {} tests", cases.len());
        let began = Instant::now();
        let (mut failed, mut gaps, mut times) = (Vec::new(), Vec::new(), Vec::new());
        let meeting = Barrier::new(self.ours.iter().len() + 1);
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel();
            let worlds = self.ours.iter().chain([&self.theirs]);
            let meeting = &meeting;
            for world in worlds {
                let sender = sender.clone();
                scope.spawn(move || {
                    for (index, case) in cases.iter().enumerate() {
                        if case.meets {
                            meeting.wait();
                        }
                        sender.send((index, world.who, world.run(case))).ok(); // the receiver outlives us
                    }
                });
            }
            drop(sender);
            let mut half = std::collections::BTreeMap::new();
            for (index, who, done) in receiver {
                let mut both: Vec<_> = half.remove(&index).into_iter().collect();
                both.push((who, done));
                if self.ours.is_some() && both.len() < 2 {
                    half.insert(index, both.remove(0));
                    continue;
                }
                let case = &cases[index];
                let name = &case.name;
                both.sort_by_key(|(who, _)| *who);
                match (self.verdict(case, both), &case.gap) {
                    (Ok(_), Some(_)) if self.ours.is_some() => {
                        println!("test {name} ... FAILED\n  it is the same now: take its line \"gap\" away");
                        failed.push(name.clone());
                    }
                    (Err(error), Some(why)) if !error.to_string().starts_with("t:") => {
                        println!("test {name} ... not yet: {why}");
                        gaps.push(name.clone());
                    }
                    (Ok(took), _) => {
                        times.push((name.clone(), took.clone()));
                        println!("test {name} ... ok ({})", shown(&took));
                    }
                    (Err(error), _) => {
                        println!("test {name} ... FAILED\n  {}", error.to_string().replace('\n', "\n  "));
                        failed.push(name.clone());
                    }
                }
            }
        });
        table(&times);
        let word = if failed.is_empty() { "ok" } else { "FAILED" };
        println!("failed: {}", failed.join(" "));
        println!("not yet: {}", gaps.join(" "));
        println!(
            "\ntest result: {word}. {} passed; {} failed; {} ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
            times.len(),
            failed.len(),
            gaps.len(),
            all - cases.len(),
            began.elapsed().as_secs_f64()
        );
        Ok(failed.is_empty())
    }

    /// The times of both, where what they did is the same; ours first.
    fn verdict(&self, case: &Case, both: Vec<(&str, Result<Done>)>) -> Result<Vec<Duration>> {
        let mut times = Vec::new();
        let mut seen: Vec<Facts> = Vec::new();
        for (who, done) in both {
            let done = done.map_err(|error| format!("{who}: {error}"))?;
            if done.failed != case.fails {
                let wanted = if case.fails { "succeeded" } else { "failed" };
                let by = if who == "o" { "we" } else { "buildkitd" };
                return Err(format!("{by} {wanted}:\n{}", tail(&done.stderr)).into());
            }
            for fragment in &case.errors {
                if !done.stderr.contains(fragment) {
                    return Err(format!("{who}: no {fragment:?} in\n{}", tail(&done.stderr)).into());
                }
            }
            let mut facts = Facts::new(self.start, case.exact);
            facts.folder("", &done.out)?;
            facts.pushed(self.registry.storage(), &format!("{who}/{}", case.name))?;
            if case.fails && case.errors.is_empty() {
                facts.add("error", world::decisive(&done.stderr));
            }
            facts.unname(who);
            if !case.fails && facts.is_empty() {
                return Err(format!("{who}: the case leaves nothing that could be compared").into());
            }
            seen.push(facts);
            times.push(done.took);
        }
        let [ours, theirs] = &seen[..] else {
            if self.shows {
                seen.iter().for_each(Facts::print);
            }
            return Ok(times);
        };
        let mut found = ours.differences(theirs);
        found.retain(|line| !case.known.iter().any(|(known, _)| line.starts_with(known.as_str())));
        match found.len() {
            0 => Ok(times),
            count => {
                let shown = found.into_iter().take(SHOWN_MAX).collect::<Vec<_>>().join("\n");
                Err(format!("{count} differences (ours - theirs):\n{shown}").into())
            }
        }
    }
}

fn shown(times: &[Duration]) -> String {
    match times {
        [ours, theirs] => {
            format!("ours {:.2} s, buildkitd {:.2} s", ours.as_secs_f64(), theirs.as_secs_f64())
        }
        all => all.iter().map(|time| format!("{:.2} s", time.as_secs_f64())).collect(),
    }
}

/// Times of all cases, the slowest of ours first.
fn table(times: &[(String, Vec<Duration>)]) {
    let mut rows: Vec<_> = times.iter().collect();
    rows.sort_by(|a, b| b.1.cmp(&a.1));
    let mut sums = [Duration::ZERO; 2];
    println!("\n| case | ours s | buildkitd s |\n| --- | --- | --- |");
    for (name, times) in rows {
        if let [ours, theirs] = times[..] {
            sums = [sums[0] + ours, sums[1] + theirs];
            println!("| {name} | {:.2} | {:.2} |", ours.as_secs_f64(), theirs.as_secs_f64());
        }
    }
    println!("| all | {:.1} | {:.1} |", sums[0].as_secs_f64(), sums[1].as_secs_f64());
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

/// What the administrators of both daemons say in all provenance.
fn provenance(dir: &Path) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("a.json"), r#"{"cluster": {"name": "north", "nodes": [1, 2]}, "ours": "first"}"#)?;
    fs::write(dir.join("b.json"), r#"{"ours": "second"}"#)?;
    fs::write(dir.join("c.txt"), "nothing of this")
}
