//! `EXPOSE`: `[[ip:]host:]port[-port][/proto]`.

use crate::limits::EXPOSED_PORTS_MAX;

/// The ports that a word exposes, as `80/tcp`; the error is the finding's text.
pub(crate) fn ports(word: &str) -> Result<Vec<String>, String> {
    let mut parts = word.rsplitn(3, ':');
    let container = parts.next().unwrap_or("");
    let (host, ip) = (parts.next(), parts.next());
    let (port, proto) = container.split_once('/').unwrap_or((container, "tcp"));
    if port.is_empty() {
        return Err(format!("invalid port: {word:?}: no port specified"));
    }
    let proto = if proto.is_empty() { "tcp".to_owned() } else { proto.to_ascii_lowercase() };
    if !matches!(proto.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("invalid port: {word:?}: invalid proto: {proto}"));
    }
    if let Some(ip) = ip.filter(|ip| !ip.is_empty()) {
        let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
        if bare.parse::<std::net::IpAddr>().is_err() {
            return Err(format!("invalid IP address: {ip}"));
        }
    }
    let (start, end) = range(port).ok_or_else(|| format!("invalid containerPort: {port}"))?;
    if let Some(host) = host.filter(|host| !host.is_empty()) {
        let (host_start, host_end) = range(host).ok_or_else(|| format!("invalid hostPort: {host}"))?;
        if start != end && end - start != host_end - host_start {
            return Err(format!("invalid ranges specified for container and host Ports: {port} and {host}"));
        }
    }
    Ok((start..=end).take(EXPOSED_PORTS_MAX).map(|port| format!("{port}/{proto}")).collect())
}

fn range(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| text.parse().ok().filter(|n: &u32| *n <= 65_535);
    match text.split_once('-') {
        None => number(text).map(|n| (n, n)),
        Some((start, end)) => {
            let (start, end) = (number(start)?, number(end)?);
            (start <= end).then_some((start, end))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_ports_ranges_and_protocols() {
        assert_eq!(ports("80"), Ok(vec!["80/tcp".into()]));
        assert_eq!(ports("53/UDP"), Ok(vec!["53/udp".into()]));
        assert_eq!(ports("80-82/sctp"), Ok(vec!["80/sctp".into(), "81/sctp".into(), "82/sctp".into()]));
        assert_eq!(ports("127.0.0.1:8080:80"), Ok(vec!["80/tcp".into()]));
        assert_eq!(ports("[::1]:8080:80"), Ok(vec!["80/tcp".into()]));
        for text in ["", "x", "70000", "82-80", "80/icmp", "/tcp", "1.2.3:1:80", "1-2:80-90"] {
            assert!(ports(text).is_err(), "{text}");
        }
    }
}
