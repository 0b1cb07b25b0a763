//! Operators that know nothing of each other, see the past and are killed at any call, over a cluster in
//! which pods end and are killed: no slot is ever mounted twice, and none is lost.

use std::collections::BTreeMap;

use super::slots::{Choice, Entry, Holder, Slot, Wish, choose, enter};

/// Random histories.
const HISTORIES: u64 = 20_000;
const LIMIT: u32 = 2;

struct Chance(u64);

impl Chance {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % (below as u64)).unwrap()
    }
}

#[derive(Clone, Debug)]
struct SimPod {
    claim: String,
    gated: bool,
    /// Its builder has ended, and the lease may have been given back.
    over: bool,
    /// Its node has stopped it.
    ended: bool,
}

#[derive(Default)]
struct Cluster {
    version: u64,
    uids: u64,
    slots: BTreeMap<String, Slot>,
    /// By name; of two that create the same, one gets it.
    pods: BTreeMap<String, (String, SimPod)>,
    /// Builds that are done.
    done: Vec<bool>,
}

impl Cluster {
    fn living(&self) -> Vec<Holder> {
        let alive = self.pods.values().filter(|(_, pod)| !pod.ended);
        alive
            .map(|(uid, pod)| Holder { uid: uid.clone(), claim: pod.claim.clone(), gated: pod.gated })
            .collect()
    }

    fn check(&self) {
        let mut mounted: BTreeMap<&str, &str> = BTreeMap::new();
        for (uid, pod) in self.pods.values().filter(|(_, pod)| !pod.ended && !pod.gated) {
            let other = mounted.insert(&pod.claim, uid);
            assert!(other.is_none(), "{} is mounted by {uid} and {other:?}", pod.claim);
        }
        assert!(self.slots.len() <= usize::try_from(LIMIT).unwrap(), "more slots than there may be");
    }

    fn write(&mut self, slot: Slot) {
        self.version += 1;
        self.slots.insert(slot.claim.clone(), Slot { version: self.version.to_string(), ..slot });
    }

    /// Over the version that was looked at, or not at all.
    fn lease(&mut self, seen: &Slot, uid: &str) -> bool {
        if self.slots.get(&seen.claim).is_none_or(|slot| slot.version != seen.version) {
            return false;
        }
        self.write(Slot { leased_to: Some(uid.to_owned()), ..seen.clone() });
        true
    }
}

/// One operator at work on one build: what it has read, and what it calls next.
#[derive(Clone, Debug)]
enum Pass {
    Slots,
    Pods(Vec<Slot>),
    Decide(Vec<Slot>, Vec<Holder>),
    Make(String),
    Create(String),
    Lease(Slot, String),
    Ungate(String),
    Delete(String),
    GiveBack(String, String),
}

struct Operator {
    build: usize,
    pass: Pass,
}

impl Operator {
    fn step(&mut self, cluster: &mut Cluster) {
        let name = format!("pod-{}", self.build);
        let next = match std::mem::replace(&mut self.pass, Pass::Slots) {
            Pass::Slots => Pass::Pods(cluster.slots.values().cloned().collect()),
            Pass::Pods(slots) => Pass::Decide(slots, cluster.living()),
            Pass::Decide(slots, living) => self.decide(cluster, &slots, &living, &name),
            Pass::Make(claim) => {
                if !cluster.slots.contains_key(&claim) {
                    let number = claim.trim_start_matches('c').parse().unwrap();
                    cluster.write(Slot {
                        claim: claim.clone(),
                        cache: "c".into(),
                        platform: "any".into(),
                        number,
                        ..Slot::default()
                    });
                }
                Pass::Create(claim)
            }
            Pass::Create(claim) => {
                if !cluster.done[self.build] && !cluster.pods.contains_key(&name) {
                    cluster.uids += 1;
                    let uid = cluster.uids.to_string();
                    cluster
                        .pods
                        .insert(name, (uid, SimPod { claim, gated: true, over: false, ended: false }));
                }
                Pass::Slots
            }
            Pass::Lease(slot, uid) => {
                if cluster.lease(&slot, &uid) {
                    Pass::Ungate(uid)
                } else {
                    Pass::Slots
                }
            }
            Pass::Ungate(uid) => {
                if let Some((_, pod)) = cluster.pods.values_mut().find(|(other, _)| *other == uid) {
                    pod.gated = false;
                }
                Pass::Slots
            }
            Pass::GiveBack(claim, uid) => {
                let slot = cluster.slots.get(&claim).cloned();
                if let Some(slot) = slot.filter(|slot| slot.leased_to.as_ref() == Some(&uid)) {
                    cluster.write(Slot { leased_to: None, ..slot });
                }
                Pass::Slots
            }
            Pass::Delete(uid) => {
                if cluster.pods.get(&name).is_some_and(|(other, _)| *other == uid) {
                    cluster.pods.remove(&name);
                }
                Pass::Slots
            }
        };
        self.pass = next;
    }

