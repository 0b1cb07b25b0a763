//! BuildKit's own integration tests on our daemon.
//!
//! `cargo test -p lapstrake-builder --test moby [-- NAME... --list --theirs --gaps]`. BuildKit's module, which `bench/peers` pins,
//! has its tests with it: they are compiled from there, find a `buildkitd` on their `PATH`, start it with their flags and
//! their file, several at a time, wait for its socket, and end it by signal; here that `buildkitd` is ours. `tests.txt`
//! names those that are run: all that the real one passes with what a package registry and a base image of our own have.
//! Those with a reason behind them are run where they are named, and with `--gaps`.
//! `--theirs` runs them with the real buildkitd, which tests the list. Needs root, Go, skopeo and the package registries.
#![allow(clippy::print_stdout, reason = "a test program prints how its tests went")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use lapstrake_testkit::peer;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What the tests call the images that they read; each is a busybox here.
const IMAGES: [&str; 4] = [
    "library/busybox:latest",
    "library/alpine:latest",
    "tonistiigi/test:nolayers",
    "cpuguy83/buildkit-foreign:latest",
];
/// Lines of a failed test that are shown.
const SHOWN_MAX: usize = 60;

/// More that failed are not tried again.
const AGAIN_MAX: usize = 20;

/// A test that is named.
#[derive(Clone)]
struct Named {
    name: String,
    /// Why it need not pass.
    gap: Option<String>,
}

/// Each line: a test, and behind a bar why it does not pass yet.
fn named() -> Result<Vec<Named>> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/moby/tests.txt"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let read = |line: &str| match line.split_once(" | ") {
        Some((name, why)) => Named { name: name.to_owned(), gap: Some(why.to_owned()) },
        None => Named { name: line.to_owned(), gap: None },
    };
    Ok(lines.map(read).collect())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let names: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    match run(&names, has("--list"), has("--theirs"), has("--gaps")) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(names: &[&String], lists: bool, theirs: bool, gaps_too: bool) -> Result<bool> {
    let mut all = named()?;
    let count = all.len();
    all.retain(|test| match names.is_empty() {
        true => gaps_too || test.gap.is_none(),
        false => names.iter().any(|name| test.name.contains(name.as_str())),
    });
    if lists {
        all.iter().for_each(|test| println!("{}: test", test.name));
        return Ok(true);
    }
    if all.is_empty() {
        println!("\nrunning 0 tests\n\ntest result: ok. 0 passed; 0 failed");
        return Ok(true);
    }
    // Overlays do not stack on every file system that /tmp may be; the paths of sockets must be short.
    // A short path: there are sockets deep in it.
    fs::create_dir_all(peer::cache())?;
    let dir = tempfile::Builder::new().prefix("mb-").tempdir_in(peer::cache())?;
    let bin = programs(dir.path(), theirs)?;
    mirror(&bin, &dir.path().join("mirror"))?;
    println!("\nrunning {} tests", all.len());
    let mut outcomes = go_test(&all, &bin, dir.path())?;
    // Their limits are short for a machine that has other work: what failed is tried once more, by itself.
    let passed = |test: &Named| outcomes.get(&test.name).is_some_and(|outcome| outcome == "PASS");
    let again: Vec<Named> = all.iter().filter(|test| test.gap.is_none() && !passed(test)).cloned().collect();
    if !again.is_empty() && again.len() <= AGAIN_MAX {
        outcomes.extend(go_test(&again, &bin, dir.path())?);
    }
    let (mut passed, mut failed, mut gaps) = (0, 0, 0);
    for test in &all {
        let outcome = outcomes.get(&test.name).map_or("not run", String::as_str);
        match (outcome, &test.gap) {
            ("PASS", Some(_)) if !theirs => {
                println!("test {} ... ok\n  it passes now: take its reason away", test.name);
                passed += 1;
            }
            ("PASS", _) => {
                println!("test {} ... ok", test.name);
                passed += 1;
            }
            (_, Some(why)) if !theirs => {
                println!("test {} ... not yet: {why}", test.name);
                gaps += 1;
            }
            (outcome, _) => {
                println!("test {} ... FAILED ({outcome})", test.name);
                failed += 1;
            }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {word}. {passed} passed; {failed} failed; {gaps} ignored; 0 measured; {} filtered out\n",
        count - all.len()
    );
    Ok(failed == 0)
}

/// A folder with what the tests look for on their `PATH`.
fn programs(dir: &Path, theirs: bool) -> Result<PathBuf> {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin)?;
    let link = |from: &Path, name: &str| std::os::unix::fs::symlink(from, bin.join(name));
    let buildctl = peer::buildctl();
    match theirs {
        true => link(&buildctl.with_file_name("buildkitd"), "buildkitd")?,
        false => link(Path::new(env!("CARGO_BIN_EXE_lapstrake-builder")), "buildkitd")?,
    }
    link(&buildctl, "buildctl")?;
    for name in ["runc", "registry"] {
        link(&peer::node_tool(name), name)?;
    }
    Ok(bin)
}

