//! Random histories of builds that come, run, end, are held up, and of an operator whose caches lag
//! and which is killed: whatever happens, limits hold, order is kept, and nobody starves.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use jiff::Timestamp;

use super::admissions::Admissions;
use super::queue::{Full, Limits, NamespaceLimits, Need, State, Ticket, Turn, Wait, turns};

/// Histories of each property.
const HISTORIES: u64 = 100_000;

/// A small generator (splitmix64): a seed gives its history again.
struct Chance(u64);

impl Chance {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }

    fn index(&mut self, below: usize) -> usize {
        usize::try_from(self.next(below as u64)).unwrap()
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn some(limit: u64) -> Option<NonZeroU32> {
    NonZeroU32::new(u32::try_from(limit).unwrap())
}

/// The cluster, as it is and as the caches have it.
struct World {
    now: i64,
    limits: Limits,
    truth: Vec<Ticket>,
    cache: Vec<Ticket>,
    memory: Admissions,
}

impl World {
    fn new(chance: &mut Chance) -> Self {
        let limits = Limits {
            cluster: some(chance.next(5)),
            namespace: some(chance.next(4)),
            group: some(chance.next(3)),
            namespaces: BTreeMap::from([(
                "n0".to_owned(),
                NamespaceLimits {
                    builds: some(chance.next(3)),
                    groups: BTreeMap::from([("g0".to_owned(), NonZeroU32::MIN)]),
                },
            )]),
        };
        let namespaces = 1 + chance.next(3);
        let truth: Vec<Ticket> = (0..2 + chance.next(7))
            .map(|number| Ticket {
                uid: format!("u{number}"),
                namespace: format!("n{}", chance.next(namespaces)),
                group: Some(chance.next(3)).filter(|group| *group > 0).map(|group| format!("g{}", group - 1)),
                since: Timestamp::UNIX_EPOCH,
                state: State::Idle,
                admitted: None,
                needs: Vec::new(),
            })
            .collect();
        Self { now: 1, limits, cache: truth.clone(), truth, memory: Admissions::default() }
    }

    /// One pass of the operator over one ImageBuild, which it reads itself; true if it was admitted.
    ///
    /// It may be killed before or after the admission is in the cluster.
    fn ask(&mut self, index: usize, killed: Option<bool>) -> bool {
        self.now += 1;
        let mut tickets = self.cache.clone();
        self.memory.settle(&tickets);
        tickets[index] = self.truth[index].clone();
        if tickets[index].state == State::Held {
            tickets[index].state = State::Waiting;
        }
        self.memory.overlay(&mut tickets);
        if tickets[index].state != State::Waiting {
            return false;
        }
        let turn = turns(&tickets, &BTreeMap::new(), &self.limits).turns.remove(&tickets[index].uid);
        let go = turn == Some(Turn::Go);
        if go {
            self.in_order(&tickets, index);
            self.memory.grant(&tickets[index].uid, at(self.now));
        }
        if killed != Some(false) && go {
            self.truth[index].state = State::Running;
            self.truth[index].admitted = Some(at(self.now));
        }
        if killed.is_some() {
            self.restart();
        }
        self.check();
        go && killed != Some(false)
    }

    /// A new operator knows nothing but what it reads.
    fn restart(&mut self) {
        self.memory = Admissions::default();
        self.cache = self.truth.clone();
    }

    /// Nobody of the same namespace and group that was there before is passed by.
    fn in_order(&self, tickets: &[Ticket], index: usize) {
        let me = &tickets[index];
        for other in tickets {
            let before = (other.since, &other.uid) < (me.since, &me.uid);
            let alike = other.namespace == me.namespace && (other.group.is_none() || other.group == me.group);
            if other.state == State::Waiting && before && alike {
                // It may go as well, and only has not been looked at yet.
                let turn = turns(tickets, &BTreeMap::new(), &self.limits).turns.remove(&other.uid);
                assert_eq!(turn, Some(Turn::Go), "{} passes {} by", me.uid, other.uid);
            }
        }
    }

    fn running(&self, mut of: impl FnMut(&Ticket) -> bool) -> u32 {
        let running = self.truth.iter().filter(|ticket| ticket.state == State::Running);
        u32::try_from(running.filter(|ticket| of(ticket)).count()).unwrap()
    }

    fn check(&self) {
        let most = |limit: Option<NonZeroU32>| limit.map_or(u32::MAX, NonZeroU32::get);
        assert!(self.running(|_| true) <= most(self.limits.cluster), "cluster");
        for ticket in &self.truth {
            let own = self.limits.namespaces.get(&ticket.namespace);
            let namespace = most(own.and_then(|own| own.builds).or(self.limits.namespace));
            assert!(self.running(|other| other.namespace == ticket.namespace) <= namespace, "namespace");
            let Some(group) = &ticket.group else { continue };
            let limit = most(own.and_then(|own| own.groups.get(group).copied()).or(self.limits.group));
            let alike =
                |other: &Ticket| other.namespace == ticket.namespace && other.group.as_ref() == Some(group);
            assert!(self.running(alike) <= limit, "group");
        }
    }

    fn happen(&mut self, chance: &mut Chance) {
        let index = chance.index(self.truth.len());
        self.now += 1;
        match chance.next(16) {
            0..4 => {
                let ticket = &mut self.truth[index];
                if ticket.state == State::Idle {
                    ticket.state = State::Waiting;
                    // Several may come in the same moment.
                    ticket.since = at(self.now / 4);
                }
            }
            4..10 => {
                let killed = Some(chance.next(12)).filter(|which| *which < 2).map(|which| which == 0);
                self.ask(index, killed);
            }
            10..12 => {
                if self.truth[index].state == State::Running {
                    self.truth[index].state = State::Idle;
                }
            }
            12 => self.cache[index] = self.truth[index].clone(),
            13 => self.cache = self.truth.clone(),
            14 => {
                let ticket = &mut self.truth[index];
                ticket.state = match ticket.state {
                    State::Waiting => State::Held,
                    State::Held => State::Waiting,
                    other => other,
                };
            }
            _ => self.restart(),
        }
    }

    /// Left in peace, everybody who waits is served, one after the other.
    fn drain(&mut self) {
        for _ in 0..2 * self.truth.len() {
            for ticket in &mut self.truth {
                if ticket.state == State::Held {
                    ticket.state = State::Waiting;
                }
            }
            self.cache = self.truth.clone();
            let waiting: Vec<usize> = self.of(State::Waiting);
            let admitted = waiting.iter().filter(|index| self.ask(**index, None)).count();
            let running = self.of(State::Running);
            assert!(waiting.is_empty() || admitted > 0 || !running.is_empty(), "nobody moves");
            if let Some(first) = running.first() {
                self.truth[*first].state = State::Idle;
            }
        }
        assert!(self.of(State::Waiting).is_empty(), "somebody starves");
    }

    fn of(&self, state: State) -> Vec<usize> {
        (0..self.truth.len()).filter(|index| self.truth[*index].state == state).collect()
    }
}

/// Runs a property on every history, and names the seed of one that breaks it.
fn on_all_histories(property: impl Fn(u64) + Sync) {
    let workers = 2;
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let property = &property;
            scope.spawn(move || {
                for seed in (worker..HISTORIES).step_by(usize::try_from(workers).unwrap()) {
                    let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| property(seed)));
                    assert!(told.is_ok(), "the history of seed {seed}");
                }
            });
        }
    });
}

