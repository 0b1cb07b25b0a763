//! One daemon with its clients: where scripts run.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use lapstrake_testkit::peer::{self, Peer};

use crate::Result;
use crate::case::Case;
use crate::servers::Servers;

/// The time of all files: 2020-09-13.
const TIME: Duration = Duration::from_secs(1_600_000_000);
/// A script that takes longer hangs.
const SECONDS_MAX: &str = "120";

/// Short names in scripts.
const COMMANDS: [(&str, &str); 6] = [
    ("bx", "exec buildx build --progress=plain \"$@\""),
    ("bake", "exec buildx bake --progress=plain \"$@\""),
    (
        "ctl",
        "exec buildctl build --progress=plain --frontend dockerfile.v0 --local context=. --local dockerfile=. \"$@\"",
    ),
    ("llbuild", "name=$1; shift; llb \"$name\" | exec buildctl build --progress=plain \"$@\""),
    (
        "envdb",
        "envd context create --name x --builder unix --builder-address \"${BUILDKIT_HOST#unix://}\" --use > said 2>&1 || envd context ls | grep -q unix; exec envd build \"$@\"",
    ),
    // What a container has to say of itself without what differs from run to run.
    ("tidy", "exec sed -E 's/sha256:[0-9a-f]{64}/DIGEST/g; s/[0-9]+\\.[0-9]+s/TIME/g'"),
];

/// What a script did.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) failed: bool,
    pub(crate) stderr: String,
    pub(crate) out: PathBuf,
    pub(crate) took: Duration,
}

/// A daemon, and where its scripts run.
pub(crate) struct World {
    pub(crate) who: &'static str,
    dir: PathBuf,
    variables: Vec<(&'static str, String)>,
    _daemon: Peer,
}

impl World {
    /// A place of its own for a daemon's scripts; clients of other makes where a case calls them.
    pub(crate) fn new(
        who: &'static str,
        dir: PathBuf,
        daemon: Peer,
        registry: &str,
        servers: &Servers,
        cases: &[Case],
    ) -> Result<Self> {
        let bin = dir.join("bin");
        for folder in ["bin", "home", "docker", "buildx", "tmp"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        for (name, line) in COMMANDS {
            fs::write(bin.join(name), format!("#!/bin/sh\n{line}\n"))?;
            fs::set_permissions(bin.join(name), Permissions::from_mode(0o755))?;
        }
        let own = [peer::llb().to_owned(), peer::containers().to_owned()];
        let asks = |name: &str| cases.iter().any(|case| case.script.contains(name));
        let others = asks("envdb ").then(|| peer::envd().to_owned());
        for program in [peer::buildctl(), peer::buildx().to_owned()].into_iter().chain(own).chain(others) {
            let name = program.file_name().unwrap_or_default();
            std::os::unix::fs::symlink(&program, bin.join(name))?;
        }
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        let at = |name: &str| dir.join(name).display().to_string();
        let variables = vec![
            ("PATH", path),
            ("HOME", at("home")),
            ("TMPDIR", at("tmp")),
            ("DOCKER_CONFIG", at("docker")),
            ("BUILDX_CONFIG", at("buildx")),
            ("BUILDX_BUILDER", "x".to_owned()),
            ("BUILDX_NO_DEFAULT_ATTESTATIONS", "1".to_owned()),
            ("BUILDX_METADATA_PROVENANCE", "disabled".to_owned()),
            ("BUILDX_GIT_INFO", "0".to_owned()),
            ("BUILDKIT_HOST", daemon.address().to_owned()),
            ("REG", registry.to_owned()),
            ("WHO", who.to_owned()),
            ("HTTP", servers.http()),
            ("GIT", servers.git()),
            ("S3", servers.s3()),
            ("AZ", servers.azure()),
            ("GHA", servers.actions()),
            ("GHA2", servers.results()),
            ("ENVD_ANALYTICS", "false".to_owned()),
        ];
        // How clients of other makes are told of a registry without TLS.
        let insecure = format!("[[registry]]\nlocation = \"{registry}\"\ninsecure = true\n");
        fs::create_dir_all(dir.join("home/.config/containers"))?;
        fs::write(dir.join("home/.config/containers/registries.conf"), insecure)?;
        let world = Self { who, dir, variables, _daemon: daemon };
        let create = ["create", "--name", "x", "--driver", "remote", world.variable("BUILDKIT_HOST")];
        let out = world.command("buildx").args(create).output()?;
        if !out.status.success() {
            return Err(String::from_utf8_lossy(&out.stderr).into_owned().into());
        }
        Ok(world)
    }

    fn variable(&self, name: &str) -> &str {
        self.variables.iter().find(|(n, _)| *n == name).map_or("", |(_, value)| value)
    }

    fn command(&self, program: &str) -> Command {
        let known = self.dir.join("bin").join(program);
        let mut command = Command::new(if known.exists() { known.as_path() } else { Path::new(program) });
        command.env_clear().envs(self.variables.iter().map(|(k, v)| (*k, v.as_str())));
        command
    }

    /// Runs a case's script in a folder with its files.
    pub(crate) fn run(&self, case: &Case) -> Result<Done> {
        let dir = self.dir.join("c").join(&case.name);
        let (context, out) = (dir.join("ctx"), dir.join("out"));
        fs::create_dir_all(&context)?;
        fs::create_dir_all(&out)?;
        for (path, text) in &case.files {
            let at = context.join(path);
            fs::create_dir_all(at.parent().unwrap_or(&context))?;
            fs::write(&at, self.filled(text))?;
        }
        settle(&context)?;
        let image = format!("{}/{}/{}", self.variable("REG"), self.who, case.name);
        let began = Instant::now();
        let ended = self
            .command("timeout")
            .args(["-k", "5", SECONDS_MAX, "sh", "-ec", &case.script])
            .current_dir(&context)
            .env("OUT", &out)
            .env("IMG", image)
            .stdin(Stdio::null())
            .output()?;
        let took = began.elapsed();
        if ended.status.code() == Some(124) {
            let said = String::from_utf8_lossy(&ended.stderr).into_owned();
            return Err(format!("it hung; it said\n{said}").into());
        }
        let stderr = String::from_utf8_lossy(&ended.stderr).into_owned();
        Ok(Done { failed: !ended.status.success(), stderr, out, took })
    }

    fn filled(&self, text: &str) -> String {
        let names = ["REG", "WHO", "HTTP", "GIT"];
        names
            .iter()
            .fold(text.to_owned(), |text, name| text.replace(&format!("@{name}@"), self.variable(name)))
    }
}

/// All that lies below gets one time.
fn settle(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            settle(&entry.path())?;
        } else {
            File::open(entry.path())?.set_modified(SystemTime::UNIX_EPOCH + TIME)?;
        }
    }
    Ok(File::open(dir)?.set_modified(SystemTime::UNIX_EPOCH + TIME)?)
}

/// The line of an error that says what happened, without what differs from run to run.
pub(crate) fn decisive(stderr: &str) -> String {
    let starts = ["ERROR: ", "error: ", "Error: "];
    let said = stderr.lines().rev().find(|line| starts.iter().any(|start| line.starts_with(start)));
    let said = said.or_else(|| stderr.lines().rev().find(|line| !line.trim().is_empty())).unwrap_or_default();
    crate::facts::plain(said)
}
