//! Object stores of others: versitygw, an S3 server whose requests are signed, and Azurite, Microsoft's own stand-in for Azure Blob
//! Storage, and the cache of GitHub Actions as nektos/act has it (version 1). All from package registries, in pinned versions (`e2e/stores`), installed where they are not there yet.

use std::fs;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::peer;

const GATEWAY: &str = "github.com/versity/versitygw/cmd/versitygw";

/// A bucket of an S3 server; it ends when dropped.
#[derive(Debug)]
pub struct S3 {
    _server: Server,
    /// Where it is: `http://…`.
    pub url: String,
}

impl S3 {
    /// Who may read and write.
    pub const KEY: &str = "AKIATESTKIT";
    /// The secret of that key.
    pub const SECRET: &str = "not-a-secret-of-anybody/+";
    /// Its region.
    pub const REGION: &str = "us-east-1";
    /// The only bucket.
    pub const BUCKET: &str = "cache";

    /// Starts one that keeps its objects in a folder.
    ///
    /// # Errors
    /// Where it can't be started.
    ///
    /// # Panics
    /// Where it can't be built, or does not begin to serve.
    pub fn start(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir.join(Self::BUCKET))?;
        let port = free_port()?;
        let mut command = Command::new(peer::tool("e2e/stores", GATEWAY));
        command.args(["--access", Self::KEY, "--secret", Self::SECRET, "--region", Self::REGION]);
        command.args(["--port", &format!("127.0.0.1:{port}"), "--quiet", "posix"]).arg(dir);
        let server = start(command, port)?;
        Ok(Self { _server: server, url: format!("http://127.0.0.1:{port}") })
    }
}

/// An account of Azure Blob Storage; it ends when dropped.
#[derive(Debug)]
pub struct Azure {
    _server: Server,
    /// The address of the account: `http://…`.
    pub url: String,
}

impl Azure {
    /// The only account.
    pub const ACCOUNT: &str = "testkit";
    /// Its key.
    pub const KEY: &str = "bm90LWEtc2VjcmV0LW9mLWFueWJvZHk=";

    /// Starts one that keeps its blobs in a folder.
    ///
    /// # Errors
    /// Where it can't be started.
    ///
    /// # Panics
    /// Where it can't be installed, or does not begin to serve.
    pub fn start(dir: &Path) -> io::Result<Self> {
        let port = free_port()?;
        let mut command = Command::new("node");
        command.arg(azurite()).args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string()]);
        command.args(["--silent", "--disableTelemetry", "--skipApiVersionCheck", "--location"]).arg(dir);
        command.env("AZURITE_ACCOUNTS", format!("{}:{}", Self::ACCOUNT, Self::KEY));
        let server = start(command, port)?;
        Ok(Self { _server: server, url: format!("http://127.0.0.1:{port}/{}", Self::ACCOUNT) })
    }
}

/// The cache of GitHub Actions, version 1, as nektos/act has it; it ends when dropped.
#[derive(Debug)]
pub struct Actions {
    _server: Server,
    /// Its address, which has a secret in it.
    pub url: String,
}

impl Actions {
    /// Starts one that keeps its entries in a folder.
    ///
    /// # Errors
    /// Where it can't be started.
    ///
    /// # Panics
    /// Where it can't be built, or does not begin to serve.
    pub fn start(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let port = free_port()?;
        let mut command = Command::new(peer::tool("e2e/stores", "./actions"));
        command.arg(dir).arg(port.to_string());
        let server = start(command, port)?;
        while fs::read_to_string(dir.join("url")).unwrap_or_default().is_empty() {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { _server: server, url: fs::read_to_string(dir.join("url"))? })
    }

    /// A token that lets its holder read and write, as clients read it; this server does not check it.
    pub fn token() -> String {
        let access = r#"[{\"Scope\":\"refs/heads/main\",\"Permission\":3}]"#;
        let claims = format!(r#"{{"exp":32503680000,"nbf":0,"ac":"{access}"}}"#);
        let encode =
            |text: &str| base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, text);
        format!("{}.{}.{}", encode(r#"{"alg":"HS256","typ":"JWT"}"#), encode(&claims), encode("signature"))
    }
}

/// The cache of GitHub Actions, version 2: a service of ours (`e2e/stores/results`), since no registry of packages has one, over the
/// blobs of [`Azure`]. It ends when dropped.
#[derive(Debug)]
pub struct Results {
    _server: Server,
    /// Its address: `http://…`.
    pub url: String,
}

impl Results {
    /// Starts one that keeps what is in its entries in an account. Tokens are those of [`Actions`].
    ///
    /// # Errors
    /// Where it can't be started.
    ///
    /// # Panics
    /// Where it can't be built, or does not begin to serve.
    pub fn start(blobs: &Azure) -> io::Result<Self> {
        let port = free_port()?;
        let mut command = Command::new(peer::tool("e2e/stores", "./results"));
        command.args([&port.to_string(), &blobs.url, Azure::ACCOUNT, Azure::KEY]);
        let server = start(command, port)?;
        Ok(Self { _server: server, url: format!("http://127.0.0.1:{port}/") })
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A process that ends when dropped.
#[derive(Debug)]
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok(); // it may have ended
        self.0.wait().ok(); // as above
    }
}

fn start(mut command: Command, port: u16) -> io::Result<Server> {
    let mut server =
        Server(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if let Some(status) = server.0.try_wait()? {
            panic!("{command:?} ended with {status}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(server)
}

/// The script of Azurite's blob server, installed from `e2e/stores/package.json` once for each version.
fn azurite() -> PathBuf {
    let module = peer::repository().join("e2e/stores");
    let text = fs::read_to_string(module.join("package.json")).expect("e2e/stores/package.json");
    let package: serde_json::Value = serde_json::from_str(&text).expect("it is JSON");
    let version = package["dependencies"]["azurite"].as_str().expect("a pinned version").to_owned();
    let place = peer::cache().join(format!("azurite-{version}"));
    let script = |place: &Path| place.join("node_modules/azurite/dist/src/blob/main.js");
    if script(&place).exists() {
        return script(&place);
    }
    fs::create_dir_all(peer::cache()).expect("the folder for what is kept can be made");
    // Elsewhere first: what is there is whole, and two may do it at once.
    let made = tempfile::Builder::new().prefix("azurite-").tempdir_in(peer::cache()).expect("a folder");
    fs::write(made.path().join("package.json"), text).expect("a file of ours");
    let mut npm = Command::new("npm");
    npm.args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]).arg(made.path());
    peer::succeed(&mut npm, "apt-get install nodejs npm");
    fs::rename(made.path(), &place).ok(); // somebody else may have been faster
    script(&place)
}