    fn decide(&self, cluster: &mut Cluster, slots: &[Slot], living: &[Holder], name: &str) -> Pass {
        if let Some((uid, pod)) = cluster.pods.get(name).cloned() {
            if pod.ended {
                cluster.done[self.build] = true;
                cluster.pods.remove(name);
                return Pass::Slots;
            }
            if !pod.gated {
                return if pod.over { Pass::GiveBack(pod.claim, uid) } else { Pass::Slots };
            }
            let me = Holder { uid: uid.clone(), claim: pod.claim, gated: true };
            return match enter(slots, living, &me) {
                Entry::Enter => Pass::Ungate(uid),
                Entry::Lease(slot) => Pass::Lease(slot, uid),
                Entry::Lost => Pass::Delete(uid),
            };
        }
        if cluster.done[self.build] {
            return Pass::Slots;
        }
        let user = format!("build-{}", self.build);
        match choose(slots, living, Wish { cache: "c", platform: "any", user: &user, limit: LIMIT }) {
            Choice::Take(slot) => Pass::Create(slot.claim),
            Choice::Grow(number) => Pass::Make(format!("c{number}")),
            Choice::Busy => Pass::Slots,
        }
    }
}

#[test]
fn no_slot_is_mounted_twice_and_none_is_lost_whoever_is_killed_and_whatever_past_is_seen() {
    for seed in 0..HISTORIES {
        let mut chance = Chance(seed);
        let builds = 2 + chance.next(4);
        let mut cluster = Cluster { done: vec![false; builds], ..Cluster::default() };
        // Two for each build: neither knows of the other.
        let mut operators: Vec<Operator> =
            (0..2 * builds).map(|at| Operator { build: at % builds, pass: Pass::Slots }).collect();
        for _ in 0..100 {
            let at = chance.next(operators.len());
            match chance.next(12) {
                // Killed: what it knew is forgotten.
                0 => operators[at].pass = Pass::Slots,
                1 | 2 => {
                    let running = cluster.pods.values_mut().filter(|(_, pod)| !pod.gated && !pod.ended);
                    if let Some((_, pod)) = running.into_iter().nth(chance.next(2)) {
                        pod.ended = pod.over;
                        pod.over = true;
                    }
                }
                3 => {
                    let name = format!("pod-{}", operators[at].build);
                    cluster.pods.remove(&name);
                }
                _ => operators[at].step(&mut cluster),
            }
            cluster.check();
        }
        // Left in peace, every build gets a slot.
        for _ in 0..60 * builds {
            for operator in &mut operators {
                operator.step(&mut cluster);
                cluster.check();
            }
            let mut running = cluster.pods.values_mut().filter(|(_, pod)| !pod.gated && !pod.ended);
            if let Some((_, pod)) = running.next() {
                pod.ended = pod.over;
                pod.over = true;
            }
        }
        assert!(cluster.done.iter().all(|done| *done), "seed {seed}: a slot was lost: {:?}", cluster.slots);
        assert!(cluster.living().is_empty(), "seed {seed}");
    }
}
