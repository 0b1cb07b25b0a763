#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::apply::{ApplyOptions, apply_layer};
use crate::tar::TarReader;
use crate::testing::{Tree, assert_same, first_userns, look, userns_here, userxattr_modes};

const TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// A lower layer, and an upper one that a mount writes to.
struct Layers {
    dir: TempDir,
    userxattr: bool,
}

impl Layers {
    fn new(userxattr: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir, userxattr }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The merged view, writable.
    fn mount(&self) -> Merged {
        let (upper, work) = (self.at("upper"), self.at("work"));
        let fd = lapstrake_sys::overlay::mount_detached(
            &[self.at("lower")],
            Some((&upper, &work)),
            self.userxattr,
        );
        Merged(fd.unwrap())
    }

    /// What is seen with `upper` on top.
    fn view(&self, upper: &Path) -> Tree {
        let lowers = [upper.to_owned(), self.at("lower")];
        let merged = Merged(lapstrake_sys::overlay::mount_detached(&lowers, None, self.userxattr).unwrap());
        cut_times(look(&merged.path()))
    }

    fn options(&self) -> DiffOptions {
        DiffOptions { userxattr: self.userxattr, mtime_max: None }
    }

    fn changes(&self) -> Vec<u8> {
        let mut tar = Vec::new();
        write_changes(&self.at("upper"), &[self.at("lower")], &self.options(), &mut tar).unwrap();
        tar
    }

    fn apply(&self, tar: &[u8]) -> TempDir {
        let upper = tempfile::tempdir_in(self.dir.path()).unwrap();
        std::fs::set_permissions(upper.path(), std::fs::metadata(self.at("lower")).unwrap().permissions())
            .unwrap();
        let meta = std::fs::metadata(self.at("lower")).unwrap();
        chown(upper.path(), Some(meta.uid()), Some(meta.gid())).unwrap();
        let options = ApplyOptions { userxattr: self.userxattr, lowers_top_first: vec![self.at("lower")] };
        apply_layer(tar, TYPE, upper.path(), &options).unwrap();
        upper
    }

    /// A directory whose time alone changed is not in the layer, and keeps the time that it had.
    fn without_times_alone(&self, wanted: &Tree, tar: &[u8]) -> Tree {
        let below = cut_times(look(&self.at("lower")));
        let listed = entries(tar, |entry| format!("/{}", entry.path.escape_ascii()));
        let mut wanted = wanted.clone();
        for (path, seen) in &mut wanted {
            let name = format!("{path}/");
            if let (FileType::Directory, false, Some(below)) =
                (seen.kind, listed.contains(&name), below.get(path))
            {
                seen.mtime = below.mtime;
            }
        }
        wanted
    }

    /// The layer, unpacked elsewhere, gives the same view; so does the one made without looking below.
    fn check_round_trip(&self) {
        let wanted = self.view(&self.at("upper"));
        let tar = self.changes();
        assert!(tar == self.changes(), "the second run gave other bytes");
        assert_same(&self.without_times_alone(&wanted, &tar), &self.view(self.apply(&tar).path()));
        let mut whole = Vec::new();
        write_diff(&self.at("upper"), &self.options(), &mut whole).unwrap();
        assert_same(&wanted, &self.view(self.apply(&whole).path()));
    }
}

struct Merged(OwnedFd);

impl Merged {
    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}/.", self.0.as_raw_fd()).into()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

/// Layers have whole seconds.
fn cut_times(mut tree: Tree) -> Tree {
    tree.values_mut().for_each(|seen| seen.mtime.nanoseconds = 0);
    tree
}

fn names(tar: &[u8]) -> Vec<String> {
    entries(tar, |entry| String::from_utf8_lossy(&entry.path).into_owned())
}

fn entries<T>(tar: &[u8], told: impl Fn(&Entry) -> T) -> Vec<T> {
    let mut reader = TarReader::new(tar);
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        all.push(told(&entry));
    }
    all
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

fn write_at(path: &Path, offset: u64, data: &[u8]) {
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, data, offset).unwrap();
}

fn mknod(path: &Path, kind: FileType, major: u32, minor: u32) {
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, rustix::fs::Mode::from_raw_mode(0o640), device).unwrap();
}

