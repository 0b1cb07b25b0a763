//! What a builder is told of its cache: how large it may get, and which registries' caches it reads and writes.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{KeyToPath, SecretVolumeSource, Volume, VolumeMount};
use lapstrake_crds::{CacheExportMode, CacheRegistry, ImageBuild};
use lapstrake_handoff::{CacheExport, CacheImport, CacheMode, CacheTarget, paths};

use crate::cache::claims::{bytes, bytes_max};
use crate::plan::objects::{CachePlace, cache_place};
use crate::plan::parts::{Kind, Part};
use crate::settings::Settings;

/// Most that the builder's state may take, in bytes; none: the builder's own rule.
pub(super) fn max_bytes(build: &ImageBuild, part: &Part, settings: &Settings) -> Option<u64> {
    match cache_place(build, part, settings) {
        CachePlace::Volume(volume) | CachePlace::Shared(volume) => bytes_max(&volume, settings),
        // Whoever takes more than that is evicted.
        CachePlace::EmptyDir(dir) => dir.size_limit.as_ref().and_then(bytes).map(|limit| limit / 10 * 8),
    }
}

fn registry<'a>(build: &'a ImageBuild, part: &Part) -> Option<&'a CacheRegistry> {
    build.spec.cache.registry.as_ref().filter(|_| part.kind == Kind::Build)
}

/// The name that a part writes under where several write: each has a cache of its own.
fn of_part(image: &str, part: &Part) -> String {
    let architecture = part.architecture.as_deref().filter(|_| !part.whole);
    let Some(architecture) = architecture else { return image.to_owned() };
    let tagged = image.rsplit_once(':').is_some_and(|(_, tag)| !tag.contains('/'));
    if tagged { format!("{image}-{architecture}") } else { format!("{image}:latest-{architecture}") }
}

/// Caches that are read, in order: what the part itself wrote before the others.
pub(super) fn imports(build: &ImageBuild, part: &Part) -> Vec<CacheImport> {
    let Some(registry) = registry(build, part) else { return Vec::new() };
    let mut names = Vec::new();
    for from in &registry.from {
        names.push(of_part(&from.image, part));
        names.push(from.image.clone());
    }
    let mut known = BTreeSet::new();
    names.retain(|name| known.insert(name.clone()));
    names.into_iter().map(|reference| CacheImport::Registry { reference, insecure: false }).collect()
}

/// Caches that are written.
pub(super) fn exports(build: &ImageBuild, part: &Part) -> Vec<CacheExport> {
    let Some(registry) = registry(build, part) else { return Vec::new() };
    let to = registry.to.as_ref().map(|to| CacheExport {
        mode: match to.mode {
            CacheExportMode::Min => CacheMode::Min,
            CacheExportMode::Max => CacheMode::Max,
        },
        ignore_error: to.ignore_error,
        ..CacheExport::new(CacheTarget::Registry { reference: of_part(&to.image, part), insecure: false })
    });
    to.into_iter().chain(registry.inline.then(|| CacheExport::new(CacheTarget::Inline))).collect()
}

