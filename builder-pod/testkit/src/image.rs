//! Tiny images, deterministic to the byte.

use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use flate2::{Compression, GzBuilder};
use lapstrake_oci::{Descriptor, Digest, ImageConfig, Index, Manifest, Platform, Reference, media_type};

/// A layer in the making: entries of a tar archive, in order.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    tar: Vec<u8>,
}

impl Layer {
    /// No entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// A regular file with mode 0644.
    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.file_with_mode(path, content, 0o644)
    }

    /// A regular file.
    pub fn file_with_mode(mut self, path: &str, content: impl AsRef<[u8]>, mode: u32) -> Self {
        let content = content.as_ref();
        self.header(path, b'0', mode, content.len() as u64, "");
        self.tar.extend_from_slice(content);
        self.tar.resize(self.tar.len().next_multiple_of(512), 0);
        self
    }

    /// A folder with mode 0755.
    pub fn dir(mut self, path: &str) -> Self {
        self.header(&format!("{}/", path.trim_end_matches('/')), b'5', 0o755, 0, "");
        self
    }

    /// A symbolic link.
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        self.header(path, b'2', 0o777, 0, target);
        self
    }

    /// A second name of an earlier entry.
    pub fn hardlink(mut self, path: &str, target: &str) -> Self {
        self.header(path, b'1', 0o644, 0, target);
        self
    }

    /// The mark that `path` of a lower layer is gone.
    pub fn whiteout(self, path: &str) -> Self {
        let (dir, name) = path.rsplit_once('/').map_or(("", path), |(dir, name)| (dir, name));
        let slash = if dir.is_empty() { "" } else { "/" };
        self.file(&format!("{dir}{slash}.wh.{name}"), b"")
    }

    /// Everything below a folder: files, folders and symbolic links, owned by root.
    pub fn tree(mut self, root: &Path) -> io::Result<Self> {
        fn walk(layer: &mut Layer, root: &Path, below: &Path) -> io::Result<()> {
            let mut entries: Vec<_> = std::fs::read_dir(root.join(below))?.collect::<Result<_, _>>()?;
            entries.sort_by_key(std::fs::DirEntry::file_name);
            for entry in entries {
                let path = below.join(entry.file_name());
                let meta = entry.metadata()?;
                let (name, mode) = (path.to_string_lossy().into_owned(), meta.permissions().mode() & 0o7777);
                if meta.is_dir() {
                    layer.header(&format!("{name}/"), b'5', mode, 0, "");
                    walk(layer, root, &path)?;
                } else if meta.is_symlink() {
                    let target = std::fs::read_link(entry.path())?;
                    layer.header(&name, b'2', 0o777, 0, &target.to_string_lossy());
                } else if meta.is_file() {
                    let content = std::fs::read(entry.path())?;
                    *layer = std::mem::take(layer).file_with_mode(&name, content, mode);
                } else {
                    return Err(io::Error::other(format!(
                        "{name}: mode {:o} has no place here",
                        meta.mode()
                    )));
                }
            }
            Ok(())
        }
        walk(&mut self, root, Path::new(""))?;
        Ok(self)
    }

    /// A ustar header; a long path is split at a slash into the prefix field.
    fn header(&mut self, path: &str, kind: u8, mode: u32, size: u64, link: &str) {
        let (prefix, name) = match path.len() {
            0..=100 => ("", path),
            len => {
                let slash = path[len - 101..].trim_end_matches('/').find('/').map(|i| i + len - 101);
                let slash = slash.filter(|at| *at <= 155).expect("a test path fits into a ustar header");
                (&path[..slash], &path[slash + 1..])
            }
        };
        assert!(link.len() <= 100, "a test link fits into a ustar header");
        let mut block = [0u8; 512];
        let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{size:011o}"));
        put(136, "00000000000");
        put(148, "        ");
        put(157, link);
        put(257, "ustar\x0000");
        put(345, prefix);
        block[156] = kind;
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.tar.extend_from_slice(&block);
    }

    /// The tar archive.
    pub fn tar(&self) -> Vec<u8> {
        [self.tar.as_slice(), &[0; 1024]].concat()
    }

    /// The tar archive, compressed.
    pub fn gzip(&self) -> Vec<u8> {
        let mut writer = GzBuilder::new().mtime(0).write(Vec::new(), Compression::fast());
        writer.write_all(&self.tar()).expect("a vector takes all");
        writer.finish().expect("a vector takes all")
    }
}

