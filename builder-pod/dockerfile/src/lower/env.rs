//! The environment of a stage, in the order that BuildKit gives it: by last change.

use std::collections::{BTreeMap, HashMap};

use crate::expand::Lookup;

/// Variables of a stage, of its `ENV` and `ARG` instructions.
#[derive(Debug, Clone, Default)]
pub(crate) struct Env {
    places: HashMap<String, u64>,
    values: BTreeMap<u64, (String, String)>,
    next: u64,
    bytes: usize,
}

impl Env {
    /// Sets a variable, which makes it the last.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        if let Some(place) = self.places.insert(name.to_owned(), self.next)
            && let Some((name, value)) = self.values.remove(&place)
        {
            self.bytes -= name.len() + value.len();
        }
        self.values.insert(self.next, (name.to_owned(), value.to_owned()));
        self.bytes += name.len() + value.len();
        self.next += 1;
    }

    /// Names and values.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.values().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// `NAME=value` texts.
    pub(crate) fn to_list(&self) -> Vec<String> {
        self.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// Size of names and values, bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + 16 * self.values.len()
    }
}

impl Lookup for Env {
    fn get(&self, name: &str) -> Option<&str> {
        let place = self.places.get(name)?;
        self.values.get(place).map(|(_, value)| value.as_str())
    }
}

/// Sets `NAME=value` in an image config's list, where it stands or at the end.
pub(crate) fn set_in_config(list: &mut Vec<String>, name: &str, value: &str) {
    let entry = format!("{name}={value}");
    let same = |known: &&mut String| known.split_once('=').map_or(known.as_str(), |(key, _)| key) == name;
    match list.iter_mut().find(same) {
        Some(known) => *known = entry,
        None => list.push(entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_variable_moves_to_the_end() {
        let mut env = Env::default();
        for (name, value) in [("A", "1"), ("B", "2"), ("A", "3")] {
            env.set(name, value);
        }
        assert_eq!(env.to_list(), ["B=2", "A=3"]);
        assert_eq!(env.get("A"), Some("3"));
        assert_eq!(env.bytes(), 4 + 32);
    }

    #[test]
    fn a_config_keeps_the_place_of_a_changed_variable() {
        let mut list = vec!["A=1".to_owned(), "B=2".to_owned()];
        set_in_config(&mut list, "A", "3");
        set_in_config(&mut list, "C", "");
        assert_eq!(list, ["A=3", "B=2", "C="]);
    }
}
