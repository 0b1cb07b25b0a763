//! Names of the objects that the operator makes, and values of their labels.

use sha2::{Digest, Sha256};

/// Longest label value, and longest name that may also be a host name.
const NAME_BYTES_MAX: usize = 63;

/// The first `digits` hexadecimal digits of the SHA-256 of `bytes`.
pub fn short_hash(bytes: &[u8], digits: usize) -> String {
    let mut text = String::with_capacity(64);
    for byte in Sha256::digest(bytes) {
        text.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
        text.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
    }
    text.truncate(digits);
    text
}

/// `base` and `suffix` with a dash between, at most 63 bytes: a long base is cut, and a hash of the
/// whole keeps two long bases apart.
fn joined(base: &str, suffix: &str) -> String {
    let room = NAME_BYTES_MAX.saturating_sub(suffix.len() + 1);
    // A name may have dots, which a pod's host name may not.
    let flat = base.replace('.', "-");
    if flat.len() <= room && flat == base {
        return format!("{flat}-{suffix}");
    }
    let hash = short_hash(base.as_bytes(), 8);
    let cut = flat[..flat.len().min(room.saturating_sub(hash.len() + 1))].trim_end_matches('-').to_owned();
    format!("{cut}-{hash}-{suffix}")
}

/// Name of the pod of one attempt at one part of a run, and of the ConfigMap with its request.
pub fn pod(build: &str, run: &str, attempt: u32, part: Option<&str>) -> String {
    match part {
        Some(part) => joined(build, &format!("{run}-{}-{attempt}", platform_label(part))),
        None => joined(build, &format!("{run}-{attempt}")),
    }
}

/// Name of the cache volume: one for each architecture that was asked for by name.
pub fn cache(build: &str, platform: Option<&str>) -> String {
    match platform {
        Some(platform) => joined(build, &format!("cache-{}", platform_label(platform))),
        None => joined(build, "cache"),
    }
}

/// Name of the claim of a shared cache's slot.
pub fn slot(cache: &str, platform: &str, number: u32) -> String {
    joined(cache, &format!("slot-{platform}-{number}"))
}

/// A platform as a label's value: `linux-amd64`.
pub fn platform_label(platform: &str) -> String {
    platform.replace('/', "-")
}

/// A name as a label's value: as it is, or cut with a hash behind it.
pub fn label_value(name: &str) -> String {
    if name.len() <= NAME_BYTES_MAX {
        return name.to_owned();
    }
    let hash = short_hash(name.as_bytes(), 8);
    let cut = name[..NAME_BYTES_MAX - hash.len() - 1].trim_end_matches(['-', '.']);
    format!("{cut}-{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_stay_apart() {
        let long = "a.b".repeat(80);
        let other = format!("{long}c");
        for (one, two) in [
            (pod(&long, "0123456789-abcdef", 12, None), pod(&other, "0123456789-abcdef", 12, None)),
            (cache(&long, Some("linux/arm64/v8")), cache(&other, Some("linux/arm64/v8"))),
            (label_value(&long), label_value(&other)),
            (pod("a.b", "r", 1, None), pod("a-b", "r", 1, None)),
        ] {
            assert!(one.len() <= 63 && two.len() <= 63, "{one} {two}");
            assert_ne!(one, two);
            assert!(!one.starts_with('-'), "{one}");
        }
        assert_eq!(pod("web", "r", 1, None), "web-r-1");
        assert_eq!(cache("web", Some("linux/arm64")), "web-cache-linux-arm64");
    }

    #[test]
    fn a_hash_is_the_one_that_sha256sum_prints() {
        assert_eq!(short_hash(b"", 8), "e3b0c442");
    }
}
