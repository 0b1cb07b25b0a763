//! The command line of `buildkitd`.
//!
//! Holds: each flag of `buildkitd --help` is known, with one dash or two, bools with or without a value, as Go's
//! programs take them.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Args, Command, CommandFactory as _, FromArgMatches as _, Parser};

/// `true` and `false` in all the ways in which Go spells them.
fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("give true or false".to_owned()),
    }
}

/// The flags, as they were given: what was not given is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct Flags {
    /// As for rootless containers; found out by itself here.
    #[arg(long, value_name = "bool")]
    pub rootless: Option<bool>,
    /// Path of the configuration file (default: "/etc/buildkit/buildkitd.toml").
    #[arg(long, env = "BUILDKITD_CONFIG", value_name = "string")]
    pub config: Option<PathBuf>,
    /// Log more: the same as `--log-level debug`.
    #[arg(long, value_name = "bool")]
    pub debug: Option<bool>,
    /// Log everything: the same as `--log-level trace`.
    #[arg(long, value_name = "bool", hide = true)]
    pub trace: Option<bool>,
    /// State directory (default: "/var/lib/buildkit").
    #[arg(long, value_name = "string")]
    pub root: Option<PathBuf>,
    /// Address to listen on: unix://, tcp:// or fd:// (default: "unix:///run/buildkit/buildkitd.sock").
    #[arg(long, value_name = "strings")]
    pub addr: Vec<String>,
    /// Form of the log: text or json (default: "text").
    #[arg(long, value_name = "string")]
    pub log_format: Option<String>,
    /// Least level that is logged (default: "info").
    #[arg(long, env = "BUILDKITD_LOG_LEVEL", value_name = "string")]
    pub log_level: Option<String>,
    /// Group, by name or number, that owns the unix sockets.
    #[arg(long, value_name = "string")]
    pub group: Option<String>,
    /// Address for metrics and health, such as 0.0.0.0:6060.
    #[arg(long, env = "BUILDKITD_DEBUGADDR", value_name = "string")]
    pub debugaddr: Option<String>,
    /// The server's certificate, PEM.
    #[arg(long, value_name = "string")]
    pub tlscert: Option<PathBuf>,
    /// The server's private key, PEM.
    #[arg(long, value_name = "string")]
    pub tlskey: Option<PathBuf>,
    /// CA that clients' certificates must come from, PEM.
    #[arg(long, value_name = "string")]
    pub tlscacert: Option<PathBuf>,
    /// What builds may ask for: network.host, security.insecure, device.
    #[arg(long, value_name = "strings")]
    pub allow_insecure_entitlement: Vec<String>,
    /// Send all traffic of builds through a proxy: refused, there is none here.
    #[arg(long, value_name = "bool")]
    pub proxy_network: Option<bool>,
    /// Socket for traces of steps.
    #[arg(long, value_name = "string")]
    pub otel_socket_path: Option<PathBuf>,
    /// No devices by the Container Device Interface.
    #[arg(long, value_name = "bool")]
    pub cdi_disabled: Option<bool>,
    /// Directory of CDI files.
    #[arg(long, value_name = "strings")]
    pub cdi_spec_dir: Vec<PathBuf>,
    /// Keep facts about cache keys: no meaning here.
    #[arg(long, value_name = "bool")]
    pub save_cache_debug: Option<bool>,
    /// How long running builds may go on after the first SIGTERM or SIGINT; ours (default: "25s").
    #[arg(long, env = "LAPSTRAKE_DRAIN", value_name = "string")]
    pub drain: Option<String>,
    /// Flags of a containerd worker.
    #[command(flatten)]
    pub containerd: ContainerdFlags,
    /// Flags of the OCI worker.
    #[command(flatten)]
    pub oci: OciFlags,
}

