//! What a directory is after a transfer, and what travelled for it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use lapstrake_fileop::{Cancel, ChecksumOptions, Digest, FileStat, HashCache, Selector, View};
use proptest::prelude::*;
use prost::Message as _;
use tokio_util::sync::CancellationToken;

use super::fake::{Client, Entry, Sender, Tree};
use super::mode;
use super::wire::{Packet, Stat, Xattr, kind};
use super::{Differ, SyncProgress, SyncRequest, Synced, Target};
use crate::Error;
use crate::testing::Connected;

/// Times are about this, in nanoseconds that are no whole seconds.
const TIME_NS: i64 = 1_700_000_000_123_456_789;

fn me() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

pub(super) fn entry(path: &str, unix_mode: u32, content: &str) -> Entry {
    let (uid, gid) = me();
    let stat = Stat {
        path: path.as_bytes().to_vec(),
        mode: mode::to_go(unix_mode),
        uid,
        gid,
        size: i64::try_from(content.len()).expect("size"),
        mod_time: TIME_NS,
        ..Stat::default()
    };
    Entry { stat, content: content.as_bytes().to_vec() }
}

pub(super) fn file(path: &str, content: &str) -> Entry {
    entry(path, 0o100_644, content)
}

pub(super) fn dir(path: &str) -> Entry {
    entry(path, 0o040_755, "")
}

pub(super) fn link(path: &str, target: &str) -> Entry {
    let mut entry = entry(path, 0o120_777, target);
    entry.content.clear();
    entry.stat.linkname = target.as_bytes().to_vec();
    entry
}

fn hard(path: &str, target: &str) -> Entry {
    let mut entry = file(path, "");
    entry.stat.linkname = target.as_bytes().to_vec();
    entry
}

pub(super) fn request() -> SyncRequest {
    SyncRequest { dir_name: "context".to_owned(), ..SyncRequest::default() }
}

pub(super) async fn sync(client: &Connected, request: SyncRequest, into: &Path) -> Result<Synced, Error> {
    client.session.sync(request, into, &mut |_| {}, &CancellationToken::new()).await
}

/// What is below a directory: of each path its kind and mode, time (not of directories), contents or target.
fn found(root: &Path) -> BTreeMap<String, (u32, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).expect("read") {
            let path = entry.expect("entry").path();
            let meta = fs::symlink_metadata(&path).expect("stat");
            let time = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
            let content = if meta.is_symlink() {
                fs::read_link(&path).expect("link").as_os_str().as_bytes().to_vec()
            } else if meta.is_file() {
                brief(fs::read(&path).expect("read"))
            } else {
                Vec::new()
            };
            if meta.is_dir() {
                dirs.push(path.clone());
            }
            let name = path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
            found.insert(name, (meta.mode(), time, content));
        }
    }
    found
}

/// Contents, shortened for messages.
fn brief(content: Vec<u8>) -> Vec<u8> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    if content.len() <= 64 {
        return content;
    }
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish().to_be_bytes().to_vec()
}

/// The same of a tree that was sent.
fn expected(tree: &[Entry]) -> BTreeMap<String, (u32, i64, Vec<u8>)> {
    let text = |path: &[u8]| String::from_utf8(path.to_vec()).expect("text");
    let mut expected = BTreeMap::new();
    for Entry { stat, content } in tree {
        let kind = mode::Kind::of(stat.mode);
        let bits = kind.file_type().expect("a kind").as_raw_mode() | mode::permissions(stat.mode);
        let value = match kind {
            mode::Kind::Symlink => (bits, stat.mod_time, stat.linkname.clone()),
            mode::Kind::File if !stat.linkname.is_empty() => {
                BTreeMap::get(&expected, &text(&stat.linkname)).cloned().expect("target")
            }
            _ => (bits, stat.mod_time, brief(content.clone())),
        };
        expected.insert(text(&stat.path), value);
    }
    expected
}

fn sample() -> Tree {
    vec![
        dir("bin"),
        entry("bin/run", 0o100_755, "#!/bin/sh\n"),
        entry("bin/suid", 0o104_755, "s"),
        file("empty", ""),
        link("latest", "no/such/target"),
        dir("src"),
        dir("src/deep"),
        file("src/deep/\u{fc}.txt", "umlaut"),
        file("src/large", &"0123456789".repeat(100_000)),
        hard("src/twin", "bin/run"),
        file("src.txt", "after the directory of this name"),
    ]
}

