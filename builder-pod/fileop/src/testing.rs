//! Trees for tests.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use tempfile::TempDir;

use crate::pattern::Patterns;
use crate::view::{Filter, Verdict};

/// A filter that hides what the patterns match.
pub(crate) struct Hide(pub(crate) Patterns);

impl Filter for Hide {
    fn verdict(&self, path: &str, is_dir: bool) -> Verdict {
        match self.0.matches(path) {
            false => Verdict::Show,
            true if is_dir && self.0.may_match_below(path, true) => Verdict::Descend,
            true => Verdict::Hide,
        }
    }
}

/// Makes a tree: `path=content`, `dir/`, `link->target`, `hard<>path`, `fifo|`; each may end with ` mode 755`.
pub(crate) fn tree(lines: &[&str]) -> TempDir {
    let dir = TempDir::new().unwrap_or_else(|e| panic!("{e}"));
    grow(dir.path(), lines);
    dir
}

/// Makes a tree in an existing directory.
pub(crate) fn grow(dir: &Path, lines: &[&str]) {
    for line in lines {
        let (line, mode) = match line.rsplit_once(" mode ") {
            Some((line, mode)) => (line, u32::from_str_radix(mode, 8).ok()),
            None => (*line, None),
        };
        let parent = |path: &str| {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap_or(dir)).unwrap_or_else(|e| panic!("{line}: {e}"));
            path
        };
        let path = if let Some((path, target)) = line.split_once("->") {
            std::os::unix::fs::symlink(target, parent(path)).unwrap_or_else(|e| panic!("{line}: {e}"));
            continue;
        } else if let Some((path, first)) = line.split_once("<>") {
            std::fs::hard_link(dir.join(first), parent(path)).unwrap_or_else(|e| panic!("{line}: {e}"));
            continue;
        } else if let Some((path, content)) = line.split_once('=') {
            std::fs::write(parent(path), content).unwrap_or_else(|e| panic!("{line}: {e}"));
            dir.join(path)
        } else if let Some(path) = line.strip_suffix('|') {
            set::node(&parent(path), rustix::fs::FileType::Fifo, 0);
            dir.join(path)
        } else {
            std::fs::create_dir_all(dir.join(line)).unwrap_or_else(|e| panic!("{line}: {e}"));
            dir.join(line)
        };
        if let Some(mode) = mode {
            set::mode(&path, mode);
        }
    }
}

/// Describes a tree line by line, in the notation of [`tree`], modes always given.
pub(crate) fn describe(dir: &Path) -> Vec<String> {
    fn walk(root: &Path, dir: &Path, lines: &mut Vec<String>) {
        let mut paths: Vec<_> = std::fs::read_dir(dir)
            .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
            .flatten()
            .map(|entry| entry.path())
            .collect();
        paths.sort();
        for path in paths {
            let shown = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            let meta = path.symlink_metadata().unwrap_or_else(|e| panic!("{shown}: {e}"));
            let mode = meta.permissions().mode() & 0o7777;
            if meta.is_dir() {
                lines.push(format!("{shown}/ mode {mode:o}"));
                walk(root, &path, lines);
            } else if meta.is_symlink() {
                let target = std::fs::read_link(&path).unwrap_or_else(|e| panic!("{shown}: {e}"));
                lines.push(format!("{shown}->{}", target.display()));
            } else if meta.is_file() {
                let content = std::fs::read(&path).unwrap_or_else(|e| panic!("{shown}: {e}"));
                lines.push(format!("{shown}={} mode {mode:o}", String::from_utf8_lossy(&content)));
            } else {
                lines.push(format!("{shown}| mode {mode:o} rdev {}", meta.rdev()));
            }
        }
    }
    let mut lines = Vec::new();
    walk(dir, dir, &mut lines);
    lines
}

/// Properties that the standard library does not set.
pub(crate) mod set {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

    pub(crate) fn mode(path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
            .unwrap_or_else(|e| panic!("{e}"));
    }

    pub(crate) fn owner(path: &Path, uid: u32, gid: u32) {
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(CWD, path, uid, gid, AtFlags::SYMLINK_NOFOLLOW).unwrap_or_else(|e| panic!("{e}"));
    }

    pub(crate) fn modified(path: &Path, seconds: i64) {
        let time = Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap_or_else(|e| panic!("{e}"));
    }

    pub(crate) fn xattr(path: &Path, name: &str, value: &[u8]) {
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty())
            .unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    pub(crate) fn node(path: &Path, kind: FileType, device: u64) {
        rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device)
            .unwrap_or_else(|e| panic!("{e}"));
    }
}
