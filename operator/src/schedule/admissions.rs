//! What this operator has just admitted, until the caches show it.
//!
//! Holds: an admission counts from the moment it is given, so that limits hold though the caches lag;
//! nothing in here is needed after a restart, since the caches are filled anew from the API server.
//! Never: a clock, the cluster.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::schedule::queue::{State, Ticket};

/// Admissions that the caches may not show yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admissions {
    granted: BTreeMap<String, Timestamp>,
}

impl Admissions {
    /// Remembers that the ImageBuild with this uid was admitted at this time, which is the one that
    /// its status will name.
    pub fn grant(&mut self, uid: &str, at: Timestamp) {
        self.granted.insert(uid.to_owned(), at);
    }

    /// Forgets it: nothing was made of it.
    pub fn release(&mut self, uid: &str) {
        self.granted.remove(uid);
    }

    /// Forgets what the caches show, and what is gone.
    pub fn settle(&mut self, tickets: &[Ticket]) {
        if self.granted.is_empty() {
            return;
        }
        let shown: BTreeMap<&str, Option<Timestamp>> =
            tickets.iter().map(|ticket| (ticket.uid.as_str(), ticket.admitted)).collect();
        self.granted.retain(|uid, at| {
            shown.get(uid.as_str()).is_some_and(|admitted| admitted.is_none_or(|admitted| admitted < *at))
        });
    }

    /// Puts what was admitted over what the caches say.
    pub fn overlay(&self, tickets: &mut [Ticket]) {
        if self.granted.is_empty() {
            return;
        }
        for ticket in tickets {
            if let Some(at) = self.granted.get(&ticket.uid) {
                ticket.state = State::Running;
                ticket.admitted = ticket.admitted.max(Some(*at));
            }
        }
    }
}
