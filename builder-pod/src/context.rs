//! Brings a build context into a directory of this machine.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use lapstrake_fileop::Cancel;
use lapstrake_handoff::SourceFacts;
use lapstrake_oci::{Digest, Hasher};
use lapstrake_source::{
    CheckoutOptions, Fetched, FileTime, Git, HttpContext, HttpRequest, Identity, Local, Resolved,
    unpack_context, write_inline,
};
use lapstrake_store::{Store, Table};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;

use crate::engine::Engine;
use crate::error::BuildError;
use crate::lender::Lender;
use crate::options::{Context, LentDir};
use crate::reach::Reach;

/// A download, packed or unpacked, is no longer than this.
pub(crate) const DOWNLOAD_BYTES_MAX: u64 = 8 << 30;
/// Directories of earlier contexts that are kept beside the one in use.
const KEPT_DIRECTORIES: usize = 4;

/// A context that is there.
pub(crate) struct Acquired {
    /// Its directory.
    pub(crate) files: Files,
    /// What it was resolved to: a commit, or a digest of the content.
    pub(crate) revision: Option<String>,
    /// The Dockerfile's name where the context is nothing but that file.
    pub(crate) only_dockerfile: Option<String>,
    /// What its repository says of the commit.
    pub(crate) facts: SourceFacts,
    /// When it was made, seconds since 1970: the commit, or the file that was downloaded.
    pub(crate) time: Option<i64>,
}

impl Acquired {
    /// Files of which nothing more is known.
    fn of(files: Files) -> Self {
        Self { files, revision: None, only_dockerfile: None, facts: SourceFacts::default(), time: None }
    }
}

/// The directory of a context.
pub(crate) enum Files {
    /// On this machine.
    Here(Local),
    /// At the client: what is used of it is brought here when it is used.
    Lent(LentDir, Lender),
}

impl Files {
    /// A file as it is, ignored or not; `dockerfiles`: of the directory that Dockerfiles are in.
    pub(crate) async fn read(
        &self,
        dockerfiles: bool,
        path: &str,
        bytes_max: u64,
    ) -> Result<Option<Vec<u8>>, BuildError> {
        match self {
            Self::Here(local) => Ok(local.read(path, bytes_max)?),
            Self::Lent(dir, lender) => {
                let name = dir.dockerfiles.as_ref().filter(|_| dockerfiles).unwrap_or(&dir.name);
                lender.read(Some(&dir.session), name, path, bytes_max).await
            }
        }
    }

    /// The patterns of the ignore file that goes with a Dockerfile.
    pub(crate) async fn ignore_patterns(
        &self,
        dockerfile: &str,
        bytes_max: u64,
    ) -> Result<Vec<String>, BuildError> {
        let own = self.read(true, &format!("{dockerfile}.dockerignore"), bytes_max).await?;
        let content = match own {
            Some(content) => Some(content),
            None => self.read(false, ".dockerignore", bytes_max).await?,
        };
        Ok(content.map(|content| lapstrake_source::ignore_patterns(&content)).unwrap_or_default())
    }
}

/// The same with what the build's secrets let in, where the source has no credentials of its own.
pub(crate) async fn acquire_with_secrets(
    engine: &Engine,
    context: &Context,
    reach: &Reach,
    ask: bool,
) -> Result<Acquired, BuildError> {
    let access = match context {
        _ if reach.credentials.is_some() => None,
        Context::Git { url, .. } => engine.access(url, true).await?,
        Context::Http { url, path, .. } if url.starts_with(UPLOADED) => {
            return uploaded(engine, url, path.as_deref()).await;
        }
        Context::Http { url, .. } => engine.access(url, false).await?,
        Context::Directory(_) | Context::Inline(_) => None,
        Context::Client(dir) => {
            let none =
                || BuildError::internal("a directory of a client is built from, and there is no client");
            let lender = engine.lender().ok_or_else(none)?.clone();
            return Ok(Acquired::of(Files::Lent(dir.clone(), lender)));
        }
    };
    let ruled = crate::policy::context(&engine.policies(), context)?;
    let context = ruled.as_ref().unwrap_or(context);
    acquire(engine.store(), context, &Reach { access, ..reach.clone() }, ask).await
}

