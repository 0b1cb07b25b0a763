//! What a case left behind, as plain facts by name: what is compared.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use lapstrake_oci::Digest;
use lapstrake_testkit::registry::Storage;
use serde_json::Value;

use crate::Result;
use crate::image;

/// A longer text is shown by its digest.
const SHOWN_BYTES_MAX: usize = 300;
/// Keys whose values differ from run to run, or count bytes that are packed otherwise.
const VARYING: [&str; 9] = [
    "size",
    "buildx.build.ref",
    "id",
    "startedOn",
    "finishedOn",
    "invocationId",
    "buildInvocationId",
    "buildStartedOn",
    "buildFinishedOn",
];

/// Facts by name.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    all: BTreeMap<String, String>,
    start: u64,
    exact: bool,
}

impl Facts {
    /// None yet. What is younger than `start`, seconds since 1970, is from now; digests count where it is `exact`.
    pub(crate) fn new(start: u64, exact: bool) -> Self {
        Self { all: BTreeMap::new(), start, exact }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Shows all, a line each.
    pub(crate) fn print(&self) {
        self.all.iter().for_each(|(name, value)| println!("  {name}: {value}"));
    }

    pub(crate) fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.all.insert(name.into(), value.into());
    }

    /// All that differs, a line each.
    pub(crate) fn differences(&self, theirs: &Self) -> Vec<String> {
        let mut names: Vec<_> = self.all.keys().chain(theirs.all.keys()).collect();
        names.sort();
        names.dedup();
        let shown =
            |facts: &Self, name: &String| facts.all.get(name).cloned().unwrap_or_else(|| "(none)".into());
        let pairs = names.into_iter().map(|name| (name, shown(self, name), shown(theirs, name)));
        pairs.filter(|(_, a, b)| a != b).map(|(name, a, b)| format!("{name}: {a} - {b}")).collect()
    }

    /// Takes the name of the world out of all values.
    pub(crate) fn unname(&mut self, who: &str) {
        let names = [format!("/{who}/"), format!("%2F{who}%2F")];
        for value in self.all.values_mut() {
            for name in &names {
                *value = value.replace(name.as_str(), "/WHO/");
            }
        }
    }

