//! The daemon: what BuildKit's clients ask for, as builds.

mod answer;
mod attested;
mod bridge;
mod build;
mod buildctl;
pub(crate) mod caches;
mod clock;
mod collector;
mod containers;
mod contents;
mod control;
mod dockerfile;
mod errors;
pub(crate) mod exporters;
mod files;
mod filter;
mod gateway;
mod health;
pub(crate) mod history;
mod history_filter;
mod host;
mod job;
mod judge;
mod layouts;
mod metrics;
mod no_receiver;
pub(crate) mod personality;
mod receiver;
mod service;
pub(crate) mod single;
mod start;
mod status;
mod traces;
mod trail;
pub(crate) mod usage;
mod values;
mod verify;
mod workers;

use std::collections::BTreeMap;
use std::sync::Arc;

use lapstrake_daemon::Entitlement;
use lapstrake_registry::Client;
use lapstrake_session::Sessions;
use tokio_util::sync::CancellationToken;

use crate::engine::Engine;
use crate::lender::Dirs;
use job::Jobs;

/// Attributes as requests have them.
pub(crate) type Attributes = BTreeMap<String, String>;

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
    /// What was set up.
    config: lapstrake_daemon::Config,
    /// What frontends find around them.
    host: Arc<host::Host>,
    /// What garbage collection goes by.
    rules: Vec<lapstrake_daemon::GcRule>,
    /// What is counted.
    metrics: metrics::Metrics,
    /// Where spans go.
    collector: Option<collector::Collector>,
    /// Builds that have ended.
    history: Arc<history::History>,
    /// What the administrator adds to all provenance.
    environment: serde_json::Map<String, serde_json::Value>,
    /// Fires when no more builds are begun.
    draining: CancellationToken,
}

impl Daemon {
    /// Whether builds may be allowed something beyond the usual, as clients name it.
    fn allows(&self, entitlement: &str) -> bool {
        let kind = entitlement.split_once('=').map_or(entitlement, |(kind, _)| kind);
        let of = |entitlement: &Entitlement| entitlement.name() == kind;
        self.config.entitlements.iter().any(of)
    }
}

/// A name for one run of a build, as BuildKit's are: 25 letters and digits.
fn invocation() -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut number = u128::from_str_radix(&id(), 16).unwrap_or_default();
    let digit = |number: &mut u128| {
        let at = usize::try_from(*number % 36).unwrap_or_default();
        *number /= 36;
        DIGITS.get(at).copied().map_or('0', char::from)
    };
    (0..25).map(|_| digit(&mut number)).collect()
}

/// A name that nothing else has.
fn id() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    // Two seeds that the standard library draws from the kernel.
    let half = || RandomState::new().hash_one(std::time::Instant::now());
    format!("{:016x}{:016x}", half(), half())
}
