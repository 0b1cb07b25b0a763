//! Slots as PersistentVolumeClaims.
//!
//! Never: calls the cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use lapstrake_crds::{CacheVolume, UNUSED_FOR_DEFAULT, annotation, field_manager, label};
use serde_json::{Value, json};

use crate::cache::slots::Slot;
use crate::names;
use crate::settings::Settings;

/// Label value of a cache for whatever platform its node has.
pub const ANY_PLATFORM: &str = "any";

/// Which slot of a shared cache.
#[derive(Clone, Copy, Debug)]
pub struct SlotOf<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// The cache.
    pub cache: &'a str,
    /// Platform as a label has it.
    pub platform: &'a str,
    /// Its number.
    pub number: u32,
}

/// The slot that a claim is, if it is one.
pub fn slot(claim: &PersistentVolumeClaim) -> Option<Slot> {
    let labels = claim.labels();
    let annotation = |name: &str| claim.annotations().get(name).cloned();
    let requests = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    Some(Slot {
        claim: claim.name_any(),
        version: claim.resource_version().unwrap_or_default(),
        cache: labels.get(label::CACHE)?.clone(),
        platform: labels.get(label::CACHE_PLATFORM)?.clone(),
        number: labels.get(label::SLOT)?.parse().ok()?,
        leased_to: annotation(annotation::LEASED_TO).filter(|uid| !uid.is_empty()),
        last_user: annotation(annotation::LAST_USER),
        last_used: annotation(annotation::LAST_USED).and_then(|time| time.parse().ok()),
        bytes: requests.and_then(|requests| requests.get("storage")).and_then(bytes),
        deleting: claim.metadata.deletion_timestamp.is_some(),
    })
}

/// How long a claim is kept unused. One that says nothing was made for a pod that never had it.
pub fn unused_for(claim: &PersistentVolumeClaim) -> Duration {
    let told = claim.annotations().get(annotation::UNUSED_FOR);
    let seconds = told.and_then(|text| text.strip_suffix('s')?.parse().ok());
    seconds.map_or(UNUSED_FOR_DEFAULT, Duration::from_secs)
}

/// The claim of a slot. It belongs to no ImageBuild: what several share outlives each of them.
pub fn claim(of: SlotOf<'_>, volume: &CacheVolume, settings: &Settings) -> PersistentVolumeClaim {
    let labels = [
        ("app.kubernetes.io/name", "lapstrake-builder".to_owned()),
        ("app.kubernetes.io/component", "cache".to_owned()),
        ("app.kubernetes.io/part-of", "lapstrake".to_owned()),
        ("app.kubernetes.io/managed-by", field_manager().to_owned()),
        (label::CACHE, of.cache.to_owned()),
        (label::CACHE_PLATFORM, of.platform.to_owned()),
        (label::SLOT, of.number.to_string()),
    ];
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(names::slot(of.cache, of.platform, of.number)),
            namespace: Some(of.namespace.to_owned()),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
            ..ObjectMeta::default()
        },
        spec: Some(claim_spec(volume, settings)),
        status: None,
    }
}

/// What a cache volume asks for.
pub fn claim_spec(volume: &CacheVolume, settings: &Settings) -> PersistentVolumeClaimSpec {
    let defaults = &settings.defaults.cache;
    let default_class =
        || (!defaults.storage_class_name.is_empty()).then(|| defaults.storage_class_name.clone());
    PersistentVolumeClaimSpec {
        access_modes: Some(vec![volume.access_mode.as_str().to_owned()]),
        storage_class_name: volume.storage_class_name.clone().or_else(default_class),
        resources: Some(VolumeResourceRequirements {
            requests: Some(BTreeMap::from([("storage".to_owned(), size(volume, settings))])),
            ..VolumeResourceRequirements::default()
        }),
        ..PersistentVolumeClaimSpec::default()
    }
}

/// Size of a cache volume.
pub fn size(volume: &CacheVolume, settings: &Settings) -> Quantity {
    volume.size.clone().unwrap_or_else(|| settings.defaults.cache.size.clone())
}

/// Most that the builder may let its cache take on a volume, in bytes: nine tenths of it unless the spec
/// says otherwise, since a build needs room while it is under way.
pub fn bytes_max(volume: &CacheVolume, settings: &Settings) -> Option<u64> {
    let chosen = volume.max_size.as_ref().and_then(bytes);
    chosen.or_else(|| bytes(&size(volume, settings)).map(|size| size / 10 * 9))
}

