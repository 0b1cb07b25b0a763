#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::tar::{TarWriter, Time};
use crate::testing::{first_userns, look, userns_here};

const TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

fn entry(path: &str, kind: Kind) -> Entry {
    let mut entry = Entry::new(path, kind);
    entry.mode = if kind == Kind::Dir { 0o755 } else { 0o644 };
    entry.mtime = Time::seconds(1_000_000);
    entry
}

fn file(path: &str, data: &str) -> (Entry, Vec<u8>) {
    let mut entry = entry(path, Kind::File);
    entry.size = data.len() as u64;
    (entry, data.as_bytes().to_vec())
}

fn link(path: &str, kind: Kind, target: &str) -> (Entry, Vec<u8>) {
    let mut entry = entry(path, kind);
    entry.link = target.as_bytes().to_vec();
    (entry, Vec::new())
}

fn dir(path: &str) -> (Entry, Vec<u8>) {
    (entry(path, Kind::Dir), Vec::new())
}

fn tar(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    entries.iter().for_each(|(entry, data)| writer.append(entry, data).unwrap());
    writer.finish().unwrap().0
}

fn options(lowers: &[&TempDir]) -> ApplyOptions {
    let lowers_top_first = lowers.iter().map(|d| d.path().to_owned()).collect();
    ApplyOptions { userxattr: true, lowers_top_first }
}

fn apply(entries: &[(Entry, Vec<u8>)], lowers: &[&TempDir]) -> Result<(TempDir, Applied)> {
    let upper = tempfile::tempdir().unwrap();
    let applied = apply_layer(&tar(entries)[..], TYPE, upper.path(), &options(lowers))?;
    Ok((upper, applied))
}

fn is_opaque(path: std::path::PathBuf) -> bool {
    let mut value = [0; 8];
    rustix::fs::lgetxattr(path, "user.overlay.opaque", &mut value[..]).is_ok_and(|n| &value[..n] == b"y")
}

fn is_whiteout(path: std::path::PathBuf) -> bool {
    path.symlink_metadata().is_ok_and(|m| m.mode() & 0o170_000 == 0o020_000 && m.rdev() == 0)
}

#[test]
fn userns_every_packing_gives_the_same_tree_and_diff_id() {
    if !userns_here() {
        return;
    }
    let mut plain = tar(&[dir("d/"), file("d/f", "hello")]);
    // Padding after the end, as GNU tar writes it, is part of the diff id.
    plain.resize(10_240, 0);
    let gzip = |data: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(data).unwrap();
        out.finish().unwrap()
    };
    let members = [gzip(&plain[..700]), gzip(&plain[700..])].concat();
    let zstd = zstd::encode_all(&plain[..], 3).unwrap();
    for (blob, media_type) in [
        (plain.clone(), TYPE),
        (members, "application/vnd.docker.image.rootfs.diff.tar.gzip"),
        (zstd, "application/vnd.oci.image.layer.v1.tar+zstd"),
        // What the registry calls it does not matter, as with containerd.
        (plain.clone(), "application/vnd.oci.image.layer.v1.tar+gzip"),
    ] {
        let upper = tempfile::tempdir().unwrap();
        let applied = apply_layer(&blob[..], media_type, upper.path(), &options(&[])).unwrap();
        assert_eq!((applied.diff_id, applied.tar_bytes), (Digest::of(&plain), 10_240));
        assert_eq!(std::fs::read(upper.path().join("d/f")).unwrap(), b"hello");
        assert_eq!(std::fs::metadata(upper.path().join("d")).unwrap().mtime(), 1_000_000);
    }
    let wrong =
        apply_layer(&plain[..], "application/json", tempfile::tempdir().unwrap().path(), &options(&[]));
    assert!(matches!(wrong, Err(Error::MediaType(_))));
}

