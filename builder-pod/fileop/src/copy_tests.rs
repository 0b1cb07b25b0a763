use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::action::Owner;
use crate::testing::{Hide, describe, grow, set, tree};
use crate::{ChecksumOptions, Selector, checksum};

/// What the frontend sets for COPY.
fn action(src: &str, dst: &str) -> CopyAction {
    CopyAction {
        src: src.to_owned(),
        dst: dst.to_owned(),
        follow_symlink: true,
        dir_copy_contents: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..CopyAction::default()
    }
}

/// Each file is a job of its own, for one of several threads.
const SPREAD: Division = Division { threads: 3, files: 1, bytes: 0 };
/// Nothing is so much that a thread is started.
const ALONE: Division = Division { threads: 3, files: usize::MAX, bytes: u64::MAX };

fn run(src: &Path, dst: &Path, action: &CopyAction) -> Result<(), Error> {
    run_divided(src, dst, action, SPREAD)
}

fn run_divided(src: &Path, dst: &Path, action: &CopyAction, division: Division) -> Result<(), Error> {
    let (from, to) = (crate::open_root(src)?, crate::open_root(dst)?);
    copy_divided(&View::context(from.as_fd(), None), to.as_fd(), action, &Cancel::new(), division)
}

/// The paths of a tree without modes.
fn paths(dir: &Path) -> Vec<String> {
    describe(dir).iter().map(|line| line.split(" mode").next().unwrap_or_default().to_owned()).collect()
}

fn check(src: &[&str], dst: &[&str], action: &CopyAction, want: &[&str]) {
    for division in [ALONE, SPREAD] {
        let (src, dst) = (tree(src), tree(dst));
        run_divided(src.path(), dst.path(), action, division).unwrap_or_else(|e| panic!("{action:?}: {e}"));
        assert_eq!(paths(dst.path()), want, "{} to {}, {division:?}", action.src, action.dst);
    }
}

fn refused(src: &[&str], dst: &[&str], action: &CopyAction) -> String {
    let [alone, spread] = [ALONE, SPREAD].map(|division| {
        let (src, dst) = (tree(src), tree(dst));
        match run_divided(src.path(), dst.path(), action, division) {
            Ok(()) => panic!("{action:?} went through: {:?}", paths(dst.path())),
            Err(error) => error.to_string(),
        }
    });
    assert_eq!(alone, spread);
    alone
}

#[test]
fn a_file_goes_to_its_place() {
    for (dst, existing, want) in [
        ("/g", &[][..], &["g=1"][..]),
        ("g", &[], &["g=1"]),
        ("/", &[], &["f=1"]),
        (".", &[], &["f=1"]),
        ("./", &[], &["f=1"]),
        ("/d/", &[], &["d/", "d/f=1"]),
        ("/d/.", &[], &["d/", "d/f=1"]),
        ("/d", &["d/"], &["d/", "d/f=1"]),
        ("/a/b/g", &[], &["a/", "a/b/", "a/b/g=1"]),
        ("/a/b/", &["a/x=2"], &["a/", "a/b/", "a/b/f=1", "a/x=2"]),
        ("/g", &["g=old"], &["g=1"]),
        ("/../../g", &[], &["g=1"]),
        // A symlink as destination is followed, one in a destination directory is replaced.
        ("/l", &["l->x"], &["l->x", "x=1"]),
        ("/l/", &["l->d", "d/"], &["d/", "d/f=1", "l->d"]),
        ("/l/g", &["l->/d", "d/"], &["d/", "d/g=1", "l->/d"]),
        ("/", &["f->elsewhere", "elsewhere=0"], &["elsewhere=0", "f=1"]),
    ] {
        check(&["f=1"], existing, &action("f", dst), want);
    }
}

