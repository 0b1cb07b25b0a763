//! Sources that ask who is there: what a Secret's folder holds lets the build in, and is shown nowhere.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::pod::{request, serve};

const PASSWORD: &str = "correct-horse-4711";

fn git(dir: &Path, args: &[&str]) {
    let identity = ["AUTHOR", "COMMITTER"]
        .iter()
        .flat_map(|who| [(format!("GIT_{who}_NAME"), "t"), (format!("GIT_{who}_EMAIL"), "t@t.example")]);
    let mut command = Command::new("git");
    let status = command.args(args).current_dir(dir).envs(identity).status().expect("git");
    assert!(status.success(), "{args:?}");
}

/// A bare repository whose Dockerfile copies a file of it.
fn repository(lab: &Lab) -> PathBuf {
    let work = lab.path("work");
    std::fs::create_dir_all(&work).unwrap();
    std::fs::write(work.join("Dockerfile"), format!("FROM {}\nCOPY secret-sauce /\n", lab.base())).unwrap();
    std::fs::write(work.join("secret-sauce"), "tomatoes").unwrap();
    git(&work, &["init", "--quiet", "--initial-branch=main"]);
    git(&work, &["add", "--all"]);
    git(&work, &["commit", "--quiet", "--message", "m"]);
    let bare = lab.path("private.git");
    git(&work, &["clone", "--quiet", "--bare", ".", bare.to_str().unwrap()]);
    git(&bare, &["update-server-info"]);
    bare
}

fn folder(lab: &Lab, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let dir = lab.path(name);
    std::fs::create_dir_all(&dir).unwrap();
    for (file, text) in files {
        std::fs::write(dir.join(file), text).unwrap();
    }
    dir
}

/// Serves the files below `root` to those who show the header; gives its address and what it was shown.
fn server(root: PathBuf, wanted: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let shown = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&shown);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let first = lines.next().unwrap_or_default();
            let header = lines.take_while(|line| !line.is_empty()).find_map(|line| {
                line.to_ascii_lowercase().starts_with("authorization: ").then(|| line[15..].to_owned())
            });
            seen.lock().unwrap().extend(header.clone());
            let path = first.split(' ').nth(1).unwrap_or("/").split('?').next().unwrap_or("/").to_owned();
            let file = root.join(path.trim_start_matches('/'));
            let (status, body) = match std::fs::read(&file) {
                _ if header.as_deref() != Some(wanted) => {
                    ("401 Unauthorized\r\nwww-authenticate: Basic realm=\"r\"", Vec::new())
                }
                Ok(body) => ("200 OK", body),
                Err(_) => ("404 Not Found", Vec::new()),
            };
            let head =
                format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            let mut stream = &stream;
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)).ok(); // the client may have gone
        }
    });
    (address, shown)
}

fn of_git(lab: &Lab, url: &str, credentials: Option<&Path>) -> Value {
    request(lab, "", |request| {
        request["source"] = json!({"git": {"url": url, "credentials": credentials}});
        if credentials.is_none() {
            request["source"] = json!({"git": {"url": url}});
        }
    })
}

