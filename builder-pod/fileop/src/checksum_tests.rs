use std::collections::HashMap;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::testing::{Hide, set, tree};

fn sum(dir: &Path, selector: Selector) -> Result<Digest, Error> {
    let root = crate::open_root(dir)?;
    checksum(&View::context(root.as_fd(), None), &selector, &ChecksumOptions::default(), &Cancel::new())
}

fn of(path: &str) -> Selector {
    Selector { path: path.to_owned(), follow_links: true, wildcard: true, ..Selector::default() }
}

fn both(make_a: &[&str], make_b: &[&str], selector: &Selector) -> (Digest, Digest) {
    let (a, b) = (tree(make_a), tree(make_b));
    let sum = |dir: &TempDir| sum(dir.path(), selector.clone()).unwrap_or_else(|e| panic!("{e}"));
    (sum(&a), sum(&b))
}

#[test]
fn what_a_copy_would_make_different_counts() {
    for (a, b) in [
        (&["f=one"][..], &["f=two"][..]),
        (&["f=one"], &["g=one"]),
        (&["f=one mode 644"], &["f=one mode 755"]),
        (&["f=", "g=one"], &["f=one", "g="]),
        (&["l->f"], &["l->g"]),
        (&["l->f"], &["l=f"]),
        (&["d/"], &["d="]),
        (&["d/ mode 700"], &["d/ mode 755"]),
        (&["d/f=1"], &["e/f=1"]),
        (&["f=1"], &["f=1", "empty/"]),
        (&["p|"], &["p="]),
    ] {
        let (x, y) = both(a, b, &of(""));
        assert_ne!(x, y, "{a:?} and {b:?}");
    }
}

#[test]
fn times_owners_in_a_context_and_other_paths_do_not_count() {
    let (a, b) = (tree(&["src/f=x", "src/d/g=y", "other=1"]), tree(&["src/f=x", "src/d/g=y"]));
    set::owner(&b.path().join("src/f"), 1234, 5);
    set::modified(&b.path().join("src/d"), 77);
    set::modified(&b.path().join("src/f"), 99);
    let sums = [&a, &b].map(|dir| sum(dir.path(), of("src")).unwrap_or_else(|e| panic!("{e}")));
    assert_eq!(sums[0], sums[1]);
}