/// A registry that ends when dropped.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.kill().ok(); // it may have ended
        self.0.wait().ok(); // as above
    }
}

/// Fills the registry in which the tests look before they ask Docker Hub.
fn mirror(bin: &Path, dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let text = format!(
        "version: 0.1\nloglevel: debug\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
        dir.join("data").display()
    );
    fs::write(dir.join("config.yaml"), text)?;
    let mut registry = Command::new(bin.join("registry"));
    registry.arg("serve").arg(dir.join("config.yaml")).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut serving = Serving(registry.spawn()?);
    let log = BufReader::new(serving.0.stderr.take().ok_or("a registry without a log")?);
    let mut lines = log.lines();
    let port = lines
        .by_ref()
        .map_while(std::result::Result::ok)
        .find_map(|line| {
            let rest = line.split_once("listening on 127.0.0.1:")?.1;
            Some(rest.chars().take_while(char::is_ascii_digit).collect::<String>())
        })
        .ok_or("the registry does not listen")?;
    // It would wait for somebody who reads.
    std::thread::spawn(move || lines.for_each(drop));
    let layout = peer::base_image("busybox");
    for image in IMAGES {
        let mut copy = Command::new("skopeo");
        copy.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        copy.arg(format!("oci:{}", layout.display())).arg(format!("docker://127.0.0.1:{port}/{image}"));
        let out = copy.output()?;
        if !out.status.success() {
            return Err(format!("{image}: {}", String::from_utf8_lossy(&out.stderr)).into());
        }
    }
    Ok(())
}

/// Runs tests; how each went, in Go's words. What a failed one said is printed.
fn go_test(tests: &[Named], bin: &Path, dir: &Path) -> Result<BTreeMap<String, String>> {
    let (program, sources) = peer::buildkit_tests();
    let tmp = dir.join("t");
    fs::create_dir_all(&tmp)?;
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let names: Vec<&str> = tests.iter().map(|test| test.name.as_str()).collect();
    // As many daemons at a time as there are processors: the tests' own limit.
    let mut command = Command::new(program);
    command.args(["-test.v", "-test.timeout=15m", "-test.run"]);
    command.arg(format!("^Test.*Integration$/^({})$/^worker=oci$", names.join("|")));
    command.current_dir(sources).env("PATH", path).env("TMPDIR", &tmp);
    command.env("BUILDKIT_REGISTRY_MIRROR_DIR", dir.join("mirror")).stdin(Stdio::null());
    let out = command.output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut outcomes = BTreeMap::new();
    let mut said: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut speaks = "";
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("=== ") {
            speaks = rest.split_whitespace().nth(1).and_then(|name| name.split('/').nth(1)).unwrap_or("");
        } else if let Some((outcome, rest)) =
            line.trim_start().strip_prefix("--- ").and_then(|r| r.split_once(": "))
        {
            let name = rest.split(' ').next().and_then(|name| name.split('/').nth(1));
            if let Some(name) = name {
                outcomes.insert(name.to_owned(), outcome.to_owned());
            }
        } else {
            said.entry(speaks).or_default().push(line);
        }
    }
    for test in tests {
        if test.gap.is_none() && outcomes.get(&test.name).is_none_or(|outcome| outcome != "PASS") {
            println!("--- {}", test.name);
            let lines = said.get(test.name.as_str()).map(Vec::as_slice).unwrap_or_default();
            lines.iter().take(SHOWN_MAX).for_each(|line| println!("{line}"));
        }
    }
    if outcomes.is_empty() {
        return Err(format!("no test was run:\n{text}{}", String::from_utf8_lossy(&out.stderr)).into());
    }
    Ok(outcomes)
}