    /// All that lies in a folder: images and archives by what is in them.
    pub(crate) fn folder(&mut self, below: &str, dir: &Path) -> Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let path = entry.path();
            let name = format!("{below}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type()?;
            if kind.is_dir() && path.join("oci-layout").exists() {
                let index = fs::read(path.join("index.json"))?;
                let blob = |digest: &Digest| fs::read(path.join("blobs/sha256").join(digest.hex())).ok();
                image::index(self, &name, &index, &blob)?;
            } else if kind.is_dir() {
                self.file(&name, &path)?;
                self.folder(&format!("{name}/"), &path)?;
            } else if kind.is_file() && name.ends_with(".tar") {
                image::archive(self, &name, &fs::read(&path)?)?;
            } else if kind.is_file() && name.ends_with(".json") && !name.contains('/') {
                match serde_json::from_slice(&fs::read(&path)?) {
                    Ok(value) => self.json(&name, &value),
                    Err(error) => self.add(name, format!("no JSON: {error}")),
                }
            } else if kind.is_file() && name.ends_with(".txt") && !name.contains('/') {
                let text = fs::read_to_string(&path)?;
                self.add(name, if self.exact { text } else { plain(&text) });
            } else {
                self.file(&name, &path)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, name: &str, path: &Path) -> Result<()> {
        let meta = fs::symlink_metadata(path)?;
        let mode = meta.permissions().mode() & 0o7777;
        let owner = format!("{}:{}", meta.uid(), meta.gid());
        let time = self.time(u64::try_from(meta.mtime()).unwrap_or(0));
        let fact = if meta.is_symlink() {
            format!("link to {}", fs::read_link(path)?.display())
        } else if meta.is_dir() {
            format!("directory {mode:o} {owner}")
        } else if meta.is_file() {
            format!("file {mode:o} {owner} {time} {}", content(&fs::read(path)?))
        } else {
            format!("special {mode:o} {owner}")
        };
        self.add(name, fact);
        Ok(())
    }

    /// A time, if it is from before this run.
    pub(crate) fn time(&self, seconds: u64) -> String {
        if seconds >= self.start { "now".to_owned() } else { format!("t={seconds}") }
    }

    /// What was pushed to a repository under tags.
    pub(crate) fn pushed(&mut self, storage: &Storage, repository: &str) -> Result<()> {
        for tag in storage.tags(repository).into_keys() {
            let (_, bytes, _) = storage.manifest(repository, &tag).ok_or("a tag without a manifest")?;
            let blob = |digest: &Digest| {
                fs::read(storage.blob_path(digest))
                    .ok()
                    .or_else(|| storage.manifest(repository, &digest.to_string()).map(|(_, bytes, _)| bytes))
            };
            image::document(self, &format!("pushed:{tag}"), &bytes, &blob)?;
        }
        Ok(())
    }

    /// A document, value by value.
    pub(crate) fn json(&mut self, at: &str, value: &Value) {
        match value {
            Value::Object(map) => {
                if map.is_empty() {
                    self.add(at, "{}");
                }
                for (key, value) in map {
                    if VARYING.contains(&key.as_str()) && !self.exact {
                        self.add(format!("{at}.{key}"), "(varies)");
                    } else {
                        self.json(&format!("{at}.{key}"), value);
                    }
                }
            }
            Value::Array(list) => {
                self.add(format!("{at}.length"), list.len().to_string());
                for (index, value) in list.iter().enumerate() {
                    self.json(&format!("{at}[{index}]"), value);
                }
            }
            Value::String(text) => {
                let text = if self.exact { text.clone() } else { plain(text) };
                let text = match is_time(&text) && text.get(..19) >= Some(self.start_text().as_str()) {
                    true => "now".to_owned(),
                    false => text,
                };
                self.add(at, text);
            }
            other => self.add(at, other.to_string()),
        }
    }

    /// The suite's start as RFC 3339 has it, without the zone.
    fn start_text(&self) -> String {
        let (days, rest) = (self.start / 86400, self.start % 86400);
        // Days since 1970 as a date: Howard Hinnant's algorithm.
        let shifted = days + 719_468;
        let (era, of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
    }

    /// The files of an archive.
    pub(crate) fn tar(&mut self, below: &str, reader: impl std::io::Read) -> Result<()> {
        let mut archive = tar::Archive::new(reader);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
            let header = entry.header().clone();
            let mut fact = String::new();
            write!(
                fact,
                "{:?} {:o} {}:{}",
                header.entry_type(),
                header.mode()?,
                header.uid()?,
                header.gid()?
            )?;
            if let Some(link) = entry.link_name_bytes() {
                write!(fact, " to {}", String::from_utf8_lossy(&link))?;
            }
            if !header.entry_type().is_dir() {
                write!(fact, " {}", self.time(header.mtime()?))?;
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            if header.entry_type().is_file() {
                write!(fact, " {}", content(&bytes))?;
            }
            let name = format!("{below}/{}", path.trim_end_matches('/'));
            let (folder, file) = name.rsplit_once('/').unwrap_or(("", &name));
            if let Some(gone) = file.strip_prefix(".wh.").filter(|gone| !gone.starts_with(".wh.")) {
                let gone = format!("{folder}/{gone}");
                let inside = format!("{gone}/");
                self.all.retain(|name, _| *name != gone && !name.starts_with(&inside));
                continue;
            }
            self.add(name, fact);
        }
        Ok(())
    }
}

fn content(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.len() <= SHOWN_BYTES_MAX => format!("{:?}", plain(text)),
        _ => format!("{} {}", bytes.len(), Digest::of(bytes)),
    }
}

fn is_time(text: &str) -> bool {
    text.len() >= 20 && text.as_bytes().get(10) == Some(&b'T') && text.starts_with("20")
}

/// A text without what differs from run to run: digests, identifiers, folders of a run, ports.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    for c in text.chars().chain(['\0']) {
        if c.is_ascii_alphanumeric() {
            word.push(c);
            continue;
        }
        let hex = word.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let mixed = word.bytes().any(|b| b.is_ascii_digit()) && word.bytes().all(|b| !b.is_ascii_uppercase());
        match word.len() {
            64 | 40 if hex => out.push_str("HEX"),
            25 if mixed => out.push_str("ID"),
            _ => out.push_str(&word),
        }
        word.clear();
        if c != '\0' {
            out.push(c);
        }
    }
    folders(&out)
}

/// Names of the folders of a run: `…/cl-xxxx/t/…` is `RUN/…`.
fn folders(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("/cl-") {
        let (before, after) = rest.split_at(at);
        let begin =
            before.rfind(|c: char| !(c.is_ascii_alphanumeric() || "/._-".contains(c))).map_or(0, |i| i + 1);
        out.push_str(&before[..begin]);
        out.push_str("RUN");
        let mut parts = after[1..].splitn(3, '/');
        parts.next();
        parts.next();
        match parts.next() {
            Some(more) => {
                out.push('/');
                rest = more;
            }
            None => rest = "",
        }
    }
    out + rest
}
