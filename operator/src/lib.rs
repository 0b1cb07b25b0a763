//! Turns `ImageBuild`s into builder pods, and what those pods say into status.
//!
//! Job: observe (`observe`), decide (`plan`, pure), apply (`reconcile`).
//! Holds: at most one builder pod of an ImageBuild is alive at a time; a run that has ended is never
//! run again by a restart, a resync or a lost or doubled event; status is written only when it
//! changed, and never over a newer one.
//! Never: engine crates; the contents of a Secret; a decision outside of `plan`.

pub mod cache;
pub mod cli;
pub mod contexts;
pub mod events;
pub mod follow;
pub mod leader;
pub mod metrics;
pub mod names;
pub mod observe;
pub mod plan;
pub mod progress;
pub mod reconcile;
pub mod requests;
pub mod schedule;
pub mod server;
pub mod settings;
