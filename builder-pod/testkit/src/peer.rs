//! The other builder: `buildkitd` and `buildctl` as released, with runc, compiled from pinned versions
//! (`bench/peers/go.mod`, `e2e/cluster`) where they are not there yet.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

const COMMANDS: [&str; 2] =
    ["github.com/moby/buildkit/cmd/buildctl", "github.com/moby/buildkit/cmd/buildkitd"];

/// The folder for what is built once and kept.
pub fn cache() -> PathBuf {
    std::env::var_os("LAPSTRAKE_CACHE").map_or_else(|| "/var/cache/lapstrake".into(), PathBuf::from)
}

/// The tree's root.
pub(crate) fn repository() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

/// Runs a program that must succeed; what it printed.
pub(crate) fn succeed(command: &mut Command, way_out: &str) -> String {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command.output().unwrap_or_else(|e| panic!("{name} can't be started ({e}): {way_out}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

fn go(module: &str, args: &[&str]) -> String {
    let mut command = Command::new("go");
    command.args(args).current_dir(repository().join(module));
    succeed(&mut command, "install it from https://go.dev/dl/")
}

/// `lapstrake-cluster` with these arguments, for what it makes and keeps; what it printed.
///
/// # Panics
/// Where it can't be built, or fails.
pub fn cluster(args: &[&str]) -> String {
    static PROGRAM: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, program) = PROGRAM.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let program = dir.path().join("lapstrake-cluster");
        go("e2e/cluster", &["build", "-buildvcs=false", "-o", &program.to_string_lossy(), "."]);
        (dir, program)
    });
    succeed(Command::new(program).args(args).current_dir(repository()), "it was just built")
}

/// The OCI layout of a base image (`debian`, `golang`, …), made where it is not there: that may take minutes.
///
/// # Panics
/// As [`cluster`].
pub fn base_image(name: &str) -> PathBuf {
    PathBuf::from(cluster(&["layout", name]).lines().last().unwrap_or_default())
}

/// Folder of `buildkitd` and `buildctl`, and the path of runc.
fn tools() -> &'static (PathBuf, PathBuf) {
    static TOOLS: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let peers = cache().join("bench-peers");
        fs::create_dir_all(&peers).expect("the folder for what is kept can be made");
        let version = go("bench/peers", &["list", "-m", "-f", "{{.Version}}", "github.com/moby/buildkit"]);
        let flags = format!("-ldflags=-X github.com/moby/buildkit/version.Version={version}");
        go("bench/peers", &["build", "-o", &peers.to_string_lossy(), &flags, COMMANDS[0], COMMANDS[1]]);
        let ctr = cluster(&["which", "ctr"]);
        (peers, Path::new(&ctr).with_file_name("runc"))
    })
}

/// The path of `buildx`, as released: a client of its own, without a docker command. It keeps what it knows in the
/// folder that `BUILDX_CONFIG` names; `DOCKER_CONFIG` must name one too.
///
/// # Panics
/// As [`cluster`].
pub fn buildx() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    const MODULE: &str = "github.com/docker/buildx";
    PROGRAM.get_or_init(|| {
        let peers = cache().join("bench-peers");
        fs::create_dir_all(&peers).expect("the folder for what is kept can be made");
        let version = go("bench/peers", &["list", "-m", "-f", "{{.Version}}", MODULE]);
        let flags = format!("-ldflags=-X {MODULE}/version.Version={version}");
        let command = format!("{MODULE}/cmd/buildx");
        go("bench/peers", &["build", "-o", &peers.to_string_lossy(), &flags, &command]);
        peers.join("buildx")
    })
}

/// The path of a Go program that a module of this tree pins, built where it is not there.
///
/// # Panics
/// As [`cluster`].
pub(crate) fn tool(module: &str, command: &str) -> PathBuf {
    let folder = cache().join("bench-peers");
    fs::create_dir_all(&folder).expect("the folder for what is kept can be made");
    go(module, &["build", "-o", &folder.to_string_lossy(), command]);
    folder.join(command.rsplit('/').next().unwrap_or(command))
}

/// The path of `llb`, which writes definitions of builds: `bench/peers/llb`.
///
/// # Panics
/// As [`cluster`].
pub fn llb() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| own("llb"))
}

/// The path of `containers`, which asks a daemon for containers: `bench/peers/containers`.
///
/// # Panics
/// As [`cluster`].
pub fn containers() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| own("containers"))
}

/// The path of a program that the test node is made of: `runc`, `registry`, …
///
/// # Panics
/// As [`cluster`].
pub fn node_tool(name: &str) -> PathBuf {
    Path::new(&cluster(&["which", "ctr"])).with_file_name(name)
}

/// BuildKit's own integration tests of its client, as one program, and the folder of its sources, in which it must run.
///
/// # Panics
/// As [`cluster`].
pub fn buildkit_tests() -> (PathBuf, PathBuf) {
    const PACKAGE: &str = "github.com/moby/buildkit/client";
    let program = cache().join("bench-peers/buildkit-client.test");
    fs::create_dir_all(cache().join("bench-peers")).expect("the folder for what is kept can be made");
    go("bench/peers", &["test", "-c", "-o", &program.to_string_lossy(), PACKAGE]);
    (program, PathBuf::from(go("bench/peers", &["list", "-f", "{{.Dir}}", PACKAGE])))
}

