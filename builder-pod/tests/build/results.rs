//! Names, annotations and labels from the source, and contexts by name.

use crate::lab::{Lab, tool};
use crate::sources::repository;

#[test]
fn names_annotations_labels_and_times_come_from_the_commit() {
    let lab = Lab::new();
    let repository = repository(&lab);
    let git = |args: &[&str]| {
        let dir = repository.to_str().unwrap();
        tool("git", &[&["-C", dir][..], args].concat()).trim().to_owned()
    };
    git(&["tag", "v1.4.0"]);
    git(&["tag", "v1.10.2"]);
    let url = format!("file://{}/.git#:app", repository.display());
    let name = |tag: &str| lab.name(&format!("out/app:{tag}"));
    let ran = lab
        .build(&url)
        .args(["--push", "--from-source", "annotations,labels,epoch"])
        .args(["-t", &name("{semver}"), "-t", &name("{major}.{minor}"), "-t", &name("{shortCommit}")])
        .args(["-t", &name("{branch}-{date}")])
        .args(["--annotation", "org.opencontainers.image.version=mine"])
        .ok();
    let commit = git(&["rev-parse", "HEAD"]);
    let branch = git(&["symbolic-ref", "--short", "HEAD"]);
    let date = git(&["show", "-s", "--format=%cd", "--date=format-local:%Y%m%d", "HEAD"]);
    for tag in ["1.10.2", "1.10", &commit[..7], &format!("{branch}-{date}")] {
        assert!(lab.registry.storage().manifest("out/app", tag).is_some(), "{tag}: {}", ran.stderr());
    }
    let (manifest, config) = lab.image("out/app", "1.10.2");
    let key = |name: &str| format!("org.opencontainers.image.{name}");
    assert_eq!(manifest.annotations[&key("revision")], commit);
    assert_eq!(manifest.annotations[&key("version")], "mine");
    assert_eq!(config.config.labels[&key("version")], "1.10.2");
    let seconds: i64 = git(&["show", "-s", "--format=%ct", "HEAD"]).parse().unwrap();
    assert_eq!(config.created, manifest.annotations.get(&key("created")).cloned());
    assert!(config.created.is_some_and(|text| text.ends_with('Z')) && seconds > 0);

    // A commit without a version: its names are left out, and none left is an error.
    let older = format!("file://{}/.git#v1:app", repository.display());
    let ran = lab.build(&older).args(["--push", "-t", &name("{semver}"), "-t", &name("{tag}")]).ok();
    ran.says(&["{semver} is left out"]);
    assert!(lab.registry.storage().manifest("out/app", "v1").is_some());
    lab.build(&older).args(["-t", &name("{major}")]).fails(11).says(&["{major}"]);
    lab.build(&older).args(["-t", &name("{colour}")]).fails(11).says(&["{colour}", "{shortCommit}"]);
}

#[test]
fn a_name_stands_for_a_directory_an_image_a_layout_or_a_stage() {
    let lab = Lab::new();
    let context = lab.dockerfile(
        "FROM scratch AS one\nCOPY --from=files a /a\n\
         FROM nowhere.test/base:1 AS two\nCOPY --from=one /a /a\nRUN cat /a > /b\n\
         FROM other\nCOPY --from=two /b /b\nCOPY --from=packed /bin/busybox /packed\n",
    );
    let files = lab.context("files", &[("a", "by name"), ("secret", "x"), (".dockerignore", "secret\n")]);
    let layout = lab.path("layout");
    tool(
        "skopeo",
        &[
            "copy",
            "--src-tls-verify=false",
            &format!("docker://{}", lab.base()),
            &format!("oci:{}:1", layout.display()),
        ],
    );
    let out = lab.path("out");
    lab.build(&context)
        .args(["--build-context", &format!("files={}", files.display())])
        .args(["--build-context", &format!("nowhere.test/base:1=docker-image://{}", lab.base())])
        .args(["--build-context", "other=target:one"])
        .args(["--build-context", &format!("packed=oci-layout://{}:1", layout.display())])
        .args(["-o", out.to_str().unwrap()])
        .ok();
    for file in ["a", "b"] {
        assert_eq!(std::fs::read_to_string(out.join(file)).unwrap(), "by name");
    }
    assert!(out.join("packed").exists());
    let missing = lab.dockerfile("FROM scratch\nCOPY --from=files secret /\n");
    let files = format!("files={}", files.display());
    lab.build(&missing).args(["--build-context", &files]).fails(10).says(&["secret"]);
    // A stage of that name is replaced, its steps included.
    let replaced = lab.dockerfile("FROM @base AS tools\nRUN exit 1\nFROM tools\nRUN true\n");
    let image = format!("tools=docker-image://{}", lab.base());
    lab.build(&replaced).args(["--build-context", &image]).ok();
}
