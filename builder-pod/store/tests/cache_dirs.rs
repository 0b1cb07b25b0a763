//! Directories of cache mounts as steps use them, kills included.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::future::Future as _;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use lapstrake_store::{CacheDir, CacheDirKey, Error, Sharing, Store};

/// Counts how often it is woken.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn key(id: &str) -> CacheDirKey {
    CacheDirKey { id: id.to_owned(), base: None }
}

fn on_base(id: &str, base: &str) -> CacheDirKey {
    CacheDirKey { id: id.to_owned(), base: Some(base.to_owned()) }
}

/// The directory, if it is to be had at once.
fn take(store: &Store, key: &CacheDirKey, sharing: Sharing) -> Option<CacheDir> {
    let future = pin!(store.cache_dir(key, sharing));
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(dir) => Some(dir.unwrap()),
        Poll::Pending => None,
    }
}

#[test]
fn what_a_step_wrote_is_there_for_the_next_one_and_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let first = take(&store, &key("go"), Sharing::Shared).unwrap();
    assert!(first.is_fresh());
    std::fs::write(first.path().join("module"), "1").unwrap();
    let path = first.path().to_owned();
    drop(first);
    let second = take(&store, &key("go"), Sharing::Locked).unwrap();
    assert_eq!((second.path(), second.is_fresh()), (path.as_path(), false));
    drop(second);
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert!(store.recovered().is_clean());
    let third = take(&store, &key("go"), Sharing::Private).unwrap();
    assert_eq!(std::fs::read_to_string(third.path().join("module")).unwrap(), "1");
}

#[test]
fn a_dropped_one_is_anew_for_the_next_and_goes_with_the_last_who_has_it() {
    let (store, _dir) = Store::temporary().unwrap();
    for (id, base) in [("go", None), ("go", Some("one")), ("npm", None)] {
        let key = CacheDirKey { id: id.to_owned(), base: base.map(str::to_owned) };
        let dir = take(&store, &key, Sharing::Shared).unwrap();
        std::fs::write(dir.path().join("module"), "1").unwrap();
        dir.ready().unwrap();
    }
    let held = take(&store, &key("go"), Sharing::Locked).unwrap();
    assert!(take(&store, &key("go"), Sharing::Locked).is_none(), "it waits for its turn");
    store.drop_cache_dirs("go").unwrap();
    let anew = take(&store, &key("go"), Sharing::Locked).expect("nothing to wait for");
    assert!(anew.is_fresh() && !anew.path().join("module").exists());
    assert!(held.path().join("module").exists(), "a step keeps what it has");
    assert!(take(&store, &on_base("go", "one"), Sharing::Shared).unwrap().is_fresh());
    assert!(!take(&store, &key("npm"), Sharing::Shared).unwrap().is_fresh(), "another id");
    let path = held.path().to_owned();
    drop(held);
    assert!(!path.exists());
    let next = anew.path().to_owned();
    drop(anew);
    assert_eq!(take(&store, &key("go"), Sharing::Shared).unwrap().path(), next);
}

#[test]
fn another_id_or_base_is_another_directory() {
    let (store, _dir) = Store::temporary().unwrap();
    let keys = [key("a"), key("b"), on_base("a", "x"), on_base("a", "y")];
    let dirs = keys.each_ref().map(|key| take(&store, key, Sharing::Shared).unwrap());
    for (at, one) in dirs.iter().enumerate() {
        one.ready().unwrap();
        assert!(one.is_fresh() && dirs[..at].iter().all(|other| other.path() != one.path()));
    }
    assert_eq!(store.cache_dirs().len(), 4);
}