#[test]
fn owners_in_a_snapshot_count() {
    let dir = tree(&["f=x"]);
    let root = crate::open_root(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    let view = View::snapshot(root.as_fd());
    let sum = || {
        checksum(&view, &of("f"), &ChecksumOptions::default(), &Cancel::new())
            .unwrap_or_else(|e| panic!("{e}"))
    };
    let before = sum();
    set::owner(&dir.path().join("f"), 7, 7);
    assert_ne!(before, sum());
}

#[test]
fn capabilities_and_user_attributes_count() {
    let dir = tree(&["f=x"]);
    let sums = |name: &str, value: &[u8]| {
        let before = sum(dir.path(), of("f")).unwrap_or_else(|e| panic!("{e}"));
        set::xattr(&dir.path().join("f"), name, value);
        (before, sum(dir.path(), of("f")).unwrap_or_else(|e| panic!("{e}")))
    };
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (before, after) = sums("security.capability", &capability);
    assert_ne!(before, after);
    let (before, after) = sums("trusted.overlay.opaque", b"y");
    assert_eq!(before, after);
}

#[test]
fn a_directory_counts_with_its_own_mode_but_the_root_of_a_context_does_not() {
    let (a, b) = both(&["a/f=1", "a/ mode 700"], &["a/f=1", "a/ mode 755"], &of("a"));
    assert_ne!(a, b);
    let (a, b) = (tree(&["f=1"]), tree(&["f=1"]));
    set::mode(a.path(), 0o700);
    set::mode(b.path(), 0o755);
    let sums = [&a, &b].map(|dir| sum(dir.path(), of("")).unwrap_or_else(|e| panic!("{e}")));
    assert_eq!(sums[0], sums[1]);
}

#[test]
fn a_literal_name_does_not_count_but_a_matched_one_does() {
    let dir = tree(&["a=1", "b=1", "x/one=1", "y/two=1"]);
    let sum = |path: &str| sum(dir.path(), of(path)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(sum("a"), sum("b"));
    assert_ne!(sum("a*"), sum("b*"));
    assert_ne!(sum("x/*"), sum("y/*"));
}

#[test]
fn missing_paths_are_named() {
    let dir = tree(&["a/f=1"]);
    let error = |selector| sum(dir.path(), selector).err().map(|e| e.to_string());
    assert_eq!(error(of("nope")), Some("\"/nope\": not found".to_owned()));
    assert_eq!(error(of("a/f/g")), Some("\"/a/f/g\": not found".to_owned()));
    assert_eq!(error(of("no*")), None);
    let required = |path: &str| Selector {
        include_patterns: vec!["a/**".to_owned(), "b*".to_owned()],
        required_paths: vec![path.to_owned()],
        ..of("/")
    };
    assert_eq!(error(required("/a/f")), None);
    assert_eq!(error(required("/a/g")), Some("\"/a/g\": not found".to_owned()));
}

#[test]
fn patterns_narrow_what_counts() {
    let (a, b) =
        (&["s/a.rs=1", "s/b.md=1", "s/deep/x/c.md=1"][..], &["s/a.rs=1", "s/b.md=2", "s/deep/x/c.md=2"][..]);
    let exclude = Selector { exclude_patterns: vec!["**/*.md".to_owned()], ..of("s") };
    let (x, y) = both(a, b, &exclude);
    assert_eq!(x, y);
    let include = Selector { include_patterns: vec!["*.rs".to_owned()], ..of("s") };
    let (x, y) = both(a, b, &include);
    assert_eq!(x, y);
    // A directory counts only for what is taken from it.
    let (x, y) = both(a, &["s/a.rs=1"], &include);
    assert_eq!(x, y);
    let (x, y) = both(a, b, &of("s"));
    assert_ne!(x, y);
}

#[test]
fn links_are_followed_inside_the_root_only() {
    let dir =
        tree(&["real/f=1", "link->real", "abs->/real", "out->../../../../../../etc/passwd", "loop->loop"]);
    let sum = |path: &str| sum(dir.path(), of(path));
    let real = sum("real").unwrap_or_else(|e| panic!("{e}"));
    for path in ["link", "abs", "link/", "real/../link", "../../link"] {
        assert_eq!(sum(path).ok(), Some(real), "{path}");
    }
    assert!(matches!(sum("out"), Err(Error::NotFound(_))));
    assert!(matches!(sum("loop"), Err(Error::SymlinkLoop(_))));
}

#[test]
fn hidden_paths_are_not_there() {
    let dir = tree(&["a/f=1", "a/secret=1", "b/only=1", "link->a/secret"]);
    let root = crate::open_root(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    let hide = Hide(Patterns::new(["**/secret", "b", "!b/only"]).unwrap_or_else(|e| panic!("{e}")));
    let view = View::context(root.as_fd(), Some(&hide));
    let sum = |path: &str| checksum(&view, &of(path), &ChecksumOptions::default(), &Cancel::new());
    let bare = tree(&["a/f=1", "b/only=1", "link->a/secret"]);
    let want = super::tests::sum(bare.path(), of("")).ok();
    assert_eq!(sum("").ok(), want);
    assert!(matches!(sum("a/secret"), Err(Error::NotFound(_))));
    assert!(matches!(sum("link"), Err(Error::NotFound(_))));
    assert!(sum("b/only").is_ok());
}

#[derive(Default)]
struct Memory {
    known: Mutex<HashMap<FileStat, Digest>>,
    asked: AtomicUsize,
    stored: AtomicUsize,
}

impl HashCache for Memory {
    fn lookup(&self, _: &[u8], stat: &FileStat) -> Option<Digest> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.known.lock().ok()?.get(stat).copied()
    }

    fn store(&self, _: &[u8], stat: &FileStat, digest: &Digest) {
        self.stored.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut known) = self.known.lock() {
            known.insert(*stat, *digest);
        }
    }
}

#[test]
fn an_unchanged_file_is_not_read_again() {
    let files: Vec<String> = (0..40).map(|n| format!("d{}/f{n}={}", n % 3, "x".repeat(n * 4000))).collect();
    let dir = tree(&files.iter().map(String::as_str).collect::<Vec<_>>());
    let root = crate::open_root(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    let view = View::context(root.as_fd(), None);
    let memory = Memory::default();
    let run = |settle| {
        let options = ChecksumOptions { cache: Some(&memory), threads: 4, settle };
        checksum(&view, &of(""), &options, &Cancel::new()).unwrap_or_else(|e| panic!("{e}"))
    };
    // Just written: not to be trusted yet.
    let first = run(Duration::from_secs(3600));
    assert_eq!(memory.stored.load(Ordering::Relaxed), 0);
    assert_eq!(run(Duration::ZERO), first);
    let files = memory.stored.load(Ordering::Relaxed);
    assert_eq!(files, 39, "all but the empty one");
    assert_eq!(run(Duration::ZERO), first);
    assert_eq!(memory.stored.load(Ordering::Relaxed), files, "nothing was read again");
    std::fs::write(dir.path().join("d0/f3"), "y".repeat(12_000)).unwrap_or_else(|e| panic!("{e}"));
    assert_ne!(run(Duration::ZERO), first);
    assert_eq!(memory.stored.load(Ordering::Relaxed), files + 1);
}

#[test]
fn a_canceled_checksum_ends() {
    let dir = tree(&["f=1"]);
    let root = crate::open_root(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    let cancel = Cancel::new();
    cancel.cancel();
    let result = checksum(&View::context(root.as_fd(), None), &of(""), &ChecksumOptions::default(), &cancel);
    assert!(matches!(result, Err(Error::Canceled)));
}

#[test]
fn who_writes_a_file_can_tell_its_digest() {
    let dir = tree(&["a=one mode 4755", "b/c=two mode 600", "empty="]);
    let root = crate::open_root(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    let told = Memory::default();
    for (path, content) in [("a", "one"), ("b/c", "two"), ("empty", "")] {
        let fd = at::beneath(root.as_fd(), path.as_bytes(), OFlags::RDONLY).unwrap_or_else(|e| panic!("{e}"));
        let stat = rustix::fs::fstat(&fd).unwrap_or_else(|e| panic!("{e}"));
        remember(&told, path.as_bytes(), &stat, content.as_bytes());
        // What is not all of it is not remembered.
        remember(&told, path.as_bytes(), &stat, b"cut o");
    }
    assert_eq!(told.stored.load(Ordering::Relaxed), 2);
    let view = View::context(root.as_fd(), None);
    let sum = |cache| {
        let options = ChecksumOptions { cache, threads: 1, settle: Duration::ZERO };
        checksum(&view, &of(""), &options, &Cancel::new()).unwrap_or_else(|e| panic!("{e}"))
    };
    assert_eq!(sum(Some(&told)), sum(None));
    assert_eq!(told.stored.load(Ordering::Relaxed), 2, "nothing was read");
}
