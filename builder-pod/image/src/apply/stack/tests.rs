#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::*;
use crate::testing::{Tree as Seen, assert_same, look, userns_here};
use crate::{apply_layer, write_changes};

const TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// A tree without what hard links and tar files do not carry: names outside of it, parts of seconds.
fn comparable(root: &Path) -> Seen {
    let mut tree = look(root);
    for (path, seen) in &mut tree {
        seen.mtime.nanoseconds = 0;
        seen.same_as = seen.same_as.take().filter(|first| first != path);
    }
    tree
}

fn write(root: &Path, files: &[&str]) {
    for file in files {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file).unwrap();
    }
}

fn opaque(dir: &Path) {
    let empty = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(dir, "user.overlay.opaque", b"y", empty).unwrap();
}

/// A snapshot with all that a layer can say, on a layer of its own, and another layer that has names of both.
fn layers(dir: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let (below, from, other) = (dir.join("below"), dir.join("from"), dir.join("other"));
    write(&below, &["d/gone", "d/stays", "hidden/old", "same/f"]);
    write(&other, &["d/gone", "d/other", "new/theirs", "hidden/theirs", "file/in"]);
    write(&from, &["d/added", "new/mine", "hidden/mine", "file", "again/one"]);
    fs::hard_link(from.join("again/one"), from.join("again/two")).unwrap();
    symlink("one", from.join("again/link")).unwrap();
    // As overlay marks every new directory, whether or not it hides something.
    opaque(&from.join("new"));
    opaque(&from.join("hidden"));
    let file = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, from.join("d/gone"), file, rustix::fs::Mode::empty(), 0).unwrap();
    (below, from, other)
}

#[test]
fn userns_what_is_stacked_is_what_unpacking_the_layer_would_give() {
    if !userns_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (below, from, other) = layers(dir.path());
    let (stacked, unpacked) = (dir.path().join("stacked"), dir.path().join("unpacked"));
    fs::create_dir(&stacked).unwrap();
    fs::create_dir(&unpacked).unwrap();
    let options = ApplyOptions { userxattr: true, lowers_top_first: vec![other] };

    let skipped = stack_layer(&from, Some(std::slice::from_ref(&below)), &stacked, &options).unwrap();
    assert_eq!(skipped, [] as [String; 0]);
    let mut tar = Vec::new();
    let changes = DiffOptions { userxattr: true, mtime_max: None };
    write_changes(&from, &[below], &changes, &mut tar).unwrap();
    apply_layer(&tar[..], TYPE, &unpacked, &options).unwrap();

    assert_same(&comparable(&stacked), &comparable(&unpacked));
    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&stacked.join("d/added")), inode(&from.join("d/added")), "no data is copied");
    let seen = LowerDir::root(&[stacked, options.lowers_top_first[0].clone()], true).unwrap();
    let names = |dir| match seen.child(dir).unwrap() {
        LowerChild::Dir(dir, _) => dir.names().unwrap(),
        other => panic!("{other:?}"),
    };
    let hidden: Vec<_> = [c"mine", c"theirs"].map(std::ffi::CString::from).into();
    assert_eq!(names(b"hidden"), hidden, "only what the layer was made over is hidden");
}

#[test]
fn userns_what_differs_laid_over_the_one_is_the_other() {
    if !userns_here() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (one, other, changes) =
        (dir.path().join("one"), dir.path().join("other"), dir.path().join("changes"));
    write(&one, &["same/f", "gone/f", "d/changed", "d/gone", "file/in", "way/down"]);
    write(&other, &["same/f", "d/changed", "d/new", "file", "new/f"]);
    fs::create_dir(other.join("way")).unwrap();
    for root in [&one, &other] {
        fs::set_permissions(root.join("way"), fs::Permissions::from_mode(0o710)).unwrap();
    }
    fs::write(other.join("d/changed"), "otherwise").unwrap();
    fs::create_dir(&changes).unwrap();
    // The same file with the same time.
    for root in [&one, &other] {
        for path in ["same/f", "same"] {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000);
            fs::File::open(root.join(path)).unwrap().set_modified(time).unwrap();
        }
    }
    let options = ApplyOptions { userxattr: true, lowers_top_first: Vec::new() };
    stack_changes(std::slice::from_ref(&other), std::slice::from_ref(&one), &changes, &options).unwrap();

    assert!(!changes.join("same").exists(), "what is the same is not in it");
    let merged = lapstrake_sys::overlay::mount_detached(&[changes, one], None, true).unwrap();
    let merged = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&merged)));
    assert_same(&comparable(&merged), &comparable(&other));
}
