//! A registry on this machine that nobody was told of: TLS by an authority of its own, and a password.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cluster::Cluster;

/// The distribution registry of our own cluster, started once more; it ends when dropped.
#[derive(Debug)]
pub struct PrivateRegistry {
    folder: TempDir,
    child: Child,
    /// Its `host:port`.
    pub address: String,
    /// Certificate of its authority, in PEM form.
    pub ca: String,
    /// Who may pull and push.
    pub user: String,
    /// The password.
    pub password: String,
}

impl Drop for PrivateRegistry {
    fn drop(&mut self) {
        self.child.kill().ok(); // It may have ended.
        self.child.wait().ok();
    }
}

impl PrivateRegistry {
    /// Starts it on a free port; for our own cluster only, which has its program.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = |name: &str| folder.path().join(name);
        let host = cluster.host()?;
        let ca = certificates(host, folder.path())?;
        let state = cluster.state()?;
        let port = TcpListener::bind("0.0.0.0:0")?.local_addr()?.port();
        // JSON is YAML.
        let config = json!({
            "version": 0.1,
            "log": { "level": "info", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": path("storage") } },
            "auth": { "htpasswd": { "realm": "private", "path": state.join("config/htpasswd") } },
            "http": {
                "addr": format!("0.0.0.0:{port}"), "secret": "of one server alone",
                "tls": { "certificate": path("server.crt"), "key": path("server.key") },
            },
        });
        std::fs::write(path("config.yaml"), config.to_string())?;
        let child = start(&program(&state)?, &path("config.yaml"))?;
        let password = std::fs::read_to_string(cluster.variable("LAPSTRAKE_REGISTRY_PASSWORD_FILE")?)?;
        Ok(Self {
            folder,
            child,
            address: format!("{host}:{port}"),
            ca,
            user: cluster.variable("LAPSTRAKE_REGISTRY_USER")?.to_owned(),
            password: password.trim().to_owned(),
        })
    }

    /// The folder that it keeps things in.
    pub fn storage(&self) -> PathBuf {
        self.folder.path().join("storage")
    }
}

/// Makes an authority and the server's certificate; gives the authority's.
fn certificates(host: &str, folder: &Path) -> Result<String> {
    // Of the same name as its authority, a certificate passes for self-signed.
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.distinguished_name.push(DnType::CommonName, "Authority of a private registry");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    let ca = authority.self_signed(&key)?.pem();
    let issuer = Issuer::new(authority, key);
    let mut server = CertificateParams::new(Vec::new())?;
    server.distinguished_name.push(DnType::CommonName, "A private registry");
    server.subject_alt_names = vec![SanType::IpAddress(host.parse().context("the host has an address")?)];
    let key = KeyPair::generate()?;
    std::fs::write(folder.join("server.crt"), server.signed_by(&key, &issuer)?.pem())?;
    std::fs::write(folder.join("server.key"), key.serialize_pem())?;
    Ok(ca)
}

/// The program, where the cluster has it from.
fn program(state: &Path) -> Result<PathBuf> {
    let text = std::fs::read_to_string(state.join("cluster.json")).context("cluster.json")?;
    let record: Value = serde_json::from_str(&text)?;
    let tools = record["programs"]["tools"].as_str().context("the cluster tells where its tools are")?;
    Ok(Path::new(tools).join("registry"))
}

/// Starts it, and returns when it listens.
fn start(program: &Path, config: &Path) -> Result<Child> {
    let mut command = Command::new(program);
    command.arg("serve").arg(config).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| program.display().to_string())?;
    let mut log = BufReader::new(child.stderr.take().context("its errors are a pipe")?);
    let mut said = String::new();
    while !said.contains("listening on") {
        if log.read_line(&mut said)? == 0 {
            child.wait()?;
            bail!("the registry ended: {said}");
        }
    }
    // A pipe that nobody reads would stop it.
    std::thread::spawn(move || log.read_to_end(&mut Vec::new()));
    Ok(child)
}
