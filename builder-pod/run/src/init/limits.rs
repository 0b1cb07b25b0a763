//! Resource limits and the out-of-memory score of a step.

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit as Limit};

use crate::spec::Rlimit;

/// Open files that a step gets, as containers have them; less where the builder has less.
const OPEN_FILES: u64 = 1 << 20;

/// A step's processes are killed before the builder when memory runs out.
const OOM_SCORE_STEP: i32 = 300;

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    })
}

/// Sets the limits of this process and its children: those that are asked for, and for open files and core files
/// what containers have where they are not.
pub(crate) fn apply(wanted: &[Rlimit]) -> Result<(), (String, Errno)> {
    let asked = |name: &str| wanted.iter().any(|limit| limit.name == name);
    let plain = |name: &'static str| move |errno: Errno| (format!("limit {name}: {errno}"), errno);
    if !asked("nofile") {
        let files = rustix::process::getrlimit(Resource::Nofile);
        let files = files.maximum.map_or(OPEN_FILES, |hard| hard.min(OPEN_FILES));
        set(Resource::Nofile, Some(files), Some(files)).map_err(plain("nofile"))?;
    }
    if !asked("core") {
        // A crash leaves no core file in the layer.
        let core = rustix::process::getrlimit(Resource::Core);
        set(Resource::Core, Some(0), core.maximum).map_err(plain("core"))?;
    }
    for limit in wanted {
        let name = &limit.name;
        let resource = resource(name).ok_or_else(|| (format!("no such limit: \"{name}\""), Errno::INVAL))?;
        set(resource, limit.soft, limit.hard).map_err(|errno| {
            let max = rustix::process::getrlimit(resource).maximum;
            (refused(name, limit.hard, max, errno), errno)
        })?;
    }
    Ok(())
}

/// Why a limit could not be set. More than it has itself no process may give without power over the machine.
fn refused(name: &str, hard: Option<u64>, max: Option<u64>, errno: Errno) -> String {
    let above = max.is_some_and(|max| hard.is_none_or(|hard| hard > max));
    match (errno, max) {
        (Errno::PERM, Some(max)) if above => {
            let hard = hard.map_or_else(|| "unlimited".to_owned(), |hard| hard.to_string());
            format!(
                "limit {name}: {hard} is above {max}, which is what the builder may have itself: ask for less, or have the \
                 container runtime give its containers more"
            )
        }
        _ => format!("limit {name}: {errno}"),
    }
}

fn set(resource: Resource, soft: Option<u64>, hard: Option<u64>) -> Result<(), Errno> {
    rustix::process::setrlimit(resource, Limit { current: soft, maximum: hard })
}

/// Raises the out-of-memory score; needs the outer `/proc`.
pub(crate) fn offer_to_oom_killer() {
    const FILE: &str = "/proc/self/oom_score_adj";
    let now = std::fs::read_to_string(FILE).ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(now) = now {
        let score = now.saturating_add(OOM_SCORE_STEP).min(1000);
        std::fs::write(FILE, score.to_string()).ok(); // A hint to the kernel, no part of the sandbox.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_above_the_builders_own_is_told_with_both() {
        let text = refused("nofile", Some(4096), Some(1024), Errno::PERM);
        assert!(text.starts_with("limit nofile: 4096 is above 1024"), "{text}");
        assert!(refused("nofile", None, Some(1024), Errno::PERM).contains("unlimited is above 1024"));
        assert_eq!(
            refused("nofile", Some(1), None, Errno::INVAL),
            "limit nofile: Invalid argument (os error 22)"
        );
    }
}