/// Flags of the OCI worker: ours answers to them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct OciFlags {
    /// Whether there is a worker: true, false or auto (default: "auto").
    #[arg(id = "oci_worker", long = "oci-worker", value_name = "string")]
    pub worker: Option<String>,
    /// Labels of the worker, such as com.example.foo=bar.
    #[arg(id = "oci_worker_labels", long = "oci-worker-labels", value_name = "strings")]
    pub worker_labels: Vec<String>,
    /// Snapshotter: no meaning here.
    #[arg(id = "oci_worker_snapshotter", long = "oci-worker-snapshotter", value_name = "string")]
    pub worker_snapshotter: Option<String>,
    /// Socket of a snapshotter: no meaning here.
    #[arg(
        id = "oci_worker_proxy_snapshotter_path",
        long = "oci-worker-proxy-snapshotter-path",
        value_name = "string"
    )]
    pub worker_proxy_snapshotter_path: Option<String>,
    /// Platforms that the worker says it builds for.
    #[arg(id = "oci_worker_platform", long = "oci-worker-platform", value_name = "strings")]
    pub worker_platform: Vec<String>,
    /// Network of steps: auto, bridge, cni or host (default: "auto").
    #[arg(id = "oci_worker_net", long = "oci-worker-net", value_name = "string")]
    pub worker_net: Option<String>,
    /// Configuration of CNI: no meaning here.
    #[arg(id = "oci_cni_config_path", long = "oci-cni-config-path", value_name = "string")]
    pub cni_config_path: Option<String>,
    /// Programs of CNI: no meaning here.
    #[arg(id = "oci_cni_binary_dir", long = "oci-cni-binary-dir", value_name = "string")]
    pub cni_binary_dir: Option<String>,
    /// Network namespaces kept ready: no meaning here.
    #[arg(id = "oci_cni_pool_size", long = "oci-cni-pool-size", value_name = "int")]
    pub cni_pool_size: Option<i64>,
    /// The runtime's program: no meaning here, steps run without one.
    #[arg(id = "oci_worker_binary", long = "oci-worker-binary", value_name = "string")]
    pub worker_binary: Option<String>,
    /// AppArmor profile of steps: not applied here.
    #[arg(id = "oci_worker_apparmor_profile", long = "oci-worker-apparmor-profile", value_name = "string")]
    pub worker_apparmor_profile: Option<String>,
    /// SELinux labels of steps: not applied here.
    #[arg(id = "oci_worker_selinux", long = "oci-worker-selinux", value_name = "bool")]
    pub worker_selinux: Option<bool>,
    /// Steps that run at the same time, at most (default: 0, no limit).
    #[arg(id = "oci_max_parallelism", long = "oci-max-parallelism", value_name = "int")]
    pub max_parallelism: Option<i64>,
    /// As for rootless containers; found out by itself here.
    #[arg(id = "oci_worker_rootless", long = "oci-worker-rootless", value_name = "bool")]
    pub worker_rootless: Option<bool>,
    /// Processes of the host in steps: no meaning here, each step has its own.
    #[arg(id = "oci_worker_no_process_sandbox", long = "oci-worker-no-process-sandbox", value_name = "bool")]
    pub worker_no_process_sandbox: Option<bool>,
    /// Collect garbage (default: true).
    #[arg(id = "oci_worker_gc", long = "oci-worker-gc", value_name = "bool")]
    pub worker_gc: Option<bool>,
    /// What garbage collection keeps, "Reserved[,Free[,Maximum]]" in MB.
    #[arg(id = "oci_worker_gc_keepstorage", long = "oci-worker-gc-keepstorage", value_name = "string")]
    pub worker_gc_keepstorage: Option<String>,
}

