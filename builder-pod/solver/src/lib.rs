//! What to run next, and what not to run again.
//!
//! Job: bring the target of an LLB graph into being with the least work. [`Machine`] decides, as a
//! synchronous state machine; [`Solver`] performs its actions on a [`World`] and reports back.
//! Holds: every job ends; a vertex runs only when a result of it is needed and no record has it;
//! equal work (same cache key) runs once at a time, whoever asks; the graph is never rewritten.
//! Never: looks at a path, a socket or a session; the machine has no clock, lock or I/O.

mod driver;
#[cfg(test)]
mod driver_tests;
mod key;
mod machine;
#[cfg(test)]
mod simulator;

pub use driver::{Event as Progress, Job, Output, ProgressKind, Solved, Solver, Step, World};
pub use key::{CacheKey, Derivation, InputKey, Keying, OpKey, OpName, Origin};
pub use machine::{Action, Event, JobId, Looked, Machine, Outcome, Record, VertexId};
