//! One operator works, the others wait: leader election on a Lease.
//!
//! Holds: the Lease is written only over the version that was read, so of two candidates one wins; a
//! foreign Lease has expired only when it did not change for its whole length by our own monotonic
//! clock, so wrong wall clocks do no harm; a leader that cannot renew stops before others may start.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::PostParams;
use lapstrake_crds::field_manager;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Who runs for leader, and with what patience.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Name of the Lease.
    pub lease: String,
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of this operator, unlike all others'.
    pub identity: String,
    /// How long a leader that says nothing stays leader.
    pub lease_duration: Duration,
    /// How long a leader tries to renew before it gives up.
    pub renew_deadline: Duration,
    /// Wait between two tries.
    pub retry_period: Duration,
}

impl Candidate {
    /// A candidate with the usual patience: 15, 10 and 2 seconds.
    pub fn new(namespace: String, lease: String, identity: String) -> Self {
        Self {
            lease,
            namespace,
            identity,
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// The Lease as it was seen last, and when that was first seen.
struct Seen {
    version: Option<String>,
    at: Instant,
}

/// Runs for leader.
pub struct Elector {
    leases: Api<Lease>,
    me: Candidate,
    seen: Option<Seen>,
}

impl Elector {
    /// Has not looked at the Lease yet.
    pub fn new(client: kube::Client, me: Candidate) -> Self {
        Self { leases: Api::namespaced(client, &me.namespace), me, seen: None }
    }

    /// Runs until `stop`, then hands the Lease back. `leads` says at any time whether we lead.
    pub async fn run(mut self, leads: watch::Sender<bool>, stop: CancellationToken) {
        let mut renewed = Instant::now();
        loop {
            let leading = *leads.borrow();
            // A request that hangs must not outlive the deadline.
            let patience = if leading {
                (renewed + self.me.renew_deadline).saturating_duration_since(Instant::now())
            } else {
                self.me.renew_deadline
            };
            let asked = Instant::now();
            let result = tokio::select! {
                () = stop.cancelled() => break,
                result = tokio::time::timeout(patience, self.try_once()) => result,
            };
            match result {
                Ok(Ok(true)) => {
                    // Counted from before the request: the server may have written it at once.
                    renewed = asked;
                    if !leading {
                        info!(lease = self.me.lease, identity = self.me.identity, "leads");
                        leads.send_replace(true);
                    }
                }
                Ok(Ok(false)) if leading => {
                    warn!("another operator took the lease");
                    leads.send_replace(false);
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) => debug!(%error, "cannot get or renew the lease"),
                Err(_) => debug!("no answer about the lease"),
            }
            if *leads.borrow() && renewed.elapsed() >= self.me.renew_deadline {
                warn!("could not renew the lease in time");
                leads.send_replace(false);
            }
            let wait = if *leads.borrow() {
                self.me
                    .retry_period
                    .min((renewed + self.me.renew_deadline).saturating_duration_since(Instant::now()))
            } else {
                self.me.retry_period
            };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        if leads.send_replace(false)
            && let Err(error) = self.release().await
        {
            debug!(%error, "cannot hand back the lease: it will expire");
        }
    }

    /// Takes or renews the Lease if it can be had; true if it is ours now.
    pub async fn try_once(&mut self) -> Result<bool, kube::Error> {
        let now = Timestamp::now();
        let params = PostParams { field_manager: Some(field_manager().to_owned()), ..PostParams::default() };
        let Some(mut lease) = self.leases.get_opt(&self.me.lease).await? else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.me.lease.clone()),
                    namespace: Some(self.me.namespace.clone()),
                    ..ObjectMeta::default()
                },
                spec: Some(self.spec(now, None)),
            };
            return won(self.leases.create(&params, &lease).await);
        };
        let version = lease.metadata.resource_version.clone();
        if self.seen.as_ref().is_none_or(|seen| seen.version != version) {
            self.seen = Some(Seen { version, at: Instant::now() });
        }
        let old = lease.spec.take();
        let holder = old.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        let mine = holder == self.me.identity;
        if !mine && !holder.is_empty() && !self.expired(old.as_ref()) {
            return Ok(false);
        }
        lease.spec = Some(self.spec(now, old));
        // Carries the version that was read: whoever wrote in between wins.
        let written = self.leases.replace(&self.me.lease, &params, &lease).await;
        // Whoever wrote over ours need not have taken it, say to annotate it: the next try will show.
        if mine { written.map(|_| true) } else { won(written) }
    }

    /// Whether the Lease did not change for its whole length.
    fn expired(&self, spec: Option<&LeaseSpec>) -> bool {
        let length = spec
            .and_then(|spec| spec.lease_duration_seconds)
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.me.lease_duration, Duration::from_secs);
        self.seen.as_ref().is_some_and(|seen| seen.at.elapsed() >= length)
    }

    fn spec(&self, now: Timestamp, old: Option<LeaseSpec>) -> LeaseSpec {
        let old = old.unwrap_or_default();
        let mine = old.holder_identity.as_deref() == Some(&self.me.identity);
        LeaseSpec {
            holder_identity: Some(self.me.identity.clone()),
            lease_duration_seconds: i32::try_from(self.me.lease_duration.as_secs()).ok(),
            acquire_time: old.acquire_time.filter(|_| mine).or(Some(MicroTime(now))),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(old.lease_transitions.unwrap_or_default() + i32::from(!mine)),
            ..LeaseSpec::default()
        }
    }

    /// Hands the Lease back, so that the next need not wait for it to expire.
    async fn release(&mut self) -> Result<(), kube::Error> {
        let work = async {
            let Some(mut lease) = self.leases.get_opt(&self.me.lease).await? else {
                return Ok(());
            };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() != Some(&self.me.identity) {
                return Ok(());
            }
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            spec.renew_time = Some(MicroTime(Timestamp::now()));
            self.leases.replace(&self.me.lease, &PostParams::default(), &lease).await.map(|_| ())
        };
        match tokio::time::timeout(self.me.retry_period, work).await {
            Ok(result) => result,
            Err(_) => Ok(()),
        }
    }
}

/// Losing a race is an answer, not an error.
fn won(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
#[path = "leader_tests.rs"]
mod tests;
