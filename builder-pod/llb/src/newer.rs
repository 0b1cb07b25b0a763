//! Definitions as they are on the wire, with the field that the published crate's messages lack.
//!
//! Inside, limits of steps stand as text in the metadata's description ([`description::RESOURCES`]): that is what a definition
//! becomes when it is taken in, and what it was when it is handed out again. What stands under that name in a definition from
//! outside is nobody's limit, and is dropped.

use std::collections::BTreeMap;

use crate::{Resources, description, pb};

/// A definition.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct Definition {
    /// Operations, as bytes.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub def: Vec<Vec<u8>>,
    /// What is said of operations beside what they are, by their digests.
    #[prost(btree_map = "string, message", tag = "2")]
    pub metadata: BTreeMap<String, OpMetadata>,
    /// Where they come from.
    #[prost(message, optional, tag = "3")]
    pub source: Option<pb::Source>,
}

/// What is said of an operation beside what it is.
#[derive(Clone, PartialEq, ::prost::Message)]
pub struct OpMetadata {
    /// Whether it is done anew.
    #[prost(bool, tag = "1")]
    pub ignore_cache: bool,
    /// Texts.
    #[prost(btree_map = "string, string", tag = "2")]
    pub description: BTreeMap<String, String>,
    /// Whether caches have it.
    #[prost(message, optional, tag = "4")]
    pub export_cache: Option<pb::ExportCache>,
    /// What a builder has to know to do it.
    #[prost(btree_map = "string, bool", tag = "5")]
    pub caps: BTreeMap<String, bool>,
    /// Where progress shows it.
    #[prost(message, optional, tag = "6")]
    pub progress_group: Option<pb::ProgressGroup>,
    /// Limits of a step.
    #[prost(message, optional, tag = "7")]
    pub linux_resources: Option<LinuxResources>,
}

/// Limits of a step; what has its default value is none.
#[derive(Clone, PartialEq, Eq, Hash, ::prost::Message)]
pub struct LinuxResources {
    /// Memory, bytes.
    #[prost(int64, tag = "1")]
    pub memory: i64,
    /// Memory and swap together, bytes; -1 is as much swap as there is.
    #[prost(int64, tag = "2")]
    pub memory_swap: i64,
    /// Weight among those that want the processors.
    #[prost(uint64, tag = "3")]
    pub cpu_shares: u64,
    /// Length of the period that the quota is of, microseconds.
    #[prost(uint64, tag = "4")]
    pub cpu_period: u64,
    /// Processor time in a period, microseconds.
    #[prost(int64, tag = "5")]
    pub cpu_quota: i64,
    /// Processors.
    #[prost(string, tag = "6")]
    pub cpuset_cpus: String,
    /// Memory nodes.
    #[prost(string, tag = "7")]
    pub cpuset_mems: String,
}

/// In the form of [`Resources`], which is checked where a step is run: as with BuildKit a definition is taken whatever it asks for.
impl std::fmt::Display for LinuxResources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = |of: i64| (of != 0).then(|| of.to_string());
        let count = |of: u64| (of != 0).then(|| of.to_string());
        let text = |of: &str| (!of.is_empty()).then(|| of.to_owned());
        let all = [
            number(self.memory),
            number(self.memory_swap),
            count(self.cpu_shares),
            count(self.cpu_period),
            number(self.cpu_quota),
            text(&self.cpuset_cpus),
            text(&self.cpuset_mems),
        ];
        let given = crate::RESOURCE_NAMES.iter().zip(all).filter_map(|(name, value)| Some((name, value?)));
        for (at, (name, value)) in given.enumerate() {
            write!(f, "{}{name}={value}", if at > 0 { ";" } else { "" })?;
        }
        Ok(())
    }
}

