//! The daemon as other people's tests and clusters use it: started by its names and flags, found by its ready line,
//! asked by `buildctl`, ended by signals.
//!
//! Needs root: the daemon's steps are namespaces and overlays.
#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

mod endless;
mod harness;
mod hostile;
mod load;
mod lost;
mod races;
mod spans;

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};

/// A directory with the program under its other names.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["buildkitd", "buildctl"] {
            symlink(env!("CARGO_BIN_EXE_lapstrake-builder"), dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn address(&self) -> String {
        format!("unix://{}", self.path("sock").display())
    }

    fn run(&self, name: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(self.path(name));
        command.args(arguments).env("BUILDKIT_HOST", self.address());
        command.output().unwrap()
    }

    fn daemon(&self, arguments: &[&str]) -> Daemon {
        self.daemon_in(&[], arguments)
    }

    /// The same with these variables in its environment.
    fn daemon_in(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Daemon {
        let mut command = Command::new(self.path("buildkitd"));
        command.arg("--root").arg(self.path("root")).arg("--addr").arg(self.address()).args(arguments);
        command.envs(environment.iter().copied());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Daemon { child, log, seen: String::new() }
    }
}

struct Daemon {
    child: Child,
    log: BufReader<ChildStderr>,
    seen: String,
}

impl Daemon {
    /// Reads the log up to the line that has `text`.
    fn wait_for(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            let read = self.log.read_line(&mut line).unwrap();
            assert_ne!(read, 0, "the daemon ended before {text:?}:\n{}", self.seen);
            self.seen.push_str(&line);
            if line.contains(text) {
                return line;
            }
        }
    }

    fn ready(&mut self, place: &Place) -> String {
        self.wait_for(&format!("running server on {}", place.path("sock").display()))
    }

    fn end(mut self, signal: &str) -> (ExitStatus, String) {
        let sent = Command::new("kill").arg(signal).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap(), rest)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok(); // it has ended, as a rule
        self.child.wait().ok();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn probes_of_a_cluster_find_its_worker() {
    let place = Place::new();
    let mut daemon = place.daemon(&["--oci-worker-labels", "team=blue"]);
    let worker = daemon.wait_for("found worker");
    assert!(
        worker.contains("level=info msg=\"found worker \\\"") && worker.contains("team:blue"),
        "{worker}"
    );
    daemon.ready(&place);
    let table = place.run("buildctl", &["debug", "workers"]);
    assert!(table.status.success(), "{}", text(&table.stderr));
    let table = text(&table.stdout);
    assert!(table.starts_with("ID\t") && table.lines().count() == 2, "{table}");
    let id = table.lines().nth(1).and_then(|line| line.split('\t').next()).unwrap().to_owned();
    assert!(worker.contains(&id));
    let json = place.run("buildctl", &["debug", "workers", "--format", "{{json .}}"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json[0]["id"], id.as_str());
    assert_eq!(json[0]["gcPolicy"].as_array().map(Vec::len), Some(4));
    let (status, _) = daemon.end("-TERM");
    assert_eq!(status.code(), Some(1), "as buildkitd's");
    // The worker of a state directory keeps its name.
    let mut again = place.daemon(&[]);
    assert!(again.wait_for("found worker").contains(&id));
}

#[test]
fn a_signal_ends_it_with_buildkitd_s_words_and_a_kill_leaves_nothing_in_the_way() {
    let place = Place::new();
    let mut daemon = place.daemon(&["--log-format", "json"]);
    let ready: serde_json::Value = serde_json::from_str(&daemon.ready(&place)).unwrap();
    assert_eq!(ready["level"], "info");
    let second =
        place.run("buildkitd", &["--root", place.path("root").to_str().unwrap(), "--addr", "unix:///x/y"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(text(&second.stderr).contains("another instance running?"), "{}", text(&second.stderr));
    daemon.end("-KILL");
    let mut daemon = place.daemon(&[]);
    daemon.ready(&place);
    let (status, rest) = daemon.end("-INT");
    assert_eq!(status.code(), Some(1));
    assert!(rest.ends_with("buildkitd: got SIGTERM/SIGINT, forcing shutdown\n"), "{rest}");
    assert!(!place.path("sock").exists());
}

#[test]
fn settings_that_are_wrong_are_told_before_anything_is_served() {
    let place = Place::new();
    std::fs::write(place.path("toml"), "[worker.oci]\nmax-paralelism = 4\n").unwrap();
    let config = place.path("toml");
    for (arguments, told) in [
        (&["--nope"][..], "Incorrect Usage: flag provided but not defined: -nope"),
        (&["--config", config.to_str().unwrap()], ":2: unknown key max-paralelism"),
        (&["--addr", "here"], "address here does not contain proto, you meant unix://here ?"),
    ] {
        let root = place.path("other");
        let mut all = vec!["--root", root.to_str().unwrap()];
        all.extend(arguments);
        let output = place.run("buildkitd", &all);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(told), "{arguments:?}: {}", text(&output.stderr));
    }
}

#[test]
fn the_names_answer_without_a_daemon() {
    let place = Place::new();
    for name in ["buildkitd", "buildctl"] {
        let version = text(&place.run(name, &["--version"]).stdout);
        let words: Vec<_> = version.split_whitespace().collect();
        assert!(
            matches!(words[..], [first, _, release, _] if first == name && release.starts_with('v')),
            "{version}"
        );
    }
    let help = text(&place.run("buildkitd", &["--help"]).stdout);
    assert!(help.contains("   --oci-worker-gc-keepstorage string "), "{help}");
    let missing = place.run("buildctl", &["debug", "workers"]);
    assert_eq!(missing.status.code(), Some(1));
    let told = text(&missing.stderr);
    assert!(
        told.starts_with("error: failed to list workers: Unavailable: ") && told.contains("no such file"),
        "{told}"
    );
    let unknown = place.run("buildctl", &["build"]);
    assert!(text(&unknown.stderr).contains("dial-stdio and debug workers only"));
    assert_eq!(unknown.status.code(), Some(1));
}
