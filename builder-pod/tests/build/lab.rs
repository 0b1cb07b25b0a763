//! A place for one test: a registry with a busybox image, contexts, a state directory, and the binary.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use lapstrake_oci::{ImageConfig, Manifest};
use lapstrake_testkit::image::Image;
use lapstrake_testkit::registry::{Options, Registry};
use lapstrake_testkit::{TempDir, rootfs};
use serde_json::Value;

/// The builder.
pub(crate) const BUILDER: &str = env!("CARGO_BIN_EXE_lapstrake-builder");

/// One test's own world. `@base` in a Dockerfile stands for its busybox image.
pub(crate) struct Lab {
    runtime: tokio::runtime::Runtime,
    pub(crate) registry: Registry,
    pub(crate) dir: TempDir,
}

/// The busybox image, made once.
pub(crate) fn busybox() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| rootfs::busybox_image().unwrap())
}

/// A directory on a disk: overlays do not stack on every file system that `/tmp` may be.
pub(crate) fn disk_dir() -> TempDir {
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tempfile::Builder::new().prefix("build-").tempdir_in(base).unwrap()
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let uid = Command::new("id").arg("-u").output().unwrap().stdout;
        assert_eq!(uid.trim_ascii(), b"0", "these tests need root: steps are namespaces and overlays");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let registry = runtime.block_on(Registry::start(options)).unwrap();
        registry.put_image("busybox", "1", busybox()).unwrap();
        Self { runtime, registry, dir: disk_dir() }
    }

    /// Another registry beside the first.
    pub(crate) fn another_registry(&self, options: Options) -> Registry {
        self.runtime.block_on(Registry::start(options)).unwrap()
    }

    /// A path in the test's own directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn base(&self) -> String {
        self.name("busybox:1")
    }

    /// A name in the registry.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.registry.host())
    }

    /// Writes files of a context; directories come by themselves.
    pub(crate) fn context(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let dir = self.path(name);
        std::fs::create_dir_all(&dir).unwrap();
        for (path, text) in files {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text.replace("@base", &self.base())).unwrap();
        }
        dir
    }

    /// A context of a Dockerfile only.
    pub(crate) fn dockerfile(&self, text: &str) -> PathBuf {
        self.context("context", &[("Dockerfile", text)])
    }

    /// A build of `source` with the test's state directory.
    pub(crate) fn build(&self, source: impl AsRef<Path>) -> Build {
        self.build_in("state", source)
    }

    /// A build with a state directory of this name.
    pub(crate) fn build_in(&self, state: &str, source: impl AsRef<Path>) -> Build {
        let registries = self.path("registries.json");
        let http = format!("{{\"{}\": {{\"http\": true}}}}", self.registry.host());
        std::fs::write(&registries, http).unwrap();
        let mut command = Command::new(BUILDER);
        command.arg("build").arg(source.as_ref()).arg("--progress=json").arg("--root").arg(self.path(state));
        command.arg("--registries").arg(registries);
        command.stdin(Stdio::null());
        command.env("DOCKER_CONFIG", self.path("docker")).env_remove("SOURCE_DATE_EPOCH");
        Build(command)
    }

    /// Builds a Dockerfile and gives its file system as a directory.
    #[track_caller]
    pub(crate) fn files_of(&self, source: impl AsRef<Path>) -> PathBuf {
        let out = self.path("files");
        self.build(source).args(["-o", out.to_str().unwrap()]).ok();
        out
    }

    /// Builds and reads one file of the result.
    #[track_caller]
    pub(crate) fn file_of(&self, source: impl AsRef<Path>, file: &str) -> String {
        std::fs::read_to_string(self.files_of(source).join(file)).unwrap()
    }

    /// Manifest and config of an image in the registry.
    #[track_caller]
    pub(crate) fn image(&self, repository: &str, tag: &str) -> (Manifest, ImageConfig) {
        let storage = self.registry.storage();
        let (_, bytes, _) = storage.manifest(repository, tag).expect("the image was pushed");
        let manifest: Manifest = serde_json::from_slice(&bytes).unwrap();
        let config = std::fs::read(storage.blob_path(&manifest.config.digest)).unwrap();
        (manifest, serde_json::from_slice(&config).unwrap())
    }

    /// Writes a docker config with credentials for the registry.
    pub(crate) fn log_in(&self, user: &str, password: &str) {
        let dir = self.path("docker");
        std::fs::create_dir_all(&dir).unwrap();
        let config =
            serde_json::json!({"auths": {self.registry.host(): {"username": user, "password": password}}});
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    }
}

/// A build that was not started yet.
pub(crate) struct Build(pub(crate) Command);

