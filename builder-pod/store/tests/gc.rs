//! A store that is kept within limits: accounts, collections, kills.
#![allow(clippy::unwrap_used, reason = "tests")]

mod disk;

use std::collections::{HashMap, HashSet};
use std::future::Future as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use lapstrake_oci::Digest;
use lapstrake_store::{
    CacheDir, CacheDirKey, CommitOptions, Disk, Durability, Error, ItemId, Job, Kind, Limits, Record, Rule,
    Sharing, SnapshotId, Store, Table,
};
use proptest::prelude::*;

/// What the directory takes, counted in the simplest way.
fn walked(root: &Path) -> u64 {
    fn add(path: &Path, seen: &mut HashSet<u64>, sum: &mut u64) {
        let Ok(meta) = path.symlink_metadata() else { return };
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

/// The account must be a full walk's, once what it notes itself is on the disk.
#[track_caller]
fn check_account(store: &Store) -> u64 {
    store.usage().unwrap();
    store.flush().unwrap();
    let total = store.usage().unwrap().total_bytes();
    assert_eq!(total, walked(store.root()));
    total
}

/// Opens a store, once what a kill left in its trash is gone. A process that another test is just starting has the lock of a store
/// that was closed until it is the program that it becomes.
fn opened(root: &Path) -> Store {
    let store = loop {
        match Store::open(root) {
            Err(Error::Busy { .. }) => std::thread::yield_now(),
            store => break store.unwrap(),
        }
    };
    while std::fs::read_dir(root.join("trash")).unwrap().next().is_some() {
        std::thread::yield_now();
    }
    store
}

fn take(store: &Store, id: &str) -> CacheDir {
    let key = CacheDirKey { id: id.to_owned(), base: None };
    let future = pin!(store.cache_dir(&key, Sharing::Shared));
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(dir) => dir.unwrap(),
        Poll::Pending => panic!("shared ones are there at once"),
    }
}

fn snapshot(store: &Store, parent: Option<SnapshotId>, bytes: usize) -> SnapshotId {
    let active = store.prepare(parent).unwrap();
    std::fs::write(active.upper().join("file"), vec![1; bytes]).unwrap();
    let record = Record {
        table: Table::CACHE,
        key: active.id().to_string().into_bytes(),
        value: active.id().to_string().into_bytes(),
    };
    store.commit(active, CommitOptions { layer: None, records: vec![record] }).unwrap()
}

fn blob(store: &Store, seed: u64, bytes: usize) -> Digest {
    let mut content = seed.to_le_bytes().to_vec();
    content.resize(bytes.max(8), 3);
    store.put_blob(&content).unwrap()
}

/// A folder of a group whose members tell of their changes.
fn local(store: &Store) -> std::path::PathBuf {
    let path = store.side_dir("local").unwrap().join("mine");
    std::fs::create_dir_all(path.join("deep/er")).unwrap();
    path
}

#[test]
fn a_change_deep_inside_of_a_folder_shows_in_the_account() {
    let (store, _dir) = Store::temporary().unwrap();
    let path = local(&store);
    check_account(&store);
    // Nothing of this changes the folder itself.
    let write = |bytes| std::fs::write(path.join("deep/er/file"), vec![1; bytes]).unwrap();
    let change = store.change_side("local", "mine").unwrap();
    write(100_000);
    change.done(None);
    check_account(&store);
    // Somebody looks in the middle, and it is in use; nor is it told that it ended.
    let job = store.job();
    store.touch_side("local", "mine");
    let change = store.change_side("local", "mine").unwrap();
    write(200_000);
    check_account(&store);
    write(300_000);
    check_account(&store);
    drop(change);
    write(50_000);
    check_account(&store);
    drop(job);
    check_account(&store);
    let change = store.change_side("local", "mine").unwrap();
    change.done(Some(0));
    check_account(&store);
}

#[test]
fn a_folder_whose_changes_are_told_is_not_walked() {
    let (store, _dir) = Store::temporary().unwrap();
    let path = store.side_dir("local").unwrap().join("mine");
    std::fs::create_dir_all(&path).unwrap();
    let bytes = || {
        let usage = store.usage().unwrap();
        let mine =
            usage.items.iter().find(|item| matches!(&item.id, ItemId::Side { name, .. } if name == "mine"));
        mine.unwrap().bytes
    };
    // What is told is not true: so it shows that it is believed, from an empty folder on, and in use as well.
    let change = store.change_side("local", "mine").unwrap();
    let empty = path.symlink_metadata().unwrap().blocks() * 512;
    std::fs::write(path.join("f"), b"1").unwrap();
    change.done(Some(1 << 30));
    assert_eq!(bytes(), empty + (1 << 30));
    let _job = store.job();
    store.touch_side("local", "mine");
    assert_eq!(bytes(), empty + (1 << 30));
    let change = store.change_side("local", "mine").unwrap();
    assert!(bytes() < 1 << 20, "while it is being changed, nothing is believed");
    change.done(Some(-(1 << 29)));
    assert_eq!(bytes(), empty + (1 << 29));
    store.change_side("local", "mine").unwrap().done(Some(0));
    assert_eq!(bytes(), empty + (1 << 29));
}

#[test]
fn the_account_counts_blocks_and_each_file_once() {
    let (store, _dir) = Store::temporary().unwrap();
    let active = store.prepare(None).unwrap();
    std::fs::write(active.upper().join("one"), vec![1; 100_000]).unwrap();
    std::fs::hard_link(active.upper().join("one"), active.upper().join("two")).unwrap();
    // A hole takes no room.
    std::fs::File::create(active.upper().join("hole")).unwrap().set_len(1 << 30).unwrap();
    std::os::unix::fs::symlink("/nowhere", active.upper().join("link")).unwrap();
    let id = store.commit(active, CommitOptions::default()).unwrap();
    blob(&store, 1, 5000);
    std::fs::write(take(&store, "m").path().join("big"), vec![1; 300_000]).unwrap();
    let side = store.side_dir("checkouts").unwrap().join("abc/deep/er");
    std::fs::create_dir_all(&side).unwrap();
    std::fs::write(side.join("f"), vec![1; 10_000]).unwrap();
    std::fs::write(store.side_dir("of-others").unwrap().join("f"), vec![1; 10_000]).unwrap();
    let being_made = store.prepare(Some(id)).unwrap();
    std::fs::write(being_made.upper().join("f"), vec![1; 70_000]).unwrap();
    check_account(&store);
    let usage = store.usage().unwrap();
    let of =
        |kind| usage.items.iter().filter(move |item| item.kind == kind).map(|item| item.bytes).sum::<u64>();
    assert!((100_000..200_000).contains(&of(Kind::Layer)), "{usage:?}");
    assert!((300_000..400_000).contains(&of(Kind::CacheMount)) && of(Kind::GitCheckout) >= 10_000);
    // A use in between is counted, whoever measured before.
    std::fs::write(take(&store, "m").path().join("more"), vec![1; 200_000]).unwrap();
    check_account(&store);
}

#[test]
fn a_directory_that_changes_deep_inside_is_counted_right_whoever_measured_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(dir.path());
    let deep = store.side_dir("local").unwrap().join("client/a/b");
    std::fs::create_dir_all(&deep).unwrap();
    let changed = |store: &Store, name: &str| {
        let job = store.job();
        store.touch_side("local", "client");
        check_account(store);
        std::fs::write(deep.join(name), vec![1; 100_000]).unwrap();
        check_account(store);
        job
    };
    let job = changed(&store, "one");
    std::fs::write(deep.join("two"), vec![1; 100_000]).unwrap();
    drop(job);
    let bytes = check_account(&store);
    drop(changed(&store, "three"));
    assert!(check_account(&store) >= bytes + 100_000);
    // A kill in the middle of a change.
    let job = changed(&store, "four");
    std::fs::write(deep.join("five"), vec![1; 100_000]).unwrap();
    drop((job, store));
    let store = opened(dir.path());
    check_account(&store);
}

