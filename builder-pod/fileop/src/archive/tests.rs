use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::action::{Cancel, CopyAction, Owner};
use crate::error::Error;
use crate::testing::{describe, set, tree};
use crate::view::View;

/// A tar entry by hand: what no honest archiver writes.
fn entry(name: &str, kind: u8, link: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644");
    put(108, "0000007");
    put(116, "0000010");
    put(124, &format!("{:011o}", content.len()));
    put(136, "00000001750");
    put(148, "        ");
    put(157, link);
    put(257, "ustar\x0000");
    put(329, "0000001");
    put(337, "0000003");
    header[156] = kind;
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn archive(entries: &[(&str, u8, &str, &str)]) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries
        .iter()
        .flat_map(|(name, kind, link, content)| entry(name, *kind, link, content.as_bytes()))
        .collect();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Unpacks into `root` beside a canary; returns the result, the tree, and whether the canary lives.
fn unpack_beside(canary: &[&str], bytes: &[u8]) -> (Result<(), String>, Vec<String>, bool) {
    let outer = tree(canary);
    let root = outer.path().join("root");
    std::fs::create_dir(&root).unwrap_or_else(|e| panic!("{e}"));
    let before: Vec<_> = describe(outer.path());
    let fd = crate::open_root(&root).unwrap_or_else(|e| panic!("{e}"));
    let result = unpack(bytes, fd.as_fd(), &UnpackOptions::default(), &Cancel::new());
    let inside = describe(&root);
    std::fs::remove_dir_all(&root).unwrap_or_else(|e| panic!("{e}"));
    std::fs::create_dir(&root).unwrap_or_else(|e| panic!("{e}"));
    (result.map_err(|e| e.to_string()), inside, describe(outer.path()) == before)
}

#[test]
fn hostile_archives_stay_inside() {
    for entries in [
        &[("../canary", b'0', "", "evil")][..],
        &[("/../../canary", b'0', "", "evil")],
        &[("a/../../canary", b'0', "", "evil")],
        &[("l", b'2', "..", ""), ("l/canary", b'0', "", "evil")],
        &[("l", b'2', "../canary", ""), ("l", b'0', "", "evil")],
        &[("l", b'2', "/../..", ""), ("l/x/canary", b'0', "", "evil")],
        &[("d/", b'5', "", ""), ("d", b'2', "../..", ""), ("d/canary", b'0', "", "evil")],
        &[("h", b'1', "../canary", ""), ("h", b'0', "", "evil")],
        &[("l", b'2', "../canary", ""), ("h", b'1', "l", ""), ("h", b'0', "", "evil")],
        &[("l", b'2', "..", ""), ("h", b'1', "l/canary", ""), ("h", b'0', "", "evil")],
        &[("l", b'2', "..", ""), ("l/", b'5', "", ""), ("l/canary", b'0', "", "evil")],
        &[("l", b'2', "l", ""), ("l/x", b'0', "", "evil")],
        &[("..", b'2', "x", ""), (".", b'0', "", "evil"), ("/", b'0', "", "evil")],
    ] {
        let (_, inside, safe) = unpack_beside(&["canary=safe"], &archive(entries));
        assert!(safe, "{entries:?} got out; inside is {inside:?}");
    }
}

#[test]
fn later_entries_replace_earlier_ones_and_directories_merge() {
    let bytes = archive(&[
        ("a", b'0', "", "1"),
        ("a/b", b'0', "", "2"),
        ("d/", b'5', "", ""),
        ("d/x", b'0', "", "3"),
        ("d/", b'5', "", ""),
        ("x/y/z", b'0', "", "4"),
        ("f", b'0', "", "5"),
        ("g", b'1', "f", ""),
        ("f", b'0', "", "6"),
        ("n", b'3', "", ""),
        ("p", b'6', "", ""),
        (".wh.f", b'0', "", ""),
        ("label", b'V', "", ""),
        ("old/", b'0', "", ""),
    ]);
    let (result, inside, _) = unpack_beside(&[], &bytes);
    // A file cannot be another entry's parent.
    assert_eq!(result, Err("make directory /a: not a directory".to_owned()));
    assert_eq!(inside, ["a=1 mode 644"]);
    let (result, inside, _) = unpack_beside(&[], &bytes[1024..]);
    assert_eq!(result, Ok(()));
    let want = [
        ".wh.f= mode 644",
        "a/ mode 755",
        "a/b=2 mode 644",
        "d/ mode 644",
        "d/x=3 mode 644",
        "f=6 mode 644",
        "g=5 mode 644",
        "n| mode 644 rdev 259",
        "old/ mode 644",
        "p| mode 644 rdev 0",
        "x/ mode 755",
        "x/y/ mode 755",
        "x/y/z=4 mode 644",
    ];
    assert_eq!(inside, want);
}

#[test]
fn damaged_archives_are_errors() {
    let good = archive(&[("a", b'0', "", "content"), ("b", b'0', "", "more")]);
    for (bytes, what) in [
        (good[..600].to_vec(), "cut off in the padding"),
        (good[..515].to_vec(), "cut off in a file"),
        (good[..1100].to_vec(), "cut off in a header"),
        ([&good[..1024], &[b'x'; 512][..]].concat(), "not a header"),
    ] {
        let (result, _, _) = unpack_beside(&[], &bytes);
        let fine = what == "cut off in the padding";
        assert_eq!(result.is_ok(), fine, "{what}: {result:?}");
    }
    let (result, inside, _) = unpack_beside(&[], &good[..1024]);
    assert_eq!((result, inside.len()), (Ok(()), 1), "no end marker");
}

#[test]
fn a_limit_stops_a_bomb() {
    let zeros = vec![0; 1 << 20];
    let bytes = entry("big", b'0', "", &zeros);
    let dir = tree(&[]);
    let root = crate::open_root(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    let options = UnpackOptions { bytes_max: 1 << 19, ..UnpackOptions::default() };
    let result = unpack(&bytes[..], root.as_fd(), &options, &Cancel::new());
    assert!(matches!(result, Err(Error::Archive { .. })), "{result:?}");
}

fn tar(args: &[&str], dir: &Path) -> Vec<u8> {
    let output = std::process::Command::new("tar")
        .arg("-C")
        .arg(dir)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("tar: {e}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn compress(program: &str, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut child = std::process::Command::new(program)
        .arg("-c")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .ok()?;
    let mut input = child.stdin.take()?;
    let bytes = bytes.to_vec();
    let feed = std::thread::spawn(move || input.write_all(&bytes));
    let output = child.wait_with_output().ok()?;
    feed.join().ok()?.ok()?;
    Some(output.stdout)
}

#[test]
fn every_format_and_compression_gives_the_same_tree() {
    let long = "n".repeat(200);
    let deep = format!("{}/{long}", "d".repeat(100));
    let src = tree(&[
        "f=content mode 4755",
        "d/x=1",
        "d/l->../f",
        "h<>f",
        &format!("{deep}=long"),
        &format!("to->{deep}"),
        "e/ mode 700",
    ]);
    set::xattr(&src.path().join("d/x"), "user.k=100%", b"v=1");
    set::owner(&src.path().join("d/x"), 12, 34);
    set::modified(&src.path().join("d/x"), 1_000_000);
    set::modified(&src.path().join("d"), 1_000_000);
    let want = describe(src.path());
    for format in ["gnu", "pax"] {
        let flag = format!("--format={format}");
        // With attributes, tar writes pax whatever it was told.
        let attributes = if format == "pax" { "--xattrs" } else { "--no-xattrs" };
        let plain = tar(&[&flag, attributes, "-cf", "-", "."], src.path());
        let zstd = zstd::encode_all(&plain[..], 1).unwrap_or_else(|e| panic!("{e}"));
        let mut members = compress("gzip", &plain[..1000]).unwrap_or_default();
        members.extend(compress("gzip", &plain[1000..]).unwrap_or_default());
        let packed = [
            Some(("plain", plain.clone())),
            compress("gzip", &plain).map(|bytes| ("gzip", bytes)),
            compress("bzip2", &plain).map(|bytes| ("bzip2", bytes)),
            compress("xz", &plain).map(|bytes| ("xz", bytes)),
            Some(("zstd", zstd)),
            (members.len() > 100).then_some(("gzip members", members)),
        ];
        for (name, bytes) in packed.into_iter().flatten() {
            let dst = tree(&["a.tar="]);
            std::fs::write(dst.path().join("a.tar"), &bytes).unwrap_or_else(|e| panic!("{e}"));
            add(dst.path(), "a.tar", "/out", None).unwrap_or_else(|e| panic!("{format} {name}: {e}"));
            let out = dst.path().join("out");
            assert!(out.is_dir(), "{format} {name} was not unpacked");
            assert_eq!(describe(&out), want, "{format} {name}");
            let meta = out.join("d/x").metadata().unwrap_or_else(|e| panic!("{e}"));
            let nanos = if format == "pax" { 123_456_789 } else { 0 };
            assert_eq!((meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec()), (12, 34, 1_000_000, nanos));
            let root = crate::open_root(&out).unwrap_or_else(|e| panic!("{e}"));
            let attributes = crate::at::xattrs(root.as_fd(), b"d/x").unwrap_or_else(|e| panic!("{e}"));
            let wanted = [(b"user.k=100%".to_vec(), b"v=1".to_vec())];
            assert_eq!(attributes, wanted[..usize::from(format == "pax")], "{format} {name}");
            assert_eq!(out.join("d").metadata().map(|meta| meta.mtime()).ok(), Some(1_000_000));
            assert_eq!(out.join("h").metadata().map(|meta| meta.nlink()).ok(), Some(2));
        }
    }
}

/// ADD within one tree.
fn add(root: &Path, src: &str, dst: &str, owner: Option<Owner>) -> Result<(), Error> {
    let fd = crate::open_root(root)?;
    let action = CopyAction {
        src: src.to_owned(),
        dst: dst.to_owned(),
        attempt_unpack: true,
        create_dest_path: true,
        dir_copy_contents: true,
        follow_symlink: true,
        allow_wildcard: true,
        owner,
        ..CopyAction::default()
    };
    crate::copy(&View::snapshot(fd.as_fd()), fd.as_fd(), &action, &Cancel::new())
}

#[test]
fn sparse_files_stay_sparse() {
    let src = tree(&[]);
    let file = File::create(src.path().join("s")).unwrap_or_else(|e| panic!("{e}"));
    std::os::unix::fs::FileExt::write_all_at(&file, b"data", 3 << 20).unwrap_or_else(|e| panic!("{e}"));
    file.set_len(8 << 20).unwrap_or_else(|e| panic!("{e}"));
    for format in ["gnu", "pax"] {
        let bytes = tar(&[&format!("--format={format}"), "-cSf", "-", "s"], src.path());
        let dst = tree(&[]);
        let root = crate::open_root(dst.path()).unwrap_or_else(|e| panic!("{e}"));
        unpack(&bytes[..], root.as_fd(), &UnpackOptions::default(), &Cancel::new())
            .unwrap_or_else(|e| panic!("{format}: {e}"));
        let read = |dir: &TempDir| std::fs::read(dir.path().join("s")).ok();
        let (got, want) = (read(&dst).unwrap_or_default(), read(&src).unwrap_or_default());
        let at = got.iter().zip(&want).position(|(a, b)| a != b);
        assert_eq!((got.len(), at), (want.len(), None), "{format}: {:?}", dst.path().join("s").metadata());
        let blocks = dst.path().join("s").metadata().map(|meta| meta.blocks()).unwrap_or(0);
        assert!(blocks * 512 < 1 << 20, "{format}: {blocks} blocks");
    }
}

#[test]
fn add_unpacks_archives_only() {
    let good = archive(&[("x", b'0', "", "1")]);
    let dir = tree(&["text=not an archive", "empty=", "gz="]);
    std::fs::write(dir.path().join("zeros"), vec![0; 4096]).unwrap_or_else(|e| panic!("{e}"));
    std::fs::write(dir.path().join("good.bin"), &good).unwrap_or_else(|e| panic!("{e}"));
    std::os::unix::fs::symlink("good.bin", dir.path().join("link")).unwrap_or_else(|e| panic!("{e}"));
    let gz = compress("gzip", b"not a tar").unwrap_or_default();
    std::fs::write(dir.path().join("gz"), gz).unwrap_or_else(|e| panic!("{e}"));
    for name in ["text", "empty", "zeros", "gz"] {
        add(dir.path(), name, "/out/", None).unwrap_or_else(|e| panic!("{name}: {e}"));
        let same = std::fs::read(dir.path().join("out").join(name)).ok()
            == std::fs::read(dir.path().join(name)).ok();
        assert!(same, "{name}");
    }
    add(dir.path(), "link", "/n1/n2", Some(Owner { uid: 5, gid: 6 })).unwrap_or_else(|e| panic!("{e}"));
    let meta = dir.path().join("n1/n2/x").metadata().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((meta.uid(), meta.gid(), meta.mtime()), (5, 6, 1000));
    add(dir.path(), "good.bin", "/own", None).unwrap_or_else(|e| panic!("{e}"));
    let meta = dir.path().join("own/x").metadata().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((meta.uid(), meta.gid()), (7, 8));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_panic(at in 0_usize..3000, byte in proptest::num::u8::ANY, cut in 0_usize..3072) {
        let mut bytes = archive(&[("a/b", b'0', "", "content"), ("l", b'2', "a", "")]);
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(cut);
        let (_, _, safe) = unpack_beside(&["canary=1"], &bytes);
        proptest::prop_assert!(safe);
    }
}
