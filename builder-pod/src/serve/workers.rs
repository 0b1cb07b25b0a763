//! Workers as `buildctl debug workers` shows them: scripts read these tables.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use lapstrake_api::control::types::{GcPolicy, WorkerRecord};
use lapstrake_api::pb::Platform;
use serde::Serialize;

/// One line a worker.
pub(crate) fn table(workers: &[WorkerRecord]) -> String {
    let mut text = "ID\tPLATFORMS\n".to_owned();
    for worker in workers {
        put(&mut text, format_args!("{}\t{}\n", worker.id, platforms(&worker.platforms)));
    }
    aligned(&text)
}

/// All that is known.
pub(crate) fn verbose(workers: &[WorkerRecord]) -> String {
    let mut text = String::new();
    for worker in workers {
        put(&mut text, format_args!("ID:\t{}\n", worker.id));
        put(&mut text, format_args!("Platforms:\t{}\n", platforms(&worker.platforms)));
        let version = worker.buildkit_version.clone().unwrap_or_default();
        put(
            &mut text,
            format_args!("BuildKit:\t{} {} {}\n", version.package, version.version, version.revision),
        );
        text.push_str("Labels:\n");
        for (name, value) in sorted(&worker.labels) {
            put(&mut text, format_args!("\t{name}:\t{value}\n"));
        }
        if !worker.cdi_devices.is_empty() {
            text.push_str("Devices:\n");
            for device in &worker.cdi_devices {
                put(&mut text, format_args!("\tName:\t{}\n", device.name));
                match device.on_demand {
                    true => text.push_str("\tOnDemand:\ttrue\n"),
                    false => put(&mut text, format_args!("\tAutoAllow:\t{}\n", device.auto_allow)),
                }
                for (name, value) in sorted(&device.annotations) {
                    put(&mut text, format_args!("\tAnnotations:\t{name}:\t{value}\n"));
                }
            }
            text.push('\n');
        }
        for (number, rule) in worker.gc_policy.iter().enumerate() {
            put(&mut text, format_args!("GC Policy rule#{number}:\n"));
            policy(&mut text, rule);
        }
        text.push('\n');
    }
    aligned(&text)
}

fn policy(text: &mut String, rule: &GcPolicy) {
    put(text, format_args!("\tAll:\t{}\n", rule.all));
    if !rule.filters.is_empty() {
        put(text, format_args!("\tFilters:\t{}\n", rule.filters.join(" ")));
    }
    if rule.keep_duration > 0 {
        put(text, format_args!("\tKeep duration:\t{}\n", go_duration(rule.keep_duration)));
    }
    for (name, bytes) in [
        ("Reserved space", rule.reserved_space),
        ("Minimum free space", rule.min_free_space),
        ("Maximum used space", rule.max_used_space),
    ] {
        if bytes > 0 {
            put(text, format_args!("\t{name}:\t{}\n", size(bytes)));
        }
    }
}

fn put(text: &mut String, more: std::fmt::Arguments<'_>) {
    text.write_fmt(more).ok(); // a String takes everything
}

fn sorted(map: &std::collections::HashMap<String, String>) -> BTreeMap<&str, &str> {
    map.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

fn platforms(platforms: &[Platform]) -> String {
    platforms.iter().map(platform).collect::<Vec<_>>().join(",")
}

/// `linux/arm/v7`; a variant that goes without saying is left out.
pub(crate) fn platform(platform: &Platform) -> String {
    let variant = match (platform.architecture.as_str(), platform.variant.as_str()) {
        ("amd64", "v1") | ("arm64", "v8") | (_, "") => String::new(),
        (_, variant) => format!("/{variant}"),
    };
    format!("{}/{}{variant}", platform.os, platform.architecture)
}

/// `48h0m0s`.
fn go_duration(nanos: i64) -> String {
    let seconds = nanos / 1_000_000_000;
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, minutes) => format!("{minutes}m{rest}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}s"),
    }
}

