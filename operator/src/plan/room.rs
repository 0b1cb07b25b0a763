//! How much a builder may keep of what it made.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use lapstrake_crds::ImageBuild;

use crate::plan::objects::{CachePlace, cache_place};
use crate::plan::parts::Part;
use crate::settings::Settings;

/// Share of a place that the builder fills, in percent: the rest is for what a build makes before
/// anything can go.
const SHARE: u64 = 90;

/// Most that the state of this part of an ImageBuild may hold, in bytes. Many kinds of volumes are larger than they were
/// asked to be, so the builder cannot see it for itself. None where nothing was asked for.
pub(crate) fn cache_max_bytes(build: &ImageBuild, part: &Part, settings: &Settings) -> Option<u64> {
    let size = match cache_place(build, part, settings) {
        CachePlace::Volume(volume) => {
            Some(volume.size.unwrap_or_else(|| settings.defaults.cache.size.clone()))
        }
        CachePlace::EmptyDir(dir) => dir.size_limit,
    };
    Some(bytes(&size?)? / 100 * SHARE)
}

/// Bytes of a quantity, rounded down; none if it is no quantity.
fn bytes(quantity: &Quantity) -> Option<u64> {
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
    fn quantities_are_bytes() {
        for (text, want) in [
            ("20Gi", Some(20 << 30)),
            ("1.5Gi", Some(3 << 29)),
            ("500M", Some(500_000_000)),
            ("1000", Some(1000)),
            ("1500m", Some(1)),
            ("99999999999E", None),
            ("much", None),
        ] {
            assert_eq!(bytes(&Quantity(text.to_owned())), want, "{text}");
        }
    }
}
