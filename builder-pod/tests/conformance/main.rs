//! What the builder exports and pushes, in the eyes of programs that are not ours: the OCI schemas and
//! go-containerregistry (`e2e/conformance`), skopeo, GNU tar.
//!
//! Needs root, Go, skopeo, GNU tar and a static busybox; says so where one is missing.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up has failed")]

mod original;
mod place;
mod tree;
mod unpack;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use lapstrake_oci::Digest;
use serde_json::Value;

use crate::place::{Place, run, tar};
use crate::tree::{assert_same, below, tree};
use crate::unpack::{docker_layers, layers, unpack};

/// A layer of its own for each way in which a file can come, change and go.
const STEPS: &str = r#"
ADD tree.tar /tree/
RUN mkdir -p /w/gone /w/opaque/old /w/emptied /w/becomes-file/x /w/becomes-link /w/kept /w/again /w/moved/sub && cd /w && \
    echo a > gone/a && echo b > gone/b && echo c > removed && echo o > opaque/old/o && echo e > emptied/e && \
    echo f > becomes-file/x/f && echo d > becomes-directory && echo t > target && ln -s target kept-link && \
    ln -s kept link-becomes-directory && ln -s target link-becomes-file && echo 1 > kept/edited && \
    echo 2 > kept/beside && echo g > again/g && echo m > moved/sub/m && echo h > hard-1 && ln hard-1 hard-2 && \
    mkdir deep && ln hard-1 deep/hard-3 && echo p > set-user && chown 1234:5678 set-user && chmod 6755 set-user && \
    mkfifo pipe && mkfifo two-1 && ln two-1 two-2 && touch -d @1000 kept/edited kept/beside target && touch -d @2000 kept again deep gone
RUN cd /w && rm -r gone/a removed emptied/e && rm -r opaque && mkdir opaque && echo n > opaque/new && \
    rm -r becomes-file && echo f > becomes-file && rm becomes-directory && mkdir becomes-directory && \
    echo i > becomes-directory/inside && rm -r becomes-link && ln -s target becomes-link && \
    rm link-becomes-directory && mkdir link-becomes-directory && echo l > link-becomes-directory/l && \
    rm link-becomes-file && echo l > link-becomes-file && rm again/g && echo G > again/g && mv moved moved-on && \
    rm -r /tree/opaque-tree && mkdir -p /tree/opaque-tree/same && echo n > /tree/opaque-tree/same/new && rm /tree/caps-too
RUN cd /w && echo 11 >> kept/edited && touch -d @3000 kept/edited && chmod 700 opaque && chown 7:8 deep && \
    echo x >> hard-2 && chown -h 54321:12345 kept-link && touch -h -d @4000 kept-link && chmod 2770 gone && \
    rm -r becomes-directory && rm pipe && mkfifo -m 604 pipe
RUN cd /w && mkdir emptied-again && rm -r opaque && echo back > opaque
WORKDIR /made/by/workdir
COPY --chown=33:44 --chmod=640 plain /made/plain
"#;

/// Names that must not be in the image: removed in a later step, or mounted for a step only.
const ABSENT: [&str; 9] = [
    "w/gone/a",
    "w/removed",
    "w/emptied/e",
    "w/moved",
    "w/becomes-directory",
    "tree/opaque-tree/old",
    "tree/caps-too",
    "etc/resolv.conf",
    "etc/hosts",
];

#[test]
fn an_image_of_a_tricky_tree_is_the_same_to_everybody() {
    let place = Place::new("FROM {base}\n", STEPS, &[]);
    let out = |name: &str| place.dir.path().join(name);
    let path = |name: &str| out(name).display().to_string();
    let digest = place.build(
        &[],
        "state",
        &[
            format!("type=local,dest={}", path("local")),
            format!("type=docker,dest={}", path("docker.tar")),
            format!("type=oci,tar=false,compression=zstd,dest={}", path("zstd")),
            format!("type=oci,tar=false,dest={}", path("layout")),
            format!("type=oci,dest={}", path("oci.tar")),
            "type=registry".to_owned(),
        ],
    );

    the_schemas_hold(&place, &digest);
    skopeo_finds_the_same_digests(&place, &digest);

    let local = tree(&out("local"));
    for absent in ABSENT {
        assert!(!local.contains_key(OsStr::new(absent)), "{absent} is in the image");
    }
    for (name, layers) in [("tar.gz", layers(&out("layout"))), ("tar.zst", layers(&out("zstd")))] {
        let unpacked = out(name);
        unpack(&layers, &unpacked);
        assert_same(
            &format!("the file system as written, and as unpacked from {name}"),
            &local,
            &tree(&unpacked),
        );
    }
    let unpacked = out("docker");
    unpack(&docker_layers(&out("docker.tar"), &out("docker-archive")), &unpacked);
    assert_same(
        "the file system as written, and as unpacked from the docker archive",
        &local,
        &tree(&unpacked),
    );

    // Of what was added, the steps removed a little.
    let mut added = tree(&place.original);
    added.retain(|name, _| !name.as_bytes().starts_with(b"opaque-tree") && name != "caps-too");
    let mut got = below(&local, "tree/");
    got.retain(|name, _| !name.as_bytes().starts_with(b"opaque-tree"));
    assert_same("the tree as packed by tar, and as added", &added, &got);
}

