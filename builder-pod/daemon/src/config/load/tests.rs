use super::*;

fn around(rootless: bool) -> Around {
    let env = [("HOME", "/home/me"), ("XDG_RUNTIME_DIR", "/run/user/7")];
    Around {
        uid: 7,
        gid: 8,
        rootless,
        env: env.map(|(name, value)| (name, value.into())).into(),
        current_dir: "/work".into(),
        groups: "root:x:0:\ndocker:x:999:me,you\n".to_owned(),
    }
}

fn flags(arguments: &[&str]) -> Flags {
    Flags::parse(arguments.iter().map(Into::into)).expect("known flags")
}

fn with(arguments: &[&str], text: &str) -> Result<Config> {
    let file = file::parse(text, Path::new("/etc/buildkit/buildkitd.toml"))?;
    Config::merge(&flags(arguments), file, &around(false))
}

fn wrong(arguments: &[&str], text: &str) -> String {
    with(arguments, text).expect_err("wrong").to_string()
}

#[test]
fn without_anything_the_paths_are_the_machines_or_the_users() {
    let config = with(&[], "").expect("valid");
    assert_eq!(config.root, Path::new("/var/lib/buildkit"));
    assert_eq!(config.grpc.addresses, ["unix:///run/buildkit/buildkitd.sock"]);
    assert_eq!((config.grpc.uid, config.grpc.gid), (7, 8));
    assert_eq!(config.provenance_env_dir, Path::new("/etc/buildkit/provenance.d"));
    assert_eq!(config.entitlements, [Entitlement::Device].into());
    assert_eq!(config.history, History::default());
    assert_eq!(config.notes, []);
    let own = Config::merge(&flags(&[]), File::default(), &around(true)).expect("valid");
    assert_eq!(own.root, Path::new("/home/me/.local/share/buildkit"));
    assert_eq!(own.grpc.addresses, ["unix:///run/user/7/buildkit/buildkitd.sock"]);
    assert_eq!(around(true).config_path(), Path::new("/home/me/.config/buildkit/buildkitd.toml"));
    assert_eq!(around(false).config_path(), Path::new("/etc/buildkit/buildkitd.toml"));
}

/// Every key, with our own values.
const WHOLE: &str = r#"
root = "/data"
insecure-entitlements = ["network.host", "security.insecure"]
provenanceEnvDir = "/prov"
[log]
  format = "json"
  level = "warn"
[dns]
  nameservers = ["1.1.1.1", "fd00::1"]
  options = ["edns0"]
  searchDomains = ["example.com"]
[grpc]
  address = ["tcp://0.0.0.0:1234", "unix:///run/x.sock"]
  debugAddress = "127.0.0.1:6060"
  uid = 1
  gid = 2
  securityDescriptor = ""
  [grpc.tls]
    cert = "/tls/cert.pem"
    key = "/tls/key.pem"
    ca = "/tls/ca.pem"
[otel]
  socketPath = "/run/otel.sock"
[cdi]
  disabled = true
  specDirs = ["/cdi"]
  autoAllowed = ["vendor.com/gpu"]
[history]
  maxAge = 172800
  maxEntries = 7
[worker.oci]
  enabled = true
  platforms = ["linux/amd64", "linux/arm64"]
  snapshotter = "overlayfs"
  rootless = false
  noProcessSandbox = false
  gc = true
  reservedSpace = "30%"
  maxUsedSpace = "60%"
  minFreeSpace = "20GB"
  max-parallelism = 4
  defaultCgroupParent = "buildkit"
  networkMode = "cni"
  cniConfigPath = "/etc/cni.json"
  cniBinaryPath = "/opt/cni"
  cniPoolSize = 16
  apparmor-profile = ""
  selinux = false
  [worker.oci.labels]
    "Foo" = "Bar"
  [[worker.oci.gcpolicy]]
    keepBytes = "512MB"
    keepDuration = "48h"
    filters = ["type==source.local", "type==exec.cachemount"]
  [[worker.oci.gcpolicy]]
    all = true
    reservedSpace = 1024
    maxUsedSpace = "10%"
    minFreeSpace = "1GB"
    keepDuration = 60
[worker.containerd]
  enabled = false
  namespace = "buildkit"
  address = "/run/containerd.sock"
  [worker.containerd.runtime]
    name = "io.containerd.runc.v2"
    options = { BinaryName = "runc" }
