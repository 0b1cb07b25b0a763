//! From flags to a daemon that serves, and to its end.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lapstrake_api::health::health_server::HealthServer;
use lapstrake_api::{ControlServer, LlbBridgeServer};
use lapstrake_daemon::{Config, Flags, Listeners, RootLock, Stop};
use lapstrake_registry::Client;
use lapstrake_run::Dns;
use lapstrake_run::sandbox::{self, Mode, Sandbox};
use lapstrake_session::Sessions;
use lapstrake_store::Store;
use tokio_util::sync::CancellationToken;

use super::collector::Collector;
use super::contents::Contents;
use super::history::History;
use super::host::Host;
use super::service::Service;
use super::traces::Traces;
use super::{Daemon, bridge, control, health, metrics, usage, workers};
use crate::error::{BuildError, chain};
use crate::wiring;

/// How long answers may take to reach their clients once all builds have ended.
const FAREWELL: Duration = Duration::from_secs(2);
/// Garbage is collected so long after a build: those that come in a row are one.
const COLLECT_AFTER: Duration = Duration::from_secs(1);
/// Garbage is collected no more often than this.
const COLLECT_EVERY: Duration = Duration::from_secs(60);
/// The file in the state directory that keeps the worker's name.
const WORKER_ID: &str = "workerid";
/// What one stream of a client may send before anybody reads it.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
/// The same of all streams of a connection. It is as large as it is for sessions, whose client writes the list of its files in tens of
/// thousands of small pieces: HTTP/2's library ends a connection of which unread pieces take, with what it needs to keep each of them,
/// more than half of this window.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;

fn failed(why: &str) -> ExitCode {
    writeln!(std::io::stderr(), "buildkitd: {why}").ok(); // nobody listens
    ExitCode::FAILURE
}

/// Serves BuildKit's gRPC API until a signal comes. Called before there is any thread.
pub(crate) fn start(flags: &Flags) -> ExitCode {
    let config = match Config::load(flags) {
        Ok(config) => config,
        Err(error) => return failed(&error.to_string()),
    };
    let sandbox = match sandbox::enter(Mode::Auto) {
        Ok(sandbox) => sandbox,
        Err(error) => return failed(&format!("steps can't run here: {error}")),
    };
    let lock = match RootLock::take(&config.root) {
        Ok(lock) => lock,
        Err(error) => return failed(&chain(&error)),
    };
    if let Err(error) = sandbox.preflight(&config.root) {
        return failed(&format!("steps can't run here: {error}"));
    }
    lapstrake_daemon::log::init(&config.log);
    config.tell();
    wiring::raise_open_files();
    // One provider for all of TLS; a second installation is refused, which is fine.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let served = wiring::block_on(serve(config, &sandbox));
    drop(lock);
    served.unwrap_or_else(|error| failed(&error.to_string()))
}

fn outside(error: &lapstrake_daemon::Error) -> BuildError {
    BuildError::internal(chain(error))
}

