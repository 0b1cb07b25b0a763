//! The builder as the root of a pod's user namespace: uid 0 is 100000 outside, nothing else is root.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use lapstrake_testkit::TempDir;

use crate::lab::{BUILDER, Build, Lab, Running};

/// What a pod may do in its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// It has SYS_ADMIN there.
    UserNamespace,
    /// Not even that.
    Baseline,
}

const ROOT_OUTSIDE: u32 = 100_000;

/// Waits for its mapping, becomes root by it, prepares the namespace, and runs the rest of its arguments.
const ENTER: &str = "read _ && exec setpriv --reuid=0 --regid=0 --clear-groups sh -c \
                     'mount -t proc proc /proc && eval \"$PREPARE\" && exec \"$@\"' sh \"$@\"";

/// A directory that a pod's root can reach, with the binary and a context.
pub(crate) struct PodPlace(TempDir);

impl PodPlace {
    /// Writes a file that a pod's root can read.
    pub(crate) fn file(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, contents).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        path
    }

    pub(crate) fn new(lab: &Lab, dockerfile: &str) -> Self {
        let dir = lapstrake_testkit::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::copy(BUILDER, dir.path().join("builder")).unwrap();
        std::fs::create_dir(dir.path().join("context")).unwrap();
        let text = dockerfile.replace("@base", &lab.base());
        std::fs::write(dir.path().join("context/Dockerfile"), text).unwrap();
        let http = serde_json::json!({lab.registry.host(): {"http": true}});
        std::fs::write(dir.path().join("registries.json"), http.to_string()).unwrap();
        Self(dir)
    }

    /// A quiet build with an epoch, with a state directory of its own; `None`: by this machine's root.
    pub(crate) fn build(&self, lab: &Lab, mode: Option<Mode>) -> PodBuild {
        let path = |name: &str| self.0.path().join(name);
        let state = path(&format!("state-{mode:?}"));
        std::fs::create_dir(&state).unwrap();
        let mut command = match mode {
            None => Command::new(path("builder")),
            Some(mode) => {
                chown(&state, Some(ROOT_OUTSIDE), Some(ROOT_OUTSIDE)).unwrap();
                let mut command = Command::new("unshare");
                command.args(["--user", "--mount", "--pid", "--fork", "--kill-child", "--keep-caps"]);
                command.args(["sh", "-c", ENTER, "sh"]);
                if mode == Mode::Baseline {
                    command.args(["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]);
                }
                command.arg(path("builder"));
                command
            }
        };
        command.arg("build").arg(path("context")).arg("--root").arg(&state).arg("-q");
        command.arg("--registries").arg(path("registries.json"));
        command.args([
            "--push",
            "-t",
            &lab.name("sandboxed:1"),
            "--build-arg",
            "SOURCE_DATE_EPOCH=1700000000",
        ]);
        command.env("PREPARE", "true").env("DOCKER_CONFIG", path("none")).stdin(Stdio::piped());
        PodBuild { build: Build(command), mapped: mode.is_some(), state }
    }
}

/// A build that waits for its user namespace's mapping.
pub(crate) struct PodBuild {
    build: Build,
    mapped: bool,
    state: PathBuf,
}

impl PodBuild {
    /// The same in a namespace that is prepared by this shell script, whose exported variables hold on.
    pub(crate) fn prepared(mut self, script: &str) -> Self {
        self.build.0.env("PREPARE", script);
        self
    }

    /// The same with more flags.
    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.build.0.args(args);
        self
    }

    #[track_caller]
    pub(crate) fn ok(self) -> crate::lab::Ran {
        let mut running = self.build.start();
        if self.mapped {
            map(&running);
        }
        if let Some(mut stdin) = running.stdin() {
            stdin.write_all(b"go\n").ok(); // who does not wait for it may have ended
        }
        let ran = running.wait();
        assert_eq!(ran.code, Some(0), "{}", ran.stderr());
        let owner = std::fs::metadata(self.state.join("lock")).unwrap().uid();
        assert_eq!(owner, if self.mapped { ROOT_OUTSIDE } else { 0 }, "it ran in its own namespace");
        ran
    }
}

/// Gives the process' user namespace the ids of a pod, as soon as it has a namespace of its own.
fn map(running: &Running) {
    let own = std::fs::read_link("/proc/self/ns/user").unwrap();
    let process = format!("/proc/{}", running.pid());
    while std::fs::read_link(format!("{process}/ns/user")).unwrap() == own {
        std::thread::yield_now();
    }
    for file in ["gid_map", "uid_map"] {
        std::fs::write(format!("{process}/{file}"), format!("0 {ROOT_OUTSIDE} 65536\n")).unwrap();
    }
}