#[test]
fn userns_a_step_that_changes_nothing_is_an_empty_layer() {
    if !userns_here() {
        return;
    }
    let layers = Layers::new(true);
    std::fs::write(layers.at("lower/f"), b"x").unwrap();
    let merged = layers.mount();
    // Copied up, but the same afterwards.
    lchown(merged.at("f"), Some(0), Some(0)).unwrap();
    drop(merged);
    assert!(layers.at("upper/f").exists());
    assert_eq!(layers.changes(), vec![0; 1024]);
}

#[test]
fn userns_only_what_changed_is_in_the_layer_with_its_parents() {
    if !userns_here() {
        return;
    }
    let layers = Layers::new(true);
    std::fs::create_dir_all(layers.at("lower/etc/deep/er")).unwrap();
    std::fs::create_dir_all(layers.at("lower/usr/bin")).unwrap();
    std::fs::write(layers.at("lower/etc/deep/er/conf"), b"old").unwrap();
    std::fs::write(layers.at("lower/usr/bin/tool"), b"old").unwrap();
    std::fs::write(layers.at("lower/gone"), b"old").unwrap();
    let merged = layers.mount();
    // Written in place: no directory changes, but the way to the file is in the layer.
    write_at(&merged.at("etc/deep/er/conf"), 0, b"new");
    lchown(merged.at("usr/bin/tool"), Some(0), Some(0)).unwrap();
    std::fs::remove_file(merged.at("gone")).unwrap();
    std::fs::create_dir(merged.at("new")).unwrap();
    drop(merged);
    let wanted = [".wh.gone", "etc/", "etc/deep/", "etc/deep/er/", "etc/deep/er/conf", "new/"];
    let mut found = names(&layers.changes());
    found.sort();
    assert_eq!(found, wanted);
    layers.check_round_trip();
}

