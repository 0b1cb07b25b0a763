//! The queue's limits as the operator is told them.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use serde::Deserialize;

use crate::schedule::queue::{Limits, NamespaceLimits};

/// How many builds may run at once: `queue.json` of the chart. A 0 is no limit.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct QueueSettings {
    /// In all namespaces together.
    pub cluster: u32,
    /// In each namespace.
    pub namespace: u32,
    /// In each group of a namespace.
    pub group: u32,
    /// What holds in single namespaces instead.
    pub namespaces: BTreeMap<String, OfNamespace>,
}

/// What holds in one namespace instead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OfNamespace {
    /// Builds in it.
    pub builds: u32,
    /// Builds of its groups, by name.
    pub groups: BTreeMap<String, u32>,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self { cluster: 0, namespace: 0, group: 1, namespaces: BTreeMap::new() }
    }
}

impl From<QueueSettings> for Limits {
    fn from(told: QueueSettings) -> Self {
        let namespaces = told.namespaces.into_iter().map(|(name, of)| {
            let groups =
                of.groups.into_iter().filter_map(|(group, limit)| Some((group, NonZeroU32::new(limit)?)));
            (name, NamespaceLimits { builds: NonZeroU32::new(of.builds), groups: groups.collect() })
        });
        Self {
            cluster: NonZeroU32::new(told.cluster),
            namespace: NonZeroU32::new(told.namespace),
            group: NonZeroU32::new(told.group),
            namespaces: namespaces.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_chart_writes_is_taken_and_a_zero_is_no_limit() {
        let text = r#"{"cluster":10,"namespace":0,"namespaces":{"a":{"builds":2,"groups":{"release":3}}}}"#;
        let limits: Limits = serde_json::from_str::<QueueSettings>(text).unwrap().into();
        assert_eq!(limits.cluster, NonZeroU32::new(10));
        assert_eq!((limits.namespace, limits.group), (None, NonZeroU32::new(1)));
        assert_eq!(limits.namespaces["a"].groups["release"].get(), 3);
        assert!(serde_json::from_str::<QueueSettings>(r#"{"clusters":1}"#).is_err());
    }
}
