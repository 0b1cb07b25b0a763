//! What `ADD` brings from elsewhere: files by HTTP, and Git repositories.
//!
//! Each is asked for at most once in a build, so that all steps see the same. Credentials of the build's own source
//! are not shown to what a Dockerfile names: it has those that the build is given by BuildKit's names (`outside/auth.rs`).

mod auth;
mod bundle;
mod download;
mod signed;

pub(super) use auth::access;
use download::{FILE_MODE, File, headers, place};

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lapstrake_cache::op;
use lapstrake_handoff::Reason;
use lapstrake_llb::pb;
use lapstrake_oci::Digest;
use lapstrake_solver::{OpKey, OpName};
use lapstrake_source::{CheckoutOptions, FileTime, Git, GitRef, Local, Resolved, shown_url};
use lapstrake_ssh::Socket;
use lapstrake_store::Store;
use prost::Message as _;
use tokio::sync::OnceCell;

use crate::context::{self, DOWNLOAD_BYTES_MAX, Place};
use crate::error::BuildError;
use crate::inputs::StepInputs;
use crate::reach::Reach;

/// Directories of repositories that are one file.
const BUNDLED: &str = "bundled";

/// Whether a source operation is one of these.
pub(super) fn is_outside(source: &pb::SourceOp) -> bool {
    ["http://", "https://", "git://"].iter().any(|scheme| source.identifier.starts_with(scheme))
}

/// What a source turned out to be.
#[derive(Clone)]
enum Found {
    File(File),
    Commit(Resolved),
}

/// How repositories of a host are reached.
struct Way {
    git: Git,
    /// An agent that git may ask; it goes when nobody needs it.
    _agent: Option<Socket>,
}

impl std::ops::Deref for Way {
    type Target = Git;

    fn deref(&self) -> &Git {
        &self.git
    }
}

/// Sources of the running build, by their operation.
#[derive(Default)]
pub(super) struct Outside {
    reach: Mutex<Reach>,
    known: Mutex<HashMap<Vec<u8>, Arc<OnceCell<Found>>>>,
    /// Commits of refs.
    refs: Mutex<HashMap<String, Arc<OnceCell<Resolved>>>>,
    inputs: Mutex<Arc<StepInputs>>,
    /// One for each host: it lets one at a time into a repository that is kept.
    git: tokio::sync::Mutex<HashMap<(u64, String), Arc<Way>>>,
    /// Raised with each change of how things are reached: what was let in before may not be now.
    generation: AtomicU64,
    /// Directories that are being filled: two operations may stand for the same files.
    turns: Arc<Turns>,
}

type Turns = Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>;

pub(super) fn attr<'a>(source: &'a pb::SourceOp, name: &str) -> Option<&'a str> {
    source.attrs.get(name).map(String::as_str).filter(|value| !value.is_empty())
}

/// What a source operation may say. Times of a repository's files are the commit's whatever `git.mtime` says, and
/// `git.advice` is about messages.
const KNOWN_ATTRS: [&str; 26] = [
    "git.keepgitdir",
    "git.fullurl",
    "git.authheadersecret",
    "git.authtokensecret",
    "git.knownsshhosts",
    "git.mountsshsock",
    "git.checksum",
    "git.skipsubmodules",
    "git.fetchbycommit",
    "git.mtime",
    "git.advice",
    "git.bundle",
    "git.checkoutbundle",
    "git.sig.pubkey",
    "git.sig.rejectexpired",
    "git.sig.requiresignedtag",
    "git.sig.ignoresignedtag",
    "oci.session",
    "oci.store",
    "http.checksum",
    "http.filename",
    "http.perm",
    "http.uid",
    "http.gid",
    "http.sig.pubkey",
    "http.sig.signature",
];

/// What a source stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Facts {
    /// A commit of a repository.
    Commit {
        /// Its name.
        commit: String,
        /// That of the annotated tag by which it was found.
        tag: Option<String>,
        /// Both as they are kept, where they were asked for.
        objects: Option<(Vec<u8>, Option<Vec<u8>>)>,
        /// The whole name of the branch or tag that was asked for.
        reference: Option<String>,
    },
    /// A download.
    File {
        /// Its contents.
        digest: Digest,
        /// Its name.
        filename: String,
        /// When it was changed, as the server says: seconds since 1970.
        modified: Option<i64>,
    },
}

/// Refuses what is asked for and not done.
fn check_attrs(source: &pb::SourceOp) -> Result<(), BuildError> {
    let known = |name: &str, value: &str| {
        let is_header = name == "http.authheadersecret" || name.starts_with("http.header.");
        value.is_empty() || is_header || KNOWN_ATTRS.contains(&name)
    };
    match source.attrs.iter().find(|(name, value)| !known(name, value)) {
        None => bundle::check(source),
        Some((name, _)) => {
            let message = format!("{}: {name} is not supported yet", shown_url(&source.identifier));
            Err(BuildError::new(Reason::NotSupported, message))
        }
    }
}

