#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Write as _;
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;
use crate::{Error, Result};

fn read_all(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
    let mut reader = TarReader::new(bytes);
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Vec::new();
        let mut buffer = [0; 700];
        loop {
            match reader.read_data(&mut buffer)? {
                0 => break,
                n => data.extend_from_slice(&buffer[..n]),
            }
        }
        all.push((entry, data));
    }
    Ok(all)
}

fn write_all(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for (entry, data) in entries {
        writer.append(entry, data).unwrap();
    }
    writer.finish().unwrap().0
}

/// A header of our own making, for archives that our writer never writes.
fn raw(name: &[u8], kind: u8, size: u64, change: impl FnOnce(&mut [u8; 512])) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name);
    header::put_octal(&mut header[header::MODE], 0o644);
    for field in [header::UID, header::GID, header::MTIME] {
        header::put_octal(&mut header[field], 0);
    }
    header::put_octal(&mut header[header::SIZE], size);
    header[header::TYPE] = kind;
    header[header::MAGIC].copy_from_slice(header::USTAR);
    change(&mut header);
    header[header::CHECKSUM].fill(b' ');
    let sum: u64 = header.iter().map(|b| u64::from(*b)).sum();
    header::put_octal(&mut header[148..155], sum);
    header.to_vec()
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    out.resize(bytes.len().next_multiple_of(512), 0);
    out
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let one = std::collections::BTreeMap::from([(key.as_bytes().to_vec(), value.as_bytes().to_vec())]);
        body.extend(super::pax::encode(&one));
    }
    [raw(b"pax", b'x', body.len() as u64, |_| {}), padded(&body)].concat()
}

fn end() -> Vec<u8> {
    vec![0; 1024]
}

fn any_name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[a-z]{1,12}(/[a-z.]{1,30}){0,3}".prop_map(String::into_bytes),
        "[a-zäöü☃ ]{1,120}".prop_map(String::into_bytes),
        prop::collection::vec(1u8..=255, 1..400),
    ]
}

prop_compose! {
    fn any_entry()(
        path in any_name(),
        link in any_name(),
        kind in prop_oneof![
            4 => Just(Kind::File), 1 => Just(Kind::Hardlink), 1 => Just(Kind::Symlink), 1 => Just(Kind::Dir),
            1 => Just(Kind::Fifo),
            1 => (any::<u32>(), any::<u32>()).prop_map(|(a, b)| Kind::Char(a, b)),
            1 => (any::<u32>(), any::<u32>()).prop_map(|(a, b)| Kind::Block(a, b)),
        ],
        mode in 0u32..0o10000,
        uid in prop_oneof![0u64..70_000, any::<u32>().prop_map(u64::from)],
        gid in prop_oneof![0u64..70_000, any::<u32>().prop_map(u64::from)],
        seconds in prop_oneof![0i64..2_000_000_000, -4_000_000_000i64..90_000_000_000],
        data in prop::collection::vec(any::<u8>(), 0..1500),
        xattrs in prop::collection::btree_map(
            "user\\.[a-z.]{1,20}".prop_map(String::into_bytes), prop::collection::vec(any::<u8>(), 0..60), 0..3),
    ) -> (Entry, Vec<u8>) {
        let mut entry = Entry::new(path, kind);
        // A trailing slash makes a directory of a file, for every reader.
        if kind == Kind::File {
            while entry.path.last() == Some(&b'/') {
                entry.path.pop();
            }
            if entry.path.is_empty() {
                entry.path.push(b'x');
            }
        }
        if matches!(kind, Kind::Hardlink | Kind::Symlink) {
            entry.link = link;
        }
        (entry.mode, entry.uid, entry.gid, entry.mtime) = (mode, uid, gid, Time::seconds(seconds));
        entry.xattrs = xattrs;
        let data = if kind == Kind::File { data } else { Vec::new() };
        entry.size = data.len() as u64;
        (entry, data)
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(entries in prop::collection::vec(any_entry(), 0..6)) {
        let bytes = write_all(&entries);
        prop_assert_eq!(bytes.len() % 512, 0);
        prop_assert_eq!(read_all(&bytes).unwrap(), entries);
    }

    #[test]
    fn damaged_archives_give_an_error_or_entries_but_never_a_panic(
        entries in prop::collection::vec(any_entry(), 1..4),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        cut in any::<prop::sample::Index>(),
        truncate in any::<bool>(),
    ) {
        let mut bytes = write_all(&entries);
        for (at, with) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= with;
        }
        if truncate {
            let at = cut.index(bytes.len());
            bytes.truncate(at);
        }
        read_all(&bytes).ok();
    }

    #[test]
    fn random_fields_under_a_right_checksum_never_panic(
        fields in prop::collection::vec((0usize..512, any::<u8>()), 0..60),
        kind in prop::sample::select(b"0123456789SLKxgDVM\0".to_vec()),
        body in prop::collection::vec(any::<u8>(), 0..2048),
        size in prop_oneof![0u64..3000, any::<u64>().prop_map(|s| s >> 4)],
    ) {
        let header = raw(b"name", kind, size.min(1 << 32), |h| {
            fields.iter().for_each(|(at, byte)| h[*at] = *byte);
        });
        let next = raw(b"next", b'0', 3, |_| {});
        read_all(&[header, padded(&body), next, padded(b"abc"), end()].concat()).ok();
    }

    #[test]
    fn random_records_never_panic(body in "([0-9]{1,3} (path|size|mtime|uid|GNU.sparse.(map|major|minor|size|realsize|offset|numbytes|name)|SCHILY.xattr.user.a)=[0-9,.-]{0,12}\n){0,6}") {
        let header = raw(b"pax", b'x', body.len() as u64, |_| {});
        read_all(&[header, padded(body.as_bytes()), raw(b"f", b'0', 4, |_| {}), padded(b"abcd"), end()].concat()).ok();
    }
}