#[test]
fn userns_a_directory_deleted_and_made_again_hides_the_old_one() {
    if !userns_here() {
        return;
    }
    for &userxattr in userxattr_modes() {
        let layers = Layers::new(userxattr);
        std::fs::create_dir_all(layers.at("lower/d/sub")).unwrap();
        std::fs::set_permissions(layers.at("lower/d/sub"), std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(layers.at("lower/d/old"), b"old").unwrap();
        std::fs::write(layers.at("lower/d/sub/old"), b"old").unwrap();
        let merged = layers.mount();
        std::fs::remove_dir_all(merged.at("d")).unwrap();
        std::fs::create_dir_all(merged.at("d/sub")).unwrap();
        std::fs::write(merged.at("d/new"), b"new").unwrap();
        std::fs::create_dir(merged.at("fresh")).unwrap();
        drop(merged);
        assert_eq!(
            names(&layers.changes()),
            ["d/", "d/new", "d/.wh.old", "d/sub/", "d/sub/.wh.old", "fresh/"]
        );
        layers.check_round_trip();
    }
}

#[test]
fn userns_a_time_alone_is_no_change_of_a_directory() {
    if !userns_here() {
        return;
    }
    let layers = Layers::new(true);
    std::fs::create_dir(layers.at("lower/d")).unwrap();
    std::fs::write(layers.at("lower/d/f"), b"x").unwrap();
    let merged = layers.mount();
    std::fs::rename(merged.at("d/f"), merged.at("d/g")).unwrap();
    std::fs::rename(merged.at("d/g"), merged.at("d/f")).unwrap();
    drop(merged);
    assert_eq!(layers.changes(), vec![0; 1024]);
}

#[test]
fn userns_the_tricky_tree_comes_back_bit_for_bit() {
    if !userns_here() {
        return;
    }
    for &userxattr in userxattr_modes() {
        let layers = Layers::new(userxattr);
        std::fs::create_dir_all(layers.at("lower/a/b")).unwrap();
        for name in ["a/one", "a/two", "a/b/three", "type"] {
            std::fs::write(layers.at("lower").join(name), name).unwrap();
        }
        let merged = layers.mount();
        let at = |name: &str| merged.at(name);
        std::fs::remove_file(at("a/one")).unwrap();
        std::fs::hard_link(at("a/two"), at("a/b/linked")).unwrap();
        std::fs::hard_link(at("a/two"), at("zz")).unwrap();
        std::fs::remove_file(at("type")).unwrap();
        std::fs::create_dir(at("type")).unwrap();
        std::fs::write(at("setuid"), b"x").unwrap();
        chown(at("setuid"), Some(if first_userns() { 4_000_000 } else { 40_000 }), Some(65_534)).unwrap();
        std::fs::set_permissions(at("setuid"), std::fs::Permissions::from_mode(0o6751)).unwrap();
        set_xattr(&at("setuid"), "user.note", b"a\0binary\xffvalue=\n");
        let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        std::fs::write(at("ping"), b"x").unwrap();
        set_xattr(&at("ping"), "security.capability", &capability);
        let long = format!("{}/{}", "n".repeat(200), "ü☃".repeat(20));
        std::fs::create_dir(at(&"n".repeat(200))).unwrap();
        std::fs::write(at(&long), b"long").unwrap();
        symlink("loop-b", at("loop-a")).unwrap();
        symlink("loop-a", at("loop-b")).unwrap();
        symlink("t".repeat(300), at("far")).unwrap();
        lchown(at("far"), Some(12), Some(13)).unwrap();
        if first_userns() {
            mknod(&at("null"), FileType::CharacterDevice, 1, 3);
            mknod(&at("disk"), FileType::BlockDevice, 259, 300_000);
        }
        mknod(&at("pipe"), FileType::Fifo, 0, 0);
        write_at(&at("sparse"), 40 << 20, b"end");
        write_at(&at("sparse"), 20 << 20, b"middle");
        std::fs::set_permissions(at("a/b"), std::fs::Permissions::from_mode(0o1777)).unwrap();
        set_xattr(&at("a/b"), "user.dir", b"");
        std::fs::set_permissions(merged.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(layers.dir.path().join("upper/socket")).unwrap();
        drop((merged, socket));
        std::fs::remove_file(layers.at("upper/socket")).unwrap();
        layers.check_round_trip();
        let copy = layers.apply(&layers.changes());
        let blocks = std::fs::metadata(copy.path().join("sparse")).unwrap().blocks();
        assert!(blocks * 512 < 1 << 20, "the sparse file has {blocks} blocks");
        assert_eq!(std::fs::metadata(copy.path()).unwrap().mode() & 0o7777, 0o711);
    }
}

#[test]
fn userns_an_epoch_clamps_later_times_and_no_others() {
    if !userns_here() {
        return;
    }
    let layers = Layers::new(true);
    for (name, seconds) in [("old", 500), ("new", 5000)] {
        let path = layers.at("upper").join(name);
        std::fs::write(&path, b"x").unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        fsio::set_times(&file, Time::seconds(seconds)).unwrap();
    }
    let mut tar = Vec::new();
    let options = DiffOptions { userxattr: true, mtime_max: Some(1000) };
    write_changes(&layers.at("upper"), &[], &options, &mut tar).unwrap();
    let mut reader = TarReader::new(&tar[..]);
    let mut times = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        times.push((String::from_utf8(entry.path).unwrap(), entry.mtime.seconds));
    }
    assert_eq!(times, [("new".to_owned(), 1000), ("old".to_owned(), 500)]);
}

#[test]
fn userns_a_directory_with_metacopy_or_redirect_is_refused() {
    if !userns_here() {
        return;
    }
    let layers = Layers::new(true);
    std::fs::create_dir(layers.at("upper/d")).unwrap();
    set_xattr(&layers.at("upper/d"), "user.overlay.redirect", b"/other");
    let written = write_diff(&layers.at("upper"), &layers.options(), &mut Vec::new());
    assert!(matches!(written, Err(Error::ForeignOverlay(_))));
}

#[test]
fn userns_a_full_output_is_told_as_no_space() {
    if !userns_here() {
        return;
    }
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let layers = Layers::new(true);
    std::fs::write(layers.at("upper/f"), vec![1; 1 << 20]).unwrap();
    let error = write_diff(&layers.at("upper"), &layers.options(), &mut Full).unwrap_err();
    assert!(error.is_no_space(), "{error:?}");
}

/// One thing that a step may do to the merged view.
#[derive(Debug, Clone)]
enum Act {
    Write(String, u16, u8),
    Sparse(String, u32),
    Mkdir(String),
    Remove(String),
    Rename(String, String),
    Link(String, String),
    Symlink(String, String),
    Fifo(String),
    Device(String, u8),
    Mode(String, u32),
    Owner(String, u32, u32),
    Xattr(String, u8),
    Touch(String, i64),
}

fn any_path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "c", "dir", "ü☃", "long"]);
    prop::collection::vec(name, 1..4).prop_map(|names| {
        let long = "l".repeat(120);
        names.iter().map(|n| if *n == "long" { long.as_str() } else { n }).collect::<Vec<_>>().join("/")
    })
}

