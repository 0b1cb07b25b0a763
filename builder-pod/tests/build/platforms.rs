//! Several platforms in one build, and steps of a platform that this machine is not.

use std::path::Path;

use lapstrake_oci::Platform;
use lapstrake_testkit::{debian, image};
use serde_json::{Value, json};

use crate::lab::{Fate, Lab, busybox, tool};
use crate::pod::{request, serve};
use crate::userns::{Mode, PodPlace};

/// A base image for amd64 and arm64 under one name.
fn with_base(lab: &Lab) {
    let arm = debian::small_arm64_image().unwrap();
    let platform = |arch: &str| Platform::new("linux", arch, None);
    lab.registry.put_image("multi", "amd64", busybox()).unwrap();
    lab.registry.put_image("multi", "arm64", &arm).unwrap();
    let index = image::index(&[(busybox(), platform("amd64")), (&arm, platform("arm64"))]);
    let kind = "application/vnd.oci.image.index.v1+json";
    lab.registry.storage().put_manifest("multi", Some("1"), kind, &index).unwrap();
}

const BOTH: &str = "FROM --platform=$BUILDPLATFORM @base AS common\n\
    RUN echo once > /common\n\
    FROM @multi\n\
    ARG TARGETARCH\n\
    COPY --from=common /common /common\n\
    RUN echo $TARGETARCH $(uname -m) > /arch\n";

fn dockerfile(lab: &Lab, text: &str) -> std::path::PathBuf {
    lab.dockerfile(&text.replace("@multi", &lab.name("multi:1")))
}

fn index(lab: &Lab, repository: &str, tag: &str) -> Value {
    let (_, bytes, _) = lab.registry.storage().manifest(repository, tag).expect("it was pushed");
    serde_json::from_slice(&bytes).unwrap()
}

#[test]
fn two_platforms_become_one_index_and_what_is_common_runs_once() {
    let lab = Lab::new();
    with_base(&lab);
    let context = dockerfile(&lab, BOTH);
    let name = lab.name("out/app:1");
    let ran = lab
        .build(&context)
        .args(["--platform", "linux/amd64,linux/arm64", "--push", "-t", &name])
        .args(["--annotation", "manifest[linux/arm64],index:org.example/who=me", "--label", "l=1"])
        .ok();
    let common = ran.steps().iter().filter(|(name, _)| name.contains("echo once")).count();
    assert_eq!(common, 1, "{:?}", ran.steps());
    assert_eq!(ran.fate("[linux/arm64 stage-1 3/3] RUN echo"), Fate::Done, "{:?}", ran.steps());
    assert_eq!(ran.fate("[linux/amd64 stage-1 3/3] RUN echo"), Fate::Done);

    let index = index(&lab, "out/app", "1");
    assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
    let platforms: Vec<_> = index["manifests"].as_array().unwrap().iter().map(|m| &m["platform"]).collect();
    let of = |arch| json!({"os": "linux", "architecture": arch});
    assert_eq!(platforms, [&of("amd64"), &of("arm64")]);
    assert_eq!(index["annotations"]["org.example/who"], "me");

    // Another program pulls each platform's files.
    for (arch, machine) in [("amd64", "x86_64"), ("arm64", "aarch64")] {
        let layout = format!("oci:{}:a", lab.path(arch).display());
        let from = format!("docker://{name}");
        tool("skopeo", &["--override-arch", arch, "copy", "--src-tls-verify=false", &from, &layout]);
        let files = layers(&lab.path(arch));
        assert!(files.contains(&format!("{arch} {machine}\n")), "{files:?}");
        assert!(files.contains(&"once\n".to_owned()));
    }
    // The second build has it all.
    let again = lab.build(&context).args(["--platform=linux/amd64", "--platform=linux/arm64"]).ok();
    assert_eq!(again.ran(), Vec::<String>::new());
    assert_eq!(again.fate("[linux/arm64 stage-1 3/3] RUN echo"), Fate::Cached);
}

