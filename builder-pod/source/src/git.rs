//! Git repositories, by the `git` program.
//!
//! [`Git::resolve`] turns a ref into a commit, [`Git::fetch`] brings that commit into a bare repository that is kept
//! per remote, [`Git::checkout`] writes its files. A future that is dropped kills its `git`.

mod bundle;
mod checkout;
mod command;
mod facts;
mod objects;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lapstrake_oci::Digest;
use tokio::sync::Mutex;

pub use checkout::{CheckoutOptions, FileTime};
pub use facts::Facts;
pub use objects::{Objects, Signed};

use crate::auth::{Access, SourceAuth};
use crate::error::{Class, Error, shown_url};
use command::{Failure, Runner};

/// What of a repository is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GitRef {
    /// The branch that the repository shows first.
    Default,
    /// A branch by its name.
    Branch(String),
    /// A tag by its name.
    Tag(String),
    /// A commit by its full id.
    Commit(String),
    /// A full ref, or else a commit, a branch or a tag, in this order, which is BuildKit's.
    Any(String),
}

impl GitRef {
    /// This ref, found at a commit by somebody else.
    pub fn at(&self, commit: &str) -> Resolved {
        let reference = match self {
            Self::Branch(name) => Some(format!("refs/heads/{}", strip(name, "refs/heads/"))),
            Self::Tag(name) => Some(format!("refs/tags/{}", strip(name, "refs/tags/"))),
            Self::Default => Some("HEAD".to_owned()),
            Self::Commit(_) | Self::Any(_) => None,
        };
        Resolved { commit: commit.to_ascii_lowercase(), reference, tag: None }
    }
}

/// A commit, and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The commit's id, 40 (or 64) hex digits.
    pub commit: String,
    /// The ref that led to it; none when it was asked for by its id.
    pub reference: Option<String>,
    /// The id of the annotated tag that the ref is, where it is one.
    pub tag: Option<String>,
}

/// Fetches from repositories and keeps what was fetched in one directory.
///
/// One process at a time may use that directory.
pub struct Git {
    cache: PathBuf,
    runner: Runner,
    auth: Vec<SourceAuth>,
    /// One at a time per repository.
    locks: std::sync::Mutex<HashMap<PathBuf, Arc<Mutex<bool>>>>,
}

impl Git {
    /// Keeps repositories below `cache`, which is made when it is used.
    pub fn new(cache: impl Into<PathBuf>) -> Self {
        let cache = cache.into();
        Self {
            runner: Runner::new(cache.join("home")),
            cache,
            auth: Vec::new(),
            locks: std::sync::Mutex::default(),
        }
    }

    /// Also takes `file://` URLs and paths: for tests, and for a build on one's own machine.
    pub fn allow_local(mut self) -> Self {
        self.runner.local = true;
        self
    }

    /// Adds credentials; each is for its own host.
    pub fn with_auth(mut self, auth: Option<SourceAuth>) -> Self {
        self.auth.extend(auth);
        self
    }

    /// Adds what git finds in its environment: proxies (`https_proxy` and so on, which then take the place of those
    /// of this process), `GIT_SSL_CAINFO`.
    pub fn with_environment<V: Into<std::ffi::OsString>>(
        mut self,
        environment: impl IntoIterator<Item = (String, V)>,
    ) -> Self {
        self.runner.outside.extend(environment.into_iter().map(|(name, value)| (name, value.into())));
        self
    }

    /// What lets a call in at `url`.
    fn access(&self, url: &str) -> Result<Access, Error> {
        match self.auth.iter().find(|auth| auth.is_for(url)) {
            Some(auth) => auth.access(url),
            None => Ok(Access::default()),
        }
    }