fn any_act() -> impl Strategy<Value = Act> {
    let path = any_path;
    prop_oneof![
        4 => (path(), any::<u16>(), any::<u8>()).prop_map(|(p, n, b)| Act::Write(p, n, b)),
        1 => (path(), 0u32..4_000_000).prop_map(|(p, n)| Act::Sparse(p, n)),
        4 => path().prop_map(Act::Mkdir),
        3 => path().prop_map(Act::Remove),
        2 => (path(), path()).prop_map(|(a, b)| Act::Rename(a, b)),
        2 => (path(), path()).prop_map(|(a, b)| Act::Link(a, b)),
        1 => (path(), path()).prop_map(|(a, b)| Act::Symlink(a, b)),
        1 => path().prop_map(Act::Fifo),
        1 => (path(), 1u8..9).prop_map(|(p, n)| Act::Device(p, n)),
        2 => (path(), 0u32..0o10000).prop_map(|(p, m)| Act::Mode(p, m)),
        2 => (path(), 0u32..70_000, any::<u32>()).prop_map(|(p, u, g)| Act::Owner(p, u, g >> 1)),
        1 => (path(), any::<u8>()).prop_map(|(p, v)| Act::Xattr(p, v)),
        2 => (path(), -2_000_000_000i64..4_000_000_000).prop_map(|(p, t)| Act::Touch(p, t)),
    ]
}

/// Does it if it can be done: the tree may not have the path, or have something else there.
fn act(root: &Path, act: &Act) {
    let at = |p: &String| root.join(p);
    let is_symlink = |p: &Path| p.symlink_metadata().is_ok_and(|m| m.is_symlink());
    let plain = |p: &Path| p.symlink_metadata().is_ok_and(|m| m.is_file());
    let result: io::Result<()> = match act {
        Act::Write(p, n, b) if !at(p).exists() || plain(&at(p)) => {
            std::fs::write(at(p), vec![*b; usize::from(*n)])
        }
        Act::Sparse(p, n) if !at(p).exists() || plain(&at(p)) => {
            std::fs::File::create(at(p)).and_then(|f| f.set_len(u64::from(*n)))
        }
        Act::Mkdir(p) => std::fs::create_dir_all(at(p)),
        Act::Remove(p) => std::fs::remove_file(at(p)).or_else(|_| std::fs::remove_dir_all(at(p))),
        Act::Rename(a, b) => std::fs::rename(at(a), at(b)),
        Act::Link(a, b) => std::fs::hard_link(at(a), at(b)),
        Act::Symlink(a, b) => symlink(a, at(b)),
        Act::Fifo(p) if !at(p).exists() => {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(rustix::fs::CWD, at(p), FileType::Fifo, mode, 0).map_err(Into::into)
        }
        Act::Device(p, n) => {
            let (mode, device) =
                (rustix::fs::Mode::from_raw_mode(0o600), rustix::fs::makedev(1, u32::from(*n)));
            rustix::fs::mknodat(rustix::fs::CWD, at(p), FileType::CharacterDevice, mode, device)
                .map_err(Into::into)
        }
        Act::Mode(p, m) if !is_symlink(&at(p)) => {
            std::fs::set_permissions(at(p), std::fs::Permissions::from_mode(*m))
        }
        Act::Owner(p, u, g) => lchown(at(p), Some(*u), Some(*g)),
        Act::Xattr(p, v) => {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::lsetxattr(at(p), "user.test", &vec![*v; usize::from(*v)], flags).map_err(Into::into)
        }
        Act::Touch(p, t) => {
            fsio::set_times_at(rustix::fs::CWD, at(p).as_os_str().as_encoded_bytes(), Time::seconds(*t))
                .map_err(Into::into)
        }
        _ => Ok(()),
    };
    result.ok(); // see above
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn userns_any_step_survives_the_way_through_a_layer(
        before in prop::collection::vec(any_act(), 0..25),
        step in prop::collection::vec(any_act(), 0..25),
        userxattr in any::<bool>(),
    ) {
        if !userns_here() {
            return Ok(());
        }
        let layers = Layers::new(userxattr || !first_userns());
        let lower = layers.at("lower");
        before.iter().for_each(|a| act(&lower, a));
        let merged = layers.mount();
        let root = merged.path();
        step.iter().for_each(|a| act(&root, a));
        drop(merged);
        layers.check_round_trip();
    }
}
