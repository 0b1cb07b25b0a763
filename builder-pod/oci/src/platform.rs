use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What an image runs on: `os/arch[/variant]`, normalised as containerd does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// CPU architecture by Go's name (`amd64`, `arm64`, `arm`, …).
    pub architecture: String,
    /// Operating system by Go's name.
    pub os: String,
    /// Windows build, kept as found.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// OS features that an index entry asks for, kept as found.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// CPU variant (`v7` of arm, `v8` of arm64, `v2` of amd64); absent where it is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("platform \"{text}\" is not os/arch[/variant], for example linux/amd64 or linux/arm/v7")]
pub struct PlatformError {
    /// The text as given.
    pub text: String,
}

impl Platform {
    /// A normalised platform of its parts.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        Self {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            os_version: None,
            os_features: Vec::new(),
            variant: variant.filter(|v| !v.is_empty()).map(str::to_owned),
        }
        .normalize()
    }

    /// The same platform with the one spelling that containerd uses (`x86_64` → `amd64`,
    /// `arm64/v8` → `arm64`, `arm` → `arm/v7`).
    pub fn normalize(mut self) -> Self {
        self.os = match self.os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = self.variant.take().map(|v| v.to_ascii_lowercase());
        let (arch, variant) = match (self.architecture.to_ascii_lowercase().as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", v) => ("amd64", v.filter(|v| *v != "v1")),
            ("i386", _) => ("386", None),
            ("aarch64" | "arm64", v) => ("arm64", v.filter(|v| !matches!(*v, "8" | "v8"))),
            ("armhf", _) => ("arm", Some("v7")),
            ("armel", _) => ("arm", Some("v6")),
            ("arm", v) => (
                "arm",
                Some(match v {
                    None | Some("" | "7") => "v7",
                    Some("5") => "v5",
                    Some("6") => "v6",
                    Some("8") => "v8",
                    Some(other) => other,
                }),
            ),
            (other, v) => {
                let (arch, variant) = (other.to_owned(), v.map(str::to_owned));
                self.architecture = arch;
                self.variant = variant;
                return self;
            }
        };
        self.variant = variant.map(str::to_owned);
        self.architecture = arch.to_owned();
        self
    }

    /// Whether an image of `self` runs where `wanted` is asked for; smaller is the better match,
    /// `None` is no match. A newer CPU variant runs images of an older one (containerd's `Only`).
    pub fn rank_for(&self, wanted: &Self) -> Option<u32> {
        let (have, want) = (self.clone().normalize(), wanted.clone().normalize());
        if have.os != want.os || have.architecture != want.architecture {
            // 64-bit machines run 32-bit images, after all of their own.
            let smaller = match (want.architecture.as_str(), have.architecture.as_str()) {
                ("arm64", "arm") => have.variant_number() <= 80,
                ("amd64", "386") => true,
                _ => false,
            };
            return (have.os == want.os && smaller).then(|| 1000 - have.variant_number());
        }
        let (have, want) = (have.variant_number(), want.variant_number());
        (have <= want).then(|| want - have)
    }

    /// The variant in tenths: `v8.1` is 81, and `v9` above all of `v8`.
    fn variant_number(&self) -> u32 {
        let default = match self.architecture.as_str() {
            "amd64" => 10,
            "arm64" => 80,
            _ => 0,
        };
        let number = |variant: &str| {
            let (whole, tenth) = variant.trim_start_matches('v').split_once('.').unwrap_or((variant, "0"));
            let whole: u32 = whole.trim_start_matches('v').parse().ok().filter(|n| *n < 90)?;
            Some(whole * 10 + tenth.parse::<u32>().ok().filter(|n| *n < 10)?)
        };
        self.variant.as_deref().and_then(number).unwrap_or(default)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let bad = || PlatformError { text: text.to_owned() };
        let ok = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|part| ok(part)) {
            return Err(bad());
        }
        match parts[..] {
            [os, arch] => Ok(Self::new(os, arch, None)),
            [os, arch, variant] => Ok(Self::new(os, arch, Some(variant))),
            _ => Err(bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Platform {
        text.parse().expect("test platform")
    }

    #[test]
    fn spellings_become_one() {
        for (text, wanted) in [
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64/v1", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/riscv64", "linux/riscv64"),
        ] {
            assert_eq!(p(text).to_string(), wanted);
        }
    }

    #[test]
    fn an_older_variant_serves_a_newer_machine_and_not_the_other_way_round() {
        assert_eq!(p("linux/arm/v6").rank_for(&p("linux/arm/v7")), Some(10));
        assert_eq!(p("linux/arm/v7").rank_for(&p("linux/arm/v6")), None);
        assert_eq!(p("linux/amd64").rank_for(&p("linux/amd64/v2")), Some(10));
        assert_eq!(p("linux/amd64/v3").rank_for(&p("linux/amd64/v2")), None);
        assert_eq!(p("linux/arm64/v8.1").rank_for(&p("linux/arm64")), None);
        assert_eq!(p("linux/arm64").rank_for(&p("linux/arm64/v9")), Some(10));
        assert_eq!(p("linux/arm64").rank_for(&p("linux/arm64")), Some(0));
        let better = |a: &str, b: &str, wanted: &str| p(a).rank_for(&p(wanted)) < p(b).rank_for(&p(wanted));
        assert!(better("linux/arm64", "linux/arm/v8", "linux/arm64/v9"));
        assert!(better("linux/arm/v7", "linux/arm/v6", "linux/arm64"));
        assert!(better("linux/amd64", "linux/386", "linux/amd64/v4"));
        assert!(p("linux/arm/v7").rank_for(&p("linux/arm64")).is_some());
        assert_eq!(p("linux/amd64").rank_for(&p("linux/386")), None);
        assert_eq!(p("linux/arm64").rank_for(&p("linux/amd64")), None);
    }

    #[test]
    fn malformed_platforms_are_named() {
        for text in ["", "linux", "linux/", "a/b/c/d", "linux/a md64"] {
            assert_eq!(text.parse::<Platform>().map_err(|e| e.text), Err(text.to_owned()));
        }
    }
}
