//! Puts the parts together.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use lapstrake_registry::Client;
use lapstrake_run::Executor;
use lapstrake_run::sandbox::Sandbox;
use lapstrake_store::Store;
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, Images};
use crate::error::BuildError;

/// How long work that was left behind may take to notice that nobody waits for it.
const LEAVE: Duration = Duration::from_millis(200);

/// Runs a build to its end.
///
/// What can't be stopped at once (a layer that is being unpacked, a write to a pipe that nobody reads) is
/// left behind: the process ends soon, and the state directory is good at any moment.
pub(crate) fn block_on<T>(build: impl Future<Output = Result<T, BuildError>>) -> Result<T, BuildError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(BuildError::internal)?;
    // Whoever asked for the build is told of a mistake of ours too.
    let result = runtime.block_on(AssertUnwindSafe(build).catch_unwind());
    let result = result
        .unwrap_or_else(|_| Err(BuildError::internal("a mistake of the builder's own; its log tells more")));
    runtime.shutdown_timeout(LEAVE);
    result
}

/// Lets this process open as many files as it is allowed to: a layer's comparison holds one directory
/// for each layer below. Steps set their own limit.
pub(crate) fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::debug!("the limit of open files stays at {:?}: {error}", limit.current);
    }
}

/// An engine on a state directory.
pub(crate) fn engine(state: &Path, client: Client, sandbox: &Sandbox) -> Result<Engine, BuildError> {
    engine_with(state, client, sandbox, None)
}

/// An engine on a state directory, whose steps resolve names by `dns`.
pub(crate) fn engine_with(
    state: &Path,
    client: Client,
    _sandbox: &Sandbox,
    dns: Option<lapstrake_run::Dns>,
) -> Result<Engine, BuildError> {
    let store = Store::open(state)?;
    if !store.recovered().is_clean() {
        tracing::info!("the state directory was put right: {:?}", store.recovered());
    }
    sweep(&store)?;
    let executor =
        Executor::new(&store.side_dir("run")?).map_err(|e| BuildError::internal(crate::error::chain(&e)))?;
    let executor = match dns {
        Some(dns) => executor.with_dns(dns),
        None => executor,
    };
    Engine::new(store.clone(), executor, Images::new(client, store))
}

/// Removes what a killed builder was in the middle of; the store is ours alone.
fn sweep(store: &Store) -> Result<(), BuildError> {
    type Unfinished = fn(&str) -> bool;
    let groups: [(&str, Unfinished); 6] = [
        ("ssh", |_| true),
        ("download", |_| true),
        ("git", |name| name.starts_with(".tmp")),
        ("checkouts", |name| name.ends_with(".new")),
        ("inline", |name| name.ends_with(".new")),
        ("http", |name| name.ends_with(".new")),
    ];
    for (group, unfinished) in groups {
        let Ok(entries) = std::fs::read_dir(store.side_dir(group)?) else { continue };
        for entry in entries.flatten().filter(|entry| unfinished(&entry.file_name().to_string_lossy())) {
            let path = entry.path();
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let gone = if is_dir { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            if let Err(error) = gone {
                tracing::warn!("a left-over of an earlier build stays: {}: {error}", path.display());
            }
        }
    }
    Ok(())
}

/// Makes what was built survive this process.
pub(crate) async fn flush(engine: &Arc<Engine>) -> Result<(), BuildError> {
    let store = engine.store().clone();
    Ok(tokio::task::spawn_blocking(move || store.flush()).await.map_err(BuildError::internal)??)
}

/// The first SIGINT or SIGTERM cancels; a second one ends the process at once.
pub(crate) fn cancel_on_signals(cancel: &CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let cancel = cancel.clone();
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    tokio::spawn(async move {
        let mut signals = 0;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            signals += 1;
            if signals > 1 {
                std::process::exit(130);
            }
            cancel.cancel();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_is_stuck_keeps_no_build_from_ending() {
        let (stuck, waiting) = std::sync::mpsc::channel::<()>();
        let result = block_on(async {
            drop(tokio::task::spawn_blocking(move || waiting.recv()));
            Ok(1)
        });
        assert_eq!(result.ok(), Some(1));
        drop(stuck);
    }

    #[test]
    fn a_mistake_of_ours_is_an_error_like_another() {
        let error = block_on::<()>(async { panic!("as asked") }).expect_err("it panicked");
        assert_eq!(error.failure().reason, lapstrake_handoff::Reason::Internal);
    }
}
