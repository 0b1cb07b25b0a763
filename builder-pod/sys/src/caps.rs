//! Capabilities: what this thread has, and giving them up.

pub use rustix::thread::CapabilitySet;
use rustix::thread::CapabilitySets;

use crate::{Context, Errno, Error, Result};

/// The highest number tried; the kernel's own bound is read from its answers.
const CAPABILITIES_MAX: u32 = 63;

/// The effective capabilities of this thread.
pub fn effective() -> Result<CapabilitySet> {
    Ok(rustix::thread::capabilities(None).about("capget", "self")?.effective)
}

/// Makes `keep` the most that this thread and what it executes can ever have.
///
/// The bounding set is cut first (which needs `CAP_SETPCAP`), ambient and inheritable sets are
/// emptied. [`settle`] follows after the change of user.
pub fn bound(keep: CapabilitySet) -> Result<()> {
    rustix::thread::clear_ambient_capability_set().about("prctl", "PR_CAP_AMBIENT")?;
    for number in 0..=CAPABILITIES_MAX {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if keep.contains(one) {
            continue;
        }
        match rustix::thread::capability_is_in_bounding_set(one) {
            Ok(false) => {}
            // Past the last capability that this kernel knows.
            Err(Errno::INVAL) => break,
            Ok(true) | Err(_) => rustix::thread::remove_capability_from_bounding_set(one)
                .about("prctl", format!("PR_CAPBSET_DROP {number}"))?,
        }
    }
    Ok(())
}

/// Has a change of user leave the permitted set as it is; [`hand_on`] follows.
pub fn keep_through_user_change() -> Result<()> {
    rustix::thread::set_keep_capabilities(true).about("prctl", "PR_SET_KEEPCAPS")
}

/// Makes all that is permitted effective, and hands it on to whatever program is executed, whoever runs it.
pub fn hand_on() -> Result<()> {
    let permitted = rustix::thread::capabilities(None).about("capget", "self")?.permitted;
    let sets = CapabilitySets { effective: permitted, permitted, inheritable: permitted };
    rustix::thread::set_capabilities(None, sets).about("capset", "self")?;
    for one in permitted.iter() {
        rustix::thread::configure_capability_in_ambient_set(one, true)
            .about("prctl", format!("PR_CAP_AMBIENT_RAISE {:#x}", one.bits()))?;
    }
    Ok(())
}

/// Cuts the permitted and effective sets to `keep`; for a thread that is no longer uid 0 the
/// kernel has emptied them already.
pub fn settle(keep: CapabilitySet) -> Result<()> {
    let now = rustix::thread::capabilities(None).about("capget", "self")?;
    let permitted = now.permitted & keep;
    let effective = now.effective & keep;
    let sets = CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets).about("capset", "self")?;
    let after = rustix::thread::capabilities(None).about("capget", "self")?;
    if keep.contains(after.permitted) {
        Ok(())
    } else {
        Err(Error::new("capset", "more was kept than asked", Errno::PERM))
    }
}
