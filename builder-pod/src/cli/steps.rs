//! Flags for what steps find around them, named and read as those of `docker buildx build`, and for the frontend.

use lapstrake_dockerfile::{ExtraHost, Ulimit};

use crate::asked::cgroup_parent_warning;
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
    /// Control group above those of steps; taken as BuildKit without power over control groups takes it: steps stay in
    /// the builder's.
    #[arg(long, value_name = "GROUP")]
    cgroup_parent: Option<String>,
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
            options.warnings.push(cgroup_parent_warning(parent));
        }
        for text in &self.options {
            let (name, value) = text.split_once('=').unwrap_or((text, ""));
            options.frontend.add("--opt", name, value)?;
        }
        options.warnings.extend(options.frontend.warnings());
        Ok(())
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
            --add-host six=[::1] --cgroup-parent x --opt image-resolve-mode=pull";
        let options = read(&flags.split_whitespace().collect::<Vec<_>>()).expect("valid");
        let limits: Vec<_> = options.steps.ulimits.iter().map(|one| (one.name.as_str(), one.hard)).collect();
        assert_eq!(limits, [("nofile", 2048), ("core", -1)]);
        let hosts: Vec<_> = options.steps.hosts.iter().map(|one| one.address.to_string()).collect();
        assert_eq!(hosts, ["10.0.0.7", "::1"]);
        assert_eq!(options.steps.shm_bytes, Some(64 << 20));
        assert!(options.warnings[0].contains("cgroup-parent x"), "{:?}", options.warnings);
    }

    #[test]
    fn what_is_not_of_its_form_is_told() {
        for (flags, why) in [
            (["--ulimit", "nofiles=1"], "did you mean nofile?"),
            (["--add-host", "db"], "db.example:10.0.0.7"),
            (["--add-host", "a:host-gateway"], "no gateway"),
            (["--shm-size", "much"], "no size"),
            (["--opt", "flavour=x"], "no frontend option"),
        ] {
            let error = read(&flags).map(drop).expect_err(flags[1]);
            assert!(error.contains(why), "{flags:?}: {error}");
        }
    }
}
