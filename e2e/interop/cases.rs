//! The table: what is built, with what, and what is expected of it.
//!
//! A project is a folder of `builder-pod/dockerfile/tests/projects`; its `options` (args, labels, target, platform) are
//! those that the frontend's tests use.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::Result;

/// A case.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// Its name: that of the project's folder.
    pub(crate) name: &'static str,
    /// Base images that it needs, by what they are called in `e2e/cluster`.
    pub(crate) bases: &'static [&'static str],
    /// What it is given beside its folder and `options`.
    pub(crate) given: &'static [Given],
    /// Differences that are known, by what they begin with, and why they are.
    pub(crate) known: &'static [(&'static str, &'static str)],
    /// Makes what does not lie in the repository, in the copy of the folder.
    pub(crate) prepare: Option<fn(&Path) -> Result<()>>,
}

/// What a build is given.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Given {
    /// A secret by id, with its text.
    Secret(&'static str, &'static str),
    /// A named context: a folder of the project.
    Folder(&'static str, &'static str),
    /// A named context: an image of the registry.
    Image(&'static str, &'static str),
    /// Files no younger than `SOURCE_DATE_EPOCH`, which is how it always is here, and what buildkitd must be told.
    Rewritten,
}

/// Names that Dockerfiles call the base images by: what they are, and as which of `e2e/cluster`'s.
pub(crate) const IMAGES: [(&str, &[&str], &str); 7] = [
    ("busybox", &["latest", "1", "1.36", "stable"], "busybox"),
    ("debian", &["bookworm", "bookworm-slim"], "debian"),
    ("golang", &["1-bookworm", "1.24-bookworm"], "golang"),
    ("node", &["22-bookworm-slim", "lts-slim"], "node"),
    ("python", &["3.12-slim", "3.12-slim-bookworm"], "python"),
    ("rust", &["1-slim-bookworm"], "rust"),
    // Debian's compiler is in that one too.
    ("gcc", &["14-bookworm"], "rust"),
];

const fn case(name: &'static str, bases: &'static [&'static str]) -> Case {
    Case { name, bases, given: &[], known: &[], prepare: None }
}

const fn given(name: &'static str, bases: &'static [&'static str], given: &'static [Given]) -> Case {
    Case { name, bases, given, known: &[], prepare: None }
}

/// A copy of the context's root has its time here, and that of its transfer there.
const ROOT: &str = "the root of a context";
/// They have the time of the folder that they are a copy of here, and that of the copy there.
const PARENTS: &str = "folders on the way to what a pattern of --parents takes";
/// There a linked layer brings the folders above its files anew. A plain copy into them leaves them as they are.
const LINKED: &str = "folders above what --link copies";

/// Those that take longest first, so that the other builder does not wait for the last.
pub(crate) const CASES: [Case; 29] = [
    case("rust-workspace", &["rust", "debian"]),
    case("go-service", &["golang"]),
    case("go-cross", &["golang"]),
    case("c-static", &["rust"]),
    case("python-flask", &["python"]),
    case("python-wheels", &["python"]),
    case("node-express", &["node"]),
    case("npm-workspace", &["node", "busybox"]),
    case("debian-tools", &["debian"]),
    case("apt-cache-mounts", &["debian"]),
    case("database-service", &["debian"]),
    case("static-site", &["busybox"]),
    case("heredoc-config", &["busybox"]),
    Case { known: &[("srv: mode", LINKED)], ..case("copy-link", &["busybox"]) },
    Case {
        known: &[("app/assets: time", PARENTS), ("app/assets/icons", PARENTS)],
        ..case("monorepo", &["busybox"])
    },
    given(
        "private-registry",
        &["busybox"],
        &[
            Given::Secret("npmrc", "//registry.example.com/:_authToken=abc\n"),
            Given::Secret("token", "0123456789abcdef"),
        ],
    ),
    Case { known: &[("usr/src/app: time", ROOT)], ..case("onbuild-app", &["busybox"]) },
    case("image-metadata", &["busybox"]),
    Case { known: &[("srv/app: time", ROOT)], ..case("legacy-style", &["busybox"]) },
    case("escape-backtick", &["busybox"]),
    Case { prepare: Some(archives), ..case("archives", &["busybox"]) },
    case("multi-target", &["busybox"]),
    case("args-matrix", &["busybox"]),
    case("numbered-stages", &["busybox"]),
    case("permissions", &["busybox"]),
    case("filesystem-changes", &["busybox"]),
    Case { known: &[("app/all: time", ROOT)], ..case("ignore-and-wildcards", &["busybox"]) },
    given(
        "named-context",
        &["busybox"],
        &[Given::Folder("config", "config"), Given::Image("platform-base", "library/busybox:1")],
    ),
    given("reproducible", &["busybox"], &[Given::Rewritten]),
];

/// Archives of every kind: links, owners, modes, times, a file in a folder that has no entry.
fn archives(dir: &Path) -> Result<()> {
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("bin"))?;
    fs::write(tree.join("bin/tool"), "#!/bin/sh\necho tool\n")?;
    fs::write(tree.join("README"), "Read me.\n")?;
    let script = "
        set -e
        chmod 4755 tree/bin/tool; ln -s bin/tool tree/run; ln tree/README tree/bin/README
        make() { tar --sort=name --mtime=@1600000000 --numeric-owner --owner=3 --group=4 -C tree \"$@\" .; }
        make -cf plain.tar; make -czf release.tar.gz; make -cJf release.tar.xz
        tar -cjf release.tar.bz2 --mtime=@1600000000 -C tree bin/tool
        tar -cf owned.tar --owner=1000 --group=1000 --mtime=@1500000000 -C tree README bin
        rm -r tree";
    let status = Command::new("sh").args(["-c", script]).current_dir(dir).status()?;
    status
        .success()
        .then_some(())
        .ok_or_else(|| "archives can't be made: apt-get install xz-utils bzip2".into())
}
