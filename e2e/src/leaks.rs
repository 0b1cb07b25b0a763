//! Looking for values everywhere that a build can have left them.
//!
//! Job: a value as it is, in base64 and in hexadecimal, in what was pushed (layers unpacked), on the cache's volumes, in
//! the node's logs, in all objects of the API server, in the operator's metrics.
//! Holds: what cannot be read fails the search; a value is found wherever a few of its bytes stand, also where lines break
//! it. Who searches plants something first, and sees that it is found.
//! Never: looks into the Secrets that the test made.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;
use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use flate2::read::MultiGzDecoder;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject, ListParams};
use kube::discovery::{Discovery, verbs};

use crate::test::Test;

/// Bytes of a value that are looked for as one; each form of them is too long to be there by chance.
const PIECE_BYTES: usize = 16;
/// Pieces of a value; of a longer one they are spread over it.
const PIECES_MAX: usize = 512;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// What a value was found as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// As it is.
    Plain,
    /// In base64 of either alphabet, wherever in a longer text it stands.
    Base64,
    /// In hexadecimal digits.
    Hex,
}

/// Where a value was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// What was pushed: configs, manifests, layers.
    Registry,
    /// Files of the cache's volumes, and of the folders of the pods.
    Volume,
    /// Logs of containers, and of the node's own programs.
    Log,
    /// Objects of the API server.
    Object,
    /// The operator's metrics.
    Metrics,
}

/// A value, and where it was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Leak {
    /// Which value, by the name that the test gave it.
    pub value: String,
    /// What it was found as.
    pub form: Form,
    /// Where.
    pub place: Place,
    /// Where exactly.
    pub at: String,
}

/// Values that are looked for.
#[derive(Debug)]
pub struct Search {
    patterns: AhoCorasick,
    /// Of each pattern: the value's name and the form.
    meaning: Vec<(String, Form)>,
}

/// A text that nothing else has.
pub fn random_text() -> Result<String> {
    Ok(random_bytes(32)?.into_iter().map(|byte| char::from(b'a' + byte % 26)).collect())
}

