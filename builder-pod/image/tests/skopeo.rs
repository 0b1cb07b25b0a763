//! What the exporters write, read by skopeo. Without skopeo these fail: `apt-get install skopeo`.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::process::Command;

use lapstrake_image::assemble::{Assembled, Layer, Spec, assemble};
use lapstrake_image::compress::{self, Compressor};
use lapstrake_image::export::{docker_archive, oci_layout_dir, oci_layout_tar};
use lapstrake_image::media::layer_media_type;
use lapstrake_image::tar::{Entry, Kind, TarWriter};
use lapstrake_oci::{Descriptor, Digest, History, ImageConfig, Platform, Reference};

fn skopeo(args: &[&str]) -> String {
    let out = match Command::new("skopeo").args(args).output() {
        Ok(out) => out,
        Err(e) => panic!("skopeo cannot be started ({e}); install it: apt-get install skopeo"),
    };
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "skopeo {args:?}: {errors}");
    String::from_utf8(out.stdout).unwrap()
}

type Blobs = HashMap<Digest, Vec<u8>>;

/// A two-layer image of real tars.
fn image(kind: compress::Kind, docker_media_types: bool) -> (Assembled, Blobs) {
    let mut blobs = Blobs::new();
    let mut layers = Vec::new();
    let mut config = ImageConfig::of_platform(&Platform::new("linux", "amd64", None));
    config.config.cmd = Some(vec!["/hello".to_owned()]);
    for (name, text) in [("hello", "one"), ("dir/world", "two")] {
        let mut tar = TarWriter::new(Vec::new());
        let entry = Entry { mode: 0o755, size: text.len() as u64, ..Entry::new(name, Kind::File) };
        tar.append(&entry, text.as_bytes()).unwrap();
        let (tar, _) = tar.finish().unwrap();
        let mut packer = Compressor::new(Vec::new(), kind, None, 2);
        packer.write_all(&tar).unwrap();
        let packed = packer.finish().unwrap();
        assert_eq!(packed.diff_id, Digest::of(&tar));
        let descriptor = Descriptor::new(layer_media_type(kind, false), packed.digest, packed.size_bytes);
        layers.push(Layer {
            diff_id: packed.diff_id,
            created: None,
            about: None,
            descriptor: descriptor.clone(),
        });
        config.history.push(History { created_by: Some(format!("COPY {name}")), ..History::default() });
        blobs.insert(descriptor.digest, packed.out);
    }
    let created = Some("2024-02-03T04:05:06Z".to_owned());
    let spec = Spec { config, layers, docker_media_types, created, ..Spec::default() };
    (assemble(spec).unwrap(), blobs)
}

fn source(blobs: Blobs) -> impl Fn(&Digest) -> io::Result<Box<dyn Read>> {
    move |digest: &Digest| {
        let bytes = blobs.get(digest).cloned().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(io::Cursor::new(bytes)) as Box<dyn Read>)
    }
}

fn names() -> Vec<Reference> {
    ["app:1.0", "registry.example/team/app:stable"].iter().map(|n| n.parse().unwrap()).collect()
}

/// skopeo's view of an image holds its layers' digests and its command.
fn check(place: &str, image: &Assembled) {
    let config = skopeo(&["inspect", "--config", "--raw", place]);
    assert_eq!(config.as_bytes(), image.config.0, "{place}");
}

/// Copies an image with skopeo, which decompresses and checks every layer's diff id on the way to `dir:`.
fn copy(place: &str, to: &Path) {
    skopeo(&["copy", "--insecure-policy", "--quiet", place, &format!("dir:{}", to.display())]);
}

const KINDS: [compress::Kind; 3] = [compress::Kind::Uncompressed, compress::Kind::Gzip, compress::Kind::Zstd];

#[test]
fn skopeo_reads_the_layout_by_either_tag_and_copies_it_unchanged() {
    for kind in KINDS {
        let (image, blobs) = image(kind, false);
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("layout");
        oci_layout_dir(&dest, &image, &names(), &source(blobs)).unwrap();
        for tag in ["1.0", "stable"] {
            let place = format!("oci:{}:{tag}", dest.display());
            check(&place, &image);
            let raw = skopeo(&["inspect", "--raw", &place]);
            assert_eq!(raw.as_bytes(), image.manifest.0);
            let to = dir.path().join(tag);
            copy(&place, &to);
            assert_eq!(fs::read(to.join("manifest.json")).unwrap(), image.manifest.0);
        }
    }
}

#[test]
fn skopeo_reads_the_layout_as_a_tar_file() {
    let (image, blobs) = image(compress::Kind::Gzip, false);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.tar");
    oci_layout_tar(File::create(&path).unwrap(), &image, &names()[..1], &source(blobs)).unwrap();
    let place = format!("oci-archive:{}:1.0", path.display());
    check(&place, &image);
    copy(&place, &dir.path().join("copy"));
}

#[test]
fn skopeo_loads_the_docker_archive_by_every_name() {
    for (kind, docker) in [(KINDS[0], true), (KINDS[1], false), (KINDS[1], true)] {
        let (image, blobs) = image(kind, docker);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        docker_archive(File::create(&path).unwrap(), &image, &names(), &source(blobs)).unwrap();
        for name in ["app:1.0", "docker.io/library/app:1.0", "registry.example/team/app:stable"] {
            let place = format!("docker-archive:{}:{name}", path.display());
            check(&place, &image);
            copy(&place, &dir.path().join(name.replace('/', "_")));
        }
    }
}
