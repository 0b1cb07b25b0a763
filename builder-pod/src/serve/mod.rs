//! The daemon: what BuildKit's clients ask for, as builds.

mod answer;
mod bridge;
mod build;
pub(crate) mod caches;
mod control;
mod dockerfile;
mod errors;
pub(crate) mod exporters;
mod files;
mod job;
mod no_receiver;
mod receiver;
mod status;
mod values;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use lapstrake_api::MESSAGE_BYTES_MAX;
use lapstrake_api::control::control_server::ControlServer;
use lapstrake_api::frontend::llb_bridge_server::LlbBridgeServer;
use lapstrake_registry::{Client, Config};
use lapstrake_run::sandbox::Sandbox;
use lapstrake_session::Sessions;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::error::BuildError;
use crate::lender::Dirs;
use crate::room;
use crate::wiring;
use job::Jobs;

/// Attributes as requests have them.
pub(crate) type Attributes = BTreeMap<String, String>;

/// Serves BuildKit's gRPC API, in place of `buildkitd`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// State directory.
    #[arg(long, default_value = "/var/lib/buildkit")]
    root: PathBuf,
    /// Address to listen on.
    #[arg(long, default_value = "unix:///run/buildkit/buildkitd.sock")]
    addr: String,
}

/// What all builds of the daemon have in common.
pub(crate) struct Daemon {
    /// The engine that builds begin beside.
    engine: Engine,
    /// Reaches registries, without anybody's credentials.
    client: Client,
    /// Clients that are there.
    sessions: Sessions,
    /// Copies of their directories.
    dirs: Arc<Dirs>,
    /// Builds that go on.
    jobs: Arc<Jobs>,
    /// What builds may be allowed beyond the usual.
    entitlements: Vec<String>,
    /// Name of the only worker.
    worker: String,
    /// Fires when no more builds are begun.
    draining: CancellationToken,
}

/// A name that nothing else has.
fn id() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    // Two seeds that the standard library draws from the kernel.
    let half = || RandomState::new().hash_one(std::time::Instant::now());
    format!("{:016x}{:016x}", half(), half())
}

pub(crate) fn main(args: &Args, sandbox: &Sandbox) -> ExitCode {
    match wiring::block_on(serve(args, sandbox)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::cli::build::failed(&error).into(),
    }
}

async fn serve(args: &Args, sandbox: &Sandbox) -> Result<(), BuildError> {
    let client = Client::new(Config::default());
    let engine = wiring::engine(&args.root, client.clone(), sandbox)?;
    let store = engine.store().clone();
    drop(room::begin(&store, room::Host::Laptop, None)?);
    let daemon = Arc::new(Daemon {
        engine,
        client,
        sessions: Sessions::default(),
        dirs: Arc::default(),
        jobs: Arc::default(),
        entitlements: Vec::new(),
        worker: id(),
        draining: CancellationToken::new(),
    });
    let cancel = CancellationToken::new();
    wiring::cancel_on_signals(&cancel);
    let path = args.addr.strip_prefix("unix://").unwrap_or(&args.addr);
    let failed = |e: std::io::Error| BuildError::internal(format!("{path}: {e}"));
    if let Some(dir) = std::path::Path::new(path).parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    std::fs::remove_file(path).ok(); // it need not be there
    let listener = tokio::net::UnixListener::bind(path).map_err(failed)?;
    tracing::info!("running server on {path}");
    let control = ControlServer::from_arc(Arc::new(control::Control(Arc::clone(&daemon))))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let bridge = LlbBridgeServer::new(bridge::OnControl(Arc::clone(&daemon)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let served = tonic::transport::Server::builder()
        .add_service(control)
        .add_service(bridge)
        .serve_with_incoming(UnixListenerStream::new(listener));
    tokio::select! {
        served = served => served.map_err(|e| BuildError::internal(crate::error::chain(&e)))?,
        () = cancel.cancelled() => {
            daemon.draining.cancel();
            daemon.jobs.running().iter().for_each(|job| job.cancel.cancel());
            daemon.jobs.idle().await;
        }
    }
    std::fs::remove_file(path).ok(); // somebody was faster
    tokio::task::spawn_blocking(move || store.flush()).await.map_err(BuildError::internal)??;
    Ok(())
}
