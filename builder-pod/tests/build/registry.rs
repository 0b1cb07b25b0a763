//! Registries that refuse, fail and come back.

use lapstrake_testkit::registry::{Ask, Auth, Fault, Options, What};

use crate::lab::Lab;

const TEXT: &str = "FROM @base\nRUN echo x >/x\n";

fn private() -> Lab {
    Lab::with(Options { auth: Auth::token("alice", "s3cr3t-word"), ..Options::default() })
}

#[test]
fn credentials_of_the_docker_config_pull_and_push() {
    let lab = private();
    lab.log_in("alice", "s3cr3t-word");
    lab.build(lab.dockerfile(TEXT)).args(["--push", "-t", &lab.name("out:1")]).ok();
    assert!(lab.registry.storage().manifest("out", "1").is_some());
}

#[test]
fn a_pull_with_wrong_credentials_is_denied_and_tells_no_secret() {
    let lab = private();
    let dir = lab.dockerfile(TEXT);
    lab.build(&dir).fails(12).says(&["busybox:1", "Dockerfile:1"]);
    lab.log_in("alice", "wr0ng-word");
    let ran = lab.build(&dir).env("LAPSTRAKE_LOG", "trace").fails(12);
    assert!(!ran.stderr().contains("wr0ng-word"), "{}", ran.stderr());
    let basic = "YWxpY2U6d3Iwbmctd29yZA==";
    assert!(!ran.stderr().contains(basic));
}

#[test]
fn a_push_with_wrong_credentials_is_denied_after_a_build_that_is_kept() {
    let lab = Lab::new();
    let strict = lab.another_registry(Options { auth: Auth::basic("alice", "right"), ..Options::default() });
    let dir = lab.dockerfile(TEXT);
    let registries = lab.path("both.json");
    let host = strict.host();
    let http = format!("{{\"{}\": {{\"http\": true}}, \"{host}\": {{\"http\": true}}}}", lab.registry.host());
    std::fs::write(&registries, http).unwrap();
    let config = serde_json::json!({"auths": {host: {"username": "alice", "password": "wr0ng-word"}}});
    std::fs::create_dir_all(lab.path("docker")).unwrap();
    std::fs::write(lab.path("docker/config.json"), config.to_string()).unwrap();
    let name = format!("{}/out:1", strict.host());
    let push = || lab.build(&dir).args(["--registries", registries.to_str().unwrap(), "--push", "-t", &name]);
    let ran = push().fails(12);
    ran.says(&[&strict.host()]);
    assert!(!ran.stderr().contains("wr0ng-word"));
    let config = serde_json::json!({"auths": {strict.host(): {"username": "alice", "password": "right"}}});
    std::fs::write(lab.path("docker/config.json"), config.to_string()).unwrap();
    let again = push().ok();
    assert!(again.ran().is_empty(), "{}", again.stderr());
    assert!(strict.storage().manifest("out", "1").is_some());
}

#[test]
fn a_registry_that_fails_a_few_times_does_not_fail_the_build() {
    let lab = Lab::new();
    lab.registry.inject(Fault::next(Ask::ManifestGet, What::Status(503, Some(0))));
    lab.registry.inject(Fault::next(Ask::BlobGet, What::Drop(0)).times(2));
    lab.registry.inject(Fault::next(Ask::BlobGet, What::Cut(5000)).after(2));
    lab.registry.inject(Fault::next(Ask::UploadStart, What::Status(500, Some(0))).times(2));
    lab.registry.inject(Fault::next(Ask::ManifestPut, What::Status(429, Some(0))));
    lab.build(lab.dockerfile(TEXT)).args(["--push", "-t", &lab.name("out:1")]).ok();
    assert!(lab.registry.storage().manifest("out", "1").is_some());
}

#[test]
fn a_damaged_layer_is_never_unpacked() {
    let lab = Lab::new();
    lab.registry.inject(Fault::always(Ask::BlobGet, What::Corrupt).after(1));
    let ran = lab.build(lab.dockerfile(TEXT)).run();
    assert_ne!(ran.code, Some(0), "{}", ran.stderr());
    lab.registry.heal();
    lab.build(lab.dockerfile(TEXT)).ok();
}

#[test]
fn a_registry_that_stays_down_is_unavailable_and_what_was_built_is_kept() {
    let lab = Lab::new();
    let dir = lab.dockerfile(TEXT);
    lab.registry.inject(Fault::always(Ask::UploadStart, What::Status(503, Some(0))));
    let push = || lab.build(&dir).args(["--push", "-t", &lab.name("out:1")]);
    push().fails(13).says(&["503", "out"]);
    lab.registry.heal();
    assert!(push().ok().ran().is_empty());
}

#[test]
fn base_layers_are_mounted_from_their_repository_not_uploaded() {
    let lab = Lab::new();
    lab.build(lab.dockerfile(TEXT)).args(["--push", "-t", &lab.name("out:1")]).ok();
    assert_eq!(lab.registry.count(Ask::Mount), 1);
    // The new layer and the config.
    assert_eq!(lab.registry.count(Ask::UploadPut), 2);
}

#[test]
fn a_tag_is_looked_up_by_each_build_and_its_layers_fetched_once() {
    let lab = Lab::new();
    let dir = lab.dockerfile(TEXT);
    lab.build(&dir).ok();
    let blobs = lab.registry.count(Ask::BlobGet);
    lab.build(&dir).ok();
    assert_eq!(lab.registry.count(Ask::BlobGet), blobs);
    assert!(lab.registry.count(Ask::ManifestHead) >= 2, "a tag may move");
}

#[test]
fn a_base_image_with_the_same_layers_under_a_new_digest_rebuilds_nothing() {
    use lapstrake_testkit::image::{Image, Layer};
    let lab = Lab::new();
    let layer = || Layer::new().file("f", "x");
    let mut config =
        lapstrake_oci::ImageConfig::of_platform(&lapstrake_oci::Platform::new("linux", "amd64", None));
    lab.registry.put_image("moving", "1", &Image::with_config(&[layer()], config.clone())).unwrap();
    let dir = lab.dockerfile(&format!("FROM {}\nCOPY Dockerfile /d\n", lab.name("moving:1")));
    lab.build(&dir).ok();
    config.author = Some("somebody".to_owned());
    lab.registry.put_image("moving", "1", &Image::with_config(&[layer()], config)).unwrap();
    let again = lab.build(&dir).ok();
    assert!(again.ran().is_empty(), "{}", again.stderr());
}

#[test]
fn an_image_with_zstd_layers_is_a_base_like_any_other() {
    let lab = Lab::new();
    let out = format!("type=registry,name={},compression=zstd", lab.name("zstd:1"));
    lab.build(lab.dockerfile("FROM @base\nRUN echo z >/z\n")).args(["-o", &out]).ok();
    let text = format!("FROM {}\nRUN cp /z /copy\n", lab.name("zstd:1"));
    let child = lab.context("child", &[("Dockerfile", &text)]);
    lab.build_in("fresh", &child).args(["-o", lab.path("files").to_str().unwrap()]).ok();
    assert_eq!(std::fs::read_to_string(lab.path("files/copy")).unwrap(), "z\n");
}
