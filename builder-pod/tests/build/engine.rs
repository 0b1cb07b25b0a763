//! Layers and bases where the plain way does not hold: damaged blobs, images of one's own, blocked readers.

use std::process::Stdio;

use lapstrake_oci::History;
use lapstrake_testkit::image::{Image, Layer};

use crate::lab::Lab;

#[test]
fn a_base_layer_that_is_gone_or_damaged_is_fetched_again() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM @base\nLABEL a=b\n");
    let target = lab.name("out:1");
    lab.build(&dir).args(["-t", &target, "--push"]).ok();
    let (before, _) = lab.image("out", "1");
    for damage in ["gone", "short"] {
        let blobs = lab.path("state/blobs/sha256");
        for layer in &before.layers {
            let path = blobs.join(layer.digest.hex());
            match damage {
                "gone" => std::fs::remove_file(path).unwrap(),
                _ => std::fs::write(path, "").unwrap(),
            }
        }
        let target = lab.name(&format!("{damage}:1"));
        lab.build(&dir).args(["-t", &target, "--push"]).ok();
        assert_eq!(lab.image(damage, "1").0.layers, before.layers, "{damage}: the layers are the base's own");
    }
}

#[test]
fn a_blob_that_a_power_cut_damaged_is_no_reason_to_fail() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM @base\nRUN echo here >/file\n");
    lab.build(&dir).ok();
    // As if only the blobs' names had reached the disk.
    std::fs::remove_dir_all(lab.path("state/snapshots")).unwrap();
    for entry in std::fs::read_dir(lab.path("state/blobs/sha256")).unwrap() {
        std::fs::write(entry.unwrap().path(), "").unwrap();
    }
    lab.build(&dir).ok();
}

#[test]
fn an_image_that_is_only_copied_from_is_no_base_though_it_begins_the_same() {
    let lab = Lab::new();
    let previous = lab.name("app:1");
    let first =
        lab.dockerfile("FROM @base\nRUN echo made >/made\nLABEL a=b\nENV c=d\nCMD [\"x\"]\nEXPOSE 80\n");
    lab.build(&first).args(["-t", &previous, "--push"]).ok();
    // The same step out of the cache, so that the layers are those of the image that is copied from.
    let second = format!("FROM @base\nRUN echo made >/made\nCOPY --from={previous} /made /again\n");
    let dir = lab.context("second", &[("Dockerfile", &second)]);
    lab.build(&dir).args(["-t", &lab.name("next:1"), "--push"]).ok();
    let (manifest, config) = lab.image("next", "1");
    assert_eq!(manifest.layers.len(), config.history.iter().filter(|h| !h.empty_layer).count());
    assert!(config.history.iter().skip(1).all(|h| h.created.is_some()), "{:?}", config.history);
}

#[test]
fn a_base_that_speaks_of_layers_that_it_lacks_builds() {
    let lab = Lab::new();
    let mut config = lapstrake_oci::ImageConfig::of_platform(&"linux/amd64".parse().unwrap());
    let entry = |by: &str| History { created_by: Some(by.to_owned()), ..History::default() };
    config.history = vec![entry("one"), entry("two"), entry("three")];
    let image = Image::with_config(&[Layer::new().file("squashed", "all")], config);
    lab.registry.put_image("squashed", "1", &image).unwrap();
    let text = format!("FROM {}\nCOPY --from=@base /bin/busybox /b\n", lab.name("squashed:1"));
    let dir = lab.dockerfile(&text);
    lab.build(&dir).args(["-t", &lab.name("out:1"), "--push"]).ok();
    let (manifest, config) = lab.image("out", "1");
    let empty: Vec<bool> = config.history.iter().map(|h| h.empty_layer).collect();
    assert_eq!((manifest.layers.len(), empty), (2, vec![true, true, false, false]));
}