#[tokio::test]
async fn a_tree_arrives_as_it_is_with_times_to_the_nanosecond() {
    let into = tempfile::tempdir().expect("dir");
    let me = Client::new(Sender::Tree(sample()));
    let client = me.connect().await;
    let mut last = SyncProgress::default();
    let synced = client
        .session
        .sync(request(), into.path(), &mut |progress| last = progress, &CancellationToken::new())
        .await
        .expect("sync");
    assert_eq!(found(into.path()), expected(&sample()));
    let grown = synced.grown;
    let want =
        Synced { entries: 11, files_sent: 6, bytes: 1_000_049, changed: true, grown: None, bare: true };
    assert_eq!(Synced { grown: None, ..synced }, want);
    assert_eq!(grown, None, "a file with several names");
    assert_eq!(last, SyncProgress { files: 6, bytes: 1_000_049 });
    let ino = |path: &str| fs::metadata(into.path().join(path)).expect("stat").ino();
    assert_eq!(ino("bin/run"), ino("src/twin"));
    assert!(me.seen.lock().expect("lock").finished);
}

#[tokio::test]
async fn what_did_not_change_is_neither_sent_nor_written_again() {
    let into = tempfile::tempdir().expect("dir");
    let me = Client::new(Sender::Tree(sample()));
    let client = me.connect().await;
    sync(&client, request(), into.path()).await.expect("sync");
    let changed = |path: &Path| {
        let meta = fs::symlink_metadata(path).expect("stat");
        (meta.ino(), meta.ctime(), meta.ctime_nsec())
    };
    let all =
        || found(into.path()).into_keys().map(|path| changed(&into.path().join(path))).collect::<Vec<_>>();
    let before = all();
    me.becomes(sample());
    let synced = sync(&client, request(), into.path()).await.expect("sync");
    let grown = Some(0);
    assert_eq!(synced, Synced { entries: 11, files_sent: 0, bytes: 0, changed: false, grown, bare: true });
    assert_eq!(all(), before);
    let everything = SyncRequest { differ: Differ::None, ..request() };
    assert_eq!(sync(&client, everything, into.path()).await.expect("sync").files_sent, 6);
    assert_eq!(found(into.path()), expected(&sample()));
}

#[tokio::test]
async fn only_what_is_other_is_sent_and_what_is_gone_is_removed() {
    let into = tempfile::tempdir().expect("dir");
    let me = Client::new(Sender::Tree(sample()));
    let client = me.connect().await;
    sync(&client, request(), into.path()).await.expect("sync");
    let mut next = sample();
    next.retain(|entry| !entry.stat.path.starts_with(b"src/deep") && entry.stat.path != b"latest");
    next[1].stat.mod_time += 1;
    next[3] = dir("empty");
    me.becomes(next.clone());
    let synced = sync(&client, request(), into.path()).await.expect("sync");
    assert_eq!(found(into.path()), expected(&next));
    assert_eq!((synced.files_sent, me.requested()), (1, vec![1]));
    let ino = |path: &str| fs::metadata(into.path().join(path)).expect("stat").ino();
    assert_eq!(ino("bin/run"), ino("src/twin"), "the twin follows the file that was replaced");
}

#[tokio::test]
async fn a_name_of_a_file_of_two_names_becomes_a_file_of_its_own() {
    let into = tempfile::tempdir().expect("dir");
    let me = Client::new(Sender::Tree(vec![file("a", "same"), hard("b", "a")]));
    let client = me.connect().await;
    sync(&client, request(), into.path()).await.expect("sync");
    me.becomes(vec![file("a", "same"), file("b", "diff")]);
    sync(&client, request(), into.path()).await.expect("sync");
    assert_eq!(fs::read_to_string(into.path().join("a")).expect("read"), "same");
    assert_eq!(fs::read_to_string(into.path().join("b")).expect("read"), "diff");
    assert_eq!(me.requested(), [1]);
}

