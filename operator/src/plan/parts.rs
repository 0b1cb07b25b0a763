//! What a run is divided into: a part for each kind of node that serves some of its platforms, and one
//! more that joins what they built.
//!
//! Which part a platform belongs to follows from the spec alone, so that it never changes while a run is
//! under way. Where a part is built may change, and is kept in status.

use std::borrow::Cow;

use lapstrake_crds::{EmulationPolicy, ImageBuild, ImageBuildStatus, PlatformPod, Source};

use crate::names;
use crate::observe::INDEX;
use crate::settings::Settings;

/// One pod's share of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// What it does.
    pub kind: Kind,
    /// Platforms that it builds, or joins, the first of which names it; none: the one of its node.
    pub platforms: Vec<String>,
    /// Architecture of the nodes that it may run on; none: any.
    pub architecture: Option<String>,
    /// Whether it is all that there is to do: it pushes the image under its names itself.
    pub whole: bool,
}

/// What a part does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Builds its platforms, and pushes each by its digest.
    Build,
    /// Joins what the others pushed into one index, and pushes that under the image's names.
    Index,
}

impl Part {
    /// What its objects' names have of it.
    pub(crate) fn key(&self) -> Option<&str> {
        match self.kind {
            Kind::Build => self.platforms.first().map(String::as_str),
            Kind::Index => Some(INDEX),
        }
    }

    /// The value of its pods' platform label.
    pub(crate) fn platform_label(&self) -> String {
        let all: Vec<_> = self.platforms.iter().map(|one| names::platform_label(one)).collect();
        names::label_value(&all.join("_"))
    }

    /// Whether this is a pod of it, whatever the attempt.
    pub(crate) fn has(&self, pod_part: &str) -> bool {
        match self.kind {
            Kind::Build => pod_part == self.platform_label(),
            Kind::Index => pod_part == INDEX,
        }
    }

    /// What its cache is named after, beside the ImageBuild.
    pub(crate) fn cache_key(&self) -> Option<String> {
        let platform = self.platforms.first()?;
        Some(match &self.architecture {
            Some(architecture) if !runs_on(platform, architecture) => format!("{platform}-on-{architecture}"),
            _ => platform.clone(),
        })
    }

    /// Whether this platform of it is emulated.
    pub(crate) fn emulates(&self, platform: &str) -> bool {
        self.architecture.as_deref().is_some_and(|architecture| !runs_on(platform, architecture))
    }

    /// Its platforms in words.
    pub(crate) fn told(&self) -> String {
        match self.kind {
            Kind::Build => self.platforms.join(", "),
            Kind::Index => "the index".to_owned(),
        }
    }

    /// What of the ImageBuild it has to know: who only joins needs no source, no secret and no key.
    pub(crate) fn needs<'a>(&self, build: &'a ImageBuild) -> Cow<'a, ImageBuild> {
        if self.kind == Kind::Build {
            return Cow::Borrowed(build);
        }
        let mut lean = build.clone();
        let spec = &mut lean.spec;
        spec.source = Source::default();
        spec.args.clear();
        spec.secrets.clear();
        spec.secrets_from.clear();
        spec.ssh.clear();
        spec.contexts.clear();
        spec.dockerfile.options.clear();
        (spec.steps, spec.no_cache) = (Default::default(), Default::default());
        Cow::Owned(lean)
    }

    /// What the spec says of its pod in particular.
    pub(crate) fn wish<'a>(&self, build: &'a ImageBuild) -> Option<&'a PlatformPod> {
        if self.kind == Kind::Index {
            return None;
        }
        self.platforms.first().and_then(|platform| build.spec.pod.for_platform(platform))
    }
}

/// The parts of a run that build.
pub(crate) fn divide(build: &ImageBuild, status: &ImageBuildStatus, settings: &Settings) -> Vec<Part> {
    let mut parts: Vec<(Option<PlatformPod>, Part)> = Vec::new();
    let mut platforms = build.spec.platforms.clone();
    platforms.sort();
    platforms.dedup();
    for platform in platforms {
        let wish = build
            .spec
            .pod
            .for_platform(&platform)
            .map(|wish| PlatformPod { platform: String::new(), ..wish.clone() });
        let architecture = architecture(build, &platform, wish.as_ref(), settings);
        match parts.iter_mut().find(|(other, part)| {
            *other == wish && part.architecture.as_deref() == Some(architecture.as_str())
        }) {
            Some((_, part)) => part.platforms.push(platform),
            None => parts.push((
                wish,
                Part {
                    kind: Kind::Build,
                    platforms: vec![platform],
                    architecture: Some(architecture),
                    whole: false,
                },
            )),
        }
    }
    if parts.is_empty() {
        let part = Part { kind: Kind::Build, platforms: Vec::new(), architecture: None, whole: true };
        return vec![part];
    }
    let whole = parts.len() == 1;
    parts
        .into_iter()
        .map(|(_, mut part)| {
            part.whole = whole;
            if let Some(architecture) = &part.architecture {
                part.platforms.sort_by_key(|one| {
                    let native = own_architecture(one) == architecture;
                    (!native, !runs_on(one, architecture), one.clone())
                });
            }
            // Where a run has begun to be built, it goes on.
            let leader = part.platforms.first();
            let entry = status.platforms.iter().find(|entry| Some(&entry.platform) == leader);
            if let Some(moved) = entry.and_then(|entry| entry.architecture.clone()) {
                part.architecture = Some(moved);
            }
            part
        })
        .collect()
}

/// The part that joins what the others built.
pub(crate) fn index(build: &ImageBuild, parts: &[Part]) -> Part {
    Part {
        kind: Kind::Index,
        platforms: build.spec.platforms.clone(),
        // Nodes of it exist: something was built on one.
        architecture: parts.iter().find_map(|part| part.architecture.clone()),
        whole: false,
    }
}

