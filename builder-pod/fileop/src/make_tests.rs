use std::os::unix::fs::MetadataExt;

use tempfile::TempDir;

use super::*;
use crate::testing::{describe, set, tree};

fn root(dir: &TempDir) -> std::os::fd::OwnedFd {
    crate::open_root(dir.path()).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn mkdir_makes_what_is_missing_and_leaves_what_is_there() {
    let dir = tree(&["there/ mode 700", "l->real", "real/", "file=1"]);
    let run = |path: &str, make_parents| {
        let owner = Some(Owner { uid: 3, gid: 4 });
        let action =
            MkdirAction { path: path.to_owned(), mode: 0o2750, make_parents, owner, timestamp_ns: Some(9) };
        mkdir(root(&dir).as_fd(), &action).map_err(|e| e.to_string())
    };
    assert_eq!(run("/there", false), Ok(()));
    assert_eq!(run("/there/x/y", true), Ok(()));
    assert_eq!(run("l/z", false), Ok(()));
    assert_eq!(run("/../../up", false), Ok(()));
    assert_eq!(run("/", true), Ok(()));
    assert_eq!(run("/file", false), Ok(()), "as mkdir in a file operation goes");
    assert_eq!(run("a/b", false), Err("mkdir /a/b: no such file or directory".to_owned()));
    assert_eq!(run("/file/x", true), Err("make directory /file: not a directory".to_owned()));
    let made = dir.path().join("there/x").metadata().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o750, 3, 4));
    let want = ["file=1 mode 644", "l->real", "real/ mode 755", "real/z/ mode 750", "there/ mode 700"];
    assert_eq!(describe(dir.path())[..5], want);
}

#[test]
fn mkfile_writes_through_links_inside_the_root() {
    let dir = tree(&[
        "old=longer content mode 600",
        "l->/d/f",
        "d/",
        "out->../../../../tmp/lapstrake-escaped",
        "p|",
    ]);
    let run = |path: &str| {
        let action =
            MkfileAction { path: path.to_owned(), mode: 0o755, data: b"new".to_vec(), ..Default::default() };
        mkfile(root(&dir).as_fd(), &action).map_err(|e| e.to_string())
    };
    assert_eq!((run("old"), run("l"), run("/n")), (Ok(()), Ok(()), Ok(())));
    assert_eq!(run("d"), Err("cannot replace directory \"/d\" with a file".to_owned()));
    assert_eq!(run("/"), Err("cannot write a file over the root directory".to_owned()));
    assert_eq!(run("x/y"), Err("open /x/y: no such file or directory".to_owned()));
    assert_eq!(run("p"), Err("write /p: invalid argument".to_owned()));
    assert!(run("out").is_err(), "there is no /tmp in the root");
    assert!(!std::path::Path::new("/tmp/lapstrake-escaped").exists());
    let want = ["d/ mode 755", "d/f=new mode 755", "l->/d/f", "n=new mode 755", "old=new mode 600"];
    assert_eq!(describe(dir.path())[..5], want);
}

#[test]
fn rm_removes_links_and_not_what_they_point_to() {
    let dir =
        tree(&["keep/f=1", "l->keep", "t/a/b/c=1", "t/d->/keep", "x1=1", "x2=2", "y/x3=3", "gone->nowhere"]);
    let run = |path: &str, allow_not_found, allow_wildcard| {
        let action = RmAction { path: path.to_owned(), allow_not_found, allow_wildcard };
        rm(root(&dir).as_fd(), &action).map_err(|e| e.to_string())
    };
    assert_eq!(run("/l", false, false), Ok(()));
    assert_eq!(run("gone", false, false), Ok(()));
    assert_eq!(run("t", false, false), Ok(()));
    assert_eq!(run("x*", false, true), Ok(()));
    assert_eq!(run("*/x3", false, true), Ok(()));
    assert_eq!(run("z*", false, true), Ok(()));
    assert_eq!(run("nope", true, false), Ok(()));
    assert_eq!(run("nope", false, false), Err("stat /nope: no such file or directory".to_owned()));
    assert_eq!(run("/", true, false), Err("cannot remove the root directory".to_owned()));
    assert_eq!(run("/..", true, false), Err("cannot remove the root directory".to_owned()));
    assert_eq!(describe(dir.path()), ["keep/ mode 755", "keep/f=1 mode 644", "y/ mode 755"]);
}

#[test]
fn symlinks_say_what_they_are_told() {
    let dir = tree(&["d/", "taken=1"]);
    let run = |path: &str| {
        let action = SymlinkAction {
            target: "../any where".to_owned(),
            path: path.to_owned(),
            owner: Some(Owner { uid: 1, gid: 2 }),
            timestamp_ns: Some(7_000_000_000),
        };
        symlink(root(&dir).as_fd(), &action).map_err(|e| e.to_string())
    };
    assert_eq!(run("d/l"), Ok(()));
    assert_eq!(run("taken"), Err("make symlink /taken: file exists".to_owned()));
    let meta = dir.path().join("d/l").symlink_metadata().unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((meta.uid(), meta.gid(), meta.mtime()), (1, 2, 7));
    assert_eq!(describe(dir.path())[1], "d/l->../any where");
}

#[test]
fn owners_are_looked_up_in_the_tree() {
    let passwd = "root:x:0:0::/:/bin/sh\napp:x:1000:1001::/:/bin/sh\nbroken:x:y:z\n";
    let dir = tree(&[&format!("etc/passwd={passwd}"), "etc/group=staff:x:50:\napp:x:1001:\n"]);
    let look = |text: &str| {
        crate::lookup_user(root(&dir).as_fd(), text).map(|o| (o.uid, o.gid)).map_err(|e| e.to_string())
    };
    assert_eq!(look("app"), Ok((1000, 1001)));
    assert_eq!(look("app:staff"), Ok((1000, 50)));
    assert_eq!(look("app:7"), Ok((1000, 7)));
    assert_eq!(look("5"), Ok((5, 5)));
    assert_eq!(look("5:6"), Ok((5, 6)));
    assert_eq!(look("5:staff"), Ok((5, 50)));
    assert_eq!(look("root:root"), Ok((0, 0)));
    assert_eq!(look("nobody"), Err("user \"nobody\" is not in /etc/passwd".to_owned()));
    assert_eq!(look("app:nope"), Err("group \"nope\" is not in /etc/group".to_owned()));
    assert!(look("broken").is_err() && look("").is_err());
    // Links stay inside, and account files may be missing.
    let dir = tree(&["etc/passwd->../../../../../etc/passwd"]);
    assert!(crate::lookup_user(root(&dir).as_fd(), "daemon").is_err());
    set::mode(dir.path(), 0o755);
}
