//! Devices of steps, as the Container Device Interface describes them: files that say what a container that is given a
//! device has to see.
//!
//! Device nodes are shown as the builder has them, with their owner and mode. What a file asks for beyond nodes, mounts
//! and variables is told in the step's output and left out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use lapstrake_handoff::Reason;
use lapstrake_llb::pb;
use lapstrake_run::{MountSource, StepMount};
use serde::Deserialize;

use crate::error::BuildError;

/// Of a device or a file: the name that devices of several vendors share.
const CLASS: &str = "org.mobyproject.buildkit.device.class";
/// The same: that no entitlement is needed for it.
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";
/// A file of descriptions is no longer than this.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// Names that an error lists.
const NAMES_MAX: usize = 20;

/// Which devices steps may have.
#[derive(Debug, Clone, Default)]
pub(crate) struct Granted {
    /// By the client's entitlements; every one where a name is empty.
    pub(crate) names: BTreeSet<String>,
    /// By the administrator: devices and kinds.
    pub(crate) auto: Vec<String>,
}

/// A device as clients are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Described {
    /// Its full name.
    pub(crate) name: String,
    /// Whether it needs no entitlement.
    pub(crate) auto_allow: bool,
    /// What is said of it and of its file.
    pub(crate) annotations: BTreeMap<String, String>,
}

/// All devices that are described now; `auto` are those that the administrator allows. Blocking.
pub(crate) fn list(dirs: &[PathBuf], auto: &[String]) -> Vec<Described> {
    let mut registry = Registry::new();
    dirs.iter().for_each(|dir| read_directory(dir, &mut registry, &mut Vec::new()));
    let described = |(name, known): (String, Known)| Described {
        auto_allow: is_auto(auto, &name, &known),
        name,
        annotations: known.annotations,
    };
    registry.into_iter().map(described).collect()
}

fn is_auto(auto: &[String], name: &str, known: &Known) -> bool {
    let kind = name.split('=').next().unwrap_or_default();
    let said = known.annotations.get(AUTO_ALLOW).map(|text| text.to_ascii_lowercase());
    auto.iter().any(|one| one == name || one == kind)
        || said.is_some_and(|text| matches!(text.as_str(), "1" | "t" | "true"))
}

/// Refuses those of `names` that nobody granted.
fn check(registry: &Registry, names: &[&str], granted: &Granted) -> Result<(), BuildError> {
    if granted.names.contains("") {
        return Ok(());
    }
    let by_client: BTreeSet<&str> = granted.names.iter().flat_map(|name| find(registry, name)).collect();
    let may = |name: &&&str| {
        by_client.contains(**name)
            || registry.get(**name).is_some_and(|known| is_auto(&granted.auto, name, known))
    };
    let refused: Vec<&str> = names.iter().filter(|name| !may(name)).copied().collect();
    let message = match refused[..] {
        [] => return Ok(()),
        [one] => format!("device {one} is requested by the build but not allowed"),
        _ => format!("devices {} are requested by the build but not allowed", refused.join(", ")),
    };
    Err(BuildError::new(Reason::StepFailed, message))
}

/// What steps are given for their devices.
#[derive(Debug, Default)]
pub(super) struct Edits {
    pub(super) mounts: Vec<StepMount>,
    /// `NAME=value`
    pub(super) env: Vec<String>,
    /// What was left out, in words.
    pub(super) notes: Vec<String>,
}

/// A file of descriptions.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: ContainerEdits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: ContainerEdits,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerEdits {
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    device_nodes: Vec<Node>,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(default)]
    hooks: Vec<serde_json::Value>,
    #[serde(default, rename = "additionalGids")]
    additional_gids: Vec<u32>,
    #[serde(default)]
    net_devices: Vec<serde_json::Value>,
    intel_rdt: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Node {
    path: String,
    host_path: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    host_path: String,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
}

/// A device that is described.
#[derive(Debug, Clone)]
struct Known {
    /// Of the file, and of the device, which wins.
    annotations: BTreeMap<String, String>,
    /// Those of the file, then those of the device.
    edits: [ContainerEdits; 2],
}

/// Devices by their full names, `vendor/class=name`.
type Registry = BTreeMap<String, Known>;

