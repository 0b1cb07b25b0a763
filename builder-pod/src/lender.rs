//! What the client of a build lends to it over its session: directories, secrets, agents.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapstrake_api::pb;
use lapstrake_handoff::Reason;
use lapstrake_oci::Digest;
use lapstrake_registry::{Keeper, KeeperAnswer, KeptToken, Redacted, TokenWanted};
use lapstrake_session::{Session, Sessions, SyncRequest, Target, TokenRequest};
use lapstrake_solver::Step;
use lapstrake_source::{Local, Sums};
use lapstrake_ssh::{Agent, Connect, Connecting, Connection};
use lapstrake_store::Store;

use crate::error::{BuildError, chain};
use crate::hashes::Hashes;
use crate::inputs::GivenAgent;

/// A client opens its session while it asks for the build.
const SESSION_WAIT: Duration = Duration::from_secs(5);
/// Group of the directories of clients in the state directory.
const GROUP: &str = "local";
/// Attributes of local sources, as LLB has them.
mod attr {
    pub(super) const SESSION: &str = "local.session";
    pub(super) const INCLUDE: &str = "local.includepattern";
    pub(super) const EXCLUDE: &str = "local.excludepatterns";
    pub(super) const FOLLOW: &str = "local.followpaths";
    pub(super) const SHARED_KEY_HINT: &str = "local.sharedkeyhint";
    pub(super) const DIFFER: &str = "local.differ";
    pub(super) const METADATA_ONLY: &str = "local.metadatatransfer";
    pub(super) const METADATA_ONLY_EXCEPT: &str = "local.metadatatransferexclude";
}

/// The client of one build.
#[derive(Clone)]
pub(crate) struct Lender {
    sessions: Sessions,
    id: String,
    dirs: Arc<Dirs>,
}

impl Lender {
    /// The client whose session this is.
    pub(crate) fn new(sessions: Sessions, id: &str, dirs: Arc<Dirs>) -> Self {
        Self { sessions, id: id.to_owned(), dirs }
    }

    /// Its session, or another one that the build names.
    pub(crate) async fn session(&self, id: Option<&str>) -> Result<Arc<Session>, BuildError> {
        let id = self.id_or(id.unwrap_or_default());
        self.sessions.get(id, SESSION_WAIT).await.map_err(|e| gone(&e))
    }

    /// The id of a session that the build names, or of its own.
    pub(crate) fn id_or<'a>(&'a self, id: &'a str) -> &'a str {
        if id.is_empty() { &self.id } else { id }
    }

    /// A file of a directory of the client; `None` where there is none.
    pub(crate) async fn read(
        &self,
        session: Option<&str>,
        dir: &str,
        path: &str,
        bytes_max: u64,
    ) -> Result<Option<Vec<u8>>, BuildError> {
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let session = self.session(session).await?;
        session.read_file(dir, path, bytes_max).await.map_err(|e| failed(&e))
    }

    /// A directory of the client as a source operation describes it, brought up to date. It stays as it is
    /// as long as the answer is held.
    pub(crate) async fn directory(
        &self,
        store: &Store,
        source: &pb::SourceOp,
        step: &Step,
    ) -> Result<Local, BuildError> {
        let attr = |name: &str| source.attrs.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let name = source.identifier.strip_prefix("local://").unwrap_or_default();
        let session = self.session(attr(attr::SESSION)).await?;
        let request = SyncRequest {
            dir_name: name.to_owned(),
            include: list(source, attr::INCLUDE)?,
            exclude: list(source, attr::EXCLUDE)?,
            follow_paths: list(source, attr::FOLLOW)?,
            differ: match attr(attr::DIFFER) {
                Some("none") => lapstrake_session::Differ::None,
                _ => lapstrake_session::Differ::Metadata,
            },
            metadata_only: match attr(attr::METADATA_ONLY) {
                Some("true" | "1") => Some(list(source, attr::METADATA_ONLY_EXCEPT)?),
                _ => None,
            },
        };
        // What holds lists of files only is none that a later build could begin with.
        let kind = if request.metadata_only.is_some() { ":metadata" } else { "" };
        let hint = attr(attr::SHARED_KEY_HINT).unwrap_or_default();
        let key = Digest::of(format!("{name}\0{hint}\0{}{kind}", session.shared_key()).as_bytes());
        let lease = self.dirs.lease(store, &key.hex())?;
        let label = format!("transferring {name}:");
        let mut report = |progress: lapstrake_session::SyncProgress| step.status(&label, progress.bytes, 0);
        // Known again once it was brought up to date; when that fails, nothing is.
        let mut known = self.dirs.forget(&lease.name);
        let change = store.change_side(GROUP, &lease.name)?;
        let hashes = Arc::new(Hashes::new(store));
        let target =
            Target { path: lease.path.clone(), bare: known.bare, hashes: Some(Arc::clone(&hashes) as _) };
        let synced = session.sync(request, target, &mut report, &step.cancel).await;
        let synced = synced
            .map_err(|e| if step.cancel.is_cancelled() { BuildError::canceled() } else { failed(&e) })?;
        step.status(&label, synced.bytes, synced.bytes);
        hashes.flush();
        if synced.changed {
            known.sums = Arc::default();
        }
        change.done(synced.grown);
        known.bare = synced.bare;
        self.dirs.know(&lease.name, known.clone());
        Ok(Local::open(&lease.path)?.still(known.sums, known.bare).holding(lease))
    }