[registry."Docker.io"]
  mirrors = ["mirror.example.com:5000/proxy"]
  http = true
  insecure = true
  ca = ["/ca.pem"]
  [[registry."Docker.io".keypair]]
    key = "/key.pem"
    cert = "/cert.pem"
[frontend."dockerfile.v0"]
  enabled = true
[frontend."gateway.v0"]
  enabled = false
  allowedRepositories = ["docker/dockerfile", "ghcr.io/me/front"]
[system]
  platformsCacheMaxAge = "1h"
  maxRegistryConcurrency = 8
  sessionAuthTimeout = "90s"
[compaction]
  enabled = true
"#;

#[test]
fn every_key_of_the_file_arrives() {
    let config = with(&[], WHOLE).expect("valid");
    assert_eq!(config.root, Path::new("/data"));
    assert_eq!(config.entitlements, [Entitlement::NetworkHost, Entitlement::SecurityInsecure].into());
    assert_eq!(config.log, LogConfig { format: LogFormat::Json, level: LevelFilter::WARN });
    let dns = config.dns.clone().expect("given");
    assert_eq!((dns.nameservers.len(), dns.search), (2, vec!["example.com".to_owned()]));
    assert_eq!(config.grpc.addresses, ["tcp://0.0.0.0:1234", "unix:///run/x.sock"]);
    assert_eq!((config.grpc.uid, config.grpc.gid), (1, 2));
    assert_eq!(config.grpc.tls.as_ref().and_then(|tls| tls.ca.clone()), Some("/tls/ca.pem".into()));
    assert_eq!(config.debug_address.as_deref(), Some("127.0.0.1:6060"));
    assert!(!config.cdi.enabled && config.cdi.spec_dirs == [PathBuf::from("/cdi")]);
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(config.history, History { enabled: true, age_max: 2 * day, entries_min: 7 });
    let worker = &config.worker;
    assert_eq!(worker.labels, [("Foo".to_owned(), "Bar".to_owned())].into());
    assert_eq!((worker.parallelism_max.map(NonZeroUsize::get), worker.platforms.len()), (Some(4), 2));
    assert_eq!(worker.cgroup_parent.as_deref(), Some("buildkit"));
    let [first, second] = worker.gc.policies.as_slice() else { panic!("{:?}", worker.gc) };
    assert_eq!((first.keep, first.reserved), (2 * day, Space::Bytes(512 << 20)));
    assert_eq!(first.filters, ["type==source.local", "type==exec.cachemount"]);
    assert_eq!((second.all, second.keep.as_secs(), second.max_used), (true, 60, Space::Percent(10)));
    assert_eq!((worker.gc.reserved, worker.gc.min_free), (Space::Percent(30), Space::Bytes(20 << 30)));
    let hub = config.registries.hosts.get("Docker.io").expect("its name as written");
    assert_eq!(hub.mirrors, ["mirror.example.com:5000/proxy"]);
    assert_eq!((hub.http, hub.insecure, &hub.client_key), (Some(true), true, &Some("/key.pem".into())));
    assert!(config.frontends.dockerfile && !config.frontends.gateway);
    assert!(config.frontends.allows_gateway_from("docker.io/docker/dockerfile"));
    assert!(config.frontends.allows_gateway_from("ghcr.io/me/front"));
    assert!(!config.frontends.allows_gateway_from("docker.io/library/front"));
    assert_eq!(config.registry_connections_max.map(NonZeroUsize::get), Some(8));
    assert_eq!(config.session_auth_timeout, Some(Duration::from_secs(90)));
}