/// What a step that asks for these devices is given; files of later directories win. Blocking.
///
/// # Errors
/// A device that is required is not known, or one that is known was not granted.
pub(super) fn edits(
    dirs: &[PathBuf],
    wanted: &[pb::CdiDevice],
    granted: &Granted,
) -> Result<Edits, BuildError> {
    let mut edits = Edits::default();
    if wanted.is_empty() {
        return Ok(edits);
    }
    let mut registry = Registry::new();
    for dir in dirs {
        read_directory(dir, &mut registry, &mut edits.notes);
    }
    let mut names: Vec<&str> = Vec::new();
    for device in wanted {
        let found = find(&registry, &device.name);
        if found.is_empty() && !device.optional {
            return Err(unknown(&device.name, dirs, &registry));
        }
        if found.is_empty() {
            edits.notes.push(format!("device {} is not known here, and not required", device.name));
        }
        for name in found {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    check(&registry, &names, granted)?;
    for name in names {
        for part in registry.get(name).iter().flat_map(|known| &known.edits) {
            add(&mut edits, name, part);
        }
    }
    Ok(edits)
}

/// The devices of a name: one, the first or all (`*`) of a kind, or those of a class.
fn find<'a>(registry: &'a Registry, name: &str) -> Vec<&'a str> {
    let (kind, device) = name.split_once('=').unwrap_or((name, ""));
    let prefix = format!("{kind}=");
    let mut found: Vec<&str> = Vec::new();
    if kind.contains('/') {
        let of_kind = registry.keys().map(String::as_str).filter(|known| known.starts_with(&prefix));
        match device {
            "" => found.extend(of_kind.take(1)),
            "*" => found.extend(of_kind),
            _ => found.extend(registry.get_key_value(name).map(|(name, _)| name.as_str())),
        }
    }
    if found.is_empty() {
        let of_class = registry
            .iter()
            .filter(|(_, known)| known.annotations.get(CLASS).is_some_and(|class| class == name));
        found.extend(of_class.map(|(name, _)| name.as_str()));
    }
    found
}

fn unknown(name: &str, dirs: &[PathBuf], registry: &Registry) -> BuildError {
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let known: Vec<_> = registry.keys().take(NAMES_MAX).map(String::as_str).collect();
    let known = match known.is_empty() {
        true => "no device is described there".to_owned(),
        false => format!("described there are {}", known.join(", ")),
    };
    let message = format!(
        "required device {name} is not registered: no file in {} describes it; {known}; leave \"required\" out if the \
         step can do without",
        dirs.join(" or ")
    );
    BuildError::new(Reason::StepFailed, message)
}

fn add(edits: &mut Edits, name: &str, part: &ContainerEdits) {
    edits.env.extend(part.env.iter().cloned());
    for node in &part.device_nodes {
        let from = node.host_path.as_ref().unwrap_or(&node.path);
        edits.mounts.push(StepMount::new(&node.path, MountSource::Device(PathBuf::from(from))));
    }
    for mount in &part.mounts {
        let has = |option: &str| mount.options.iter().any(|own| own == option);
        let source = MountSource::Bind(PathBuf::from(&mount.host_path));
        edits.mounts.push(StepMount {
            readonly: has("ro"),
            nosuid: has("nosuid"),
            noexec: has("noexec"),
            ..StepMount::new(&mount.container_path, source)
        });
    }
    for (what, there) in [
        ("hooks", !part.hooks.is_empty()),
        ("additional groups", !part.additional_gids.is_empty()),
        ("network devices", !part.net_devices.is_empty()),
        ("cache allocations", part.intel_rdt.is_some()),
    ] {
        if there {
            edits.notes.push(format!("device {name} asks for {what}, which steps are not given"));
        }
    }
}

/// Reads the files of a directory, in the order of their names. A file that can't be read describes nothing.
fn read_directory(dir: &Path, registry: &mut Registry, notes: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "json" || e == "yaml" || e == "yml"));
    paths.sort();
    for path in paths {
        match read_file(&path) {
            Ok(spec) => register(spec, registry),
            Err(why) => notes.push(format!("{} describes no devices: {why}", path.display())),
        }
    }
}

fn read_file(path: &Path) -> Result<Spec, String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("it is larger than {FILE_BYTES_MAX} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    // JSON is YAML too, but its parser says more of what is wrong.
    match path.extension().is_some_and(|e| e == "json") {
        true => serde_json::from_str(&text).map_err(|e| e.to_string()),
        false => serde_saphyr::from_str(&text).map_err(|e| e.to_string()),
    }
}

