//! What is accepted without a meaning here, each told once.

use super::Note;
use super::file::File;
use crate::Flags;

const BY_ITSELF: &str = "found out by itself";
const NO_SNAPSHOTTER: &str = "layers are kept by the daemon's own store";
const NO_CNI: &str = "steps have a network without CNI";
const NO_CONTAINERD: &str = "there is no containerd worker, the daemon runs the steps itself";
const NO_PROFILE: &str = "it is NOT applied to steps";

/// Tells of each option of `flags` and `file` that has no meaning.
pub(crate) fn notes(flags: &Flags, file: &File) -> Vec<Note> {
    let mut notes = Vec::new();
    let mut tell = |given: bool, name: &str, why: &str| {
        if given {
            let text = format!("option {name} has no meaning here: {why}");
            notes.push(if why == NO_PROFILE { Note::warning(text) } else { Note::info(text) });
        }
    };
    flag_notes(flags, &mut tell);
    file_notes(file, &mut tell);
    if file.debug {
        notes.push(Note::warning(
            "'debug' configuration option is deprecated, use 'log.level = \"debug\"' instead".into(),
        ));
    }
    if file.trace {
        notes.push(Note::warning(
            "'trace' configuration option is deprecated, use 'log.level = \"trace\"' instead".into(),
        ));
    }
    if flags.trace.is_some() {
        notes.push(Note::warning("--trace option is deprecated; use --log-level=trace instead".into()));
    }
    notes
}

fn flag_notes(flags: &Flags, tell: &mut impl FnMut(bool, &str, &str)) {
    let (oci, containerd) = (&flags.oci, &flags.containerd);
    tell(flags.rootless.is_some(), "--rootless", BY_ITSELF);
    tell(flags.otel_socket_path.is_some(), "--otel-socket-path", "steps send no traces through the daemon");
    tell(flags.save_cache_debug.is_some(), "--save-cache-debug", "cache keys are logged at level trace");
    tell(oci.worker_snapshotter.is_some(), "--oci-worker-snapshotter", NO_SNAPSHOTTER);
    tell(oci.worker_proxy_snapshotter_path.is_some(), "--oci-worker-proxy-snapshotter-path", NO_SNAPSHOTTER);
    tell(matches!(oci.worker_net.as_deref(), Some("cni" | "bridge")), "--oci-worker-net", NO_CNI);
    tell(oci.cni_config_path.is_some(), "--oci-cni-config-path", NO_CNI);
    tell(oci.cni_binary_dir.is_some(), "--oci-cni-binary-dir", NO_CNI);
    tell(oci.cni_pool_size.is_some(), "--oci-cni-pool-size", NO_CNI);
    tell(oci.worker_binary.is_some(), "--oci-worker-binary", "steps run without a runtime program");
    tell(oci.worker_apparmor_profile.is_some(), "--oci-worker-apparmor-profile", NO_PROFILE);
    tell(oci.worker_selinux == Some(true), "--oci-worker-selinux", NO_PROFILE);
    tell(oci.worker_rootless.is_some(), "--oci-worker-rootless", BY_ITSELF);
    tell(
        oci.worker_no_process_sandbox.is_some(),
        "--oci-worker-no-process-sandbox",
        "each step has its own processes",
    );
    let wants_containerd =
        containerd.worker.as_deref().is_some_and(|text| !matches!(text, "false" | "auto" | ""));
    tell(wants_containerd, "--containerd-worker", NO_CONTAINERD);
    tell(containerd.worker_addr.is_some(), "--containerd-worker-addr", NO_CONTAINERD);
    tell(containerd.worker_namespace.is_some(), "--containerd-worker-namespace", NO_CONTAINERD);
    tell(containerd.worker_runtime.is_some(), "--containerd-worker-runtime", NO_CONTAINERD);
    tell(
        matches!(containerd.worker_net.as_deref(), Some("cni" | "bridge")),
        "--containerd-worker-net",
        NO_CNI,
    );
    tell(containerd.cni_config_path.is_some(), "--containerd-cni-config-path", NO_CNI);
    tell(containerd.cni_binary_dir.is_some(), "--containerd-cni-binary-dir", NO_CNI);
    tell(containerd.cni_pool_size.is_some(), "--containerd-cni-pool-size", NO_CNI);
    tell(containerd.worker_snapshotter.is_some(), "--containerd-worker-snapshotter", NO_SNAPSHOTTER);
    tell(containerd.worker_apparmor_profile.is_some(), "--containerd-worker-apparmor-profile", NO_PROFILE);
    tell(containerd.worker_selinux == Some(true), "--containerd-worker-selinux", NO_PROFILE);
    tell(containerd.worker_hyperv_isolation.is_some(), "--containerd-worker-hyperv-isolation", NO_CONTAINERD);
    tell(containerd.worker_rootless.is_some(), "--containerd-worker-rootless", BY_ITSELF);
}