/// Flags of a containerd worker: where it is the one that is wanted, ours takes what has a meaning.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct ContainerdFlags {
    /// Whether there is such a worker: true, false or auto (default: "auto").
    #[arg(id = "containerd_worker", long = "containerd-worker", value_name = "string")]
    pub worker: Option<String>,
    /// Socket of containerd: no meaning here.
    #[arg(id = "containerd_worker_addr", long = "containerd-worker-addr", value_name = "string")]
    pub worker_addr: Option<String>,
    /// Labels of the worker, such as com.example.foo=bar.
    #[arg(id = "containerd_worker_labels", long = "containerd-worker-labels", value_name = "strings")]
    pub worker_labels: Vec<String>,
    /// Platforms that the worker says it builds for.
    #[arg(
        id = "containerd_worker_platform",
        long = "containerd-worker-platform",
        value_name = "strings",
        hide = true
    )]
    pub worker_platform: Vec<String>,
    /// Namespace of containerd: no meaning here.
    #[arg(
        id = "containerd_worker_namespace",
        long = "containerd-worker-namespace",
        value_name = "string",
        hide = true
    )]
    pub worker_namespace: Option<String>,
    /// Runtime of containerd: no meaning here.
    #[arg(
        id = "containerd_worker_runtime",
        long = "containerd-worker-runtime",
        value_name = "string",
        hide = true
    )]
    pub worker_runtime: Option<String>,
    /// Network of steps: auto, bridge, cni or host (default: "auto").
    #[arg(id = "containerd_worker_net", long = "containerd-worker-net", value_name = "string")]
    pub worker_net: Option<String>,
    /// Configuration of CNI: no meaning here.
    #[arg(id = "containerd_cni_config_path", long = "containerd-cni-config-path", value_name = "string")]
    pub cni_config_path: Option<String>,
    /// Programs of CNI: no meaning here.
    #[arg(id = "containerd_cni_binary_dir", long = "containerd-cni-binary-dir", value_name = "string")]
    pub cni_binary_dir: Option<String>,
    /// Network namespaces kept ready: no meaning here.
    #[arg(id = "containerd_cni_pool_size", long = "containerd-cni-pool-size", value_name = "int")]
    pub cni_pool_size: Option<i64>,
    /// Snapshotter: no meaning here.
    #[arg(
        id = "containerd_worker_snapshotter",
        long = "containerd-worker-snapshotter",
        value_name = "string"
    )]
    pub worker_snapshotter: Option<String>,
    /// AppArmor profile of steps: not applied here.
    #[arg(
        id = "containerd_worker_apparmor_profile",
        long = "containerd-worker-apparmor-profile",
        value_name = "string"
    )]
    pub worker_apparmor_profile: Option<String>,
    /// SELinux labels of steps: not applied here.
    #[arg(id = "containerd_worker_selinux", long = "containerd-worker-selinux", value_name = "bool")]
    pub worker_selinux: Option<bool>,
    /// Isolation on Windows: no meaning here.
    #[arg(
        id = "containerd_worker_hyperv_isolation",
        long = "containerd-worker-hyperv-isolation",
        value_name = "bool"
    )]
    pub worker_hyperv_isolation: Option<bool>,
    /// Steps that run at the same time, at most (default: 0, no limit).
    #[arg(id = "containerd_max_parallelism", long = "containerd-max-parallelism", value_name = "int")]
    pub max_parallelism: Option<i64>,
    /// As for rootless containers; found out by itself here.
    #[arg(id = "containerd_worker_rootless", long = "containerd-worker-rootless", value_name = "bool")]
    pub worker_rootless: Option<bool>,
    /// Collect garbage (default: true).
    #[arg(id = "containerd_worker_gc", long = "containerd-worker-gc", value_name = "bool")]
    pub worker_gc: Option<bool>,
    /// What garbage collection keeps, "Reserved[,Free[,Maximum]]" in MB.
    #[arg(
        id = "containerd_worker_gc_keepstorage",
        long = "containerd-worker-gc-keepstorage",
        value_name = "string"
    )]
    pub worker_gc_keepstorage: Option<String>,
}