#[test]
fn what_has_no_meaning_is_told_once_each() {
    let config =
        with(&["--oci-worker-snapshotter=native", "--oci-worker-binary", "crun"], WHOLE).expect("valid");
    let names: Vec<_> = config.notes.iter().filter_map(|note| note.text.split(' ').nth(1)).collect();
    let expected = [
        "--oci-worker-snapshotter",
        "--oci-worker-binary",
        "grpc.securityDescriptor",
        "otel.socketPath",
        "system.platformsCacheMaxAge",
        "compaction",
        "worker.oci.snapshotter",
        "worker.oci.rootless",
        "worker.oci.noProcessSandbox",
        "worker.oci.networkMode",
        "worker.oci.cniConfigPath",
        "worker.oci.cniBinaryPath",
        "worker.oci.cniPoolSize",
        "worker.oci.apparmor-profile",
        "worker.containerd.address",
        "worker.containerd.namespace",
        "worker.containerd.runtime",
    ];
    assert_eq!(names, expected);
    let warnings: Vec<_> =
        config.notes.iter().filter(|note| note.warning).map(|note| note.text.as_str()).collect();
    assert_eq!(
        warnings,
        ["option worker.oci.apparmor-profile has no meaning here: it is NOT applied to steps"]
    );
}

#[test]
fn flags_win_over_the_file() {
    let arguments = [
        "--root=/flag",
        "--addr=unix:///a",
        "--addr=unix:///b",
        "--debug",
        "--log-format=text",
        "--group=docker",
        "--tlscert=/c",
        "--debugaddr=:1",
        "--allow-insecure-entitlement=device",
        "--cdi-disabled=false",
        "--oci-max-parallelism=2",
        "--oci-worker-platform=linux/arm64",
        "--oci-worker-labels=a=b=c",
        "--oci-worker-gc-keepstorage=1,2,3",
        "--drain=2m",
    ];
    let config = with(&arguments, WHOLE).expect("valid");
    assert_eq!(config.root, Path::new("/flag"));
    assert_eq!(config.grpc.addresses, ["unix:///a", "unix:///b"]);
    assert_eq!(config.log, LogConfig { format: LogFormat::Text, level: LevelFilter::DEBUG });
    assert_eq!(config.grpc.gid, 999);
    assert_eq!(config.grpc.tls.map(|tls| (tls.cert, tls.key)), Some(("/c".into(), "/tls/key.pem".into())));
    assert_eq!(config.debug_address.as_deref(), Some(":1"));
    assert_eq!(config.entitlements, [Entitlement::Device].into());
    assert_eq!(config.worker.parallelism_max.map(NonZeroUsize::get), Some(2));
    assert_eq!(config.worker.platforms, ["linux/arm64"]);
    assert_eq!(config.worker.labels.get("a").map(String::as_str), Some("b=c"));
    let gc = &config.worker.gc;
    let mega = |number: u64| Space::Bytes(number * 1_000_000);
    assert_eq!((gc.reserved, gc.min_free, gc.max_used), (mega(1), mega(2), mega(3)));
    assert_eq!(config.drain, Duration::from_secs(120));
}

#[test]
fn keys_match_whatever_their_case() {
    let config =
        with(&[], "ROOT = '/x'\n[Worker.OCI]\nMaxUsedSpace = '5GB'\ngcKeepStorage = 9\n").expect("valid");
    assert_eq!(config.root, Path::new("/x"));
    assert_eq!(config.worker.gc.max_used, Space::Bytes(5 << 30));
    // The old name counts only where no new one is given.
    assert_eq!(config.worker.gc.reserved, Space::Bytes(0));
    let old = with(&[], "worker.oci.gckeepstorage = 9").expect("valid");
    assert_eq!(old.worker.gc.reserved, Space::Bytes(9));
}

#[test]
fn an_unknown_key_names_file_line_and_key() {
    let place = "/etc/buildkit/buildkitd.toml";
    for (text, line, start) in [
        ("root = '/x'\nrooot = '/y'\n", 2, "unknown key rooot, expected one of "),
        ("[worker.oci]\n\nmaxParallelism = 4\n", 3, "unknown key maxParallelism, "),
        ("[[worker.oci.gcpolicy]]\nkeepForever = true\n", 2, "unknown key keepForever, "),
        ("[registry.\"a.b\"]\nmirror = ['x']\n", 2, "unknown key mirror, "),
        ("[worker.oci]\nmax-parallelism = 'many'\n", 2, "invalid type"),
        ("[[worker.oci.gcpolicy]]\nkeepDuration = 'soon'\n", 2, "invalid duration soon: give seconds"),
        ("\n\n[worker.oci]\nreservedSpace = 'much'\n", 4, "invalid disk space much: give bytes"),
        ("root = \n", 1, ""),
    ] {
        let told = wrong(&[], text);
        assert!(told.starts_with(&format!("{place}:{line}: {start}")), "{text}: {told}");
        assert!(!told.contains('\n'), "{told}");
    }
}