#[test]
fn a_layer_without_entries_is_two_zero_blocks() {
    assert_eq!(write_all(&[]), vec![0; 1024]);
}

#[test]
fn plain_entries_need_no_records() {
    let mut entry = Entry::new("etc/passwd", Kind::File);
    (entry.mode, entry.size, entry.mtime) = (0o644, 3, Time { seconds: 1_700_000_000, nanoseconds: 999 });
    let bytes = write_all(&[(entry, b"abc".to_vec())]);
    assert_eq!(bytes.len(), 512 + 512 + 1024);
    assert_eq!(&bytes[257..265], b"ustar\x0000");
    assert_eq!(&bytes[136..148], b"14524770400\0");
}

#[test]
fn sizes_beyond_eight_gibibytes_go_to_a_record() {
    let mut entry = Entry::new("big", Kind::File);
    entry.size = 9 << 30;
    let mut writer = TarWriter::new(Vec::new());
    writer.start(&entry).unwrap();
    // The data itself does not matter here; the reader fails only when it reaches it.
    assert!(writer.finish().is_err());
    let bytes = [pax(&[("size", "9663676416")]), raw(b"big", b'0', 0, |_| {})].concat();
    let mut reader = TarReader::new(&bytes[..]);
    assert_eq!(reader.next_entry().unwrap().unwrap().size, 9 << 30);
}

