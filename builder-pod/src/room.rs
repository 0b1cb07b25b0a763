//! Room on the disk: how much the state directory may take, and what is done when there is none left.

use lapstrake_handoff::Reason;
use lapstrake_solver::Step;
use lapstrake_store::{Disk, Job, Limits, Store};
use tokio_util::sync::CancellationToken;

use crate::error::BuildError;
use crate::progress::bytes;

const GB: u64 = 1_000_000_000;

/// Whose disk it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    /// A machine that has other uses.
    Laptop,
    /// A pod, on a volume as a rule.
    Pod,
}

/// How much the state may take. `max_bytes` is what somebody asked for; without it BuildKit's defaults
/// count on a laptop, and most of the volume in a pod.
pub(crate) fn limits(host: Host, max_bytes: Option<u64>, disk: Disk) -> Limits {
    let share = |percent: u64| disk.total_bytes / 100 * percent;
    match (host, max_bytes) {
        // Beyond what was asked for, only so much that a step does not meet a full disk at once.
        (_, Some(max)) => {
            Limits { max_bytes: Some(max), min_free_bytes: share(5).min(2 * GB), reserved_bytes: 0 }
        }
        (Host::Pod, None) => {
            Limits { max_bytes: Some(share(85)), min_free_bytes: share(10), reserved_bytes: 0 }
        }
        (Host::Laptop, None) => Limits {
            max_bytes: Some(share(80).min(100 * GB)),
            min_free_bytes: share(20),
            reserved_bytes: share(10).min(10 * GB),
        },
    }
}

/// Begins a build on a state directory: what it uses stays, the rest may go in the background.
pub(crate) fn begin(store: &Store, host: Host, max_bytes: Option<u64>) -> Result<Job, BuildError> {
    let job = store.job();
    store.keep_within(limits(host, max_bytes, store.disk()?));
    Ok(job)
}

/// Ends a build: what is over the limits goes. Returns the bytes that the state takes; `None` where they
/// could not be counted, which is said in the log and no reason to fail. Who was told to stop stops: the next
/// build cleans up.
pub(crate) async fn end(store: &Store, job: Job, cancel: &CancellationToken) -> Option<u64> {
    drop(job);
    let limits = store.limits().filter(|_| !cancel.is_cancelled())?;
    let store = store.clone();
    let settled = tokio::task::spawn_blocking(move || store.settle(&limits)).await;
    match settled {
        Ok(Ok(bytes)) => Some(bytes),
        Ok(Err(error)) => {
            tracing::warn!("the state directory could not be cleaned up: {}", crate::error::chain(&error));
            None
        }
        Err(_) => None,
    }
}

/// Whether the disk was full.
fn is_full<T>(result: &Result<T, BuildError>) -> bool {
    result.as_ref().is_err_and(|error| error.failure().reason == Reason::DiskFull)
}

/// Removes what nobody needs from a full disk; what it says to people, if that was anything.
fn make(store: &Store) -> Option<String> {
    match store.make_room() {
        Ok(0) => None,
        Ok(freed) => {
            Some(format!("the disk was full; {} that this build does not need were removed", bytes(freed)))
        }
        Err(error) => {
            tracing::warn!("no room could be made: {}", crate::error::chain(&error));
            None
        }
    }
}

/// Does `work`, and once more where the disk was full and room could be made. For work that leaves nothing
/// behind when it fails.
pub(crate) async fn retried<T, F: Future<Output = Result<T, BuildError>>>(
    store: &Store,
    step: Option<&Step>,
    mut work: impl FnMut() -> F,
) -> Result<T, BuildError> {
    let first = work().await;
    if !is_full(&first) {
        return first;
    }
    let mine = store.clone();
    let made = tokio::task::spawn_blocking(move || make(&mine)).await.map_err(BuildError::internal)?;
    let Some(said) = made else { return first };
    tracing::info!("{said}");
    if let Some(step) = step {
        step.log(2, format!("{said}; once more\n").as_bytes());
    }
    work().await
}

/// As [`retried`], for work that blocks.
pub(crate) fn retried_blocking<T>(
    store: &Store,
    work: impl Fn() -> Result<T, BuildError>,
) -> Result<T, BuildError> {
    let first = work();
    if !is_full(&first) {
        return first;
    }
    let Some(said) = make(store) else { return first };
    tracing::info!("{said}");
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_counts_else_a_share_of_the_disk() {
        let disk = Disk { free_bytes: 0, total_bytes: 1000 * GB };
        let laptop = limits(Host::Laptop, None, disk);
        assert_eq!((laptop.max_bytes, laptop.min_free_bytes), (Some(100 * GB), 200 * GB));
        assert_eq!(laptop.reserved_bytes, 10 * GB);
        let volume = Disk { free_bytes: 0, total_bytes: 10 * GB };
        let pod = limits(Host::Pod, None, volume);
        assert_eq!((pod.max_bytes, pod.reserved_bytes), (Some(8_500_000_000), 0));
        assert_eq!(limits(Host::Pod, Some(GB), volume).max_bytes, Some(GB));
    }

    #[tokio::test]
    async fn a_full_disk_is_met_twice_only_where_room_was_made() {
        let (store, _dir) = Store::temporary().expect("a store");
        let count = std::cell::Cell::new(0);
        let full = || {
            count.set(count.get() + 1);
            async { Err::<(), _>(BuildError::new(Reason::DiskFull, "full")) }
        };
        assert!(retried(&store, None, full).await.is_err());
        assert_eq!(count.get(), 1, "there was nothing to remove");
        store.put_blob(&[7; 10_000]).expect("a blob");
        assert!(retried(&store, None, full).await.is_err());
        assert_eq!(count.get(), 3, "once more, and no more than that");
    }
}
