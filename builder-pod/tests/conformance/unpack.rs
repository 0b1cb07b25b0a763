//! From an image to a file system, without any code of the builder.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::place::{run, tar};

/// The layers of the one image in a layout, lowest first.
pub(crate) fn layers(layout: &Path) -> Vec<PathBuf> {
    let blob = |digest: &Value| layout.join("blobs").join(digest.as_str().unwrap().replace(':', "/"));
    let json = |path: PathBuf| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap();
    let manifest = json(blob(&json(layout.join("index.json"))["manifests"][0]["digest"]));
    manifest["layers"].as_array().unwrap().iter().map(|layer| blob(&layer["digest"])).collect()
}

pub(crate) fn docker_layers(archive: &Path, into: &Path) -> Vec<PathBuf> {
    fs::create_dir(into).unwrap();
    run(tar().arg("-xf").arg(archive).arg("-C").arg(into));
    let manifest: Value = serde_json::from_slice(&fs::read(into.join("manifest.json")).unwrap()).unwrap();
    manifest[0]["Layers"].as_array().unwrap().iter().map(|layer| into.join(layer.as_str().unwrap())).collect()
}

/// Unpacks layers by GNU tar, and does by hand what tar knows nothing of: whiteouts, and what was a
/// directory becoming something else.
pub(crate) fn unpack(layers: &[PathBuf], root: &Path) {
    fs::create_dir(root).unwrap();
    for layer in layers {
        let listed = run(tar().args(["--list", "--quoting-style=escape", "--file"]).arg(layer));
        let names: Vec<Vec<u8>> =
            listed.stdout.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(unescape).collect();
        let (marks, entries): (Vec<_>, Vec<_>) =
            names.iter().partition(|name| file_name(name).starts_with(b".wh."));
        for mark in marks {
            let (dir, name) = (root.join(OsStr::from_bytes(parent(mark))), &file_name(mark)[4..]);
            if name == b".wh..opq" {
                fs::read_dir(dir).into_iter().flatten().for_each(|entry| remove(&entry.unwrap().path()));
            } else {
                remove(&dir.join(OsStr::from_bytes(name)));
            }
        }
        for entry in entries {
            let path = root.join(OsStr::from_bytes(entry.strip_suffix(b"/").unwrap_or(entry)));
            let there = fs::symlink_metadata(&path);
            if there.is_ok_and(|there| there.is_dir() != entry.ends_with(b"/")) {
                remove(&path);
            }
        }
        run(tar()
            .args(["--extract", "--same-owner", "--same-permissions", "--delay-directory-restore"])
            .args(["--exclude=.wh.*", "--directory"])
            .arg(root)
            .arg("--file")
            .arg(layer));
    }
}

fn file_name(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap_or(path)
}

fn parent(path: &[u8]) -> &[u8] {
    &path[..path.len() - file_name(path).len()]
}

/// Removes whatever has that name, and complains of nothing where nothing has: a whiteout may be of a
/// file that is below no other.
fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// Undoes tar's quoting style `escape`.
fn unescape(line: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), line);
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'\\' {
            out.push(*first);
            continue;
        }
        let octal = after
            .get(..3)
            .and_then(|o| std::str::from_utf8(o).ok())
            .and_then(|o| u8::from_str_radix(o, 8).ok());
        let (byte, length) = match (octal, after.first()) {
            (Some(byte), _) => (byte, 3),
            (None, Some(b'n')) => (b'\n', 1),
            (None, Some(other)) => (*other, 1),
            (None, None) => (b'\\', 0),
        };
        out.push(byte);
        rest = &after[length..];
    }
    out
}
