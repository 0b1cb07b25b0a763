//! What the tests of applying and diffing share: trees as values.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::fs::FileType;

use crate::fsio::{self, Xattrs};
use crate::tar::Time;

/// All that can be seen of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: FileType,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: Time,
    pub(crate) device: u64,
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: Xattrs,
    /// First path of the same file.
    pub(crate) same_as: Option<String>,
}

/// A tree as a value: path to what is seen there.
pub(crate) type Tree = BTreeMap<String, Seen>;

/// Looks at a tree. Times of whiteouts and the root's are left out: they have no meaning.
pub(crate) fn look(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut inodes = BTreeMap::new();
    let root = fsio::open_root(root).unwrap();
    let stat = rustix::fs::fstat(&root).unwrap();
    let mut own = seen(&stat, fsio::xattrs_of(&root).unwrap());
    own.mtime = Time::default();
    tree.insert(String::new(), own);
    descend(&root, "", &mut tree, &mut inodes);
    tree
}

fn seen(stat: &rustix::fs::Stat, mut xattrs: Xattrs) -> Seen {
    // Overlay's bookkeeping of the merged directory; opaque is what counts.
    xattrs.retain(|name, _| !fsio::is_overlay_xattr(name) || name.ends_with(b".opaque"));
    Seen {
        kind: fsio::kind(stat),
        mode: stat.st_mode & 0o7777,
        owner: (stat.st_uid, stat.st_gid),
        mtime: fsio::mtime(stat),
        device: stat.st_rdev,
        content: Vec::new(),
        xattrs,
        same_as: None,
    }
}

fn descend(
    dir: &std::os::fd::OwnedFd,
    path: &str,
    tree: &mut Tree,
    inodes: &mut BTreeMap<(u64, u64), String>,
) {
    for name in fsio::list(dir).unwrap() {
        let name = name.to_bytes();
        let full = format!("{path}/{}", name.escape_ascii());
        let stat = fsio::stat(dir, name).unwrap().unwrap();
        let mut one = seen(&stat, fsio::xattrs_at(dir.as_fd(), name).unwrap());
        if fsio::is_whiteout(&stat) {
            (one.mtime, one.mode) = (Time::default(), 0);
            tree.insert(full, one);
            continue;
        }
        match one.kind {
            FileType::Directory => {
                tree.insert(full.clone(), one);
                descend(&fsio::open_dir(dir, name).unwrap(), &full, tree, inodes);
                continue;
            }
            FileType::RegularFile => {
                let mut file = std::fs::File::from(fsio::open_file(dir, name).unwrap());
                std::io::Read::read_to_end(&mut file, &mut one.content).unwrap();
            }
            FileType::Symlink => {
                one.content = rustix::fs::readlinkat(dir, name, Vec::new()).unwrap().into_bytes();
                one.mode = 0o777;
            }
            _ => {}
        }
        if stat.st_nlink > 1 {
            let first = inodes.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| full.clone());
            one.same_as = Some(first.clone());
        }
        tree.insert(full, one);
    }
}

/// Says what differs, shortly.
pub(crate) fn assert_same(left: &Tree, right: &Tree) {
    for (path, one) in left {
        match right.get(path) {
            None => panic!("{path} is missing on the right; left has {}", short(one)),
            Some(other) if one != other => panic!("{path}:\n left {}\nright {}", short(one), short(other)),
            Some(_) => {}
        }
    }
    for (path, one) in right {
        assert!(left.contains_key(path), "{path} is only on the right: {}", short(one));
    }
}

fn short(seen: &Seen) -> String {
    let mut seen = seen.clone();
    let length = seen.content.len();
    seen.content.truncate(40);
    format!("{seen:?} ({length} bytes)")
}

/// True as root; else says loudly that the test is skipped, or fails where `LAPSTRAKE_REQUIRE` asks for it.
pub(crate) fn userns_here() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let required = std::env::var("LAPSTRAKE_REQUIRE").unwrap_or_default();
    assert!(
        !required.split(',').any(|r| r == "userns"),
        "this test needs root, of a user namespace at least"
    );
    eprintln!("skipped: needs root, of a user namespace at least");
    false
}

/// Whether this is the machine's own user namespace, where `trusted.*` and devices can be made.
pub(crate) fn first_userns() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// The values of `userxattr` that can be tried here.
pub(crate) fn userxattr_modes() -> &'static [bool] {
    if first_userns() { &[true, false] } else { &[true] }
}