/// Bytes that nothing else has.
pub fn random_bytes(count: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

impl Search {
    /// For these values by their names.
    pub fn new(values: &[(&str, &[u8])]) -> Result<Self> {
        let mut patterns = BTreeMap::new();
        for (name, value) in values {
            ensure!(value.len() >= PIECE_BYTES, "{name} is too short to be looked for");
            for piece in pieces(value) {
                for (form, pattern) in forms(piece)? {
                    patterns.insert(pattern, ((*name).to_owned(), form));
                }
            }
        }
        let (patterns, meaning): (Vec<_>, Vec<_>) = patterns.into_iter().unzip();
        Ok(Self { patterns: AhoCorasick::new(patterns)?, meaning })
    }

    /// Everything that it finds of a test's builds; `secrets` are the Secrets that have the values.
    pub async fn everywhere(&self, test: &Test, secrets: &[&str]) -> Result<Vec<Leak>> {
        let mut found = self.objects(test, secrets).await?;
        found.extend(self.metrics(test)?);
        if !test.cluster.own {
            eprintln!("CLUSTER=current: its registry, volumes and node are not looked into");
            return Ok(found.into_iter().collect());
        }
        let state = test.cluster.state()?;
        found.extend(self.pushed(&state.join("registry"), &format!("e2e/{}", test.namespace))?);
        for folder in volumes(test, &state).await? {
            found.extend(self.files(&folder, Place::Volume)?);
        }
        for folder in ["pod-logs", "logs"] {
            found.extend(self.files(&state.join(folder), Place::Log)?);
        }
        Ok(found.into_iter().collect())
    }

    /// What is found in the blobs of all repositories below a name, in the folder of a registry.
    pub fn pushed(&self, registry: &Path, name: &str) -> Result<BTreeSet<Leak>> {
        let root = registry.join("docker/registry/v2");
        let (mut digests, mut found) = (BTreeSet::new(), BTreeSet::new());
        for file in files_below(&root.join("repositories").join(name))? {
            if file.file_name().is_some_and(|name| name == "link") {
                let digest = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
                digests.insert(digest.trim().trim_start_matches("sha256:").to_owned());
            } else {
                // An upload that was never finished.
                found.extend(self.file(&file, Place::Registry)?);
            }
        }
        ensure!(!digests.is_empty(), "nothing was pushed to {name}");
        for digest in digests {
            let file = root.join(format!("blobs/sha256/{}/{digest}/data", &digest[..2]));
            let start = start_of(&file)?;
            ensure!(
                start == GZIP || start.first() == Some(&b'{'),
                "{digest}: neither gzip nor JSON: say how it is read"
            );
            found.extend(self.file(&file, Place::Registry)?);
        }
        Ok(found)
    }

    /// What is found in the files below a folder, and in their names.
    fn files(&self, folder: &Path, place: Place) -> Result<BTreeSet<Leak>> {
        let mut found = BTreeSet::new();
        for file in files_below(folder)? {
            found.extend(self.file(&file, place)?);
        }
        Ok(found)
    }

    /// What is found in a file, its name and what it unpacks to.
    fn file(&self, path: &Path, place: Place) -> Result<BTreeSet<Leak>> {
        let shown = path.display().to_string();
        let look = || {
            let mut found = self.read(Cursor::new(path.as_os_str().as_bytes()), place, &shown)?;
            let kind = std::fs::symlink_metadata(path)?.file_type();
            if kind.is_symlink() {
                let target = std::fs::read_link(path)?;
                found.extend(self.read(Cursor::new(target.as_os_str().as_bytes()), place, &shown)?);
            } else if kind.is_file() {
                found.extend(self.read(File::open(path)?, place, &shown)?);
                if start_of(path)? == GZIP {
                    let inside = MultiGzDecoder::new(File::open(path)?);
                    found.extend(self.read(inside, place, &format!("{shown} (unpacked)"))?);
                }
            }
            io::Result::Ok(found)
        };
        let found = look();
        unless_gone(found).with_context(|| shown.clone())
    }

    fn read(&self, bytes: impl Read, place: Place, at: &str) -> io::Result<BTreeSet<Leak>> {
        let mut found = BTreeSet::new();
        for hit in self.patterns.stream_find_iter(bytes) {
            let (value, form) = self.meaning[hit?.pattern().as_usize()].clone();
            found.insert(Leak { value, form, place, at: at.to_owned() });
        }
        Ok(found)
    }

    /// What is found in all objects of all kinds in all namespaces.
    async fn objects(&self, test: &Test, secrets: &[&str]) -> Result<BTreeSet<Leak>> {
        let mut found = BTreeSet::new();
        let mut kinds = 0;
        let all = Discovery::new(test.client.clone()).run().await?;
        for (resource, can) in all.groups().flat_map(|group| group.recommended_resources()) {
            if !can.supports_operation(verbs::LIST) {
                continue;
            }
            kinds += 1;
            let api: Api<DynamicObject> = Api::all_with(test.client.clone(), &resource);
            let listed = api.list(&ListParams::default()).await.with_context(|| resource.plural.clone())?;
            for object in listed {
                let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
                let own = resource.kind == "Secret" && namespace == test.namespace;
                if !(own && secrets.contains(&name.as_str())) {
                    let at = format!("{}.{} {namespace}/{name}", resource.plural, resource.group);
                    let text = serde_json::to_vec(&object)?;
                    found.extend(self.read(Cursor::new(text), Place::Object, &at)?);
                }
            }
        }
        ensure!(kinds > 40, "the API server has {kinds} kinds only");
        Ok(found)
    }

    fn metrics(&self, test: &Test) -> Result<BTreeSet<Leak>> {
        let mut found = BTreeSet::new();
        for (pod, text) in test.cluster.ask_operators(8080, "metrics")? {
            found.extend(self.read(Cursor::new(text), Place::Metrics, &pod)?);
        }
        Ok(found)
    }
}

/// Folders of the volumes that the test's claims have, and of the directories that its pods had.
async fn volumes(test: &Test, state: &Path) -> Result<Vec<PathBuf>> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(test.client.clone(), &test.namespace);
    let mut folders = Vec::new();
    for claim in claims.list(&ListParams::default()).await? {
        let volume = claim.spec.and_then(|spec| spec.volume_name).context("a claim without a volume")?;
        folders.push(state.join("volumes").join(volume));
    }
    for pod in test.pods.list(&ListParams::default()).await? {
        let folder = state.join("kubelet/pods").join(pod.uid().unwrap_or_default());
        let directories = folder.join("volumes/kubernetes.io~empty-dir");
        if directories.exists() {
            folders.push(directories);
        }
    }
    Ok(folders)
}

/// All that is below a folder and is no folder itself.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    ensure!(folder.is_dir(), "there is no {}", folder.display());
    let mut folders = vec![folder.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder).map(Iterator::collect::<Vec<_>>);
        for entry in unless_gone(entries).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => folders.push(entry.path()),
                false => files.push(entry.path()),
            }
        }
    }
    Ok(files)
}

