//! Servers on this machine that pods reach: files, Git repositories, and a registry that comes and goes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::cluster::{Cluster, FLAKY_REGISTRY_PORT};
use crate::test::output;

/// Longest request that a client of these servers sends.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Serves a folder: `/git/…` as Git repositories, `/files/…` as files, `/private/…` as files for who shows
/// the bearer token of each.
#[derive(Debug)]
pub struct Server {
    folder: TempDir,
    address: String,
    task: JoinHandle<()>,
}

impl Server {
    /// Starts it on a free port.
    pub async fn start(cluster: &Cluster) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        for name in ["git", "files", "private"] {
            std::fs::create_dir(folder.path().join(name))?;
        }
        let listener = TcpListener::bind(("0.0.0.0", 0)).await?;
        let address = format!("http://{}:{}", cluster.host()?, listener.local_addr()?.port());
        let router = Router::new().fallback(answer).with_state(Arc::new(folder.path().to_owned()));
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.ok(); // Ends with the test.
        });
        Ok(Self { folder, address, task })
    }

    /// Makes a repository whose branch `main` has the files of a folder; gives its URL and commit.
    pub fn repository(&self, name: &str, files: &Path) -> Result<(String, String)> {
        let bare = self.folder.path().join("git").join(format!("{name}.git"));
        let git = |arguments: &[&str]| {
            let mut command = Command::new("git");
            command.arg("--git-dir").arg(&bare).arg("--work-tree").arg(files).args(arguments);
            for (name, value) in [("NAME", "Tester"), ("EMAIL", "tester@example.org")] {
                command.env(format!("GIT_AUTHOR_{name}"), value).env(format!("GIT_COMMITTER_{name}"), value);
            }
            output(&mut command)
        };
        if !bare.exists() {
            output(
                Command::new("git").args(["init", "--quiet", "--bare", "--initial-branch=main"]).arg(&bare),
            )?;
        }
        git(&["add", "--all"])?;
        git(&["commit", "--quiet", "--message", "A state of the files"])?;
        let commit = String::from_utf8(git(&["rev-parse", "HEAD"])?)?.trim().to_owned();
        Ok((format!("{}/git/{name}.git", self.address), commit))
    }

    /// Puts a file where pods can download it; gives its URL.
    pub fn file(&self, name: &str, content: &[u8]) -> Result<String> {
        std::fs::write(self.folder.path().join("files").join(name), content)?;
        Ok(format!("{}/files/{name}", self.address))
    }

    /// The same for a file that only who shows this bearer token may have.
    pub fn private_file(&self, name: &str, content: &[u8], token: &str) -> Result<String> {
        let folder = self.folder.path().join("private");
        std::fs::write(folder.join(name), content)?;
        std::fs::write(folder.join(format!("{name}.token")), token)?;
        Ok(format!("{}/private/{name}", self.address))
    }

    /// A URL of this server that has nothing behind it.
    pub fn nothing(&self, path: &str) -> String {
        format!("{}/{path}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(folder): State<Arc<PathBuf>>, request: Request) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let safe = !path.split('/').any(|part| part == "..");
    let answered = match path.split_once('/').map(|(_, rest)| rest.split_once('/')) {
        Some(Some(("git", rest))) if safe => git(&folder, rest, request).await,
        Some(Some(("files", rest))) if safe => Ok(file(&folder.join("files").join(rest))),
        Some(Some(("private", rest))) if safe => private(&folder.join("private").join(rest), &request),
        _ => Ok(None),
    };
    let plain = |status: StatusCode| {
        let mut response = Response::new(Body::from(status.to_string()));
        *response.status_mut() = status;
        response
    };
    match answered {
        Ok(Some(response)) => response,
        Ok(None) => plain(StatusCode::NOT_FOUND),
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn file(path: &Path) -> Option<Response<Body>> {
    Some(Response::new(Body::from(std::fs::read(path).ok()?)))
}

/// Only who shows the token that lies beside it learns that it is there.
fn private(path: &Path, request: &Request) -> Result<Option<Response<Body>>> {
    let shown = text(request.headers(), header::AUTHORIZATION);
    let Ok(token) = std::fs::read_to_string(path.with_added_extension("token")) else { return Ok(None) };
    Ok((shown == format!("Bearer {token}")).then(|| file(path)).flatten())
}

/// Has `git http-backend` answer, as a web server would.
async fn git(folder: &Path, path: &str, request: Request) -> Result<Option<Response<Body>>> {
    let repository = path.split_once(".git/").map(|(name, _)| format!("{name}.git"));
    if !repository.is_some_and(|name| folder.join("git").join(name).exists()) {
        return Ok(None);
    }
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, BODY_BYTES_MAX).await?;
    let header = |name: header::HeaderName| text(&parts.headers, name);
    let mut child = tokio::process::Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", folder.join("git"))
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", format!("/{path}"))
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("CONTENT_TYPE", header(header::CONTENT_TYPE))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header(header::CONTENT_ENCODING))
        .env("GIT_PROTOCOL", header(header::HeaderName::from_static("git-protocol")))
        .env("REMOTE_ADDR", "127.0.0.1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("standard input is a pipe")?;
    let feeding = tokio::spawn(async move { stdin.write_all(&body).await });
    let output = child.wait_with_output().await?;
    feeding.await?.ok(); // A backend that needs no body may close before it is sent.
    cgi(output.stdout).map(Some)
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// An HTTP response of what a CGI program wrote.
fn cgi(output: Vec<u8>) -> Result<Response<Body>> {
    let output = Bytes::from(output);
    let end = output.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("no end of headers")?;
    let mut response = Response::builder();
    for line in std::str::from_utf8(&output[..end])?.lines() {
        let (name, value) = line.split_once(": ").context("no header")?;
        response = match name {
            "Status" => response.status(value.split(' ').next().unwrap_or_default().parse::<u16>()?),
            _ => response.header(name, value),
        };
    }
    Ok(response.body(Body::from(output.slice(end + 4..)))?)
}

/// The cluster's registry at another address, which can be taken down and put up.
#[derive(Debug)]
pub struct FlakyRegistry {
    behind: String,
    /// Its `host:port`.
    pub address: String,
    task: Option<JoinHandle<()>>,
}

impl FlakyRegistry {
    /// A registry that is down. Only one can exist at a time, since the chart knows its port.
    pub fn down(cluster: &Cluster) -> Result<Self> {
        let address = format!("{}:{FLAKY_REGISTRY_PORT}", cluster.host()?);
        Ok(Self { behind: cluster.registry.clone(), address, task: None })
    }

    /// Puts it up.
    pub async fn up(&mut self) -> Result<()> {
        let listener = TcpListener::bind(("0.0.0.0", FLAKY_REGISTRY_PORT)).await?;
        let behind = self.behind.clone();
        self.task = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(join(client, behind.clone()));
            }
        }));
        Ok(())
    }

    /// Takes it down, with every connection.
    pub fn stop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

impl Drop for FlakyRegistry {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn join(mut client: TcpStream, behind: String) {
    if let Ok(mut server) = TcpStream::connect(&behind).await {
        tokio::io::copy_bidirectional(&mut client, &mut server).await.ok(); // Either side may hang up.
    }
}