#[test]
fn what_is_copied_from_a_stage_keeps_all_that_it_has() {
    let stages = "FROM {base} AS made\nADD tree.tar /tree/\nFROM scratch\n";
    let place = Place::new(stages, "COPY --from=made /tree /tree\n", &[]);
    let out = place.dir.path().join("local");
    place.build(&[], "state", &[format!("type=local,dest={}", out.display())]);
    assert_same("the tree in its stage, and as copied", &tree(&place.original), &below(&tree(&out), "tree/"));
}

#[test]
fn the_same_build_has_the_same_digest_on_one_core_and_on_all() {
    let place = Place::new("FROM {base}\n", STEPS, &[]);
    let all = blobs(&place, "all", &EPOCH);
    let one = blobs(&place, "one", &[&EPOCH[..], &["taskset", "-c", "0"]].concat());
    assert_eq!(all, one);
}

#[test]
fn the_same_build_has_the_same_digest_in_a_user_namespace() {
    // Devices cannot be made there, and an owner beyond the namespace's ids is nobody's.
    let place = Place::new("FROM {base}\n", STEPS, &["./char*", "./block", "./empty"]);
    let as_root = blobs(&place, "root", &EPOCH);

    // It lasts until its standard input ends. Its ids are others outside, and not those of root.
    let mut holder = Command::new("unshare")
        .args(["--user", "sh", "-c", "echo ready; read end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("apt-get install util-linux");
    let mut ready = String::new();
    BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut ready).unwrap();
    for map in ["uid_map", "gid_map"] {
        fs::write(format!("/proc/{}/{map}", holder.id()), format!("0 {FIRST_ID} 65536")).unwrap();
    }
    fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(place.dir.path().join("user")).unwrap();
    chown(place.dir.path().join("user"), Some(FIRST_ID), Some(FIRST_ID)).unwrap();
    let user = format!("--user=/proc/{}/ns/user", holder.id());
    let inside = ["nsenter", &user, "--setuid=0", "--setgid=0", "unshare", "--mount"];
    let as_user = blobs(&place, "user/n", &[&EPOCH[..], &inside].concat());
    drop(holder.stdin.take());
    holder.wait().unwrap();
    assert_eq!(as_root, as_user);
}

/// Makes the times of steps the same.
const EPOCH: [&str; 2] = ["env", "SOURCE_DATE_EPOCH=1700000000"];

/// First of the ids outside that root and the others of a user namespace stand for.
const FIRST_ID: u32 = 200_000;

/// Builds with an empty state; the image's digest, and all blobs of it with gzip and with zstd.
fn blobs(place: &Place, name: &str, before: &[&str]) -> (String, BTreeSet<OsString>, BTreeSet<OsString>) {
    let layout = |kind: &str| place.dir.path().join(format!("{name}-{kind}"));
    let output =
        |kind: &str| format!("type=oci,tar=false,compression={kind},dest={}", layout(kind).display());
    let digest = place.build(before, name, &[output("zstd"), output("gzip")]);
    let names = |kind: &str| -> BTreeSet<OsString> {
        fs::read_dir(layout(kind).join("blobs/sha256")).unwrap().map(|e| e.unwrap().file_name()).collect()
    };
    assert!(names("gzip").contains(OsStr::new(&digest["sha256:".len()..])), "{digest} is there");
    (digest, names("gzip"), names("zstd"))
}

fn the_schemas_hold(place: &Place, digest: &str) {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("oci-validate");
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../e2e/conformance");
    run(Command::new("go").args(["build", "-o"]).arg(&program).arg(".").current_dir(module));
    let archive = place.dir.path().join("oci");
    fs::create_dir(&archive).unwrap();
    run(tar().arg("-xf").arg(place.dir.path().join("oci.tar")).arg("-C").arg(&archive));
    for layout in [place.dir.path().join("layout"), archive, place.dir.path().join("zstd")] {
        run(Command::new(&program).arg(layout));
    }
    let by_tag = run(Command::new(&program).args(["--insecure", "--registry", &place.image()]));
    let lines = String::from_utf8(by_tag.stdout).unwrap();
    assert!(lines.contains(digest), "{digest} is what was pushed:\n{lines}");
}

fn skopeo_finds_the_same_digests(place: &Place, digest: &str) {
    let path = |name: &str| place.dir.path().join(name).display().to_string();
    let copy = |name: &str, options: &[&str], from: &str| {
        let to = path(name);
        run(Command::new("skopeo")
            .args(["copy", "--quiet"])
            .args(options)
            .arg(from)
            .arg(format!("dir:{to}")));
        fs::read(Path::new(&to).join("manifest.json")).unwrap()
    };
    let kept = ["--preserve-digests", "--src-tls-verify=false"];
    for (name, from) in [
        ("of-layout", format!("oci:{}", path("layout"))),
        ("of-archive", format!("oci-archive:{}", path("oci.tar"))),
        ("of-registry", format!("docker://{}", place.image())),
    ] {
        assert_eq!(Digest::of(&copy(name, &kept, &from)).to_string(), digest, "{from}");
    }
    // A docker archive has no manifest of its own; the image's identity is its config, which names each layer.
    let config =
        |manifest: &[u8]| serde_json::from_slice::<Value>(manifest).unwrap()["config"]["digest"].clone();
    let docker = copy("of-docker", &[], &format!("docker-archive:{}", path("docker.tar")));
    let layout = fs::read(place.dir.path().join("of-layout/manifest.json")).unwrap();
    assert_eq!(config(&docker), config(&layout));
}