#[tokio::test]
async fn attributes_travel_and_one_that_is_gone_is_a_change() {
    let into = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("dir");
    let xattr = |name: &str| Xattr { key: name.as_bytes().to_vec(), value: b"v".to_vec() };
    let mut tree = vec![dir("d"), file("f", "x")];
    for entry in &mut tree {
        // Those of overlays would change what a directory of layers means.
        entry.stat.xattrs =
            vec![xattr("user.kept"), xattr("user.overlay.opaque"), xattr("trusted.overlay.opaque")];
    }
    let me = Client::new(Sender::Tree(tree.clone()));
    let client = me.connect().await;
    sync(&client, request(), into.path()).await.expect("sync");
    let names = |path: &str| {
        let mut names = vec![0; 4096];
        let length = rustix::fs::listxattr(into.path().join(path), &mut names[..]).expect("list");
        String::from_utf8(names[..length].to_vec()).expect("text")
    };
    assert_eq!((names("d").as_str(), names("f").as_str()), ("user.kept\0", "user.kept\0"));
    assert!(!sync(&client, request(), into.path()).await.expect("sync").changed);
    for entry in &mut tree {
        entry.stat.xattrs.clear();
    }
    me.becomes(tree);
    assert!(sync(&client, request(), into.path()).await.expect("sync").changed);
    assert_eq!((names("d").as_str(), names("f").as_str()), ("", ""));
}

#[test]
fn a_name_need_not_be_utf8() {
    let into = tempfile::tempdir().expect("dir");
    let mut odd = file("x", "odd");
    odd.stat.path = vec![0xff, b'x'];
    let (requests, mut asked) = tokio::sync::mpsc::channel(8);
    let (packets, incoming) = tokio::sync::mpsc::channel(8);
    let task = super::Task {
        name: "context".to_owned(),
        differ: Differ::Metadata,
        metadata_only: None,
        requests,
        progress: tokio::sync::watch::Sender::default(),
    };
    let content = |data: &'static [u8]| Packet { data: data.into(), ..Packet::of(kind::DATA) };
    let all = [super::fake::listing(&[odd]), vec![content(b"odd"), content(b"")]].concat();
    // As bytes on the wire.
    let all = all.iter().map(|packet| Packet::decode(packet.encode_to_vec().as_slice()).expect("packet"));
    packets.try_send(all.collect()).expect("send");
    super::receive::receive(&into.path().into(), task, incoming).expect("receive");
    let name = std::ffi::OsStr::from_bytes(&[0xff, b'x']);
    assert_eq!(fs::read_to_string(into.path().join(name)).expect("read"), "odd");
    assert_eq!(asked.try_recv().expect("request").id, 0);
    assert_eq!(asked.try_recv().expect("end").kind, kind::FIN);
}

#[tokio::test]
async fn what_is_asked_for_is_said_in_headers() {
    let into = tempfile::tempdir().expect("dir");
    let me = Client::new(Sender::Tree(Tree::new()));
    let client = me.connect().await;
    let asked = SyncRequest {
        include: vec!["a".to_owned(), "b".to_owned()],
        exclude: vec!["\u{fc}".to_owned()],
        follow_paths: vec!["c".to_owned()],
        ..request()
    };
    sync(&client, asked, into.path()).await.expect("sync");
    let seen = me.seen.lock().expect("lock");
    let values =
        |key: &str| seen.headers.get_all(key).iter().map(|v| v.to_str().expect("text")).collect::<Vec<_>>();
    assert_eq!(values("dir-name"), ["context"]);
    assert_eq!(values("include-patterns"), ["a", "b"]);
    assert_eq!((values("exclude-patterns"), values("exclude-patterns-encoded")), (vec!["%C3%BC"], vec!["1"]));
    assert_eq!(values("followpaths"), ["c"]);
}