/// A whole image in memory.
#[derive(Debug, Clone)]
pub struct Image {
    /// The manifest's bytes.
    pub manifest: Vec<u8>,
    /// The manifest's media type.
    pub media_type: String,
    /// The manifest's digest.
    pub digest: Digest,
    /// The config's bytes.
    pub config: Vec<u8>,
    /// The parsed manifest.
    pub parsed: Manifest,
    layers: Vec<Vec<u8>>,
}

impl Image {
    /// A gzip image of layers, lowest first, for linux/amd64 and with `PATH` set.
    pub fn new(layers: &[Layer]) -> Self {
        let mut config = ImageConfig::of_platform(&Platform::new("linux", "amd64", None));
        config.config.env =
            vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
        config.config.cmd = Some(vec!["/bin/sh".to_owned()]);
        Self::with_config(layers, config)
    }

    /// A gzip image of layers with a config, whose `rootfs` is filled in.
    pub fn with_config(layers: &[Layer], mut config: ImageConfig) -> Self {
        config.rootfs.diff_ids = layers.iter().map(|layer| Digest::of(&layer.tar())).collect();
        let layers: Vec<Vec<u8>> = layers.iter().map(Layer::gzip).collect();
        let config = serde_json::to_vec(&config).expect("a config is JSON");
        let parsed = Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.to_owned()),
            artifact_type: None,
            config: Descriptor::of(media_type::OCI_CONFIG, &config),
            layers: layers.iter().map(|bytes| Descriptor::of(media_type::OCI_LAYER_GZIP, bytes)).collect(),
            subject: None,
            annotations: std::collections::BTreeMap::new(),
        };
        let manifest = serde_json::to_vec(&parsed).expect("a manifest is JSON");
        let digest = Digest::of(&manifest);
        Self { manifest, media_type: media_type::OCI_MANIFEST.to_owned(), digest, config, parsed, layers }
    }

    /// Config and layers with their descriptors.
    pub fn blobs(&self) -> impl Iterator<Item = (&Descriptor, &[u8])> {
        let config = (&self.parsed.config, self.config.as_slice());
        std::iter::once(config).chain(self.parsed.layers.iter().zip(self.layers.iter().map(Vec::as_slice)))
    }

    /// The descriptor of the manifest, for an index.
    pub fn descriptor(&self, platform: &Platform) -> Descriptor {
        let mut descriptor = Descriptor::of(&self.media_type, &self.manifest);
        descriptor.platform = Some(platform.clone());
        descriptor
    }
}

/// The bytes of an index over images.
pub fn index(images: &[(&Image, Platform)]) -> Vec<u8> {
    let index = Index {
        schema_version: 2,
        media_type: Some(media_type::OCI_INDEX.to_owned()),
        manifests: images.iter().map(|(image, platform)| image.descriptor(platform)).collect(),
        annotations: std::collections::BTreeMap::new(),
    };
    serde_json::to_vec(&index).expect("an index is JSON")
}

/// A reference to `repository:tag` at a registry's host.
pub fn reference(host: &str, name: &str) -> Reference {
    format!("{host}/{name}").parse().expect("a test name is valid")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn tar_reads_what_a_layer_writes() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
        let layer =
            Layer::new().file("a", "hello").dir("e").symlink("l", "a").hardlink("h", "a").file(&long, "x");
        let mut tar = Command::new("tar")
            .args(["-xz", "-C"])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("tar is there");
        tar.stdin.take().expect("piped").write_all(&layer.gzip()).expect("tar reads");
        assert!(tar.wait().expect("tar ends").success());
        let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).expect(path);
        assert_eq!(
            (read("a"), read("l"), read("h"), read(&long)),
            ("hello".into(), "hello".into(), "hello".into(), "x".into())
        );
        assert!(dir.path().join("e").is_dir());
    }

    #[test]
    fn the_same_layers_are_the_same_image() {
        let image = || Image::new(&[Layer::new().file("a", "b")]);
        assert_eq!(image().digest, image().digest);
        assert_eq!(image().blobs().count(), 2);
    }
}