#[test]
fn the_level_of_compression_is_that_of_this_build() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM @base\nRUN seq 100000 >/numbers\n");
    let push = |state: &str, name: &str, level: &str| {
        let output = format!("type=registry,name={},compression-level={level}", lab.name(name));
        lab.build_in(state, &dir).args(["-o", &output]).env("SOURCE_DATE_EPOCH", "0").ok();
        lab.image(name, "latest").0.layers[1].size
    };
    let (fast, small) = (push("state", "fast", "1"), push("state", "small", "9"));
    assert!(small < fast, "{small} < {fast}");
}

#[test]
fn a_reader_that_reads_nothing_does_not_keep_a_canceled_build() {
    let lab = Lab::new();
    let dir = lab.dockerfile("FROM @base\n");
    let mut build = lab.build(&dir).args(["-o", "-"]);
    let mut child = build.0.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("exporting to client tarball") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut stderr, &mut line).unwrap() > 0, "it ended");
    }
    let status = std::process::Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    assert!(status.success());
    // Nobody reads its output, which is held open.
    let _held = child.stdout.take();
    assert_eq!(child.wait().unwrap().code(), Some(16));
}

#[test]
fn a_download_comes_twice_from_a_server_that_knows_no_validators() {
    use std::io::{Read as _, Write as _};
    let lab = Lab::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _request = stream.read(&mut [0; 4096]).unwrap();
            let body = "FROM scratch\nWORKDIR /x\n";
            let head =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
            stream.write_all((head + body).as_bytes()).unwrap();
        }
    });
    for path in ["one?token=s3cret", "one?token=s3cret", "two", "one?token=s3cret"] {
        let ran = lab.build(format!("http://{address}/{path}")).ok();
        assert!(!ran.stderr().contains("s3cret"), "{}", ran.stderr());
    }
}

#[test]
fn a_kept_repository_that_a_power_cut_damaged_is_fetched_anew() {
    let lab = Lab::new();
    let repository = lab.context("repository", &[("Dockerfile", "FROM scratch\nCOPY f /f\n"), ("f", "here")]);
    let git = |args: &[&str]| {
        let user = ["-c", "user.name=t", "-c", "user.email=t@t.example"];
        let status =
            std::process::Command::new("git").args(user).args(args).current_dir(&repository).status();
        assert!(status.unwrap().success(), "{args:?}");
    };
    git(&["init", "--quiet"]);
    git(&["add", "."]);
    git(&["commit", "--quiet", "-m", "first"]);
    let url = format!("file://{}", repository.display());
    lab.build(&url).ok();
    std::fs::remove_dir_all(lab.path("state/side/checkouts")).unwrap();
    let mut find = std::process::Command::new("find");
    find.arg(lab.path("state/side/git/repositories"));
    let found = find.args(["-path", "*/objects/*", "-type", "f"]).output().unwrap().stdout;
    let objects = String::from_utf8(found).unwrap();
    assert!(objects.lines().count() >= 4, "{objects}");
    for object in objects.lines() {
        std::fs::remove_file(object).unwrap();
        std::fs::write(object, "").unwrap();
    }
    assert_eq!(lab.file_of(&url, "f"), "here");
}

#[test]
fn a_canceled_output_leaves_no_half_a_file() {
    let lab = Lab::new();
    // Large enough to be on its way when the signal comes; a sparse file takes no time to make.
    let dir = lab.dockerfile("FROM @base\nRUN truncate -s 20G /large\n");
    let out = lab.path("out.tar");
    let mut running = lab.build(&dir).args(["-o", &format!("type=tar,dest={}", out.display())]).start();
    running.until("exporting to client tarball");
    running.signal("INT");
    let ran = running.wait();
    assert_eq!(ran.code, Some(16), "{}", ran.stderr());
    assert!(!out.exists() && !lab.path("out.tar.partial").exists());
}

#[test]
fn more_layers_than_can_be_mounted_are_refused_with_the_way_out() {
    let lab = Lab::new();
    let text: String = (0..505).map(|n| format!("WORKDIR /d{n}\n")).collect();
    let ran = lab.build(lab.dockerfile(&format!("FROM scratch\n{text}"))).fails(10);
    ran.says(&["more than 499 layers", "join some instructions", "Dockerfile:50"]);
}