/// In units of 1000, all digits.
fn size(bytes: i64) -> String {
    let mut unit = 1_i64;
    let mut name = "B";
    for next in ["kB", "MB", "GB", "TB", "PB"] {
        if bytes / unit < 1000 {
            break;
        }
        unit *= 1000;
        name = next;
    }
    let (whole, part) = (bytes / unit, bytes % unit);
    if part == 0 {
        return format!("{whole}{name}");
    }
    let digits = unit.ilog10() as usize;
    let part = format!("{part:0digits$}");
    format!("{whole}.{}{name}", part.trim_end_matches('0'))
}

/// Go's `text/tabwriter` with tab stops of 8 and a padding of 1: a column is as wide as its widest cell, over the lines
/// in a row that have it; cells are filled up with tabs.
fn aligned(text: &str) -> String {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let mut out = String::with_capacity(text.len() * 2);
    for (number, line) in lines.iter().enumerate() {
        for (column, cell) in line.iter().enumerate() {
            out.push_str(cell);
            if column + 1 == line.len() {
                continue;
            }
            let has_it = |line: &&Vec<&str>| line.len() > column + 1;
            let above = lines.iter().take(number).rev().take_while(has_it);
            let below = lines.iter().skip(number).take_while(has_it);
            let widest =
                above.chain(below).filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
            let stop = (widest.unwrap_or(0) + 1).div_ceil(8) * 8;
            let tabs = stop.saturating_sub(cell.chars().count()).div_ceil(8);
            out.extend(std::iter::repeat_n('\t', tabs));
        }
        out.push('\n');
    }
    out
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Worker<'a> {
    id: &'a str,
    labels: BTreeMap<&'a str, &'a str>,
    platforms: Vec<OciPlatform<'a>>,
    gc_policy: Vec<Policy<'a>>,
    buildkit_version: Version,
    cdi_devices: Option<Vec<Device<'a>>>,
}

#[derive(Serialize)]
struct OciPlatform<'a> {
    architecture: &'a str,
    os: &'a str,
    #[serde(rename = "os.version", skip_serializing_if = "str::is_empty")]
    os_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    variant: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Policy<'a> {
    all: bool,
    filter: Option<&'a [String]>,
    keep_duration: i64,
    reserved_space: i64,
    max_used_space: i64,
    min_free_space: i64,
}

#[derive(Serialize)]
struct Version {
    package: String,
    version: String,
    revision: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Device<'a> {
    name: &'a str,
    auto_allow: bool,
    annotations: BTreeMap<&'a str, &'a str>,
    on_demand: bool,
}

/// All that is known, as JSON.
pub(crate) fn json(workers: &[WorkerRecord]) -> String {
    let workers: Vec<_> = workers.iter().map(worker).collect();
    let text = serde_json::to_string(&workers).unwrap_or_default();
    format!("{text}\n")
}

fn worker(record: &WorkerRecord) -> Worker<'_> {
    let version = record.buildkit_version.clone().unwrap_or_default();
    let devices = record.cdi_devices.iter().map(|device| Device {
        name: &device.name,
        auto_allow: device.auto_allow,
        annotations: sorted(&device.annotations),
        on_demand: device.on_demand,
    });
    Worker {
        id: &record.id,
        labels: sorted(&record.labels),
        platforms: record.platforms.iter().map(oci_platform).collect(),
        gc_policy: record.gc_policy.iter().map(json_policy).collect(),
        buildkit_version: Version {
            package: version.package,
            version: version.version,
            revision: version.revision,
        },
        cdi_devices: (!record.cdi_devices.is_empty()).then(|| devices.collect()),
    }
}

fn oci_platform(platform: &Platform) -> OciPlatform<'_> {
    OciPlatform {
        architecture: &platform.architecture,
        os: &platform.os,
        os_version: &platform.os_version,
        variant: &platform.variant,
    }
}

