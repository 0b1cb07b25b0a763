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
    fn loopback_resolvers_stay_only_where_they_can_be_reached() {
        let text =
            "search a.b\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 10.96.0.10\noptions ndots:5\n";
        assert_eq!(resolv_conf(text, Network::Host), text);
        let expected = "search a.b\nnameserver 10.96.0.10\noptions ndots:5\n";
        assert_eq!(resolv_conf(text, Network::None), expected);
    }
}
