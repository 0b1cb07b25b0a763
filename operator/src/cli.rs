//! The command line.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use kube::client::ClientBuilder;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::leader::{Candidate, Elector};
use crate::metrics::Metrics;
use crate::reconcile::{Scope, run};
use crate::requests::counted;
use crate::schedule::board::Board;
use crate::schedule::settings::QueueSettings;
use crate::server::{Shown, serve};
use crate::settings::{AppArmor, BuilderDefaults, KeepPods, Settings, own_architecture};

/// Builds container images that ImageBuilds ask for.
#[derive(Debug, Parser)]
#[command(name = "lapstrake-operator", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve ImageBuilds.
    Run(Box<Run>),
    /// Print the CustomResourceDefinition.
    Crd,
}

#[derive(Debug, Args)]
struct Run {
    /// Image of the builder.
    #[arg(long, env = "LAPSTRAKE_BUILDER_IMAGE", value_name = "IMAGE")]
    builder_image: String,
    /// Namespace to serve; may be given several times. All, if none is.
    #[arg(long, env = "LAPSTRAKE_NAMESPACES", value_name = "NAMESPACE", value_delimiter = ',')]
    namespace: Vec<String>,
    /// Namespace to leave to another operator, when all are served; may be given several times.
    #[arg(
        long,
        env = "LAPSTRAKE_EXCEPT_NAMESPACES",
        value_name = "NAMESPACE",
        value_delimiter = ',',
        conflicts_with = "namespace"
    )]
    except_namespace: Vec<String>,
    /// File with what the builder knows of registries, as JSON.
    #[arg(long, env = "LAPSTRAKE_REGISTRIES_CONFIG", value_name = "FILE")]
    registries_config: Option<PathBuf>,
    /// File with what builder pods get where an ImageBuild does not say otherwise, as JSON.
    #[arg(long, env = "LAPSTRAKE_BUILDER_DEFAULTS", value_name = "FILE")]
    builder_defaults: Option<PathBuf>,
    /// File with how many builds may run at once, as JSON.
    #[arg(long, env = "LAPSTRAKE_QUEUE_CONFIG", value_name = "FILE")]
    queue_config: Option<PathBuf>,
    /// How often slots of shared caches are looked through for those that were unused for too long.
    #[arg(long, env = "LAPSTRAKE_CACHE_SWEEP", value_name = "LENGTH", default_value = "5m", value_parser = length)]
    cache_sweep: Duration,
    /// What becomes of the pods of a run that has ended.
    #[arg(long, env = "LAPSTRAKE_KEEP_PODS", value_enum, default_value = "all")]
    keep_pods: KeepPods,
    /// How long they stay, such as 24h; until the next run by default.
    #[arg(long, env = "LAPSTRAKE_KEEP_PODS_FOR", value_name = "LENGTH", value_parser = length)]
    keep_pods_for: Option<Duration>,
    /// AppArmor profile of builder pods that mount in their own user namespace.
    #[arg(long, env = "LAPSTRAKE_APP_ARMOR", value_enum, default_value = "unconfined")]
    app_armor: AppArmor,
    /// Format of the log.
    #[arg(long, env = "LAPSTRAKE_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug, or a filter such as info,kube=debug.
    #[arg(long, env = "LAPSTRAKE_LOG_LEVEL", value_name = "FILTER", default_value = "info")]
    log_level: String,
    /// Address of /metrics.
    #[arg(long, env = "LAPSTRAKE_METRICS_ADDR", value_name = "ADDRESS", default_value = ":8080", value_parser = address)]
    metrics_addr: SocketAddr,
    /// Address of /healthz and /readyz.
    #[arg(long, env = "LAPSTRAKE_HEALTH_ADDR", value_name = "ADDRESS", default_value = ":8081", value_parser = address)]
    health_addr: SocketAddr,
    /// ImageBuilds that are looked at in the same moment.
    #[arg(long, env = "LAPSTRAKE_CONCURRENCY", value_name = "COUNT", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: u16,
    /// Whether to wait until no other operator works.
    #[arg(long, env = "LAPSTRAKE_LEADER_ELECTION", default_value_t = true, action = clap::ArgAction::Set)]
    leader_election: bool,
    /// Namespace of the Lease.
    #[arg(long, env = "LAPSTRAKE_LEADER_ELECTION_NAMESPACE", value_name = "NAMESPACE")]
    leader_election_namespace: Option<String>,
    /// Name of the Lease.
    #[arg(
        long,
        env = "LAPSTRAKE_LEADER_ELECTION_NAME",
        value_name = "NAME",
        default_value = "lapstrake-operator"
    )]
    leader_election_name: String,
    /// Name of this operator, unlike all others'; by default the pod's or host's name with a number.
    #[arg(long, env = "LAPSTRAKE_POD_NAME", value_name = "NAME")]
    identity: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Reads an address; without a host it is all of this machine's.
