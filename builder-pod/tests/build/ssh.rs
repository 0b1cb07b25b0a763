//! SSH agents: a private repository cloned by a step over a real sshd, and the key that it never sees.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use lapstrake_testkit::TempDir;

use crate::lab::{Lab, Ran, tool};

/// A server on loopback with one repository, one host key and one user's key.
struct Server {
    dir: TempDir,
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok(); // it may have ended
        self.child.wait().ok(); // as above
    }
}

fn keygen(path: &Path) {
    tool("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path.to_str().unwrap()]);
}

impl Server {
    fn start() -> Self {
        let dir = lapstrake_testkit::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        keygen(&path("host"));
        keygen(&path("key"));
        keygen(&path("stranger"));
        let repository = path("repository");
        std::fs::create_dir(&repository).unwrap();
        std::fs::write(repository.join("file"), "private\n").unwrap();
        let git = |args: &[&str]| {
            let mut command = Command::new("git");
            command.args(["-c", "user.name=t", "-c", "user.email=t@t.example"]).args(args);
            assert!(command.current_dir(&repository).status().unwrap().success(), "{args:?}");
        };
        git(&["init", "--quiet"]);
        git(&["add", "."]);
        git(&["commit", "--quiet", "-m", "first"]);
        let public = std::fs::read_to_string(path("key.pub")).unwrap();
        std::fs::write(path("authorized"), public).unwrap();
        // Where sshd looks for an empty directory of its own.
        std::fs::create_dir_all("/run/sshd").unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nUsePAM no\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\nPidFile none\n",
            path("host").display(),
            path("authorized").display()
        );
        std::fs::write(path("config"), config).unwrap();
        let child = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(path("config"))
            .stderr(Stdio::null())
            .spawn()
            .expect("sshd is missing: apt-get install openssh-server");
        let mut server = Self { dir, child, port };
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(server.child.try_wait().unwrap().is_none(), "sshd ended");
            std::thread::yield_now();
        }
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The server's key, as clients keep it.
    fn known_hosts(&self) -> PathBuf {
        let public = std::fs::read_to_string(self.path("host.pub")).unwrap();
        let path = self.path("known_hosts");
        std::fs::write(&path, format!("[127.0.0.1]:{} {public}", self.port)).unwrap();
        path
    }

    fn url(&self) -> String {
        format!("ssh://root@127.0.0.1:{}{}", self.port, self.path("repository").display())
    }
}

