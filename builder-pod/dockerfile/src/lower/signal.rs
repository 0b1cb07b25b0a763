//! Names of signals, for `STOPSIGNAL`.

const NAMES: [&str; 37] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE",
    "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU",
    "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX", "UNUSED",
];

/// Whether `text` is a signal: a number other than 0, or a name with or without `SIG`.
pub(crate) fn is_valid(text: &str) -> bool {
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |prefix: &str, max: u32| {
        name.strip_prefix(prefix).and_then(|n| n.parse().ok()).is_some_and(|n: u32| (1..=max).contains(&n))
    };
    NAMES.contains(&name) || real_time("RTMIN+", 15) || real_time("RTMAX-", 14)
}

/// The names, for suggestions.
pub(crate) fn names() -> impl Iterator<Item = String> {
    NAMES.iter().map(|name| format!("SIG{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_signals() {
        for text in ["9", "SIGTERM", "term", "SIGRTMIN+3", "RTMAX-2"] {
            assert!(is_valid(text), "{text}");
        }
        for text in ["0", "SIGFOO", "", "SIGRTMIN+99"] {
            assert!(!is_valid(text), "{text}");
        }
    }
}
