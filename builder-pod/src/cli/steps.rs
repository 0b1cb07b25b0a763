//! Flags for what steps find around them, named and read as those of `docker buildx build`, and for the frontend.

use lapstrake_dockerfile::{ExtraHost, Ulimit};
use lapstrake_handoff::Reason;
use lapstrake_llb::Resources;

use crate::error::BuildError;
use crate::options::BuildOptions;

/// The flags.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct StepArgs {
    /// Further line of /etc/hosts in steps.
    #[arg(long = "add-host", value_name = "NAME:ADDRESS")]
    hosts: Vec<ExtraHost>,
    /// Limit of processes in steps, such as nofile=1024:2048; -1 is no limit.
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]", allow_hyphen_values = true)]
    ulimits: Vec<Ulimit>,
    /// Size of /dev/shm in steps, such as 256m.
    #[arg(long, value_name = "SIZE", value_parser = super::size::parse)]
    shm_size: Option<u64>,
    /// Control group above those of steps.
    #[arg(long, value_name = "GROUP")]
    cgroup_parent: Option<String>,
    /// What each step may take, where the builder was given control groups: memory, memory-swap, cpu-shares, cpu-period,
    /// cpu-quota, cpuset-cpus, cpuset-mems. Sizes as 512m.
    #[arg(long = "resource", value_name = "NAME=VALUE", allow_hyphen_values = true)]
    resources: Vec<String>,
    /// Option of the frontend by BuildKit's name, as `buildctl build --opt` has it.
    #[arg(long = "opt", value_name = "NAME=VALUE")]
    options: Vec<String>,
}

impl StepArgs {
    /// Adds what the command line gives; what it names wins over what is there.
    pub(crate) fn add_to(&self, options: &mut BuildOptions) -> Result<(), BuildError> {
        let steps = &mut options.steps;
        for host in &self.hosts {
            steps.hosts.retain(|other| other.host != host.host || self.hosts.contains(other));
        }
        steps.hosts.extend(self.hosts.iter().cloned());
        self.ulimits.iter().for_each(|limit| steps.limit(limit.clone()));
        steps.shm_bytes = self.shm_size.or(steps.shm_bytes);
        if let Some(parent) = &self.cgroup_parent {
            steps.cgroup_parent = Some(parent.clone());
        }
        for text in &self.resources {
            limit(&mut steps.resources, text).map_err(|why| {
                BuildError::new(Reason::RequestInvalid, format!("--resource {text}: {why}"))
            })?;
        }
        for text in &self.options {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            options.frontend.add("--opt", name, value)?;
        }
        Ok(())
    }
}

/// Sets a limit by the name that `docker buildx build --resource` has for it.
fn limit(resources: &mut Resources, text: &str) -> Result<(), String> {
    let (name, value) = text.split_once('=').ok_or("it is not NAME=VALUE, as in memory=512m")?;
    let bytes = |value: &str| super::size::parse(value).map(|bytes| bytes.to_string());
    match name {
        "memory" => resources.set("memory", &bytes(value)?),
        "memory-swap" if value == "-1" => resources.set("memswap", value),
        "memory-swap" => resources.set("memswap", &bytes(value)?),
        "cpu-shares" => resources.set("cpushares", value),
        "cpu-period" => resources.set("cpuperiod", value),
        "cpu-quota" => resources.set("cpuquota", value),
        "cpuset-cpus" => resources.set("cpusetcpus", value),
        "cpuset-mems" => resources.set("cpusetmems", value),
        _ => Err(format!(
            "there is no limit {name}, only memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus and cpuset-mems"
        )),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::options::Context;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        steps: StepArgs,
    }

    fn read(flags: &[&str]) -> Result<BuildOptions, String> {
        let line = Line::try_parse_from(["build"].iter().chain(flags)).map_err(|error| error.to_string())?;
        let mut options = BuildOptions::new(Context::Inline(Default::default()));
        options.steps.limit("nofile=1".parse().expect("a limit"));
        options.steps.hosts = vec!["db:10.0.0.1".parse().expect("a host")];
        line.steps.add_to(&mut options).map_err(|error| error.to_string())?;
        Ok(options)
    }

    #[test]
    fn flags_win_over_what_the_manifest_says() {
        let flags = "--ulimit nofile=1024:2048 --ulimit core=-1 --shm-size 64m --add-host db:10.0.0.7 \
            --add-host six=[::1] --cgroup-parent x --resource memory=64m --resource memory-swap=-1 --opt image-resolve-mode=pull";
        let options = read(&flags.split_whitespace().collect::<Vec<_>>()).expect("valid");
        let limits: Vec<_> = options.steps.ulimits.iter().map(|one| (one.name.as_str(), one.hard)).collect();
        assert_eq!(limits, [("nofile", 2048), ("core", -1)]);
        let hosts: Vec<_> = options.steps.hosts.iter().map(|one| one.address.to_string()).collect();
        assert_eq!(hosts, ["10.0.0.7", "::1"]);
        assert_eq!(options.steps.shm_bytes, Some(64 << 20));
        assert_eq!(options.steps.cgroup_parent.as_deref(), Some("x"));
        assert_eq!(options.steps.resources.to_string(), "memory=67108864;memswap=-1");
    }

    #[test]
    fn what_is_not_of_its_form_is_told() {
        for (flags, why) in [
            (["--ulimit", "nofiles=1"], "did you mean nofile?"),
            (["--add-host", "db"], "db.example:10.0.0.7"),
            (["--add-host", "a:host-gateway"], "no gateway"),
            (["--shm-size", "much"], "no size"),
            (["--opt", "flavour=x"], "no frontend option"),
            (["--resource", "memory"], "as in memory=512m"),
            (["--resource", "memory=much"], "no size"),
            (["--resource", "pids=3"], "there is no limit pids"),
        ] {
            let error = read(&flags).map(drop).expect_err(flags[1]);
            assert!(error.contains(why), "{flags:?}: {error}");
        }
    }
}