impl Build {
    pub(crate) fn args<const N: usize>(mut self, args: [&str; N]) -> Self {
        self.0.args(args);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    /// The same after a shell command that changes what the process is given.
    pub(crate) fn after(self, command: &str) -> Self {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("{command}; exec \"$@\"")).arg("sh");
        shell.arg(self.0.get_program()).args(self.0.get_args()).stdin(Stdio::null());
        for (name, value) in self.0.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        Self(shell)
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Ran {
        self.start().wait()
    }

    /// Runs it and expects success.
    #[track_caller]
    pub(crate) fn ok(self) -> Ran {
        let ran = self.run();
        assert_eq!(ran.code, Some(0), "{}", ran.stderr());
        ran
    }

    /// Runs it and expects this exit code.
    #[track_caller]
    pub(crate) fn fails(self, code: i32) -> Ran {
        let ran = self.run();
        assert_eq!(ran.code, Some(code), "{}", ran.stderr());
        ran
    }

    pub(crate) fn start(mut self) -> Running {
        let mut child = self.0.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let stdout = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Running { child, stdout: Some(stdout), stderr, lines: Vec::new() }
    }
}

/// A build on its way. Dropped, it is killed.
pub(crate) struct Running {
    child: Child,
    stdout: Option<std::thread::JoinHandle<Vec<u8>>>,
    stderr: BufReader<std::process::ChildStderr>,
    lines: Vec<String>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok(); // it may have ended
        self.child.wait().ok(); // as above
    }
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, where that is a pipe.
    pub(crate) fn stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// The next line; `None` at the end.
    fn next(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let read = self.stderr.read_until(b'\n', &mut line).unwrap();
        let line = String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned();
        (read > 0).then(|| {
            self.lines.push(line.clone());
            line
        })
    }

    /// Reads until the build says `text`.
    #[track_caller]
    pub(crate) fn until(&mut self, text: &str) {
        while let Some(line) = self.next() {
            if line.contains(text) {
                return;
            }
        }
        panic!("the build ended without {text:?}: {}", self.lines.join("\n"));
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let status =
            Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status().unwrap();
        assert!(status.success());
    }

    pub(crate) fn wait(mut self) -> Ran {
        let mut rest = Vec::new();
        self.stderr.read_to_end(&mut rest).unwrap();
        self.lines.extend(String::from_utf8_lossy(&rest).lines().map(str::to_owned));
        let code = self.child.wait().unwrap().code();
        let stdout = self.stdout.take().unwrap().join().unwrap();
        Ran { code, stdout, lines: std::mem::take(&mut self.lines) }
    }
}

/// How a build ended.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    lines: Vec<String>,
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Absent,
    Open,
    Done,
    Cached,
    Failed,
    Canceled,
}

impl Ran {
    pub(crate) fn stderr(&self) -> String {
        self.lines.join("\n")
    }

    /// The progress, in order.
    pub(crate) fn events(&self) -> Vec<Value> {
        self.lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Steps with their names and what became of them.
    pub(crate) fn steps(&self) -> Vec<(String, Fate)> {
        let mut steps: Vec<(Value, String, Fate)> = Vec::new();
        for event in self.events() {
            let id = event["step"].clone();
            let fate = match event["event"].as_str() {
                Some("started") => {
                    steps.push((id, event["name"].as_str().unwrap().to_owned(), Fate::Open));
                    continue;
                }
                Some("done") => Fate::Done,
                Some("cached") => Fate::Cached,
                Some("failed") => Fate::Failed,
                Some("canceled") => Fate::Canceled,
                _ => continue,
            };
            steps.iter_mut().rfind(|(i, ..)| *i == id).unwrap().2 = fate;
        }
        steps.into_iter().map(|(_, name, fate)| (name, fate)).collect()
    }

    /// What became of the step whose name contains `text`; the last one where there are several.
    pub(crate) fn fate(&self, text: &str) -> Fate {
        self.steps().into_iter().rfind(|(name, _)| name.contains(text)).map_or(Fate::Absent, |(_, fate)| fate)
    }

    /// Instructions that were run, without their numbers: `RUN make`, `COPY a b`. Base images are none.
    pub(crate) fn ran(&self) -> Vec<String> {
        let instruction = |name: &str| {
            let (number, text) = name.strip_prefix('[')?.split_once("] ")?;
            (!number.ends_with("internal") && !text.starts_with("FROM ")).then(|| text.to_owned())
        };
        let mut ran: Vec<String> = self
            .steps()
            .iter()
            .filter(|(_, fate)| *fate == Fate::Done)
            .filter_map(|(name, _)| instruction(name))
            .collect();
        ran.sort();
        ran
    }

    /// Position of an event of the step whose name contains `text`.
    pub(crate) fn position(&self, text: &str, event: &str) -> usize {
        let events = self.events();
        let started =
            |e: &&Value| e["event"] == "started" && e["name"].as_str().is_some_and(|n| n.contains(text));
        let id = events.iter().find(started).expect("the step was started")["step"].clone();
        events.iter().position(|e| e["step"] == id && e["event"] == event).expect("the event happened")
    }

    #[track_caller]
    pub(crate) fn says(&self, parts: &[&str]) -> &Self {
        let text = self.stderr();
        for part in parts {
            assert!(text.contains(part), "no {part:?} in:\n{text}");
        }
        self
    }
}

/// Mode bits of a file, without following links.
pub(crate) fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Runs a program that must succeed; its output.
#[track_caller]
pub(crate) fn tool(program: &str, args: &[&str]) -> String {
    let out = match Command::new(program).args(args).output() {
        Ok(out) => out,
        Err(e) => {
            panic!("{program} can't be started ({e}): install it, for instance by apt-get install {program}")
        }
    };
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}
