//! The same sources built by us and by the real buildkitd: is it the same image?
//!
//! `cargo test -p lapstrake-builder --test interop [-- NAME...]`. Each case (`cases.rs`) is built by both from one folder
//! and one registry of base images; what they pushed is compared (`compare.rs`): config with history, and of each file
//! kind, mode, owner, attributes, content and time. Each builder has a thread of its own and one state for all cases, so
//! that cache mounts and base images are shared as in daily use. Needs root, Go, and the package registries.
#![allow(clippy::print_stdout, reason = "a test program prints how its tests went")]

mod cases;
mod compare;
mod image;
mod project;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use lapstrake_testkit::peer::{self, Peer};
use lapstrake_testkit::registry::{Options, Registry};

use crate::cases::{CASES, Case, Given, IMAGES};
use crate::compare::{Start, differences};
use crate::image::{Bases, Image};
use crate::project::Project;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// At most so many differences of a case are printed.
const SHOWN_MAX: usize = 40;

/// Who builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Ours,
    Theirs,
}

/// How long a build took, or why it failed.
type Outcome = Result<Duration>;

fn main() -> ExitCode {
    // What cargo gives to test programs: names, and flags of which only this one means something here.
    let args: Vec<String> = std::env::args().skip(1).collect();
    let names: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let chosen = |case: &Case| names.is_empty() || names.iter().any(|name| case.name.contains(name.as_str()));
    let cases: Vec<Case> = CASES.into_iter().filter(chosen).collect();
    if args.iter().any(|arg| arg == "--list") {
        cases.iter().for_each(|case| println!("{}: test", case.name));
        return ExitCode::SUCCESS;
    }
    if cases.is_empty() {
        println!("\nrunning 0 tests\n\ntest result: ok. 0 passed; 0 failed");
        return ExitCode::SUCCESS;
    }
    match Suite::new(&cases).and_then(|suite| suite.run(&cases)) {
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
    peer: Peer,
    start: Start,
    dir: lapstrake_testkit::TempDir,
    _runtime: tokio::runtime::Runtime,
}

impl Suite {
    fn new(cases: &[Case]) -> Result<Self> {
        let user = Command::new("id").arg("-u").output()?.stdout;
        if user.trim_ascii() != b"0" {
            return Err("this suite needs root: steps are namespaces and overlays".into());
        }
        // Overlays do not stack on every file system that /tmp may be.
        let dir = tempfile::Builder::new().prefix("interop-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let registry = runtime.block_on(Registry::start(Options::default()))?;
        let wanted: BTreeSet<&str> = cases.iter().flat_map(|case| case.bases).copied().collect();
        for base in &wanted {
            let layout = peer::base_image(base);
            for (name, tags, _) in IMAGES.iter().filter(|(_, _, of)| of == base) {
                for tag in *tags {
                    registry.put_layout(&format!("library/{name}"), tag, &layout)?;
                }
            }
        }
        let host = registry.host();
        let state = dir.path().join("p");
        fs::create_dir(&state)?;
        let registries =
            format!("[registry.\"docker.io\"]\nmirrors = [\"{host}\"]\n[registry.\"{host}\"]\nhttp = true\n");
        let peer = Peer::start(&state, &registries)?;
        let mirrors = serde_json::json!({"docker.io": {"mirrors": [format!("http://{host}")]}});
        fs::write(dir.path().join("registries.json"), mirrors.to_string())?;
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let text =
            Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S", "-d", &format!("@{seconds}")]).output()?;
        let text = String::from_utf8(text.stdout)?.trim().to_owned();
        Ok(Self { registry, peer, start: Start { seconds, text }, dir, _runtime: runtime })
    }

    /// Builds and compares all; whether all are the same.
    fn run(&self, cases: &[Case]) -> Result<bool> {
        println!("\nrunning {} tests", cases.len());
        let began = Instant::now();
        let projects: Vec<Project> =
            cases.iter().map(|case| Project::copy(case, self.dir.path())).collect::<Result<_>>()?;
        let mut bases = Bases::default();
        for (name, tags, _) in IMAGES {
            let repository = format!("library/{name}");
            if let Some(tag) =
                tags.first().filter(|tag| self.registry.storage().manifest(&repository, tag).is_some())
            {
                Image::remember(self.registry.storage(), &repository, tag, &mut bases)?;
            }
        }
        let (mut passed, mut failed) = (0, Vec::new());
        let mut all = [Duration::ZERO; 2];
        std::thread::scope(|scope| {
            let (sender, receiver) = mpsc::channel::<(usize, Who, Outcome)>();
            for who in [Who::Ours, Who::Theirs] {
                let (sender, projects) = (sender.clone(), &projects);
                scope.spawn(move || {
                    for (index, project) in projects.iter().enumerate() {
                        sender.send((index, who, self.build(who, project))).ok(); // the receiver outlives us
                    }
                });
            }
            drop(sender);
            let mut half = BTreeMap::new();
            for (index, who, outcome) in receiver {
                let Some((_, other)) = half.remove(&index) else {
                    half.insert(index, (who, outcome));
                    continue;
                };
                let (ours, theirs) = if who == Who::Ours { (outcome, other) } else { (other, outcome) };
                let name = cases[index].name;
                match self.verdict(&cases[index], ours, theirs, &mut bases) {
                    Ok(times) => {
                        passed += 1;
                        all = [all[0] + times[0], all[1] + times[1]];
                        let [ours, theirs] = times.map(|time| time.as_secs_f64());
                        println!("test {name} ... ok (ours {ours:.1} s, buildkitd {theirs:.1} s)");
                    }
                    Err(error) => {
                        println!("test {name} ... FAILED\n{error}");
                        failed.push(name);
                    }
                }
            }
        });
        let word = if failed.is_empty() { "ok" } else { "FAILED" };
        let [ours, theirs] = all.map(|time| time.as_secs_f64());
        println!("\nbuilding took {ours:.1} s here and {theirs:.1} s in buildkitd");
        println!(
            "\ntest result: {word}. {passed} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
            failed.len(),
            CASES.len() - cases.len(),
            began.elapsed().as_secs_f64()
        );
        Ok(failed.is_empty())
    }

    /// The times of both builders, where what they made is the same.
    fn verdict(
        &self,
        case: &Case,
        ours: Outcome,
        theirs: Outcome,
        bases: &mut Bases,
    ) -> Result<[Duration; 2]> {
        let name = case.name;
        let times = match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => [ours, theirs],
            (Err(error), Ok(_)) => return Err(format!("we alone failed:\n{error}").into()),
            (Ok(_), Err(error)) => return Err(format!("buildkitd alone failed:\n{error}").into()),
            (Err(ours), Err(theirs)) => return Err(format!("both failed:\n{ours}\n{theirs}").into()),
        };
        let mut image =
            |who: &str| Image::read(self.registry.storage(), &format!("{who}/{name}"), "1", bases);
        let mut found = differences(&image("ours")?, &image("theirs")?, &self.start);
        found.retain(|line| !case.known.iter().any(|(known, _)| line.starts_with(known)));
        match found.len() {
            0 => Ok(times),
            count => {
                let shown = found.into_iter().take(SHOWN_MAX).collect::<Vec<_>>().join("\n  ");
                Err(format!("{count} differences (ours - theirs):\n  {shown}").into())
            }
        }
    }

    fn build(&self, who: Who, project: &Project) -> Outcome {
        let began = Instant::now();
        let out = match who {
            Who::Ours => self.ours(project).output()?,
            Who::Theirs => self.peer.run(&project.dir, &self.theirs(project))?,
        };
        match out.status.success() {
            true => Ok(began.elapsed()),
            false => Err(String::from_utf8_lossy(&out.stderr).into_owned().into()),
        }
    }

    fn image(&self, who: &str, project: &Project) -> String {
        format!("{}/{who}/{}:1", self.registry.host(), project.name)
    }

    fn ours(&self, project: &Project) -> Command {
        let here = |name: &str| self.dir.path().join(name);
        let mut command = Command::new(env!("CARGO_BIN_EXE_lapstrake-builder"));
        command.arg("build").arg(&project.dir).arg("--progress=plain");
        command.arg("--root").arg(here("state")).arg("--registries").arg(here("registries.json"));
        command.args(["--push", "-t", &self.image("ours", project)]);
        for (key, value) in &project.options {
            let flag = if key == "arg" { "build-arg" } else { key };
            command.arg(format!("--{flag}")).arg(value);
        }
        for given in project.given {
            match given {
                Given::Secret(id, _) => {
                    command.args(["--secret", &format!("id={id},src={}", project.secret(id).display())])
                }
                Given::Folder(name, folder) => command
                    .args(["--build-context", &format!("{name}={}", project.dir.join(folder).display())]),
                Given::Image(name, image) => command.args([
                    "--build-context",
                    &format!("{name}=docker-image://{}/{image}", self.registry.host()),
                ]),
                Given::Rewritten => &mut command,
            };
        }
        command.stdin(Stdio::null()).env("DOCKER_CONFIG", here("docker")).env_remove("SOURCE_DATE_EPOCH");
        command
    }

    fn theirs(&self, project: &Project) -> Vec<String> {
        let image = self.image("theirs", project);
        // With a command line its own frontend reads the file, whatever `# syntax=` names.
        let rewritten = project.given.iter().any(|given| matches!(given, Given::Rewritten));
        let more = if rewritten { ",rewrite-timestamp=true" } else { "" };
        let mut args = vec!["--output".to_owned(), format!("type=image,name={image},push=true{more}")];
        args.extend(["--opt", "cmdline=docker/dockerfile"].map(str::to_owned));
        let mut add = |flag: &str, value: String| args.extend([format!("--{flag}"), value]);
        for (key, value) in &project.options {
            match key.as_str() {
                "arg" => add("opt", format!("build-arg:{value}")),
                "label" => add("opt", format!("label:{value}")),
                key => add("opt", format!("{key}={value}")),
            }
        }
        for given in project.given {
            match given {
                Given::Secret(id, _) => {
                    add("secret", format!("id={id},src={}", project.secret(id).display()))
                }
                Given::Folder(name, folder) => {
                    add("local", format!("{name}={}", project.dir.join(folder).display()));
                    add("opt", format!("context:{name}=local:{name}"));
                }
                Given::Rewritten => {}
                Given::Image(name, image) => {
                    add("opt", format!("context:{name}=docker-image://{}/{image}", self.registry.host()));
                }
            }
        }
        args
    }
}

/// A path of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}
