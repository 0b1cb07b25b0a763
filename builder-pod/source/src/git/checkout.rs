use std::fs::Permissions;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use super::{Git, GitRef, error, is_commit, not_found};
use crate::error::{Class, Error, shown_url};

/// How deep submodules may nest.
const SUBMODULE_DEPTH_MAX: usize = 8;

/// What time the files of a checkout have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FileTime {
    /// The time when they were written.
    #[default]
    Checkout,
    /// The commit's time, so that equal commits are equal trees.
    Commit,
}

/// What of a commit is written, and how.
#[derive(Debug, Clone, Default)]
pub struct CheckoutOptions {
    /// Only this directory; empty for all.
    pub subdir: String,
    /// Submodules too, and theirs.
    pub submodules: bool,
    /// What time the files have.
    pub time: FileTime,
    /// With a `.git` that holds this commit, where all of the repository is wanted.
    pub keep_git_dir: bool,
    /// The branch or tag (`refs/…`) by which that repository names the commit.
    pub reference: Option<String>,
}

/// Boxed, since submodules make it call itself.
pub(super) fn checkout<'a>(
    git: &'a Git,
    url: &'a str,
    commit: &'a str,
    dest: &'a Path,
    options: &'a CheckoutOptions,
    depth: usize,
) -> Pin<Box<dyn Future<Output = Result<PathBuf, Error>> + Send + 'a>> {
    Box::pin(async move {
        let repository = git.repository(url);
        let failed = |failure| error(url, commit, failure);
        let subdir = clean(&options.subdir);
        if !subdir.is_empty() {
            let args = ["ls-tree", "-d", "--full-tree", commit, "--", &subdir];
            let listed = git.runner.run(Some(&repository), &args).await.map_err(failed)?;
            if !listed.split_ascii_whitespace().any(|word| word == "tree") {
                return Err(not_found(url, commit, &format!("no such directory: \"{subdir}\"")));
            }
        }
        let scratch = tempfile::tempdir_in(&git.cache).map_err(Error::io("make a git index"))?;
        let index = scratch.path().join("index");
        let env = [("GIT_INDEX_FILE", index.as_path()), ("GIT_WORK_TREE", dest)];
        let args = ["read-tree", "--no-sparse-checkout", commit];
        git.runner.bytes(Some(&repository), &args, &env, None).await.map_err(failed)?;
        // The whole index is read, so that attributes of parent directories hold; only the wanted files are written.
        let args = ["--literal-pathspecs", "ls-files", "-z", "--cached", "--", subdir.as_str()];
        let args = if subdir.is_empty() { &args[..4] } else { &args[..] };
        let names = git.runner.bytes(Some(&repository), args, &env, None).await.map_err(failed)?;
        let list = scratch.path().join("list");
        std::fs::write(&list, names).map_err(Error::io("write a list of files"))?;
        let list = std::fs::File::open(&list).map_err(Error::io("read a list of files"))?;
        let args = ["checkout-index", "--force", "--quiet", "-z", "--stdin"];
        // Only here is a missing object noticed: a repository that was damaged by a kill.
        git.runner.bytes(Some(&repository), &args, &env, Some(list.into())).await.map_err(failed)?;
        let seconds = match options.time {
            FileTime::Checkout => None,
            FileTime::Commit => {
                let args = ["show", "--no-patch", "--format=%ct", commit];
                let text = git.runner.run(Some(&repository), &args).await.map_err(failed)?;
                text.trim().parse().ok()
            }
        };
        if options.submodules {
            submodules(git, url, commit, dest, &subdir, options.time, depth).await?;
        }
        if options.keep_git_dir && subdir.is_empty() {
            git_dir(git, url, commit, options.reference.as_deref(), dest).await?;
        }
        settle_blocking(dest.to_owned(), seconds).await?;
        Ok(if subdir.is_empty() { dest.to_owned() } else { dest.join(subdir) })
    })
}

