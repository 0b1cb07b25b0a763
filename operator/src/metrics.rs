//! What Prometheus reads.

use std::sync::atomic::AtomicI64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::Store;
use lapstrake_crds::{ConditionType, ImageBuild, RunResult};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::plan::Finished;
use crate::requests::Asked;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    result: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReadyLabels {
    ready: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    resource: String,
}

/// The operator's counters.
pub struct Metrics {
    registry: Registry,
    builds: Family<BuildLabels, Counter>,
    duration: Histogram,
    wait: Histogram,
    reconciles: Histogram,
    errors: Counter,
    requests: Family<RequestLabels, Counter>,
    leader: Gauge<i64, AtomicI64>,
    objects: Family<ReadyLabels, Gauge<i64, AtomicI64>>,
    pods: Family<PhaseLabels, Gauge<i64, AtomicI64>>,
    served: Mutex<Vec<(Store<ImageBuild>, Store<Pod>)>>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

const PHASES: [&str; 5] = ["Pending", "Running", "Succeeded", "Failed", "Unknown"];
const READY: [&str; 3] = ["True", "False", "Unknown"];

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("lapstrake");
        let metrics = Self {
            builds: Family::default(),
            duration: Histogram::new([
                1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0,
            ]),
            wait: Histogram::new([0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0]),
            reconciles: Histogram::new([0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0]),
            errors: Counter::default(),
            requests: Family::default(),
            leader: Gauge::default(),
            objects: Family::default(),
            pods: Family::default(),
            served: Mutex::default(),
            registry: Registry::default(),
        };
        registry.register("builds", "Runs that have ended, by result and reason", metrics.builds.clone());
        registry.register_with_unit(
            "build_duration",
            "Time from the start of a run to its end",
            Unit::Seconds,
            metrics.duration.clone(),
        );
        registry.register_with_unit(
            "build_wait",
            "Time from the start of a run until its builder ran",
            Unit::Seconds,
            metrics.wait.clone(),
        );
        registry.register_with_unit(
            "reconcile_duration",
            "Time that a reconcile took",
            Unit::Seconds,
            metrics.reconciles.clone(),
        );
        registry.register("reconcile_errors", "Reconciles that did not get through", metrics.errors.clone());
        let requests = metrics.requests.clone();
        registry.register("api_requests", "Requests to the API server, by verb and resource", requests);
        registry.register("leader", "1 while this operator is the one that works", metrics.leader.clone());
        registry.register(
            "imagebuilds",
            "ImageBuilds, by the status of their condition Ready",
            metrics.objects.clone(),
        );
        registry.register("builder_pods", "Builder pods, by phase", metrics.pods.clone());
        Self { registry, ..metrics }
    }

    /// A reconcile is over.
    pub fn reconciled(&self, took: Duration, well: bool) {
        self.reconciles.observe(took.as_secs_f64());
        if !well {
            self.errors.inc();
        }
    }

    /// A request is sent to the API server.
    pub fn asked(&self, asked: &Asked) {
        let labels = RequestLabels { verb: asked.verb, resource: asked.resource.clone() };
        self.requests.get_or_create(&labels).inc();
    }

    /// A run has ended, and its status is written.
    pub fn finished(&self, finished: &Finished) {
        let result = match finished.result {
            RunResult::Succeeded => "succeeded",
            RunResult::Failed => "failed",
            RunResult::Canceled => "canceled",
        };
        self.builds.get_or_create(&BuildLabels { result, reason: finished.reason.as_str() }).inc();
        self.duration.observe(finished.took.as_secs_f64());
        if let Some(waited) = finished.waited {
            self.wait.observe(waited.as_secs_f64());
        }
    }

    /// Whether this operator is the one that works.
    pub fn lead(&self, leads: bool) {
        self.leader.set(leads.into());
        if !leads {
            self.served.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// Counts the objects of these caches whenever the metrics are read.
    pub fn serve(&self, builds: Store<ImageBuild>, pods: Store<Pod>) {
        self.served.lock().unwrap_or_else(PoisonError::into_inner).push((builds, pods));
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        self.count();
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes all that is written to it");
        text
    }

    fn count(&self) {
        let served = self.served.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ready = [0; READY.len()];
        let mut phases = [0; PHASES.len()];
        let add = |counts: &mut [i64], words: &[&str], word: &str| {
            let at = words.iter().position(|one| *one == word).unwrap_or(words.len() - 1);
            counts[at] += 1;
        };
        for (builds, pods) in served.iter() {
            for build in builds.state() {
                let condition =
                    build.status.as_ref().and_then(|status| status.condition(ConditionType::Ready));
                add(&mut ready, &READY, condition.map_or("Unknown", |condition| &condition.status));
            }
            for pod in pods.state() {
                let phase =
                    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Unknown");
                add(&mut phases, &PHASES, phase);
            }
        }
        for (word, count) in READY.into_iter().zip(ready) {
            self.objects.get_or_create(&ReadyLabels { ready: word }).set(count);
        }
        for (word, count) in PHASES.into_iter().zip(phases) {
            self.pods.get_or_create(&PhaseLabels { phase: word }).set(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use lapstrake_crds::Reason;

    use super::*;

    #[test]
    fn a_finished_run_is_counted_under_its_reason() {
        let metrics = Metrics::new();
        let took = Duration::from_secs(3);
        metrics.finished(&Finished {
            result: RunResult::Failed,
            reason: Reason::StepFailed,
            took,
            waited: Some(took),
        });
        metrics.lead(true);
        metrics.asked(&Asked { verb: "patch", resource: "imagebuilds/status".to_owned() });
        let text = metrics.text();
        for line in [
            "lapstrake_builds_total{result=\"failed\",reason=\"StepFailed\"} 1",
            "lapstrake_build_duration_seconds_sum 3.0",
            "lapstrake_build_wait_seconds_count 1",
            "lapstrake_leader 1",
            "lapstrake_api_requests_total{verb=\"patch\",resource=\"imagebuilds/status\"} 1",
            "lapstrake_imagebuilds{ready=\"True\"} 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