/// Architecture of the nodes that a platform is built on, unless that turns out to be in vain.
fn architecture(
    build: &ImageBuild,
    platform: &str,
    wish: Option<&PlatformPod>,
    settings: &Settings,
) -> String {
    if let Some(chosen) = wish.and_then(|wish| wish.node_selector.get("kubernetes.io/arch")) {
        return chosen.clone();
    }
    match build.spec.emulation.policy {
        EmulationPolicy::Emulate => settings.architecture.clone(),
        EmulationPolicy::Native | EmulationPolicy::PreferNative => serving(platform).to_owned(),
    }
}

fn own_architecture(platform: &str) -> &str {
    platform.split('/').nth(1).unwrap_or_default()
}

/// Architecture of the nodes that most likely serve a platform without emulation.
fn serving(platform: &str) -> &str {
    match own_architecture(platform) {
        "386" => "amd64",
        "arm" => "arm64",
        architecture => architecture,
    }
}

/// Whether nodes of this architecture run a platform's programs themselves.
pub(crate) fn runs_on(platform: &str, architecture: &str) -> bool {
    own_architecture(platform) == architecture || serving(platform) == architecture
}

#[cfg(test)]
mod tests {
    use lapstrake_crds::PlatformStatus;

    use super::*;
    use crate::plan::tests::{build, settings};

    fn divided(platforms: &[&str], change: impl FnOnce(&mut ImageBuild)) -> Vec<(Vec<String>, String, bool)> {
        let mut build = build();
        build.spec.platforms = platforms.iter().map(|one| (*one).to_owned()).collect();
        change(&mut build);
        divide(&build, &ImageBuildStatus::default(), &settings())
            .into_iter()
            .map(|part| (part.platforms, part.architecture.unwrap_or_default(), part.whole))
            .collect()
    }

    fn owned(platforms: &[&str]) -> Vec<String> {
        platforms.iter().map(|one| (*one).to_owned()).collect()
    }

    #[test]
    fn what_one_kind_of_node_serves_is_one_part() {
        assert_eq!(divided(&[], |_| {}), [(vec![], String::new(), true)]);
        assert_eq!(
            divided(&["linux/arm/v7", "linux/386", "linux/arm64", "linux/s390x", "linux/amd64"], |_| {}),
            [
                (owned(&["linux/amd64", "linux/386"]), "amd64".to_owned(), false),
                (owned(&["linux/arm64", "linux/arm/v7"]), "arm64".to_owned(), false),
                (owned(&["linux/s390x"]), "s390x".to_owned(), false),
            ]
        );
        assert_eq!(
            divided(&["linux/386", "linux/amd64"], |_| {}),
            [(owned(&["linux/amd64", "linux/386"]), "amd64".to_owned(), true)]
        );
    }

    #[test]
    fn what_is_emulated_at_once_is_one_part_on_one_node() {
        let emulate = |build: &mut ImageBuild| build.spec.emulation.policy = EmulationPolicy::Emulate;
        assert_eq!(
            divided(&["linux/arm64", "linux/amd64", "linux/riscv64"], emulate),
            [(owned(&["linux/amd64", "linux/arm64", "linux/riscv64"]), "amd64".to_owned(), true)]
        );
    }

    #[test]
    fn a_platform_with_wishes_of_its_own_has_a_part_of_its_own() {
        let wish = |platform: &str, arch: &str| PlatformPod {
            platform: platform.to_owned(),
            node_selector: [("kubernetes.io/arch".to_owned(), arch.to_owned())].into(),
            ..PlatformPod::default()
        };
        let parts = divided(&["linux/amd64", "linux/arm64", "linux/arm/v7", "linux/arm/v6"], |build| {
            build.spec.pod.per_platform = vec![wish("linux/arm/v6", "arm"), wish("linux/arm/v7", "arm")];
        });
        assert_eq!(parts[0], (owned(&["linux/amd64"]), "amd64".to_owned(), false));
        assert_eq!(parts[1], (owned(&["linux/arm/v6", "linux/arm/v7"]), "arm".to_owned(), false));
        assert_eq!(parts[2], (owned(&["linux/arm64"]), "arm64".to_owned(), false));
    }

    #[test]
    fn where_a_part_was_moved_to_it_stays() {
        let mut build = build();
        build.spec.platforms = owned(&["linux/amd64", "linux/arm64"]);
        let entry = PlatformStatus {
            platform: "linux/arm64".to_owned(),
            architecture: Some("amd64".to_owned()),
            ..PlatformStatus::default()
        };
        let status = ImageBuildStatus { platforms: vec![entry], ..ImageBuildStatus::default() };
        let parts = divide(&build, &status, &settings());
        assert_eq!(parts.len(), 2, "it is not joined with another");
        assert_eq!(parts[1].architecture.as_deref(), Some("amd64"));
        assert!(parts[1].emulates("linux/arm64") && !parts[0].emulates("linux/amd64"));
        assert_ne!(parts[1].cache_key(), Some("linux/arm64".to_owned()), "a native cache stays what it is");
    }

    #[test]
    fn variants_run_where_their_architecture_does() {
        for (platform, architecture, runs) in [
            ("linux/amd64/v3", "amd64", true),
            ("linux/386", "amd64", true),
            ("linux/arm/v7", "arm64", true),
            ("linux/arm/v7", "arm", true),
            ("linux/arm64", "arm", false),
            ("linux/amd64", "386", false),
        ] {
            assert_eq!(runs_on(platform, architecture), runs, "{platform} on {architecture}");
        }
    }
}