/// Contents of all regular files in the layers of a layout with one image, from the top two.
fn layers(layout: &Path) -> Vec<String> {
    let read =
        |digest: &str| std::fs::read(layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:")));
    let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let manifest = read(index["manifests"][0]["digest"].as_str().unwrap()).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let mut contents = Vec::new();
    for layer in manifest["layers"].as_array().unwrap().iter().rev().take(2) {
        let path =
            layout.join("blobs/sha256").join(layer["digest"].as_str().unwrap().trim_start_matches("sha256:"));
        contents.push(tool("tar", &["-xzOf", path.to_str().unwrap()]));
    }
    contents
}

#[test]
fn files_of_several_platforms_stand_beside_each_other() {
    let lab = Lab::new();
    with_base(&lab);
    let context = dockerfile(&lab, BOTH);
    let both = ["--platform", "linux/amd64,linux/arm64"];
    let out = lab.path("files");
    lab.build(&context).args(both).args(["-o", out.to_str().unwrap()]).ok();
    let arch = |dir: &str| std::fs::read_to_string(out.join(dir).join("arch")).unwrap();
    assert_eq!(
        (arch("linux_amd64"), arch("linux_arm64")),
        ("amd64 x86_64\n".into(), "arm64 aarch64\n".into())
    );
    let tar = lab.path("files.tar");
    lab.build(&context).args(both).args(["-o", &format!("type=tar,dest={}", tar.display())]).ok();
    assert_eq!(tool("tar", &["-xOf", tar.to_str().unwrap(), "linux_arm64/arch"]), "arm64 aarch64\n");
    let layout = lab.path("layout");
    let dest = format!("type=oci,tar=false,dest={}", layout.display());
    lab.build(&context).args(both).args(["-o", &dest, "-t", "a.test/b:c"]).ok();
    let inspected = tool("skopeo", &["inspect", "--raw", &format!("oci:{}:c", layout.display())]);
    assert!(inspected.contains("arm64"), "{inspected}");
    lab.build(&context).args(both).args(["-o", "type=docker,dest=-"]).fails(2).says(&["type=oci"]);
    let wrong = ["--platform", "linux/amd64", "--annotation", "index:a=b"];
    lab.build(&context).args(wrong).fails(2).says(&["several platforms"]);
}

#[test]
fn a_failed_platform_is_named_and_one_without_an_emulator_says_what_to_do() {
    let lab = Lab::new();
    with_base(&lab);
    let context = dockerfile(&lab, "FROM @multi\nRUN test $(uname -m) = x86_64\n");
    let both = ["--platform", "linux/amd64,linux/arm64"];
    lab.build(&context).args(both).fails(10).says(&["[linux/arm64 2/2] RUN test"]);
    let context = dockerfile(&lab, "FROM --platform=linux/arm64 @multi\nRUN uname -m\n");
    let bare = lab.build(&context).env("PATH", "/nowhere").env("LAPSTRAKE_EMULATORS", "/nowhere");
    bare.fails(10).says(&["linux/arm64", "qemu-aarch64-static", "--emulators", "RUN uname"]);
}

#[test]
fn where_the_machine_has_a_handler_the_builder_needs_no_emulator_of_its_own() {
    let lab = Lab::new();
    with_base(&lab);
    let text = "FROM --platform=linux/arm64 @multi\nRUN test $(uname -m) = aarch64\n";
    let place = PodPlace::new(&lab, &text.replace("@multi", &lab.name("multi:1")));
    // A table of the pod's own namespace is to the builder in it what the machine's is elsewhere.
    let table = "/proc/sys/fs/binfmt_misc";
    let emulator = tool("sh", &["-c", "command -v qemu-aarch64-static"]);
    let line = format!(":arm:M:18:\\xb7\\x00:\\xff\\xff:{}:FOCP", emulator.trim());
    let script = format!(
        "mount -t binfmt_misc binfmt_misc {table} && printf %s '{line}' > {table}/register && \
         export PATH=/nowhere LAPSTRAKE_EMULATORS=/nowhere"
    );
    place.build(&lab, Some(Mode::UserNamespace)).prepared(&script).ok();
}

#[test]
fn a_pod_joins_what_others_built() {
    let lab = Lab::new();
    with_base(&lab);
    let text = BOTH.replace("@multi", &lab.name("multi:1"));
    let request = |platforms: &[&str], output: Value| {
        request(&lab, &text, |request| {
            request["platforms"] = json!(platforms);
            request["output"] = output;
        })
    };
    let serve = |request: &Value| {
        let (code, outcome) = serve(&lab, request);
        assert_eq!(code, Some(0), "{outcome}");
        outcome["success"].clone()
    };
    let by_digest = json!({"names": [lab.name("out/app:7")], "pushByDigest": true});
    let mut built = Vec::new();
    for platform in ["linux/amd64", "linux/arm64"] {
        let success = serve(&request(&[platform], by_digest.clone()));
        built.extend(success["platforms"].as_array().expect("platforms").iter().cloned());
        assert!(lab.registry.storage().manifest("out/app", "7").is_none());
    }
    let entry = |b: &Value| json!({"platform": b["platform"], "digest": b["digest"], "manifestBytes": b["manifestBytes"]});
    let names = [lab.name("out/app:{shortCommit}"), lab.name("out/app:v{major}")];
    let mut join = request(&[], json!({"names": names, "annotations": {"a": "b"}}));
    join["index"] = built.iter().map(entry).collect();
    join["facts"] = json!({"commit": "c".repeat(40)});
    let first = serve(&join);
    assert_eq!(first, serve(&join));
    assert_eq!(first["namesLeftOut"], json!([names[1]]));
    let joined = index(&lab, "out/app", "ccccccc");
    assert_eq!(joined["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(joined["manifests"][1]["platform"]["architecture"], "arm64");
    assert_eq!(joined["annotations"]["a"], "b");
    // What is not there is joined by nothing.
    join["index"][0]["digest"] = json!(format!("sha256:{}", "0".repeat(64)));
    assert_eq!(crate::pod::serve(&lab, &join).1["failure"]["reason"], "ImageNotFound");
    // One pod for both gives the same manifests, and their index with tags.
    let both = serve(&request(&["linux/amd64", "linux/arm64"], json!({"names": [lab.name("out/app:both")]})));
    let digests =
        |list: &Value| list.as_array().unwrap().iter().map(|p| p["digest"].clone()).collect::<Vec<_>>();
    assert_eq!(digests(&both["platforms"]), digests(&index(&lab, "out/app", "both")["manifests"]));
    assert_eq!(both["names"], json!([lab.name("out/app:both")]));
}

#[test]
fn what_is_attested_of_each_platform_goes_into_the_index_that_joins_them() {
    let lab = Lab::new();
    with_base(&lab);
    let text = BOTH.replace("@multi", &lab.name("multi:1"));
    let name = lab.name("out/app:1");
    let request = |platforms: &[&str], by_digest: bool| {
        request(&lab, &text, |request| {
            request["platforms"] = json!(platforms);
            request["output"] = json!({"names": [name], "pushByDigest": by_digest});
            request["attestations"] = json!({"provenance": {}});
        })
    };
    let serve = |request: &Value| {
        let (code, outcome) = serve(&lab, request);
        assert_eq!(code, Some(0), "{outcome}");
        outcome["success"]["platforms"].as_array().expect("platforms").clone()
    };
    let platforms = ["linux/amd64", "linux/arm64"];
    let built: Vec<Value> =
        platforms.into_iter().flat_map(|platform| serve(&request(&[platform], true))).collect();
    let mut join = request(&[], false);
    let entry = |b: &Value| json!({"platform": b["platform"], "digest": b["digest"], "manifestBytes": b["manifestBytes"], "attestation": b["attestation"]});
    join["index"] = built.iter().map(entry).collect();
    serve(&join);
    let joined = index(&lab, "out/app", "1");
    let manifests = joined["manifests"].as_array().unwrap();
    assert_eq!(manifests.len(), 4, "{joined:#}");
    for (at, image) in built.iter().enumerate() {
        let beside = &manifests[2 + at];
        assert_eq!(manifests[at]["digest"], image["digest"]);
        assert_eq!(beside["digest"], image["attestation"]["digest"]);
        assert_eq!(beside["annotations"]["vnd.docker.reference.digest"], image["digest"]);
        assert_eq!(beside["platform"], json!({"architecture": "unknown", "os": "unknown"}));
    }
    // Of one pod for both nobody has to know what stands in its own index.
    let whole = serve(&request(&platforms, false));
    assert!(whole.iter().all(|of| of["attestation"].is_null()), "{whole:?}");
    assert_eq!(index(&lab, "out/app", "1")["manifests"].as_array().unwrap().len(), 4);
}

#[test]
fn one_platform_becomes_an_index_where_that_is_asked_for() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM @base\nLABEL a=b\n");
    let args = ["--build-arg", "BUILDKIT_MULTI_PLATFORM=1", "--annotation", "index:org.example/who=me"];
    lab.build(&dir).args(args).args(["-t", &lab.name("one:1"), "--push"]).ok();
    let index = index(&lab, "one", "1");
    assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(index["annotations"]["org.example/who"], "me");
}