/// This machine's git and ssh with their libraries, in a context.
fn with_client(lab: &Lab, dockerfile: &str) -> PathBuf {
    let dir = lab.context("client", &[("Dockerfile", dockerfile)]);
    let root = dir.join("root");
    if !root.exists() {
        std::fs::create_dir(&root).unwrap();
        let programs = ["/usr/bin/git", "/usr/bin/ssh", "/usr/bin/ssh-add"];
        let mut files: Vec<String> = programs.map(str::to_owned).to_vec();
        for program in programs {
            let libraries = tool("ldd", &[program]);
            files
                .extend(libraries.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
        }
        files.sort();
        files.dedup();
        for file in files {
            let to = root.join(file.trim_start_matches('/'));
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(&file, &to).unwrap();
            std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        // Git starts parts of itself by this path.
        let core = tool("git", &["--exec-path"]);
        let core = root.join(core.trim().trim_start_matches('/'));
        std::fs::create_dir_all(&core).unwrap();
        std::os::unix::fs::symlink("/usr/bin/git", core.join("git")).unwrap();
    }
    dir
}

const CLONE: &str = "git clone -q --depth 1";

fn build(lab: &Lab, server: &Server, dockerfile: &str, args: &[&str]) -> Ran {
    let text = dockerfile.replace("@url", &server.url());
    let mut build = lab.build(with_client(lab, &text)).env("SSH_AUTH_SOCK", "");
    build.0.args(args);
    build.run()
}

#[test]
fn a_step_clones_a_private_repository_and_never_sees_the_key() {
    let (lab, server) = (Lab::new(), Server::start());
    let text = format!(
        "FROM @base\nCOPY root /\n\
         RUN --mount=type=ssh,required {CLONE} @url /clone && cat /clone/file && ls -l $SSH_AUTH_SOCK && ssh-add -l\n\
         RUN --mount=type=ssh ! ssh-add -D 2>/dev/null && ! ssh-add -x </dev/null 2>/dev/null && ssh-add -L\n\
         RUN --mount=type=ssh ! cat {key} && ! grep -rlq '[P]RIVATE KEY-----' /tmp /run /root /etc /var /home && \
         ! grep -lq '[P]RIVATE KEY-----' /proc/[0-9]*/environ /proc/[0-9]*/cmdline && echo not found\n\
         RUN ls /run/buildkit 2>&1 || echo no socket; ls /etc/ssh 2>&1 || echo no hosts\n",
        key = server.path("key").display()
    );
    let key = format!("default={}", server.path("key").display());
    let hosts = server.known_hosts().display().to_string();
    let files = lab.path("files").display().to_string();
    let args = ["--ssh", &key, "--ssh-known-hosts", &hosts, "-o", &files];
    let ran = build(&lab, &server, &text, &args);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr());
    ran.says(&["private", "srw-------", "ssh-ed25519 ", "not found", "no socket", "no hosts"]);
    let files = lab.path("files");
    assert_eq!(std::fs::read_to_string(files.join("clone/file")).unwrap(), "private\n");
    for gone in ["run/buildkit", "etc/ssh"] {
        assert!(!files.join(gone).exists(), "{gone}");
    }
    // Neither the key nor its socket is anywhere.
    let secret = std::fs::read_to_string(server.path("key")).unwrap();
    let line = secret.lines().nth(2).unwrap();
    for dir in ["state", "files"] {
        let found = Command::new("grep").args(["-rlF", line]).arg(lab.path(dir)).output().unwrap().stdout;
        assert!(found.is_empty(), "{}", String::from_utf8_lossy(&found));
    }
    assert_eq!(std::fs::read_dir(lab.path("state/side/ssh")).unwrap().count(), 0);
}

#[test]
fn another_agent_is_passed_on() {
    let (lab, server) = (Lab::new(), Server::start());
    let socket = server.path("agent");
    let started = tool("ssh-agent", &["-s", "-a", socket.to_str().unwrap()]);
    let pid = started.split("SSH_AGENT_PID=").nth(1).unwrap().split(';').next().unwrap().to_owned();
    let mut add = Command::new("ssh-add");
    add.arg("-q").arg(server.path("key")).env("SSH_AUTH_SOCK", &socket);
    let added = add.status().unwrap().success();
    let text = format!(
        "FROM @base\nCOPY root /\nRUN --mount=type=ssh,id=theirs,target=/a {CLONE} @url /clone && ! ssh-add -D && echo cloned\n"
    );
    let agent = format!("theirs={}", socket.display());
    let hosts = format!("theirs={}", server.known_hosts().display());
    let ran = build(&lab, &server, &text, &["--ssh", &agent, "--ssh-known-hosts", &hosts]);
    // `--ssh default` alone is the agent that the environment names.
    let text = text.replace("id=theirs,", "");
    let mut by_environment = lab.build(with_client(&lab, &text.replace("@url", &server.url())));
    by_environment.0.env("SSH_AUTH_SOCK", &socket).args(["--ssh", "default"]);
    let hosts = server.known_hosts().display().to_string();
    by_environment.0.args(["--ssh-known-hosts", &hosts]);
    let by_environment = by_environment.run();
    tool("kill", &[&pid]);
    assert!(added);
    for ran in [ran, by_environment] {
        assert_eq!(ran.code, Some(0), "{}", ran.stderr());
        ran.says(&["cloned"]);
    }
}

#[test]
fn an_agent_that_is_missing_wrong_or_of_a_stranger_is_told() {
    let (lab, server) = (Lab::new(), Server::start());
    let clone = format!("FROM @base\nCOPY root /\nRUN --mount=type=ssh,required {CLONE} @url /clone\n");
    let ran = build(&lab, &server, &clone, &[]);
    assert_eq!(ran.code, Some(11));
    ran.says(&["SSH agent default: not found", "--ssh default", "Dockerfile:3"]);
    let ran = build(&lab, &server, &clone, &["--ssh", "default"]);
    assert_eq!(ran.code, Some(2));
    ran.says(&["SSH_AUTH_SOCK is not set"]);
    let key = |name: &str| format!("default={}", server.path(name).display());
    let ran = build(&lab, &server, &clone, &["--ssh", &key("key.pub")]);
    assert_eq!(ran.code, Some(2));
    ran.says(&["is it the public part?"]);
    // A server whose key is not known is not trusted.
    let ran = build(&lab, &server, &clone, &["--ssh", &key("key")]);
    assert_eq!(ran.code, Some(10));
    ran.says(&["Host key verification failed"]);
    let hosts = server.known_hosts().display().to_string();
    let ran = build(&lab, &server, &clone, &["--ssh", &key("stranger"), "--ssh-known-hosts", &hosts]);
    assert_eq!(ran.code, Some(10));
    ran.says(&["Permission denied (publickey"]);
    // One that is not required may be missing.
    let optional = "FROM @base\nRUN --mount=type=ssh ls /run/buildkit 2>&1 || echo none\n";
    build(&lab, &server, optional, &[]).says(&["none"]);
}

#[test]
fn the_socket_has_the_owner_and_mode_that_are_asked_for() {
    let (lab, server) = (Lab::new(), Server::start());
    let text = "FROM @base\nRUN --mount=type=ssh,uid=1000,gid=100,mode=0660 --mount=type=ssh,id=two,target=/two \
                stat -c '%u %g %a %F' $SSH_AUTH_SOCK /two; echo $SSH_AUTH_SOCK\n";
    let key = |id: &str| format!("{id}={}", server.path("key").display());
    let ran = build(&lab, &server, text, &["--ssh", &key("default"), "--ssh", &key("two")]);
    ran.says(&["1000 100 660 socket", "0 0 600 socket", "/run/buildkit/ssh_agent.0"]);
}
