//! Options by the names that BuildKit's clients have for them: the attributes of its Dockerfile frontend.

use std::net::IpAddr;
use std::str::FromStr;

use lapstrake_llb::RESOURCE_NAMES;

use crate::options::{ExtraHost, Network, NoCache, Options, ResolveMode, Ulimit};
use crate::suggest;

/// Attributes that are read here. Others of BuildKit's are the caller's: they say where files and caches are, or what
/// is made of the result.
const KNOWN: [&str; 18] = [
    "add-hosts",
    "cgroup-parent",
    "cpuperiod",
    "cpuquota",
    "cpusetcpus",
    "cpusetmems",
    "cpushares",
    "force-network-mode",
    "hostname",
    "image-resolve-mode",
    "label:",
    "memory",
    "memswap",
    "multi-platform",
    "no-cache",
    "shm-size",
    "target",
    "ulimit",
];
const BUILD_ARG: &str = "build-arg:";
const LABEL: &str = "label:";

/// Limits that a step can be given.
const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Why an option is not one. The text names it, and what may stand in its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// There is no option of this name.
    #[error("there is no frontend option \"{name}\"{}", hint.as_ref().map_or(String::new(), |hint| format!(": did you mean {hint}?")))]
    Unknown {
        /// The name.
        name: String,
        /// One that is nearly the same.
        hint: Option<String>,
    },
    /// Its value cannot be read.
    #[error("{name}: {why}")]
    Value {
        /// The option.
        name: String,
        /// What is wrong, and how it is written.
        why: String,
    },
}

impl Options {
    /// Sets what a client asks for by an attribute of the frontend, such as `ulimit` or `build-arg:VERSION`.
    ///
    /// Errors: an attribute that is none of these, a value that is not of its form. Nothing is changed then.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), OptionError> {
        let wrong = |why: String| OptionError::Value { name: name.to_owned(), why };
        if let Some(arg) = name.strip_prefix(BUILD_ARG) {
            self.build_args.insert(arg.to_owned(), value.to_owned());
            return Ok(());
        }
        if let Some(label) = name.strip_prefix(LABEL) {
            self.labels.insert(label.to_owned(), value.to_owned());
            return Ok(());
        }
        match name {
            "add-hosts" => self.extra_hosts = list(value).map_err(wrong)?,
            "ulimit" => self.ulimits = list(value).map_err(wrong)?,
            "shm-size" if value.is_empty() => self.shm_size_bytes = 0,
            "shm-size" => {
                let bytes = value.parse().ok().filter(|bytes| *bytes >= 0);
                let why = || wrong(format!("\"{value}\" is no number of bytes"));
                self.shm_size_bytes = bytes.ok_or_else(why)?;
            }
            "hostname" => self.hostname = value.to_owned(),
            "cgroup-parent" => self.cgroup_parent = value.to_owned(),
            limit if RESOURCE_NAMES.contains(&limit) => self.resources.set(limit, value).map_err(wrong)?,
            "target" => self.target = Some(value.to_owned()).filter(|target| !target.is_empty()),
            "no-cache" => self.no_cache = NoCache::from_attribute(value),
            "force-network-mode" => {
                self.network = match value {
                    "" | "sandbox" => Network::Default,
                    "none" => Network::None,
                    "host" => Network::Host,
                    _ => return Err(wrong(format!("\"{value}\" is none of none, host and sandbox"))),
                }
            }
            "image-resolve-mode" => {
                self.resolve_mode = match value {
                    "" | "default" => ResolveMode::Default,
                    "pull" => ResolveMode::Pull,
                    "local" => ResolveMode::Local,
                    _ => return Err(wrong(format!("\"{value}\" is none of default, pull and local"))),
                }
            }
            "multi-platform" => {
                let flag =
                    flag(value).ok_or_else(|| wrong(format!("\"{value}\" is neither true nor false")))?;
                self.multi_platform = flag;
            }
            _ => {
                let hint = suggest::nearest(name, KNOWN.into_iter().filter(|known| !known.ends_with(':')));
                return Err(OptionError::Unknown { name: name.to_owned(), hint: hint.map(str::to_owned) });
            }
        }
        Ok(())
    }
}

/// As Go reads a bool.
fn flag(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Several in one, with commas between them; each may stand in quotes.
fn list<T: FromStr<Err = String>>(value: &str) -> Result<Vec<T>, String> {
    let unquoted = |field: &str| {
        let inner = field.strip_prefix('"').and_then(|field| field.strip_suffix('"'));
        inner.unwrap_or(field).to_owned()
    };
    let fields = value.split(',').filter(|_| !value.is_empty());
    fields.map(|field| unquoted(field).parse()).collect()
}

/// `NAME=ADDRESS`, or `NAME:ADDRESS`; an IPv6 address may stand in brackets.
impl FromStr for ExtraHost {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("\"{text}\" {why}, as in db.example:10.0.0.7");
        let (host, address) = text
            .split_once('=')
            .or_else(|| text.split_once(':'))
            .filter(|(host, _)| !host.is_empty())
            .ok_or_else(|| wrong("is not a name with its address"))?;
        if address == "host-gateway" {
            return Err(format!("\"{text}\": builders have no gateway to a host: write the host's address"));
        }
        let bare = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
        let address: IpAddr = bare.parse().map_err(|_| wrong("has no valid address"))?;
        if host.chars().any(|c| c.is_whitespace() || c == '#' || c.is_control()) {
            return Err(wrong("has a name with a space, a # or a control character in it"));
        }
        Ok(Self { host: host.to_ascii_lowercase(), address })
    }
}