#[test]
fn limits_hold_order_is_kept_and_everybody_is_served_though_caches_lag_and_operators_die() {
    on_all_histories(|seed| {
        let mut chance = Chance(seed);
        let mut world = World::new(&mut chance);
        for _ in 0..10 + chance.next(30) {
            world.happen(&mut chance);
        }
        // What an operator knows once its caches have caught up is what a new one reads.
        world.cache = world.truth.clone();
        world.memory.settle(&world.cache);
        let mut tickets = world.cache.clone();
        world.memory.overlay(&mut tickets);
        let before = turns(&tickets, &BTreeMap::new(), &world.limits);
        world.restart();
        assert_eq!(turns(&world.cache, &BTreeMap::new(), &world.limits), before, "a restart changes nothing");
        world.drain();
    });
}

#[test]
fn a_namespace_with_none_running_waits_for_at_most_one_of_each_others() {
    on_all_histories(|seed| {
        let mut chance = Chance(seed ^ 0xfa1e);
        let mut world = World::new(&mut chance);
        for ticket in &mut world.truth {
            ticket.group = None;
        }
        // Who was served since, for each namespace that waits with none running.
        let mut since: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for _ in 0..20 + chance.next(20) {
            let index = chance.index(world.truth.len());
            match chance.next(3) {
                0 if world.truth[index].state == State::Idle => {
                    world.truth[index].state = State::Waiting;
                    world.truth[index].since = at(world.now);
                }
                1 if world.truth[index].state == State::Running => world.truth[index].state = State::Idle,
                _ => {}
            }
            world.cache = world.truth.clone();
            let mut waits = BTreeSet::new();
            for ticket in world.truth.iter().filter(|ticket| ticket.state == State::Waiting) {
                if world.running(|other| other.namespace == ticket.namespace) == 0 {
                    waits.insert(ticket.namespace.clone());
                }
            }
            since.retain(|namespace, _| waits.contains(namespace));
            for namespace in waits {
                since.entry(namespace).or_default();
            }
            let decided = turns(&world.cache, &BTreeMap::new(), &world.limits);
            // All that may go does, as if each were looked at in the same moment.
            for ticket in &mut world.truth {
                if decided.turns.get(&ticket.uid) == Some(&Turn::Go) {
                    world.now += 1;
                    ticket.state = State::Running;
                    ticket.admitted = Some(at(world.now));
                }
            }
            world.check();
            let served: Vec<String> = world
                .truth
                .iter()
                .filter(|ticket| decided.turns.get(&ticket.uid) == Some(&Turn::Go))
                .map(|ticket| ticket.namespace.clone())
                .collect();
            since.retain(|namespace, _| !served.contains(namespace));
            for (namespace, others) in &mut since {
                for other in &served {
                    assert!(others.insert(other.clone()), "{other} went twice while {namespace} had none");
                }
            }
        }
    });
}