#[test]
fn a_directory_s_contents_or_the_directory_itself() {
    let src = &["s/a=1", "s/e/", "s/n/b=2"][..];
    for (dst, existing, want) in [
        ("/", &[][..], &["a=1", "e/", "n/", "n/b=2"][..]),
        ("/d", &[], &["d/", "d/a=1", "d/e/", "d/n/", "d/n/b=2"]),
        ("/d/", &["d/x=0"], &["d/", "d/a=1", "d/e/", "d/n/", "d/n/b=2", "d/x=0"]),
        ("/l", &["l->d", "d/"], &["d/", "d/a=1", "d/e/", "d/n/", "d/n/b=2", "l->d"]),
    ] {
        for source in ["s", "/s", "s/", "s/.", "./s/../s"] {
            check(src, existing, &action(source, dst), want);
        }
    }
    let whole =
        |dst: &str| CopyAction { dir_copy_contents: false, allow_wildcard: false, ..action("s", dst) };
    check(src, &[], &whole("/d"), &["d/", "d/a=1", "d/e/", "d/n/", "d/n/b=2"]);
    check(src, &["d/"], &whole("/d"), &["d/", "d/s/", "d/s/a=1", "d/s/e/", "d/s/n/", "d/s/n/b=2"]);
    check(
        src,
        &["d/"],
        &CopyAction { src: "s/.".to_owned(), ..whole("/d") },
        &["d/", "d/a=1", "d/e/", "d/n/", "d/n/b=2"],
    );
    check(src, &[], &action("/", "/"), &["s/", "s/a=1", "s/e/", "s/n/", "s/n/b=2"]);
}

#[test]
fn wildcards_match_names() {
    let src = &["a.txt=1", "b.txt=2", "c.md=3", "d1/x=4", "d2/y=5", "l->d1"][..];
    for (pattern, want) in [
        ("*.txt", &["a.txt=1", "b.txt=2"][..]),
        ("?.md", &["c.md=3"]),
        ("[ab].txt", &["a.txt=1", "b.txt=2"]),
        ("[^a].txt", &["b.txt=2"]),
        ("d*/", &["x=4", "y=5"]),
        ("*/x", &["x=4"]),
        ("l/*", &["x=4"]),
        ("*.nope", &[]),
        ("nope/*", &[]),
        ("\\*.txt", &[]),
    ] {
        if pattern.starts_with('\\') {
            // Escaped, it is a name, and that is not there.
            assert_eq!(refused(src, &[], &action(pattern, "/")), "\"/\\*.txt\": not found");
        } else {
            check(src, &[], &action(pattern, "/"), want);
        }
    }
    let strict = CopyAction { allow_empty_wildcard: false, ..action("*.nope", "/") };
    assert_eq!(refused(src, &[], &strict), "\"/*.nope\": not found");
    let literal = CopyAction { allow_wildcard: false, ..action("*.txt", "/") };
    check(&["*.txt=1", "a.txt=2"], &[], &literal, &["*.txt=1"]);
    assert!(refused(src, &[], &action("[a", "/")).contains("malformed"));
}

#[test]
fn symlinks_in_the_source() {
    let src = &[
        "real/f=1",
        "real/in->f",
        "link->real",
        "file->real/f",
        "dangling->nowhere",
        "up->../../../etc",
    ][..];
    check(src, &[], &action("link", "/d"), &["d/", "d/f=1", "d/in->f"]);
    check(src, &[], &action("file", "/g"), &["g=1"]);
    check(src, &[], &action("link/in", "/g"), &["g=1"]);
    let keep = CopyAction { follow_symlink: false, ..action("link", "/g") };
    check(src, &[], &keep, &["g->real"]);
    assert_eq!(refused(src, &[], &action("dangling", "/")), "\"/dangling\": not found");
    assert_eq!(refused(src, &[], &action("up/passwd", "/")), "\"/up/passwd\": not found");
    assert!(refused(&["a->b", "b->a"], &[], &action("a", "/")).contains("too many levels"));
}