    /// Asks the repository which commit `want` is. A commit is believed without asking.
    ///
    /// # Errors
    /// [`Error::Git`], or [`Error::Invalid`] for what is no ref or URL at all.
    pub async fn resolve(&self, url: &str, want: &GitRef) -> Result<Resolved, Error> {
        self.check_url(url)?;
        let (shown, wanted): (&str, Vec<String>) = match want {
            GitRef::Commit(id) => {
                if !is_commit(id) {
                    let text = format!("\"{id}\" is not a commit: it needs all 40 (or 64) hex digits");
                    return Err(Error::Invalid(text));
                }
                return Ok(Resolved { commit: id.to_ascii_lowercase(), reference: None, tag: None });
            }
            GitRef::Any(id) if is_commit(id) => {
                return Ok(Resolved { commit: id.to_ascii_lowercase(), reference: None, tag: None });
            }
            GitRef::Default => ("", vec!["HEAD".to_owned()]),
            GitRef::Branch(name) => (name, vec![format!("refs/heads/{}", strip(name, "refs/heads/"))]),
            GitRef::Tag(name) => (name, vec![format!("refs/tags/{}", strip(name, "refs/tags/"))]),
            GitRef::Any(name) if name.starts_with("refs/") => (name, vec![name.clone()]),
            GitRef::Any(name) if name == "HEAD" => (name, vec![name.clone()]),
            GitRef::Any(name) => (name, vec![format!("refs/heads/{name}"), format!("refs/tags/{name}")]),
        };
        for name in &wanted {
            check_ref(name)?;
        }
        let mut args = ["ls-remote", "--symref", "--", url].map(str::to_owned).to_vec();
        for name in &wanted {
            args.push(name.clone());
            // The commit that an annotated tag stands for.
            args.push(format!("{name}^{{}}"));
        }
        let access = self.access(url)?;
        let output =
            self.runner.remote(None, &args, &access).await.map_err(|failure| error(url, shown, failure))?;
        let listed: HashMap<&str, &str> =
            output.lines().filter_map(|line| line.split_once('\t').map(|(id, name)| (name, id))).collect();
        for name in wanted {
            let (own, peeled) = (listed.get(name.as_str()), listed.get(format!("{name}^{{}}").as_str()));
            if let Some(commit) = peeled.or(own).filter(|id| is_commit(id)) {
                let tag = own.filter(|id| peeled.is_some() && is_commit(id)).map(|id| (*id).to_owned());
                // The default branch has a name.
                let branch = facts::default_branch(&output).filter(|_| matches!(want, GitRef::Default));
                let reference = branch.map_or(name, |branch| format!("refs/heads/{branch}"));
                return Ok(Resolved { commit: (*commit).to_owned(), reference: Some(reference), tag });
            }
        }
        let reason = match want {
            GitRef::Default => "it is empty or has no default branch",
            GitRef::Branch(_) => "no such branch",
            GitRef::Tag(_) => "no such tag",
            _ => "no such branch, tag or ref",
        };
        Err(not_found(url, shown, reason))
    }

    /// Brings a commit into the repository that is kept for `url`, as little of the rest as the server allows.
    ///
    /// # Errors
    /// [`Error::Git`].
    pub async fn fetch(&self, url: &str, wanted: &Resolved) -> Result<(), Error> {
        self.check_url(url)?;
        check_commit(&wanted.commit)?;
        let dir = self.repository(url);
        let lock = self.lock(&dir);
        let mut ready = lock.lock().await;
        self.prepare(&dir, wanted.commit.len() == 64, &mut ready).await?;
        if self.has(&dir, &wanted.commit).await {
            return Ok(());
        }
        let shown = wanted.reference.as_deref().unwrap_or(&wanted.commit);
        let access = self.access(url)?;
        let mut last = None;
        for attempt in fetches(wanted) {
            let mut args = vec!["fetch", "--no-tags", "--no-write-fetch-head", "--force", "--quiet"];
            let shallow = dir.join("shallow").exists();
            match attempt.depth {
                true => args.push("--depth=1"),
                false if shallow => args.push("--unshallow"),
                false => {}
            }
            args.extend(["--", url]);
            args.extend(attempt.refs.iter().map(String::as_str));
            match self.runner.remote(Some(&dir), &args, &access).await {
                Ok(_) if self.has(&dir, &wanted.commit).await => {
                    let keep = format!("refs/lapstrake/{}", wanted.commit);
                    let args = ["update-ref", &keep, &wanted.commit];
                    self.runner.run(Some(&dir), &args).await.map_err(|failure| error(url, shown, failure))?;
                    return Ok(());
                }
                Ok(_) => {}
                Err(failure) if failure.class() == Class::Denied => return Err(error(url, shown, failure)),
                Err(failure) => last = Some(failure),
            }
        }
        Err(match last {
            // The whole repository came, and the commit was not in it.
            None => not_found(url, shown, "no such commit"),
            Some(failure) => error(url, shown, failure),
        })
    }

    /// Writes the files of a commit that was fetched into `dest`, an empty directory; returns where its `subdir` is.
    ///
    /// # Errors
    /// [`Error::Git`]; with class `NotFound` when the commit has no such directory.
    pub async fn checkout(
        &self,
        url: &str,
        commit: &str,
        dest: &Path,
        options: &CheckoutOptions,
    ) -> Result<PathBuf, Error> {
        self.check_url(url)?;
        check_commit(commit)?;
        checkout::checkout(self, url, commit, dest, options, 0).await
    }

