//! A directory of the machine as a build context, read in place.

use std::any::Any;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use lapstrake_fileop::{Filter, MatchState, Patterns, Selector, Verdict, View, open_root};
use lapstrake_oci::Digest;

use crate::error::Error;
use crate::ignore::parse_ignore;

/// Largest ignore file that is read.
const IGNORE_BYTES_MAX: u64 = 1 << 20;

/// A directory with what a build does not see of it left out.
///
/// Symlinks that lead out of it lead nowhere.
pub struct Local {
    root: OwnedFd,
    visible: Visible,
    /// Nothing in it has extended attributes.
    bare: bool,
    /// Checksums of all of it, if it stays as it is.
    sums: Option<Arc<Sums>>,
    /// What keeps the directory as it is.
    _lease: Option<Box<dyn Any + Send + Sync>>,
}

/// What of a context a build sees.
#[derive(Default)]
struct Visible {
    /// Only this, if given.
    include: Option<Patterns>,
    ignore: Patterns,
    /// What the patterns said of the directories that the last path was in, outermost first: a walk asks for
    /// neighbours, and how a directory fared decides how what is in it fares.
    above: Mutex<Vec<(String, States)>>,
}

/// What the patterns said of one directory.
#[derive(Default, Clone)]
struct States {
    include: MatchState,
    ignore: MatchState,
}

impl Local {
    /// Opens the directory `path`; all of it is seen.
    ///
    /// # Errors
    /// When it is not there or not a directory.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self {
            root: open_root(path)?,
            visible: Visible::default(),
            bare: false,
            sums: None,
            _lease: None,
        })
    }

    /// Opens a directory below this one, wherever its symlinks lead inside; all of it is seen.
    ///
    /// # Errors
    /// When it is not there or not a directory.
    pub fn open_subdir(&self, path: &str) -> Result<Self, Error> {
        Ok(Self {
            root: View::context(self.root.as_fd(), None).open_resolved_dir(path)?,
            visible: Visible::default(),
            bare: false,
            sums: None,
            _lease: None,
        })
    }

    /// The same directory anew; all of it is seen.
    ///
    /// # Errors
    /// When no more files can be opened.
    pub fn whole(&self) -> Result<Self, Error> {
        let failed = |source| Error::Io { action: "opening a context once more".to_owned(), source };
        let root = self.root.try_clone().map_err(failed)?;
        Ok(Self { root, visible: Visible::default(), bare: self.bare, sums: None, _lease: None })
    }

    /// Holds `lease` for as long as it lives: what keeps others from changing the directory.
    pub fn holding(mut self, lease: impl Any + Send + Sync) -> Self {
        self._lease = Some(Box::new(lease));
        self
    }

    /// Of a directory that stays as it is as long as its lease is held: `sums` are of what is in it now, `bare` says that
    /// nothing in it has extended attributes.
    #[must_use]
    pub fn still(mut self, sums: Arc<Sums>, bare: bool) -> Self {
        (self.sums, self.bare) = (Some(sums), bare);
        self
    }

    /// What is known of a directory that stays as it is.
    pub fn sums(&self) -> Option<&Sums> {
        self.sums.as_deref()
    }

    /// Leaves out what `ignore` matches.
    pub fn with_ignore(mut self, ignore: Patterns) -> Self {
        self.sums = None;
        self.visible.ignore = ignore;
        self
    }

    /// Leaves out what is not needed to read `paths` (with wildcards) and all below them.
    ///
    /// # Errors
    /// When the links that they go through cannot be read, or one of them is a malformed pattern.
    pub fn with_only(mut self, paths: &[String]) -> Result<Self, Error> {
        self.sums = None;
        let followed = View::context(self.root.as_fd(), None).follow(paths)?;
        self.visible.include = match followed {
            Some(paths) => Some(Patterns::new(&paths).map_err(lapstrake_fileop::Error::from)?),
            None => None,
        };
        Ok(self)
    }

    /// Leaves out all but what `include` matches and what is needed to read `follow`, where there is any of them, as
    /// BuildKit's local sources ask for it.
    ///
    /// # Errors
    /// As [`with_only`](Self::with_only).
    pub fn with_included(mut self, include: &[String], follow: &[String]) -> Result<Self, Error> {
        if include.is_empty() && follow.is_empty() {
            return Ok(self);
        }
        let followed = match follow {
            [] => Some(Vec::new()),
            follow => View::context(self.root.as_fd(), None).follow(follow)?,
        };
        self.sums = None;
        let Some(mut all) = followed else { return Ok(self) }; // the whole directory is one of them
        all.extend(include.iter().cloned());
        self.visible.include = Some(Patterns::new(&all).map_err(lapstrake_fileop::Error::from)?);
        Ok(self)
    }

    /// The tree, to copy from and to hash in place. All of it belongs to uid and gid 0.
    pub fn view(&self) -> View<'_> {
        // Where all of it is seen, nobody has to be asked about each path.
        let filter: Option<&dyn Filter> = (!self.visible.is_all()).then_some(&self.visible);
        let view = View::context(self.root.as_fd(), filter);
        if self.bare { view.without_attributes() } else { view }
    }

    /// Reads a file as it is, ignored or not: the Dockerfile and what stands beside it.
    ///
    /// # Errors
    /// When it is no regular file or larger than `bytes_max`; a missing one is `None`.
    pub fn read(&self, path: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, Error> {
        Ok(View::context(self.root.as_fd(), None).read(path, bytes_max)?)
    }

    /// The ignore rules for a build with the Dockerfile at `dockerfile`: `<dockerfile>.dockerignore`, else
    /// `.dockerignore`, else none. With the rules comes the name of their file.
    ///
    /// # Errors
    /// When the file cannot be read or holds a malformed pattern.
    pub fn ignore_rules(&self, dockerfile: &str) -> Result<(Option<String>, Patterns), Error> {
        for name in [format!("{dockerfile}.dockerignore"), ".dockerignore".to_owned()] {
            if let Some(content) = self.read(&name, IGNORE_BYTES_MAX)? {
                return Ok((Some(name), parse_ignore(&content)?));
            }
        }
        Ok((None, Patterns::default()))
    }
}