fn address(text: &str) -> Result<SocketAddr, String> {
    let full = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    full.parse()
        .map_err(|_| format!("{text:?} is not an address: write [HOST]:PORT, as in :8080 or 127.0.0.1:8080"))
}

/// Reads a length of time above zero.
fn length(text: &str) -> Result<Duration, String> {
    let length: Option<kube::core::Duration> = text.parse().ok();
    let length = length.map(Duration::from).filter(|length| !length.is_zero());
    length.ok_or_else(|| format!("{text:?} is not a length of time above zero: write it as in 90s or 5m"))
}

/// Reads the arguments and does what they say.
pub fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Crd => {
            use std::io::Write;
            let text = serde_saphyr::to_string(&lapstrake_crds::crd())?;
            std::io::stdout().write_all(text.as_bytes())?;
            Ok(())
        }
        Command::Run(args) => {
            log(&args)?;
            // One thread: the work is waiting for others, and each further one costs memory.
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("cannot start the runtime")?;
            runtime.block_on(operate(*args))
        }
    }
}

fn log(args: &Run) -> anyhow::Result<()> {
    let mut filter = args.log_level.clone();
    // A plain level is meant for the operator: what its libraries say, and their spans, only blurs it.
    if !filter.contains([',', '=']) {
        filter.push_str(
            ",kube=warn,kube_client=warn,kube_runtime=warn,hyper=warn,tower=warn,rustls=warn,h2=warn",
        );
    }
    let filter = EnvFilter::try_new(&filter).with_context(|| format!("log level {:?}", args.log_level))?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    match args.log_format {
        LogFormat::Text => lines.init(),
        LogFormat::Json => {
            lines.json().flatten_event(true).with_current_span(true).with_span_list(false).init()
        }
    }
    Ok(())
}

fn settings(args: &Run) -> anyhow::Result<Settings> {
    let defaults = match &args.builder_defaults {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_str::<BuilderDefaults>(&text)
                .with_context(|| format!("in {}", path.display()))?
        }
        None => BuilderDefaults::default(),
    };
    let registries = match &args.registries_config {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            let json: serde_json::Value =
                serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))?;
            if json.as_object().is_none_or(serde_json::Map::is_empty) { String::new() } else { text }
        }
        None => String::new(),
    };
    let queue = match &args.queue_config {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_str::<QueueSettings>(&text).with_context(|| format!("in {}", path.display()))?
        }
        None => QueueSettings::default(),
    };
    Ok(Settings {
        queue: queue.into(),
        cache_sweep: args.cache_sweep,
        builder_image: args.builder_image.clone(),
        architecture: match defaults.emulate_on.as_str() {
            "" => own_architecture().to_owned(),
            named => named.to_owned(),
        },
        defaults,
        registries,
        keep_pods: args.keep_pods,
        keep_pods_for: args.keep_pods_for,
        app_armor: args.app_armor,
    })
}

