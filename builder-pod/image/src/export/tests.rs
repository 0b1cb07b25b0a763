#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use lapstrake_oci::{Descriptor, Digest, Index, Platform, Reference, media_type};

use super::*;
use crate::assemble::{Assembled, Layer, Spec, assemble};
use crate::tar::{Entry, Kind, TarReader};

struct Memory(HashMap<Digest, Vec<u8>>);

impl BlobSource for Memory {
    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read>> {
        let bytes = self.0.get(digest).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(io::Cursor::new(bytes)))
    }
}

/// An image whose layers are these texts; nobody looks into them here.
fn image(layers: &[&str]) -> (Assembled, Memory) {
    let mut config = lapstrake_oci::ImageConfig::of_platform(&Platform::new("linux", "amd64", None));
    config.history = vec![Default::default(); layers.len()];
    let mut blobs = HashMap::new();
    let layers = layers.iter().map(|text| {
        let descriptor = Descriptor::of(media_type::OCI_LAYER_GZIP, text.as_bytes());
        blobs.insert(descriptor.digest, text.as_bytes().to_vec());
        Layer { descriptor, diff_id: Digest::of(text.as_bytes()), created: None, about: None }
    });
    let spec = Spec { config, layers: layers.collect(), ..Spec::default() };
    (assemble(spec).unwrap(), Memory(blobs))
}

fn names(texts: &[&str]) -> Vec<Reference> {
    texts.iter().map(|t| t.parse().unwrap()).collect()
}

fn index_at(dir: &Path) -> Index {
    serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap()
}

fn tagged(dir: &Path) -> Vec<(Option<String>, Option<String>, Digest)> {
    let read = |d: &Descriptor, key: &str| d.annotations.get(key).cloned();
    index_at(dir)
        .manifests
        .iter()
        .map(|d| {
            let name = read(d, "io.containerd.image.name");
            (read(d, "org.opencontainers.image.ref.name"), name, d.digest)
        })
        .collect()
}

#[test]
fn a_layout_is_extended_and_a_name_moves_to_the_new_image() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("new/layout");
    let (one, blobs_one) = image(&["a", "b"]);
    let (two, blobs_two) = image(&["b", "c"]);
    oci_layout_dir(&dest, &one, &names(&["app:1", "other.example/app:keep"]), &blobs_one).unwrap();
    oci_layout_dir(&dest, &two, &names(&["app:1"]), &blobs_two).unwrap();
    oci_layout_dir(&dest, &two, &[], &blobs_two).unwrap();
    let (one, two) = (one.manifest.1.digest, two.manifest.1.digest);
    let text = |t: &str| Some(t.to_owned());
    assert_eq!(
        tagged(&dest),
        [
            (text("keep"), text("other.example/app:keep"), one),
            (text("1"), text("docker.io/library/app:1"), two),
            (None, None, two)
        ]
    );
    // Layers a, b, c, two configs, two manifests, each under its digest.
    let blobs: Vec<_> = fs::read_dir(dest.join("blobs/sha256")).unwrap().map(Result::unwrap).collect();
    assert_eq!(blobs.len(), 7);
    for blob in blobs {
        let bytes = fs::read(blob.path()).unwrap();
        assert_eq!(Digest::of(&bytes).hex(), blob.file_name().into_string().unwrap());
    }
    assert_eq!(fs::read_to_string(dest.join("oci-layout")).unwrap(), r#"{"imageLayoutVersion":"1.0.0"}"#);
    assert!(!dest.join("index.json.new").exists());
}

#[test]
fn a_tag_that_moves_to_another_name_leaves_the_old_name_findable() {
    let dir = tempfile::tempdir().unwrap();
    let ((one, blobs_one), (two, blobs_two)) = (image(&["a"]), image(&["b"]));
    oci_layout_dir(dir.path(), &one, &names(&["x.example/one"]), &blobs_one).unwrap();
    oci_layout_dir(dir.path(), &two, &names(&["x.example/two"]), &blobs_two).unwrap();
    let found = tagged(dir.path());
    assert_eq!(found[0].0, None);
    assert_eq!(found[0].1.as_deref(), Some("x.example/one:latest"));
    assert_eq!(found[1].0.as_deref(), Some("latest"));
}

