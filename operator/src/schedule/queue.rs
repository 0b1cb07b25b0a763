//! Whose turn it is.
//!
//! In: a ticket for each ImageBuild, how many pods are on each cache's slots, the limits. Out: for
//! each ticket that waits, whether it may go, or its place and what it waits for.
//! Holds: no limit is exceeded; within a namespace the oldest goes first, of those whose group and
//! cache have room; between namespaces the one with the fewest running, and of several the one that
//! was served the longest ago, so that a namespace that has none running waits for at most one of
//! each other's; the same facts give the same answer, so a restart changes nothing.
//! Never: a clock, memory, the cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use jiff::Timestamp;

/// What the queue knows of one ImageBuild.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Uid of the ImageBuild.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its group within the namespace.
    pub group: Option<String>,
    /// When it came into the queue.
    pub since: Timestamp,
    /// What it is doing.
    pub state: State,
    /// When it was admitted last, however that run ended.
    pub admitted: Option<Timestamp>,
    /// Cache slots that it cannot go on without, one for each pod that it has yet to make.
    pub needs: Vec<Need>,
}

/// What an ImageBuild is doing, as far as the queue is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has its place: it was admitted, and its run has not ended.
    Running,
    /// It waits for its turn.
    Waiting,
    /// It waits for something else, and holds nobody up.
    Held,
    /// It wants nothing.
    Idle,
}

/// A slot of a shared cache.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// The cache and its architecture.
    pub line: String,
    /// Slots that there may be.
    pub limit: u32,
}

/// Name of a line of slots: namespace, and cache with architecture.
pub type Line = (String, String);

/// How much may run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Builds in all namespaces together.
    pub cluster: Option<NonZeroU32>,
    /// Builds in one namespace.
    pub namespace: Option<NonZeroU32>,
    /// Builds of one group.
    pub group: Option<NonZeroU32>,
    /// What holds in single namespaces instead.
    pub namespaces: BTreeMap<String, NamespaceLimits>,
}

/// What holds in one namespace instead of the defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceLimits {
    /// Builds in it.
    pub builds: Option<NonZeroU32>,
    /// Builds of its groups, by name.
    pub groups: BTreeMap<String, NonZeroU32>,
}

impl Limits {
    fn of_namespace(&self, namespace: &str) -> u32 {
        let own = self.namespaces.get(namespace).and_then(|limits| limits.builds);
        own.or(self.namespace).map_or(u32::MAX, NonZeroU32::get)
    }

    fn of_group(&self, namespace: &str, group: &str) -> u32 {
        let own = self.namespaces.get(namespace).and_then(|limits| limits.groups.get(group).copied());
        own.or(self.group).map_or(u32::MAX, NonZeroU32::get)
    }

    fn of_cluster(&self) -> u32 {
        self.cluster.map_or(u32::MAX, NonZeroU32::get)
    }
}

/// Whether it is somebody's turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is.
    Go,
    /// It is not yet.
    Wait(Wait),
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Place among those of the namespace that wait, from 1.
    pub position: u32,
    /// What has no room.
    pub full: Full,
}

/// A limit that is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Full {
    /// That of the cluster.
    Cluster(u32),
    /// That of the namespace.
    Namespace(u32),
    /// That of the group.
    Group(String, u32),
    /// All slots of the cache are taken.
    Cache(String, u32),
}

/// Whose turn it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// Turn of each that waits, by uid.
    pub turns: BTreeMap<String, Turn>,
    /// Slots that each may take now, by uid and line.
    pub slots: BTreeSet<(String, String)>,
}

/// Decides whose turn it is.
///
/// `taken` is how many living pods are on the slots of each line.
pub fn turns(tickets: &[Ticket], taken: &BTreeMap<Line, u32>, limits: &Limits) -> Turns {
    let mut hall = Hall::new(tickets, taken, limits);
    hall.serve_running(tickets);
    let mut lines: BTreeMap<&str, Vec<&Ticket>> = BTreeMap::new();
    for ticket in tickets.iter().filter(|ticket| ticket.state == State::Waiting) {
        lines.entry(&ticket.namespace).or_default().push(ticket);
    }
    for line in lines.values_mut() {
        line.sort_by(|one, other| (one.since, &one.uid).cmp(&(other.since, &other.uid)));
    }
    while let Some((namespace, at)) = hall.next(&lines) {
        if let Some(line) = lines.get_mut(namespace) {
            hall.admit(line.remove(at));
        }
    }
    for line in lines.values() {
        for (ticket, position) in line.iter().zip(1..) {
            let wait = Wait { position, full: hall.full(ticket) };
            hall.out.turns.insert(ticket.uid.clone(), Turn::Wait(wait));
        }
    }
    hall.out
}

/// When a namespace was served last: by what is in the cluster, then by this very decision.
type Served = (Option<Timestamp>, u32);

