//! The store as its users see it, kills included.
#![allow(clippy::unwrap_used, reason = "tests")]

mod disk;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use lapstrake_oci::Digest;
use lapstrake_store::{
    CommitOptions, Durability, Error, LayerFacts, Record, SnapshotId, Store, Table, chain_id,
};

fn facts(name: &str, parent: Option<&Digest>) -> LayerFacts {
    let diff_id = Digest::of(name.as_bytes());
    LayerFacts { diff_id, chain_id: chain_id(parent, &diff_id), tar_bytes: 1024, blobs: Vec::new() }
}

#[test]
fn a_blob_gets_its_name_only_when_its_bytes_match() {
    let (store, _dir) = Store::temporary().unwrap();
    let mut writer = store.blob_writer().unwrap();
    writer.write_all(b"hello").unwrap();
    let wrong = Digest::of(b"other");
    assert!(matches!(writer.commit(Some(wrong)), Err(Error::DigestMismatch { .. })));
    assert_eq!(std::fs::read_dir(store.root().join("ingest")).unwrap().count(), 0);

    let mut writer = store.blob_writer().unwrap();
    writer.write_all(b"hel").unwrap();
    writer.write_all(b"lo").unwrap();
    let (digest, size) = writer.commit(Some(Digest::of(b"hello"))).unwrap();
    assert_eq!((size, store.blob_size_bytes(&digest)), (5, Some(5)));
    assert_eq!(store.blob_bytes(&digest, 100).unwrap(), b"hello");
    assert!(matches!(store.blob_bytes(&digest, 4), Err(Error::BlobTooLarge { .. })));
    assert_eq!(store.blobs().unwrap(), [(digest, 5)]);
    store.remove_blob(&digest).unwrap();
    assert!(store.open_blob(&digest).unwrap_err().is_missing());
}

#[test]
fn a_blob_damaged_on_the_disk_is_found_at_the_first_read_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let digest = Store::open(dir.path()).unwrap().put_blob(b"precious").unwrap();
    std::fs::write(dir.path().join("blobs/sha256").join(digest.hex()), b"PRECIOUS").unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert!(matches!(store.open_blob(&digest), Err(Error::BlobCorrupt(d)) if d == digest));
    assert!(!store.has_blob(&digest));
    store.put_blob(b"precious").unwrap();
    assert_eq!(store.blob_bytes(&digest, 100).unwrap(), b"precious");
}

#[test]
fn the_second_opener_is_told_who_holds_the_store() {
    let (store, dir) = Store::temporary().unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(&error, Error::Busy { .. }));
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    drop(store);
    Store::open(dir.path()).unwrap();
}

#[test]
fn lowers_come_topmost_first_and_the_root_looks_like_its_parents() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let (store, _dir) = Store::temporary().unwrap();
    let base = store.prepare(None).unwrap();
    assert!(base.lowers_top_first().is_empty());
    std::fs::set_permissions(base.upper(), std::fs::Permissions::from_mode(0o1711)).unwrap();
    let base = store.commit(base, CommitOptions::default()).unwrap();
    let middle = store.prepare(Some(base)).unwrap();
    let middle = store.commit(middle, CommitOptions::default()).unwrap();
    let top = store.prepare(Some(middle)).unwrap();
    assert_eq!(top.lowers_top_first(), [store.snapshot_dir(middle), store.snapshot_dir(base)]);
    assert_eq!(std::fs::metadata(top.upper()).unwrap().mode() & 0o7777, 0o1711);
    let below: Vec<_> = store.chain_bottom_first(middle).unwrap().into_iter().map(|s| s.id).collect();
    assert_eq!(below, [base, middle]);
    assert_eq!(store.parent(middle).unwrap(), Some(base));
}

