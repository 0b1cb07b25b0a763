//! The filter that every step runs under: an allow-list, compiled once per helper.
//!
//! A call that is known and not allowed fails with EPERM; one that is newer than the list, and all
//! calls of an architecture that is not the machine's family, fail with ENOSYS, so that programs
//! fall back as they do on an old kernel. `clone3` is ENOSYS as well: its flags lie in memory,
//! where a filter cannot see them, and every C library falls back to `clone`.

mod program;
mod table;

pub(crate) use program::compile;
