//! Resource limits and the out-of-memory score of a step.

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

/// Sets the limits of this process and its children.
pub(crate) fn apply(wanted: &[Rlimit]) -> Result<(), String> {
    let files = rustix::process::getrlimit(Resource::Nofile);
    let files = files.maximum.map_or(OPEN_FILES, |hard| hard.min(OPEN_FILES));
    set(Resource::Nofile, Some(files), Some(files)).map_err(|error| format!("limit nofile: {error}"))?;
    // A crash leaves no core file in the layer.
    let core = rustix::process::getrlimit(Resource::Core);
    set(Resource::Core, Some(0), core.maximum).map_err(|error| format!("limit core: {error}"))?;
    for limit in wanted {
        let resource = resource(&limit.name).ok_or_else(|| format!("no such limit: \"{}\"", limit.name))?;
        set(resource, limit.soft, limit.hard).map_err(|error| format!("limit {}: {error}", limit.name))?;
    }
    Ok(())
}

fn set(resource: Resource, soft: Option<u64>, hard: Option<u64>) -> Result<(), rustix::io::Errno> {
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