#[test]
fn a_dropped_snapshot_leaves_nothing_and_a_used_one_stays() {
    let (store, _dir) = Store::temporary().unwrap();
    let base = store.commit(store.prepare(None).unwrap(), CommitOptions::default()).unwrap();
    let active = store.prepare(Some(base)).unwrap();
    std::fs::write(active.upper().join("file"), b"x").unwrap();
    assert!(matches!(store.remove_snapshot(base), Err(Error::SnapshotInUse(_))));
    drop(active);
    assert_eq!(std::fs::read_dir(store.root().join("snapshots")).unwrap().count(), 1);
    store.remove_snapshot(base).unwrap();
    assert_eq!(std::fs::read_dir(store.root().join("snapshots")).unwrap().count(), 0);
    assert!(matches!(store.prepare(Some(base)), Err(Error::SnapshotMissing(_))));
}

#[test]
fn a_snapshot_that_became_another_layer_is_not_found_as_the_former_one_even_when_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (first, second) = (facts("first", None), facts("second", None));
    let options = CommitOptions { layer: Some(first.clone()), ..Default::default() };
    let id = store.commit(store.prepare(None).unwrap(), options).unwrap();
    store.set_layer(id, second.clone()).unwrap();
    assert_eq!(store.snapshot_of_chain(&first.chain_id), None);
    assert_eq!(store.snapshot_of_chain(&second.chain_id), Some(id));
    let options = CommitOptions { layer: Some(first.clone()), ..Default::default() };
    let again = store.commit(store.prepare(None).unwrap(), options).unwrap();
    assert_ne!(again, id, "it is made anew");
    assert_eq!(store.snapshot_of_chain(&first.chain_id), Some(again));
}

#[test]
fn everything_committed_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let layer = facts("base", None);
    let options = CommitOptions { layer: Some(layer.clone()), ..Default::default() };
    let base = store.commit(store.prepare(None).unwrap(), options).unwrap();
    let top = store.commit(store.prepare(Some(base)).unwrap(), CommitOptions::default()).unwrap();
    let later = facts("top", Some(&layer.chain_id));
    store.set_layer(top, later.clone()).unwrap();
    store.put(Table::CACHE, b"a/1", b"one").unwrap();
    store.put(Table::CACHE, b"a/2", b"two").unwrap();
    store.put(Table::CACHE, b"b/1", b"three").unwrap();
    store.flush().unwrap();
    store.put(Table::CACHE, b"a/2", b"zwei").unwrap();
    store.delete(Table::CACHE, b"a/1");
    let check = |store: &Store| {
        assert_eq!(store.get(Table::CACHE, b"a/1"), None);
        assert_eq!(store.get(Table::CACHE, b"a/2").as_deref(), Some(&b"zwei"[..]));
        assert_eq!(store.scan(Table::CACHE, b"a/"), [(b"a/2".to_vec(), b"zwei".to_vec())]);
        assert_eq!(store.scan(Table::CACHE, b"").len(), 2);
        assert_eq!(store.get(Table::GIT, b"a/2"), None);
        assert_eq!(store.snapshot_of_chain(&layer.chain_id), Some(base));
        assert_eq!(store.snapshot(top).unwrap().layer.as_ref(), Some(&later));
    };
    check(&store);
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert!(store.recovered().is_clean(), "{:?}", store.recovered());
    check(&store);
}

#[test]
fn a_lost_or_broken_index_is_rebuilt_from_the_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let make = |store: &Store| {
        let active = store.prepare(None).unwrap();
        let record =
            Record { table: Table::CACHE, key: b"key".to_vec(), value: active.id().to_string().into_bytes() };
        store.commit(active, CommitOptions { layer: None, records: vec![record] }).unwrap()
    };
    let id = make(&Store::open(dir.path()).unwrap());
    let index = dir.path().join("index.redb");
    let whole = std::fs::read(&index).unwrap();
    let mut flipped = whole.clone();
    flipped.iter_mut().skip(64).step_by(97).for_each(|b| *b ^= 0x5a);
    for damage in
        [None, Some(Vec::new()), Some(b"nonsense".to_vec()), Some(whole[..5000].to_vec()), Some(flipped)]
    {
        match damage {
            None => std::fs::remove_file(&index).unwrap(),
            Some(bytes) => std::fs::write(&index, bytes).unwrap(),
        }
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.get(Table::CACHE, b"key").as_deref(), Some(id.to_string().as_bytes()));
        assert!(store.has_snapshot(id));
        store.put(Table::CACHE, b"other", b"works").unwrap();
        store.flush().unwrap();
    }
}

