//! A state directory that does not fill the disk.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::lab::{BUILDER, Fate, Lab, tool};

/// A small file system of its own for the state; unmounted when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn new(lab: &Lab, size: &str) -> Self {
        let dir = lab.path("small");
        std::fs::create_dir(&dir).unwrap();
        tool("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "small", dir.to_str().unwrap()]);
        Self(dir)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.0).status().ok(); // said by the next assertion
    }
}

/// Runs another command of the builder on a state directory.
fn builder(lab: &Lab, state: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(BUILDER);
    command.args(args).arg("--root").arg(lab.path(state)).stdin(Stdio::null());
    let out = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code(), text(out.stdout), text(out.stderr))
}

#[track_caller]
fn builder_json(lab: &Lab, state: &str, args: &[&str]) -> Value {
    let (code, out, err) = builder(lab, state, args);
    assert_eq!(code, Some(0), "{err}");
    serde_json::from_str(&out).unwrap()
}

/// What a directory takes, counted in the simplest way.
fn walked(root: &Path) -> u64 {
    fn add(path: &Path, seen: &mut HashSet<u64>, sum: &mut u64) {
        let meta = path.symlink_metadata().unwrap();
        if seen.insert(meta.ino()) {
            *sum += meta.blocks() * 512;
        }
        if meta.is_dir() {
            std::fs::read_dir(path).unwrap().flatten().for_each(|entry| add(&entry.path(), seen, sum));
        }
    }
    let (mut seen, mut sum) = (HashSet::new(), 0);
    add(root, &mut seen, &mut sum);
    sum
}

/// The account of `du` is that of a walk, but for the index: that is written once more when it is closed.
#[track_caller]
fn assert_near(usage: &Value, state: &Path) {
    let (told, is) = (usage["totalBytes"].as_u64().unwrap(), walked(state));
    let index = walked(&state.join("index.redb"));
    assert!(told.abs_diff(is) <= index && told > 1_000_000, "{told} told, {is} walked, {index} the index");
}

fn noise(lab: &Lab, name: &str, bytes: u64) -> std::path::PathBuf {
    let text = format!("FROM @base\nRUN echo {name} && head -c {bytes} /dev/urandom >/noise\n");
    lab.context(name, &[("Dockerfile", &text)])
}

#[test]
fn a_full_volume_recovers_by_itself_in_the_next_build() {
    let lab = Lab::new();
    let _disk = SmallDisk::new(&lab, "32m");
    // Each takes half of the disk as a snapshot and as a layer; together they take more than there is.
    for name in ["one", "two", "three"] {
        let ran = lab.build_in("small/state", noise(&lab, name, 9_000_000)).ok();
        assert_eq!(ran.fate("RUN echo"), Fate::Done, "{}", ran.stderr());
    }
    // Written full by somebody else: what is freed is enough for a build that needs little.
    std::fs::write(lab.path("small/filler"), vec![1; 32 << 20]).ok();
    let ran = lab.build_in("small/state", lab.dockerfile("FROM @base\nRUN echo small >/small\n")).ok();
    assert_eq!(ran.fate("RUN echo small"), Fate::Done, "{}", ran.stderr());
    std::fs::remove_file(lab.path("small/filler")).unwrap();
    assert_near(&builder_json(&lab, "small/state", &["du", "--json"]), &lab.path("small/state"));
}

#[test]
fn a_state_stays_within_the_size_that_was_asked_for_and_what_is_kept_still_counts() {
    let lab = Lab::new();
    let limit = 16 << 20;
    for name in ["one", "two", "three", "four"] {
        let built = lab.build(noise(&lab, name, 3_000_000));
        built.args(["--cache-size", "16mb", "--push", "-t", &lab.name("sized:1")]).ok();
        let taken = walked(&lab.path("state"));
        assert!(taken <= limit, "{taken} bytes after {name}");
    }
    // The newest one was kept, whole; the first one was not.
    let again = lab.build(noise(&lab, "four", 3_000_000)).args(["--push", "-t", &lab.name("sized:2")]).ok();
    assert_eq!(again.fate("RUN echo four"), Fate::Cached);
    let first = lab.build(noise(&lab, "one", 3_000_000)).args(["--cache-size", "16mb"]).ok();
    assert_eq!(first.fate("RUN echo one"), Fate::Done);
}

#[test]
fn a_build_goes_on_while_another_ones_leavings_are_removed() {
    let lab = Lab::new();
    lab.build(noise(&lab, "old", 6_000_000)).ok();
    // The limit is passed from the start; the build's own steps are all there at its end.
    let text = "FROM @base\nRUN head -c 3000000 /dev/urandom >/a && sha256sum /a >/sums\n\
                RUN sleep 1.5\nRUN head -c 3000000 /dev/urandom >/b && sha256sum /b >>/sums\n\
                RUN sha256sum -c /sums >/checked\n";
    let dir = lab.dockerfile(text);
    let ran = lab.build(&dir).args(["--cache-size", "8mb", "-o", lab.path("files").to_str().unwrap()]).ok();
    assert_eq!(ran.ran().len(), 4, "{}", ran.stderr());
    let checked = std::fs::read_to_string(lab.path("files/checked")).unwrap();
    assert_eq!(checked.matches("OK").count(), 2, "{checked}");
    assert!(walked(&lab.path("state")) <= 8 << 20);
}