fn flag(source: &pb::SourceOp, name: &str) -> bool {
    attr(source, name) == Some("true")
}

impl Outside {
    /// Says how things are reached from now on, and with which secrets. What was found before is asked for again.
    pub(super) fn reach(&self, reach: &Reach, inputs: &Arc<StepInputs>) {
        let reach = Reach { credentials: None, ..reach.clone() };
        *self.reach.lock().unwrap_or_else(PoisonError::into_inner) = reach;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *self.inputs.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(inputs);
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// The same for a build beside this one, which asks for everything itself.
    pub(super) fn beside(&self) -> Self {
        Self { turns: Arc::clone(&self.turns), ..Self::default() }
    }

    fn inputs(&self) -> Arc<StepInputs> {
        Arc::clone(&self.inputs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whose turn it is to fill a directory.
    fn turn(&self, key: Digest) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.turns.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default())
    }

    async fn git(&self, store: &Store, source: &pb::SourceOp, url: &str) -> Result<Arc<Way>, BuildError> {
        let generation = self.generation.load(Ordering::SeqCst);
        let inputs = self.inputs();
        let of_bundle = attr(source, "git.bundle").is_some();
        let host = if of_bundle { "" } else { auth::host(url) };
        let key = (generation, host.to_owned());
        let mut known = self.git.lock().await;
        known.retain(|(of, _), _| *of == generation);
        if let Some(way) = known.get(&key) {
            return Ok(Arc::clone(way));
        }
        let way = if of_bundle {
            Arc::new(Way { git: bundle::reader(store)?, _agent: None })
        } else {
            let (access, agent) = auth::git(inputs, store, source, url).await?;
            let git = self.way().git(store, url)?.with_auth(access);
            Arc::new(Way { git, _agent: agent })
        };
        known.insert(key, Arc::clone(&way));
        Ok(way)
    }

    fn way(&self) -> Reach {
        self.reach.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What identifies a source: the commit, or the contents of the file.
    pub(super) async fn key(&self, store: &Store, source: &pb::SourceOp) -> Result<OpKey, BuildError> {
        let (parts, name) = match self.find(store, source).await? {
            Found::File(file) => {
                let File { digest, filename, mode, owner: (uid, gid), last_modified, .. } = file;
                let mode = if mode == FILE_MODE { 0 } else { mode };
                let facts = [mode, uid, gid];
                let name = op::http(&filename, facts, &digest, last_modified.as_deref(), &headers(source));
                let modified = last_modified.unwrap_or_default();
                let mut parts =
                    vec!["http".to_owned(), digest.to_string(), filename, format!("{mode:o}"), modified];
                if (uid, gid) != (0, 0) {
                    parts.push(format!("{uid}:{gid}"));
                }
                (parts, name)
            }
            Found::Commit(commit) => {
                let key = commit_key(source, &commit);
                let name = op::git(&key);
                (vec!["git".to_owned(), key], name)
            }
        };
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let name = OpName { digest: name, selectors: Vec::new(), outputs: 1 };
        let digest = context::digest_of(&parts);
        Ok(OpKey { digest, inputs: Vec::new(), ephemeral: false, name: Some(name) })
    }

    /// What a source stands for now; with the `objects` of a repository, if they are wanted.
    pub(super) async fn facts(
        &self,
        store: &Store,
        source: &pb::SourceOp,
        objects: bool,
    ) -> Result<Facts, BuildError> {
        Ok(match self.find(store, source).await? {
            Found::Commit(commit) => {
                let objects = match objects {
                    true => {
                        let url = &git_url(store, source).await?;
                        let git = self.git(store, source, url).await?;
                        git.fetch(url, &commit).await?;
                        Some(git.raw_objects(url, &commit).await?)
                    }
                    false => None,
                };
                let Resolved { commit, reference, tag } = commit;
                Facts::Commit { commit, tag, objects, reference }
            }
            Found::File(file) => Facts::File {
                digest: file.digest,
                filename: file.filename,
                modified: file.last_modified.as_deref().and_then(lapstrake_source::http_date_seconds),
            },
        })
    }

    /// The files of a source.
    pub(super) async fn fetch(&self, store: &Store, source: &pb::SourceOp) -> Result<Arc<Local>, BuildError> {
        match self.find(store, source).await? {
            Found::File(file) => Ok(Arc::new(place(store, &file)?.open()?)),
            Found::Commit(commit) => {
                let url = &git_url(store, source).await?;
                let git = self.git(store, source, url).await?;
                if flag(source, "git.checkoutbundle") {
                    return self.bundled(store, &git, url, source, &commit).await;
                }
                let options = CheckoutOptions {
                    subdir: fragment(source).1.to_owned(),
                    // Of a bundle nothing else of this machine is read.
                    submodules: !flag(source, "git.skipsubmodules") && attr(source, "git.bundle").is_none(),
                    time: FileTime::Commit,
                    keep_git_dir: flag(source, "git.keepgitdir"),
                    reference: commit.reference.clone(),
                };
                let turn = self.turn(context::digest_of(&[url, &commit.commit, &options.subdir]));
                let _turn = turn.lock().await;
                Ok(Arc::new(context::checkout(store, &git, url, &commit, &options).await?))
            }
        }
    }

    /// When a source was made, seconds since 1970: the commit; the file, as the server says, or else the newest file in
    /// it, should it be an archive.
    pub(super) async fn time(&self, store: &Store, source: &pb::SourceOp) -> Result<Option<i64>, BuildError> {
        match self.find(store, source).await? {
            Found::Commit(commit) => {
                let url = &git_url(store, source).await?;
                let git = self.git(store, source, url).await?;
                git.fetch(url, &commit).await?;
                let at = GitRef::Commit(commit.commit.clone());
                Ok(git.facts(url, &commit, &at, false).await?.time)
            }
            Found::File(file) => {
                if let Some(text) = &file.last_modified {
                    return Ok(lapstrake_source::http_date_seconds(text));
                }
                let path = place(store, &file)?.path().join(&file.filename);
                let scratch =
                    tempfile::tempdir_in(store.side_dir("download")?).map_err(BuildError::internal)?;
                let work = move || {
                    let cancel = lapstrake_fileop::Cancel::new();
                    let into = scratch.path();
                    let unpacked = lapstrake_source::unpack_context(
                        &path,
                        &file.filename,
                        into,
                        DOWNLOAD_BYTES_MAX,
                        &cancel,
                    );
                    match unpacked {
                        Ok(lapstrake_source::HttpContext::Archive) => {
                            context::newest(into).map_err(BuildError::internal)
                        }
                        // A plain file has no other time.
                        _ => Ok(None),
                    }
                };
                tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)?
            }
        }
    }

    async fn find(&self, store: &Store, source: &pb::SourceOp) -> Result<Found, BuildError> {
        check_attrs(source)?;
        let cell = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(known.entry(source.encode_to_vec()).or_default())
        };
        let found = cell.get_or_try_init(|| async {
            match source.identifier.starts_with("git://") {
                true => self.commit(store, source).await.map(Found::Commit),
                false => {
                    let file = self.file(store, source).await?;
                    let (path, source) = (place(store, &file)?.path().join(&file.filename), source.clone());
                    let check = move || signed::file(&source.identifier, &source, &path);
                    tokio::task::spawn_blocking(check).await.map_err(BuildError::internal)??;
                    Ok(Found::File(file))
                }
            }
        });
        found.await.cloned()
    }