    /// A secret; `None` where the client has none of this id.
    pub(crate) async fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, BuildError> {
        let session = self.session(None).await?;
        if !session.serves(lapstrake_session::method::SECRET) {
            return Ok(None);
        }
        session.secret(id).await.map_err(|e| failed(&e))
    }

    /// An agent; `None` where the client has none of this id.
    pub(crate) async fn agent(&self, id: &str) -> Result<Option<GivenAgent>, BuildError> {
        let session = self.session(None).await?;
        if !session.serves(lapstrake_session::method::FORWARD_AGENT) || session.check_agent(id).await.is_err()
        {
            return Ok(None);
        }
        let remote = RemoteAgent { session, id: id.to_owned() };
        Ok(Some(GivenAgent { agent: Arc::new(Agent::Remote(Box::new(remote))), known_hosts: None }))
    }
}

impl Lender {
    /// Why there is no agent of this id, in the client's words.
    pub(crate) async fn why_no_agent(&self, id: &str) -> String {
        let none = || format!("no SSH key {id:?} forwarded from the client");
        match self.session(None).await {
            Ok(session) if session.serves(lapstrake_session::method::CHECK_AGENT) => {
                session.check_agent(id).await.err().map_or_else(none, |error| chain(&error))
            }
            _ => none(),
        }
    }
}

/// What clients call Docker Hub's registry.
const DOCKER_HUB: &str = "registry-1.docker.io";
/// What we call ourselves to token servers.
const TOKEN_CLIENT: &str = "buildkit-client";

fn host_of(registry: &str) -> &str {
    if registry == "docker.io" { DOCKER_HUB } else { registry }
}

impl Keeper for Lender {
    fn credentials<'a>(&'a self, registry: &'a str) -> KeeperAnswer<'a, Option<(String, Redacted)>> {
        Box::pin(async move {
            let session = self.session(None).await.map_err(|e| e.to_string())?;
            let found = session.credentials(host_of(registry)).await.map_err(|e| chain(&e))?;
            Ok(found.map(|found| (found.username, Redacted::new(found.secret))))
        })
    }

    fn token<'a>(&'a self, wanted: &'a TokenWanted) -> KeeperAnswer<'a, Option<KeptToken>> {
        Box::pin(async move {
            let session = self.session(None).await.map_err(|e| e.to_string())?;
            let request = TokenRequest {
                host: host_of(&wanted.registry).to_owned(),
                client_id: TOKEN_CLIENT.to_owned(),
                realm: wanted.realm.clone(),
                service: wanted.service.clone().unwrap_or_default(),
                scopes: wanted.scopes.clone(),
            };
            let token = session.fetch_token(request).await.map_err(|e| chain(&e))?;
            Ok(token
                .map(|token| KeptToken { value: Redacted::new(token.token), expires_in: token.expires_in }))
        })
    }
}

/// An agent at the client.
struct RemoteAgent {
    session: Arc<Session>,
    id: String,
}

impl std::fmt::Debug for RemoteAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RemoteAgent({})", self.id)
    }
}