#[test]
fn userns_damaged_compression_is_named() {
    if !userns_here() {
        return;
    }
    let plain = tar(&[file("f", &"data ".repeat(10_000))]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let whole = gzip.finish().unwrap();
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    for blob in [&whole[..whole.len() / 2], &flipped[..], &plain[..3000]] {
        let upper = tempfile::tempdir().unwrap();
        let error = apply_layer(blob, TYPE, upper.path(), &options(&[])).unwrap_err();
        assert!(error.is_corrupt(), "{error:?}");
    }
}

#[test]
fn userns_paths_that_leave_the_root_are_refused() {
    if !userns_here() {
        return;
    }
    for path in ["../evil", "a/../../evil", "/../evil", "..", "a/./../../b"] {
        assert!(matches!(apply(&[file(path, "x")], &[]), Err(Error::Hostile { .. })), "{path}");
        assert!(
            matches!(apply(&[link("l", Kind::Hardlink, path)], &[]), Err(Error::Hostile { .. })),
            "{path}"
        );
    }
    for path in [".", "/", "", "./"] {
        assert!(apply(&[link(path, Kind::Symlink, "/etc")], &[]).is_err(), "{path}");
    }
    for path in ["a/.wh...", "a/.wh..", "a/.wh."] {
        assert!(matches!(apply(&[file(path, "")], &[]), Err(Error::Hostile { .. })), "{path}");
    }
}

#[test]
fn userns_symlinks_on_the_way_stay_inside_the_root() {
    if !userns_here() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), b"secret").unwrap();
    let outside_path = outside.path().to_str().unwrap();
    for target in [outside_path.to_owned(), format!("../../../../../../../..{outside_path}")] {
        let (upper, _) = apply(
            &[
                link("evil", Kind::Symlink, &target),
                file("evil/owned", "x"),
                dir("evil/made/"),
                // Replacing the symlink's target must not reach through it either.
                file("evil/secret", "y"),
            ],
            &[],
        )
        .unwrap();
        assert_eq!(std::fs::read(outside.path().join("secret")).unwrap(), b"secret");
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
        assert!(upper.path().join(&outside_path[1..]).join("owned").exists());
        // A hard link to what is outside finds nothing inside.
        let steal = [
            link("evil", Kind::Symlink, "/"),
            link("stolen", Kind::Hardlink, &format!("evil{outside_path}/secret")),
        ];
        assert!(apply(&steal, &[]).is_err());
    }
    let loops = [link("a", Kind::Symlink, "b"), link("b", Kind::Symlink, "a"), file("a/f", "x")];
    assert!(matches!(apply(&loops, &[]), Err(Error::Hostile { .. })));
}

#[test]
fn userns_the_last_of_two_entries_wins_and_symlinks_are_replaced_not_followed() {
    if !userns_here() {
        return;
    }
    let (upper, _) = apply(
        &[
            file("target", "old"),
            link("f", Kind::Symlink, "target"),
            file("f", "new"),
            file("g", "short"),
            dir("g/"),
            file("g/inside", "x"),
            dir("h/sub/"),
            file("h", "a file now"),
            link("i", Kind::Symlink, "target"),
            dir("i/"),
        ],
        &[],
    )
    .unwrap();
    let at = |name: &str| upper.path().join(name);
    assert_eq!(std::fs::read(at("target")).unwrap(), b"old");
    assert_eq!(std::fs::read(at("f")).unwrap(), b"new");
    assert!(at("g/inside").is_file() && at("h").is_file());
    assert!(at("i").symlink_metadata().unwrap().is_dir());
}

#[test]
fn userns_whiteouts_hide_what_is_below_but_not_this_layer() {
    if !userns_here() {
        return;
    }
    let (upper, _) = apply(
        &[
            file("gone/.wh.file", ""),
            file("kept", "x"),
            file(".wh.kept", ""),
            dir("dir/"),
            file("dir/mine", "x"),
            file(".wh.dir", ""),
            file(".wh.again", ""),
            file("again/new", "x"),
            dir("opaque/"),
            file("opaque/.wh..wh..opq", ""),
            file("opaque/mine", "x"),
            file(".wh..wh.plnk", ""),
            (entry("dev", Kind::Char(0, 0)), Vec::new()),
        ],
        &[],
    )
    .unwrap();
    let at = |name: &str| upper.path().join(name);
    assert!(is_whiteout(at("gone/file")) && is_whiteout(at("dev")));
    assert!(at("kept").is_file() && at("dir/mine").is_file());
    assert!(is_opaque(at("dir")) && is_opaque(at("again")) && is_opaque(at("opaque")));
    assert!(!is_opaque(at("gone")) && at("opaque/mine").is_file());
    assert!(!at(".wh..wh.plnk").exists() && !at("opaque/.wh..wh..opq").exists());
}

