//! The files in `/etc` that every step gets: names and resolvers. Pure.

use std::fmt::Write;

use crate::spec::{ExtraHost, Network};

/// The step's `/etc/hosts`.
pub(crate) fn hosts(hostname: &str, extra: &[ExtraHost]) -> String {
    let mut text = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for host in extra {
        writeln!(text, "{}\t{}", host.ip, host.name).expect("writing to a string");
    }
    text
}

/// The step's `/etc/resolv.conf` from the builder's.
///
/// In the builder's own network its resolvers work as they are, one on loopback included. A step
/// with a loopback of its own keeps only those that lie elsewhere.
pub(crate) fn resolv_conf(builders: &str, network: Network) -> String {
    if network == Network::Host {
        return builders.to_owned();
    }
    let mut text = String::with_capacity(builders.len());
    for line in builders.lines().filter(|line| !is_loopback_resolver(line)) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Name resolution that somebody set up; what is empty is the builder's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Servers.
    pub nameservers: Vec<std::net::IpAddr>,
    /// Domains that are searched.
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

impl Dns {
    /// The builder's `/etc/resolv.conf`, with what was set up in place of its own.
    pub(crate) fn apply(&self, builders: &str) -> String {
        let servers = self.nameservers.iter().map(|server| format!("nameserver {server}"));
        let one =
            |name: &str, words: &[String]| (!words.is_empty()).then(|| format!("{name} {}", words.join(" ")));
        let own: Vec<_> =
            servers.chain(one("search", &self.search)).chain(one("options", &self.options)).collect();
        let is_replaced = |line: &&str| match line.split_whitespace().next() {
            Some("nameserver") => !self.nameservers.is_empty(),
            Some("search" | "domain") => !self.search.is_empty(),
            Some("options") => !self.options.is_empty(),
            _ => false,
        };
        let kept = builders.lines().filter(|line| !is_replaced(line)).map(ToOwned::to_owned);
        kept.chain(own).map(|line| line + "\n").collect()
    }
}

fn is_loopback_resolver(line: &str) -> bool {
    let mut words = line.split_whitespace();
    if words.next() != Some("nameserver") {
        return false;
    }
    let address = words.next().unwrap_or_default();
    let address = address.split('%').next().unwrap_or_default();
    address.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_has_localhost_the_name_and_what_was_asked() {
        let extra = [ExtraHost { name: "db".to_owned(), ip: "10.0.0.7".parse().expect("address") }];
        let expected = "127.0.0.1\tlocalhost box\n::1\tlocalhost ip6-localhost ip6-loopback\n10.0.0.7\tdb\n";
        assert_eq!(hosts("box", &extra), expected);
    }

    #[test]
    fn what_was_set_up_replaces_the_builders_own_line_by_line() {
        let builders = "nameserver 10.0.0.1\nsearch a.b\noptions ndots:5\n";
        assert_eq!(Dns::default().apply(builders), builders);
        let dns = Dns {
            nameservers: ["1.1.1.1", "fd00::1"].iter().filter_map(|text| text.parse().ok()).collect(),
            options: vec!["edns0".to_owned(), "ndots:1".to_owned()],
            ..Dns::default()
        };
        let text = "search a.b\nnameserver 1.1.1.1\nnameserver fd00::1\noptions edns0 ndots:1\n";
        assert_eq!(dns.apply(builders), text);
    }

    #[test]
    fn loopback_resolvers_stay_only_where_they_can_be_reached() {
        let text =
            "search a.b\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 10.96.0.10\noptions ndots:5\n";
        assert_eq!(resolv_conf(text, Network::Host), text);
        let expected = "search a.b\nnameserver 10.96.0.10\noptions ndots:5\n";
        assert_eq!(resolv_conf(text, Network::None), expected);
    }
}