#[test]
fn a_blob_that_is_not_what_its_digest_says_spoils_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (good, blobs) = image(&["good"]);
    oci_layout_dir(dir.path(), &good, &names(&["a:1"]), &blobs).unwrap();
    let before = tagged(dir.path());
    for wrong in [&b"evil"[..], b"too long to be it", b"x"] {
        let (image, mut blobs) = image(&["fine"]);
        blobs.0.insert(Digest::of(b"fine"), wrong.to_vec());
        let error = oci_layout_dir(dir.path(), &image, &names(&["a:1"]), &blobs).unwrap_err();
        assert!(error.to_string().contains(&Digest::of(b"fine").to_string()), "{error}");
        assert!(oci_layout_tar(Vec::new(), &image, &[], &blobs).is_err());
        assert_eq!(tagged(dir.path()), before);
        assert!(!dir.path().join("blobs/sha256").join(Digest::of(b"fine").hex()).exists());
        assert!(
            fs::read_dir(dir.path().join("blobs/sha256"))
                .unwrap()
                .all(|e| { !e.unwrap().file_name().into_string().unwrap().ends_with(".new") })
        );
    }
}

fn entries(tar: &[u8]) -> Vec<(Entry, Vec<u8>)> {
    let mut reader = TarReader::new(tar);
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let mut data = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match reader.read_data(&mut buffer).unwrap() {
                0 => break,
                n => data.extend_from_slice(&buffer[..n]),
            }
        }
        found.push((entry, data));
    }
    found
}