/// Secrets with credentials that only the caches need, each once.
fn secrets(build: &ImageBuild) -> Vec<&str> {
    let Some(registry) = &build.spec.cache.registry else { return Vec::new() };
    let from = registry.from.iter().filter_map(|from| from.secret_ref.as_ref());
    let to = registry.to.iter().filter_map(|to| to.secret_ref.as_ref());
    let known = build.spec.output.secret_ref.as_ref().map(|secret| secret.name.as_str());
    let mut names: Vec<&str> =
        from.chain(to).map(|secret| secret.name.as_str()).filter(|name| Some(*name) != known).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn dir(number: usize) -> String {
    format!("{}/cache-{number}", paths::DOCKER_CONFIGS_DIR)
}

/// Files with those credentials.
pub(super) fn docker_configs(build: &ImageBuild) -> Vec<String> {
    (0..secrets(build).len()).map(|number| format!("{}/config.json", dir(number))).collect()
}

/// The volumes that bring them into the pod.
pub(super) fn volumes(build: &ImageBuild) -> Vec<(Volume, VolumeMount)> {
    let volume = |(number, secret): (usize, &str)| {
        let name = format!("{}-cache-{number}", crate::plan::pod::CREDENTIALS);
        let source = SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            items: Some(vec![KeyToPath {
                key: ".dockerconfigjson".to_owned(),
                path: "config.json".to_owned(),
                mode: None,
            }]),
            optional: Some(false),
            default_mode: Some(0o400),
        };
        let mount = VolumeMount {
            name: name.clone(),
            mount_path: dir(number),
            read_only: Some(true),
            ..VolumeMount::default()
        };
        (Volume { name, secret: Some(source), ..Volume::default() }, mount)
    };
    secrets(build).into_iter().enumerate().map(volume).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use lapstrake_crds::{CacheVolume, SecretReference};

    use super::*;
    use crate::plan::parts::divide;
    use crate::plan::tests::{build, settings};

    fn cached() -> ImageBuild {
        let mut build = build();
        build.spec.cache.registry = Some(CacheRegistry {
            from: vec![lapstrake_crds::CacheImport {
                image: "registry.example:5000/web:cache".into(),
                secret_ref: Some(SecretReference { name: "reads".into() }),
            }],
            to: Some(lapstrake_crds::CacheExport {
                image: "registry.example:5000/web".into(),
                mode: CacheExportMode::Max,
                ..lapstrake_crds::CacheExport::default()
            }),
            inline: true,
        });
        build
    }

    fn parts(build: &ImageBuild) -> Vec<Part> {
        divide(build, &lapstrake_crds::ImageBuildStatus::default(), &settings())
    }

    fn read(imports: Vec<CacheImport>) -> Vec<String> {
        imports
            .into_iter()
            .filter_map(|import| match import {
                CacheImport::Registry { reference, .. } => Some(reference),
                CacheImport::Local { .. } | CacheImport::Store(_) => None,
            })
            .collect()
    }

    #[test]
    fn one_pod_reads_and_writes_what_the_spec_names() {
        let build = cached();
        let part = &parts(&build)[0];
        assert_eq!(read(imports(&build, part)), ["registry.example:5000/web:cache"]);
        let exports = exports(&build, part);
        assert_eq!(exports.len(), 2);
        assert_eq!((exports[0].mode, &exports[1].to), (CacheMode::Max, &CacheTarget::Inline));
        assert_eq!(docker_configs(&build).len(), 1);
        assert_eq!(volumes(&build)[0].0.secret.as_ref().unwrap().secret_name.as_deref(), Some("reads"));
    }

    #[test]
    fn pods_of_several_platforms_write_caches_of_their_own_and_read_them_first() {
        let mut build = cached();
        build.spec.platforms = vec!["linux/amd64".into(), "linux/arm64".into()];
        let arm =
            parts(&build).into_iter().find(|part| part.architecture.as_deref() == Some("arm64")).unwrap();
        assert_eq!(
            read(imports(&build, &arm)),
            ["registry.example:5000/web:cache-arm64", "registry.example:5000/web:cache"]
        );
        let to = exports(&build, &arm).remove(0).to;
        let reference = "registry.example:5000/web:latest-arm64".to_owned();
        assert_eq!(to, CacheTarget::Registry { reference, insecure: false });
    }

    #[test]
    fn a_cache_leaves_room_for_the_build_under_way() {
        let mut build = build();
        let part = &parts(&build)[0];
        let volume = |max_size: Option<&str>| CacheVolume {
            size: Some(Quantity("10Gi".into())),
            max_size: max_size.map(|size| Quantity(size.into())),
            ..CacheVolume::default()
        };
        build.spec.cache.volume = Some(volume(None));
        assert_eq!(max_bytes(&build, part, &settings()), Some((10 << 30) / 10 * 9));
        build.spec.cache.volume = Some(volume(Some("4Gi")));
        assert_eq!(max_bytes(&build, part, &settings()), Some(4 << 30));
    }
}