/// The logs of other tests' pods go while one looks: what is gone has nothing.
fn unless_gone<T: Default>(result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        other => other,
    }
}

fn start_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    File::open(path)?.take(GZIP.len() as u64).read_to_end(&mut start)?;
    Ok(start)
}

/// Parts of a value, its end among them.
fn pieces(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let stride = (value.len() / PIECES_MAX).max(PIECE_BYTES);
    let last = value.len() - PIECE_BYTES;
    (0..last).step_by(stride).chain([last]).map(|at| &value[at..at + PIECE_BYTES])
}

fn forms(piece: &[u8]) -> Result<Vec<(Form, Vec<u8>)>> {
    let hex = |digits: &[u8; 16]| {
        let pair = |byte: &u8| [digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]];
        piece.iter().flat_map(pair).collect::<Vec<u8>>()
    };
    let mut forms = vec![
        (Form::Plain, piece.to_vec()),
        (Form::Hex, hex(b"0123456789abcdef")),
        (Form::Hex, hex(b"0123456789ABCDEF")),
    ];
    for alphabet in [STANDARD, URL_SAFE] {
        for before in 0..3 {
            forms.push((Form::Base64, base64_inside(piece, &alphabet, before)?));
        }
    }
    Ok(forms)
}

/// The characters that a piece alone decides, of a text in base64 that has so many bytes before it.
fn base64_inside(piece: &[u8], alphabet: &Alphabet, before: usize) -> Result<Vec<u8>> {
    let engine = GeneralPurpose::new(alphabet, GeneralPurposeConfig::new().with_encode_padding(false));
    let mut text = engine.encode([&vec![0; before], piece].concat()).into_bytes();
    text.truncate((before + piece.len()) * 8 / 6);
    let Some(inside) = text.get((before * 8).div_ceil(6)..) else { bail!("a piece of no length") };
    Ok(inside.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(search: &Search, text: &[u8]) -> Vec<Form> {
        let leaks = search.read(Cursor::new(text), Place::Log, "here").unwrap();
        leaks.into_iter().map(|leak| leak.form).collect()
    }

    fn search(value: &[u8]) -> Search {
        Search::new(&[("a", value)]).unwrap()
    }

    #[test]
    fn a_value_is_found_in_each_form_wherever_it_stands() {
        let value = b"a-value-that-is-looked-for-0123456789";
        let search = search(value);
        assert_eq!(found(&search, b"nothing of it: another-value-that-is-looked-at"), []);
        for before in ["", "x", "xx", "xxx"] {
            let text = [before.as_bytes(), value, b" and more"].concat();
            assert_eq!(found(&search, &text), [Form::Plain], "{before}");
            for engine in [base64::prelude::BASE64_STANDARD, base64::prelude::BASE64_URL_SAFE] {
                assert_eq!(found(&search, engine.encode(&text).as_bytes()), [Form::Base64], "{before}");
            }
            let hex: String = text.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found(&search, hex.as_bytes()), [Form::Hex], "{before}");
            assert_eq!(found(&search, hex.to_uppercase().as_bytes()), [Form::Hex], "{before}");
        }
    }

    #[test]
    fn a_part_of_a_value_is_found_too() {
        let value = random_bytes(400 * 1024).unwrap();
        let search = search(&value);
        for at in [0, 12_345, value.len() - 2048] {
            assert_eq!(found(&search, &value[at..at + 2048]), [Form::Plain], "{at}");
        }
        let small = random_text().unwrap();
        let (start, end) = small.split_at(16);
        assert_eq!(
            found(&self::search(small.as_bytes()), format!("{start}\n{end}").as_bytes()),
            [Form::Plain]
        );
    }

    #[test]
    fn packed_files_are_unpacked_and_names_are_read() {
        let value = random_text().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut packed, format!("some {value} in a layer").as_bytes()).unwrap();
        std::fs::create_dir(folder.path().join("a")).unwrap();
        std::fs::write(folder.path().join("a/layer"), packed.finish().unwrap()).unwrap();
        std::fs::write(folder.path().join(&value), "").unwrap();
        std::os::unix::fs::symlink(&value, folder.path().join("link")).unwrap();
        let leaks = search(value.as_bytes()).files(folder.path(), Place::Volume).unwrap();
        let at: Vec<_> = leaks.iter().map(|leak| leak.at.rsplit('/').next().unwrap()).collect();
        assert_eq!(at.len(), 3, "{at:?}");
        assert!(at.contains(&"layer (unpacked)") && at.contains(&"link"), "{at:?}");
    }
}