    async fn commit(&self, store: &Store, source: &pb::SourceOp) -> Result<Resolved, BuildError> {
        let url = &git_url(store, source).await?;
        store.touch_side("git", "");
        let git = self.git(store, source, url).await?;
        let checksum = attr(source, "git.checksum");
        let (reference, _) = fragment(source);
        let wanted = match (reference, checksum) {
            (_, Some(commit)) if flag(source, "git.fetchbycommit") => GitRef::Commit(commit.to_owned()),
            // A bundle has no branch of its own that would be the first.
            ("", Some(commit)) if attr(source, "git.bundle").is_some() => GitRef::Commit(commit.to_owned()),
            ("", _) => GitRef::Default,
            (reference, _) => GitRef::Any(reference.to_owned()),
        };
        let commit = self.resolved(&git, url, &wanted).await?;
        match checksum {
            Some(checksum) if !is_of(&commit, checksum) => {
                let message = format!(
                    "{}: expected checksum to match {checksum}, got {}",
                    shown_url(url),
                    commit.commit
                );
                Err(BuildError::new(Reason::ChecksumMismatch, message))
            }
            _ => {
                if signed::is_wanted(source) {
                    git.fetch(url, &commit).await?;
                    signed::commit(&git, url, source, &commit).await?;
                }
                Ok(commit)
            }
        }
    }

    /// The commit of a ref, which is the same for all of the build that ask for it, whatever else they want of it.
    async fn resolved(&self, git: &Git, url: &str, wanted: &GitRef) -> Result<Resolved, BuildError> {
        let generation = self.generation.load(Ordering::SeqCst);
        let cell = {
            let mut refs = self.refs.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(refs.entry(format!("{generation} {url} {wanted:?}")).or_default())
        };
        let resolved =
            cell.get_or_try_init(|| async { Ok::<_, BuildError>(git.resolve(url, wanted).await?) });
        resolved.await.cloned()
    }