#[test]
fn what_cannot_be_says_why() {
    assert_eq!(refused(&[], &[], &action("nope", "/")), "\"/nope\": not found");
    assert_eq!(refused(&["f=1"], &[], &action("f/x", "/")), "\"/f/x\": not found");
    assert_eq!(
        refused(&["s/x=1"], &["d/x/"], &action("s", "/d")),
        "cannot replace directory \"/d/x\" with a file"
    );
    assert_eq!(
        refused(&["s/x/y=1"], &["d/x=0"], &action("s", "/d")),
        "cannot copy a directory to \"/d/x\": it exists and is not a directory"
    );
    assert_eq!(
        refused(&["s/x/y=1"], &["d/x->e", "e/"], &action("s", "/d")),
        "cannot copy a directory to \"/d/x\": it exists and is not a directory"
    );
    assert_eq!(refused(&["f=1"], &["d=0"], &action("f", "/d/x")), "make directory /d: not a directory");
    let no_parents = CopyAction { create_dest_path: false, ..action("f", "/a/g") };
    assert_eq!(
        refused(&["f=1"], &[], &no_parents),
        "failed to stat /a/g: lstat /a: no such file or directory"
    );
    let exclude = CopyAction { exclude_patterns: vec!["[".to_owned()], ..action("s", "/") };
    assert_eq!(refused(&["s/"], &[], &exclude), "pattern \"[\" is malformed");
}

#[test]
fn whatever_is_in_the_way_is_replaced_on_request() {
    let replace =
        |src: &str, dst: &str| CopyAction { always_replace_existing_dest_paths: true, ..action(src, dst) };
    check(&["s/x=1"], &["d/x/y/z=0"], &replace("s", "/d"), &["d/", "d/x=1"]);
    check(&["s/x/y=1"], &["d/x=0"], &replace("s", "/d"), &["d/", "d/x/", "d/x/y=1"]);
    check(&["s/x/y=1"], &["d/x->e", "e/k=0"], &replace("s", "/d"), &["d/", "d/x/", "d/x/y=1", "e/", "e/k=0"]);
    check(&["s/x/y=1"], &["d/x/k=0"], &replace("s", "/d"), &["d/", "d/x/", "d/x/k=0", "d/x/y=1"]);
}

#[test]
fn include_and_exclude_patterns() {
    let src = &["s/a.rs=1", "s/b.md=2", "s/n/c.rs=3", "s/n/d.md=4", "s/m/e.md=5"][..];
    let with = |include: &[&str], exclude: &[&str]| CopyAction {
        include_patterns: include.iter().map(|p| (*p).to_owned()).collect(),
        exclude_patterns: exclude.iter().map(|p| (*p).to_owned()).collect(),
        ..action("s", "/")
    };
    for (include, exclude, want) in [
        (&["**/*.rs"][..], &[][..], &["a.rs=1", "n/", "n/c.rs=3"][..]),
        (&["n"], &[], &["n/", "n/c.rs=3", "n/d.md=4"]),
        (&["n/c*"], &[], &["n/", "n/c.rs=3"]),
        (&["*/e.md", "a.rs"], &[], &["a.rs=1", "m/", "m/e.md=5"]),
        (&["n"], &["**/*.md"], &["n/", "n/c.rs=3"]),
        (&[], &["**/*.md"], &["a.rs=1", "m/", "n/", "n/c.rs=3"]),
        (&[], &["n", "m"], &["a.rs=1", "b.md=2"]),
        (&[], &["n", "!n/d.md"], &["a.rs=1", "b.md=2", "m/", "m/e.md=5", "n/", "n/d.md=4"]),
        (&["nope"], &[], &[]),
    ] {
        check(src, &[], &with(include, exclude), want);
    }
}

#[test]
fn required_paths_must_be_copied() {
    let parents = |include: &str, required: &[&str]| CopyAction {
        include_patterns: vec![include.to_owned()],
        required_paths: required.iter().map(|p| (*p).to_owned()).collect(),
        ..action("/", "/out/")
    };
    let src = &["a/b/c=1", "a/x=2"][..];
    check(src, &[], &parents("a/b/c", &["/a/b/c"]), &["out/", "out/a/", "out/a/b/", "out/a/b/c=1"]);
    check(src, &[], &parents("a/b", &["a/b"]), &["out/", "out/a/", "out/a/b/", "out/a/b/c=1"]);
    assert_eq!(refused(src, &[], &parents("a/b/d", &["/a/b/d"])), "\"/a/b/d\": not found");
}

