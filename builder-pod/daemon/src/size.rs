//! Sizes and durations as `buildkitd.toml` and Go write them.

use std::fmt;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, Visitor};

/// Room on a disk, absolute or as a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// So many bytes.
    Bytes(u64),
    /// Percent of the file system.
    Percent(u64),
}

impl Default for Space {
    fn default() -> Self {
        Self::Bytes(0)
    }
}

/// What a percentage of an unknown disk stands for.
const UNKNOWN_DISK_BYTES: u64 = 2_000_000_000;

impl Space {
    /// Whether nothing was said.
    pub fn is_unset(&self) -> bool {
        matches!(self, Self::Bytes(0) | Self::Percent(0))
    }

    /// In bytes, of a file system of `total_bytes` (0: unknown). Rounded up as `buildkitd` rounds.
    pub fn bytes(&self, total_bytes: u64) -> u64 {
        match *self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(0) => 0,
            Self::Percent(_) if total_bytes == 0 => UNKNOWN_DISK_BYTES,
            Self::Percent(percent) => {
                let part = u128::from(total_bytes) * u128::from(percent) / 100;
                let rounded = ((part >> 30) + 1) * 1_000_000_000;
                u64::try_from(rounded).unwrap_or(u64::MAX)
            }
        }
    }

    /// Reads `512MB`, `10GB`, `20%`, `1000000`.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim_matches('"');
        if text.is_empty() {
            return Ok(Self::default());
        }
        let wrong = || {
            format!(
                "invalid disk space {text}: give bytes, such as \"10GB\", or a part of the disk, such as \"20%\""
            )
        };
        match text.strip_suffix('%') {
            Some(percent) => percent.parse().map(Self::Percent).map_err(|_| wrong()),
            None => parse_bytes(text).map(Self::Bytes).ok_or_else(wrong),
        }
    }
}

/// Bytes from `512`, `10GB`, `1.5 MiB`: every unit counts by 1024, as `buildkitd` counts.
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(digits)?;
    let unit = unit.strip_prefix(' ').unwrap_or(unit).to_ascii_lowercase();
    let unit = unit.strip_suffix('b').unwrap_or(&unit);
    let unit = match unit.strip_suffix('i') {
        Some(unit) if !unit.is_empty() => unit,
        _ => unit,
    };
    let shift = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == unit)? * 10;
    if !number.contains('.') {
        return number.parse::<u64>().ok()?.checked_mul(1 << shift);
    }
    let number: f64 = number.parse().ok()?;
    let bytes = number * f64::from(2_f32).powi(i32::try_from(shift).ok()?);
    // Above 2^53 nobody gives fractions.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "digits and a point are not negative; too much saturates"
    )]
    (bytes.is_finite()).then_some(bytes as u64)
}

/// Units of Go's durations, in nanoseconds; longer names first.
const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("h", 3600 * 1_000_000_000),
];

/// A duration from `48h`, `1h30m`, `1.5s`, or whole seconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim_matches('"');
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at_checked(end)?;
        let (name, nanos) = UNITS.iter().find(|(name, _)| {
            tail.strip_prefix(name).is_some_and(|after| !after.starts_with(|c: char| c.is_alphabetic()))
        })?;
        let unit = Duration::from_nanos(*nanos);
        let part = match number.parse::<u32>() {
            Ok(whole) => unit.checked_mul(whole)?,
            Err(_) => Duration::try_from_secs_f64(unit.as_secs_f64() * number.parse::<f64>().ok()?).ok()?,
        };
        total = total.checked_add(part)?;
        rest = tail.get(name.len()..)?;
    }
    (!text.is_empty()).then_some(total)
}

struct Text<T>(&'static str, fn(&str) -> Result<T, String>);

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.1)(text).map_err(E::custom)
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        (self.1)(&number.to_string()).map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Space {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Text("bytes, \"10GB\" or \"20%\"", Self::parse))
    }
}

/// A duration of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct GoDuration(pub(crate) Duration);

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let parse = |text: &str| match text {
            "" => Ok(Self::default()),
            text => parse_duration(text).map(Self).ok_or_else(|| {
                format!("invalid duration {text}: give seconds, or such as \"48h\" or \"1h30m\"")
            }),
        };
        deserializer.deserialize_any(Text("seconds, or such as \"48h\"", parse)).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_count_by_1024_whatever_their_unit_is_called() {
        for (text, bytes) in [
            ("512", 512),
            ("1k", 1024),
            ("10GB", 10 << 30),
            ("10 GiB", 10 << 30),
            ("1.5m", 1_572_864),
            ("2tb", 2 << 40),
            ("7B", 7),
        ] {
            assert_eq!(parse_bytes(text), Some(bytes), "{text}");
        }
        for wrong in ["", "GB", "-1", "1x", "1ib", "1..2k", "99999999999999999999"] {
            assert_eq!(parse_bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_part_of_the_disk_is_rounded_up_to_gigabytes() {
        assert_eq!(Space::parse("10%"), Ok(Space::Percent(10)));
        assert_eq!(Space::Percent(10).bytes(100 << 30), 11_000_000_000);
        assert_eq!(Space::Percent(10).bytes(0), UNKNOWN_DISK_BYTES);
        assert_eq!(Space::Bytes(5).bytes(0), 5);
        assert!(Space::parse("x%").is_err());
    }

    #[test]
    fn durations_are_go_s() {
        for (text, seconds) in [
            ("48h", 172_800.0),
            ("1h30m", 5400.0),
            ("1.5s", 1.5),
            ("300ms", 0.3),
            ("604800", 604_800.0),
            ("0", 0.0),
        ] {
            assert_eq!(parse_duration(text).map(|d| d.as_secs_f64()), Some(seconds), "{text}");
        }
        for wrong in ["", "h", "5x", "1h30", "-5s", "5d", "1.2.3s"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }
}