async fn operate(args: Run) -> anyhow::Result<()> {
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        bail!("another TLS provider is installed already");
    }
    let settings = Arc::new(settings(&args)?);
    let mut config = kube::Config::infer().await.context("found no cluster to serve")?;
    // Reconciles have a backoff of their own, and a call that retries for minutes would hide behind it.
    config.default_retry = false;
    let own_namespace = config.default_namespace.clone();
    let metrics = Arc::new(Metrics::new());
    let client = ClientBuilder::try_from(config).context("cannot make a client")?;
    let client = client.with_layer(&counted(metrics.clone())).build();
    let stop = CancellationToken::new();
    let ready = Arc::new(AtomicBool::new(false));
    let mut addresses = vec![args.metrics_addr, args.health_addr];
    addresses.dedup();
    let served_until = CancellationToken::new();
    let shown = Shown { metrics: metrics.clone(), ready: ready.clone() };
    let mut server = tokio::spawn(serve(addresses, shown, served_until.clone()));
    tokio::spawn(stop_on_signal(stop.clone()));
    client.apiserver_version().await.context("cannot reach the API server")?;
    ready.store(true, Ordering::Relaxed);

    let identity = args.identity.clone().unwrap_or_else(default_identity);
    let (leads, mut lead) = watch::channel(!args.leader_election);
    let elector = args.leader_election.then(|| {
        let namespace = args.leader_election_namespace.clone().unwrap_or(own_namespace);
        let me = Candidate::new(namespace, args.leader_election_name.clone(), identity.clone());
        // The Lease is handed back only once nothing works any more.
        tokio::spawn(Elector::new(client.clone(), me).run(leads.clone(), served_until.clone()))
    });
    let namespaces: Vec<Option<String>> = match args.namespace.as_slice() {
        [] => vec![None],
        some => some.iter().cloned().map(Some).collect(),
    };
    let board = Arc::new(Board::default());
    let scopes: Vec<Scope> = namespaces
        .into_iter()
        .map(|namespace| Scope {
            client: client.clone(),
            namespace,
            except: args.except_namespace.clone(),
            settings: settings.clone(),
            metrics: metrics.clone(),
            identity: identity.clone(),
            concurrency: args.concurrency,
            board: board.clone(),
        })
        .collect();
    let work = work_while_leading(&scopes, &mut lead, &metrics, &stop);
    tokio::select! {
        () = work => {}
        result = &mut server => {
            result.context("the server of metrics ended")?.context("cannot serve metrics")?;
            bail!("the server of metrics ended");
        }
    }
    ready.store(false, Ordering::Relaxed);
    served_until.cancel();
    if let Some(elector) = elector {
        elector.await.context("leader election")?;
    }
    info!("ended");
    Ok(())
}

/// Works while this operator leads, until `stop`.
async fn work_while_leading(
    scopes: &[Scope],
    lead: &mut watch::Receiver<bool>,
    metrics: &Metrics,
    stop: &CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            result = lead.wait_for(|leads| *leads) => {
                if result.is_err() {
                    return;
                }
            }
        }
        metrics.lead(true);
        let controllers =
            futures::future::join_all(scopes.iter().cloned().map(|scope| run(scope, stop.clone())));
        tokio::select! {
            _ = controllers => {}
            // Dropping the controllers ends every call that is under way.
            _ = lead.wait_for(|leads| !*leads) => warn!("stopped: no longer the leader"),
        }
        metrics.lead(false);
        scopes.iter().for_each(|scope| scope.board.clear());
        if stop.is_cancelled() {
            return;
        }
    }
}

fn default_identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}

async fn stop_on_signal(stop: CancellationToken) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        warn!("signals cannot be caught");
        return;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stops");
    stop.cancel();
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    warn!("stops at once");
    std::process::exit(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_leave_its_host_out() {
        assert_eq!(address(":8080").unwrap().to_string(), "0.0.0.0:8080");
        assert_eq!(address("127.0.0.1:1").unwrap().to_string(), "127.0.0.1:1");
        assert!(address("8080").is_err());
    }

    #[test]
    fn the_charts_arguments_are_taken() {
        let cli = Cli::try_parse_from([
            "lapstrake-operator",
            "run",
            "--builder-image=x/y:1",
            "--registries-config=/a",
            "--builder-defaults=/b",
            "--queue-config=/c",
            "--cache-sweep=10m",
            "--log-format=text",
            "--log-level=info",
            "--metrics-addr=:8080",
            "--health-addr=:8081",
            "--concurrency=8",
            "--leader-election-namespace=ns",
            "--leader-election-name=lease",
            "--namespace=a",
            "--namespace=b",
        ]);
        let Command::Run(run) = cli.unwrap().command else { panic!("run") };
        assert_eq!(run.namespace, ["a", "b"]);
        assert!(run.leader_election);
    }

    #[test]
    fn namespaces_are_either_listed_or_left_out() {
        let parse = |more: &[&str]| {
            let start = ["lapstrake-operator", "run", "--builder-image=x"];
            Cli::try_parse_from(start.iter().chain(more))
        };
        let Command::Run(run) = parse(&["--except-namespace=a,b"]).unwrap().command else { panic!("run") };
        assert_eq!(run.except_namespace, ["a", "b"]);
        assert!(parse(&["--except-namespace=a", "--namespace=b"]).is_err());
    }

    #[test]
    fn the_definition_prints_as_yaml() {
        let text = serde_saphyr::to_string(&lapstrake_crds::crd()).unwrap();
        assert!(text.contains("imagebuilds.lapstrake.dev"), "{}", &text[..200]);
    }
}