#[test]
fn files_that_two_snapshots_have_count_once_until_and_after_one_of_them_goes() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(dir.path());
    let old = snapshot(&store, None, 400_000);
    check_account(&store);
    let active = store.prepare(None).unwrap();
    std::fs::hard_link(store.snapshot_dir(old).join("file"), active.upper().join("again")).unwrap();
    std::fs::write(active.upper().join("own"), vec![1; 50_000]).unwrap();
    let new = store.commit(active, CommitOptions::default()).unwrap();
    store.shares_files(old);
    let both = check_account(&store);
    drop(store);
    let store = opened(dir.path());
    check_account(&store);
    let job = store.job();
    assert!(store.has_snapshot(new));
    let done = store.collect_to(&Limits { max_bytes: Some(1), ..Limits::default() }).unwrap();
    assert!(done.removed.iter().any(|item| item.id == ItemId::Layer(old)));
    assert!(both - check_account(&store) < 400_000, "its file is the other one's too");
    drop(job);
}

#[test]
fn sizes_that_were_measured_hold_in_the_next_process_and_uses_that_a_kill_cut_off_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(dir.path());
    snapshot(&store, None, 50_000);
    std::fs::write(take(&store, "m").path().join("f"), vec![1; 100_000]).unwrap();
    check_account(&store);
    let held = take(&store, "m");
    std::fs::write(held.path().join("g"), vec![1; 200_000]).unwrap();
    // As a kill would: nothing is said at the end.
    std::mem::forget(held);
    store.flush().unwrap();
    drop(store);
    let copy = tempfile::tempdir().unwrap();
    let status = Command::new("cp").arg("-a").arg(dir.path()).arg(copy.path().join("s")).status().unwrap();
    assert!(status.success());
    check_account(&opened(&copy.path().join("s")));
}