#[test]
fn userns_an_opaque_root_hides_each_name_below() {
    if !userns_here() {
        return;
    }
    let (lower, _) = apply(&[file("a", "1"), dir("b/"), file("c", "1")], &[]).unwrap();
    let (upper, _) = apply(&[file(".wh..wh..opq", ""), file("c", "2"), dir("b/")], &[&lower]).unwrap();
    assert!(is_whiteout(upper.path().join("a")) && is_opaque(upper.path().join("b")));
    assert_eq!(std::fs::read(upper.path().join("c")).unwrap(), b"2");
}

#[test]
fn userns_directories_that_the_layer_does_not_list_look_like_those_below() {
    if !userns_here() {
        return;
    }
    let mut special = dir("var/spool/");
    (special.0.mode, special.0.uid, special.0.gid) = (0o1770, 7, 8);
    special.0.mtime = Time { seconds: 123, nanoseconds: 0 };
    special.0.xattrs.insert(b"user.note".to_vec(), b"kept".to_vec());
    let (bottom, _) = apply(&[special, dir("old/")], &[]).unwrap();
    let (middle, _) = apply(&[file(".wh.old", "")], &[&bottom]).unwrap();
    let (upper, _) = apply(
        &[file("var/spool/new", "x"), file("old/new", "x"), file("none/new", "x")],
        &[&middle, &bottom],
    )
    .unwrap();
    let meta = std::fs::metadata(upper.path().join("var/spool")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime()), (0o1770, 7, 8, 123));
    let mut value = [0; 8];
    let n = rustix::fs::getxattr(upper.path().join("var/spool"), "user.note", &mut value[..]).unwrap();
    assert_eq!(&value[..n], b"kept");
    for plain in ["old", "none"] {
        let meta = std::fs::metadata(upper.path().join(plain)).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.mtime()), (0o755, 0, 0), "{plain}");
    }
}

#[test]
fn userns_owners_modes_capabilities_and_times_survive_in_that_order() {
    if !userns_here() {
        return;
    }
    let mut tool = file("bin/tool", "x");
    (tool.0.mode, tool.0.uid, tool.0.gid) = (0o6755, 1000, 1001);
    // cap_net_raw+ep, revision 2.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    tool.0.xattrs.insert(b"security.capability".to_vec(), capability.to_vec());
    tool.0.xattrs.insert(b"user.overlay.opaque".to_vec(), b"y".to_vec());
    tool.0.mtime = Time::seconds(-5);
    let mut symlink = link("bin/alias", Kind::Symlink, "tool");
    (symlink.0.uid, symlink.0.gid) = (5, 6);
    let mut fifo = (entry("run/pipe", Kind::Fifo), Vec::new());
    (fifo.0.mode, fifo.0.uid) = (0o1666, 9);
    let (upper, applied) =
        apply(&[dir("bin/"), tool, symlink, fifo, link("bin/same", Kind::Hardlink, "bin/tool")], &[])
            .unwrap();
    let at = |name: &str| upper.path().join(name);
    let meta = std::fs::metadata(at("bin/tool")).unwrap();
    assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o6755, 1000, 1001));
    assert_eq!((meta.mtime(), meta.nlink()), (-5, 2));
    let mut value = [0; 64];
    let n = rustix::fs::getxattr(at("bin/tool"), "security.capability", &mut value[..]).unwrap();
    assert_eq!(&value[..n], capability);
    // Overlay's own attributes never come from a layer.
    assert!(!is_opaque(at("bin/tool")));
    assert_eq!(applied.skipped.len(), 1, "{:?}", applied.skipped);
    let meta = at("bin/alias").symlink_metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mtime()), (5, 6, 1_000_000));
    let meta = at("run/pipe").symlink_metadata().unwrap();
    assert_eq!((meta.mode(), meta.uid()), (0o011_666, 9));
    assert_eq!(std::fs::metadata(at("bin")).unwrap().mtime(), 1_000_000);
}