/// The program that has nothing but the flags.
#[derive(Debug, Parser)]
#[command(
    name = "buildkitd",
    args_override_self = true,
    disable_help_flag = true,
    disable_version_flag = true
)]
struct Program {
    #[command(flatten)]
    flags: Flags,
    /// Show this help.
    #[arg(long, short = 'h', value_name = "bool")]
    help: Option<bool>,
    /// Print the version.
    #[arg(long, short = 'v', value_name = "bool")]
    version: Option<bool>,
    /// What `buildkitd` leaves unread.
    #[arg(hide = true)]
    rest: Vec<OsString>,
}

/// What is to be answered instead of serving.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Usage {
    /// This text, for standard output; the program ends well.
    Help(String),
    /// The version is asked for.
    Version,
    /// Wrong usage: this text, for standard error; the program ends with 1.
    Wrong(String),
}

impl Flags {
    /// Reads the arguments that follow the program's name.
    ///
    /// # Errors
    /// What is to be said instead of serving: help, version, or what is wrong.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, Usage> {
        let arguments = arguments.into_iter().map(two_dashes);
        let matches =
            command().try_get_matches_from([OsString::from("buildkitd")].into_iter().chain(arguments));
        match matches.and_then(|matches| Program::from_arg_matches(&matches)) {
            Ok(program) if program.help == Some(true) => Err(Usage::Help(help())),
            Ok(program) if program.version == Some(true) => Err(Usage::Version),
            Ok(program) => Ok(program.flags),
            Err(error) => Err(Usage::Wrong(format!("Incorrect Usage: {}\n\n{}", wrong(&error), help()))),
        }
    }
}

fn command() -> Command {
    // A switch may stand alone; a value of it needs an equals sign.
    let switch = |arg: Arg| match arg.get_value_names() {
        Some([name]) if name.as_str() == "bool" => {
            arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_parser(go_bool)
        }
        _ => arg,
    };
    Program::command().mut_args(switch)
}

/// All flags, in the order and form of `buildkitd --help`.
fn help() -> String {
    crate::help::text(&Program::command(), "build daemon")
}

/// Go takes `-debug` for `--debug`.
fn two_dashes(argument: OsString) -> OsString {
    let bytes = argument.as_encoded_bytes();
    let is_long =
        bytes.len() > 2 && bytes.first() == Some(&b'-') && bytes.get(1).is_some_and(u8::is_ascii_lowercase);
    if !is_long {
        return argument;
    }
    let mut long = OsString::from("-");
    long.push::<&OsStr>(&argument);
    long
}