#[test]
fn what_a_job_saw_stays_until_it_ends() {
    let (store, _dir) = Store::temporary().unwrap();
    let (old, base) = (snapshot(&store, None, 10), snapshot(&store, None, 20));
    let (old_blob, seen_blob) = (blob(&store, 1, 100), blob(&store, 2, 100));
    let job = store.job();
    assert!(store.has_snapshot(base) && store.has_blob(&seen_blob));
    let made = snapshot(&store, Some(base), 30);
    let made_blob = blob(&store, 3, 100);
    let side = store.side_dir("inline").unwrap();
    store.touch_side("inline", "mine");
    for name in ["mine", "old"] {
        std::fs::create_dir(side.join(name)).unwrap();
    }
    let mount = take(&store, "held");
    drop(take(&store, "free"));
    let done = store.collect(&Rule::down_to(0)).unwrap();
    let ids: HashSet<String> = done.removed.iter().map(|item| item.id.to_string()).collect();
    let free: Vec<String> =
        store.cache_dirs().iter().filter(|dir| !dir.in_use).map(|dir| dir.id.to_string()).collect();
    assert!(free.is_empty() && mount.path().is_dir());
    let expected = [old.to_string(), old_blob.to_string(), "inline/old".to_owned()];
    assert!(expected.iter().all(|id| ids.contains(id)) && ids.len() == 4, "{ids:?}");
    assert!(store.get(Table::CACHE, old.to_string().as_bytes()).is_none(), "a dead record was not swept");
    assert!(store.get(Table::CACHE, made.to_string().as_bytes()).is_some());
    assert_eq!(store.chain_bottom_first(made).unwrap().len(), 2);
    check_account(&store);
    drop((job, mount));
    let done = store.collect(&Rule::down_to(0)).unwrap();
    let ids: Vec<String> = done.removed.iter().map(|item| item.id.to_string()).collect();
    let at = |id: String| ids.iter().position(|i| *i == id).unwrap();
    assert!(at(made.to_string()) < at(base.to_string()), "{ids:?}");
    assert!(ids.contains(&made_blob.to_string()) && !side.join("mine").exists());
    assert!(store.snapshots().is_empty() && store.blobs().unwrap().is_empty());
    check_account(&store);
}

