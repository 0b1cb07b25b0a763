//! A real sshd on this machine, with private Git repositories that pods clone.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::manifest::Manifest;
use crate::test::{Test, output};

/// Lets in who has its key, to clone and for nothing else; ends when dropped.
#[derive(Debug)]
pub struct Sshd {
    folder: TempDir,
    child: Child,
    host: String,
    port: u16,
    user: String,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.child.kill().ok(); // It may have ended.
        self.child.wait().ok();
    }
}

impl Sshd {
    /// Starts it on a free port.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name);
        for name in ["host", "user", "stranger"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(path(name));
            output(&mut keygen)?;
        }
        let public = std::fs::read_to_string(path("user.pub"))?;
        let authorized = format!("restrict,command=\"git-shell -c \\\"$SSH_ORIGINAL_COMMAND\\\"\" {public}");
        std::fs::write(path("authorized"), authorized)?;
        let port = TcpListener::bind("0.0.0.0:0")?.local_addr()?.port();
        let shown = folder.path().display();
        let config = format!(
            "Port {port}\nHostKey {shown}/host\nAuthorizedKeysFile {shown}/authorized\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nPidFile none\nPermitRootLogin forced-commands-only\n"
        );
        std::fs::write(path("config"), config)?;
        // Where sshd looks for an empty directory of its own.
        std::fs::create_dir_all("/run/sshd").ok();
        let child = start(&path("config"))?;
        let user = String::from_utf8(output(Command::new("id").arg("-un"))?)?.trim().to_owned();
        Ok(Self { folder, child, host: cluster.host()?.to_owned(), port, user })
    }

    /// Makes a repository whose branch `main` has the files of a folder; gives its URL and commit.
    pub fn repository(&self, name: &str, files: &Path) -> Result<(String, String)> {
        let bare = self.path(&format!("{name}.git"));
        output(Command::new("git").args(["init", "--quiet", "--bare", "--initial-branch=main"]).arg(&bare))?;
        let git = |arguments: &[&str]| {
            let mut command = Command::new("git");
            command.arg("--git-dir").arg(&bare).arg("--work-tree").arg(files);
            command.args(["-c", "user.name=Tester", "-c", "user.email=tester@example.org"]);
            output(command.args(arguments))
        };
        git(&["add", "--all"])?;
        git(&["commit", "--quiet", "--message", "A state of the files"])?;
        let commit = String::from_utf8(git(&["rev-parse", "HEAD"])?)?.trim().to_owned();
        let url = format!("ssh://{}@{}:{}{}", self.user, self.host, self.port, bare.display());
        Ok((url, commit))
    }

    /// The private key that it lets in.
    pub fn key(&self) -> Result<String> {
        self.read("user")
    }

    /// A private key that it does not let in.
    pub fn strange_key(&self) -> Result<String> {
        self.read("stranger")
    }

    /// Its own key, as clients keep it.
    pub fn known_hosts(&self) -> Result<String> {
        Ok(format!("[{}]:{} {}", self.host, self.port, self.read("host.pub")?))
    }

    /// Another key under its name.
    pub fn wrong_known_hosts(&self) -> Result<String> {
        Ok(format!("[{}]:{} {}", self.host, self.port, self.read("stranger.pub")?))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn read(&self, name: &str) -> Result<String> {
        Ok(std::fs::read_to_string(self.path(name))?)
    }
}

/// Builds an image with Git and an SSH client, and gives its name.
pub async fn ssh_client(test: &Test) -> Result<String> {
    let dockerfile = "ARG BASE\nFROM ${BASE}\n\
        RUN apt-get update -q && apt-get install -q --yes --no-install-recommends git openssh-client\n";
    let image = test.image("ssh-client");
    let manifest = Manifest::inline("ssh-client", dockerfile, &image);
    let built = test.build(&manifest.arg("BASE", &test.base("debian:bookworm"))).await?;
    built.status.and_then(|status| status.image).context("an image")
}

/// Starts the program, and returns when it listens.
fn start(config: &Path) -> Result<Child> {
    let program = std::env::var("LAPSTRAKE_SSHD").unwrap_or_else(|_| "/usr/sbin/sshd".to_owned());
    let mut command = Command::new(&program);
    command.args(["-D", "-e", "-f"]).arg(config).stderr(Stdio::piped());
    let hint = || format!("{program}: install openssh-server, or name one in LAPSTRAKE_SSHD");
    let mut child = command.spawn().with_context(hint)?;
    let mut log = BufReader::new(child.stderr.take().context("its errors are a pipe")?);
    let mut said = String::new();
    while !said.contains("Server listening") {
        if log.read_line(&mut said)? == 0 {
            child.wait()?;
            bail!("sshd ended: {said}");
        }
    }
    // A pipe that nobody reads would stop it.
    std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
    Ok(child)
}