fn json_policy(rule: &GcPolicy) -> Policy<'_> {
    Policy {
        all: rule.all,
        filter: (!rule.filters.is_empty()).then_some(rule.filters.as_slice()),
        keep_duration: rule.keep_duration,
        reserved_space: rule.reserved_space,
        max_used_space: rule.max_used_space,
        min_free_space: rule.min_free_space,
    }
}

#[cfg(test)]
mod tests {
    use lapstrake_api::control::types::BuildkitVersion;

    use super::*;

    fn record() -> WorkerRecord {
        let platform = |architecture: &str, variant: &str| Platform {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: variant.to_owned(),
            ..Platform::default()
        };
        let label =
            |name: &str, value: &str| (format!("org.mobyproject.buildkit.worker.{name}"), value.to_owned());
        WorkerRecord {
            id: "zlya2bt05j3j3cee6zq8o8e6t".to_owned(),
            labels: [label("executor", "oci"), label("oci.process-mode", "sandbox")].into(),
            platforms: vec![platform("amd64", ""), platform("amd64", "v2"), platform("arm64", "v8")],
            gc_policy: vec![
                GcPolicy {
                    filters: vec!["type==source.local".to_owned(), "type==exec.cachemount".to_owned()],
                    keep_duration: 172_800_000_000_000,
                    max_used_space: 512_000_000,
                    ..GcPolicy::default()
                },
                GcPolicy {
                    all: true,
                    reserved_space: 1_073_741_824,
                    min_free_space: 51_000_000_000,
                    ..GcPolicy::default()
                },
            ],
            buildkit_version: Some(BuildkitVersion {
                package: "p".to_owned(),
                version: "v0.34.2".to_owned(),
                revision: "r".to_owned(),
            }),
            cdi_devices: Vec::new(),
        }
    }

    // What `buildctl` of release 0.34 prints for the same.
    #[test]
    fn tables_are_laid_out_as_buildctl_lays_them_out() {
        assert_eq!(
            table(&[record()]),
            "ID\t\t\t\tPLATFORMS\nzlya2bt05j3j3cee6zq8o8e6t\tlinux/amd64,linux/amd64/v2,linux/arm64\n"
        );
        assert_eq!(
            verbose(&[record()]),
            "ID:\t\tzlya2bt05j3j3cee6zq8o8e6t\n\
             Platforms:\tlinux/amd64,linux/amd64/v2,linux/arm64\n\
             BuildKit:\tp v0.34.2 r\n\
             Labels:\n\
             \torg.mobyproject.buildkit.worker.executor:\t\toci\n\
             \torg.mobyproject.buildkit.worker.oci.process-mode:\tsandbox\n\
             GC Policy rule#0:\n\
             \tAll:\t\t\tfalse\n\
             \tFilters:\t\ttype==source.local type==exec.cachemount\n\
             \tKeep duration:\t\t48h0m0s\n\
             \tMaximum used space:\t512MB\n\
             GC Policy rule#1:\n\
             \tAll:\t\t\ttrue\n\
             \tReserved space:\t\t1.073741824GB\n\
             \tMinimum free space:\t51GB\n\n"
        );
    }

    #[test]
    fn json_has_buildctl_s_names() {
        let text = json(&[record()]);
        let start = r#"[{"id":"zlya2bt05j3j3cee6zq8o8e6t","labels":{"org.mobyproject.buildkit.worker.executor":"oci","#;
        assert!(text.starts_with(start), "{text}");
        for part in [
            r#""platforms":[{"architecture":"amd64","os":"linux"},{"architecture":"amd64","os":"linux","variant":"v2"},"#,
            r#""gcPolicy":[{"all":false,"filter":["type==source.local","type==exec.cachemount"],"keepDuration":172800000000000,"reservedSpace":0,"maxUsedSpace":512000000,"minFreeSpace":0},{"all":true,"filter":null,"#,
            r#""buildkitVersion":{"package":"p","version":"v0.34.2","revision":"r"},"cdiDevices":null}]"#,
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
