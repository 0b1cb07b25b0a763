//! Sizes and durations as `docker buildx` reads and shows them.

use std::time::Duration;

/// Bytes of a text such as `512mb`, `10g`, `1.5GiB` or `1000`; each unit is 1024 of the one before.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(digits);
    let unit = unit.trim().trim_end_matches('b').trim_end_matches('i');
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(format!("\"{text}\" is no size: give one such as 512mb or 10gb")),
    };
    let number: f64 =
        number.parse().map_err(|_| format!("\"{text}\" is no size: give one such as 512mb or 10gb"))?;
    let bytes = number * 2f64.powi(shift);
    if bytes >= 9e18 {
        return Err(format!("\"{text}\" is more than any disk has"));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked above; no sign is read"
    )]
    Ok(bytes as u64)
}

/// Bytes of a quantity as Kubernetes writes it: `256Mi`, `1G` or `1048576`.
pub(crate) fn quantity(text: &str) -> Result<u64, String> {
    let wrong = || format!("\"{text}\" is no quantity of bytes: give one such as 256Mi");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let (base, power) = match unit {
        "" => (1000f64, 0),
        "m" => (1000.0, -1),
        "k" => (1000.0, 1),
        "M" => (1000.0, 2),
        "G" => (1000.0, 3),
        "T" => (1000.0, 4),
        "Ki" => (1024.0, 1),
        "Mi" => (1024.0, 2),
        "Gi" => (1024.0, 3),
        "Ti" => (1024.0, 4),
        _ => return Err(wrong()),
    };
    let bytes = (number * base.powi(power)).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a number above is cut to the largest; no sign is read"
    )]
    Ok(bytes as u64)
}

/// A duration such as `24h`, `1h30m` or `7d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is no duration: give one such as 24h, 1h30m or 7d");
    let (mut sum, mut rest) = (0u64, text.trim());
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let mut chars = tail.chars();
        let seconds = match chars.next() {
            Some('s') => 1,
            Some('m') => 60,
            Some('h') => 3600,
            Some('d') => 86_400,
            Some('w') => 7 * 86_400,
            _ => return Err(wrong()),
        };
        sum = number.checked_mul(seconds).and_then(|n| sum.checked_add(n)).ok_or_else(wrong)?;
        rest = chars.as_str();
    }
    Ok(Duration::from_secs(sum))
}

/// How long ago, in the words of `docker`.
pub(super) fn ago(age: Duration) -> String {
    let seconds = age.as_secs();
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3600 => (seconds / 60, "minute"),
        3600..172_800 => (seconds / 3600, "hour"),
        172_800..1_209_600 => (seconds / 86_400, "day"),
        _ => (seconds / 604_800, "week"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_buildx_reads_them() {
        let sizes =
            [("1000", 1000), ("512mb", 512 << 20), ("10g", 10 << 30), ("1.5GiB", 3 << 29), ("2 KB", 2048)];
        for (text, bytes) in sizes {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "x", "10q", "-1", "1e9", "99999999p", "b"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, bytes) in [("256Mi", 256 << 20), ("1G", 1_000_000_000), ("1.5Ki", 1536), ("7", 7)] {
            assert_eq!(quantity(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "Mi", "1mb", "-1"] {
            assert!(quantity(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_sums() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(604_800)));
        for wrong in ["", "h", "3", "1y", "99999999999999999w"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn ages_are_told_for_people() {
        assert_eq!(ago(Duration::from_secs(1)), "1 second ago");
        assert_eq!(ago(Duration::from_secs(3 * 86_400)), "3 days ago");
    }
}
