//! The config of a cache, as it is stored (`cache/remotecache/v1/types` in BuildKit).

use jiff::Timestamp;
use lapstrake_oci::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Media type of the config.
pub const CONFIG_MEDIA_TYPE: &str = "application/vnd.buildkit.cacheconfig.v0";

/// Layers and records. Both point into these lists by position.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// All layers of all results.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub layers: Vec<Layer>,
    /// All records.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub records: Vec<Record>,
}

/// A layer on top of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Its blob; the manifest has the descriptor.
    pub blob: Digest,
    /// The layer below, -1 where there is none. Go leaves a zero out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub parent: i64,
    /// What its descriptor says, where there is no manifest to say it: in object stores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<LayerAnnotations>,
}

/// A layer's descriptor, as object stores have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerAnnotations {
    /// Media type of the blob.
    #[serde(rename = "mediaType", default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Digest of its tar; empty where it is not told.
    #[serde(rename = "diffID", default, skip_serializing_if = "String::is_empty")]
    pub diff_id: String,
    /// Bytes of the blob.
    #[serde(default)]
    pub size: u64,
    /// When it was made.
    #[serde(rename = "createdAt", default, with = "time")]
    pub created: Option<Timestamp>,
}

/// What is known of one output of an operation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Results as a layer with all below it.
    #[serde(
        default,
        rename = "layers",
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "nullable"
    )]
    pub results: Vec<Outcome>,
    /// Results as lists of layers.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub chains: Vec<Chain>,
    /// Its name, see [`crate::record_digest`].
    #[serde(default)]
    pub digest: String,
    /// For each input the records that it may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "nullable")]
    pub inputs: Vec<Vec<Input>>,
}

/// A result: a layer and all below it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Position of the topmost layer.
    pub layer: i64,
    /// When it was made.
    #[serde(rename = "createdAt", default, with = "time")]
    pub created: Option<Timestamp>,
}

/// A result: these layers, lowest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Positions of the layers.
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<i64>,
    /// When it was made.
    #[serde(rename = "createdAt", default, with = "time")]
    pub created: Option<Timestamp>,
}

/// One record that an input may be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Input {
    /// What of it is used: the digest of paths. Empty where it has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// Position of the record.
    pub link: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it by reference")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Go writes an empty list as null.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Times as Go writes them: the year 1 is none.
mod time {
    use super::{Deserialize, Deserializer, Serializer, Timestamp};

    const NONE: &str = "0001-01-01T00:00:00Z";

    pub(super) fn serialize<S: Serializer>(
        time: &Option<Timestamp>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => serializer.collect_str(time),
            None => serializer.serialize_str(NONE),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == NONE {
            return Ok(None);
        }
        text.parse().map(Some).map_err(serde::de::Error::custom)
    }
}
