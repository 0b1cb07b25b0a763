//! Runs `git` so that nothing of the machine's own configuration, and nothing that a repository says, makes it run
//! something else.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use crate::auth::Access;
use crate::error::Class;

/// How much of git's output is kept.
const OUTPUT_BYTES_MAX: u64 = 64 << 20;
/// How much of git's messages is kept.
const MESSAGE_BYTES_MAX: u64 = 256 << 10;

/// What `git` needs of the machine to get out.
const PASSED_ON: [&str; 11] = [
    "PATH",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "GIT_SSL_CAINFO",
];

/// Settings of every call.
const SETTINGS: [&str; 10] = [
    "core.hooksPath=/dev/null",
    "core.symlinks=true",
    "core.fsmonitor=false",
    "core.sshCommand=ssh -F /dev/null -o BatchMode=yes",
    "credential.helper=",
    "gc.auto=0",
    "maintenance.auto=false",
    "protocol.version=2",
    "http.lowSpeedLimit=1000",
    "http.lowSpeedTime=60",
];

pub(crate) struct Runner {
    home: PathBuf,
    /// Whether `file://` and paths are taken.
    pub(crate) local: bool,
    /// What each call finds in its environment: proxies, authorities.
    pub(crate) outside: Vec<(String, OsString)>,
}

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The program could not be started or talked to.
    Program(io::Error),
    /// It said no; its messages.
    Git(String),
}

impl Runner {
    pub(crate) fn new(home: PathBuf) -> Self {
        Self { home, local: false, outside: Vec::new() }
    }

    /// Makes the empty home directory.
    fn make_home(&self) -> io::Result<()> {
        std::fs::create_dir_all(&self.home)
    }

    /// Runs `git args…` on the bare repository `dir`, if given; returns what it printed.
    pub(crate) async fn run<S: AsRef<str>>(&self, dir: Option<&Path>, args: &[S]) -> Result<String, Failure> {
        let bytes = self.bytes(dir, args, &[], None).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The same for a call that speaks to a server, with what lets it in.
    pub(crate) async fn remote<S: AsRef<str>>(
        &self,
        dir: Option<&Path>,
        args: &[S],
        access: &Access,
    ) -> Result<String, Failure> {
        let env: Vec<(&str, &Path)> = access
            .env
            .iter()
            .filter_map(|(name, value)| Some((name.to_str()?, Path::new(value.as_os_str()))))
            .collect();
        match self.bytes(dir, args, &env, None).await {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(Failure::Git(messages)) => Err(Failure::Git(access.scrubbed(messages))),
            Err(failure) => Err(failure),
        }
    }

    /// The same with more environment and an open file as input, for output that is no text.
    pub(crate) async fn bytes<S: AsRef<str>>(
        &self,
        dir: Option<&Path>,
        args: &[S],
        env: &[(&str, &Path)],
        input: Option<OwnedFd>,
    ) -> Result<Vec<u8>, Failure> {
        self.make_home().map_err(Failure::Program)?;
        let mut command = self.command(dir);
        command.args(args.iter().map(AsRef::as_ref)).envs(env.iter().copied());
        command.stdin(input.map_or_else(Stdio::null, Stdio::from));
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Failure::Program(io::Error::new(error.kind(), "the program \"git\" is not installed"))
            }
            _ => Failure::Program(error),
        })?;
        let group = Group(child.id());
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (output, messages, status) =
            tokio::join!(drain(stdout, OUTPUT_BYTES_MAX), drain(stderr, MESSAGE_BYTES_MAX), child.wait());
        let status = status.map_err(Failure::Program)?;
        group.ended();
        if !status.success() {
            let messages = messages.map_err(Failure::Program)?.0;
            return Err(Failure::Git(String::from_utf8_lossy(&messages).into_owned()));
        }
        match output.map_err(Failure::Program)? {
            (output, false) => Ok(output),
            (_, true) => Err(Failure::Program(io::Error::other("git printed more than expected"))),
        }
    }

    fn command(&self, dir: Option<&Path>) -> Command {
        let mut command = Command::new("git");
        // Away from whatever repository the builder was started in, whose settings would hold.
        command.env_clear().current_dir(&self.home).env("GIT_CEILING_DIRECTORIES", &self.home);
        let is_proxy = |name: &str| name.to_ascii_lowercase().ends_with("_proxy");
        let own_proxy = self.outside.iter().any(|(name, _)| is_proxy(name));
        for name in PASSED_ON {
            if own_proxy && is_proxy(name) {
                continue;
            }
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let protocols = if self.local { "https:http:ssh:git:file" } else { "https:http:ssh:git" };
        command
            .env("HOME", &self.home)
            .env("XDG_CONFIG_HOME", &self.home)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ASKPASS", "")
            .env("SSH_ASKPASS", "")
            .env("GIT_ALLOW_PROTOCOL", protocols)
            .env("GIT_NO_REPLACE_OBJECTS", "1")
            .env("GIT_LFS_SKIP_SMUDGE", "1")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("LC_ALL", "C")
            .envs(self.outside.iter().map(|(name, value)| (name, value)));
        if let Some(dir) = dir {
            command.env("GIT_DIR", dir);
        }
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        // A group of its own: git's helpers end with it.
        command.process_group(0).kill_on_drop(true).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// Reads all, keeps `max` bytes; says whether there was more.
async fn drain(from: Option<impl AsyncRead + Unpin>, max: u64) -> io::Result<(Vec<u8>, bool)> {
    let mut kept = Vec::new();
    let Some(mut from) = from else { return Ok((kept, false)) };
    (&mut from).take(max).read_to_end(&mut kept).await?;
    let more = tokio::io::copy(&mut from, &mut tokio::io::sink()).await? > 0;
    Ok((kept, more))
}

/// Kills a process group unless it ended.
struct Group(Option<u32>);

impl Group {
    fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let pid = self.0.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            rustix::process::kill_process_group(pid, rustix::process::Signal::KILL).ok(); // gone already
        }
    }
}