struct Hall<'a> {
    limits: &'a Limits,
    running: u32,
    in_namespace: BTreeMap<&'a str, u32>,
    in_group: BTreeMap<(&'a str, &'a str), u32>,
    served: BTreeMap<&'a str, Served>,
    taken: BTreeMap<Line, u32>,
    admitted: u32,
    out: Turns,
}

impl<'a> Hall<'a> {
    fn new(tickets: &'a [Ticket], taken: &BTreeMap<Line, u32>, limits: &'a Limits) -> Self {
        let mut hall = Self {
            limits,
            running: 0,
            in_namespace: BTreeMap::new(),
            in_group: BTreeMap::new(),
            served: BTreeMap::new(),
            taken: taken.clone(),
            admitted: 0,
            out: Turns::default(),
        };
        for ticket in tickets {
            let served = hall.served.entry(&ticket.namespace).or_default();
            *served = (*served).max((ticket.admitted, 0));
            if ticket.state == State::Running {
                hall.count(ticket);
            }
        }
        hall
    }

    fn count(&mut self, ticket: &'a Ticket) {
        self.running += 1;
        *self.in_namespace.entry(&ticket.namespace).or_default() += 1;
        if let Some(group) = &ticket.group {
            *self.in_group.entry((&ticket.namespace, group)).or_default() += 1;
        }
    }

    /// Slots go to those first that have their place already: they end the sooner.
    fn serve_running(&mut self, tickets: &'a [Ticket]) {
        let mut running: Vec<&Ticket> = tickets
            .iter()
            .filter(|ticket| ticket.state == State::Running && !ticket.needs.is_empty())
            .collect();
        running.sort_by(|one, other| (one.since, &one.uid).cmp(&(other.since, &other.uid)));
        running.into_iter().for_each(|ticket| self.take_slots(ticket));
    }

    fn take_slots(&mut self, ticket: &Ticket) {
        for need in &ticket.needs {
            let taken = self.taken.entry((ticket.namespace.clone(), need.line.clone())).or_default();
            if *taken < need.limit {
                *taken += 1;
                self.out.slots.insert((ticket.uid.clone(), need.line.clone()));
            }
        }
    }

    fn has_slot(&self, namespace: &str, need: &Need) -> bool {
        let line = (namespace.to_owned(), need.line.clone());
        self.taken.get(&line).copied().unwrap_or_default() < need.limit
    }

    fn group_has_room(&self, ticket: &Ticket) -> bool {
        ticket.group.as_deref().is_none_or(|group| {
            let running = self.in_group.get(&(ticket.namespace.as_str(), group)).copied().unwrap_or_default();
            running < self.limits.of_group(&ticket.namespace, group)
        })
    }

    /// A build of several pods goes on as soon as one of them can.
    fn cache_has_room(&self, ticket: &Ticket) -> bool {
        ticket.needs.is_empty() || ticket.needs.iter().any(|need| self.has_slot(&ticket.namespace, need))
    }

    fn namespace_has_room(&self, namespace: &str) -> bool {
        self.in_namespace.get(namespace).copied().unwrap_or_default() < self.limits.of_namespace(namespace)
    }

    /// The namespace that is served next, and which of its line.
    fn next(&self, lines: &BTreeMap<&'a str, Vec<&'a Ticket>>) -> Option<(&'a str, usize)> {
        if self.running >= self.limits.of_cluster() {
            return None;
        }
        let first = |(&namespace, line): (&&'a str, &Vec<&'a Ticket>)| {
            let at =
                line.iter().position(|ticket| self.group_has_room(ticket) && self.cache_has_room(ticket))?;
            let ticket = *line.get(at)?;
            let running = self.in_namespace.get(namespace).copied().unwrap_or_default();
            let served = self.served.get(namespace).copied().unwrap_or_default();
            Some(((running, served, ticket.since, &ticket.uid), (namespace, at)))
        };
        let open = lines.iter().filter(|(namespace, _)| self.namespace_has_room(namespace));
        open.filter_map(first).min_by(|(one, _), (other, _)| one.cmp(other)).map(|(_, next)| next)
    }

    fn admit(&mut self, ticket: &'a Ticket) {
        self.admitted += 1;
        self.count(ticket);
        self.served.insert(&ticket.namespace, (Some(Timestamp::MAX), self.admitted));
        self.take_slots(ticket);
        self.out.turns.insert(ticket.uid.clone(), Turn::Go);
    }

    /// Why it is not this one's turn.
    fn full(&self, ticket: &Ticket) -> Full {
        let namespace = &ticket.namespace;
        if !self.namespace_has_room(namespace) {
            return Full::Namespace(self.limits.of_namespace(namespace));
        }
        if let Some(group) = ticket.group.as_ref().filter(|_| !self.group_has_room(ticket)) {
            return Full::Group(group.clone(), self.limits.of_group(namespace, group));
        }
        match ticket.needs.first() {
            Some(need) if !self.cache_has_room(ticket) => Full::Cache(need.line.clone(), need.limit),
            _ => Full::Cluster(self.limits.of_cluster()),
        }
    }
}