#[tokio::test]
async fn of_metadata_only_the_listing_is_kept_and_what_is_excepted_is_sent() {
    let into = tempfile::tempdir().expect("dir");
    let me = Client::new(Sender::Tree(sample()));
    let client = me.connect().await;
    let asked =
        SyncRequest { metadata_only: Some(vec!["src/deep".to_owned(), "src.txt".to_owned()]), ..request() };
    let synced = sync(&client, asked.clone(), into.path()).await.expect("sync");
    let paths: Vec<_> = found(into.path()).into_keys().collect();
    assert_eq!(paths, [".fsutil-metadata", "src", "src.txt", "src/deep", "src/deep/\u{fc}.txt"]);
    assert_eq!((synced.entries, me.requested()), (11, vec![7, 10]));
    let mut listing = &fs::read(into.path().join(".fsutil-metadata")).expect("read")[..];
    let mut listed = Vec::new();
    while let Some((length, rest)) = listing.split_first_chunk::<4>() {
        let (stat, rest) = rest.split_at(u32::from_le_bytes(*length) as usize);
        listed.push(<Stat as prost::Message>::decode(stat).expect("stat"));
        listing = rest;
    }
    assert_eq!(listed, sample().into_iter().map(|entry| entry.stat).collect::<Vec<_>>());
    assert!(!sync(&client, asked, into.path()).await.expect("sync").changed);
}

#[tokio::test]
async fn files_are_read_without_a_directory() {
    let mut tree = sample();
    tree[4] = link("latest", "src/deep/../../src.txt");
    let me = Client::new(Sender::Tree(tree));
    let client = me.connect().await;
    let read = client.session.read_files("context", &["latest", "none", "src.txt", "bin"], 100).await;
    let text = Some(b"after the directory of this name".to_vec());
    assert_eq!(read.expect("read"), [text.clone(), None, text, None]);
    assert_eq!(me.requested(), [10]);
    let error =
        client.session.read_file("context", "src/large", 100).await.expect_err("too large").to_string();
    assert_eq!(error, "\"src/large\" has more than 100 bytes");
}