async fn serve(config: Config, sandbox: &Sandbox) -> Result<ExitCode, BuildError> {
    let stop = Stop::on_signals(config.drain).map_err(BuildError::internal)?;
    let mut registry = lapstrake_registry::Config { hosts: config.registries.clone(), ..Default::default() };
    if let Some(connections) = config.registry_connections_max {
        registry.limits.concurrency = connections.get();
    }
    let client = Client::new(registry);
    let dns = config.dns.clone();
    let dns = dns.map(|dns| Dns { nameservers: dns.nameservers, search: dns.search, options: dns.options });
    let mut engine = wiring::engine_with(&config.root, client.clone(), sandbox, dns)?;
    if let Some(slots) = config.worker.parallelism_max {
        engine = engine.with_slots(slots);
    }
    let store = engine.store().clone();
    let rules = config.worker.gc.rules(store.disk()?.total_bytes);
    if let Some(last) = rules.last() {
        // While builds run, too.
        store.keep_within(usage::limits(last));
    }
    let host = Host::of_daemon(&engine, &config, &rules, &worker_id(&config.root)?);
    // As there, what is wrong with it is told, and the daemon serves.
    let collector = Collector::of_environment().unwrap_or_else(|why| {
        tracing::error!("spans go nowhere: {why}");
        None
    });
    let daemon = Arc::new(Daemon {
        host: Arc::new(host),
        rules,
        metrics: metrics::Metrics::default(),
        collector,
        history: History::open(&store, config.history).map_err(BuildError::internal)?,
        engine,
        client,
        sessions: Sessions::with_auth_timeout(config.session_auth_timeout),
        dirs: Arc::default(),
        jobs: Arc::default(),
        environment: crate::attest::environment(&config.provenance_env_dir).map_err(BuildError::internal)?,
        config,
        draining: stop.drain.clone(),
    });
    tell_worker(&daemon);
    let listeners = Listeners::bind(&daemon.config.grpc).await.map_err(|e| outside(&e))?;
    let said = CancellationToken::new();
    if let Some(address) = &daemon.config.debug_address {
        let debug = Listeners::debug(address).await.map_err(|e| outside(&e))?;
        tracing::info!("debug handlers listening at {address}");
        tokio::spawn(metrics::serve(debug.incoming(&said), Arc::clone(&daemon)));
    }
    let contents = Contents { history: Arc::clone(&daemon.history), store: store.clone() };
    listeners.announce();
    let control = ControlServer::new(control::Control(Arc::clone(&daemon)));
    let bridge = LlbBridgeServer::new(bridge::Bridge::on_control(&daemon));
    tokio::spawn(collect(store.clone(), Arc::clone(&daemon)));
    let served = tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .add_service(control)
        .add_service(bridge)
        .add_service(Service(contents))
        .add_service(Service(Traces(daemon.collector.clone())))
        .add_service(HealthServer::new(health::Serving))
        .add_service(lapstrake_api::reflection::current().map_err(|e| BuildError::internal(chain(&e)))?)
        .add_service(lapstrake_api::reflection::alpha().map_err(|e| BuildError::internal(chain(&e)))?)
        .serve_with_incoming_shutdown(listeners.incoming(&said), said.clone().cancelled_owned());
    let farewell = async {
        ended(&daemon, &stop).await;
        said.cancel();
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        served = served => served.map_err(|e| BuildError::internal(chain(&e)))?,
        () = farewell => {}
    }
    tokio::task::spawn_blocking(move || store.flush()).await.map_err(BuildError::internal)??;
    Ok(stop.exit_code())
}

/// Returns once the daemon was told to end, and its builds have ended or were canceled.
async fn ended(daemon: &Daemon, stop: &Stop) {
    stop.drain.cancelled().await;
    tracing::info!("stopping server");
    tokio::select! {
        () = daemon.jobs.idle() => {}
        () = stop.end.cancelled() => {
            daemon.jobs.running().iter().for_each(|job| job.cancel.cancel());
            daemon.jobs.idle().await;
        }
    }
    stop.end.cancel();
}

/// The name of the worker, which stays the same for a state directory.
fn worker_id(root: &Path) -> Result<String, BuildError> {
    let path = root.join(WORKER_ID);
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let kept = kept.trim();
    if !kept.is_empty() {
        return Ok(kept.to_owned());
    }
    let id = super::id();
    let failed = |e: std::io::Error| BuildError::internal(format!("{}: {e}", path.display()));
    std::fs::write(&path, &id).map_err(failed)?;
    Ok(id)
}

/// The lines by which `buildkitd` tells of its worker.
fn tell_worker(daemon: &Daemon) {
    let worker = &daemon.host.worker;
    let mut labels: Vec<String> = worker.labels.iter().map(|(key, value)| format!("{key}:{value}")).collect();
    labels.sort();
    let platforms: Vec<String> = worker.platforms.iter().map(workers::platform).collect();
    tracing::info!(
        "found worker {:?}, labels=map[{}], platforms=[{}]",
        worker.id,
        labels.join(" "),
        platforms.join(" ")
    );
    tracing::info!("found 1 workers, default={:?}", worker.id);
    tracing::warn!("currently, only the default worker can be used.");
}

/// Collects garbage after builds, by the rules of the configuration.
async fn collect(store: Store, daemon: Arc<Daemon>) {
    loop {
        daemon.jobs.ended().await;
        tokio::time::sleep(COLLECT_AFTER).await;
        let (store, rules, history) = (store.clone(), daemon.rules.clone(), Arc::clone(&daemon.history));
        let collected = tokio::task::spawn_blocking(move || {
            history.collect(SystemTime::now());
            usage::collect_by(&store, &rules)
        });
        match collected.await {
            Ok(Ok(0)) => {}
            Ok(Ok(bytes)) => tracing::debug!("gc cleaned up {bytes} bytes"),
            Ok(Err(error)) => tracing::error!("gc error: {}", error.message()),
            Err(error) => tracing::error!("gc error: {error}"),
        }
        tokio::time::sleep(COLLECT_EVERY).await;
    }
}