impl Failure {
    pub(crate) fn class(&self) -> Class {
        let Self::Git(messages) = self else { return Class::Unavailable };
        let text = messages.to_ascii_lowercase();
        let any = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if any(&[
            "authentication failed",
            "could not read username",
            "could not read password",
            "permission denied",
            "host key verification failed",
            "access denied",
            "error: 401",
            "error: 403",
        ]) {
            return Class::Denied;
        }
        if any(&[
            "couldn't find remote ref",
            "repository not found",
            "does not appear to be a git repository",
            "does not exist",
            "error: 404",
            "not our ref",
            "unadvertised object",
            "is this a git repository",
            "access denied or repository not exported",
        ]) || text.contains("repository '") && text.contains("' not found")
        {
            return Class::NotFound;
        }
        if any(&["transport '", "is not a valid", "url using bad/illegal"])
            && any(&["not allowed", "illegal"])
        {
            return Class::User;
        }
        Class::Unavailable
    }

    /// The line that tells most.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Program(error) => error.to_string(),
            Self::Git(messages) => {
                let lines = || messages.lines().map(str::trim).filter(|line| !line.is_empty());
                // What ssh says tells more than git's "could not read from remote repository".
                let ssh = ["Permission denied", "Host key verification failed", "Load key", "ssh: "];
                let of_ssh = || lines().find(|line| ssh.iter().any(|words| line.contains(words)));
                let of_git =
                    || lines().find(|line| line.starts_with("fatal: ") || line.starts_with("ERROR: "));
                let telling = of_ssh().or_else(of_git);
                let line = telling.or_else(|| lines().next_back()).unwrap_or("git failed without a message");
                line.strip_prefix("fatal: ").unwrap_or(line).chars().take(500).collect()
            }
        }
    }
}