/// Writes a pod's uid onto the very version of the claim that was looked at, as a merge patch.
pub fn lease(
    version: &str,
    pod_uid: &str,
    user: &str,
    unused_for: Option<Duration>,
    now: Timestamp,
) -> Value {
    json!({ "metadata": {
        "resourceVersion": version,
        "annotations": {
            annotation::LEASED_TO: pod_uid,
            annotation::LAST_USER: user,
            annotation::LAST_USED: seconds(now),
            annotation::UNUSED_FOR: unused_for.map(|length| format!("{}s", length.as_secs())),
        },
    } })
}

/// Takes it off again, from that version of the claim, and says how much the cache takes if that is known.
pub fn give_back(version: &str, used_bytes: Option<u64>, now: Timestamp) -> Value {
    let mut annotations = json!({
        annotation::LEASED_TO: null,
        annotation::LAST_USED: seconds(now),
    });
    if let Some(bytes) = used_bytes {
        annotations[annotation::USED_BYTES] = bytes.to_string().into();
    }
    json!({ "metadata": { "resourceVersion": version, "annotations": annotations } })
}

/// A time in whole seconds: what is below them says nothing to anybody who reads it.
fn seconds(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

/// An amount of bytes; none if it is not one.
pub fn bytes(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.as_str();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let factor: u128 = match unit {
        "" | "m" => 1,
        "k" => 1000,
        "M" => 1000_u128.pow(2),
        "G" => 1000_u128.pow(3),
        "T" => 1000_u128.pow(4),
        "P" => 1000_u128.pow(5),
        "E" => 1000_u128.pow(6),
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction = fraction.get(..fraction.len().min(9))?;
    let scale = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    let whole: u128 = whole.parse().ok()?;
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let mut bytes = whole.checked_mul(factor)?.checked_add(part.checked_mul(factor)? / scale)?;
    if unit == "m" {
        bytes /= 1000;
    }
    u64::try_from(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_kubernetes_writes_them() {
        for (text, expected) in [
            ("10Gi", Some(10 << 30)),
            ("1.5Ki", Some(1536)),
            ("2k", Some(2000)),
            ("1500m", Some(1)),
            ("7", Some(7)),
            ("16Ei", None),
            ("1e3", None),
            ("", None),
            ("Gi", None),
        ] {
            assert_eq!(bytes(&Quantity(text.into())), expected, "{text}");
        }
    }

    #[test]
    fn a_slot_reads_back_from_its_claim() {
        let volume = CacheVolume {
            name: Some("modules".into()),
            size: Some(Quantity("5Gi".into())),
            ..CacheVolume::default()
        };
        let of = SlotOf { namespace: "shop", cache: "modules", platform: "linux-amd64", number: 2 };
        let mut claim = claim(of, &volume, &Settings::default());
        assert_eq!(claim.name_any(), "modules-slot-linux-amd64-2");
        assert!(claim.owner_references().is_empty(), "nobody's alone");
        assert_eq!(unused_for(&claim), UNUSED_FOR_DEFAULT, "also if nobody ever came to have it");
        claim.metadata.resource_version = Some("7".into());
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let taken = lease("7", "uid", "web", volume.unused_for(), now);
        let annotations = serde_json::from_value(taken["metadata"]["annotations"].clone()).unwrap();
        claim.metadata.annotations = Some(annotations);
        let read = slot(&claim).unwrap();
        assert_eq!(
            read,
            Slot {
                claim: "modules-slot-linux-amd64-2".into(),
                version: "7".into(),
                cache: "modules".into(),
                platform: "linux-amd64".into(),
                number: 2,
                leased_to: Some("uid".into()),
                last_user: Some("web".into()),
                last_used: Some(now),
                bytes: Some(5 << 30),
                deleting: false,
            }
        );
        assert_eq!(unused_for(&claim), Duration::from_secs(168 * 3600));
        claim.annotations_mut().insert(annotation::UNUSED_FOR.into(), "60s".into());
        assert_eq!(unused_for(&claim), Duration::from_secs(60));
        assert_eq!(bytes_max(&volume, &Settings::default()), Some((5 << 30) / 10 * 9));
        assert!(give_back("8", Some(5), now)["metadata"]["annotations"][annotation::LEASED_TO].is_null());
        assert!(slot(&PersistentVolumeClaim::default()).is_none(), "a claim of somebody else");
    }
}
