//! The builder pod, in both sandboxes.
//!
//! Holds: never privileged, no host path, no host namespace, no service account token; root in it is
//! an ordinary user of the node.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, KeyToPath,
    LocalObjectReference, PersistentVolumeClaimVolumeSource, Pod, PodSchedulingGate, PodSpec,
    ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, Toleration, Volume,
    VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use lapstrake_crds::{ImageBuild, Medium, Sandbox, label};
use lapstrake_handoff::paths;

use crate::cache::GATE;
use crate::names;
use crate::observe::{CONTAINER, INDEX, STATE_VOLUME};
use crate::plan::caches;
use crate::plan::inputs;
use crate::plan::objects::{CachePlace, cache_place, metadata};
use crate::plan::parts::{Kind, Part};
use crate::plan::turn::slot_platform;
use crate::settings::{AppArmor, Settings, limits};

/// Capabilities in the pod's own user namespace that a builder needs to unpack and run images.
const CAPABILITIES: [&str; 9] =
    ["SYS_CHROOT", "SETUID", "SETGID", "CHOWN", "DAC_OVERRIDE", "FOWNER", "MKNOD", "SETFCAP", "KILL"];
/// The one more that lets it mount without nesting a further user namespace.
const MOUNT_CAPABILITY: &str = "SYS_ADMIN";
/// Name of the volume with the registry credentials.
pub(crate) const CREDENTIALS: &str = "docker-config";
/// Where programs of the builder keep what they need for a moment.
const TMP: &str = "/tmp";

/// What one pod is made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PodFor<'a> {
    /// Run.
    pub run: &'a str,
    /// Attempt, from 1.
    pub attempt: u32,
    /// Its share of the run.
    pub part: &'a Part,
    /// Sandbox, decided.
    pub sandbox: Sandbox,
    /// Names of the `imagePullSecrets` of its ServiceAccount.
    pub pull_secrets: &'a [String],
    /// Claim of its slot of a shared cache.
    pub slot: Option<&'a str>,
}

/// The builder pod of one attempt.
pub(crate) fn pod(build: &ImageBuild, of: PodFor<'_>, settings: &Settings) -> Pod {
    let name = build.metadata.name.as_deref().unwrap_or_default();
    let wish = &build.spec.pod;
    let (volumes, mounts) = volumes(build, of, settings);
    let component = match of.part.kind {
        Kind::Build => "builder",
        Kind::Index => INDEX,
    };
    let mut metadata = metadata(build, names::pod(name, of.run, of.attempt, of.part.key()), component);
    let labels = metadata.labels.get_or_insert_default();
    // Sidecars would outlive the builder; a wish in the spec can turn them on again.
    labels.insert("sidecar.istio.io/inject".to_owned(), "false".to_owned());
    labels.extend(wish.labels.clone());
    labels.insert(label::RUN.to_owned(), of.run.to_owned());
    labels.insert(label::ATTEMPT.to_owned(), of.attempt.to_string());
    if of.part.kind == Kind::Build && !of.part.platforms.is_empty() {
        labels.insert(label::PLATFORM.to_owned(), of.part.platform_label());
    }
    if let (Some(_), Some(cache)) = (of.slot, shared_cache(build)) {
        labels.insert(label::CACHE.to_owned(), cache.to_owned());
        labels.insert(label::CACHE_PLATFORM.to_owned(), slot_platform(of.part));
    }
    metadata.annotations = Some(annotations(build));
    let defaults = &settings.defaults;
    let pull_secrets: Vec<_> =
        defaults.image_pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect();
    Pod {
        metadata,
        spec: Some(PodSpec {
            host_users: Some(false),
            // It mounts nothing before its slot is its own.
            scheduling_gates: of.slot.map(|_| vec![PodSchedulingGate { name: GATE.to_owned() }]),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            restart_policy: Some("Never".to_owned()),
            termination_grace_period_seconds: seconds(limits::TERMINATION_GRACE),
            active_deadline_seconds: seconds(build.spec.timeout() + limits::DEADLINE_MARGIN),
            service_account_name: wish.service_account_name.clone(),
            priority_class_name: wish.priority_class_name.clone(),
            image_pull_secrets: (!pull_secrets.is_empty()).then_some(pull_secrets),
            node_selector: Some(node_selector(build, of.part, settings)),
            tolerations: Some(tolerations(build, of.part, settings)),
            affinity: wish.affinity.clone(),
            containers: vec![container(build, of, mounts, settings)],
            volumes: Some(volumes),
            ..PodSpec::default()
        }),
        status: None,
    }
}

