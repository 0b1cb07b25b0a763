//! Cache volumes that several ImageBuilds take turns on.
//!
//! `slots` says which slot a pod gets (pure), `claims` reads slots from and writes them as
//! PersistentVolumeClaims, `retention` says which have been unused for too long (pure).
//!
//! How a slot comes to have one pod at a time, whoever looks at what past:
//! 1. The pod is created with the slot's claim and a scheduling gate: it exists, and mounts nothing.
//! 2. Its uid is written onto the claim, over the very version of the claim that was looked at, if what
//!    stands there is not the uid of a pod that lives.
//! 3. Only then is the gate taken away.
//!
//! A uid on a claim is older than the look at the pods that follows the look at the claim. So a holder
//! that is not among them is gone, and a pod that is gone does not come back: a lease ends with its
//! holder, needs no clock, and whoever is killed in between leaves nothing that has to be waited for.

pub mod claims;
pub mod retention;
#[cfg(test)]
mod simulate;
pub mod slots;

/// Gate of a pod whose slot is not its own yet.
pub const GATE: &str = "lapstrake.dev/cache-slot";
