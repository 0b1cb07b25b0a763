//! Puts the parts together.

use std::path::Path;
use std::sync::Arc;

use lapstrake_registry::Client;
use lapstrake_run::Executor;
use lapstrake_run::sandbox::Sandbox;
use lapstrake_store::Store;
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, Images};
use crate::error::BuildError;

/// The runtime of a build.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, BuildError> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(BuildError::internal)
}

/// An engine on a state directory.
pub(crate) fn engine(state: &Path, client: Client, _sandbox: &Sandbox) -> Result<Engine, BuildError> {
    let store = Store::open(state)?;
    if !store.recovered().is_clean() {
        tracing::info!("the state directory was put right: {:?}", store.recovered());
    }
    let executor = Executor::new(&store.side_dir("run")?).map_err(|e| BuildError::internal(crate::error::chain(&e)))?;
    Engine::new(store.clone(), executor, Images::new(client, store))
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
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
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
