//! The objects beside the pod: the mounted request and the cache volume.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use lapstrake_crds::{CacheEmptyDir, CacheVolume, ImageBuild, label};

use crate::cache::claims::claim_spec;
use crate::names;
use crate::plan::parts::{Kind, Part};
use crate::plan::turn::slot_platform;
use crate::settings::{CacheKind, Settings};

/// Key of the request in its ConfigMap.
pub(crate) const REQUEST_KEY: &str = "request.json";
/// Key of the registries' settings in the same ConfigMap.
pub(crate) const REGISTRIES_KEY: &str = "registries.json";

/// Where a run keeps its cache.
#[derive(Clone, Debug)]
pub(crate) enum CachePlace {
    /// On a volume of its own.
    Volume(CacheVolume),
    /// On a slot of a cache that several share.
    Shared(CacheVolume),
    /// In a directory that goes with the pod.
    EmptyDir(CacheEmptyDir),
}

/// Where a part of this ImageBuild keeps its cache.
pub(crate) fn cache_place(build: &ImageBuild, part: &Part, settings: &Settings) -> CachePlace {
    if part.kind == Kind::Index {
        return CachePlace::EmptyDir(CacheEmptyDir::default());
    }
    let cache = &build.spec.cache;
    let place = match (&cache.volume, &cache.empty_dir, settings.defaults.cache.kind) {
        (_, Some(dir), _) => CachePlace::EmptyDir(dir.clone()),
        _ if cache.none.is_some() => CachePlace::EmptyDir(CacheEmptyDir::default()),
        (Some(volume), None, _) if volume.name.is_some() => CachePlace::Shared(volume.clone()),
        (Some(volume), None, _) => CachePlace::Volume(volume.clone()),
        (None, None, CacheKind::Volume) => CachePlace::Volume(CacheVolume::default()),
        (None, None, CacheKind::EmptyDir) => CachePlace::EmptyDir(CacheEmptyDir::default()),
    };
    match (place, part.wish(build).and_then(|wish| wish.cache_volume.as_ref())) {
        (CachePlace::Volume(volume), Some(own)) => CachePlace::Volume(CacheVolume {
            size: own.size.clone().or(volume.size),
            storage_class_name: own.storage_class_name.clone().or(volume.storage_class_name),
            ..volume
        }),
        (place, _) => place,
    }
}

/// Labels of everything that is made for this ImageBuild.
pub(crate) fn labels(build: &ImageBuild, component: &str) -> BTreeMap<String, String> {
    let meta = &build.metadata;
    [
        ("app.kubernetes.io/name", "lapstrake-builder".to_owned()),
        ("app.kubernetes.io/component", component.to_owned()),
        ("app.kubernetes.io/part-of", "lapstrake".to_owned()),
        ("app.kubernetes.io/managed-by", "lapstrake-operator".to_owned()),
        (label::BUILD, names::label_value(meta.name.as_deref().unwrap_or_default())),
        (label::BUILD_UID, meta.uid.clone().unwrap_or_default()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

/// Says that the object goes when the ImageBuild goes.
pub(crate) fn owner(build: &ImageBuild) -> OwnerReference {
    OwnerReference {
        api_version: ImageBuild::api_version(&()).into_owned(),
        kind: ImageBuild::kind(&()).into_owned(),
        name: build.metadata.name.clone().unwrap_or_default(),
        uid: build.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Metadata of an object of this ImageBuild.
pub(crate) fn metadata(build: &ImageBuild, name: String, component: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: build.metadata.namespace.clone(),
        labels: Some(labels(build, component)),
        owner_references: Some(vec![owner(build)]),
        ..ObjectMeta::default()
    }
}

/// The ConfigMap that the request is mounted from: it has its pod's name, and is never changed.
pub(crate) fn request_map(
    build: &ImageBuild,
    name: String,
    run: &str,
    request: String,
    settings: &Settings,
) -> ConfigMap {
    let mut data = BTreeMap::from([(REQUEST_KEY.to_owned(), request)]);
    if !settings.registries.is_empty() {
        data.insert(REGISTRIES_KEY.to_owned(), settings.registries.clone());
    }
    data.extend(crate::plan::inputs::request_files(build, settings));
    let mut metadata = metadata(build, name, "request");
    metadata.labels.get_or_insert_default().insert(label::RUN.to_owned(), run.to_owned());
    ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }
}

/// The cache volume.
pub(crate) fn cache_claim(
    build: &ImageBuild,
    part: &Part,
    volume: &CacheVolume,
    settings: &Settings,
) -> PersistentVolumeClaim {
    let name = build.metadata.name.as_deref().unwrap_or_default();
    let mut metadata = metadata(build, names::cache(name, part.cache_key().as_deref()), "cache");
    let labels = metadata.labels.get_or_insert_default();
    labels.insert(label::CACHE.to_owned(), names::label_value(name));
    labels.insert(label::CACHE_PLATFORM.to_owned(), slot_platform(part));
    PersistentVolumeClaim { metadata, spec: Some(claim_spec(volume, settings)), status: None }
}