fn file_notes(file: &File, tell: &mut impl FnMut(bool, &str, &str)) {
    let (oci, containerd) = (&file.worker.oci, &file.worker.containerd);
    let is_cni = |mode: &Option<String>| matches!(mode.as_deref(), Some("cni" | "bridge"));
    tell(file.grpc.security_descriptor.is_some(), "grpc.securityDescriptor", "there are no named pipes");
    tell(file.otel.socket_path.is_some(), "otel.socketPath", "steps send no traces through the daemon");
    tell(
        file.system.platforms_cache_max_age.is_some(),
        "system.platformsCacheMaxAge",
        "platforms do not change",
    );
    tell(file.cache.gha.is_some(), "cache.gha", "entries of that cache are neither signed nor checked");
    tell(file.compaction.is_some(), "compaction", "the store's index keeps itself small");
    tell(oci.snapshotter.is_some(), "worker.oci.snapshotter", NO_SNAPSHOTTER);
    tell(oci.rootless.is_some(), "worker.oci.rootless", BY_ITSELF);
    tell(oci.no_process_sandbox.is_some(), "worker.oci.noProcessSandbox", "each step has its own processes");
    tell(is_cni(&oci.network_mode), "worker.oci.networkMode", NO_CNI);
    tell(oci.cni_config_path.is_some(), "worker.oci.cniConfigPath", NO_CNI);
    tell(oci.cni_binary_path.is_some(), "worker.oci.cniBinaryPath", NO_CNI);
    tell(oci.cni_pool_size.is_some(), "worker.oci.cniPoolSize", NO_CNI);
    tell(oci.bridge_name.is_some(), "worker.oci.bridgeName", NO_CNI);
    tell(oci.bridge_subnet.is_some(), "worker.oci.bridgeSubnet", NO_CNI);
    tell(oci.binary.is_some(), "worker.oci.binary", "steps run without a runtime program");
    tell(oci.user_remap.is_some(), "worker.oci.userRemapUnsupported", BY_ITSELF);
    tell(oci.proxy_snapshotter_path.is_some(), "worker.oci.proxySnapshotterPath", NO_SNAPSHOTTER);
    tell(oci.stargz_snapshotter.is_some(), "worker.oci.stargzSnapshotter", NO_SNAPSHOTTER);
    tell(oci.apparmor_profile.is_some(), "worker.oci.apparmor-profile", NO_PROFILE);
    tell(oci.selinux == Some(true), "worker.oci.selinux", NO_PROFILE);
    tell(containerd.enabled == Some(true), "worker.containerd.enabled", NO_CONTAINERD);
    tell(containerd.address.is_some(), "worker.containerd.address", NO_CONTAINERD);
    tell(containerd.namespace.is_some(), "worker.containerd.namespace", NO_CONTAINERD);
    tell(containerd.runtime.is_some(), "worker.containerd.runtime", NO_CONTAINERD);
    tell(containerd.snapshotter.is_some(), "worker.containerd.snapshotter", NO_SNAPSHOTTER);
    tell(containerd.rootless.is_some(), "worker.containerd.rootless", BY_ITSELF);
    tell(is_cni(&containerd.network_mode), "worker.containerd.networkMode", NO_CNI);
    tell(containerd.cni_config_path.is_some(), "worker.containerd.cniConfigPath", NO_CNI);
    tell(containerd.cni_binary_path.is_some(), "worker.containerd.cniBinaryPath", NO_CNI);
    tell(containerd.cni_pool_size.is_some(), "worker.containerd.cniPoolSize", NO_CNI);
    tell(containerd.bridge_name.is_some(), "worker.containerd.bridgeName", NO_CNI);
    tell(containerd.bridge_subnet.is_some(), "worker.containerd.bridgeSubnet", NO_CNI);
    tell(containerd.apparmor_profile.is_some(), "worker.containerd.apparmor-profile", NO_PROFILE);
    tell(containerd.selinux == Some(true), "worker.containerd.selinux", NO_PROFILE);
    tell(containerd.hyperv_isolation.is_some(), "worker.containerd.hypervIsolation", NO_CONTAINERD);
}