#[test]
fn the_least_recently_used_goes_and_uses_are_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(dir.path());
    let all: Vec<SnapshotId> = (0..6).map(|_| snapshot(&store, None, 200_000)).collect();
    store.flush().unwrap();
    for (age, id) in all.iter().enumerate() {
        let days = 3600 * 24 * (10 - age as u64);
        let time = std::time::SystemTime::now() - Duration::from_secs(days);
        std::fs::File::open(dir.path().join("snapshots").join(id.to_string()))
            .unwrap()
            .set_modified(time)
            .unwrap();
    }
    drop(store);
    let store = opened(dir.path());
    // A use of the oldest one makes it the newest, also for the next process.
    let job = store.job();
    assert!(store.has_snapshot(all[0]));
    drop(job);
    drop(store);
    let store = opened(dir.path());
    let total = store.usage().unwrap().total_bytes();
    let limits = Limits { max_bytes: Some(total - 300_000), ..Limits::default() };
    let done = store.collect_to(&limits).unwrap();
    let gone: Vec<ItemId> = done.removed.iter().map(|item| item.id.clone()).collect();
    assert_eq!(gone, [ItemId::Layer(all[1]), ItemId::Layer(all[2])]);
    assert!(check_account(&store) <= total - 300_000);
    assert!(store.collect_to(&limits).unwrap().removed.is_empty());
}