/// Checksums of what selectors take of a directory that stays as it is.
#[derive(Debug, Default)]
pub struct Sums(Mutex<HashMap<Selector, Digest>>);

/// A build has a few; who has so many begins anew.
const SUMS_MAX: usize = 256;

impl Sums {
    /// A checksum that was put.
    pub fn get(&self, selector: &Selector) -> Option<Digest> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(selector).copied()
    }

    /// Remembers a checksum.
    pub fn put(&self, selector: &Selector, digest: Digest) {
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if sums.len() >= SUMS_MAX {
            sums.clear();
        }
        sums.insert(selector.clone(), digest);
    }
}

impl Visible {
    fn is_all(&self) -> bool {
        self.include.is_none() && self.ignore.is_empty()
    }

    /// Whether `path` is included and whether it is ignored, given what was said of its directory.
    fn judge(&self, path: &str, parent: &States) -> (bool, bool, States) {
        let (included, include) = match &self.include {
            Some(patterns) => patterns.matches_below(path, &parent.include),
            None => (true, MatchState::default()),
        };
        let (ignored, ignore) = self.ignore.matches_below(path, &parent.ignore);
        (included, ignored, States { include, ignore })
    }

    /// What was said of the directory that `path` is in.
    fn parent(&self, path: &str) -> States {
        let mut above = self.above.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let inside = |dir: &str| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'));
        while above.last().is_some_and(|(dir, _)| !inside(dir)) {
            above.pop();
        }
        let known = above.last().map_or(0, |(dir, _)| dir.len() + 1);
        for (at, _) in path.match_indices('/').filter(|(at, _)| *at >= known) {
            let states = above.last().map(|(_, states)| states.clone()).unwrap_or_default();
            above.push((path[..at].to_owned(), self.judge(&path[..at], &states).2));
        }
        above.last().map(|(_, states)| states.clone()).unwrap_or_default()
    }
}