#[test]
fn every_sparse_form_gives_the_same_pieces() {
    let wanted = vec![(1024u64, 4u64), (5000, 2)];
    let piece = |header: &mut [u8; 512], at: usize, offset: u64, length: u64| {
        header::put_octal(&mut header[at..at + 12], offset);
        header::put_octal(&mut header[at + 12..at + 24], length);
    };
    let old_gnu = raw(b"f", b'S', 6, |h| {
        h[header::MAGIC].copy_from_slice(header::GNU);
        piece(h, 386, 1024, 4);
        piece(h, 410, 5000, 2);
        header::put_octal(&mut h[header::GNU_REAL_SIZE], 10_000);
    });
    let mut block = [0u8; 512];
    piece(&mut block, 0, 5000, 2);
    let old_gnu_extended = [
        raw(b"f", b'S', 6, |h| {
            h[header::MAGIC].copy_from_slice(header::GNU);
            piece(h, 386, 1024, 4);
            h[header::GNU_EXTENDED] = 1;
            header::put_octal(&mut h[header::GNU_REAL_SIZE], 10_000);
        }),
        block.to_vec(),
    ]
    .concat();
    let file = || raw(b"f", b'0', 6, |_| {});
    let pax_0_0 = [
        pax(&[
            ("GNU.sparse.size", "10000"),
            ("GNU.sparse.numblocks", "2"),
            ("GNU.sparse.offset", "1024"),
            ("GNU.sparse.numbytes", "4"),
            ("GNU.sparse.offset", "5000"),
            ("GNU.sparse.numbytes", "2"),
        ]),
        file(),
    ]
    .concat();
    let pax_0_1 = [
        pax(&[("GNU.sparse.size", "10000"), ("GNU.sparse.map", "1024,4,5000,2"), ("GNU.sparse.name", "f")]),
        raw(b"GNUSparseFile.1/f", b'0', 6, |_| {}),
    ]
    .concat();
    let pax_1_0 = [
        pax(&[
            ("GNU.sparse.major", "1"),
            ("GNU.sparse.minor", "0"),
            ("GNU.sparse.name", "f"),
            ("GNU.sparse.realsize", "10000"),
        ]),
        raw(b"GNUSparseFile.1/f", b'0', 512 + 6, |_| {}),
        padded(b"2\n1024\n4\n5000\n2\n"),
    ]
    .concat();
    for head in [old_gnu, old_gnu_extended, pax_0_0, pax_0_1, pax_1_0] {
        let all = read_all(&[head, padded(b"abcdef"), end()].concat()).unwrap();
        assert_eq!((all[0].0.path.as_slice(), all[0].0.size), (&b"f"[..], 10_000));
        assert_eq!(all[0].0.sparse.as_ref(), Some(&wanted));
        assert_eq!(all[0].1, b"abcdef");
    }
}

#[test]
fn sparse_maps_that_lie_are_refused() {
    for map in
        ["1024,4,1026,2", "1024,4,0,2", "9999,6", "0,6,1,0", "0,5", "1,2,3", "18446744073709551615,6", "0,x"]
    {
        let bytes = [
            pax(&[("GNU.sparse.size", "10000"), ("GNU.sparse.map", map)]),
            raw(b"f", b'0', 6, |_| {}),
            padded(b"abcdef"),
            end(),
        ]
        .concat();
        assert!(matches!(read_all(&bytes), Err(Error::Malformed { .. })), "{map}");
    }
}

#[test]
fn negative_and_fractional_times_are_read() {
    for (text, seconds, nanoseconds) in [
        ("1.5", 1, 500_000_000),
        ("-1", -1, 0),
        ("-1.25", -2, 750_000_000),
        ("-0.5", -1, 500_000_000),
        ("12.1234567891", 12, 123_456_789),
    ] {
        let bytes = [pax(&[("mtime", text)]), raw(b"f", b'0', 0, |_| {}), end()].concat();
        assert_eq!(read_all(&bytes).unwrap()[0].0.mtime, Time { seconds, nanoseconds }, "{text}");
    }
    let base256 = raw(b"f", b'0', 0, |h| h[header::MTIME].copy_from_slice(&[0xff; 12]));
    assert_eq!(read_all(&[base256, end()].concat()).unwrap()[0].0.mtime, Time::seconds(-1));
}

#[test]
fn long_names_of_gnu_tar_are_read_and_pax_wins_over_them() {
    let name = "x".repeat(300);
    let long = [raw(b"././@LongLink", b'L', 301, |_| {}), padded(name.as_bytes())].concat();
    let link = [raw(b"././@LongLink", b'K', 301, |_| {}), padded(name.as_bytes())].concat();
    let bytes = [long.clone(), link, raw(b"xxx", b'2', 0, |_| {}), end()].concat();
    let entry = &read_all(&bytes).unwrap()[0].0;
    assert_eq!((entry.path.as_slice(), entry.link.as_slice()), (name.as_bytes(), name.as_bytes()));
    let bytes = [pax(&[("path", "short")]), long, raw(b"xxx", b'0', 0, |_| {}), end()].concat();
    assert_eq!(read_all(&bytes).unwrap()[0].0.path, b"short");
}