/// What is wrong, in the words of `buildkitd`.
fn wrong(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(texts)) => texts.join(" "),
        _ => String::new(),
    };
    let name = context(ContextKind::InvalidArg);
    // Its own text names the value too: `--debug[=<bool>]`, `--addr <strings>`.
    let name = name.split(['[', '=', ' ']).next().unwrap_or_default().to_owned();
    let dash = name.strip_prefix('-').filter(|n| n.starts_with('-')).unwrap_or(&name);
    match error.kind() {
        ErrorKind::UnknownArgument => format!("flag provided but not defined: {dash}"),
        ErrorKind::InvalidValue if context(ContextKind::InvalidValue).is_empty() => {
            format!("flag needs an argument: {name}")
        }
        ErrorKind::InvalidValue | ErrorKind::ValueValidation => {
            let value = context(ContextKind::InvalidValue);
            format!("invalid value {value:?} for flag {dash}: parse error")
        }
        _ => {
            let text = error.to_string();
            text.trim_start_matches("error: ").lines().next().unwrap_or_default().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Flags, Usage> {
        Flags::parse(arguments.iter().map(Into::into))
    }

    fn wrong_text(arguments: &[&str]) -> String {
        match parse(arguments) {
            Err(Usage::Wrong(text)) => text.lines().next().unwrap_or_default().to_owned(),
            other => panic!("{arguments:?}: {other:?}"),
        }
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        let one = parse(&["-debug", "-addr", "tcp://:1", "-addr=unix:///x", "-oci-worker-net=host"])
            .expect("known");
        let two = parse(&["--debug", "--addr=tcp://:1", "--addr", "unix:///x", "--oci-worker-net", "host"]);
        assert_eq!(Ok(one.clone()), two);
        assert_eq!((one.debug, one.addr.len(), one.oci.worker_net.as_deref()), (Some(true), 2, Some("host")));
    }

    #[test]
    fn switches_take_a_value_only_behind_an_equals_sign() {
        assert_eq!(parse(&["--debug=false"]).expect("known").debug, Some(false));
        assert_eq!(parse(&["--oci-worker-gc=F"]).expect("known").oci.worker_gc, Some(false));
        assert_eq!(parse(&["--debug", "false"]).expect("known").debug, Some(true));
    }

    #[test]
    fn the_last_of_two_values_counts() {
        assert_eq!(parse(&["--root", "/a", "--root=/b"]).expect("known").root, Some("/b".into()));
    }

    #[test]
    fn wrong_usage_is_told_in_buildkitd_s_words() {
        assert_eq!(wrong_text(&["--nope"]), "Incorrect Usage: flag provided but not defined: -nope");
        assert_eq!(wrong_text(&["-nope=1"]), "Incorrect Usage: flag provided but not defined: -nope");
        assert_eq!(
            wrong_text(&["--debug=maybe"]),
            r#"Incorrect Usage: invalid value "maybe" for flag -debug: parse error"#
        );
        assert_eq!(wrong_text(&["--addr"]), "Incorrect Usage: flag needs an argument: --addr");
        assert_eq!(
            wrong_text(&["--oci-max-parallelism", "x"]),
            r#"Incorrect Usage: invalid value "x" for flag -oci-max-parallelism: parse error"#
        );
    }

    #[test]
    fn help_and_version_have_both_names() {
        for help in ["--help", "-help", "-h"] {
            assert!(
                matches!(parse(&[help]), Err(Usage::Help(text)) if text.contains("--oci-worker-gc-keepstorage string")),
                "{help}"
            );
        }
        for version in ["--version", "-v"] {
            assert_eq!(parse(&[version]), Err(Usage::Version), "{version}");
        }
    }

    /// Names in `buildkitd --help`, release 0.34.
    const THEIRS: &str = "rootless config debug root addr log-format log-level group debugaddr tlscert tlskey tlscacert \
        allow-insecure-entitlement proxy-network otel-socket-path cdi-disabled cdi-spec-dir save-cache-debug \
        containerd-worker containerd-worker-addr containerd-worker-labels containerd-worker-net containerd-cni-config-path \
        containerd-cni-binary-dir containerd-cni-pool-size containerd-worker-snapshotter containerd-worker-apparmor-profile \
        containerd-worker-selinux containerd-worker-hyperv-isolation containerd-max-parallelism containerd-worker-rootless \
        containerd-worker-gc containerd-worker-gc-keepstorage oci-worker oci-worker-labels oci-worker-snapshotter \
        oci-worker-proxy-snapshotter-path oci-worker-platform oci-worker-net oci-cni-config-path oci-cni-binary-dir \
        oci-cni-pool-size oci-worker-binary oci-worker-apparmor-profile oci-worker-selinux oci-max-parallelism \
        oci-worker-rootless oci-worker-no-process-sandbox oci-worker-gc oci-worker-gc-keepstorage help version";

    #[test]
    fn every_flag_of_buildkitd_is_known_and_ours_is_the_only_other() {
        let command = Program::command();
        let ours: Vec<_> =
            command.get_arguments().filter(|a| !a.is_hide_set()).filter_map(|a| a.get_long()).collect();
        let missing: Vec<_> = THEIRS.split_whitespace().filter(|name| !ours.contains(name)).collect();
        assert_eq!(missing, [""; 0]);
        let more: Vec<_> =
            ours.iter().filter(|name| !THEIRS.split_whitespace().any(|t| t == **name)).collect();
        assert_eq!(more, [&"drain"]);
    }
}