    /// Gives up what is kept of all repositories, after [`Error::is_damage`].
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn forget(&self) -> Result<(), Error> {
        self.locks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
        let dir = self.cache.join("repositories");
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", dir.display()))(error))
            }
            _ => Ok(()),
        }
    }

    fn check_url(&self, url: &str) -> Result<(), Error> {
        let plain = !url.is_empty() && !url.starts_with('-') && !url.contains(|c: char| c.is_control());
        // "ext::", "fd::" and the like run programs; other colons belong to an address.
        let word = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
        let runs = url.trim_start_matches(word).starts_with("::");
        if !plain || runs {
            return Err(Error::Invalid(format!("\"{}\" is not a git URL", shown_url(url))));
        }
        let known = ["https://", "http://", "ssh://", "git://"].iter().any(|scheme| url.starts_with(scheme));
        let scp = !url.contains("://") && url.split_once(':').is_some_and(|(host, _)| !host.contains('/'));
        if !known && !scp && !self.runner.local {
            let text = "needs https, http, ssh or git as its scheme";
            return Err(Error::Invalid(format!("git URL \"{}\" {text}", shown_url(url))));
        }
        Ok(())
    }

    fn repository(&self, url: &str) -> PathBuf {
        self.cache.join("repositories").join(Digest::of(shown_url(url).as_bytes()).hex())
    }

    fn lock(&self, dir: &Path) -> Arc<Mutex<bool>> {
        let mut locks = self.locks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(locks.entry(dir.to_owned()).or_default())
    }

    /// Makes the bare repository, or makes an old one usable after a kill.
    async fn prepare(&self, dir: &Path, sha256: bool, ready: &mut bool) -> Result<(), Error> {
        if *ready {
            return Ok(());
        }
        let failed = || Error::io(format!("make git repository {}", dir.display()));
        if dir.exists() {
            for name in ["shallow.lock", "config.lock", "HEAD.lock", "packed-refs.lock"] {
                std::fs::remove_file(dir.join(name)).ok(); // mostly there is none
            }
            if self.runner.run(Some(dir), &["rev-parse", "--git-dir"]).await.is_err() {
                std::fs::remove_dir_all(dir).map_err(failed())?;
            }
        }
        if !dir.exists() {
            std::fs::create_dir_all(dir).map_err(failed())?;
            let format = if sha256 { "--object-format=sha256" } else { "--object-format=sha1" };
            let path = dir.display().to_string();
            let args = ["init", "--bare", "--quiet", "--template=", format, "--", &path];
            self.runner.run(None, &args).await.map_err(|failure| error(&path, "", failure))?;
        }
        *ready = true;
        Ok(())
    }

    async fn has(&self, dir: &Path, commit: &str) -> bool {
        // Without a look elsewhere: the tree must be here too.
        let object = format!("{commit}^{{tree}}");
        self.runner.run(Some(dir), &["cat-file", "-e", &object]).await.is_ok()
    }
}

struct Fetch {
    depth: bool,
    refs: Vec<String>,
}

/// The ways to get at a commit, the cheap ones first.
fn fetches(wanted: &Resolved) -> Vec<Fetch> {
    let mut ways = Vec::new();
    // By name first: servers that hide commits still show the tip of a ref.
    if let Some(name) = &wanted.reference {
        ways.push(Fetch { depth: true, refs: vec![name.clone()] });
    }
    ways.push(Fetch { depth: true, refs: vec![wanted.commit.clone()] });
    let everything = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];
    ways.push(Fetch { depth: false, refs: everything.map(str::to_owned).to_vec() });
    ways
}

fn strip<'a>(name: &'a str, prefix: &str) -> &'a str {
    name.strip_prefix(prefix).unwrap_or(name)
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn check_commit(text: &str) -> Result<(), Error> {
    if is_commit(text) { Ok(()) } else { Err(Error::Invalid(format!("\"{text}\" is not a commit id"))) }
}

/// Refuses what git would refuse as a ref, or take for an option or a pattern.
fn check_ref(name: &str) -> Result<(), Error> {
    let base = strip(strip(name, "refs/heads/"), "refs/tags/");
    let bad = base.is_empty()
        || base.starts_with(['-', '/', '.'])
        || base.ends_with(['/', '.'])
        || base.ends_with(".lock")
        || base.contains("..")
        || base.contains("//")
        || base.contains("@{")
        || base.contains(|c: char| c.is_control() || " ~^:?*[\\".contains(c));
    if bad || name.len() > 1000 {
        return Err(Error::Invalid(format!("\"{base}\" is not a git ref")));
    }
    Ok(())
}

fn not_found(url: &str, reference: &str, reason: &str) -> Error {
    Error::Git {
        class: Class::NotFound,
        url: shown_url(url),
        reference: reference.to_owned(),
        reason: reason.to_owned(),
    }
}

fn error(url: &str, reference: &str, failure: Failure) -> Error {
    let mut reason = failure.reason();
    // git quotes the URL as it was given.
    let shown = shown_url(url);
    reason = reason.replace(url, &shown);
    if let Some((_, rest)) = url.split_once("://")
        && let Some((user, _)) = rest.split('/').next().unwrap_or_default().rsplit_once('@')
    {
        reason = reason.replace(&format!("{user}@"), "");
    }
    Error::Git { class: failure.class(), url: shown, reference: reference.to_owned(), reason }
}

#[cfg(test)]
mod tests;
