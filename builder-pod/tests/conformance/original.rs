//! All that a file system can hold and an archive may lose.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat, utimensat,
};

/// Fills `root`.
pub(crate) fn write(root: &Path) {
    let at = |name: &str| root.join(name);
    let write = |name: &str, content: &[u8]| fs::write(at(name), content).unwrap();
    let mode =
        |name: &str, mode: u32| fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    for dir in ["dir/deeper", "empty", "sticky", "set-group", "opaque-tree/old", "opaque-tree/same"] {
        fs::create_dir_all(at(dir)).unwrap();
    }
    for name in [
        "plain",
        "set-user",
        "no-rights",
        "opaque-tree/old/o",
        "caps-too",
        "with space",
        "new\nline",
        "-dash",
        "..dots",
    ] {
        write(name, name.as_bytes());
    }
    for name in ["quote'\"back\\slash*?[x]", "umlaut-ü-漢字", ".wh", "tab\there", " leading"] {
        write(name, b"");
    }
    fs::write(root.join(OsStr::from_bytes(b"latin-\xe9-\xff")), "not utf-8").unwrap();
    write("noise", &noise(3 << 20));
    mode("set-user", 0o6755);
    mode("no-rights", 0);
    mode("sticky", 0o1777);
    mode("set-group", 0o2775);
    long_names(root);
    links(root);
    devices(root);
    let mut sparse = File::create(at("sparse")).unwrap();
    for data in [1 << 20, 5 << 20] {
        sparse.seek(SeekFrom::Start(data)).unwrap();
        sparse.write_all(b"data between holes").unwrap();
    }
    sparse.set_len(16 << 20).unwrap();
    for (name, owner) in
        [("plain", (54321, 12345)), ("empty", (4_000_000_000, 3_000_000_000)), ("sparse", (65534, 0))]
    {
        chown(at(name), Some(owner.0), Some(owner.1)).unwrap();
    }
    attributes(root);
    for (name, seconds) in [
        ("plain", -1_000_000_000),
        ("no-rights", 10_000_000_000),
        ("empty", -1),
        ("sticky", 0),
        ("symlink", -86_400),
        ("sparse", 4_294_967_296),
        ("char", 1),
        ("dir/deeper", 8_589_934_592),
        ("dir", 1_000_000_000),
    ] {
        // A fraction of a second is lost by a layer; it must not round up.
        let time = Timespec { tv_sec: seconds, tv_nsec: 900_000_000 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, at(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

/// Bytes that no compressor makes smaller, the same each time.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

fn long_names(root: &Path) {
    // At the bounds of ustar's fields, and far beyond them.
    for length in [99, 100, 101, 155, 156, 255] {
        fs::write(root.join("l".repeat(length)), "long").unwrap();
        symlink("t".repeat(length), root.join(format!("long-link-{length}"))).unwrap();
    }
    let deep = root.join("d".repeat(150)).join("e".repeat(255)).join("ü".repeat(100));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("f".repeat(255)), "deep").unwrap();
    fs::hard_link(deep.join("f".repeat(255)), deep.join("g".repeat(200))).unwrap();
    symlink(format!("{}x", "../".repeat(400)), root.join("far-link")).unwrap();
}

fn links(root: &Path) {
    let link = |target: &str, name: &str| symlink(target, root.join(name)).unwrap();
    link("loop-b", "loop-a");
    link("loop-a", "loop-b");
    link("self", "self");
    link("/nowhere/at all", "dangling");
    link("../../../../../etc/passwd", "up");
    link("dir/", "symlink");
    lchown(root.join("symlink"), Some(54321), Some(12345)).unwrap();
    fs::write(root.join("dir/hard-1"), "hard").unwrap();
    fs::hard_link(root.join("dir/hard-1"), root.join("dir/deeper/hard-2")).unwrap();
    fs::hard_link(root.join("dir/hard-1"), root.join("a-hard-0")).unwrap();
    fs::write(root.join("empty-hard-1"), "").unwrap();
    fs::hard_link(root.join("empty-hard-1"), root.join("empty-hard-2")).unwrap();
    fs::hard_link(root.join("dangling"), root.join("dangling-too")).unwrap();
}

fn devices(root: &Path) {
    let make = |name: &str, kind, mode: u32, device| {
        let path = root.join(name);
        mknodat(CWD, &path, kind, Mode::RUSR, device).unwrap_or_else(|e| panic!("mknod {name}: {e}"));
        chown(&path, Some(54321), Some(6)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    make("char", FileType::CharacterDevice, 0o666, makedev(1, 3));
    make("char-large", FileType::CharacterDevice, 0o600, makedev(250, 70_000));
    make("block", FileType::BlockDevice, 0o660, makedev(7, 200));
    make("fifo", FileType::Fifo, 0o1604, 0);
}

fn attributes(root: &Path) {
    let set = |name: &str, key: &str, value: &[u8]| {
        let set = rustix::fs::lsetxattr(root.join(name), key, value, XattrFlags::empty());
        set.unwrap_or_else(|e| panic!("setxattr {name} {key}: {e}"));
    };
    // cap_net_bind_service,cap_net_raw=ep, as the kernel stores it: revision 2, effective.
    let capabilities = [1u32 | 0x0200_0000, 1 << 10 | 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat();
    for name in ["caps", "caps-too"] {
        fs::write(root.join(name), "capable").unwrap();
        chown(root.join(name), Some(0), Some(54321)).unwrap();
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o4755)).unwrap();
        set(name, "security.capability", &capabilities);
    }
    set("dir", "user.note", b"of a directory");
    set("dir/deeper/hard-2", "user.note", b"of all its names");
    set("plain", "user.empty", b"");
    set("plain", "user.binary", b"a=b\n12 c=d\n\0\xff end");
    set("plain", "user.key=with equals", b"value");
    set("plain", "user.100%3D", b"%");
    set("plain", "user.long", &[b'x'; 900]);
}
