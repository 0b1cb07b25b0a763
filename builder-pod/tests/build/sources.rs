//! Contexts that come from elsewhere: Git, http, ImageBuild manifests.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::lab::{Fate, Lab, tool};

/// A repository with two commits on `main`; the first one has the tag `v1`.
pub(crate) fn repository(lab: &Lab) -> PathBuf {
    let dir = lab.context(
        "repository",
        &[("app/Dockerfile", "FROM scratch\nCOPY f /f\n"), ("app/f", "one"), ("other", "x")],
    );
    let git = |args: &[&str]| {
        let dir = dir.to_str().unwrap();
        let settings = [
            "-C",
            dir,
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.com",
            "-c",
            "init.defaultBranch=main",
        ];
        tool("git", &[&settings[..], args].concat())
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-qm", "one"]);
    git(&["tag", "v1"]);
    std::fs::write(dir.join("app/f"), "two").unwrap();
    git(&["commit", "-qam", "two"]);
    dir
}

#[track_caller]
fn built_from(lab: &Lab, source: &str) -> String {
    lab.file_of(source, "f")
}

#[test]
fn a_git_context_is_a_branch_a_tag_or_a_commit_and_a_directory_of_it() {
    let lab = Lab::new();
    let url = format!("file://{}", repository(&lab).display());
    assert_eq!(built_from(&lab, &format!("{url}/.git#main:app")), "two");
    assert_eq!(built_from(&lab, &format!("{url}/.git#v1:app")), "one");
    let first = tool("git", &["-C", lab.path("repository").to_str().unwrap(), "rev-parse", "v1"]);
    assert_eq!(built_from(&lab, &format!("{url}/.git#{}:app", first.trim())), "one");
}

#[test]
fn the_same_commit_again_runs_nothing_and_a_missing_one_says_so() {
    let lab = Lab::new();
    let url = format!("file://{}/.git", repository(&lab).display());
    assert_eq!(lab.build(format!("{url}#main:app")).ok().ran().len(), 1);
    assert!(lab.build(format!("{url}#main:app")).ok().ran().is_empty());
    // Another commit with equal files is as good.
    lab.build(format!("{url}#nowhere:app")).fails(11).says(&["nowhere"]);
    lab.build(format!("{url}#main:lost")).fails(11).says(&["lost"]);
    lab.build(format!("file://{}/none.git", lab.dir.path().display())).fails(11).says(&["none.git"]);
}

/// Serves one file over http; counts requests.
fn serve(body: Vec<u8>) -> (String, Arc<AtomicUsize>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                head.push(byte[0]);
            }
            counted.fetch_add(1, Ordering::SeqCst);
            let gone = head.starts_with(b"GET /gone");
            let (status, body) = if gone { ("404 Not Found", &b"no"[..]) } else { ("200 OK", &body[..]) };
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            // A client that went away is its own affair.
            stream.write_all(answer.as_bytes()).and_then(|()| stream.write_all(body)).ok();
        }
    });
    (format!("http://{host}"), requests)
}

fn archive(lab: &Lab) -> Vec<u8> {
    let dir = lab.context(
        "packed",
        &[
            ("Dockerfile", "FROM scratch\nCOPY f /f\n"),
            ("f", "packed"),
            ("sub/Dockerfile", "FROM scratch\nCOPY f /f\n"),
            ("sub/f", "below"),
        ],
    );
    let file = lab.path("context.tar.gz");
    tool("tar", &["-czf", file.to_str().unwrap(), "-C", dir.to_str().unwrap(), "."]);
    std::fs::read(file).unwrap()
}

#[test]
fn an_http_archive_is_a_context_and_a_single_file_a_dockerfile() {
    let lab = Lab::new();
    let (url, _) = serve(archive(&lab));
    assert_eq!(built_from(&lab, &format!("{url}/context.tar.gz")), "packed");
    lab.build(format!("{url}/gone.tar.gz")).fails(11).says(&["gone.tar.gz", "404"]);
    let (url, _) = serve(format!("FROM {}\nRUN echo single >/f\n", lab.base()).into_bytes());
    assert_eq!(built_from(&lab, &format!("{url}/Dockerfile")), "single\n");
}