#[test]
fn headers_that_claim_data_they_cannot_have_are_read_as_go_reads_them() {
    // A directory with a size: what follows is the next header, not its data.
    let bytes = [raw(b"d", b'5', 512, |_| {}), raw(b"f", b'0', 3, |_| {}), padded(b"abc"), end()].concat();
    let all = read_all(&bytes).unwrap();
    assert_eq!((all.len(), all[1].1.as_slice()), (2, &b"abc"[..]));
}

#[test]
fn bounds_hold_before_memory_is_taken() {
    let huge = raw(b"pax", b'x', 1 << 32, |_| {});
    assert!(matches!(read_all(&huge), Err(Error::Malformed { .. })));
    let path = "a/".repeat(40_000);
    let bytes = [pax(&[("path", &path)]), raw(b"f", b'0', 0, |_| {}), end()].concat();
    assert!(matches!(read_all(&bytes), Err(Error::Malformed { .. })));
}

#[test]
fn gnu_tar_reads_what_we_write_and_we_read_what_it_writes() {
    let tool = Command::new("tar").arg("--version").output();
    if !tool.is_ok_and(|o| o.stdout.starts_with(b"tar (GNU tar)")) {
        eprintln!("skipped: no GNU tar here");
        return;
    }
    let long = format!("{}/file", "directory-with-a-long-name/".repeat(9).trim_end_matches('/'));
    let mut entries = Vec::new();
    for (path, uid, mtime) in [("a", 0, 5), (long.as_str(), 4_000_000, -77), ("ünïcode ☃", 12, 1_600_000_000)]
    {
        let mut entry = Entry::new(path, Kind::File);
        (entry.mode, entry.uid, entry.mtime, entry.size) = (0o4755, uid, Time::seconds(mtime), 3);
        entries.push((entry, b"abc".to_vec()));
    }
    let bytes = write_all(&entries);
    let mut list = Command::new("tar")
        .args(["--numeric-owner", "--quoting-style=literal", "--utc", "-tvf", "-"])
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    list.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = list.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(
        text.contains(&long) && text.contains("4000000/0") && text.contains("1969-12-31 23:58"),
        "{text}"
    );
    assert!(text.contains("ünïcode ☃") && text.contains("-rwsr-xr-x"), "{text}");

    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("sparse")).unwrap();
    file.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"data", 1 << 20).unwrap();
    std::fs::write(dir.path().join("n".repeat(200)), b"long").unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let output = Command::new("tar")
            .args(format)
            .args(["-cSf", "-", "."])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let all = read_all(&output.stdout).unwrap();
        let (entry, data) = all.iter().find(|(e, _)| e.path.ends_with(b"/sparse")).unwrap();
        assert_eq!(entry.size, 3 << 20, "{format:?}");
        let (offset, length) = entry.sparse.as_ref().unwrap()[0];
        assert!(offset <= 1 << 20 && offset + length >= (1 << 20) + 4, "{format:?}");
        let at = usize::try_from((1 << 20) - offset).unwrap();
        assert_eq!(&data[at..at + 4], b"data", "{format:?}");
        assert!(all.iter().any(|(e, d)| e.path.ends_with("n".repeat(200).as_bytes()) && d == b"long"));
    }
}

#[test]
fn an_attribute_name_with_an_equals_sign_comes_back() {
    let names: [&[u8]; 6] = [b"user.a=b", b"user.100%", b"user.%3D", b"user.%25=", b"user.=", b"user.plain"];
    let xattrs = names.iter().map(|name| (name.to_vec(), b"v=w".to_vec())).collect();
    let entry = Entry { xattrs, ..Entry::new("f", Kind::File) };
    let written = write_all(&[(entry.clone(), Vec::new())]);
    assert_eq!(read_all(&written).unwrap()[0].0.xattrs, entry.xattrs);
    assert_eq!(*pax::encode_attribute(b"user.100%"), *b"user.100%", "others' readers decode nothing");
}