fn register(spec: Spec, registry: &mut Registry) {
    for device in spec.devices {
        let mut annotations = spec.annotations.clone();
        annotations.extend(device.annotations);
        let edits = [spec.container_edits.clone(), device.container_edits];
        registry.insert(format!("{}={}", spec.kind, device.name), Known { annotations, edits });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        let yaml = "cdiVersion: 0.6.0\nkind: vendor.example/net\nannotations: {org.mobyproject.buildkit.device.class: nets}\n\
                    devices:\n- name: b\n  containerEdits: {env: [B=1]}\n- name: a\n  containerEdits:\n    \
                    deviceNodes: [{path: /dev/a, hostPath: /dev/null}]\n    hooks: [{hookName: prestart, path: /x}]\n";
        let json = r#"{"cdiVersion":"0.6.0","kind":"vendor.example/gpu","devices":[{"name":"0","containerEdits":{
            "mounts":[{"hostPath":"/lib","containerPath":"/l","options":["ro","nosuid"]}]}}],
            "containerEdits":{"env":["ALL=1"]}}"#;
        std::fs::write(dir.path().join("net.yaml"), yaml).expect("written");
        std::fs::write(dir.path().join("gpu.json"), json).expect("written");
        std::fs::write(dir.path().join("bad.json"), "{").expect("written");
        std::fs::write(dir.path().join("readme.txt"), "{").expect("written");
        dir
    }

    fn all() -> Granted {
        Granted { names: BTreeSet::from([String::new()]), auto: Vec::new() }
    }

    #[test]
    fn a_device_that_nobody_granted_is_refused_by_name() {
        let dir = directory();
        let dirs = [dir.path().to_owned()];
        let ask = |names: &[&str], auto: &[&str]| {
            let granted = Granted {
                names: names.iter().map(|name| (*name).to_owned()).collect(),
                auto: auto.iter().map(|name| (*name).to_owned()).collect(),
            };
            let wanted = [asked("vendor.example/net=a", false), asked("vendor.example/net=b", false)];
            edits(&dirs, &wanted, &granted).map(drop).map_err(|error| error.to_string())
        };
        let both = ask(&[], &[]).expect_err("nothing is granted");
        assert!(both.contains("devices vendor.example/net=a, vendor.example/net=b are requested"), "{both}");
        let one = ask(&["vendor.example/net=b"], &[]).expect_err("one is granted");
        assert!(
            one.contains("device vendor.example/net=a is requested by the build but not allowed"),
            "{one}"
        );
        for (names, auto) in [
            (&["nets"][..], &[][..]),
            (&["vendor.example/net=*"], &[]),
            (&[], &["vendor.example/net"]),
            (&["vendor.example/net=a"], &["vendor.example/net=b"]),
        ] {
            assert_eq!(ask(names, auto), Ok(()), "{names:?} {auto:?}");
        }
        let listed = list(&dirs, &["vendor.example/gpu".to_owned()]);
        let listed: Vec<_> = listed.iter().map(|one| (one.name.as_str(), one.auto_allow)).collect();
        assert_eq!(
            listed,
            [
                ("vendor.example/gpu=0", true),
                ("vendor.example/net=a", false),
                ("vendor.example/net=b", false)
            ]
        );
    }

    fn asked(name: &str, optional: bool) -> pb::CdiDevice {
        pb::CdiDevice { name: name.to_owned(), optional }
    }

    #[test]
    fn a_name_stands_for_a_device_a_kind_or_a_class() {
        let dir = directory();
        let (mut registry, mut notes) = (Registry::new(), Vec::new());
        read_directory(dir.path(), &mut registry, &mut notes);
        let (a, b) = ("vendor.example/net=a", "vendor.example/net=b");
        for (name, found) in [
            ("vendor.example/net=b", &[b][..]),
            ("vendor.example/net", &[a]),
            ("vendor.example/net=*", &[a, b]),
            ("nets", &[a, b]),
            ("vendor.example/net=c", &[]),
            ("other", &[]),
        ] {
            assert_eq!(find(&registry, name), found, "{name}");
        }
        assert!(matches!(&notes[..], [one] if one.contains("bad.json")), "{notes:?}");
    }

    #[test]
    fn a_device_brings_nodes_mounts_and_variables_and_says_what_it_lacks() {
        let dir = directory();
        let dirs = [dir.path().to_owned()];
        let edits = edits(
            &dirs,
            &[asked("vendor.example/gpu=0", false), asked("vendor.example/net=a", false)],
            &all(),
        );
        let edits = edits.expect("known");
        assert_eq!(edits.env, ["ALL=1"]);
        let [mount, node] = &edits.mounts[..] else { panic!("{:?}", edits.mounts) };
        assert!(mount.readonly && mount.nosuid && !mount.noexec);
        assert_eq!(node.source, MountSource::Device(PathBuf::from("/dev/null")));
        assert!(edits.notes.iter().any(|note| note.contains("asks for hooks")), "{:?}", edits.notes);
    }

    #[test]
    fn a_required_device_that_is_not_there_is_an_error_and_another_one_a_note() {
        let dir = directory();
        let dirs = [dir.path().to_owned()];
        let error = edits(&dirs, &[asked("a/b=c", false)], &all()).expect_err("unknown").to_string();
        assert!(error.contains("required device a/b=c") && error.contains("vendor.example/gpu=0"), "{error}");
        let optional = edits(&dirs, &[asked("a/b=c", true)], &all()).expect("optional");
        assert!(optional.mounts.is_empty() && optional.notes.iter().any(|note| note.contains("a/b=c")));
    }
}