#[test]
fn archives_are_byte_stable_and_list_each_blob_once() {
    let (image, blobs) = image(&["same", "same", "other"]);
    let names = names(&["app:1", "app:2", "localhost:5000/team/app:1"]);
    let write = || {
        let mut out = Vec::new();
        docker_archive(&mut out, &image, &names, &blobs).unwrap();
        out
    };
    let tar = write();
    assert_eq!(tar, write());
    let found = entries(&tar);
    let paths: Vec<_> = found.iter().map(|(e, _)| String::from_utf8(e.path.clone()).unwrap()).collect();
    let mut sorted = paths.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(paths, sorted);
    assert_eq!(paths.len(), 2 + 4 + 4);
    assert!(found.iter().all(|(e, _)| (e.uid, e.gid, e.mtime.seconds) == (0, 0, 0)));
    let text = |path: &str| {
        let (_, data) = found.iter().find(|(e, _)| e.path == path.as_bytes()).unwrap();
        String::from_utf8(data.clone()).unwrap()
    };
    let layer = |text: &str| format!("blobs/sha256/{}", Digest::of(text.as_bytes()).hex());
    assert_eq!(
        text("manifest.json"),
        format!(
            r#"[{{"Config":"blobs/sha256/{}","RepoTags":["app:1","app:2","localhost:5000/team/app:1"],"Layers":["{}","{}","{}"]}}]"#,
            image.config.1.digest.hex(),
            layer("same"),
            layer("same"),
            layer("other")
        )
    );
    let top = Digest::of(b"other").hex();
    assert_eq!(
        text("repositories"),
        format!(r#"{{"app":{{"1":"{top}","2":"{top}"}},"localhost:5000/team/app":{{"1":"{top}"}}}}"#)
    );
}

/// A tree with one of everything, for tests that run as root.
fn tricky(root: &Path) {
    use rustix::fs::{CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
    let long = "n".repeat(250);
    fs::create_dir_all(root.join("dir").join(&long).join(&long)).unwrap();
    fs::write(root.join("dir/file"), "content").unwrap();
    fs::set_permissions(root.join("dir/file"), fs::Permissions::from_mode(0o4755)).unwrap();
    std::os::unix::fs::chown(root.join("dir/file"), Some(4_000_000), Some(12)).unwrap();
    // The change of owner has taken setuid away.
    fs::set_permissions(root.join("dir/file"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(root.join("dir/file"), root.join("hardlink")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    fs::hard_link(root.join("loop"), root.join("loop2")).unwrap();
    symlink("/etc", root.join("absolute")).unwrap();
    let mode = Mode::from_raw_mode(0o640);
    rustix::fs::mknodat(CWD, root.join("null"), FileType::CharacterDevice, mode, rustix::fs::makedev(1, 3))
        .unwrap();
    rustix::fs::mknodat(CWD, root.join("disk"), FileType::BlockDevice, mode, rustix::fs::makedev(7, 300))
        .unwrap();
    rustix::fs::mknodat(CWD, root.join("pipe"), FileType::Fifo, mode, 0).unwrap();
    rustix::fs::mknodat(CWD, root.join("whiteout"), FileType::CharacterDevice, mode, 0).unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::setxattr(root.join("dir/file"), "security.capability", &capability, XattrFlags::empty())
        .unwrap();
    rustix::fs::setxattr(root.join("dir"), "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"here", 32 << 20).unwrap();
    let time = Timespec { tv_sec: -86_400, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    for name in ["dir/file", "loop", "null", "sparse", "dir"] {
        rustix::fs::utimensat(CWD, root.join(name), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// All that must survive a copy, as text.
fn picture(root: &Path, skip: &[&str]) -> Vec<String> {
    fn go(root: &Path, at: &Path, skip: &[&str], inodes: &mut HashMap<u64, usize>, out: &mut Vec<String>) {
        let mut names: Vec<_> = fs::read_dir(at).unwrap().map(|e| e.unwrap().path()).collect();
        names.sort();
        for path in names {
            let meta = fs::symlink_metadata(&path).unwrap();
            let shown = path.strip_prefix(root).unwrap().display().to_string();
            if skip.contains(&shown.as_str()) {
                continue;
            }
            let next = inodes.len();
            let same = if meta.is_dir() { 0 } else { *inodes.entry(meta.ino()).or_insert(next) };
            let target = fs::read_link(&path).unwrap_or_default();
            let content =
                if meta.is_file() { Digest::of(&fs::read(&path).unwrap()).short() } else { String::new() };
            let mut capability = [0; 64];
            let n = rustix::fs::lgetxattr(&path, "security.capability", &mut capability[..]).unwrap_or(0);
            out.push(format!(
                "{shown} {:o} {}:{} {}.{:09} rdev {} inode {same} {target:?} {content} {:?}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.rdev(),
                &capability[..n]
            ));
            if meta.is_dir() {
                go(root, &path, skip, inodes, out);
            }
        }
    }
    let mut out = Vec::new();
    go(root, root, skip, &mut HashMap::new(), &mut out);
    out
}

#[test]
fn a_root_file_system_is_copied_whole_and_what_is_beside_stays() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outside = tempfile::tempdir().unwrap();
    tricky(from.path());
    // In the way: a file, a symlink that leads out, an older file with another name, foreign things.
    fs::write(outside.path().join("victim"), "untouched").unwrap();
    symlink(outside.path(), to.path().join("dir")).unwrap();
    symlink(outside.path().join("victim"), to.path().join("sparse")).unwrap();
    fs::write(to.path().join("loop"), "old").unwrap();
    fs::create_dir(to.path().join("null")).unwrap();
    fs::write(to.path().join("foreign"), "mine").unwrap();
    fs::set_permissions(to.path(), fs::Permissions::from_mode(0o711)).unwrap();

    let root = fs::File::open(from.path()).unwrap();
    for _ in 0..2 {
        rootfs_dir(root.as_fd(), to.path()).unwrap();
        assert_eq!(picture(to.path(), &["foreign"]), picture(from.path(), &["whiteout"]));
    }
    assert_eq!(fs::read_to_string(to.path().join("foreign")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(outside.path().join("victim")).unwrap(), "untouched");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(fs::metadata(to.path()).unwrap().mode() & 0o777, 0o711);
    assert!(fs::metadata(to.path().join("sparse")).unwrap().blocks() * 512 < 1 << 20, "holes were filled");
    let opaque = rustix::fs::getxattr(to.path().join("dir"), "trusted.overlay.opaque", &mut [0; 8][..]);
    assert_eq!(opaque, Err(rustix::io::Errno::NODATA));
}

#[test]
fn a_directory_with_foreign_files_does_not_become_a_file() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(from.path().join("name"), "file").unwrap();
    fs::create_dir(to.path().join("name")).unwrap();
    fs::write(to.path().join("name/foreign"), "mine").unwrap();
    let error = rootfs_dir(fs::File::open(from.path()).unwrap().as_fd(), to.path()).unwrap_err();
    assert!(error.to_string().contains("replace \"name\""), "{error}");
    assert!(to.path().join("name/foreign").exists());
}

#[test]
fn a_root_file_system_as_tar_has_everything_once_and_sorted() {
    let from = tempfile::tempdir().unwrap();
    tricky(from.path());
    let root = fs::File::open(from.path()).unwrap();
    let mut tar = Vec::new();
    rootfs_tar(root.as_fd(), &mut tar).unwrap();
    let mut again = Vec::new();
    rootfs_tar(root.as_fd(), &mut again).unwrap();
    assert_eq!(tar, again);
    let found = entries(&tar);
    let by = |path: &str| &found.iter().find(|(e, _)| e.path == path.as_bytes()).unwrap().0;
    let paths: Vec<_> = found.iter().map(|(e, _)| String::from_utf8_lossy(&e.path).into_owned()).collect();
    assert!(!paths.iter().any(|p| p == "whiteout" || p == "./" || p.is_empty()), "{paths:?}");
    let (file, link) = (by("dir/file"), by("hardlink"));
    assert_eq!(
        (file.kind, file.mode, file.uid, file.mtime.seconds),
        (Kind::File, 0o4755, 4_000_000, -86_400)
    );
    assert_eq!(file.xattrs.keys().map(Vec::as_slice).collect::<Vec<_>>(), [&b"security.capability"[..]]);
    assert_eq!((link.kind, link.link.as_slice()), (Kind::Hardlink, &b"dir/file"[..]));
    assert_eq!((by("loop2").kind, by("absolute").link.as_slice()), (Kind::Hardlink, &b"/etc"[..]));
    assert_eq!((by("null").kind, by("disk").kind), (Kind::Char(1, 3), Kind::Block(7, 300)));
    assert!(by("dir/").xattrs.is_empty(), "overlay's own marks are not part of the tree");
    let (sparse, data) = found.iter().find(|(e, _)| e.path == b"sparse").unwrap();
    assert_eq!(sparse.size, 64 << 20);
    assert_eq!(&data[32 << 20..(32 << 20) + 4], b"here");
}

#[test]
fn a_folder_with_a_foreign_index_is_refused_by_name_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("index.json"), "<html>").unwrap();
    let (image, blobs) = image(&["a"]);
    let error = oci_layout_dir(dir.path(), &image, &[], &blobs).unwrap_err().to_string();
    assert!(error.contains("index.json is not the index of an image layout"), "{error}");
    assert_eq!(fs::read_to_string(dir.path().join("index.json")).unwrap(), "<html>");
}

/// A file system of this size that nobody else sees; it is gone when the handle closes.
fn small_disk(size: &str) -> (std::os::fd::OwnedFd, std::path::PathBuf) {
    use lapstrake_sys::mount::{FsOption, MountAttrFlags, new_filesystem};
    use std::os::fd::AsRawFd as _;
    let disk = new_filesystem("tmpfs", &[FsOption::Value("size", size)], MountAttrFlags::empty()).unwrap();
    let path = format!("/proc/self/fd/{}", disk.as_raw_fd()).into();
    (disk, path)
}

#[test]
fn a_full_disk_is_named_and_leaves_the_layout_as_it_was() {
    let (_disk, dest) = small_disk("256k");
    let (first, blobs) = image(&["small"]);
    oci_layout_dir(&dest, &first, &names(&["app:1"]), &blobs).unwrap();
    let before = tagged(&dest);
    let (second, blobs) = image(&[&"large ".repeat(100_000)]);
    let error = oci_layout_dir(&dest, &second, &names(&["app:1"]), &blobs).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    assert_eq!(tagged(&dest), before);
    // The part that was written is not left to fill the disk.
    oci_layout_dir(&dest, &first, &names(&["app:2"]), &blobs_of(&first)).unwrap();

    let from = tempfile::tempdir().unwrap();
    fs::write(from.path().join("large"), vec![7; 1 << 20]).unwrap();
    let (_disk, dest) = small_disk("256k");
    let error = rootfs_dir(fs::File::open(from.path()).unwrap().as_fd(), &dest).unwrap_err();
    assert!(error.is_no_space() && error.to_string().contains("large"), "{error}");
}

/// For a layout that has all blobs: opening one would be a mistake.
fn blobs_of(_: &Assembled) -> Memory {
    Memory(HashMap::new())
}

#[test]
fn what_an_overlay_shows_is_what_is_exported() {
    use lapstrake_sys::overlay::mount_detached;
    let dirs = tempfile::tempdir().unwrap();
    let at = |name: &str| {
        let path = dirs.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    };
    let (base, upper, work) = (at("base"), at("upper"), at("work"));
    tricky(&base);
    fs::remove_file(base.join("whiteout")).unwrap();
    fs::create_dir(base.join("replaced")).unwrap();
    fs::write(base.join("replaced/old"), "old").unwrap();
    {
        // Changes as a step makes them.
        let mount = mount_detached(std::slice::from_ref(&base), Some((&upper, &work)), false).unwrap();
        let merged =
            std::path::PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&mount)));
        fs::remove_file(merged.join("absolute")).unwrap();
        fs::remove_dir_all(merged.join("replaced")).unwrap();
        fs::create_dir(merged.join("replaced")).unwrap();
        fs::write(merged.join("replaced/new"), "new").unwrap();
        fs::write(merged.join("dir/added"), "added").unwrap();
    }
    let mount = mount_detached(&[upper, base], None, false).unwrap();
    let merged =
        std::path::PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&mount)));
    let to = tempfile::tempdir().unwrap();
    rootfs_dir(mount.as_fd(), to.path()).unwrap();
    assert_eq!(picture(to.path(), &[]), picture(&merged, &[]));
    assert!(to.path().join("replaced/new").exists() && !to.path().join("replaced/old").exists());
    assert!(fs::symlink_metadata(to.path().join("absolute")).is_err());

    let mut tar = Vec::new();
    rootfs_tar(mount.as_fd(), &mut tar).unwrap();
    let paths: Vec<_> = entries(&tar).into_iter().map(|(e, _)| e.path).collect();
    assert!(!paths.iter().any(|p| p == b"absolute" || p == b"replaced/old" || p.starts_with(b".wh.")));
    assert!(paths.iter().any(|p| p == b"replaced/new"));
}

#[test]
fn every_name_and_tag_form_is_listed_as_readers_look_for_it() {
    let (image, blobs) = image(&["a"]);
    let dir = tempfile::tempdir().unwrap();
    let pinned = format!("x.example/a@{}", Digest::of(b""));
    oci_layout_dir(dir.path(), &image, &names(&["plain", &pinned, "plain:latest", "y.example/b"]), &blobs)
        .unwrap();
    let found: Vec<_> = tagged(dir.path()).into_iter().map(|(tag, name, _)| (tag, name.unwrap())).collect();
    let latest = Some("latest".to_owned());
    assert_eq!(
        found,
        [
            (latest, "docker.io/library/plain:latest".to_owned()),
            (None, pinned),
            (None, "y.example/b:latest".to_owned())
        ]
    );
}
