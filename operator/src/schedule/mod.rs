//! Who may build, and who waits: limits for the cluster, its namespaces and groups.
//!
//! `queue` decides (pure), `admissions` remembers what the caches do not show yet. The reconciler does not ask
//! them yet: no limit is enforced.

pub mod admissions;
pub mod board;
pub mod queue;
#[cfg(test)]
mod queue_tests;
pub mod settings;
pub mod ticket;