/// The path of `envd`, a client of BuildKit of another make: it writes definitions of builds itself, from a language of its own. Its
/// Python package holds the program (`e2e/others`).
///
/// # Panics
/// Where it can't be installed.
pub fn envd() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let pins = repository().join("e2e/others/requirements.txt");
        let text = fs::read_to_string(&pins).expect("e2e/others/requirements.txt");
        let version = text.lines().find_map(|line| line.strip_prefix("envd==")?.split(' ').next());
        let place = cache().join(format!("envd-{}", version.expect("a pinned version")));
        let program = place.join("bin/envd");
        if !program.exists() {
            fs::create_dir_all(cache()).expect("the folder for what is kept can be made");
            // Elsewhere first: what is there is whole, and two may do it at once.
            let made = tempfile::Builder::new().prefix("envd-").tempdir_in(cache()).expect("a folder");
            let mut pip = Command::new("python3");
            pip.args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--require-hashes",
                "--only-binary=:all:",
            ]);
            pip.arg("--target").arg(made.path()).arg("--requirement").arg(pins);
            succeed(&mut pip, "apt-get install python3-pip");
            fs::rename(made.path(), &place).ok(); // somebody else may have been faster
        }
        program
    })
}

/// A program of our own for the peers, from its folder there.
fn own(name: &str) -> PathBuf {
    let program = cache().join("bench-peers").join(name);
    fs::create_dir_all(cache().join("bench-peers")).expect("the folder for what is kept can be made");
    go("bench/peers", &["build", "-o", &program.to_string_lossy(), &format!("./{name}")]);
    program
}

/// The path of BuildKit's Dockerfile frontend as a program of its own, as released; it needs no library.
///
/// # Panics
/// As [`cluster`].
pub fn frontend() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    const COMMAND: &str = "github.com/moby/buildkit/frontend/dockerfile/cmd/dockerfile-frontend";
    PROGRAM.get_or_init(|| {
        let peers = cache().join("bench-peers");
        fs::create_dir_all(&peers).expect("the folder for what is kept can be made");
        let mut command = Command::new("go");
        command.args(["build", "-o", &peers.to_string_lossy(), COMMAND]).env("CGO_ENABLED", "0");
        succeed(command.current_dir(repository().join("bench/peers")), "install it from https://go.dev/dl/");
        peers.join("dockerfile-frontend")
    })
}

/// The path of `buildctl`, as released.
///
/// # Panics
/// As [`cluster`].
pub fn buildctl() -> PathBuf {
    tools().0.join("buildctl")
}

/// A running buildkitd with a state of its own; it ends when dropped.
#[derive(Debug)]
pub struct Peer {
    daemon: Child,
    address: String,
    state: PathBuf,
}

impl Peer {
    /// Starts it with an empty folder for its state, and lines that are added to its configuration (registries).
    ///
    /// # Errors
    /// Where a program can't be started.
    ///
    /// # Panics
    /// Where the programs can't be built, or it does not begin to serve.
    pub fn start(state: &Path, more: &str) -> io::Result<Self> {
        let (peers, runc) = tools();
        let binary = format!("binary = \"{}\"\nnetworkMode = \"host\"\n", runc.display());
        // It refuses to start when no runc is on its PATH, whatever its configuration says.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = runc.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&path));
        let mut command = Command::new(peers.join("buildkitd"));
        command.env("PATH", std::env::join_paths(folders).map_err(io::Error::other)?);
        Self::serve(command, state, &binary, more)
    }

    /// Starts our daemon in its place, with the same configuration.
    ///
    /// # Errors
    /// As [`Self::start`].
    ///
    /// # Panics
    /// As [`Self::start`].
    pub fn start_ours(state: &Path, builder: &Path, more: &str) -> io::Result<Self> {
        let mut command = Command::new(builder);
        command.arg("serve");
        Self::serve(command, state, "", more)
    }

    fn serve(mut command: Command, state: &Path, worker: &str, more: &str) -> io::Result<Self> {
        let dir = state.display();
        // The socket's path must be short.
        let address = format!("unix://{dir}/s");
        let config = format!(
            "root = \"{dir}/root\"\n[grpc]\naddress = [\"{address}\"]\n[otel]\nsocketPath = \"{dir}/o\"\n\
             [worker.containerd]\nenabled = false\n[worker.oci]\n{worker}snapshotter = \"overlayfs\"\n",
        );
        // Keys of the whole file must come before its tables.
        let (keys, tables) = more.split_at(
            more.find('[')
                .filter(|at| *at == 0)
                .unwrap_or_else(|| more.find("\n[").map_or(more.len(), |at| at + 1)),
        );
        let file = state.join("buildkitd.toml");
        fs::write(&file, format!("{keys}{config}{tables}"))?;
        let daemon = command
            .arg("--config")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(File::create(state.join("log"))?)
            .spawn()?;
        let mut peer = Self { daemon, address, state: state.to_owned() };
        while !peer.control().args(["debug", "workers"]).output()?.status.success() {
            if let Some(status) = peer.daemon.try_wait()? {
                panic!("the daemon ended with {status}:\n{}", peer.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(peer)
    }

    /// Where it serves: `unix://…`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.state.join("log")).unwrap_or_default()
    }

    /// `buildctl`, told of the daemon.
    pub fn control(&self) -> Command {
        let mut command = Command::new(tools().0.join("buildctl"));
        command.args(["--addr", &self.address]);
        command
    }

    /// A build of a folder by its Dockerfile, with further arguments of `buildctl build`.
    ///
    /// # Errors
    /// Where `buildctl` can't be started.
    pub fn run(&self, context: &Path, args: &[impl AsRef<std::ffi::OsStr>]) -> io::Result<Output> {
        let mut command = self.control();
        command.args(["build", "--progress", "plain", "--frontend", "dockerfile.v0"]);
        for name in ["context", "dockerfile"] {
            command.arg("--local").arg(format!("{name}={}", context.display()));
        }
        command.args(args).output()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Asked, not killed: it takes its mounts away itself.
        Command::new("kill").arg(self.daemon.id().to_string()).status().ok(); // it may have ended
        self.daemon.wait().ok(); // as above
    }
}
