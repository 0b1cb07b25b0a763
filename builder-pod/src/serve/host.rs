//! Where frontends run: which of them may, and the worker that they are told of.

use std::collections::HashMap;

use lapstrake_api::{pb, types};
use lapstrake_daemon::{Config, Frontends, GcRule};
use lapstrake_oci::Platform;

use super::trail::Requests;
use super::{control, usage};
use crate::engine::Engine;

/// What frontends find around them.
pub(crate) struct Host {
    /// Those that may be asked.
    pub(crate) frontends: Frontends,
    /// The only worker, as clients see it.
    pub(crate) worker: types::WorkerRecord,
    /// Requests that made what clients may build on.
    pub(crate) requests: Requests,
}

impl Host {
    /// That of a daemon.
    pub(crate) fn of_daemon(engine: &Engine, config: &Config, rules: &[GcRule], id: &str) -> Self {
        let named: Vec<Platform> =
            config.worker.platforms.iter().filter_map(|text| text.parse().ok()).collect();
        let mut worker = worker(id, if named.is_empty() { engine.platforms() } else { named });
        worker.labels.extend(config.worker.labels.clone());
        worker.gc_policy = usage::policies(rules);
        Self { frontends: config.frontends.clone(), worker, requests: Requests::default() }
    }

    /// That of a single build, for which any frontend may be asked.
    pub(crate) fn of_build(engine: &Engine) -> Self {
        let frontends = Frontends { dockerfile: true, gateway: true, gateway_repositories: Vec::new() };
        let worker = worker("build", engine.platforms());
        Self { frontends, worker, requests: Requests::default() }
    }
}

fn worker(id: &str, platforms: Vec<Platform>) -> types::WorkerRecord {
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let label =
        |name: &str, value: &str| (format!("org.mobyproject.buildkit.worker.{name}"), value.to_owned());
    let labels: HashMap<String, String> = [
        label("executor", "oci"),
        label("hostname", hostname.trim()),
        label("network", "host"),
        label("oci.process-mode", "sandbox"),
        label("snapshotter", "overlayfs"),
        label("selinux.enabled", "false"),
    ]
    .into();
    types::WorkerRecord {
        id: id.to_owned(),
        labels,
        platforms: platforms.iter().map(platform).collect(),
        gc_policy: Vec::new(),
        buildkit_version: Some(control::version()),
        cdi_devices: Vec::new(),
    }
}

/// A platform as messages have it.
pub(crate) fn platform(platform: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone().unwrap_or_default(),
        ..pb::Platform::default()
    }
}