#[test]
fn while_a_job_runs_the_limits_are_kept_in_the_background() {
    let (store, _dir) = Store::temporary().unwrap();
    let old: Vec<SnapshotId> = (0..8).map(|_| snapshot(&store, None, 500_000)).collect();
    let _job = store.job();
    store.keep_within(Limits { max_bytes: Some(2_500_000), ..Limits::default() });
    // Steps go on meanwhile.
    let mut at = 0;
    while store.snapshots().iter().any(|s| old.contains(&s.id)) && at < 30_000 {
        at += 1;
        let active = store.prepare(None).unwrap();
        if at == 100 {
            std::fs::write(active.upper().join("f"), vec![1; 2_400_000]).unwrap();
            store.commit(active, CommitOptions::default()).unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(store.snapshots().iter().all(|s| !old.contains(&s.id)), "{} are left", store.snapshots().len());
    assert_eq!(store.snapshots().len(), 1, "what the job made is kept");
}

/// One thing that happens.
#[derive(Debug, Clone)]
enum Happens {
    Snapshot { on: Option<usize>, kib: usize },
    Blob { seed: u64, kib: usize },
    Mount { id: u8, kib: usize },
    Hold { id: u8 },
    Release,
    JobBegins,
    JobEnds,
    Look { at: usize },
    Collect { max_kib: u64 },
    Reopen,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (prop::option::of(0usize..20), 0usize..200).prop_map(|(on, kib)| Happens::Snapshot { on, kib }),
        2 => (0u64..20, 0usize..200).prop_map(|(seed, kib)| Happens::Blob { seed, kib }),
        2 => (0u8..4, 0usize..200).prop_map(|(id, kib)| Happens::Mount { id, kib }),
        1 => (0u8..4).prop_map(|id| Happens::Hold { id }),
        1 => Just(Happens::Release),
        1 => Just(Happens::JobBegins),
        1 => Just(Happens::JobEnds),
        2 => (0usize..20).prop_map(|at| Happens::Look { at }),
        3 => (0u64..1500).prop_map(|max_kib| Happens::Collect { max_kib }),
        1 => Just(Happens::Reopen),
    ]
}

/// What must hold of a store, by what was done with it.
struct World {
    store: Option<Store>,
    made: Vec<SnapshotId>,
    job: Option<Job>,
    held: Vec<CacheDir>,
    /// What the running job saw.
    needed: HashSet<SnapshotId>,
    needed_blobs: HashSet<Digest>,
}

impl World {
    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn need(&mut self, id: SnapshotId) {
        if self.job.is_some() {
            self.needed.insert(id);
        }
    }

    fn goes_on(&mut self, root: &Path, event: &Happens) {
        match event {
            Happens::Snapshot { on, kib } => {
                let parent =
                    on.and_then(|at| self.made.get(at).copied()).filter(|id| self.store().has_snapshot(*id));
                let id = snapshot(self.store(), parent, kib << 10);
                self.made.push(id);
                self.need(id);
                parent.into_iter().for_each(|id| self.need(id));
            }
            Happens::Blob { seed, kib } => {
                let digest = blob(self.store(), *seed, kib << 10);
                if self.job.is_some() {
                    self.needed_blobs.insert(digest);
                }
            }
            Happens::Mount { id, kib } => {
                let dir = take(self.store(), &id.to_string());
                std::fs::write(dir.path().join(kib.to_string()), vec![1; kib << 10]).unwrap();
            }
            Happens::Hold { id } => {
                let dir = take(self.store(), &id.to_string());
                std::fs::write(dir.path().join("held"), b"x").unwrap();
                self.held.push(dir);
            }
            Happens::Release => drop(self.held.pop()),
            Happens::JobBegins if self.job.is_none() => self.job = Some(self.store().job()),
            Happens::JobBegins => {}
            Happens::JobEnds => {
                self.job = None;
                self.needed.clear();
                self.needed_blobs.clear();
            }
            Happens::Look { at } => {
                if let Some(id) = self.made.get(*at).copied().filter(|id| self.store().has_snapshot(*id)) {
                    self.need(id);
                }
            }
            Happens::Collect { max_kib } => self.collect(max_kib << 10),
            Happens::Reopen => {
                self.goes_on(root, &Happens::JobEnds);
                self.held.clear();
                self.store = None;
                self.store = Some(opened(root));
            }
        }
    }

    fn collect(&self, max: u64) {
        let store = self.store();
        let done = store.collect(&Rule::down_to(max)).unwrap();
        for item in &done.removed {
            assert!(!item.in_use, "{item:?}");
        }
        let total = check_account(store);
        let usage = store.usage().unwrap();
        let lies_on = |id: &ItemId| {
            usage.items.iter().any(|other| other.parent.map(ItemId::Layer).as_ref() == Some(id))
        };
        let all_needed = usage.items.iter().all(|item| item.in_use || lies_on(&item.id));
        assert!(done.total_bytes <= max || all_needed, "{max}: {done:?} {usage:?}");
        // Where nothing had to go nothing was written: `check_account` has the index note its sizes only now.
        let only_noted = done.removed.is_empty();
        assert!(total <= max || all_needed || only_noted, "{total} of {max}: {done:?} {usage:?}");
        for id in &self.needed {
            assert!(store.snapshots().iter().any(|s| s.id == *id), "a job's snapshot is gone");
        }
        for digest in &self.needed_blobs {
            assert!(store.blobs().unwrap().iter().any(|(d, _)| d == digest), "a job's blob is gone");
        }
        for dir in &self.held {
            assert_eq!(std::fs::read(dir.path().join("held")).unwrap(), b"x");
        }
        // Records name what is there, whole.
        let there: HashMap<SnapshotId, Option<SnapshotId>> =
            store.snapshots().into_iter().map(|s| (s.id, s.parent)).collect();
        for (_, value) in store.scan(Table::CACHE, b"") {
            let id: SnapshotId = String::from_utf8(value).unwrap().parse().unwrap();
            assert!(there.contains_key(&id), "a record names what was removed");
            assert!(store.snapshot_dir(id).join("file").is_file());
        }
        assert!(there.values().flatten().all(|parent| there.contains_key(parent)));
        assert_eq!(std::fs::read_dir(store.root().join("trash")).unwrap().count(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_the_account_is_right_and_nothing_needed_goes(
        events in prop::collection::vec(happens(), 1..60)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut world = World {
            store: Some(opened(dir.path())),
            made: Vec::new(),
            job: None,
            held: Vec::new(),
            needed: HashSet::new(),
            needed_blobs: HashSet::new(),
        };
        for event in &events {
            world.goes_on(dir.path(), event);
        }
        world.collect(u64::MAX);
    }
}

const CHILD_ROOT: &str = "LAPSTRAKE_STORE_GC_CHILD";

/// Not a test of its own: the process that the next test kills.
#[test]
fn writer_and_collector_for_the_kill_test() {
    let Some(root) = std::env::var_os(CHILD_ROOT) else { return };
    let store = Store::open(Path::new(&root)).unwrap();
    let collector = store.clone();
    std::thread::spawn(move || {
        let mut at = 0u64;
        loop {
            at += 1;
            collector.collect(&Rule::down_to(200_000 + at % 7 * 100_000)).unwrap();
        }
    });
    let (mut parent, mut at) = (None, 0u64);
    loop {
        at += 1;
        let _job = store.job();
        let mut writer = store.blob_writer().unwrap();
        writer
            .write_all(
                format!("blob {} {at} {}", std::process::id(), "x".repeat((at % 30_000) as usize)).as_bytes(),
            )
            .unwrap();
        let (digest, _) = writer.commit_with(None, Durability::Batched).unwrap();
        let parent_there = parent.filter(|id| store.has_snapshot(*id));
        let active = store.prepare(parent_there).unwrap();
        std::fs::write(active.upper().join("content"), format!("{at}")).unwrap();
        std::fs::write(active.upper().join("filler"), vec![1; 20_000]).unwrap();
        std::fs::write(
            take(&store, &(at % 3).to_string()).path().join(format!("{}", at % 50)),
            vec![1; 9000],
        )
        .unwrap();
        let value = format!("{} {digest} {at}", active.id()).into_bytes();
        let key = [&u64::from(std::process::id()).to_be_bytes()[..], &at.to_be_bytes()].concat();
        let record = Record { table: Table::CACHE, key, value };
        let id = store.commit(active, CommitOptions { layer: None, records: vec![record] }).unwrap();
        parent = (at % 7 != 0).then_some(id);
        if at % 5 == 0 {
            store.flush().unwrap();
            assert!(store.has_blob(&digest) && store.has_snapshot(id), "a job's own work is gone");
        }
        println!("at {at}");
    }
}

#[test]
fn a_collector_killed_at_any_moment_leaves_a_whole_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut kept = 0;
    for round in 0..12 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer_and_collector_for_the_kill_test", "--nocapture"])
            .env(CHILD_ROOT, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        lines.map(Result::unwrap).filter(|l| l.contains("at ")).take(12 + round * 5).for_each(drop);
        child.kill().unwrap();
        child.wait().unwrap();
        let store = opened(dir.path());
        assert!(store.recovered().index_rebuilt.is_none(), "{:?}", store.recovered());
        for (_, value) in store.scan(Table::CACHE, b"") {
            let text = String::from_utf8(value).unwrap();
            let mut parts = text.split(' ');
            let id: SnapshotId = parts.next().unwrap().parse().unwrap();
            let digest: Digest = parts.next().unwrap().parse().unwrap();
            if !store.has_snapshot(id) {
                continue; // removed: a miss
            }
            kept += 1;
            let content = std::fs::read_to_string(store.snapshot_dir(id).join("content")).unwrap();
            assert_eq!(content, parts.next().unwrap());
            assert_eq!(std::fs::metadata(store.snapshot_dir(id).join("filler")).unwrap().len(), 20_000);
            store.lowers_top_first(id).unwrap().iter().for_each(|dir| assert!(dir.is_dir()));
            if store.has_blob(&digest) {
                let mut bytes = String::new();
                store.open_blob(&digest).unwrap().read_to_string(&mut bytes).unwrap();
                assert!(bytes.starts_with("blob "));
            }
        }
        let before = check_account(&store);
        let done = store.collect(&Rule::down_to(100_000)).unwrap();
        assert!(done.total_bytes <= before);
        check_account(&store);
    }
    assert!(kept > 0, "all was removed each time: the test shows nothing");
}

#[test]
fn userns_a_full_disk_gets_room_from_what_nobody_needs() {
    use std::os::fd::AsRawFd as _;
    let Some(disk) = disk::small(16 << 20) else { return };
    let root = format!("/proc/self/fd/{}/state", disk.as_raw_fd());
    let store = opened(root.as_ref());
    for seed in 0..4 {
        blob(&store, seed, 1 << 20);
    }
    let old = snapshot(&store, None, 2 << 20);
    store.flush().unwrap();
    check_account(&store);
    drop(store);
    let filler = format!("/proc/self/fd/{}/filler", disk.as_raw_fd());
    let mut file = std::fs::File::create(&filler).unwrap();
    for piece in [1 << 20, 4096, 1] {
        while file.write_all(&vec![1; piece]).is_ok() {}
    }
    // It opens on a full disk, and frees what this job has not seen.
    let store = opened(root.as_ref());
    let _job = store.job();
    assert!(store.has_snapshot(old));
    assert!(store.make_room().unwrap() >= 1 << 20);
    assert!(Disk::of(Path::new(&root)).unwrap().free_bytes >= 1 << 20);
    blob(&store, 9, 1 << 20);
    store.flush().unwrap();
    assert!(store.has_snapshot(old));
}
