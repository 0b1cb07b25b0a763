//! What the end-to-end tests stand on: a cluster with Lapstrake on it, a namespace for each test,
//! waiting by watching, and servers that pods can reach.
//!
//! Job: a test is a claim about a real cluster, in a few lines; what fails tells what was seen.
//! Holds: a test has a namespace of its own, and ends only when all that its ImageBuilds made is gone
//! again (a leak fails it); nothing is waited for by sleeping.
//! Never: a mock of anything; a step towards another test's namespace.
//!
//! `CLUSTER=current` runs the same tests on the kubeconfig's cluster; those that need to stop programs
//! of the node are skipped there, and say so. `LAPSTRAKE_KEEP=1` leaves a failed test's namespace.

mod buildx;
mod cluster;
mod leaks;
mod manifest;
mod pods;
mod registry;
mod release;
mod serve;
mod sshd;
mod test;
mod wait;

pub use buildx::{Buildx, dockerfile_frontend};
pub use cluster::{Cluster, FLAKY_REGISTRY_PORT, SYSTEM_NAMESPACE};
pub use leaks::{Form, Leak, Place, Search, random_bytes, random_text};
pub use manifest::{Manifest, example, example_file, examples, repository_root};
pub use pods::{BuilderPods, log_of};
pub use registry::PrivateRegistry;
pub use release::{AsItWas, RELEASE, install, values};
pub use serve::{FlakyRegistry, Server};
pub use sshd::{Sshd, ssh_client};
pub use test::{Test, run, run_in};
pub use wait::{ended, ready, reason, wait_gone, wait_until};
