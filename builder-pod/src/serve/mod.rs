//! The daemon: what BuildKit's clients ask for, as builds.

use std::collections::BTreeMap;

pub(crate) mod caches;
pub(crate) mod exporters;
pub(crate) mod receiver;
mod values;

/// Attributes as requests have them.
pub(crate) type Attributes = BTreeMap<String, String>;
