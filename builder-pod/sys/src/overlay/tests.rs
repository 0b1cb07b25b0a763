use std::fs;
use std::os::fd::AsFd;

use super::*;

struct Layers {
    dir: tempfile::TempDir,
}

impl Layers {
    fn new(names: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("temp dir");
        for name in names {
            fs::create_dir(dir.path().join(name)).expect("mkdir");
            fs::write(dir.path().join(name).join(name), name).expect("write");
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

fn names(mount: impl AsFd) -> Vec<String> {
    let dir =
        rustix::fs::openat(mount, ".", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("open");
    let mut names: Vec<String> = rustix::fs::Dir::read_from(&dir)
        .expect("dir")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name != "." && name != "..")
        .collect();
    names.sort();
    names
}

fn write_into(mount: impl AsFd, name: &str) {
    let flags = OFlags::WRONLY | OFlags::CREATE;
    rustix::fs::openat(mount, name, flags, Mode::from_raw_mode(0o644)).expect("create");
}

#[test]
fn detached_overlay_shows_layers_and_writes_to_upper() {
    let layers = Layers::new(&["a", "b", "upper", "work"]);
    let (upper, work) = (layers.path("upper"), layers.path("work"));
    let lowers = [layers.path("a"), layers.path("b")];
    let mount = mount_detached(&lowers, Some((&upper, &work)), false).expect("needs root");
    assert_eq!(names(&mount), ["a", "b", "upper"]);
    write_into(&mount, "new");
    drop(mount);
    assert!(upper.join("new").exists());
}

#[test]
fn option_string_of_old_kernels_mounts_the_same() {
    let layers = Layers::new(&["a:b,c", "b", "upper", "work"]);
    let (upper, work) = (layers.path("upper"), layers.path("work"));
    let lowers = [layers.path("a:b,c"), layers.path("b")];
    let overlay = Overlay {
        lowers_top_first: &lowers,
        upper_work: Some((&upper, &work)),
        userxattr: false,
        volatile: true,
        attrs: MountAttrFlags::MOUNT_ATTR_NODEV,
    };
    let mount = overlay.mount_by_option_string().expect("needs root");
    assert_eq!(names(&mount), ["a:b,c", "b", "upper"]);
    assert_eq!(
        overlay.mount_by_fsconfig().map(drop).map_err(|error| error.errno),
        Err(Errno::INVAL),
        "volatile work dirs are used once"
    );
}

#[test]
fn names_longer_than_an_option_still_mount() {
    let dir = tempfile::tempdir().expect("temp dir");
    let deep = dir.path().join("x".repeat(200)).join("y".repeat(200));
    fs::create_dir_all(&deep).expect("mkdir");
    fs::write(deep.join("deep"), "").expect("write");
    let layers = Layers::new(&["a"]);
    let mount = mount_detached(&[deep, layers.path("a")], None, false).expect("needs root");
    assert_eq!(names(&mount), ["a", "deep"]);
}

#[test]
fn one_layer_alone_and_none_are_read_only_trees() {
    let layers = Layers::new(&["a"]);
    let one = mount_detached(&[layers.path("a")], None, false).expect("needs root");
    assert_eq!(names(&one), ["a"]);
    let none = mount_detached(&[], None, false).expect("needs root");
    assert!(names(&none).is_empty());
    for mount in [one, none] {
        let made = rustix::fs::mkdirat(&mount, "x", Mode::from_raw_mode(0o755));
        assert_eq!(made, Err(Errno::ROFS));
    }
}

#[test]
fn missing_layer_is_named_in_the_error() {
    let layers = Layers::new(&["a"]);
    let error =
        mount_detached(&[layers.path("a"), layers.path("gone")], None, false).expect_err("no such layer");
    assert!(error.is_not_found(), "{error}");
    assert!(error.to_string().contains("gone"), "{error}");
}