#[test]
fn du_tells_what_there_is() {
    let lab = Lab::new();
    let (code, _, err) = builder(&lab, "nothing", &["du"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("no such directory"), "{err}");
    lab.build(noise(&lab, "some", 500_000)).ok();
    let usage = builder_json(&lab, "state", &["du", "--json"]);
    assert_near(&usage, &lab.path("state"));
    let items = usage["items"].as_array().unwrap();
    let sum: u64 = items.iter().map(|item| item["sizeBytes"].as_u64().unwrap()).sum();
    assert_eq!(sum + usage["otherBytes"].as_u64().unwrap(), usage["totalBytes"].as_u64().unwrap());
    assert!(
        items
            .iter()
            .all(|item| item["inUse"] == false && item["lastUsedAt"].as_str().unwrap().starts_with("20"))
    );
    let (_, text, _) = builder(&lab, "state", &["du"]);
    assert!(text.starts_with("ID ") && text.contains("regular") && text.contains("blob"), "{text}");
    assert!(text.lines().last().unwrap().starts_with("Total:"), "{text}");
    let blobs = builder_json(&lab, "state", &["du", "--json", "--filter", "type=blob"]);
    assert!(blobs["items"].as_array().unwrap().iter().all(|item| item["type"] == "blob"));
}

#[test]
fn prune_removes_what_is_asked_for_and_asks_first() {
    let lab = Lab::new();
    let dir = noise(&lab, "some", 500_000);
    lab.build(&dir).ok();
    let before = walked(&lab.path("state"));
    let (_, out, err) = builder(&lab, "state", &["prune", "--all"]);
    assert!(out.is_empty() && err.contains("--force"), "{out} {err}");
    assert_eq!(
        builder_json(&lab, "state", &["prune", "-f", "--json", "--filter", "until=24h"])["freedBytes"],
        0
    );
    // The blobs can be made anew: the steps are still there.
    let blobs = builder_json(&lab, "state", &["prune", "-f", "--json", "--filter", "type=blob"]);
    assert!(blobs["freedBytes"].as_u64().unwrap() > 500_000, "{blobs}");
    let ran = lab.build(&dir).args(["--push", "-t", &lab.name("pruned:1")]).ok();
    assert_eq!(ran.fate("RUN echo some"), Fate::Cached);
    let done = builder_json(&lab, "state", &["prune", "-a", "-f", "--json"]);
    assert!(done["totalBytes"].as_u64().unwrap() < before, "{done}");
    let left = builder_json(&lab, "state", &["du", "--json"]);
    assert_eq!(left["items"].as_array().unwrap().len(), 0, "{left}");
    let ran = lab.build(&dir).ok();
    assert_eq!(ran.fate("RUN echo some"), Fate::Done);
    let (code, _, err) = builder(&lab, "state", &["prune", "-f", "--filter", "moon=full"]);
    assert_eq!(code, Some(2), "{err}");
}

#[test]
fn a_state_in_use_is_not_pruned() {
    let lab = Lab::new();
    let mut running = lab.build(lab.dockerfile("FROM @base\nRUN echo waits; sleep 432.1\n")).start();
    running.until("\"waits\"");
    let (code, _, err) = builder(&lab, "state", &["prune", "-a", "-f"]);
    assert_eq!(code, Some(13), "{err}");
    assert!(err.contains(&running.pid().to_string()) || err.contains("in use"), "{err}");
    running.signal("INT");
    assert_eq!(running.wait().code, Some(16));
}

#[test]
fn cache_mounts_count_and_go_when_nobody_has_them() {
    let lab = Lab::new();
    let text = |n: u32| {
        format!(
            "FROM @base\nRUN --mount=type=cache,target=/c ls /c >/seen; head -c 4000000 /dev/urandom >/c/{n}\n"
        )
    };
    let build = |n: u32, size: &str| {
        let dir = lab.context(&format!("c{n}"), &[("Dockerfile", &text(n))]);
        let out = lab.path(&format!("files{n}"));
        lab.build(dir).args(["--cache-size", size, "-o", out.to_str().unwrap()]).ok();
        std::fs::read_to_string(out.join("seen")).unwrap()
    };
    assert_eq!(build(1, "1gb"), "");
    assert_eq!(build(2, "1gb"), "1\n");
    let mounts = builder_json(&lab, "state", &["du", "--json", "--filter", "type=exec.cachemount"]);
    let size = mounts["items"][0]["sizeBytes"].as_u64().unwrap();
    assert!((8_000_000..9_000_000).contains(&size), "{mounts}");
    // More than may be: the mount counts as older than layers, and goes at the end of this build if not before.
    build(3, "10mb");
    assert!(walked(&lab.path("state")) <= 10 << 20);
    assert_eq!(build(4, "1gb"), "");
}
