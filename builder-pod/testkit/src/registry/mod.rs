//! A registry that speaks the distribution protocol over http or TLS, keeps its blobs in a folder,
//! logs each request and fails when told to.

mod access;
mod fault;
mod listener;
mod serve;
mod storage;
mod uploads;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lapstrake_oci::{Digest, Index, Manifest};
use tokio::task::JoinHandle;

pub use access::Auth;
pub use fault::{Fault, Gate, What};
pub use storage::Storage;

use crate::image::Image;

/// How to start a registry; the default is open, on plain http, on a free loopback port.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where to listen; a free loopback port without it.
    pub addr: Option<SocketAddr>,
    /// Where blobs are kept; a temporary folder without it.
    pub dir: Option<PathBuf>,
    /// Who may do what.
    pub auth: Auth,
    /// Serve TLS with a certificate for these names by a CA of its own.
    pub tls_names: Vec<String>,
    /// Never mount: answer every mount with an upload session.
    pub refuse_mounts: bool,
    /// Ignore `Range` of blob requests, as some proxies do.
    pub ignore_ranges: bool,
    /// Answer `HEAD` of manifests with 405.
    pub refuse_heads: bool,
}

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Ask {
    Ping,
    Token,
    ManifestHead,
    ManifestGet,
    ManifestPut,
    ManifestDelete,
    BlobHead,
    BlobGet,
    BlobDelete,
    Mount,
    UploadStart,
    UploadPatch,
    UploadPut,
    UploadStatus,
    UploadCancel,
    Tags,
    Referrers,
    Unknown,
}

/// One request as it was answered.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it was about.
    pub ask: Ask,
    /// The method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The `Range` or `Content-Range` that it had.
    pub range: Option<String>,
    /// `Basic` or `Bearer`, where it showed something.
    pub auth: Option<String>,
    /// The status of the answer; 0 where the connection was cut instead.
    pub status: u16,
}

/// A running registry; it stops when dropped.
#[derive(Debug)]
pub struct Registry {
    addr: SocketAddr,
    shared: Arc<Shared>,
    ca_pem: Option<String>,
    task: JoinHandle<()>,
    _dir: Option<tempfile::TempDir>,
}

/// What the handlers share.
#[derive(Debug)]
struct Shared {
    options: Options,
    /// `http://host:port` or `https://…`, where token requests are sent to.
    origin: String,
    storage: Storage,
    sessions: Mutex<HashMap<String, uploads::Session>>,
    tokens: Mutex<access::Tokens>,
    faults: Mutex<Vec<Fault>>,
    log: Mutex<Vec<Entry>>,
    running: Mutex<HashMap<Ask, (usize, usize)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Registry {
    /// Starts an open registry on a free port.
    pub async fn open() -> Self {
        Self::start(Options::default()).await.expect("a loopback port is free")
    }

    /// Starts a registry.
    pub async fn start(options: Options) -> io::Result<Self> {
        let temp = match &options.dir {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("testkit-registry-").tempdir()?),
        };
        let dir = match (&options.dir, &temp) {
            (Some(dir), _) => dir.clone(),
            (None, Some(temp)) => temp.path().to_owned(),
            (None, None) => unreachable!("one of both is there"),
        };
        let storage = Storage::open(&dir)?;
        let addr = options.addr.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let tcp = tokio::net::TcpListener::bind(addr).await?;
        let addr = tcp.local_addr()?;
        let (tls, ca_pem) = match options.tls_names.is_empty() {
            true => (None, None),
            false => {
                let (tls, pem) = listener::certificate(&options.tls_names)?;
                (Some(tls), Some(pem))
            }
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let host = match options.tls_names.first() {
            Some(name) => format!("{name}:{}", addr.port()),
            None => addr.to_string(),
        };
        let shared = Arc::new(Shared {
            options,
            origin: format!("{scheme}://{host}"),
            storage,
            sessions: Mutex::default(),
            tokens: Mutex::default(),
            faults: Mutex::default(),
            log: Mutex::default(),
            running: Mutex::default(),
        });
        let listener = listener::Listener::new(tcp, tls);
        let router = axum::Router::new().fallback(serve::serve).with_state(Arc::clone(&shared));
        let service = router.into_make_service_with_connect_info::<listener::Connection>();
        let task = tokio::spawn(async move {
            axum::serve(listener, service).await.ok(); // ends with the registry
        });
        Ok(Self { addr, shared, ca_pem, task, _dir: temp })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its host in image names: `127.0.0.1:PORT`, or the certificate's first name and the port.
    pub fn host(&self) -> String {
        self.shared.origin.split_once("://").map_or("", |(_, host)| host).to_owned()
    }

    /// The certificate of its CA, where it serves TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// What it keeps, for looking and for tampering.
    pub fn storage(&self) -> &Storage {
        &self.shared.storage
    }

    /// Lets requests fail.
    pub fn inject(&self, fault: Fault) {
        lock(&self.shared.faults).push(fault);
    }

    /// Ends all faults.
    pub fn heal(&self) {
        lock(&self.shared.faults).clear();
    }

    /// All requests that were answered so far.
    pub fn log(&self) -> Vec<Entry> {
        lock(&self.shared.log).clone()
    }

    /// Forgets the log.
    pub fn clear_log(&self) {
        lock(&self.shared.log).clear();
    }

    /// How many requests of a kind were answered.
    pub fn count(&self, ask: Ask) -> usize {
        lock(&self.shared.log).iter().filter(|entry| entry.ask == ask).count()
    }

    /// How many requests of a kind ran at the same time at most.
    pub fn running_max(&self, ask: Ask) -> usize {
        lock(&self.shared.running).get(&ask).map_or(0, |(_, max)| *max)
    }

    /// How many requests of a kind run now.
    pub fn running(&self, ask: Ask) -> usize {
        lock(&self.shared.running).get(&ask).map_or(0, |(now, _)| *now)
    }

    /// Makes all tokens that it gave out invalid.
    pub fn revoke_tokens(&self) {
        lock(&self.shared.tokens).revoke();
    }

    /// Puts an image in without a request.
    pub fn put_image(&self, repository: &str, tag: &str, image: &Image) -> io::Result<Digest> {
        for (descriptor, bytes) in image.blobs() {
            self.storage().put_blob(repository, bytes)?;
            debug_assert_eq!(Digest::of(bytes), descriptor.digest);
        }
        self.storage().put_manifest(repository, Some(tag), &image.media_type, &image.manifest)
    }

    /// Puts in the first image of an OCI layout.
    pub fn put_layout(&self, repository: &str, tag: &str, layout: &Path) -> io::Result<Digest> {
        let index: Index = read(&layout.join("index.json"))?;
        let blob = |digest: &Digest| layout.join("blobs/sha256").join(digest.hex());
        let entry = index.manifests.first().ok_or_else(|| io::Error::other("the layout is empty"))?;
        let manifest: Manifest = read(&blob(&entry.digest))?;
        for descriptor in manifest.layers.iter().chain([&manifest.config]) {
            self.storage().put_blob_file(repository, &descriptor.digest, &blob(&descriptor.digest))?;
        }
        let bytes = std::fs::read(blob(&entry.digest))?;
        self.storage().put_manifest(repository, Some(tag), &entry.media_type, &bytes)
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.shared.storage.dir()
    }
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}
