//! Package URLs of images.

use lapstrake_oci::{Platform, Reference};

/// The package URL of an image: `pkg:docker/busybox@latest?platform=linux%2Famd64`. `kind` is `docker`, or `oci` for one that a
/// client lent. `more` are further qualifiers.
pub(super) fn of(kind: &str, name: &Reference, platform: Option<&Platform>, more: &[(&str, &str)]) -> String {
    let whole = name.name();
    let familiar = match whole.strip_prefix("docker.io/") {
        Some(rest) => rest.strip_prefix("library/").filter(|rest| !rest.contains('/')).unwrap_or(rest),
        None => &whole,
    };
    let path: Vec<String> = familiar.split('/').map(|part| escaped(part, b"-._~:")).collect();
    let version = match (name.tag(), name.digest()) {
        (Some(tag), _) => format!("@{}", escaped(tag, b"-._~:")),
        (None, Some(_)) => String::new(),
        (None, None) => "@latest".to_owned(),
    };
    let mut qualifiers: Vec<(&str, String)> =
        more.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    qualifiers.extend(name.digest().map(|digest| ("digest", digest.to_string())));
    qualifiers.extend(platform.map(|platform| ("platform", platform.to_string())));
    qualifiers.sort();
    let said: Vec<String> =
        qualifiers.iter().map(|(key, value)| format!("{key}={}", escaped(value, b"-._~:"))).collect();
    let said = if said.is_empty() { String::new() } else { format!("?{}", said.join("&")) };
    format!("pkg:{kind}/{}{version}{said}", path.join("/"))
}

fn escaped(text: &str, plain: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || plain.contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_named_as_package_urls_say() {
        let amd: Platform = "linux/amd64".parse().expect("a platform");
        let of = |text: &str, platform| of("docker", &text.parse().expect("a name"), platform, &[]);
        assert_eq!(of("busybox", Some(&amd)), "pkg:docker/busybox@latest?platform=linux%2Famd64");
        assert_eq!(of("moby/buildkit:v1", None), "pkg:docker/moby/buildkit@v1");
        assert_eq!(of("127.0.0.1:7511/t/c1:x", None), "pkg:docker/127.0.0.1:7511/t/c1@x");
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(
            of(&format!("busybox@{digest}"), Some(&amd)),
            format!("pkg:docker/busybox?digest={digest}&platform=linux%2Famd64")
        );
    }
}