impl Connect for RemoteAgent {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            let connection = self.session.forward_agent(&self.id).await.map_err(std::io::Error::other)?;
            Ok(Box::new(connection) as Box<dyn Connection>)
        })
    }
}

impl std::fmt::Debug for Lender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lender").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A directory of this machine as a source operation asks for it.
pub(crate) fn as_asked(local: &Local, source: &pb::SourceOp) -> Result<Local, BuildError> {
    let exclude = list(source, attr::EXCLUDE)?;
    let exclude = lapstrake_fileop::Patterns::new(&exclude).map_err(|e| {
        let message = format!("{}: {}: {}", source.identifier, attr::EXCLUDE, chain(&e));
        BuildError::new(Reason::RequestInvalid, message)
    })?;
    let (include, follow) = (list(source, attr::INCLUDE)?, list(source, attr::FOLLOW)?);
    Ok(local.whole()?.with_ignore(exclude).with_included(&include, &follow)?)
}

/// A list as LLB has it: JSON.
fn list(source: &pb::SourceOp, name: &str) -> Result<Vec<String>, BuildError> {
    let Some(text) = source.attrs.get(name).filter(|text| !text.is_empty()) else { return Ok(Vec::new()) };
    serde_json::from_str(text).map_err(|e| {
        let message = format!("{}: {name} is no list in JSON: {e}", source.identifier);
        BuildError::new(Reason::RequestInvalid, message)
    })
}

fn gone(error: &lapstrake_session::Error) -> BuildError {
    BuildError::new(Reason::RequestInvalid, chain(error))
}

/// What a failure of the client's session means to its build.
pub(crate) fn failed(error: &lapstrake_session::Error) -> BuildError {
    let reason = if error.is_no_space() { Reason::DiskFull } else { Reason::SourceUnavailable };
    BuildError::new(reason, chain(error))
}

/// Copies of clients' directories: each is brought up to date by the next build that asks for it, and none
/// changes while a build reads it.
#[derive(Default)]
pub(crate) struct Dirs {
    taken: Mutex<HashMap<String, Vec<bool>>>,
    known: Mutex<HashMap<String, Known>>,
}

/// What is known of a copy as long as nobody changes it.
#[derive(Clone, Default)]
struct Known {
    sums: Arc<Sums>,
    /// Nothing in it has extended attributes.
    bare: bool,
}

/// Copies that something is known of; of the others it is found out again.
const KNOWN_MAX: usize = 256;

/// A directory that is ours until this is dropped.
pub(crate) struct Lease {
    dirs: Arc<Dirs>,
    key: String,
    number: usize,
    name: String,
    path: PathBuf,
}

impl Dirs {
    fn taken(&self) -> MutexGuard<'_, HashMap<String, Vec<bool>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a copy that is going to be changed.
    fn forget(&self, name: &str) -> Known {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(name).unwrap_or_default()
    }

    fn know(&self, name: &str, known: Known) {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= KNOWN_MAX {
            all.clear();
        }
        all.insert(name.to_owned(), known);
    }

    /// A directory of this key that nobody reads now, an old one before a new one.
    fn lease(self: &Arc<Self>, store: &Store, key: &str) -> Result<Lease, BuildError> {
        let number = {
            let mut taken = self.taken();
            let all = taken.entry(key.to_owned()).or_default();
            let number = all.iter().position(|taken| !taken).unwrap_or(all.len());
            match all.get_mut(number) {
                Some(taken) => *taken = true,
                None => all.push(true),
            }
            number
        };
        let name = format!("{key}-{number}");
        let (dirs, key, path) = (Arc::clone(self), key.to_owned(), PathBuf::new());
        let mut lease = Lease { dirs, key, number, name, path };
        store.touch_side(GROUP, &lease.name);
        lease.path = store.side_dir(GROUP)?.join(&lease.name);
        std::fs::create_dir_all(&lease.path)
            .map_err(|e| BuildError::internal(format!("{}: {e}", lease.path.display())))?;
        Ok(lease)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut taken = self.dirs.taken();
        let Some(all) = taken.get_mut(&self.key) else { return };
        if let Some(taken) = all.get_mut(self.number) {
            *taken = false;
        }
        if all.iter().all(|taken| !taken) {
            taken.remove(&self.key);
        }
    }
}