#[test]
fn userns_a_hard_link_to_a_file_below_copies_it_up() {
    if !userns_here() {
        return;
    }
    let mut old = file("d/old", "content");
    (old.0.uid, old.0.mode) = (33, 0o4711);
    let (lower, _) = apply(&[old], &[]).unwrap();
    let (upper, _) = apply(&[link("new", Kind::Hardlink, "d/old")], &[&lower]).unwrap();
    let meta = std::fs::metadata(upper.path().join("new")).unwrap();
    assert_eq!((meta.nlink(), meta.uid(), meta.mode() & 0o7777), (2, 33, 0o4711));
    assert_eq!(std::fs::read(upper.path().join("d/old")).unwrap(), b"content");
    assert!(matches!(apply(&[link("new", Kind::Hardlink, "none")], &[&lower]), Err(Error::Malformed { .. })));
    assert!(matches!(apply(&[link("new", Kind::Hardlink, "d")], &[&lower]), Err(Error::Malformed { .. })));
}

#[test]
fn userns_long_runs_of_zeros_become_holes() {
    if !userns_here() {
        return;
    }
    let mut data = vec![0u8; 8 << 20];
    data[5 << 20] = 1;
    let mut entry = entry("disk", Kind::File);
    entry.size = data.len() as u64;
    let (upper, _) = apply(&[(entry, data.clone())], &[]).unwrap();
    let meta = std::fs::metadata(upper.path().join("disk")).unwrap();
    assert!(meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    assert!(std::fs::read(upper.path().join("disk")).unwrap() == data);
}

#[test]
fn userns_an_entry_for_the_root_sets_its_attributes() {
    if !userns_here() {
        return;
    }
    let mut root = dir("./");
    (root.0.mode, root.0.uid) = (0o711, 3);
    let (upper, _) = apply(&[root, file("./f", "x")], &[]).unwrap();
    let meta = std::fs::metadata(upper.path()).unwrap();
    assert_eq!((meta.permissions().mode() & 0o7777, meta.uid(), meta.mtime()), (0o711, 3, 1_000_000));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Names are drawn from few, so that entries meet: symlinks become parents, files become directories.
    #[test]
    fn userns_no_archive_escapes_or_panics(
        entries in prop::collection::vec((
            prop::sample::select(vec![
                "a", "b", "a/b", "b/a", "a/b/c", "c/../a", "../a", "/a/b", "./b/", ".wh.a", "a/.wh.b", "b/.wh..wh..opq",
                ".wh..wh..opq", "c", "c/d", "", "a/.wh...",
            ]),
            0u8..8,
            prop::sample::select(vec!["a", "b", "/", "..", "../..", "/tmp", "c/d", ".", "a/b/../../.."]),
        ), 1..12),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2),
    ) {
        if !userns_here() {
            return Ok(());
        }
        let entries: Vec<_> = entries.into_iter().map(|(path, kind, target)| match kind {
            0 | 1 => file(path, "data"),
            2 | 3 => dir(path),
            4 | 5 => link(path, Kind::Symlink, target),
            6 => link(path, Kind::Hardlink, target),
            _ => (entry(path, Kind::Fifo), Vec::new()),
        }).collect();
        let around = tempfile::tempdir().unwrap();
        std::fs::write(around.path().join("witness"), b"untouched").unwrap();
        let upper = around.path().join("upper");
        std::fs::create_dir(&upper).unwrap();
        let mut blob = tar(&entries);
        for (at, with) in flips {
            let at = at.index(blob.len());
            blob[at] ^= with;
        }
        let before = look(around.path());
        apply_layer(&blob[..], TYPE, &upper, &options(&[])).ok();
        let mut after = look(around.path());
        after.retain(|path, _| !path.starts_with("/upper"));
        let mut before = before;
        before.retain(|path, _| !path.starts_with("/upper"));
        prop_assert_eq!(before, after);
    }
}

#[test]
fn userns_an_owner_without_a_mapping_is_named_and_devices_are_left_out() {
    if !userns_here() {
        return;
    }
    let mut strange = file("f", "x");
    strange.0.uid = 4_000_000;
    let null = (entry("null", Kind::Char(1, 3)), Vec::new());
    if first_userns() {
        let (upper, applied) = apply(&[strange, null], &[]).unwrap();
        assert_eq!(std::fs::metadata(upper.path().join("f")).unwrap().uid(), 4_000_000);
        assert!(upper.path().join("null").exists() && applied.skipped.is_empty());
    } else {
        assert!(matches!(apply(&[strange], &[]), Err(Error::Owner { uid: 4_000_000, .. })));
        let (upper, applied) = apply(&[null], &[]).unwrap();
        assert!(!upper.path().join("null").exists());
        assert_eq!(applied.skipped.len(), 1);
    }
}