#[test]
fn one_chain_is_unpacked_once_however_many_ask() {
    let (store, _dir) = Store::temporary().unwrap();
    let (runs, layer) = (AtomicUsize::new(0), facts("base", None));
    let ids: Vec<SnapshotId> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    store
                        .unpack_once(layer.chain_id, None, |active| {
                            // The first attempt fails: somebody else must try again.
                            if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                                return Err(Error::BlobMissing(layer.diff_id));
                            }
                            std::fs::write(active.upper().join("f"), b"x").unwrap();
                            Ok(layer.clone())
                        })
                        .ok()
                })
            })
            .collect();
        threads.into_iter().filter_map(|t| t.join().unwrap()).collect()
    });
    assert_eq!((ids.len(), runs.load(Ordering::SeqCst)), (7, 2));
    assert!(ids.windows(2).all(|w| w[0] == w[1]));
    // A snapshot that came to the same chain another way is the same one.
    let options = CommitOptions { layer: Some(layer), ..Default::default() };
    let again = store.commit(store.prepare(None).unwrap(), options).unwrap();
    assert_eq!(again, ids[0]);
    assert_eq!(store.snapshots().len(), 1);
}

#[test]
fn a_newer_layout_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    std::fs::write(dir.path().join("layout"), "99\n").unwrap();
    assert!(matches!(Store::open(dir.path()), Err(Error::Version { found, .. }) if found == "99"));
}

#[test]
fn nobody_else_may_look_into_the_state_directory() {
    use std::os::unix::fs::MetadataExt as _;
    let (store, _dir) = Store::temporary().unwrap();
    assert_eq!(std::fs::metadata(store.root()).unwrap().mode() & 0o077, 0);
}

#[test]
fn userns_a_full_disk_is_named_leaves_nothing_half_written_and_passes() {
    use std::os::fd::AsRawFd as _;
    let Some(disk) = disk::small(16 << 20) else { return };
    let root = format!("/proc/self/fd/{}/state", disk.as_raw_fd());
    let store = Store::open(&root).unwrap();
    store.put(Table::CACHE, b"before", b"1").unwrap();
    store.flush().unwrap();
    // Fill it to the last byte.
    let filler = format!("/proc/self/fd/{}/filler", disk.as_raw_fd());
    let mut file = std::fs::File::create(&filler).unwrap();
    for piece in [1 << 20, 4096, 1] {
        while file.write_all(&vec![1; piece]).is_ok() {}
    }
    let count = |dir: &str| std::fs::read_dir(format!("{root}/{dir}")).unwrap().count();
    let blob = store.put_blob(&vec![7; 1 << 20]).unwrap_err();
    assert!(blob.is_no_space(), "{blob:?}");
    let active = store.prepare(None).unwrap();
    let snapshot = store.commit(active, CommitOptions::default()).unwrap_err();
    assert!(snapshot.is_no_space(), "{snapshot:?}");
    assert_eq!((count("ingest"), count("snapshots"), count("blobs/sha256")), (0, 0, 0));
    store.put(Table::CACHE, b"after", &vec![2; 4 << 20]).unwrap();
    let flush = store.flush().unwrap_err();
    assert!(flush.is_no_space(), "{flush:?}");
    assert_eq!(store.get(Table::CACHE, b"before").as_deref(), Some(&b"1"[..]), "an old record is lost");
    assert_eq!(store.get(Table::CACHE, b"after").map(|v| v.len()), Some(4 << 20));
    // Space again: everything that was put gets to the disk.
    std::fs::remove_file(&filler).unwrap();
    drop(file);
    store.flush().unwrap();
    store.put_blob(b"fits").unwrap();
    drop(store);
    let store = Store::open(&root).unwrap();
    assert_eq!(store.get(Table::CACHE, b"before").as_deref(), Some(&b"1"[..]));
    assert_eq!(store.get(Table::CACHE, b"after").map(|v| v.len()), Some(4 << 20));
}

