//! Whether a client still answers.

use std::time::Duration;

use lapstrake_api::health::HealthCheckRequest;
use lapstrake_api::health::health_client::HealthClient;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// How often a client is asked, how long it has, and how often it may fail in a row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    pub(crate) failures_max: u32,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { interval: Duration::from_secs(5), timeout: Duration::from_secs(15), failures_max: 2 }
    }
}

impl Schedule {
    /// For clients that ask to be found dead sooner.
    pub(crate) fn every(interval: Duration) -> Self {
        let interval = interval.max(Duration::from_secs(1));
        Self { interval, timeout: interval, failures_max: 1 }
    }
}

/// Returns once the client is gone, `closed` fired.
pub(crate) async fn watch(channel: Channel, schedule: Schedule, closed: &CancellationToken) {
    let mut client = HealthClient::new(channel);
    let watching = async {
        let mut failures = 0;
        loop {
            tokio::time::sleep(schedule.interval).await;
            let check = client.check(HealthCheckRequest { service: String::new() });
            match tokio::time::timeout(schedule.timeout, check).await {
                // A client without the service answers, too.
                Ok(Ok(_)) => failures = 0,
                Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => failures = 0,
                Ok(Err(status)) => {
                    failures += 1;
                    tracing::debug!(%status, failures, "a session's client failed its health check");
                }
                Err(_) => {
                    failures += 1;
                    tracing::debug!(failures, "a session's client did not answer its health check");
                }
            }
            if failures >= schedule.failures_max {
                tracing::warn!("a session's client no longer answers: the session is closed");
                return;
            }
        }
    };
    let _ = closed.run_until_cancelled(watching).await;
    closed.cancel();
}
