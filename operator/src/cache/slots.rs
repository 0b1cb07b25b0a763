//! Which slot a pod gets.
//!
//! Holds: a slot is given to nobody while its holder lives, or while another living pod names its claim.
//! Never: the cluster, a clock, a name.

use std::collections::BTreeSet;

use jiff::Timestamp;

/// A slot, as its claim says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Name of the claim.
    pub claim: String,
    /// Version of the claim that this was read from.
    pub version: String,
    /// Cache that it is a slot of.
    pub cache: String,
    /// Platform of the builders that use it, as a label has it.
    pub platform: String,
    /// Its number.
    pub number: u32,
    /// Uid of the pod that has it, or had it last and did not give it back.
    pub leased_to: Option<String>,
    /// ImageBuild that used it last.
    pub last_user: Option<String>,
    /// When it was taken or given back last.
    pub last_used: Option<Timestamp>,
    /// Size that it was asked for, in bytes.
    pub bytes: Option<u64>,
    /// Whether it is on its way out.
    pub deleting: bool,
}

/// A pod that has not stopped, as far as slots are concerned.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// Its uid.
    pub uid: String,
    /// The claim that it names.
    pub claim: String,
    /// It still has its gate: it names the claim, and mounts nothing.
    pub gated: bool,
}

/// What a pod needs.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The cache.
    pub cache: &'a str,
    /// The platform, as a label has it.
    pub platform: &'a str,
    /// ImageBuild that asks.
    pub user: &'a str,
    /// Slots that there may be.
    pub limit: u32,
}

/// Which slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This one.
    Take(Slot),
    /// A new one of this number.
    Grow(u32),
    /// None is free, and there may be no more.
    Busy,
}

/// Picks a slot.
///
/// The one that last built this ImageBuild is taken first: its layers are warm. Then the one that was used
/// the latest, so that those which are not needed any more grow old. A new one is made only if none is free.
///
/// `living` are the pods of the cache that have not ended, read after the slots were.
pub fn choose(slots: &[Slot], living: &[Holder], wish: Wish<'_>) -> Choice {
    let of_line = || slots.iter().filter(|slot| slot.cache == wish.cache && slot.platform == wish.platform);
    let free = of_line().filter(|slot| is_free(slot, living));
    let best = free.max_by_key(|slot| {
        let mine = slot.last_user.as_deref() == Some(wish.user);
        // Of those alike the first, so that everybody who looks at the same sees the same.
        (mine, slot.last_used, std::cmp::Reverse(slot.number))
    });
    if let Some(slot) = best {
        return Choice::Take(slot.clone());
    }
    let numbers: BTreeSet<u32> = of_line().map(|slot| slot.number).collect();
    (0..wish.limit).find(|number| !numbers.contains(number)).map_or(Choice::Busy, Choice::Grow)
}

/// Whether nobody has it.
pub fn is_free(slot: &Slot, living: &[Holder]) -> bool {
    let held = |holder: &Holder| slot.leased_to.as_ref() == Some(&holder.uid) || slot.claim == holder.claim;
    !slot.deleting && !living.iter().any(held)
}

/// What a pod that names a slot's claim, and still has its gate, has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The slot is its own: the gate may go.
    Enter,
    /// Nobody has it: its uid is to be written first.
    Lease(Slot),
    /// Somebody else has it, or it is gone: the pod has to go, and another slot be looked for.
    Lost,
}

/// Whether the pod may have the slot whose claim it names.
pub fn enter(slots: &[Slot], living: &[Holder], pod: &Holder) -> Entry {
    let Some(slot) = slots.iter().find(|slot| slot.claim == pod.claim) else {
        return Entry::Lost;
    };
    if slot.leased_to.as_ref() == Some(&pod.uid) {
        return Entry::Enter;
    }
    let holds = |one: &Holder| {
        slot.leased_to.as_ref() == Some(&one.uid)
            // Its builder has ended and given the lease back, but its node has not stopped it yet.
            || (one.claim == slot.claim && !one.gated && one.uid != pod.uid)
    };
    let held = living.iter().any(holds);
    if slot.deleting || held { Entry::Lost } else { Entry::Lease(slot.clone()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(number: u32, leased_to: Option<&str>, user: &str, used: i64) -> Slot {
        Slot {
            claim: format!("c{number}"),
            cache: "modules".into(),
            platform: "linux-amd64".into(),
            number,
            leased_to: leased_to.map(str::to_owned),
            last_user: Some(user.into()),
            last_used: Timestamp::from_second(used).ok(),
            ..Slot::default()
        }
    }

    fn holder(uid: &str, claim: &str) -> Holder {
        Holder { uid: uid.into(), claim: claim.into(), gated: true }
    }

    const WISH: Wish<'static> = Wish { cache: "modules", platform: "linux-amd64", user: "web", limit: 3 };

    #[test]
    fn the_slot_that_built_this_before_goes_first_then_the_latest() {
        let mut slots = vec![slot(0, None, "api", 30), slot(1, None, "web", 10), slot(2, None, "job", 40)];
        assert_eq!(choose(&slots, &[], WISH), Choice::Take(slots[1].clone()));
        let taken = [holder("p", "c1")];
        assert_eq!(
            choose(&slots, &taken, WISH),
            Choice::Take(slots[2].clone()),
            "a pod that names it has it"
        );
        slots[2].deleting = true;
        assert_eq!(choose(&slots, &taken, WISH), Choice::Take(slots[0].clone()));
    }

    #[test]
    fn a_slot_is_added_up_to_the_limit_only_if_none_is_free() {
        let mut slots = vec![slot(0, Some("p"), "api", 30), slot(2, Some("q"), "web", 10)];
        let living = [holder("p", "c0"), holder("q", "c2")];
        assert_eq!(choose(&slots, &living, WISH), Choice::Grow(1));
        slots.push(slot(1, Some("r"), "job", 5));
        let living = [&living[..], &[holder("r", "c1")]].concat();
        assert_eq!(choose(&slots, &living, WISH), Choice::Busy);
        // The pod that had it was killed, and could not give it back.
        assert_eq!(choose(&slots, &living[..2], WISH), Choice::Take(slots[2].clone()));
        let other = Wish { platform: "linux-arm64", ..WISH };
        assert_eq!(choose(&slots, &living, other), Choice::Grow(0), "another platform has slots of its own");
    }

    #[test]
    fn a_pod_enters_a_slot_that_is_its_own_and_no_other() {
        let slots = [slot(0, Some("p"), "api", 30), slot(1, None, "web", 10)];
        let living = [holder("p", "c0"), holder("q", "c0"), holder("r", "c1")];
        assert_eq!(enter(&slots, &living, &living[0]), Entry::Enter);
        assert_eq!(enter(&slots, &living, &living[1]), Entry::Lost, "its holder lives");
        assert_eq!(enter(&slots, &living[1..], &living[1]), Entry::Lease(slots[0].clone()), "it does not");
        assert_eq!(enter(&slots, &living, &living[2]), Entry::Lease(slots[1].clone()));
        assert_eq!(enter(&slots, &living, &holder("s", "gone")), Entry::Lost);
        let stops = [Holder { gated: false, ..holder("before", "c1") }, living[2].clone()];
        assert_eq!(enter(&slots, &stops, &living[2]), Entry::Lost, "the one before has it mounted still");
    }
}