/// Makes a repository of a checkout: the commit alone, without those before it.
async fn git_dir(
    git: &Git,
    url: &str,
    commit: &str,
    reference: Option<&str>,
    dest: &Path,
) -> Result<(), Error> {
    let failed = |failure| error(url, commit, failure);
    let (kept, own) = (git.repository(url), dest.join(".git"));
    let format = if commit.len() == 64 { "sha256" } else { "sha1" };
    let (format, place) = (format!("--object-format={format}"), dest.to_string_lossy().into_owned());
    let init = ["init", "--quiet", "--template=", "--initial-branch=main", &format, "--", &place];
    git.runner.run(None, &init).await.map_err(failed)?;
    let (from, wanted) = (format!("file://{}", kept.display()), format!("refs/lapstrake/{commit}"));
    // A commit that came along with another one has no name yet.
    git.runner.run(Some(&kept), &["update-ref", &wanted, commit]).await.map_err(failed)?;
    let fetch = ["fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head", "--", &from, &wanted];
    let local = [("GIT_ALLOW_PROTOCOL", Path::new("file"))];
    git.runner.bytes(Some(&own), &fetch, &local, None).await.map_err(failed)?;
    // No credentials stay in what becomes a layer.
    let remote = shown_url(url);
    let (remote, head): (&[&str], &[&str]) =
        (&["config", "remote.origin.url", &remote], &["update-ref", "--no-deref", "HEAD", commit]);
    let named = |name: &&str| name.starts_with("refs/heads/") || name.starts_with("refs/tags/");
    if let Some(name) = reference.filter(named) {
        git.runner.run(Some(&own), &["update-ref", name, commit]).await.map_err(failed)?;
    }
    // An index without the files' times, so that it is the same on any machine.
    for args in [remote, head, &["read-tree", "HEAD"]] {
        git.runner.run(Some(&own), args).await.map_err(failed)?;
    }
    Ok(())
}

fn clean(path: &str) -> String {
    String::from_utf8_lossy(&lapstrake_fileop::path::clean(path.as_bytes())).into_owned()
}

/// Checks out the submodules below `subdir` at the commits that the tree names.
async fn submodules(
    git: &Git,
    url: &str,
    commit: &str,
    dest: &Path,
    subdir: &str,
    time: FileTime,
    depth: usize,
) -> Result<(), Error> {
    let repository = git.repository(url);
    let failed = |failure| error(url, commit, failure);
    let tree = ["ls-tree", "-r", "-z", "--full-tree", commit];
    let tree = git.runner.run(Some(&repository), &tree).await.map_err(failed)?;
    // `160000 commit <id>\t<path>`
    let links: Vec<(&str, &str)> = tree
        .split('\0')
        .filter_map(|line| line.strip_prefix("160000 commit ")?.split_once('\t'))
        .filter(|(id, path)| {
            let below =
                path.strip_prefix(subdir).is_some_and(|rest| subdir.is_empty() || rest.starts_with('/'));
            is_commit(id) && below
        })
        .collect();
    if links.is_empty() {
        return Ok(());
    }
    if depth >= SUBMODULE_DEPTH_MAX {
        return Err(not_found(url, commit, "submodules are nested too deeply"));
    }
    let blob = format!("{commit}:.gitmodules");
    let args = ["config", "--null", "--blob", &blob, "--get-regexp", "^submodule\\..*\\.(path|url)$"];
    let config = git.runner.run(Some(&repository), &args).await.unwrap_or_default();
    for (id, path) in links {
        let Some(target) = submodule_url(&config, path).and_then(|target| absolute(url, &target)) else {
            return Err(not_found(url, commit, &format!("submodule \"{path}\" has no URL in .gitmodules")));
        };
        let wanted = git.resolve(&target, &GitRef::Commit(id.to_owned())).await?;
        let inside = |error| match error {
            Error::Git { class, reason, .. } => Error::Git {
                class: if class == Class::User { Class::NotFound } else { class },
                url: shown_url(url),
                reference: commit.to_owned(),
                reason: format!("submodule \"{path}\" from {}: {reason}", shown_url(&target)),
            },
            other => other,
        };
        git.fetch(&target, &wanted).await.map_err(inside)?;
        let place = plain_directory(dest, path).map_err(Error::io(format!("make submodule \"{path}\"")))?;
        let options = CheckoutOptions { submodules: true, time, ..CheckoutOptions::default() };
        checkout(git, &target, &wanted.commit, &place, &options, depth + 1).await.map_err(inside)?;
    }
    Ok(())
}