fn ticket(uid: &str, namespace: &str, since: i64, state: State) -> Ticket {
    Ticket {
        uid: uid.into(),
        namespace: namespace.into(),
        group: None,
        since: at(since),
        state,
        admitted: (state == State::Running).then(|| at(since)),
        needs: Vec::new(),
    }
}

fn wait(position: u32, full: Full) -> Turn {
    Turn::Wait(Wait { position, full })
}

#[test]
fn a_flood_does_not_hold_up_others_even_if_one_runs_at_a_time() {
    let limits = Limits { cluster: some(1), ..Limits::default() };
    let mut all: Vec<Ticket> =
        (0..5).map(|number| ticket(&format!("flood{number}"), "flood", number, State::Waiting)).collect();
    all.push(ticket("late", "calm", 100, State::Waiting));
    let mut order = Vec::new();
    for now in 200..206 {
        let decided = turns(&all, &BTreeMap::new(), &limits);
        let next = all.iter_mut().find(|one| decided.turns.get(&one.uid) == Some(&Turn::Go)).unwrap();
        order.push(next.uid.clone());
        next.state = State::Idle;
        next.admitted = Some(at(now));
    }
    assert_eq!(order, ["flood0", "late", "flood1", "flood2", "flood3", "flood4"]);
}

#[test]
fn a_place_says_what_it_waits_for() {
    let limits = Limits {
        cluster: some(3),
        namespace: some(2),
        group: some(1),
        namespaces: BTreeMap::from([(
            "small".to_owned(),
            NamespaceLimits { builds: some(1), ..NamespaceLimits::default() },
        )]),
    };
    let of_group = |uid: &str, since, state| Ticket {
        group: Some("release".into()),
        ..ticket(uid, "shop", since, state)
    };
    let needy = Ticket {
        needs: vec![Need { line: "modules/linux-amd64".into(), limit: 2 }],
        ..ticket("needy", "shop", 6, State::Waiting)
    };
    let all = [
        of_group("one", 1, State::Running),
        ticket("two", "small", 2, State::Running),
        of_group("three", 3, State::Waiting),
        ticket("four", "small", 4, State::Waiting),
        needy,
        ticket("seven", "shop", 7, State::Waiting),
        ticket("eight", "other", 8, State::Waiting),
        ticket("nine", "other", 9, State::Held),
    ];
    let taken = BTreeMap::from([(("shop".to_owned(), "modules/linux-amd64".to_owned()), 2)]);
    let turns = turns(&all, &taken, &limits).turns;
    let expected = [
        ("three", wait(1, Full::Group("release".into(), 1))),
        ("four", wait(1, Full::Namespace(1))),
        ("needy", wait(2, Full::Cache("modules/linux-amd64".into(), 2))),
        ("seven", wait(3, Full::Cluster(3))),
        ("eight", Turn::Go),
    ];
    assert_eq!(turns, expected.map(|(uid, turn)| (uid.to_owned(), turn)).into());
}

#[test]
fn slots_go_to_those_that_run_already_and_then_in_order() {
    let needs = vec![Need { line: "c/arm".into(), limit: 2 }];
    let with = |uid: &str, since, state| Ticket { needs: needs.clone(), ..ticket(uid, "shop", since, state) };
    let all = [
        with("old", 1, State::Waiting),
        with("runs", 2, State::Running),
        with("young", 3, State::Waiting),
        ticket("free", "shop", 4, State::Waiting),
    ];
    let decided = turns(&all, &BTreeMap::new(), &Limits::default());
    let slot = |uid: &str| (uid.to_owned(), "c/arm".to_owned());
    assert_eq!(decided.slots, [slot("old"), slot("runs")].into());
    assert_eq!(decided.turns["young"], wait(1, Full::Cache("c/arm".into(), 2)));
    assert_eq!(decided.turns["free"], Turn::Go);
}