#[test]
fn a_private_repository_over_http_is_let_in_by_its_secret_and_by_nothing_else() {
    let lab = Lab::new();
    repository(&lab);
    // robot:correct-horse-4711
    let (address, shown) = server(lab.path("."), "Basic cm9ib3Q6Y29ycmVjdC1ob3JzZS00NzEx");
    let url = format!("{address}/private.git");
    let right = folder(&lab, "right", &[("username", "robot\n"), ("password", PASSWORD)]);
    let wrong = folder(&lab, "wrong", &[("username", "robot"), ("password", "battery-staple-1")]);
    for credentials in [None, Some(&*wrong)] {
        let (_, outcome) = serve(&lab, &of_git(&lab, &url, credentials));
        assert_eq!(outcome["failure"]["reason"], "SourceDenied", "{outcome}");
        assert!(!outcome.to_string().contains("battery-staple"), "{outcome}");
    }
    let (code, outcome) = serve(&lab, &of_git(&lab, &url, Some(&right)));
    assert_eq!(code, Some(0), "{outcome}");
    assert!(!shown.lock().unwrap().is_empty());
    // Nothing of it stays in the state directory.
    let found =
        Command::new("grep").args(["-r", "-l", "-a", PASSWORD]).arg(lab.path("state")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
}

#[test]
fn a_private_download_is_let_in_by_its_token() {
    let lab = Lab::new();
    let files = folder(&lab, "files", &[("app.Dockerfile", &format!("FROM {}\nRUN true\n", lab.base()))]);
    let (address, _) = server(files, "Bearer correct-horse-4711");
    let url = format!("{address}/app.Dockerfile");
    let token = folder(&lab, "token", &[("token", "correct-horse-4711\n")]);
    let of = |credentials: Option<&Path>| {
        request(&lab, "", |request| {
            request["source"] = json!({"http": {"url": url}});
            if let Some(dir) = credentials {
                request["source"]["http"]["credentials"] = json!(dir);
            }
        })
    };
    let (_, outcome) = serve(&lab, &of(None));
    assert_eq!(outcome["failure"]["reason"], "SourceDenied", "{outcome}");
    let (code, outcome) = serve(&lab, &of(Some(&token)));
    assert_eq!(code, Some(0), "{outcome}");
}

struct Sshd(Child);

impl Drop for Sshd {
    fn drop(&mut self) {
        self.0.kill().ok(); // it has ended
        self.0.wait().ok();
    }
}

/// A real sshd on a port of its own, which lets in who has the key of `dir`; its port.
fn sshd(dir: &Path) -> (Sshd, u16) {
    let key = |name: &str| {
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(dir.join(name))
            .status();
        assert!(made.expect("ssh-keygen").success());
    };
    key("host");
    key("user");
    std::fs::copy(dir.join("user.pub"), dir.join("authorized")).unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let shown = dir.display();
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {shown}/host\nAuthorizedKeysFile {shown}/authorized\n\
         StrictModes no\nPasswordAuthentication no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\n"
    );
    std::fs::write(dir.join("config"), config).unwrap();
    let program = std::env::var("LAPSTRAKE_SSHD").unwrap_or_else(|_| "/usr/sbin/sshd".to_owned());
    let mut child = Command::new(&program)
        .args(["-D", "-e", "-f"])
        .arg(dir.join("config"))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}: install openssh-server, or name one in LAPSTRAKE_SSHD"));
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains("Server listening") {
        assert!(log.read_line(&mut said).unwrap() > 0, "sshd ended: {said}");
    }
    std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
    (Sshd(child), port)
}

#[test]
fn a_private_repository_over_ssh_needs_its_key_and_a_host_that_is_known() {
    let lab = Lab::new();
    let bare = repository(&lab);
    let dir = folder(&lab, "sshd", &[]);
    let (_sshd, port) = sshd(&dir);
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let known = format!("[127.0.0.1]:{port} {}", read("host.pub"));
    let other = format!("[127.0.0.1]:{port} {}", read("user.pub"));
    let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
    let url = format!("ssh://{user}@127.0.0.1:{port}{}", bare.display());
    let key = read("user");
    let build = |name: &str, files: &[(&str, &str)]| {
        serve(&lab, &of_git(&lab, &url, Some(&folder(&lab, name, files))))
    };
    for (name, files, told) in [
        ("no-known-hosts", &[("ssh-privatekey", key.as_str())][..], "known_hosts"),
        ("no-key", &[("known_hosts", known.as_str())], "ssh-privatekey"),
        ("other-host", &[("ssh-privatekey", &key), ("known_hosts", &other)], "Host key verification failed"),
        ("other-key", &[("ssh-privatekey", &read("host")), ("known_hosts", &known)], "Permission denied"),
    ] {
        let (_, outcome) = build(name, files);
        assert_eq!(outcome["failure"]["reason"], "SourceDenied", "{name}: {outcome}");
        assert!(outcome["failure"]["message"].as_str().unwrap().contains(told), "{name}: {outcome}");
    }
    // As a Secret has it that was made from a text: without a line end, and readable by others.
    let (code, outcome) = build("right", &[("ssh-privatekey", key.trim_end()), ("known_hosts", &known)]);
    assert_eq!(code, Some(0), "{outcome}");
}