/// Fetches a context; what is there already is not fetched again. `ask`: branch and tags of the commit are
/// asked for where they are not known.
pub(crate) async fn acquire(
    store: &Store,
    context: &Context,
    reach: &Reach,
    ask: bool,
) -> Result<Acquired, BuildError> {
    match context {
        Context::Directory(path) => Ok(Acquired::of(Files::Here(Local::open(path)?))),
        Context::Client(_) => Err(BuildError::internal("a directory of a client is not fetched as a whole")),
        Context::Git { url, reference, commit, path, submodules, keep_git_dir } => {
            store.touch_side("git", "");
            let git = reach.git(store, url)?;
            // A repository on one's own disk is fine on a laptop; in a pod there is none.
            let git =
                if url.starts_with("file://") || url.starts_with('/') { git.allow_local() } else { git };
            let resolved = match commit {
                Some(commit) => reference.at(commit),
                None => git.resolve(url, reference).await?,
            };
            let options = CheckoutOptions {
                subdir: path.clone().unwrap_or_default(),
                submodules: *submodules,
                time: FileTime::Commit,
                keep_git_dir: *keep_git_dir,
                reference: resolved.reference.clone(),
            };
            let local = checkout(store, &git, url, &resolved, &options).await?;
            let facts = facts(&git, url, &resolved, reference, ask).await?;
            let (revision, time) = (Some(resolved.commit), facts.time);
            Ok(Acquired { revision, facts, time, ..Acquired::of(Files::Here(local)) })
        }
        Context::Http { url, sha256, path } => {
            http(store, url, sha256.as_deref(), path.as_deref(), reach).await
        }
        Context::Inline(files) => {
            let key = Identity::inline(files)
                .key()
                .ok_or_else(|| BuildError::internal("inline files have a key"))?;
            let place = Place::new(store, "inline", key)?;
            if !place.ready() {
                let dir = place.fresh()?;
                write_inline(&dir, files, 0)?;
                place.finish(&dir)?;
            }
            let (local, revision) = (place.open()?, Some(key.to_string()));
            Ok(Acquired { revision, ..Acquired::of(Files::Here(local)) })
        }
    }
}

/// The files of a commit, in a directory that is kept.
pub(crate) async fn checkout(
    store: &Store,
    git: &Git,
    url: &str,
    resolved: &Resolved,
    options: &CheckoutOptions,
) -> Result<Local, BuildError> {
    let submodules = if options.submodules { "s" } else { "" };
    let mut parts = vec![url, &resolved.commit, &options.subdir, submodules];
    if options.keep_git_dir {
        parts.push(".git");
        parts.extend(options.reference.as_deref());
    }
    let place = Place::new(store, "checkouts", digest_of(&parts))?;
    if !place.ready() {
        let dir = match check_out(git, url, resolved, &place.fresh()?, options).await {
            // What is kept of repositories is no truth: once more without it.
            Err(error) if error.is_damage() => {
                tracing::warn!("a repository is fetched anew: {error}");
                git.forget()?;
                check_out(git, url, resolved, &place.fresh()?, options).await?
            }
            dir => dir?,
        };
        place.finish(&dir)?;
    }
    place.open()
}

/// What the repository says of a commit; of several tags the one with the highest version.
async fn facts(
    git: &Git,
    url: &str,
    commit: &Resolved,
    reference: &lapstrake_source::GitRef,
    ask: bool,
) -> Result<SourceFacts, BuildError> {
    let found = match git.facts(url, commit, reference, ask).await {
        // A checkout outlives the repository that it came from.
        Err(_) => {
            git.fetch(url, commit).await?;
            git.facts(url, commit, reference, ask).await?
        }
        found => found?,
    };
    let by_version = |tag: &String| (crate::naming::Version::parse(tag), tag.clone());
    Ok(SourceFacts {
        commit: Some(commit.commit.clone()),
        time: found.time,
        branch: found.branch,
        tag: found.tags.into_iter().max_by_key(by_version),
    })
}

async fn check_out(
    git: &Git,
    url: &str,
    commit: &Resolved,
    dir: &Path,
    options: &CheckoutOptions,
) -> Result<PathBuf, lapstrake_source::Error> {
    git.fetch(url, commit).await?;
    git.checkout(url, &commit.commit, dir, options).await
}

pub(crate) fn digest_of(parts: &[&str]) -> Digest {
    let mut hasher = Hasher::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update(&[0]);
    }
    hasher.finish()
}

/// What is remembered of a download.
#[derive(Serialize, Deserialize)]
struct Remembered {
    digest: Digest,
    /// Key of the directory that it became.
    place: Digest,
    etag: Option<String>,
    last_modified: Option<String>,
    only_dockerfile: Option<String>,
    /// When it was made, seconds since 1970.
    #[serde(default)]
    time: Option<i64>,
}

/// Under what a download is remembered: an address may hold a secret, which is not for the disk.
fn remembered_key(url: &str) -> Digest {
    digest_of(&[url])
}

