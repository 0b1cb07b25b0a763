//! What stands for the network outside: a web server with files, and a Git server with a repository.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use lapstrake_testkit::stores::{Actions, Azure, Results, S3};

use crate::Result;
use crate::case::Case;

/// Both servers; they end when dropped.
pub(crate) struct Servers {
    http: String,
    git_port: u16,
    git: Child,
    s3: Option<S3>,
    azure: Option<Azure>,
    actions: Option<Actions>,
    results: Option<Results>,
}

impl Servers {
    /// Starts them on free ports, with what the cases read; object stores where one of the cases has them.
    pub(crate) fn start(dir: &Path, cases: &[Case]) -> Result<Self> {
        let asks = |name: &str| cases.iter().any(|case| case.script.contains(name));
        let s3 = asks("$S3").then(|| S3::start(&dir.join("s3"))).transpose()?;
        let actions = asks("$GHA").then(|| Actions::start(&dir.join("actions"))).transpose()?;
        let has_blobs = asks("$AZ") || asks("$GHA2");
        let azure = has_blobs.then(|| Azure::start(&dir.join("azure"))).transpose()?;
        let results = azure.as_ref().filter(|_| asks("$GHA2")).map(Results::start).transpose()?;
        let files = dir.join("web");
        let repositories = dir.join("git");
        fs::create_dir_all(&files)?;
        fs::create_dir_all(&repositories)?;
        make(&files, &repositories)?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let http = format!("http://{}", listener.local_addr()?);
        let files = Arc::new(files);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let files = Arc::clone(&files);
                std::thread::spawn(move || answer(stream, &files).ok()); // a client that left is its own affair
            }
        });
        let git_port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let git = Command::new("git")
            .args(["daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1"])
            .arg(format!("--port={git_port}"))
            .arg(format!("--base-path={}", repositories.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        while TcpStream::connect(("127.0.0.1", git_port)).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        Ok(Self { http, git_port, git, s3, azure, actions, results })
    }

    pub(crate) fn http(&self) -> String {
        self.http.clone()
    }

    /// Attributes of a cache in the S3 server.
    pub(crate) fn s3(&self) -> String {
        let Some(s3) = &self.s3 else { return String::new() };
        format!(
            "type=s3,endpoint_url={},use_path_style=true,bucket={},region={},access_key_id={},secret_access_key={}",
            s3.url,
            S3::BUCKET,
            S3::REGION,
            S3::KEY,
            S3::SECRET
        )
    }

    /// Attributes of a cache in the server of GitHub Actions.
    pub(crate) fn actions(&self) -> String {
        let Some(actions) = &self.actions else { return String::new() };
        format!("type=gha,version=1,url={}/,token={}", actions.url, Actions::token())
    }

    /// The same in the second version of its protocol.
    pub(crate) fn results(&self) -> String {
        let Some(results) = &self.results else { return String::new() };
        format!("type=gha,version=2,url_v2={},token={}", results.url, Actions::token())
    }

    /// Attributes of a cache in the Azure server.
    pub(crate) fn azure(&self) -> String {
        let Some(azure) = &self.azure else { return String::new() };
        format!(
            "type=azblob,account_url={},account_name={},secret_access_key={}",
            azure.url,
            Azure::ACCOUNT,
            Azure::KEY
        )
    }

    pub(crate) fn git(&self) -> String {
        format!("git://127.0.0.1:{}", self.git_port)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        // `git daemon` is a child of `git`: it ends with what it talks to.
        Command::new("pkill").args(["-P", &self.git.id().to_string()]).status().ok(); // it may have ended
        self.git.kill().ok(); // as above
        self.git.wait().ok(); // as above
    }
}

/// Files and a repository, all of one time.
fn make(files: &Path, repositories: &Path) -> Result<()> {
    let script = r#"
        export GIT_AUTHOR_DATE='@1600000000 +0000' GIT_COMMITTER_DATE='@1600000000 +0000'
        export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.com
        export GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.com
        cd "$1"
        printf 'from the web\n' > file.txt
        printf 'FROM busybox\nCOPY hello /hello\nRUN echo built >> /hello\n' > Dockerfile
        printf 'hello\n' > hello
        touch -d @1600000000 file.txt Dockerfile hello
        tar --owner=0 --group=0 --mtime=@1600000000 -czf context.tar.gz Dockerfile hello
        touch -d @1600000000 context.tar.gz
        mkdir -p "$2/app.git" && cd "$2/app.git"
        git init -q -b main work && cd work
        printf 'FROM busybox\nCOPY . /src\n' > Dockerfile
        mkdir sub && printf 'FROM busybox\nCOPY inner /inner\n' > sub/Dockerfile && echo inner > sub/inner
        git add -A && git commit -qm one && git tag -a -m v1 v1
        echo two > two && git add -A && git commit -qm two
        ssh-keygen -q -t ed25519 -N '' -C signer -f "$1/signer"
        sign="git -c gpg.format=ssh -c user.signingkey=$1/signer"
        git checkout -q -b signed && echo signed > signed && git add -A && $sign commit -S -qm signed
        $sign tag -s -m signed signed-tag && git tag -a -m unsigned unsigned-tag && git checkout -q main
        git tag -a -m light unsigned-tag-of-main && $sign tag -s -m of-main signed-tag-of-main
        git branch both signed && git tag -a -m both both main
        git checkout -q -b side && echo side > side && git add -A && git commit -qm side && git checkout -q main
        git rev-parse v1^{commit} > "$1/v1"
        cd .. && git clone -q --bare work bare && rm -rf work
        mv bare/* . && rmdir bare && git config uploadpack.allowAnySHA1InWant true"#;
    let status = Command::new("sh").args(["-ec", script, "sh"]).arg(files).arg(repositories).status()?;
    status
        .success()
        .then_some(())
        .ok_or_else(|| "what the servers offer can't be made: is git installed?".into())
}

/// One request: a file, or 404.
fn answer(stream: TcpStream, files: &Path) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut line = String::new();
        while reader.read_line(&mut line)? > 2 {
            line.clear();
        }
        let mut words = first.split_whitespace();
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or("/"));
        let name = path.trim_start_matches('/').split('?').next().unwrap_or("");
        let found = fs::read(files.join(name)).ok().filter(|_| !name.contains(".."));
        let (status, body) = match found {
            Some(body) => ("200 OK", body),
            None => ("404 Not Found", Vec::new()),
        };
        let stream = reader.get_mut();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nLast-Modified: Sun, 13 Sep 2020 12:26:40 GMT\r\n\
             Content-Type: application/octet-stream\r\n\r\n",
            body.len()
        )?;
        if method != "HEAD" {
            stream.write_all(&body)?;
        }
        stream.flush()?;
    }
}