#[test]
fn add_is_let_in_by_secrets_of_buildkit_s_names_and_leaves_nothing_of_them() {
    let lab = Lab::new();
    repository(&lab);
    // x-access-token:correct-horse-4711
    let token = "eC1hY2Nlc3MtdG9rZW46Y29ycmVjdC1ob3JzZS00NzEx";
    let (address, shown) = server(lab.path("."), "basic eC1hY2Nlc3MtdG9rZW46Y29ycmVjdC1ob3JzZS00NzEx");
    let (downloads, _) = server(folder(&lab, "files", &[("data", "peppers")]), "Bearer correct-horse-4711");
    let host = address.trim_start_matches("http://");
    let text = format!(
        "FROM @base\nADD {address}/private.git /src\nADD {downloads}/data /\nRUN cat /src/secret-sauce /data >/out\n"
    );
    let dir = lab.dockerfile(&text);
    let right = folder(&lab, "right", &[("token", &format!("{PASSWORD}\n")), ("wrong", "battery-staple-1")]);
    let out = lab.path("out");
    let build = |secrets: &[(&str, &str)]| {
        let mut build = lab.build(&dir).args(["-o", out.to_str().unwrap()]);
        for (id, file) in secrets {
            build.0.args(["--secret", &format!("id={id},src={}", right.join(file).display())]);
        }
        let ran = build.run();
        assert!(!ran.stderr().contains(PASSWORD) && !ran.stderr().contains(token), "{}", ran.stderr());
        ran
    };
    let of_host = format!("GIT_AUTH_TOKEN.{host}");
    let (plain, download) = ("GIT_AUTH_TOKEN", "HTTP_AUTH_TOKEN_127.0.0.1");
    for secrets in
        [&[][..], &[(plain, "wrong")], &[("GIT_AUTH_TOKEN.elsewhere", "token")], &[(plain, "token")]]
    {
        assert_eq!(build(secrets).code, Some(12), "{secrets:?}: one of them is refused");
    }
    // That of the host comes before the other.
    let ran = build(&[(&of_host, "token"), (plain, "wrong"), (download, "token")]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr());
    assert_eq!(std::fs::read_to_string(out.join("out")).unwrap(), "tomatoespeppers");
    assert!(shown.lock().unwrap().iter().any(|header| header.ends_with(token)));
    for secret in [PASSWORD, token] {
        let found =
            Command::new("grep").args(["-r", "-l", "-a", secret]).arg(lab.path("state")).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    }
}

#[test]
fn a_context_is_let_in_by_the_same_secrets_as_add() {
    let lab = Lab::new();
    repository(&lab);
    let (address, _) = server(lab.path("."), "basic eC1hY2Nlc3MtdG9rZW46Y29ycmVjdC1ob3JzZS00NzEx");
    let token = folder(&lab, "right", &[("token", PASSWORD)]).join("token");
    let url = format!("{address}/private.git");
    lab.build(&url).fails(12);
    let secret = format!("id=GIT_AUTH_TOKEN,src={}", token.display());
    let ran = lab.build(&url).args(["--secret", &secret]).ok();
    assert!(!ran.stderr().contains(PASSWORD));
    // A named one too.
    let dir = lab.dockerfile("FROM scratch\nCOPY --from=sauce secret-sauce /\n");
    let named = format!("sauce={url}");
    lab.build_in("other", &dir).args(["--build-context", &named]).fails(12);
    lab.build_in("other", &dir).args(["--build-context", &named, "--secret", &secret]).ok();
}

#[test]
fn add_reaches_a_repository_over_ssh_by_the_build_s_agent() {
    let lab = Lab::new();
    let bare = repository(&lab);
    let dir = folder(&lab, "sshd", &[]);
    let (_sshd, port) = sshd(&dir);
    let known = format!("[127.0.0.1]:{port} {}", std::fs::read_to_string(dir.join("host.pub")).unwrap());
    std::fs::write(dir.join("known"), known).unwrap();
    let user = std::env::var("USER").unwrap_or_else(|_| "root".to_owned());
    let text = format!("FROM @base\nADD ssh://{user}@127.0.0.1:{port}{} /src\n", bare.display());
    let context = lab.dockerfile(&text);
    let out = lab.path("out");
    let build = |args: &[&str]| {
        let mut build = lab.build(&context).args(["-o", out.to_str().unwrap()]);
        build.0.args(args);
        build.run()
    };
    build(&[]).says(&["the build has no agent default", "--ssh default", "Dockerfile:2"]);
    let key = format!("default={}", dir.join("user").display());
    build(&["--ssh", &key]).says(&["no keys of hosts", "--ssh-known-hosts"]);
    let known = format!("default={}", dir.join("known").display());
    let ran = build(&["--ssh", &key, "--ssh-known-hosts", &known]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr());
    assert_eq!(std::fs::read_to_string(out.join("src/secret-sauce")).unwrap(), "tomatoes");
    let left = std::fs::read_dir(lab.path("state/side/ssh")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "the agent went with the build");
}