async fn http(
    store: &Store,
    url: &str,
    sha256: Option<&str>,
    path: Option<&str>,
    reach: &Reach,
) -> Result<Acquired, BuildError> {
    let checksum = match sha256 {
        None => None,
        Some(hex) => {
            let text = format!("sha256:{}", hex.strip_prefix("sha256:").unwrap_or(hex));
            Some(
                text.parse::<Digest>()
                    .map_err(|e| BuildError::new(lapstrake_handoff::Reason::RequestInvalid, e.to_string()))?,
            )
        }
    };
    let known: Option<Remembered> = store
        .get(Table::HTTP, remembered_key(url).as_bytes())
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let known = known.filter(|k| Place::new(store, "http", k.place).is_ok_and(|place| place.ready()));
    let found = match known {
        // What has the checksum that is asked for needs no look at the server.
        Some(known) if checksum == Some(known.digest) => known,
        known => {
            let request = HttpRequest {
                headers: Vec::new(),
                url: url.to_owned(),
                checksum,
                etag: known.as_ref().and_then(|k| k.etag.clone()),
                last_modified: known.as_ref().and_then(|k| k.last_modified.clone()),
                bytes_max: DOWNLOAD_BYTES_MAX,
            };
            match (reach.http(url)?.fetch(&request, &store.side_dir("download")?).await?, known) {
                (Fetched::NotModified, Some(known)) => known,
                (Fetched::NotModified, None) => {
                    return Err(BuildError::internal("a download was not modified, but is not here"));
                }
                (Fetched::Body(download), _) => unpacked(store, url, download).await?,
            }
        }
    };
    let mut local = Place::new(store, "http", found.place)?.open()?;
    if let Some(path) = path {
        local = local.open_subdir(path)?;
    }
    Ok(Acquired {
        revision: Some(found.digest.to_string()),
        only_dockerfile: found.only_dockerfile,
        time: found.time,
        ..Acquired::of(Files::Here(local))
    })
}

/// How an address begins that stands for what a client sends: its standard input.
const UPLOADED: &str = "http://buildkit-session/";

/// What a client sends, once.
async fn uploaded(engine: &Engine, url: &str, path: Option<&str>) -> Result<Acquired, BuildError> {
    let refused = |why: String| BuildError::new(lapstrake_handoff::Reason::SourceNotFound, why);
    let lender = engine.lender().ok_or_else(|| refused(format!("{url}: there is no client")))?;
    let session = lender.session(None).await?;
    let at = url.strip_prefix(UPLOADED).unwrap_or_default();
    let from = session.upload("buildkit-session", &format!("/{at}")).await;
    let mut from = from.map_err(|e| refused(e.to_string()))?;
    let store = engine.store();
    let mut file =
        tempfile::NamedTempFile::new_in(store.side_dir("download")?).map_err(BuildError::internal)?;
    let (mut hasher, mut size) = (Hasher::new(), 0_u64);
    let mut piece = vec![0; 256 << 10];
    loop {
        let read = from.read(&mut piece).await.map_err(|e| refused(format!("{url}: {e}")))?;
        let Some(bytes) = piece.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
        size += read as u64;
        if size > DOWNLOAD_BYTES_MAX {
            return Err(refused(format!("{url}: it is larger than {DOWNLOAD_BYTES_MAX} bytes")));
        }
        hasher.update(bytes);
        file.write_all(bytes).map_err(BuildError::internal)?;
    }
    let download = lapstrake_source::Download::of(file, hasher.finish(), size);
    let found = unpacked(store, url, download).await?;
    let mut local = Place::new(store, "http", found.place)?.open()?;
    if let Some(path) = path {
        local = local.open_subdir(path)?;
    }
    Ok(Acquired {
        only_dockerfile: found.only_dockerfile,
        time: found.time,
        ..Acquired::of(Files::Here(local))
    })
}

/// The time of the newest file below a directory, seconds since 1970: that of an archive.
pub(crate) fn newest(dir: &Path) -> std::io::Result<Option<i64>> {
    use std::os::unix::fs::MetadataExt as _;
    let mut newest = None;
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                open.push(entry.path());
            } else if meta.is_file() {
                newest = newest.max(Some(meta.mtime()));
            }
        }
    }
    Ok(newest)
}

async fn unpacked(
    store: &Store,
    url: &str,
    download: lapstrake_source::Download,
) -> Result<Remembered, BuildError> {
    // What is no archive is a file of this name, so that the name counts too.
    let key = digest_of(&[&download.digest.to_string(), &download.filename]);
    let place = Place::new(store, "http", key)?;
    let work = move || {
        let dir = place.fresh()?;
        let kind =
            unpack_context(download.path(), &download.filename, &dir, DOWNLOAD_BYTES_MAX, &Cancel::new())?;
        let time = match (download.modified_seconds, &kind) {
            (None, HttpContext::Archive) => newest(&dir).map_err(|e| io(e, &dir))?,
            (time, _) => time,
        };
        place.finish(&dir)?;
        let only_dockerfile = match kind {
            HttpContext::Archive => None,
            HttpContext::Dockerfile(name) => Some(name),
        };
        Ok::<_, BuildError>(Remembered {
            digest: download.digest,
            place: key,
            etag: download.etag.clone(),
            last_modified: download.last_modified.clone(),
            only_dockerfile,
            time,
        })
    };
    let remembered = tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)??;
    if let Ok(value) = serde_json::to_vec(&remembered) {
        store.put(Table::HTTP, remembered_key(url).as_bytes(), &value).ok(); // a cache: it is downloaded again
    }
    Ok(remembered)
}

