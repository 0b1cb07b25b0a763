//! Where results go, and in which shape.

use std::path::Path;

use serde_json::Value;

use crate::lab::{Lab, tool};

const TEXT: &str = "FROM @base AS b\nRUN echo hi >/hello && chmod 4755 /hello\nFROM scratch\nCOPY --from=b /hello /hello\nENV A=b\nCMD [\"/hello\"]\n";

fn json(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

fn read_json(path: impl AsRef<Path>) -> Value {
    json(&std::fs::read(path).unwrap())
}

#[test]
fn an_oci_layout_directory_is_one_that_skopeo_takes() {
    let lab = Lab::new();
    let dest = lab.path("layout");
    let out = format!("type=oci,tar=false,dest={}", dest.display());
    lab.build(lab.dockerfile(TEXT)).args(["-o", &out, "-t", "registry.example/a/b:c"]).ok();
    let index = read_json(dest.join("index.json"));
    assert_eq!(index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"], "c");
    let config = tool("skopeo", &["inspect", "--config", &format!("oci:{}", dest.display())]);
    assert_eq!(json(config.as_bytes())["config"]["Cmd"][0], "/hello");
}

#[test]
fn an_oci_layout_tar_goes_to_a_file_or_standard_output() {
    let lab = Lab::new();
    let dir = lab.dockerfile(TEXT);
    let dest = lab.path("image.tar");
    lab.build(&dir).args(["-o", &format!("type=oci,dest={}", dest.display())]).ok();
    tool("skopeo", &["inspect", &format!("oci-archive:{}", dest.display())]);
    let ran = lab.build(&dir).args(["-o", "type=oci,dest=-"]).ok();
    assert!(ran.stdout == std::fs::read(&dest).unwrap(), "the same archive, to the byte");
}

#[test]
fn a_docker_archive_is_one_that_docker_loads() {
    let lab = Lab::new();
    let dest = lab.path("image.tar");
    let out = format!("type=docker,dest={}", dest.display());
    lab.build(lab.dockerfile(TEXT)).args(["-o", &out, "-t", "registry.example/a:1"]).ok();
    let inspected =
        json(tool("skopeo", &["inspect", &format!("docker-archive:{}", dest.display())]).as_bytes());
    assert_eq!(inspected["Architecture"], "amd64");
    let manifest = json(tool("tar", &["-xOf", dest.to_str().unwrap(), "manifest.json"]).as_bytes());
    assert_eq!(manifest[0]["RepoTags"][0], "registry.example/a:1");
}

#[test]
fn the_file_system_goes_to_a_directory_and_to_a_tar() {
    let lab = Lab::new();
    let dir = lab.dockerfile(TEXT);
    let out = lab.files_of(&dir);
    assert_eq!(crate::lab::mode(&out.join("hello")), 0o4755);
    let tar = lab.path("root.tar");
    lab.build(&dir).args(["-o", &format!("type=tar,dest={}", tar.display())]).ok();
    let listed = tool("tar", &["-tvf", tar.to_str().unwrap()]);
    assert!(listed.contains("-rwsr-xr-x") && listed.contains("hello"), "{listed}");
}

#[test]
fn several_outputs_of_one_build_hold_the_same_image() {
    let lab = Lab::new();
    let (layout, files, name) = (lab.path("layout"), lab.path("out"), lab.name("many:1"));
    let oci = format!("type=oci,tar=false,dest={}", layout.display());
    let local = format!("type=local,dest={}", files.display());
    lab.build(lab.dockerfile(TEXT)).args(["-o", &oci, "-o", &local, "--push", "-t", &name]).ok();
    let pushed = lab.registry.storage().manifest("many", "1").unwrap().2;
    assert_eq!(read_json(layout.join("index.json"))["manifests"][0]["digest"], pushed.to_string());
    assert!(files.join("hello").exists());
}

#[test]
fn metadata_and_the_quiet_digest_name_the_pushed_image() {
    let lab = Lab::new();
    let (file, name) = (lab.path("meta.json"), lab.name("meta:1"));
    let ran = lab
        .build(lab.dockerfile(TEXT))
        .args([
            "-q",
            "--push",
            "-t",
            &name,
            "-t",
            &lab.name("meta:2"),
            "--metadata-file",
            file.to_str().unwrap(),
        ])
        .ok();
    let pushed = lab.registry.storage().manifest("meta", "1").unwrap().2.to_string();
    assert_eq!(String::from_utf8(ran.stdout.clone()).unwrap().trim(), pushed);
    assert_eq!(ran.stderr(), "", "quiet");
    let metadata = read_json(&file);
    assert_eq!(metadata["containerimage.digest"], pushed);
    assert_eq!(metadata["containerimage.descriptor"]["digest"], pushed);
    assert_eq!(metadata["image.name"], format!("{name},{}", lab.name("meta:2")));
    let (manifest, _) = lab.image("meta", "2");
    assert_eq!(metadata["containerimage.config.digest"], manifest.config.digest.to_string());
}

#[test]
fn labels_media_types_and_compression_are_as_asked() {
    let lab = Lab::new();
    let dir = lab.dockerfile(TEXT);
    let name = lab.name("docker:1");
    lab.build(&dir)
        .args(["-o", &format!("type=image,push=true,name={name},oci-mediatypes=false"), "--label", "a=b"])
        .ok();
    let (manifest, config) = lab.image("docker", "1");
    assert_eq!(manifest.layers[0].media_type, "application/vnd.docker.image.rootfs.diff.tar.gzip");
    assert_eq!(config.config.labels["a"], "b");
    let name = lab.name("zstd:1");
    lab.build(&dir).args(["-o", &format!("type=registry,name={name},compression=zstd")]).ok();
    assert_eq!(lab.image("zstd", "1").0.layers[0].media_type, "application/vnd.oci.image.layer.v1.tar+zstd");
    let digest = lab.registry.storage().manifest("zstd", "1").unwrap().2;
    let name = lab.name("nameless");
    lab.build(&dir)
        .args(["-o", &format!("type=registry,name={name},compression=zstd,push-by-digest=true")])
        .ok();
    assert!(lab.registry.storage().tags("nameless").is_empty());
    assert_eq!(lab.registry.storage().manifest("nameless", &digest.to_string()).unwrap().2, digest);
}

#[test]
fn an_output_that_can_not_be_written_names_its_place_and_leaves_no_half() {
    let lab = Lab::new();
    let dir = lab.dockerfile(TEXT);
    let dest = lab.path("no/such/dir/image.tar");
    lab.build(&dir)
        .args(["-o", &format!("type=oci,dest={}", dest.display())])
        .fails(2)
        .says(&["no/such/dir/image.tar"]);
    assert!(!dest.exists());
}
