//! Two images of the same source, compared in all that a client sees.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::image::{Entry, Image};

/// What two runs of one builder write differently, so that two builders may: a pattern for the path, and why. A `*` is
/// any text. Such a file must be in both images, with the same kind, mode and owner.
const MAY_DIFFER: [(&str, &str); 6] = [
    ("var/log/*", "logs have times"),
    ("var/cache/ldconfig/aux-cache", "inodes and times of libraries"),
    ("var/cache/apt/*cache.bin", "times of package lists"),
    ("var/cache/debconf/*", "times of questions"),
    ("var/lib/dpkg/*-old", "what was before the last package, in the order of the unpacking"),
    ("*.pyc", "the time of the source"),
];

/// A folder that a step's `hosts` and `resolv.conf` are put into for a while, which one builder sees as a change of it.
const TOUCHED: &str = "etc";

/// When something was made: only what is older than the suite's start has a time that must be the same.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    /// Seconds since 1970.
    pub(crate) seconds: u64,
    /// The same as RFC 3339 has it.
    pub(crate) text: String,
}

/// All differences, one a line; ours first.
pub(crate) fn differences(ours: &Image, theirs: &Image, start: &Start) -> Vec<String> {
    let mut out = Vec::new();
    let mut pair = (ours.config.clone(), theirs.config.clone());
    for config in [&mut pair.0, &mut pair.1] {
        // Digests of layers are those of times too: their number is what counts.
        if let Some(layers) = config.pointer_mut("/rootfs/diff_ids") {
            *layers = layers.as_array().map_or(0, Vec::len).into();
        }
        blur(config, start);
    }
    values("config", &pair.0, &pair.1, &mut out);
    let kinds = |image: &Image| {
        let layers = image.manifest.layers.iter().map(|layer| layer.media_type.clone());
        (
            image.manifest.media_type.clone(),
            image.manifest.config.media_type.clone(),
            layers.collect::<Vec<_>>(),
        )
    };
    if kinds(ours) != kinds(theirs) {
        out.push(format!("manifest: {:?} - {:?}", kinds(ours), kinds(theirs)));
    }
    let names: BTreeSet<_> = ours.files.keys().chain(theirs.files.keys()).collect();
    for name in names {
        match (ours.files.get(name), theirs.files.get(name)) {
            (Some(one), Some(other)) => file(name, one, other, start, &mut out),
            (Some(one), None) => out.push(format!("{name}: ours only: {one:?}")),
            (None, other) => out.push(format!("{name}: theirs only: {other:?}")),
        }
    }
    out
}

/// Times of this run become one word.
fn blur(value: &mut Value, start: &Start) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let time = value.as_str().filter(|_| key == "created");
                if time.is_some_and(|time| time >= start.text.as_str()) {
                    *value = "now".into();
                } else {
                    blur(value, start);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|value| blur(value, start)),
        _ => {}
    }
}

fn values(at: &str, ours: &Value, theirs: &Value, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(one), Value::Object(other)) => {
            for key in one.keys().chain(other.keys()).collect::<BTreeSet<_>>() {
                let (one, other) = (one.get(key), other.get(key));
                values(
                    &format!("{at}.{key}"),
                    one.unwrap_or(&Value::Null),
                    other.unwrap_or(&Value::Null),
                    out,
                );
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (index, (one, other)) in one.iter().zip(other).enumerate() {
                values(&format!("{at}[{index}]"), one, other, out);
            }
        }
        (one, other) if one == other => {}
        (one, other) => out.push(format!("{at}: {one} - {other}")),
    }
}

fn file(name: &str, ours: &Entry, theirs: &Entry, start: &Start, out: &mut Vec<String>) {
    let mut differs = |what: &str, one: String, other: String| {
        if one != other {
            out.push(format!("{name}: {what}: {one} - {other}"));
        }
    };
    differs("kind", ours.kind.clone(), theirs.kind.clone());
    differs("mode", format!("{:o}", ours.mode), format!("{:o}", theirs.mode));
    differs("owner", format!("{:?}", ours.owner), format!("{:?}", theirs.owner));
    differs("attributes", format!("{:?}", ours.xattrs), format!("{:?}", theirs.xattrs));
    if !MAY_DIFFER.iter().any(|(pattern, _)| matches(pattern, name)) {
        differs("content", format!("{:?}", ours.content), format!("{:?}", theirs.content));
        let time = |entry: &Entry| match entry.time >= start.seconds {
            true => "now".to_owned(),
            false => entry.time.to_string(),
        };
        let (one, other) = (time(ours), time(theirs));
        // A folder that is as it was but for its time is a change here, and none there.
        let unseen = ours.kind == "directory" && one == "now" && other != "now";
        if !unseen && name != TOUCHED {
            differs("time", one, other);
        }
    }
}

/// Whether a pattern with at most one `*` matches.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((head, tail)) => {
            name.len() >= head.len() + tail.len() && name.starts_with(head) && name.ends_with(tail)
        }
        None => pattern == name,
    }
}