#[test]
fn owners_modes_and_times() {
    use std::os::unix::fs::MetadataExt;
    let src = tree(&["s/f=1 mode 4751", "s/d/ mode 1777", "s/d/l->f"]);
    set::owner(&src.path().join("s/f"), 5, 6);
    set::mode(&src.path().join("s/f"), 0o4751);
    for path in ["s/d/l", "s/f", "s/d", "s"] {
        set::modified(&src.path().join(path), 1000);
    }
    let stat = |dst: &TempDir, path: &str| {
        let meta = dst.path().join(path).symlink_metadata().unwrap_or_else(|e| panic!("{path}: {e}"));
        (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec())
    };
    // A context: nobody's, modes and times kept.
    let dst = tree(&[]);
    run(src.path(), dst.path(), &action("s", "/o/p")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(stat(&dst, "o/p/f"), (0o4751, 0, 0, 1000, 123_456_789));
    assert_eq!(stat(&dst, "o/p/d"), (0o1777, 0, 0, 1000, 123_456_789));
    assert_eq!(stat(&dst, "o/p/d/l"), (0o777, 0, 0, 1000, 123_456_789));
    assert_eq!((stat(&dst, "o").0, stat(&dst, "o/p").0), (0o755, 0o755));
    // A snapshot: owners kept.
    let dst = tree(&[]);
    let (from, to) = (crate::open_root(src.path()), crate::open_root(dst.path()));
    let (Ok(from), Ok(to)) = (from, to) else { panic!("no roots") };
    copy(&View::snapshot(from.as_fd()), to.as_fd(), &action("s", "/"), &Cancel::new())
        .unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(stat(&dst, "f"), (0o4751, 5, 6, 1000, 123_456_789));
    // Everything given.
    let dst = tree(&["there/ mode 700"]);
    let given = CopyAction {
        owner: Some(Owner { uid: 7, gid: 8 }),
        mode: ModeChange::parse("u=rwX,go=rX").ok(),
        timestamp_ns: Some(5_000_000_001),
        ..action("s", "/there/new/p")
    };
    run(src.path(), dst.path(), &given).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(stat(&dst, "there/new/p/f"), (0o755, 7, 8, 5, 1));
    assert_eq!(stat(&dst, "there/new/p/d"), (0o1755, 7, 8, 5, 1));
    assert_eq!(stat(&dst, "there/new/p/d/l"), (0o777, 7, 8, 5, 1));
    assert_eq!(stat(&dst, "there/new/p"), (0o755, 7, 8, 5, 1));
    assert_eq!(stat(&dst, "there/new"), (0o755, 7, 8, 5, 1));
    assert_eq!((stat(&dst, "there").0, stat(&dst, "there").1), (0o700, 0), "what was there keeps its owner");
    let octal = CopyAction { mode: Some(ModeChange::Bits(0o2640)), ..action("s/f", "/x/f") };
    run(src.path(), dst.path(), &octal).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(stat(&dst, "x/f").0, 0o2640);
}

#[test]
fn links_attributes_holes_and_special_files() {
    let src = tree(&["s/a=shared", "s/b<>s/a", "s/n/c<>s/a", "s/p|", "s/q<>s/p", "s/l->a", "s/m<>s/l"]);
    let path = |name: &str| src.path().join("s").join(name);
    set::xattr(&path("a"), "user.color", b"red");
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    set::xattr(&path("a"), "security.capability", &capability);
    set::node(&path("null"), FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    set::node(&path("deleted"), FileType::CharacterDevice, 0);
    let _socket = std::os::unix::net::UnixListener::bind(path("sock")).unwrap_or_else(|e| panic!("{e}"));
    let sparse = std::fs::File::create(path("sparse")).unwrap_or_else(|e| panic!("{e}"));
    use std::os::unix::fs::FileExt;
    sparse.write_all_at(b"middle", 5 << 20).unwrap_or_else(|e| panic!("{e}"));
    sparse.set_len(10 << 20).unwrap_or_else(|e| panic!("{e}"));

    let dst = tree(&[]);
    run(src.path(), dst.path(), &action("s", "/")).unwrap_or_else(|e| panic!("{e}"));
    let meta =
        |name: &str| dst.path().join(name).symlink_metadata().unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(meta("a").ino(), meta("b").ino());
    assert_eq!((meta("a").ino(), meta("a").nlink()), (meta("n/c").ino(), 3));
    assert_eq!((meta("p").ino(), meta("p").nlink()), (meta("q").ino(), 2));
    assert_eq!((meta("l").ino(), meta("l").nlink()), (meta("m").ino(), 2));
    let root = crate::open_root(dst.path()).unwrap_or_else(|e| panic!("{e}"));
    let attributes = at::xattrs(root.as_fd(), b"b").unwrap_or_else(|e| panic!("{e}"));
    assert!(attributes.contains(&(b"user.color".to_vec(), b"red".to_vec())));
    assert!(attributes.contains(&(b"security.capability".to_vec(), capability.to_vec())));
    assert_eq!(
        (meta("null").file_type().is_char_device(), meta("null").rdev()),
        (true, rustix::fs::makedev(1, 3))
    );
    assert!(!dst.path().join("deleted").exists(), "a mark of a deleted file is no file");
    assert!(meta("sock").file_type().is_socket() && meta("p").file_type().is_fifo());
    assert_eq!(meta("sparse").len(), 10 << 20);
    assert!(meta("sparse").blocks() * 512 < 1 << 20, "{} blocks", meta("sparse").blocks());
    assert_eq!(std::fs::read(dst.path().join("sparse")).ok(), std::fs::read(path("sparse")).ok());
}

#[test]
fn hidden_files_are_not_copied_and_not_found() {
    let src = tree(&["a/f=1", "a/secret=2", "b/x=3", "b/keep=4", "l->a/secret"]);
    let dst = tree(&[]);
    let (Ok(from), Ok(to)) = (crate::open_root(src.path()), crate::open_root(dst.path())) else {
        panic!("no roots")
    };
    let hide = Hide(Patterns::new(["**/secret", "b", "!b/keep"]).unwrap_or_else(|e| panic!("{e}")));
    let view = View::context(from.as_fd(), Some(&hide));
    let run = |src: &str, dst: &str| copy(&view, to.as_fd(), &action(src, dst), &Cancel::new());
    run("/", "/all/").unwrap_or_else(|e| panic!("{e}"));
    run("[ab]", "/each/").unwrap_or_else(|e| panic!("{e}"));
    assert!(matches!(run("a/secret", "/"), Err(Error::NotFound(_))));
    assert!(matches!(run("l", "/"), Err(Error::NotFound(_))));
    let want = ["a/", "a/f=1", "b/", "b/keep=4", "l->a/secret"];
    assert_eq!(paths(&dst.path().join("all")), want);
    assert_eq!(paths(&dst.path().join("each")), ["f=1", "keep=4"]);
}

#[test]
fn a_tree_without_end_is_an_error() {
    let src = tree(&["d/"]);
    let mut deep = src.path().join("d");
    for _ in 0..DEPTH_MAX + 10 {
        deep.push("d");
        std::fs::create_dir(&deep).unwrap_or_else(|e| panic!("{e}"));
    }
    let dst = tree(&[]);
    assert!(matches!(run(src.path(), dst.path(), &action("d", "/")), Err(Error::TooDeep(_))));
    // But it can be removed.
    let root = crate::open_root(src.path()).unwrap_or_else(|e| panic!("{e}"));
    at::remove_all(root.as_fd(), b"d").unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(paths(src.path()), [""; 0]);
}

/// Each path with all that a copy takes of it.
fn metadata(dir: &Path) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let all = paths(dir).into_iter().map(|line| {
        let path = line.split(['=', '>', '|']).next().unwrap_or_default().trim_end_matches('-').to_owned();
        let meta = dir.join(&path).symlink_metadata().unwrap_or_else(|e| panic!("{path}: {e}"));
        let root = crate::open_root(dir).unwrap_or_else(|e| panic!("{e}"));
        let xattrs = at::xattrs(root.as_fd(), path.trim_end_matches('/').as_bytes());
        let xattrs = xattrs.unwrap_or_else(|e| panic!("{path}: {e}"));
        format!(
            "{line} {:o} {}:{} {}.{} {xattrs:?}",
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.mtime(),
            meta.mtime_nsec()
        )
    });
    all.collect()
}

#[test]
fn many_files_come_with_their_directories_times_on_any_number_of_threads() {
    let lines: Vec<String> = (0..1000)
        .map(|n| format!("s/{}/{}/{n}={} mode {:o}", n / 100, n / 25, "x".repeat(n), 0o600 | (n % 0o200)))
        .collect();
    let src = tree(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    grow(src.path(), &["s/3/link->3", "s/4/16/twin<>s/1/4/100", "s/empty/ mode 2750", "s/9/hole=middle"]);
    let at = |path: &str| src.path().join(path);
    set::xattr(&at("s/5"), "user.of", b"a directory");
    set::xattr(&at("s/5/20/500"), "user.of", b"a file");
    let mut all = paths(src.path());
    all.reverse();
    for (number, line) in all.iter().enumerate() {
        let path = line.split(['=', '>', '|']).next().unwrap_or_default().trim_end_matches(['-', '/']);
        set::modified(&at(path), 1_000_000 + i64::try_from(number).unwrap_or_default());
    }
    let want = metadata(src.path());
    let few = Division { threads: 2, files: 7, bytes: 5000 };
    for division in [Division::default(), ALONE, SPREAD, few] {
        let dst = tree(&[]);
        run_divided(
            src.path(),
            dst.path(),
            &CopyAction { allow_wildcard: false, ..action("/", "/") },
            division,
        )
        .unwrap_or_else(|e| panic!("{division:?}: {e}"));
        assert_eq!(metadata(dst.path()), want, "{division:?}");
    }
}

#[test]
fn what_is_copied_is_settled_whatever_the_directory_gives_new_files() {
    use std::os::unix::fs::MetadataExt;
    let src = tree(&["s/f=1 mode 666", "s/d/g=2 mode 640", "s/x=3 mode 6777"]);
    let dst = tree(&["d/ mode 2777"]);
    set::owner(&dst.path().join("d"), 0, 77);
    set::mode(&dst.path().join("d"), 0o2777);
    run(src.path(), dst.path(), &action("s", "/d")).unwrap_or_else(|e| panic!("{e}"));
    for (path, mode) in [("d/f", 0o666), ("d/d/g", 0o640), ("d/d", 0o755), ("d/x", 0o6777)] {
        let meta = dst.path().join(path).symlink_metadata().unwrap_or_else(|e| panic!("{path}: {e}"));
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (mode, 0, 0), "{path}");
    }
}

#[test]
fn of_several_failures_the_first_in_order_is_told() {
    let lines: Vec<String> = (10..40).map(|n| format!("s/{n}/f={n}")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    for _ in 0..20 {
        let (src, dst) = (tree(&lines), tree(&["d/17/f/", "d/18/f/", "d/31/f/"]));
        let error = run(src.path(), dst.path(), &action("s", "/d")).expect_err("directories in the way");
        assert_eq!(error.to_string(), "cannot replace directory \"/d/17/f\" with a file");
    }
}

#[test]
fn threads_stop_when_told() {
    let lines: Vec<String> = (0..300).map(|n| format!("s/{n}=1")).collect();
    let (src, dst) = (tree(&lines.iter().map(String::as_str).collect::<Vec<_>>()), tree(&[]));
    let (Ok(from), Ok(to)) = (crate::open_root(src.path()), crate::open_root(dst.path())) else {
        panic!("no roots")
    };
    let (view, cancel) = (View::context(from.as_fd(), None), Cancel::new());
    cancel.cancel();
    let copied = copy_divided(&view, to.as_fd(), &action("s", "/"), &cancel, SPREAD);
    assert!(matches!(copied, Err(Error::Canceled)));
}

#[test]
fn attributes_are_not_looked_for_where_there_are_none() {
    let (src, dst) = (tree(&["s/f=1"]), tree(&[]));
    set::xattr(&src.path().join("s/f"), "user.of", b"a file");
    let (Ok(from), Ok(to)) = (crate::open_root(src.path()), crate::open_root(dst.path())) else {
        panic!("no roots")
    };
    // It is said, and not true: so it shows that nobody looks.
    let bare = View::context(from.as_fd(), None).without_attributes();
    copy(&bare, to.as_fd(), &action("s", "/"), &Cancel::new()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(at::xattrs(to.as_fd(), b"f").ok(), Some(Vec::new()));
    let sum = |view: &View<'_>| {
        checksum(view, &Selector::of(&action("s", "/")), &ChecksumOptions::default(), &Cancel::new())
            .unwrap_or_else(|e| panic!("{e}"))
    };
    let (out, whole) = (View::context(to.as_fd(), None), View::context(from.as_fd(), None));
    let out = checksum(
        &out,
        &Selector { path: "f".to_owned(), ..Selector::default() },
        &ChecksumOptions::default(),
        &Cancel::new(),
    );
    let of = |view: &View<'_>| {
        let selector = Selector { path: "s/f".to_owned(), ..Selector::default() };
        checksum(view, &selector, &ChecksumOptions::default(), &Cancel::new()).ok()
    };
    assert_eq!(of(&bare), out.ok());
    assert_ne!(sum(&bare), sum(&whole));
}

/// Trees of a few names, so that links hit and miss.
fn lines() -> impl Strategy<Value = Vec<String>> {
    let path = "[ab](/[abc]){0,2}";
    let line = prop_oneof![
        (path, "[xy]{0,3}").prop_map(|(path, content)| format!("{path}={content}")),
        (path, "/?(\\.\\./){0,4}[abc](/[abc])?").prop_map(|(path, target)| format!("{path}->{target}")),
        path.prop_map(|path| format!("{path}/")),
        path.prop_map(|path| format!("{path}|")),
    ];
    prop::collection::vec(line, 0..8)
}

/// Makes what of the lines can be made (some want a file as a directory), beside a canary.
fn plant(lines: &[String]) -> TempDir {
    let outer = tree(&["canary/a=0", "canary/b/c=0"]);
    let root = outer.path().join("root");
    std::fs::create_dir(&root).unwrap_or_else(|e| panic!("{e}"));
    for line in lines {
        let path = line.split("->").next().and_then(|line| line.split(['=', '|']).next()).unwrap_or_default();
        let path = path.trim_end_matches('/');
        let free = |path: &str| root.join(path).symlink_metadata().is_err();
        let directory = |path: &str| root.join(path).symlink_metadata().is_ok_and(|meta| meta.is_dir());
        if free(path) && path.match_indices('/').all(|(at, _)| free(&path[..at]) || directory(&path[..at])) {
            grow(&root, &[line]);
        }
    }
    outer
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_copy_has_the_checksum_of_its_source(lines in lines()) {
        let (src, dst) = (plant(&lines), tree(&[]));
        run(&src.path().join("root"), dst.path(), &action("/", "/")).unwrap_or_else(|e| panic!("{e}"));
        let sum = |dir: &Path| {
            let root = crate::open_root(dir).unwrap_or_else(|e| panic!("{e}"));
            let selector = Selector::of(&action("/", "/"));
            checksum(&View::context(root.as_fd(), None), &selector, &ChecksumOptions::default(), &Cancel::new())
                .unwrap_or_else(|e| panic!("{e}"))
        };
        prop_assert_eq!(sum(&src.path().join("root")), sum(dst.path()));
        prop_assert_eq!(describe(&src.path().join("root")), describe(dst.path()));
    }

    /// A checksum that stays the same must mean a copy that stays the same.
    #[test]
    fn equal_checksums_mean_equal_copies(a in lines(), b in lines(), src in "[ab*]{0,2}(/[ab*])?") {
        let (a, b) = (plant(&a), plant(&b));
        let take = |dir: &TempDir| {
            let root = crate::open_root(&dir.path().join("root")).unwrap_or_else(|e| panic!("{e}"));
            let view = View::context(root.as_fd(), None);
            let action = action(&src, "/out/");
            let sum = checksum(&view, &Selector::of(&action), &ChecksumOptions::default(), &Cancel::new()).ok();
            let out = tree(&[]);
            let copied = run(&dir.path().join("root"), out.path(), &action).is_ok();
            (sum, copied.then(|| describe(out.path())))
        };
        let ((sum_a, copy_a), (sum_b, copy_b)) = (take(&a), take(&b));
        // A copy can fail where a checksum does not: two matches that get in each other's way.
        prop_assert!(sum_a.is_some() || copy_a.is_none());
        if let (Some(copy_a), Some(copy_b)) = (copy_a, copy_b) && sum_a == sum_b {
            prop_assert_eq!(copy_a, copy_b);
        }
    }

    #[test]
    fn nothing_leaves_its_root(a in lines(), b in lines(), src in "(\\.\\./)?[abc*](/[abc.]{1,2}){0,2}", dst in "(\\.\\./)?[abc](/[abc.]{1,2}){0,2}/?") {
        let (from, to) = (plant(&a), plant(&b));
        let canary = |dir: &TempDir| describe(&dir.path().join("canary"));
        let before = (canary(&from), canary(&to));
        let replace = CopyAction { always_replace_existing_dest_paths: true, ..action(&src, &dst) };
        for action in [action(&src, &dst), replace] {
            // Most of these fail; all of them must stay inside.
            let _any = run(&from.path().join("root"), &to.path().join("root"), &action);
        }
        let root = crate::open_root(&to.path().join("root")).unwrap_or_else(|e| panic!("{e}"));
        let path = dst.clone();
        let _any = crate::mkdir(root.as_fd(), &crate::MkdirAction { path: path.clone(), make_parents: true, ..Default::default() });
        let _any = crate::mkfile(root.as_fd(), &crate::MkfileAction { path: path.clone(), data: b"evil".to_vec(), ..Default::default() });
        let _any = crate::symlink(root.as_fd(), &crate::SymlinkAction { path: path.clone(), target: "x".to_owned(), ..Default::default() });
        let _any = crate::rm(root.as_fd(), &crate::RmAction { path, allow_not_found: true, ..Default::default() });
        prop_assert_eq!((canary(&from), canary(&to)), before);
        let names = |dir: &TempDir| std::fs::read_dir(dir.path()).map(Iterator::count).unwrap_or(0);
        prop_assert_eq!((names(&from), names(&to)), (2, 2));
    }
}

/// Said to a copy of this program that may have few files open.
const FEW_FILES: &str = "LAPSTRAKE_TEST_FEW_FILES";

#[test]
fn many_directories_are_not_all_open_at_once() {
    if std::env::var_os(FEW_FILES).is_none() {
        let name = "copy::tests::many_directories_are_not_all_open_at_once";
        let mut few = std::process::Command::new("sh");
        few.args(["-c", "ulimit -n 400; exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
        let ended = few.args([name, "--exact"]).env(FEW_FILES, "1").output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let lines: Vec<String> = (0..3000).map(|n| format!("s/{n}/file=x")).collect();
    let src = tree(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    for division in [Division { threads: 4, ..Division::default() }, ALONE] {
        let dst = tree(&[]);
        run_divided(src.path(), dst.path(), &action("/", "/"), division).unwrap();
        assert_eq!(paths(dst.path()), paths(src.path()), "{division:?}");
    }
}