fn manifest(lab: &Lab, source: &str) -> PathBuf {
    let text = format!(
        "apiVersion: lapstrake.dev/v1alpha1\nkind: ImageBuild\nmetadata:\n  name: app\nspec:\n  source:\n{source}  output:\n    image: {}\n",
        lab.name("from-manifest:1")
    );
    let path = lab.path("imagebuild.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn an_image_build_with_inline_files_builds_and_pushes_its_image() {
    let lab = Lab::new();
    let inline = format!(
        "    inline:\n      files:\n      - path: Dockerfile\n        content: |\n          FROM {}\n          COPY run.sh /\n          RUN /run.sh >/f\n      - path: run.sh\n        executable: true\n        content: |\n          #!/bin/sh\n          echo inline\n",
        lab.base()
    );
    let file = manifest(&lab, &inline);
    assert_eq!(built_from(&lab, file.to_str().unwrap()), "inline\n");
    lab.build(&file).ok();
    assert!(lab.registry.storage().manifest("from-manifest", "1").is_none(), "nothing is pushed unasked");
    lab.build(&file).args(["--push"]).ok();
    assert!(lab.registry.storage().manifest("from-manifest", "1").is_some());
}

#[test]
fn a_checksum_is_held_to() {
    let lab = Lab::new();
    let bytes = archive(&lab);
    let right = lapstrake_oci::Digest::of(&bytes).hex().to_string();
    let (url, requests) = serve(bytes);
    let source = |sum: &str| {
        format!("    http:\n      url: {url}/context.tar.gz\n      sha256: {sum}\n      path: sub\n")
    };
    let file = manifest(&lab, &source(&"0".repeat(64)));
    lab.build(&file).fails(10).says(&["context.tar.gz", &right]);
    let file = manifest(&lab, &source(&right));
    assert_eq!(built_from(&lab, file.to_str().unwrap()), "below");
    let asked = requests.load(Ordering::SeqCst);
    lab.build(&file).ok();
    assert_eq!(requests.load(Ordering::SeqCst), asked, "what has the checksum is not asked for again");
}

#[test]
fn a_wrong_manifest_says_what_is_wrong() {
    let lab = Lab::new();
    let file = manifest(&lab, "    {}\n");
    lab.build(&file).fails(2).says(&["imagebuild.yaml", "source"]);
    std::fs::write(&file, "kind: Pod\napiVersion: v1\n").unwrap();
    lab.build(&file).fails(2).says(&["imagebuild.yaml"]);
    assert!(Path::new(&file).exists());
}

#[test]
fn left_overs_of_a_killed_builder_are_swept() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM scratch\nCOPY Dockerfile /\n");
    lab.build(&dir).ok();
    let side = lab.path("state/side");
    for left in ["download/.tmpAbc", "git/.tmpDef/index", "checkouts/abc.new/f", "http/abc.new/f"] {
        let path = side.join(left);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }
    lab.build(&dir).ok();
    for group in ["download", "git", "checkouts", "http"] {
        assert_eq!(std::fs::read_dir(side.join(group)).unwrap().count(), 0, "{group}");
    }
}

#[test]
fn files_that_a_context_names_are_a_base_and_count_by_what_is_in_them() {
    let lab = Lab::new();
    let root = lab.files_of(lab.context("busybox", &[("Dockerfile", "FROM @base\n")]));
    std::fs::write(root.join("mark"), "one").unwrap();
    let text = "FROM root\nRUN cat /mark >/out\nENV A=b\nFROM root\nCOPY --from=0 /out /out\n";
    let dir = lab.dockerfile(text);
    let named = format!("root={}", root.display());
    let out = lab.path("out");
    let build = || lab.build(&dir).args(["--build-context", &named, "-o", out.to_str().unwrap()]);
    build().ok();
    assert_eq!(std::fs::read_to_string(out.join("out")).unwrap(), "one");
    assert_eq!(build().ok().fate("RUN cat"), Fate::Cached);
    std::fs::write(root.join("mark"), "two").unwrap();
    assert_eq!(build().ok().fate("RUN cat"), Fate::Done);
    assert_eq!(std::fs::read_to_string(out.join("out")).unwrap(), "two");
}

#[test]
fn a_context_may_be_for_one_platform_only() {
    let lab = Lab::new();
    let context = |name: &str| lab.context(name, &[("f", name)]);
    let (own, other) = (context("own"), context("other"));
    let native = match std::env::consts::ARCH {
        "x86_64" => "linux/amd64",
        _ => "linux/arm64",
    };
    let dir = lab.dockerfile("FROM scratch\nCOPY --from=files f /f\n");
    let out = lab.path("out");
    let special = format!("files::{native}={}", own.display());
    let plain = format!("files={}", other.display());
    let args = ["--build-context", &plain, "--build-context", &special, "-o", out.to_str().unwrap()];
    lab.build(&dir).args(args).ok();
    assert_eq!(std::fs::read_to_string(out.join("f")).unwrap(), "own");
}

#[test]
fn a_repository_is_a_context_with_its_git_directory_where_that_is_asked_for() {
    let lab = Lab::new();
    let dir = repository(&lab);
    let text = "FROM scratch\nCOPY . /\n";
    std::fs::write(dir.join("app/Dockerfile"), text).unwrap();
    let git = |args: &[&str]| {
        let user = ["-C", dir.to_str().unwrap(), "-c", "user.name=t", "-c", "user.email=t@t.example"];
        tool("git", &[&user[..], args].concat())
    };
    git(&["mv", "app/Dockerfile", "Dockerfile"]);
    git(&["commit", "-qam", "third"]);
    let url = format!("file://{}/.git", dir.display());
    let out = lab.path("out");
    for (url, args, kept) in [
        (url.clone(), &[][..], false),
        (url.clone(), &["--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1"], true),
        (format!("{url}?keep-git-dir=true"), &[], true),
    ] {
        let mut build = lab.build(&url).args(["-o", out.to_str().unwrap()]);
        build.0.args(args);
        build.ok();
        assert_eq!(out.join(".git/HEAD").exists(), kept, "{url} {args:?}");
        std::fs::remove_dir_all(&out).unwrap();
    }
}
