//! Two file systems, compared in all that they have.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use lapstrake_oci::Digest;

/// Every file below a root, and all that there is to know of it.
pub(crate) type Tree = BTreeMap<OsString, String>;

pub(crate) fn tree(root: &Path) -> Tree {
    let mut files = Tree::new();
    let mut first_names = BTreeMap::new();
    walk(root, Path::new(""), &mut first_names, &mut files);
    files
}

fn walk(root: &Path, dir: &Path, first_names: &mut BTreeMap<u64, PathBuf>, files: &mut Tree) {
    let mut names: Vec<OsString> =
        fs::read_dir(root.join(dir)).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let below = dir.join(name);
        let path = root.join(&below);
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            "directory".to_owned()
        } else if kind.is_symlink() {
            format!("symlink to {:?}", fs::read_link(&path).unwrap())
        } else if kind.is_file() {
            format!("file of {} bytes {}", meta.len(), Digest::of(&fs::read(&path).unwrap()))
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else {
            let letter = if kind.is_char_device() { 'c' } else { 'b' };
            format!("device {letter} {}:{}", rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()))
        };
        let first = match kind.is_dir() || meta.nlink() < 2 {
            true => String::new(),
            false => format!(
                ", {} names, first {:?}",
                meta.nlink(),
                first_names.entry(meta.ino()).or_insert(below.clone())
            ),
        };
        let text = format!(
            "{what}, {:04o} {}:{} at {}{first}{}",
            meta.mode() & 0o7777,
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            xattrs(&path)
        );
        if kind.is_dir() {
            walk(root, &below, first_names, files);
        }
        files.insert(below.into_os_string(), text);
    }
}

fn xattrs(path: &Path) -> String {
    let mut buffer = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap();
    let mut names: Vec<Vec<u8>> =
        buffer[..length].split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect();
    names.sort();
    let mut text = String::new();
    for name in names {
        let length = rustix::fs::lgetxattr(path, &name[..], &mut buffer[..]).unwrap();
        text += &format!(", {}={:?}", String::from_utf8_lossy(&name), OsStr::from_bytes(&buffer[..length]));
    }
    text
}

/// The part of a tree below a directory, under the names that it has there.
pub(crate) fn below(tree: &Tree, dir: &str) -> Tree {
    let inside = |(name, text): (&OsString, &String)| {
        let name = OsString::from_vec(name.as_bytes().strip_prefix(dir.as_bytes())?.to_vec());
        Some((name, text.replace(&format!("first \"{dir}"), "first \"")))
    };
    tree.iter().filter_map(inside).collect()
}

pub(crate) fn assert_same(what: &str, left: &Tree, right: &Tree) {
    let names: BTreeSet<&OsString> = left.keys().chain(right.keys()).collect();
    let absent = "absent".to_owned();
    let lines: Vec<String> = names
        .into_iter()
        .map(|name| (name, left.get(name).unwrap_or(&absent), right.get(name).unwrap_or(&absent)))
        .filter(|(_, left, right)| left != right)
        .map(|(name, left, right)| format!("{name:?}\n  {left}\n  {right}"))
        .collect();
    assert!(lines.is_empty(), "{what}: {} of {} files differ\n{}", lines.len(), left.len(), lines.join("\n"));
    assert!(left.len() > 30, "{what}: {} files are no tricky tree", left.len());
}