impl From<&Resources> for LinuxResources {
    fn from(of: &Resources) -> Self {
        // Numbers of ours fit: what is beyond is refused where they are read.
        let signed = |of: Option<u64>| of.and_then(|of| i64::try_from(of).ok()).unwrap_or_default();
        Self {
            memory: signed(of.memory),
            memory_swap: of.memory_swap.unwrap_or_default(),
            cpu_shares: of.cpu_shares.unwrap_or_default(),
            cpu_period: of.cpu_period.unwrap_or_default(),
            cpu_quota: signed(of.cpu_quota),
            cpuset_cpus: of.cpuset_cpus.clone().unwrap_or_default(),
            cpuset_mems: of.cpuset_mems.clone().unwrap_or_default(),
        }
    }
}

impl From<OpMetadata> for pb::OpMetadata {
    fn from(of: OpMetadata) -> Self {
        let OpMetadata { ignore_cache, mut description, export_cache, caps, progress_group, linux_resources } =
            of;
        description.remove(description::RESOURCES);
        if let Some(limits) = linux_resources {
            description.insert(description::RESOURCES.to_owned(), limits.to_string());
        }
        Self { ignore_cache, description, export_cache, caps, progress_group }
    }
}

impl From<pb::OpMetadata> for OpMetadata {
    fn from(of: pb::OpMetadata) -> Self {
        let pb::OpMetadata { ignore_cache, mut description, export_cache, caps, progress_group } = of;
        let limits = description.remove(description::RESOURCES);
        let limits = limits.and_then(|limits| limits.parse::<Resources>().ok());
        let linux_resources = limits.as_ref().map(LinuxResources::from);
        Self { ignore_cache, description, export_cache, caps, progress_group, linux_resources }
    }
}

impl From<Definition> for pb::Definition {
    fn from(of: Definition) -> Self {
        let metadata = of.metadata.into_iter().map(|(digest, said)| (digest, said.into())).collect();
        Self { def: of.def, metadata, source: of.source }
    }
}

impl From<pb::Definition> for Definition {
    fn from(of: pb::Definition) -> Self {
        let metadata = of.metadata.into_iter().map(|(digest, said)| (digest, said.into())).collect();
        Self { def: of.def, metadata, source: of.source }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn limited() -> OpMetadata {
        let limits = LinuxResources {
            memory: 1 << 26,
            memory_swap: -1,
            cpu_quota: 5000,
            cpuset_cpus: "0-1".to_owned(),
            ..LinuxResources::default()
        };
        OpMetadata { linux_resources: Some(limits), ignore_cache: true, ..OpMetadata::default() }
    }

    #[test]
    fn limits_that_are_taken_in_are_handed_out_again() {
        let metadata = BTreeMap::from([("sha256:1".to_owned(), limited())]);
        let sent = Definition { def: vec![vec![1, 2]], metadata, source: None };
        let inside: pb::Definition = sent.clone().into();
        let said = &inside.metadata["sha256:1"];
        assert!(said.ignore_cache);
        let text = "memory=67108864;memswap=-1;cpuquota=5000;cpusetcpus=0-1";
        assert_eq!(said.description.get(description::RESOURCES).map(String::as_str), Some(text));
        assert_eq!(Definition::from(inside).encode_to_vec(), sent.encode_to_vec());
    }

    #[test]
    fn what_limits_nothing_is_told_from_what_says_nothing() {
        let none = OpMetadata { linux_resources: Some(LinuxResources::default()), ..OpMetadata::default() };
        let inside = pb::OpMetadata::from(none.clone());
        assert_eq!(inside.description.get(description::RESOURCES).map(String::as_str), Some(""));
        assert_eq!(OpMetadata::from(inside), none);
        assert_eq!(pb::OpMetadata::from(OpMetadata::default()), pb::OpMetadata::default());
    }

    #[test]
    fn a_text_from_outside_is_no_limit() {
        let description = BTreeMap::from([(description::RESOURCES.to_owned(), "memory=1".to_owned())]);
        let inside = pb::OpMetadata::from(OpMetadata { description, ..OpMetadata::default() });
        assert!(inside.description.is_empty());
    }

    #[test]
    fn a_limit_that_cannot_be_is_taken_and_refused_where_it_counts() {
        let limits = LinuxResources { memory: -5, ..LinuxResources::default() };
        let error = limits.to_string().parse::<Resources>().expect_err("negative");
        assert!(error.contains("memory"), "{error}");
    }
}