#[test]
fn wrong_settings_are_told_with_the_way_out() {
    for (arguments, text, told) in [
        (&["--group=nobody-has-it"][..], "", "--group: unknown group nobody-has-it: give its name or number"),
        (&["--tlscert=/c"], "", "you must specify key and cert file if one is specified"),
        (
            &["--tlscacert=/c"],
            "",
            "CA /c: clients cannot be checked without TLS: give the server's certificate and key too",
        ),
        (&["--log-format=xml"], "", "unsupported log type \"xml\", known are text and json"),
        (
            &["--log-level=loud"],
            "",
            "unsupported log level \"loud\", known are trace, debug, info, warn, error, fatal and panic",
        ),
        (
            &["--allow-insecure-entitlement=all"],
            "",
            "invalid entitlement : all, known are network.host, security.insecure and device",
        ),
        (
            &["--oci-worker=false"],
            "",
            "no worker found: the OCI worker is switched off, and it is the one that there is",
        ),
        (&["--oci-worker=maybe"], "", "--oci-worker: maybe: give true, false or auto"),
        (
            &["--oci-worker-net=wifi"],
            "",
            "invalid network mode: \"wifi\", known are auto, bridge, cni and host",
        ),
        (&["--oci-worker-labels=a"], "", "--oci-worker-labels: invalid value a: give name=value"),
        (&["--drain=long"], "", "--drain: long: give such as 25s or 2m"),
        (&[], "system.maxRegistryConcurrency = 0", "maxRegistryConcurrency must be greater than zero"),
        (&[], "dns.nameservers = ['a.b']", "dns.nameservers: \"a.b\" is no address, give such as 1.1.1.1"),
    ] {
        assert_eq!(wrong(arguments, text), told);
    }
    // What would be enforced there and is not here is not accepted in silence.
    assert!(wrong(&["--proxy-network"], "").starts_with("proxyNetwork: "));
    assert!(wrong(&[], "[cache.gha.verify]\nrequired = true").starts_with("cache.gha.verify.required: "));
}

#[test]
fn a_containerd_worker_s_settings_count_where_only_that_is_wanted() {
    let text = "[worker.containerd]\nmax-parallelism = 3\n[worker.oci]\nmax-parallelism = 4\n";
    let parallelism = |arguments: &[&str]| {
        with(arguments, text).expect("valid").worker.parallelism_max.map(NonZeroUsize::get)
    };
    assert_eq!(parallelism(&["--oci-worker=false", "--containerd-worker=true"]), Some(3));
    assert_eq!(parallelism(&["--containerd-worker=true"]), Some(4));
    let config =
        with(&["--oci-worker=false", "--containerd-worker=true", "--containerd-worker-addr=/c.sock"], "");
    assert_eq!(config.expect("valid").notes.len(), 2);
}

#[test]
fn history_may_keep_by_age_by_number_or_not_at_all() {
    let history = |text| with(&[], text).expect("valid").history;
    assert!(!history("history.maxEntries = 0").enabled);
    let hour = Duration::from_secs(3600);
    assert_eq!(history("history.maxAge = '1h'"), History { enabled: true, age_max: hour, entries_min: 0 });
    let few = History { enabled: true, age_max: Duration::ZERO, entries_min: 12 };
    assert_eq!(history("history.maxEntries = 12"), few);
}

#[test]
fn certificates_of_a_directory_are_found_by_their_names() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["ca.crt", "client.cert", "client.key", "readme"] {
        std::fs::write(dir.path().join(name), "").expect("written");
    }
    let text = format!("[registry.\"a\"]\ntlsconfigdir = ['{}', '/not/there']\n", dir.path().display());
    let config = with(&[], &text).expect("valid");
    let host = config.registries.hosts.get("a").expect("given");
    assert_eq!(host.ca, [dir.path().join("ca.crt")]);
    assert_eq!(host.client_cert, Some(dir.path().join("client.cert")));
    assert_eq!(host.client_key, Some(dir.path().join("client.key")));
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let missing = Config::load(&flags(&["--config=/does/not/exist.toml"])).expect_err("missing").to_string();
    assert!(missing.starts_with("cannot read /does/not/exist.toml: "), "{missing}");
}