/// Directories that are whole, by group and key. A record reaches the disk after the files that were
/// written before it, which a directory's name alone does not say after a power cut.
const WHOLE: Table = Table::named("contexts");

/// A directory that appears whole or not at all.
pub(crate) struct Place {
    store: Store,
    group: PathBuf,
    path: PathBuf,
    record: Vec<u8>,
}

impl Place {
    pub(crate) fn new(store: &Store, group: &str, key: Digest) -> Result<Self, BuildError> {
        let dir = store.side_dir(group)?;
        let name = &key.hex()[..32];
        // Before anybody looks whether it is there: so it stays until the build ends.
        store.touch_side(group, name);
        let path = dir.join(name);
        Ok(Self { store: store.clone(), group: dir, path, record: format!("{group} {key}").into_bytes() })
    }

    pub(crate) fn ready(&self) -> bool {
        self.path.is_dir() && self.store.get(WHOLE, &self.record).is_some()
    }

    /// An empty directory to fill; left-overs of a killed builder go.
    pub(crate) fn fresh(&self) -> Result<PathBuf, BuildError> {
        let dir = self.path.with_extension("new");
        remove(&dir)?;
        std::fs::create_dir_all(&dir).map_err(|e| io(e, &dir))?;
        Ok(dir)
    }

    /// Gives the filled directory (or a part of it) its name, in place of one that has it.
    pub(crate) fn finish(&self, filled: &Path) -> Result<(), BuildError> {
        self.store.delete(WHOLE, &self.record);
        remove(&self.path)?;
        std::fs::rename(filled, &self.path).map_err(|e| io(e, &self.path))?;
        self.store.put(WHOLE, &self.record, b"").ok(); // a cache: it is filled again
        std::fs::remove_dir_all(self.path.with_extension("new")).ok(); // what was left around the part
        self.forget_old();
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn open(&self) -> Result<Local, BuildError> {
        Ok(Local::open(&self.path)?)
    }

    /// Whether another context of a running build is that directory, or is being put into it.
    fn is_needed(&self, path: &Path) -> bool {
        let (Some(group), Some(name)) = (self.group.file_name(), path.file_stem()) else { return false };
        self.store.is_side_needed(&group.to_string_lossy(), &name.to_string_lossy())
    }

    /// Old contexts are not needed: what was built of them is in the cache.
    fn forget_old(&self) {
        let Ok(entries) = std::fs::read_dir(&self.group) else { return };
        let mut others: Vec<(SystemTime, PathBuf)> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| *path != self.path && !self.is_needed(path))
            .filter_map(|path| Some((std::fs::metadata(&path).ok()?.modified().ok()?, path)))
            .collect();
        others.sort();
        let surplus = others.len().saturating_sub(KEPT_DIRECTORIES);
        for (_, path) in others.into_iter().take(surplus) {
            std::fs::remove_dir_all(path).ok(); // tried again with the next context
        }
    }
}

fn remove(dir: &Path) -> Result<(), BuildError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(error, dir)),
        _ => Ok(()),
    }
}

fn io(error: std::io::Error, path: &Path) -> BuildError {
    let reason = match crate::error::is_no_space(&error) {
        true => lapstrake_handoff::Reason::DiskFull,
        false => lapstrake_handoff::Reason::Internal,
    };
    BuildError::new(reason, format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(store: &Store) -> Place {
        Place::new(store, "inline", Digest::of(b"key")).expect("a place")
    }

    fn fill(store: &Store, text: &str) {
        let dir = place(store).fresh().expect("an empty directory");
        std::fs::write(dir.join("file"), text).expect("write");
        place(store).finish(&dir).expect("named");
    }

    #[test]
    fn a_directory_is_filled_anew_where_the_old_one_is_there() {
        let (store, _dir) = Store::temporary().expect("a store");
        for text in ["one", "two"] {
            fill(&store, text);
            assert!(place(&store).ready());
            let read = place(&store).open().expect("open").read("file", 10).expect("read");
            assert_eq!(read.as_deref(), Some(text.as_bytes()));
        }
    }

    #[test]
    fn a_directory_whose_record_was_lost_is_not_trusted() {
        let (store, _dir) = Store::temporary().expect("a store");
        fill(&store, "one");
        store.delete(WHOLE, &place(&store).record);
        assert!(place(&store).path.is_dir() && !place(&store).ready());
    }
}