#[test]
fn sharing_says_who_has_it_together() {
    let (store, _dir) = Store::temporary().unwrap();
    let shared = take(&store, &key("c"), Sharing::Shared).unwrap();
    let too = take(&store, &key("c"), Sharing::Shared).unwrap();
    assert_eq!(shared.path(), too.path());
    let private = take(&store, &key("c"), Sharing::Private).unwrap();
    assert_ne!(private.path(), shared.path());
    assert!(take(&store, &key("c"), Sharing::Locked).is_none(), "all are in use");
    drop(too);
    assert!(take(&store, &key("c"), Sharing::Locked).is_none(), "one still has it");
    let path = shared.path().to_owned();
    drop(shared);
    let locked = take(&store, &key("c"), Sharing::Locked).unwrap();
    assert_eq!(locked.path(), path);
    // As BuildKit: who shares does not wait for one that has it alone.
    let third = take(&store, &key("c"), Sharing::Shared).unwrap();
    assert!(third.path() != locked.path() && third.path() != private.path());
}

#[test]
fn who_waits_is_woken_and_who_gives_up_takes_nothing() {
    let (store, _dir) = Store::temporary().unwrap();
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(Arc::clone(&bell));
    let holder = take(&store, &key("l"), Sharing::Locked).unwrap();
    {
        let k = key("l");
        let mut gives_up = Box::pin(store.cache_dir(&k, Sharing::Locked));
        assert!(gives_up.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    }
    let k = key("l");
    let mut waits = Box::pin(store.cache_dir(&k, Sharing::Locked));
    assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    assert_eq!(bell.0.load(Ordering::SeqCst), 0);
    drop(holder);
    assert!(bell.0.load(Ordering::SeqCst) > 0);
    let Poll::Ready(Ok(dir)) = waits.as_mut().poll(&mut Context::from_waker(&waker)) else {
        panic!("its turn")
    };
    assert!(!dir.is_fresh());
}

#[test]
fn a_directory_is_shared_only_once_it_has_what_it_begins_with() {
    let (store, _dir) = Store::temporary().unwrap();
    let k = on_base("f", "image");
    let filling = take(&store, &k, Sharing::Shared).unwrap();
    assert!(take(&store, &k, Sharing::Shared).is_none() && take(&store, &k, Sharing::Locked).is_none());
    std::fs::write(filling.path().join("from-base"), "x").unwrap();
    filling.ready().unwrap();
    let too = take(&store, &k, Sharing::Shared).unwrap();
    assert!(!too.is_fresh() && too.path().join("from-base").exists());
    drop((filling, too));
    // One whose filling failed goes, and the next one starts anew.
    let other = on_base("f", "other");
    drop(take(&store, &other, Sharing::Shared).unwrap());
    assert_eq!(std::fs::read_dir(store.root().join("mounts")).unwrap().count(), 1);
    assert!(take(&store, &other, Sharing::Shared).unwrap().is_fresh());
}

const CHILD_ROOT: &str = "LAPSTRAKE_STORE_CACHE_CHILD";

/// Not a test of its own: the process that the next test kills.
#[test]
fn holder_for_the_kill_test() {
    let Some(root) = std::env::var_os(CHILD_ROOT) else { return };
    let store = Store::open(root).unwrap();
    let held = take(&store, &key("held"), Sharing::Locked).unwrap();
    std::fs::write(held.path().join("file"), "kept").unwrap();
    store.flush().unwrap();
    let _filling = take(&store, &on_base("filling", "b"), Sharing::Shared).unwrap();
    println!("ready to be killed");
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_holder_leaves_a_directory_that_the_next_one_has_at_once() {
    use std::io::BufRead as _;
    let dir = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holder_for_the_kill_test", "--nocapture"])
        .env(CHILD_ROOT, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("ready to be killed")));
    assert!(matches!(Store::open(dir.path()), Err(Error::Busy { .. })));
    child.kill().unwrap();
    child.wait().unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.recovered().cache_dirs_removed, 1, "the one that was being filled");
    let again = take(&store, &key("held"), Sharing::Locked).unwrap();
    assert_eq!(std::fs::read_to_string(again.path().join("file")).unwrap(), "kept");
    assert!(take(&store, &on_base("filling", "b"), Sharing::Shared).unwrap().is_fresh());
}
