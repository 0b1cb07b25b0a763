//! The thread that keeps the store within its limits while builds run.
//!
//! It looks at the disk once a second while a job runs; one system call, as long as there is room. Only when
//! the room that is used might have passed the limits does it measure, and remove.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::collect::Disk;
use crate::flush::{Shared, locked};
use crate::{Error, Limits, Result, Store, limits};

/// What the thread is told.
#[derive(Default)]
pub(crate) struct Orders {
    limits: Mutex<Option<Limits>>,
    stop: AtomicBool,
    turn: Mutex<bool>,
    wake: Condvar,
}

/// Runs the thread; its drop ends it, at the next thing to remove.
pub(crate) struct Keeper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(crate) fn start(shared: Arc<Shared>) -> Result<Self> {
        let mine = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("store-keep".to_owned())
            .spawn(move || run(&mine))
            .map_err(|e| Error::io("start a thread for", shared.paths.root(), e))?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.shared.keeper.stop.store(true, Ordering::SeqCst);
        self.shared.wake_keeper();
        if let Some(thread) = self.thread.take() {
            thread.join().ok(); // a panic there was reported when it happened
        }
    }
}

impl Store {
    /// Keeps the store within `limits` from now on, in the background, while jobs run ([`Store::job`]).
    /// What the jobs need stays, so that the limits hold only as far as that lets them.
    pub fn keep_within(&self, limits: Limits) {
        *locked(&self.shared.keeper.limits) = Some(limits);
        self.shared.wake_keeper();
    }

    /// The limits of [`Store::keep_within`].
    pub fn limits(&self) -> Option<Limits> {
        *locked(&self.shared.keeper.limits)
    }
}

impl Shared {
    pub(crate) fn wake_keeper(&self) {
        *locked(&self.keeper.turn) = true;
        self.keeper.wake.notify_all();
    }

    /// Waits until something is to be done, at most `at_most` where that is given.
    fn wait_for_turn(&self, at_most: Option<Duration>) {
        let mut turn = locked(&self.keeper.turn);
        let asleep = |turn: &mut bool| !*turn;
        turn = match at_most {
            None => self.keeper.wake.wait_while(turn, asleep).unwrap_or_else(PoisonError::into_inner),
            Some(time) => {
                self.keeper
                    .wake
                    .wait_timeout_while(turn, time, asleep)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
        };
        *turn = false;
    }
}

/// What is known of the room since it was measured last.
struct Seen {
    total_bytes: u64,
    free_bytes: u64,
    /// Not measured again before this, so that measuring does not take all the time of a machine.
    not_before: Instant,
}

fn run(shared: &Shared) {
    let stop = || shared.keeper.stop.load(Ordering::SeqCst);
    shared.empty_trash(&stop);
    let (mut seen, mut begun) = (None, None);
    while !stop() {
        let limits = *locked(&shared.keeper.limits);
        let Some(limits) = limits.filter(|_| shared.pins.is_busy()) else {
            begun = None;
            shared.wait_for_turn(None);
            continue;
        };
        // First a build says what it needs of what is there: that is not to go just before.
        let grace = limits::KEEP_INTERVAL.saturating_sub(begun.get_or_insert_with(Instant::now).elapsed());
        if grace.is_zero() {
            shared.measure_new(&stop);
            seen = look(shared, &limits, seen, &stop);
        }
        shared.wait_for_turn(Some(if grace.is_zero() { limits::KEEP_INTERVAL } else { grace }));
    }
}

fn look(shared: &Shared, limits: &Limits, seen: Option<Seen>, stop: &dyn Fn() -> bool) -> Option<Seen> {
    let disk = Disk::of(shared.paths.root()).ok()?;
    let now = Instant::now();
    if let Some(seen) = seen {
        // What others wrote to the same disk counts too here: then it is measured too often, never too seldom.
        let grown = seen.free_bytes.saturating_sub(disk.free_bytes);
        let guess = seen.total_bytes.saturating_add(grown);
        if guess <= limits.budget_bytes(guess, disk.free_bytes) || now < seen.not_before {
            return Some(seen);
        }
    }
    // An error (a disk that fails) shows where the build meets it.
    let done = shared.collect_beyond(limits, stop).ok();
    let total_bytes = done.map_or(u64::MAX / 2, |done| done.total_bytes);
    let free_bytes = Disk::of(shared.paths.root()).map_or(0, |disk| disk.free_bytes);
    let not_before = Instant::now() + now.elapsed() * limits::KEEP_REST;
    Some(Seen { total_bytes, free_bytes, not_before })
}