const CHILD_ROOT: &str = "LAPSTRAKE_STORE_CHILD_ROOT";

/// Not a test of its own: the process that the next test kills.
#[test]
fn writer_for_the_kill_test() {
    let Some(root) = std::env::var_os(CHILD_ROOT) else { return };
    let store = Store::open(Path::new(&root)).unwrap();
    let mut out = std::io::stdout();
    let (mut parent, mut at) = (None, store.snapshots().len() as u64);
    loop {
        at += 1;
        let blob = format!("blob {at} {}", "x".repeat((at % 50_000) as usize));
        let mut writer = store.blob_writer().unwrap();
        writer.write_all(blob.as_bytes()).unwrap();
        let now = if at % 3 == 0 { Durability::Now } else { Durability::Batched };
        let (digest, _) = writer.commit_with(None, now).unwrap();
        let active = store.prepare(parent).unwrap();
        std::fs::write(active.upper().join("content"), format!("{at}")).unwrap();
        let value = format!("{} {digest} {at}", active.id()).into_bytes();
        let record = Record { table: Table::CACHE, key: at.to_be_bytes().to_vec(), value };
        let id = store.commit(active, CommitOptions { layer: None, records: vec![record] }).unwrap();
        parent = (at % 7 != 0).then_some(id);
        if at % 5 == 0 {
            store.flush().unwrap();
        }
        writeln!(out, "at {at}").unwrap();
        out.flush().unwrap();
    }
}

/// Checks that each record's snapshot and blob are whole; returns how many records there are.
fn check_whole(store: &Store) -> usize {
    let rows = store.scan(Table::CACHE, b"");
    for (_, value) in &rows {
        let text = String::from_utf8(value.clone()).unwrap();
        let mut parts = text.split(' ');
        let id: SnapshotId = parts.next().unwrap().parse().unwrap();
        let digest: Digest = parts.next().unwrap().parse().unwrap();
        let at = parts.next().unwrap();
        assert!(store.has_snapshot(id), "record {at} names a snapshot that is not there");
        let content = std::fs::read_to_string(store.snapshot_dir(id).join("content")).unwrap();
        assert_eq!(content, at);
        let mut bytes = String::new();
        store.open_blob(&digest).unwrap().read_to_string(&mut bytes).unwrap();
        assert!(bytes.starts_with(&format!("blob {at} ")));
        store.lowers_top_first(id).unwrap();
    }
    rows.len()
}

#[test]
fn a_writer_killed_at_any_moment_leaves_a_whole_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut records = 0;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer_for_the_kill_test", "--nocapture"])
            .env(CHILD_ROOT, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed at a different step each time; where in the step, the scheduler decides.
        let wanted = 3 + round * 2;
        lines.map(Result::unwrap).filter(|l| l.contains("at ")).take(wanted).for_each(drop);
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert!(store.recovered().index_rebuilt.is_none(), "{:?}", store.recovered());
        assert_eq!(std::fs::read_dir(dir.path().join("ingest")).unwrap().count(), 0);
        for entry in std::fs::read_dir(dir.path().join("snapshots")).unwrap() {
            assert!(entry.unwrap().path().join("meta").is_file());
        }
        let now = check_whole(&store);
        assert!(now >= records, "flushed records were lost: {records} before, {now} now");
        records = now;
    }
    assert!(records > 20, "only {records} records survived");
}
