//! The daemon as BuildKit's own test suite has it: several side by side, started with the flags, the file and the variables of its
//! harness, found by dialing their sockets, and ended by SIGTERM.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::Place;

/// How long the harness dials a socket.
const READY_MAX: Duration = Duration::from_secs(15);
/// How long it waits after SIGTERM.
const END_MAX: Duration = Duration::from_secs(20);

struct Sandbox {
    child: Child,
    dir: PathBuf,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.child.kill().ok(); // it has ended, as a rule
        self.child.wait().ok(); // as above
    }
}

impl Sandbox {
    fn start(place: &Place, name: &str) -> Self {
        let dir = place.path(name);
        std::fs::create_dir_all(dir.join("tmp")).unwrap();
        let config = dir.join("buildkitd.toml");
        let text = format!(
            "\n\n[registry.\"docker.io\"]\nmirrors=[\"localhost:1\"]\n\n\n[otel]\n  socketPath = \"{0}/otel-grpc.sock\"\n\n\n\
             [cdi]\n  specDirs = [\"{0}/cdi\"]\n",
            dir.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(place.path("buildkitd"));
        command.args(["--oci-worker=true", "--containerd-worker=false", "--oci-worker-gc=false"]);
        command.arg("--oci-worker-labels=org.mobyproject.buildkit.worker.sandbox=true");
        command.arg(format!("--config={}", config.display())).arg("--root").arg(&dir);
        command.arg("--addr").arg(format!("unix://{}/buildkitd.sock", dir.display())).arg("--debug");
        command.env("BUILDKIT_DEBUG_EXEC_OUTPUT", "1").env("BUILDKIT_DEBUG_PANIC_ON_ERROR", "1");
        command.env("BUILDKITD_DEBUGADDR", format!("unix://{}/buildkitd-debug.sock", dir.display()));
        command.env("TMPDIR", dir.join("tmp"));
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        Self { child, dir }
    }

    fn dial(&mut self, name: &str) -> UnixStream {
        let began = Instant::now();
        loop {
            if let Ok(stream) = UnixStream::connect(self.dir.join(name)) {
                return stream;
            }
            assert_eq!(self.child.try_wait().unwrap(), None, "it ended");
            assert!(began.elapsed() < READY_MAX, "{name} is not there");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

#[test]
fn several_run_side_by_side_as_buildkit_s_own_tests_start_them() {
    let place = Place::new();
    let mut all: Vec<Sandbox> = ["a", "b", "c"].iter().map(|name| Sandbox::start(&place, name)).collect();
    for sandbox in &mut all {
        drop(sandbox.dial("buildkitd.sock"));
        let mut debug = sandbox.dial("buildkitd-debug.sock");
        debug.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        debug.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("process_"), "{answer}");
        let address = format!("unix://{}/buildkitd.sock", sandbox.dir.display());
        let table = place.run("buildctl", &["--addr", &address, "debug", "workers", "--verbose"]);
        let table = String::from_utf8_lossy(&table.stdout).into_owned();
        assert!(table.contains("org.mobyproject.buildkit.worker.sandbox:"), "{table}");
    }
    for sandbox in &mut all {
        let pid = sandbox.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let began = Instant::now();
        while sandbox.child.try_wait().unwrap().is_none() {
            assert!(began.elapsed() < END_MAX, "it goes on after SIGTERM");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&sandbox.dir.display().to_string()), "{mounts}");
        std::fs::remove_dir_all(&sandbox.dir).unwrap();
    }
}