/// The shared cache that the spec names.
fn shared_cache(build: &ImageBuild) -> Option<&str> {
    build.spec.cache.volume.as_ref()?.name.as_deref()
}

fn seconds(length: std::time::Duration) -> Option<i64> {
    i64::try_from(length.as_secs()).ok()
}

fn annotations(build: &ImageBuild) -> BTreeMap<String, String> {
    let mut annotations = BTreeMap::from([
        ("karpenter.sh/do-not-disrupt".to_owned(), "true".to_owned()),
        ("cluster-autoscaler.kubernetes.io/safe-to-evict".to_owned(), "false".to_owned()),
    ]);
    annotations.extend(build.spec.pod.annotations.clone());
    annotations
}

fn container(build: &ImageBuild, of: PodFor<'_>, mounts: Vec<VolumeMount>, settings: &Settings) -> Container {
    let args = ["pod", "--request", paths::REQUEST_FILE];
    Container {
        name: CONTAINER.to_owned(),
        image: Some(settings.builder_image.clone()),
        image_pull_policy: settings.defaults.image_pull_policy.clone(),
        args: Some(args.map(str::to_owned).to_vec()),
        resources: Some(resources(build, of.part, settings)),
        security_context: Some(security_context(of.sandbox, settings.app_armor)),
        termination_message_path: Some(paths::TERMINATION_MESSAGE.to_owned()),
        termination_message_policy: Some("File".to_owned()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn security_context(sandbox: Sandbox, app_armor: AppArmor) -> SecurityContext {
    let mounts_itself = sandbox != Sandbox::Baseline;
    let mut add: Vec<String> = CAPABILITIES.map(str::to_owned).to_vec();
    if mounts_itself {
        add.push(MOUNT_CAPABILITY.to_owned());
    }
    SecurityContext {
        run_as_user: Some(0),
        run_as_group: Some(0),
        proc_mount: Some("Unmasked".to_owned()),
        read_only_root_filesystem: Some(true),
        // A process that gains SYS_ADMIN by a file's capability is inside the same user namespace.
        allow_privilege_escalation: Some(true),
        capabilities: Some(Capabilities { add: Some(add), drop: Some(vec!["ALL".to_owned()]) }),
        // The default profile lets a process mount only when it has SYS_ADMIN: without it, the
        // builder's own filter takes its place around every step.
        seccomp_profile: mounts_itself
            .then(|| SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        app_armor_profile: (mounts_itself && app_armor == AppArmor::Unconfined)
            .then(|| AppArmorProfile { type_: "Unconfined".to_owned(), localhost_profile: None }),
        ..SecurityContext::default()
    }
}

/// Requests and limits: the spec's where it has any, else the operator's.
fn resources(build: &ImageBuild, part: &Part, settings: &Settings) -> ResourceRequirements {
    let defaults = &settings.defaults.resources;
    let own = part.wish(build).and_then(|wish| wish.resources.as_ref());
    let wish = own.or(build.spec.pod.resources.as_ref());
    let pick = |own: Option<&BTreeMap<String, Quantity>>, default: &BTreeMap<String, Quantity>| {
        let chosen = own.filter(|own| !own.is_empty()).unwrap_or(default);
        (!chosen.is_empty()).then(|| chosen.clone())
    };
    let limits = pick(wish.map(|wish| &wish.limits), &defaults.limits);
    let mut requests = pick(wish.map(|wish| &wish.requests), &defaults.requests);
    // A default request above the limit that the spec sets would be refused.
    let own_requests = wish.is_some_and(|wish| !wish.requests.is_empty());
    if let (Some(requests), Some(limits), false) = (&mut requests, &limits, own_requests) {
        requests.retain(|name, _| !limits.contains_key(name));
    }
    ResourceRequirements { requests: requests.filter(|map| !map.is_empty()), limits, claims: None }
}

fn node_selector(build: &ImageBuild, part: &Part, settings: &Settings) -> BTreeMap<String, String> {
    let mut selector = settings.defaults.node_selector.clone();
    selector.extend(build.spec.pod.node_selector.clone());
    selector.insert("kubernetes.io/os".to_owned(), "linux".to_owned());
    selector.extend(part.wish(build).map(|wish| wish.node_selector.clone()).unwrap_or_default());
    if let Some(architecture) = &part.architecture {
        selector.insert("kubernetes.io/arch".to_owned(), architecture.clone());
    }
    selector
}

fn tolerations(build: &ImageBuild, part: &Part, settings: &Settings) -> Vec<Toleration> {
    let mut tolerations = settings.defaults.tolerations.clone();
    tolerations.extend(build.spec.pod.tolerations.clone());
    tolerations.extend(part.wish(build).map(|wish| wish.tolerations.clone()).unwrap_or_default());
    if let Some(architecture) = &part.architecture {
        // Some clusters taint the nodes of their rarer architecture with its name.
        tolerations.push(Toleration {
            key: Some("kubernetes.io/arch".to_owned()),
            operator: Some("Equal".to_owned()),
            value: Some(architecture.clone()),
            effect: Some("NoSchedule".to_owned()),
            ..Toleration::default()
        });
    }
    tolerations
}

fn volumes(build: &ImageBuild, of: PodFor<'_>, settings: &Settings) -> (Vec<Volume>, Vec<VolumeMount>) {
    let name = build.metadata.name.as_deref().unwrap_or_default();
    let named = |name: &str| Volume { name: name.to_owned(), ..Volume::default() };
    let mount = |name: &str, path: &str, read_only: bool| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    };
    let mut state = named(STATE_VOLUME);
    match cache_place(build, of.part, settings) {
        CachePlace::Volume(_) => {
            state.persistent_volume_claim = Some(PersistentVolumeClaimVolumeSource {
                claim_name: names::cache(name, of.part.cache_key().as_deref()),
                read_only: None,
            });
        }
        CachePlace::Shared(_) => match of.slot {
            Some(claim) => {
                state.persistent_volume_claim =
                    Some(PersistentVolumeClaimVolumeSource { claim_name: claim.to_owned(), read_only: None });
            }
            // All slots are taken, and the spec would rather start from nothing than wait.
            None => state.empty_dir = Some(EmptyDirVolumeSource::default()),
        },
        CachePlace::EmptyDir(dir) => {
            state.empty_dir = Some(EmptyDirVolumeSource {
                medium: (dir.medium == Medium::Memory).then(|| "Memory".to_owned()),
                size_limit: dir.size_limit,
            });
        }
    }
    let request = Volume {
        config_map: Some(ConfigMapVolumeSource {
            name: names::pod(name, of.run, of.attempt, of.part.key()),
            ..ConfigMapVolumeSource::default()
        }),
        ..named("request")
    };
    let tmp = Volume { empty_dir: Some(EmptyDirVolumeSource::default()), ..named("tmp") };
    let mut volumes = vec![request, state, tmp];
    let mut mounts = vec![
        mount("request", paths::REQUEST_DIR, true),
        mount(STATE_VOLUME, paths::STATE_DIR, false),
        mount("tmp", TMP, false),
    ];
    if let Some(secret) = &build.spec.output.secret_ref {
        volumes.push(Volume {
            secret: Some(SecretVolumeSource {
                secret_name: Some(secret.name.clone()),
                items: Some(vec![KeyToPath {
                    key: ".dockerconfigjson".to_owned(),
                    path: "config.json".to_owned(),
                    mode: None,
                }]),
                // The kubelet waits for a Secret that does not exist yet.
                optional: Some(false),
                default_mode: Some(0o400),
            }),
            ..named(CREDENTIALS)
        });
        mounts.push(mount(CREDENTIALS, &docker_config_dir(), true));
    }
    inputs::mount(&of.part.needs(build), of.pull_secrets, settings, &mut volumes, &mut mounts);
    for (volume, mount) in caches::volumes(build) {
        volumes.push(volume);
        mounts.push(mount);
    }
    (volumes, mounts)
}

/// Folder that the registry credentials of the spec are mounted at.
fn docker_config_dir() -> String {
    format!("{}/output", paths::DOCKER_CONFIGS_DIR)
}

/// The registry credentials themselves.
pub fn docker_config_path() -> String {
    format!("{}/config.json", docker_config_dir())
}
