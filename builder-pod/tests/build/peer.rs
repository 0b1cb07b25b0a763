//! Caches between us and the real buildkitd, both ways.
//!
//! buildkitd, buildctl and runc are Go tools whose versions are pinned (`bench/peers/go.mod`, `e2e/cluster`): they are
//! compiled when they are not there. What is missing fails the tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use lapstrake_testkit::peer;
use serde_json::Value;

use crate::lab::{Fate, Lab, tool};

/// Copies and commands of every kind that has a name of its own in a cache.
const ALL: &str = "\
FROM @base AS build
WORKDIR /src
ENV GREETING=\"hello <world> & more\"
COPY main /src/main
COPY lib lib
COPY lib/* /flat/
COPY --chmod=750 main /mode
COPY --chown=1:2 main /owned
COPY --exclude=*.md docs /docs
COPY <<EOT /heredoc
$GREETING \"quoted\"
EOT
ADD pack.tar /unpacked/
RUN cat lib/a lib/b main >/src/app && ln -s app /src/link
RUN --mount=type=bind,source=lib,target=/mnt cat /mnt/a >/from-mount
RUN --mount=type=tmpfs,target=/scratch touch /scratch/x
FROM @base AS tools
RUN mkdir -p /opt/tool/bin && echo tool >/opt/tool/bin/run
FROM @base
COPY --from=build /src/app /app
COPY --from=build /src/link /link
COPY --from=tools /opt /opt
COPY --link --chown=3:4 lib /linked/
COPY --link --from=tools /opt /linked/opt
RUN --mount=from=tools,source=/opt/tool,target=/t cat /t/bin/run >/used
RUN --mount=from=build,target=/all cat /all/heredoc >/read
USER 1000
RUN id -u >/tmp/id
";

fn context(lab: &Lab) -> PathBuf {
    let files = [
        ("Dockerfile", ALL),
        ("main", "main\n"),
        ("lib/a", "a\n"),
        ("lib/b", "b\n"),
        ("lib/deep/c", "c\n"),
        ("docs/one.md", "1\n"),
        ("docs/two.txt", "2\n"),
        ("docs/sub/three.md", "3\n"),
        ("docs/sub/four.txt", "4\n"),
    ];
    let dir = lab.context("all", &files);
    std::os::unix::fs::symlink("a", dir.join("lib/link")).unwrap();
    let (out, from) = (dir.join("pack.tar"), dir.join("lib"));
    tool("tar", &["-cf", out.to_str().unwrap(), "-C", from.to_str().unwrap(), "a", "deep"]);
    dir
}

/// A running buildkitd with a state of its own.
struct Peer {
    peer: peer::Peer,
    _state: lapstrake_testkit::TempDir,
}

impl Peer {
    fn start(lab: &Lab) -> Self {
        let state = crate::lab::disk_dir();
        let registry = format!("[registry.\"{}\"]\nhttp = true\n", lab.registry.host());
        Self { peer: peer::Peer::start(state.path(), &registry).unwrap(), _state: state }
    }

    /// Builds; what it printed.
    #[track_caller]
    fn build(&self, context: &Path, args: &[&str]) -> String {
        let out = self.peer.run(context, args).unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{text}");
        text
    }
}

/// Instructions that buildkitd ran, by its plain progress.
fn ran_by_peer(text: &str) -> Vec<String> {
    let mut names: Vec<(String, String)> = Vec::new();
    let mut cached = BTreeSet::new();
    for line in text.lines() {
        let Some((number, rest)) = line.split_once(' ') else { continue };
        // A hit whose layers are fetched for an output ends as DONE, with what it unpacked before that.
        if rest == "CACHED" || rest.starts_with("extracting sha256:") {
            cached.insert(number.to_owned());
        } else if rest.starts_with('[') && !rest.starts_with("[internal]") && !rest.contains("] FROM ") {
            names.push((number.to_owned(), rest.to_owned()));
        }
    }
    names.dedup();
    names.into_iter().filter(|(number, _)| !cached.contains(number)).map(|(_, name)| name).collect()
}

/// Names of all records in the cache under a tag.
fn records(lab: &Lab, repository: &str, tag: &str) -> BTreeSet<String> {
    let (_, bytes, _) = lab.registry.storage().manifest(repository, tag).expect("the cache was pushed");
    let manifest: Value = serde_json::from_slice(&bytes).unwrap();
    let digest = manifest["config"]["digest"].as_str().unwrap().parse().unwrap();
    let config = fs::read(lab.registry.storage().blob_path(&digest)).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let records = config["records"].as_array().unwrap().iter();
    records.map(|record| record["digest"].as_str().unwrap().to_owned()).collect()
}

/// One buildkitd at a time: it needs much of the machine.
fn turn() -> std::sync::MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[test]
fn buildkitd_and_we_call_the_same_steps_the_same() {
    let _turn = turn();
    let lab = Lab::new();
    let (dir, peer) = (context(&lab), Peer::start(&lab));
    let cache = |who: &str| format!("type=registry,ref={},mode=max", lab.name(&format!("cache:{who}")));
    let text = peer.build(&dir, &["--export-cache", &cache("theirs")]);
    lab.build(&dir).args(["--cache-to", &cache("ours")]).ok();
    let (ours, theirs) = (records(&lab, "cache", "ours"), records(&lab, "cache", "theirs"));
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>();
    assert_eq!((only(&theirs, &ours), only(&ours, &theirs)), (vec![], vec![]), "{text}");
}

#[test]
fn what_buildkitd_exported_we_import() {
    let _turn = turn();
    let lab = Lab::new();
    let (dir, peer) = (context(&lab), Peer::start(&lab));
    let all = lab.build_in("count", &dir).ok().ran().len();
    for (tag, form) in [("manifest", "image-manifest=true"), ("index", "image-manifest=false")] {
        let cache = lab.name(&format!("cache:{tag}"));
        peer.build(&dir, &["--export-cache", &format!("type=registry,ref={cache},mode=max,{form}")]);
        let ours = lab.build_in(tag, &dir).args(["--cache-from", &cache]).ok();
        assert!(ours.ran().is_empty(), "{} of {all} ran: {}", ours.ran().len(), ours.stderr());
    }
    let layout = lab.path("layout");
    peer.build(&dir, &["--export-cache", &format!("type=local,dest={},mode=max", layout.display())]);
    let out = lab.path("files");
    let from = format!("type=local,src={}", layout.display());
    let ours = lab.build_in("local", &dir).args(["--cache-from", &from, "-o", out.to_str().unwrap()]).ok();
    assert!(ours.ran().is_empty(), "{}", ours.stderr());
    assert_eq!(fs::read_to_string(out.join("tmp/id")).unwrap(), "1000\n");
    let image = lab.name("inline:theirs");
    let output = format!("type=image,name={image},push=true");
    peer.build(&dir, &["--export-cache", "type=inline", "--output", &output]);
    let ours = lab.build_in("inline", &dir).args(["--cache-from", &image]).ok();
    assert_eq!(ours.fate("RUN id -u"), Fate::Cached, "{}", ours.stderr());
}

#[test]
fn what_we_exported_buildkitd_imports() {
    let _turn = turn();
    let lab = Lab::new();
    let dir = context(&lab);
    let forms = [
        ("manifest", "image-manifest=true"),
        ("index", "image-manifest=false"),
        ("docker", "oci-mediatypes=false"),
    ];
    for (tag, form) in forms {
        let cache = format!("type=registry,ref={},mode=max,{form}", lab.name(&format!("cache:{tag}")));
        lab.build(&dir).args(["--cache-to", &cache]).ok();
        let peer = Peer::start(&lab);
        let from = format!("type=registry,ref={}", lab.name(&format!("cache:{tag}")));
        let out = lab.path(tag);
        let output = format!("type=local,dest={}", out.display());
        let text = peer.build(&dir, &["--import-cache", &from, "--output", &output]);
        assert_eq!(ran_by_peer(&text), Vec::<String>::new(), "{text}");
        assert_eq!(fs::read_to_string(out.join("tmp/id")).unwrap(), "1000\n");
    }
    let layout = lab.path("layout");
    lab.build(&dir).args(["--cache-to", &format!("type=local,dest={},mode=max", layout.display())]).ok();
    let peer = Peer::start(&lab);
    let text = peer.build(&dir, &["--import-cache", &format!("type=local,src={}", layout.display())]);
    assert_eq!(ran_by_peer(&text), Vec::<String>::new(), "{text}");
    drop(peer);
    let image = lab.name("inline:ours");
    lab.build(&dir).args(["--push", "-t", &image, "--cache-to", "type=inline"]).ok();
    let peer = Peer::start(&lab);
    let text = peer.build(&dir, &["--import-cache", &format!("type=registry,ref={image}")]);
    let ran = ran_by_peer(&text);
    assert!(!ran.iter().any(|step| step.contains("RUN id -u")), "{ran:?}\n{text}");
}