/// `NAME=SOFT[:HARD]`; -1 is no limit.
impl FromStr for Ulimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: String| format!("\"{text}\": {why}");
        let form = || wrong("it is not NAME=SOFT[:HARD], as in nofile=1024:2048".to_owned());
        let (name, limits) = text.split_once('=').ok_or_else(form)?;
        let (soft, hard) = limits.split_once(':').map_or((limits, None), |(soft, hard)| (soft, Some(hard)));
        let number = |text: &str| text.trim().parse::<i64>().ok().filter(|number| *number >= -1);
        let soft = number(soft).ok_or_else(form)?;
        let hard = hard.map_or(Some(soft), number).ok_or_else(form)?;
        Self::new(name, soft, hard).map_err(wrong)
    }
}

impl Ulimit {
    /// A limit that a step can have; -1 is no limit.
    ///
    /// Errors: a name that is no limit's, a soft limit above the hard one.
    pub fn new(name: &str, soft: i64, hard: i64) -> Result<Self, String> {
        if !ULIMITS.contains(&name) {
            let hint = suggest::nearest(name, ULIMITS);
            let hint = hint.map_or_else(
                || format!("it is one of {}", ULIMITS.join(", ")),
                |name| format!("did you mean {name}?"),
            );
            return Err(format!("there is no limit {name}: {hint}"));
        }
        if hard != -1 && (soft == -1 || soft > hard) {
            return Err("the soft limit is above the hard one".to_owned());
        }
        Ok(Self { name: name.to_owned(), soft, hard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, value: &str) -> Result<Options, OptionError> {
        let mut options = Options::default();
        options.set(name, value).map(|()| options)
    }

    #[test]
    fn hosts_and_limits_are_read_as_clients_write_them() {
        let hosts = set("add-hosts", "DB=10.0.0.7,\"six=::1\"").expect("valid").extra_hosts;
        assert_eq!(hosts[0], ExtraHost { host: "db".into(), address: "10.0.0.7".parse().expect("valid") });
        assert_eq!(hosts[1].address.to_string(), "::1");
        for text in ["a:10.0.0.7", "a=10.0.0.7", "a:[::1]", "a:::1", "a=::1"] {
            assert!(text.parse::<ExtraHost>().is_ok(), "{text}");
        }
        let limits = set("ulimit", "nofile=1024:2048,core=-1,nproc=5").expect("valid").ulimits;
        let seen: Vec<_> = limits.iter().map(|one| (one.name.as_str(), one.soft, one.hard)).collect();
        assert_eq!(seen, [("nofile", 1024, 2048), ("core", -1, -1), ("nproc", 5, 5)]);
        assert!(set("add-hosts", "").expect("none").extra_hosts.is_empty());
    }

    #[test]
    fn what_is_not_of_its_form_is_told_with_a_way_out() {
        for (name, value, why) in [
            ("add-hosts", "db", "db.example:10.0.0.7"),
            ("add-hosts", "db=tea", "no valid address"),
            ("add-hosts", "d b=10.0.0.7", "space"),
            ("add-hosts", "a=10.0.0.7,gate=host-gateway", "no gateway"),
            ("ulimit", "nofile", "NAME=SOFT"),
            ("ulimit", "nofiles=1", "did you mean nofile?"),
            ("ulimit", "tea=1", "one of core, cpu"),
            ("ulimit", "nofile=2:1", "above the hard one"),
            ("ulimit", "nofile=-1:1", "above the hard one"),
            ("shm-size", "64m", "no number of bytes"),
            ("shm-size", "-1", "no number of bytes"),
            ("memory", "1g", "no number above 0"),
            ("cpusetcpus", "all", "as in 0-3,5"),
            ("memswop", "1", "did you mean memswap?"),
            ("force-network-mode", "bridge", "none, host and sandbox"),
            ("image-resolve-mode", "never", "default, pull and local"),
            ("multi-platform", "maybe", "neither true nor false"),
            ("ulimits", "nofile=1", "did you mean ulimit?"),
            ("flavour", "vanilla", "no frontend option \"flavour\""),
        ] {
            let error = set(name, value).expect_err(value).to_string();
            assert!(error.contains(why), "{name} {value}: {error}");
        }
    }

    #[test]
    fn each_attribute_has_its_option() {
        assert_eq!(set("no-cache", "").expect("valid").no_cache, NoCache::All);
        let stages = NoCache::Stages(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(set("no-cache", "a,b").expect("valid").no_cache, stages);
        assert_eq!(set("build-arg:A", "1").expect("valid").build_args["A"], "1");
        assert_eq!(set("label:a.b", "c").expect("valid").labels["a.b"], "c");
        assert_eq!(set("shm-size", "64").expect("valid").shm_size_bytes, 64);
        assert_eq!(set("force-network-mode", "none").expect("valid").network, Network::None);
        assert_eq!(set("image-resolve-mode", "pull").expect("valid").resolve_mode, ResolveMode::Pull);
        for name in KNOWN.into_iter().filter(|name| !name.ends_with(':')) {
            assert!(!matches!(set(name, "x"), Err(OptionError::Unknown { .. })), "{name}");
        }
    }
}
