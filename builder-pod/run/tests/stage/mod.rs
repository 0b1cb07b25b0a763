//! A root file system of busybox, and steps in it under each of the sandboxes.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use lapstrake_run::{Rootfs, StepExit, StepSpec};

/// Where the builder runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setting {
    /// As root of this machine.
    Root,
    /// In a pod's user namespace, with SYS_ADMIN.
    UserNamespace,
    /// In a pod's user namespace, without.
    Baseline,
}

pub(crate) const SETTINGS: [Setting; 3] = [Setting::Root, Setting::UserNamespace, Setting::Baseline];

/// A place of its own on disk: one image layer, and as many steps as wanted.
pub(crate) struct Bench {
    pub(crate) setting: Setting,
    pub(crate) dir: tempfile::TempDir,
    steps: AtomicUsize,
}

/// How a step's process ended, with all it said.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) exit: Option<StepExit>,
    pub(crate) upper: PathBuf,
}

impl Ran {
    /// The output of a step that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }
}

impl Bench {
    pub(crate) fn new(setting: Setting) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let image = dir.path().join("image");
        for part in ["bin", "etc", "tmp", "root"] {
            std::fs::create_dir_all(image.join(part)).unwrap();
        }
        std::fs::set_permissions(image.join("tmp"), std::fs::Permissions::from_mode(0o1777)).unwrap();
        let busybox = busybox();
        std::fs::copy(&busybox, image.join("bin/busybox")).unwrap();
        let applets = Command::new(&busybox).arg("--list").output().unwrap().stdout;
        for applet in String::from_utf8(applets).unwrap().lines().filter(|name| *name != "busybox") {
            symlink("busybox", image.join("bin").join(applet)).unwrap();
        }
        std::fs::write(
            image.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv/web:/bin/sh\n",
        )
        .unwrap();
        std::fs::write(image.join("etc/group"), "root:x:0:\nweb:x:34:\nssl:x:70:web\n").unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        let bench = Self { setting, dir, steps: AtomicUsize::new(0) };
        bench.own(bench.dir.path());
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.path("image")
    }

    /// Adds the program that tries ways out of the sandbox.
    pub(crate) fn with_probe(self) -> Self {
        let to = self.image().join("bin/probe");
        std::fs::copy(probe(), &to).unwrap();
        self.own(&to);
        self
    }

    /// Gives files to the pod's root, as its volumes belong to it.
    pub(crate) fn own(&self, path: &Path) {
        if self.setting != Setting::Root {
            give(path);
        }
    }

    /// A directory of the builder's with one file in it.
    pub(crate) fn directory(&self, name: &str, file: &str, contents: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join(file), contents).unwrap();
        self.own(&path);
        path
    }

    /// A step on the image with a fresh upper directory.
    pub(crate) fn spec(&self, args: &[&str]) -> StepSpec {
        self.spec_on(vec![self.image()], args)
    }

    pub(crate) fn spec_on(&self, lowers_top_first: Vec<PathBuf>, args: &[&str]) -> StepSpec {
        let number = self.steps.fetch_add(1, Ordering::Relaxed);
        let step = self.path(&format!("step{number}"));
        let (upper, work) = (step.join("upper"), step.join("work"));
        std::fs::create_dir_all(&upper).unwrap();
        std::fs::create_dir_all(&work).unwrap();
        self.own(&step);
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        StepSpec::new(args, Rootfs { lowers_top_first, upper: Some(upper), work: Some(work) })
    }

    /// `lapstrake-step` in this setting; more arguments and the step's description to follow.
    pub(crate) fn command(&self) -> Command {
        let step = env!("CARGO_BIN_EXE_lapstrake-step");
        let mut command = match self.setting {
            Setting::Root => Command::new(step),
            pod => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_lapstrake-pod-sim"));
                let mode = if pod == Setting::Baseline { "without-sys-admin" } else { "with-sys-admin" };
                command.arg(mode).arg(step);
                command
            }
        };
        command.args(["--mode", &format!("{:?}", self.setting), "--state"]).arg(self.path("state"));
        command
    }

    /// Starts a step; its output is piped.
    pub(crate) fn start(&self, spec: &StepSpec) -> Child {
        self.start_as(self.command(), spec)
    }

    /// The same by a command that ends in [`Bench::command`]'s words.
    pub(crate) fn start_as(&self, mut command: Command, spec: &StepSpec) -> Child {
        let mut child = command
            .arg("--exit")
            .arg(exit_file(spec))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&serde_json::to_vec(spec).unwrap()).unwrap();
        child
    }

    /// Runs a step to its end.
    pub(crate) fn run(&self, spec: &StepSpec) -> Ran {
        let output = self.start(spec).wait_with_output().unwrap();
        Self::ran(spec, &output)
    }

    pub(crate) fn ran(spec: &StepSpec, output: &Output) -> Ran {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let exit = std::fs::read(exit_file(spec)).ok();
        Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
            exit: exit.map(|json| serde_json::from_slice(&json).unwrap()),
            upper: spec.rootfs.upper.clone().unwrap(),
        }
    }

    /// Runs a shell script as a step.
    pub(crate) fn sh(&self, script: &str) -> Ran {
        self.run(&self.spec(&["sh", "-c", script]))
    }
}

fn exit_file(spec: &StepSpec) -> PathBuf {
    spec.rootfs.upper.as_ref().unwrap().with_file_name("exit.json")
}

fn give(path: &Path) {
    const ROOT_OF_POD: Option<u32> = Some(100_000);
    lchown(path, ROOT_OF_POD, ROOT_OF_POD).unwrap();
    if path.symlink_metadata().unwrap().is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path());
        }
    }
}

fn busybox() -> PathBuf {
    let found =
        ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists());
    found.expect("these tests need a static busybox (Debian: busybox-static)")
}

/// Compiled once per test process.
fn probe() -> &'static Path {
    static PROBE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = PROBE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("probe");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stage/probe.c");
        let compiled = Command::new("cc").args(["-static", "-O1", "-o"]).arg(&path).arg(source).status();
        assert!(compiled.is_ok_and(|status| status.success()), "these tests need a C compiler");
        (dir, path)
    });
    path
}

/// Everything in a directory, relative, sorted, with `c0,0` behind whiteouts.
pub(crate) fn tree(dir: &Path) -> Vec<String> {
    fn walk(base: &Path, dir: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(base).unwrap().display().to_string();
            let metadata = path.symlink_metadata().unwrap();
            let whiteout = std::os::unix::fs::FileTypeExt::is_char_device(&metadata.file_type());
            found.push(if whiteout { format!("{name} c0,0") } else { name });
            if metadata.is_dir() {
                walk(base, &path, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(dir, dir, &mut found);
    found.sort();
    found
}

/// Processes of this machine whose command line contains `mark`.
pub(crate) fn processes_with(mark: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        std::fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).replace('\0', " ").contains(mark))
    })
    .collect()
}

/// Waits for a condition; a claim that never comes true fails.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed().as_secs() < 60, "never came true: {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