/// The URL of the submodule at `path`, from `key\nvalue\0` records.
fn submodule_url(config: &str, path: &str) -> Option<String> {
    let records = || config.split('\0').filter_map(|record| record.split_once('\n'));
    let (key, _) = records().find(|(key, value)| key.ends_with(".path") && clean(value) == path)?;
    let name = key.strip_suffix(".path")?;
    records().find(|(key, _)| key.strip_suffix(".url") == Some(name)).map(|(_, url)| url.to_owned())
}

/// A submodule's URL may be relative to its parent's.
fn absolute(parent: &str, url: &str) -> Option<String> {
    if !url.starts_with("./") && !url.starts_with("../") {
        return Some(url.to_owned());
    }
    // The part that ".." may not touch.
    let fixed = match parent.split_once("://") {
        Some((scheme, rest)) => scheme.len() + 3 + rest.find('/')?,
        None if parent.starts_with('/') => 0,
        None => parent.find(':')? + 1,
    };
    let (head, tail) = parent.split_at(fixed);
    let mut parts: Vec<&str> = tail.split('/').filter(|part| !part.is_empty()).collect();
    let rooted = tail.starts_with('/');
    for part in url.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(format!("{head}{}{}", if rooted { "/" } else { "" }, parts.join("/")))
}

/// Makes `path` below `dest`, through real directories only.
fn plain_directory(dest: &Path, path: &str) -> io::Result<PathBuf> {
    let mut place = dest.to_owned();
    for part in path.split('/') {
        if matches!(part, "" | "." | ".." | ".git") {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        place.push(part);
        match std::fs::create_dir(&place) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !place.symlink_metadata()?.is_dir() {
                    return Err(io::ErrorKind::NotADirectory.into());
                }
            }
            result => result?,
        }
    }
    Ok(place)
}

async fn settle_blocking(dest: PathBuf, seconds: Option<i64>) -> Result<(), Error> {
    let shown = dest.display().to_string();
    tokio::task::spawn_blocking(move || settle(&dest, seconds))
        .await
        .map_err(io::Error::other)
        .flatten()
        .map_err(Error::io(format!("set modes in {shown}")))
}

/// Modes that do not depend on the umask, and times that do not depend on the clock.
fn settle(dir: &Path, seconds: Option<i64>) -> io::Result<()> {
    let mut todo = vec![dir.to_owned()];
    let mut done = Vec::new();
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let path = entry?.path();
            let meta = path.symlink_metadata()?;
            if meta.is_dir() {
                todo.push(path);
                continue;
            }
            if meta.is_file() {
                let mode = if meta.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
                std::fs::set_permissions(&path, Permissions::from_mode(mode))?;
            }
            set_time(&path, seconds)?;
        }
        std::fs::set_permissions(&dir, Permissions::from_mode(0o755))?;
        done.push(dir);
    }
    done.iter().rev().try_for_each(|dir| set_time(dir, seconds))
}

fn set_time(path: &Path, seconds: Option<i64>) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    let Some(seconds) = seconds else { return Ok(()) };
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_submodule_urls_start_at_the_parent_s() {
        for (parent, url, want) in [
            ("https://h/a/b.git", "../c.git", Some("https://h/a/c.git")),
            ("https://h/a/b.git", "../../c.git", Some("https://h/c.git")),
            ("https://h/a/b.git", "./c", Some("https://h/a/b.git/c")),
            ("https://h/a/b.git", "../../../c.git", None),
            ("git@h:a/b.git", "../c.git", Some("git@h:a/c.git")),
            ("https://h/a", "https://x/y", Some("https://x/y")),
            ("/srv/a", "../b", Some("/srv/b")),
        ] {
            assert_eq!(absolute(parent, url).as_deref(), want, "{parent} {url}");
        }
    }

    #[test]
    fn submodules_are_found_by_their_path() {
        let config = "submodule.x.path\nlib/x\0submodule.x.url\n../x.git\0submodule.y.url\nhttps://h/y\0";
        assert_eq!(submodule_url(config, "lib/x").as_deref(), Some("../x.git"));
        assert_eq!(submodule_url(config, "lib/y"), None);
    }
}