    /// A directory with the repository up to a commit as one file.
    async fn bundled(
        &self,
        store: &Store,
        git: &Git,
        url: &str,
        source: &pb::SourceOp,
        commit: &Resolved,
    ) -> Result<Arc<Local>, BuildError> {
        let place = Place::new(store, BUNDLED, context::digest_of(&[url, &commit_key(source, commit)]))?;
        let turn = self.turn(context::digest_of(&[url, &commit.commit, BUNDLED]));
        let _turn = turn.lock().await;
        if !place.ready() {
            let dir = place.fresh()?;
            git.bundle(url, commit, fragment(source).0, &dir.join("bundle")).await?;
            place.finish(&dir)?;
        }
        Ok(Arc::new(place.open()?))
    }

    /// The file of a download that somebody is to own, and who.
    pub(super) async fn owned(
        &self,
        store: &Store,
        source: &pb::SourceOp,
    ) -> Result<Option<(PathBuf, (u32, u32))>, BuildError> {
        match self.find(store, source).await? {
            Found::File(file) if file.owner != (0, 0) => {
                Ok(Some((place(store, &file)?.path().join(&file.filename), file.owner)))
            }
            Found::File(_) | Found::Commit(_) => Ok(None),
        }
    }
}

/// Where a repository is: its address, or the file of its bundle.
async fn git_url(store: &Store, source: &pb::SourceOp) -> Result<String, BuildError> {
    if let Some(path) = bundle::path(store, source).await? {
        return Ok(path.to_string_lossy().into_owned());
    }
    let none = || BuildError::internal(format!("source {} has no address", source.identifier));
    attr(source, "git.fullurl").map(str::to_owned).ok_or_else(none)
}

/// Whether a checksum is that of a commit, or of the tag that it was found by.
fn is_of(commit: &Resolved, checksum: &str) -> bool {
    let checksum = checksum.to_ascii_lowercase();
    let tag = commit.tag.as_deref().unwrap_or_default();
    commit.commit.starts_with(&checksum) || tag.starts_with(&checksum)
}

/// Ref and directory of a repository.
fn fragment(source: &pb::SourceOp) -> (&str, &str) {
    let fragment = source.identifier.split_once('#').map_or("", |(_, fragment)| fragment);
    fragment.split_once(':').unwrap_or((fragment, ""))
}

/// A commit and what else decides which files there are, in BuildKit's words.
fn commit_key(source: &pb::SourceOp, commit: &Resolved) -> String {
    let mut key = commit.commit.clone();
    if flag(source, "git.keepgitdir") {
        key.push_str(".git");
        if let Some(reference) = &commit.reference {
            key.push_str(&format!("#{reference}"));
        }
    }
    let (_, subdir) = fragment(source);
    if !subdir.is_empty() {
        key.push_str(&format!(":{subdir}"));
    }
    if flag(source, "git.skipsubmodules") {
        key.push_str("(skip-submodules)");
    }
    if attr(source, "git.mtime") == Some("commit") {
        key.push_str("(mtime=commit)");
    }
    if flag(source, "git.checkoutbundle") {
        key.push_str("(bundle)");
    }
    key
}

/// A number as Go's sources have it: `0x` before sixteens, `0o` or `0` before eights, `0b` before twos.
pub(super) fn number(text: &str) -> Option<u32> {
    let based = [("0x", 16), ("0o", 8), ("0b", 2), ("0", 8)];
    let of = |(prefix, base)| Some((text.strip_prefix(prefix).filter(|rest| !rest.is_empty())?, base));
    let (digits, base) = based.into_iter().find_map(of).unwrap_or((text, 10));
    u32::from_str_radix(digits, base).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_source_asks_for_and_nobody_does_is_refused() {
        let source = |name: &str, value: &str| pb::SourceOp {
            identifier: "https://h.example/f".to_owned(),
            attrs: [(name.to_owned(), value.to_owned())].into(),
        };
        for (name, value) in [("http.perm", "0644"), ("http.uid", "0"), ("http.header.accept", "x")] {
            assert!(check_attrs(&source(name, value)).is_ok(), "{name}");
        }
        assert_eq!(["7", "0x10", "010", "0", "x"].map(number), [Some(7), Some(16), Some(8), Some(0), None]);
        for (name, value) in [("http.unheard", "k"), ("git.unheard", "x")] {
            let error = check_attrs(&source(name, value)).expect_err(name);
            assert_eq!(error.failure().reason, Reason::NotSupported);
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