#[tokio::test]
async fn a_directory_is_sent_as_it_is() {
    let from = tempfile::tempdir().expect("dir");
    let at = |path: &str| from.path().join(path);
    fs::create_dir_all(at("a/b")).expect("mkdir");
    fs::write(at("a/b/large"), vec![b'x'; 100_000]).expect("write");
    fs::write(at("a.txt"), "text").expect("write");
    fs::set_permissions(at("a.txt"), fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::hard_link(at("a.txt"), at("b.txt")).expect("link");
    symlink("a/b", at("c")).expect("symlink");
    let me = Client::new(Sender::Tree(Tree::new()));
    let client = me.connect().await;
    let headers = [(super::MULTI_PLATFORM.to_owned(), "1".to_owned())];
    let none = CancellationToken::new();
    let sent = client.session.send_tree(from.path(), 3, &headers, &mut |_| {}, &none).await.expect("send");
    me.said.notified().await;
    assert_eq!((sent.files, sent.bytes), (2, 100_004));
    let received = me.received.lock().expect("lock").clone();
    assert_eq!(found(from.path()), expected(&received));
    assert_eq!(received[4].stat.linkname, b"a.txt", "the second name is a link");
    let seen = me.seen.lock().expect("lock");
    assert_eq!(seen.headers.get("buildkit-attachable-exporter-id").expect("id"), "3");
    assert_eq!(seen.headers.get(super::MULTI_PLATFORM).expect("header"), "1");
}

#[tokio::test]
async fn an_output_that_the_client_refuses_says_why() {
    let from = tempfile::tempdir().expect("dir");
    let client = Client::new(Sender::Refuses(tonic::Status::unknown("exporter 0 not found"))).connect().await;
    let sent = client.session.send_tree(from.path(), 0, &[], &mut |_| {}, &CancellationToken::new()).await;
    assert_eq!(sent.expect_err("refused").to_string(), "send files: exporter 0 not found");
}

/// A tree as nodes by path: what a directory, file or link is.
fn trees() -> impl Strategy<Value = Tree> {
    let name = prop::sample::select(vec!["a", "a.b", "a-b", "b", "B"]);
    let path = prop::collection::vec(name, 1..4);
    let node = (0..8u8, 0..4u16, prop::sample::select(vec![0o644, 0o755, 0o600]));
    prop::collection::vec((path, node), 0..24).prop_map(|nodes| {
        let mut tree: BTreeMap<Vec<&str>, Entry> = BTreeMap::new();
        let mut files: Vec<String> = Vec::new();
        for (parts, (kind, seed, mode)) in nodes {
            let is_dir = |path: &[&str]| tree.get(path).is_none_or(|e| e.stat.mode == dir("x").stat.mode);
            if !(1..parts.len()).all(|length| is_dir(&parts[..length])) || tree.contains_key(&parts) {
                continue;
            }
            for length in 1..parts.len() {
                let parent = &parts[..length];
                tree.entry(parent.to_vec()).or_insert_with(|| dir(&parent.join("/")));
            }
            let path = parts.join("/");
            let earlier = files.iter().find(|file| file.split('/').lt(path.split('/')));
            let entry = match (kind, earlier) {
                (0, _) => dir(&path),
                (1, _) => link(&path, ["x", "../y", "/etc", "a"][usize::from(seed)]),
                (2, Some(target)) => hard(&path, target),
                (3, _) => {
                    let mut large = entry(&path, 0o100_644, &seed.to_string().repeat(300_000));
                    // Files of one size and time are taken for the same.
                    large.stat.mod_time += i64::from(seed);
                    large
                }
                _ => entry(&path, 0o100_000 | mode, &"x".repeat(seed.into())),
            };
            if mode::Kind::of(entry.stat.mode) == mode::Kind::File && entry.stat.linkname.is_empty() {
                files.push(path);
            }
            tree.insert(parts, entry);
        }
        tree.into_values().collect()
    })
}

/// The places of files that must travel so that `new` follows `old`, and of those that may: what was another name of a
/// file like it need not be told from it.
fn needed(old: &[Entry], new: &[Entry]) -> (Vec<u32>, Vec<u32>) {
    let is_file = |entry: &Entry| mode::Kind::of(entry.stat.mode) == mode::Kind::File;
    let named = |path: &[u8]| old.iter().find(|entry| entry.stat.path == path);
    let was = |entry: &Entry| {
        let before = named(&entry.stat.path)?;
        let target = named(&before.stat.linkname).filter(|_| is_file(before));
        let mut file = target.unwrap_or(before).clone();
        file.stat.path.clone_from(&entry.stat.path);
        Some(file)
    };
    let (mut must, mut may) = (Vec::new(), Vec::new());
    let files = (0..).zip(new).filter(|(_, entry)| is_file(entry) && entry.stat.linkname.is_empty());
    for (id, entry) in files {
        must.extend((was(entry).as_ref() != Some(entry)).then_some(id));
        may.extend((!old.contains(entry)).then_some(id));
    }
    (must, may)
}

fn assert_travelled(requested: &[u32], (must, may): (Vec<u32>, Vec<u32>)) {
    assert!(must.iter().all(|id| requested.contains(id)), "{requested:?} without one of {must:?}");
    assert!(requested.iter().all(|id| may.contains(id)), "{requested:?} with another than {may:?}");
}

/// Bytes on the disk, each file once.
fn disk_bytes(root: &Path) -> i64 {
    fn add(path: &Path, seen: &mut std::collections::HashSet<u64>) -> i64 {
        let meta = fs::symlink_metadata(path).expect("stat");
        let own =
            if seen.insert(meta.ino()) { i64::try_from(meta.blocks() * 512).expect("bytes") } else { 0 };
        let entries = meta.is_dir().then(|| fs::read_dir(path).expect("read"));
        own + entries.into_iter().flatten().map(|entry| add(&entry.expect("entry").path(), seen)).sum::<i64>()
    }
    add(root, &mut std::collections::HashSet::new())
}

/// Digests that a transfer told.
#[derive(Default)]
struct Told {
    known: std::sync::Mutex<std::collections::HashMap<FileStat, Digest>>,
    misses: std::sync::atomic::AtomicUsize,
}

impl HashCache for Told {
    fn lookup(&self, _: &[u8], stat: &FileStat) -> Option<Digest> {
        let known = self.known.lock().expect("lock").get(stat).copied();
        if known.is_none() {
            self.misses.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        known
    }

    fn store(&self, _: &[u8], stat: &FileStat, digest: &Digest) {
        self.known.lock().expect("lock").insert(*stat, *digest);
    }
}

fn checksum(root: &Path, cache: Option<&dyn HashCache>, bare: bool) -> Digest {
    let root = lapstrake_fileop::open_root(root).expect("root");
    let view = View::context(std::os::fd::AsFd::as_fd(&root), None);
    let view = if bare { view.without_attributes() } else { view };
    let options = ChecksumOptions { cache, threads: 1, settle: std::time::Duration::from_secs(3600) };
    lapstrake_fileop::checksum(&view, &Selector::default(), &options, &Cancel::new()).expect("checksum")
}

/// A transfer whose every claim about what it did is checked.
async fn checked_sync(client: &Connected, into: &Path, bare: bool, told: &Arc<Told>) -> Synced {
    let before = disk_bytes(into);
    let target = Target { path: into.to_owned(), bare, hashes: Some(Arc::clone(told) as _) };
    let synced = client.session.sync(request(), target, &mut |_| {}, &CancellationToken::new()).await;
    let synced = synced.expect("a transfer");
    if let Some(grown) = synced.grown {
        assert_eq!(disk_bytes(into) - before, grown);
    }
    let told: &dyn HashCache = told.as_ref();
    assert_eq!(checksum(into, Some(told), synced.bare), checksum(into, None, false));
    synced
}

#[tokio::test]
async fn a_change_deep_inside_is_told_to_the_byte_and_unchanged_files_are_known() {
    let into = tempfile::tempdir().expect("dir");
    let tree = |deep: &str| {
        vec![dir("a"), dir("a/b"), file("a/b/deep", deep), file("a/same", "same"), link("l", "a")]
    };
    let me = Client::new(Sender::Tree(tree("few bytes")));
    let client = me.connect().await;
    let told = Arc::new(Told::default());
    let first = checked_sync(&client, into.path(), false, &told).await;
    assert!(first.grown.is_some_and(|bytes| bytes > 0) && first.bare);
    me.becomes(tree(&"many bytes".repeat(10_000)));
    let second = checked_sync(&client, into.path(), first.bare, &told).await;
    assert!(second.grown.is_some_and(|bytes| bytes >= 90_000), "{second:?}");
    assert_eq!(told.misses.load(std::sync::atomic::Ordering::Relaxed), 0, "no file had to be read");
    me.becomes(vec![file("l", "no link any more")]);
    let third = checked_sync(&client, into.path(), second.bare, &told).await;
    assert!(third.grown.is_some_and(|bytes| bytes < -90_000), "{third:?}");
}

#[tokio::test]
async fn attributes_that_come_are_seen_where_there_were_none() {
    let into = tempfile::tempdir().expect("dir");
    let told = Arc::new(Told::default());
    let me = Client::new(Sender::Tree(vec![file("f", "1"), file("g", "2")]));
    let client = me.connect().await;
    let bare = checked_sync(&client, into.path(), false, &told).await.bare;
    assert!(bare);
    let mut colored = file("f", "1");
    colored.stat.xattrs = vec![Xattr { key: b"user.color".to_vec(), value: b"red".to_vec() }];
    me.becomes(vec![colored.clone(), file("g", "2")]);
    let second = checked_sync(&client, into.path(), bare, &told).await;
    assert!(second.changed && !second.bare);
    // And it is not forgotten that they are there, even by who knows nothing of the transfers before.
    me.becomes(vec![file("f", "1"), file("g", "2")]);
    let third = checked_sync(&client, into.path(), false, &told).await;
    assert!(third.changed && third.bare);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_follows_any_other_and_only_what_differs_travels(old in trees(), new in trees()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let into = tempfile::tempdir().expect("dir");
            let me = Client::new(Sender::Tree(old.clone()));
            let client = me.connect().await;
            let told = Arc::new(Told::default());
            let bare = checked_sync(&client, into.path(), false, &told).await.bare;
            assert_eq!(found(into.path()), expected(&old));
            assert_travelled(&me.requested(), needed(&[], &old));
            me.becomes(new.clone());
            checked_sync(&client, into.path(), bare, &told).await;
            assert_eq!(found(into.path()), expected(&new));
            assert_travelled(&me.requested(), needed(&old, &new));
        });
    }
}