impl Filter for Visible {
    fn verdict(&self, path: &str, is_dir: bool) -> Verdict {
        let (included, ignored, _) = self.judge(path, &self.parent(path));
        if included && !ignored {
            return Verdict::Show;
        }
        let may_be_included =
            || included || self.include.as_ref().is_some_and(|include| include.may_match_below(path, false));
        let may_be_kept = || !ignored || self.ignore.may_match_below(path, true);
        if is_dir && may_be_included() && may_be_kept() { Verdict::Descend } else { Verdict::Hide }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn tree(paths: &[&str]) -> TempDir {
        let dir = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
        for path in paths {
            let (path, target) = path.split_once("->").map_or((*path, None), |(path, to)| (path, Some(to)));
            let full = dir.path().join(path);
            std::fs::create_dir_all(full.parent().unwrap_or(dir.path())).unwrap_or_else(|e| panic!("{e}"));
            match target {
                Some(target) => symlink(target, &full).unwrap_or_else(|e| panic!("{e}")),
                None => std::fs::write(&full, path).unwrap_or_else(|e| panic!("{e}")),
            }
        }
        dir
    }

    fn seen(local: &Local) -> Vec<String> {
        let mut paths = Vec::new();
        local
            .view()
            .walk(&mut |entry| {
                paths.push(String::from_utf8_lossy(&entry.path).into_owned());
                Ok(())
            })
            .unwrap_or_else(|e| panic!("{e}"));
        paths
    }

    fn open(dir: &TempDir) -> Local {
        Local::open(dir.path()).unwrap_or_else(|e| panic!("{e}"))
    }

    fn ignoring(dir: &TempDir, rules: &str) -> Vec<String> {
        let patterns = parse_ignore(rules.as_bytes()).unwrap_or_else(|e| panic!("{e}"));
        seen(&open(dir).with_ignore(patterns))
    }

    #[test]
    fn ignored_paths_are_not_seen_unless_excepted() {
        let dir = tree(&["a.rs", "docs/a.md", "docs/b/keep.md", "node_modules/x/y.js", "src/a.rs"]);
        assert_eq!(
            ignoring(&dir, "docs\n!docs/b/keep.md\n**/node_modules"),
            ["a.rs", "docs", "docs/b", "docs/b/keep.md", "src", "src/a.rs"]
        );
        assert_eq!(ignoring(&dir, "*\n!src"), ["src", "src/a.rs"]);
        assert_eq!(ignoring(&dir, "**\n!**/*.md"), ["docs", "docs/a.md", "docs/b", "docs/b/keep.md"]);
        assert_eq!(ignoring(&dir, "*\n!nothing"), [""; 0]);
    }

    #[test]
    fn an_exception_for_a_directory_does_not_reach_what_is_ignored_by_its_own_name() {
        // As BuildKit's walk has it: the exception said nothing new of the directory itself.
        let dir = tree(&["a/b", "a/c/d", "a/e"]);
        assert_eq!(ignoring(&dir, "a/c\n!a"), ["a", "a/b", "a/e"]);
        assert_eq!(ignoring(&dir, "a\n!a/c"), ["a", "a/c", "a/c/d"]);
    }

    #[test]
    fn verdicts_do_not_depend_on_the_order_of_questions() {
        let rules = "docs\n!docs/keep\n**/*.tmp\nsrc/gen/**\n!src/gen/a.rs";
        let visible = || Visible {
            ignore: parse_ignore(rules.as_bytes()).unwrap_or_else(|e| panic!("{e}")),
            ..Visible::default()
        };
        let paths = [
            "docs",
            "docs/a",
            "docs/keep",
            "docs/keep/x",
            "src",
            "src/gen",
            "src/gen/a.rs",
            "src/gen/b",
            "x.tmp",
            "docsx/a",
        ];
        let one = visible();
        for path in paths.iter().chain(paths.iter().rev()).chain(paths.iter().step_by(3)) {
            assert_eq!(one.verdict(path, true), visible().verdict(path, true), "{path}");
        }
    }

    #[test]
    fn an_ignored_directory_is_not_even_opened() {
        let dir = tree(&["keep", "big/file"]);
        // An unreadable directory would fail the walk, even for root, if it were opened: make it a loop of mounts
        // is not needed, a name that is too deep is enough.
        let mut deep = dir.path().join("big");
        for _ in 0..450 {
            deep.push("d");
            std::fs::create_dir(&deep).unwrap_or_else(|e| panic!("{e}"));
        }
        assert_eq!(ignoring(&dir, "big"), ["keep"]);
        let whole = open(&dir);
        assert!(whole.view().walk(&mut |_| Ok(())).is_err(), "nested deeper than allowed");
    }

    #[test]
    fn only_what_the_build_uses_is_seen() {
        let dir = tree(&[
            "app/main.rs",
            "app/lib/x.rs",
            "app2/no",
            "real/deep/f",
            "link->real/deep",
            "abs->/real",
            "out->/etc",
            "loop->loop",
            "w/a.txt",
            "w/b.md",
            "w/l.txt->../real/deep/f",
            "unused/f",
        ]);
        let only = |paths: &[&str]| {
            let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
            seen(&open(&dir).with_only(&paths).unwrap_or_else(|e| panic!("{e}")))
        };
        assert_eq!(only(&["app"]), ["app", "app/lib", "app/lib/x.rs", "app/main.rs"]);
        assert_eq!(only(&["/app/lib/../main.rs"]), ["app", "app/main.rs"]);
        assert_eq!(only(&["link/f"]), ["link", "real", "real/deep", "real/deep/f"]);
        assert_eq!(only(&["abs/deep"]), ["abs", "real", "real/deep", "real/deep/f"]);
        assert_eq!(only(&["w/*.txt"]), ["real", "real/deep", "real/deep/f", "w", "w/a.txt", "w/l.txt"]);
        assert_eq!(only(&["out/passwd"]), ["out"]);
        assert_eq!(only(&["loop", "loop/x"]), ["loop"]);
        assert_eq!(only(&["missing"]), [""; 0]);
        assert_eq!(only(&["."]).len(), seen(&open(&dir)).len());
    }

    #[test]
    fn the_dockerfile_s_own_ignore_file_wins() {
        let dir = tree(&[".dockerignore", "sub/Dockerfile", "sub/Dockerfile.dockerignore"]);
        let local = open(&dir);
        let name = |dockerfile: &str| local.ignore_rules(dockerfile).ok().and_then(|(name, _)| name);
        assert_eq!(name("sub/Dockerfile").as_deref(), Some("sub/Dockerfile.dockerignore"));
        assert_eq!(name("Dockerfile").as_deref(), Some(".dockerignore"));
        assert_eq!(local.read("../../etc/passwd", 1000).ok(), Some(None));
    }
}
