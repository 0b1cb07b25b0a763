//! Mode changes: octal, or symbolic as `chmod` takes them, with no umask.

use crate::error::Error;

/// A change of permission bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModeChange {
    /// These bits, whatever was there before (at most `07777`).
    Bits(u32),
    /// The clauses of a symbolic mode, in order.
    Symbolic(Vec<Clause>),
}

/// One `[ugoa][+-=][rwxXst|ugo]` step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// The bits that the step may touch.
    who: u32,
    op: Op,
    /// The bits that it names.
    bits: u32,
    /// `X`: execute bits if it is a directory or some execute bit was set.
    conditional: u32,
    /// Shift of the class to copy from (6 user, 3 group, 0 others).
    copied: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Add,
    Remove,
    Assign,
}

const STICKY: u32 = 0o1000;
const CHANGEABLE: u32 = 0o6777;

impl ModeChange {
    /// Reads `0644`, `755`, `u=rwX,go=rX`, `+x`, `go=u-w`, …
    ///
    /// # Errors
    /// [`Error::Mode`] for anything else.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bad = || Error::Mode(text.to_owned());
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let bits = u32::from_str_radix(text, 8).map_err(|_| bad())?;
            return if bits <= 0o7777 { Ok(Self::Bits(bits)) } else { Err(bad()) };
        }
        let mut clauses = Vec::new();
        for clause in text.split(',') {
            parse_clause(clause, &mut clauses).ok_or_else(bad)?;
        }
        Ok(Self::Symbolic(clauses))
    }

    /// The permission bits (`07777`) that `mode` becomes.
    pub fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let before = mode & 0o7777;
        match self {
            Self::Bits(bits) => *bits,
            Self::Symbolic(clauses) => clauses.iter().fold(before, |now, clause| {
                let executable = is_dir || before & 0o111 != 0;
                clause.apply(now, executable)
            }),
        }
    }
}

impl Clause {
    fn apply(&self, mode: u32, executable: bool) -> u32 {
        let mut bits = self.bits & self.who;
        if executable || self.op == Op::Remove {
            bits |= self.conditional & self.who;
        }
        for shift in &self.copied {
            let class = mode >> shift & 0o7;
            bits |= (class << 6 | class << 3 | class) & self.who;
        }
        match self.op {
            Op::Add => mode | bits,
            Op::Remove => mode & !bits,
            Op::Assign if self.copied.is_empty() => mode & !self.who | bits,
            // A copied class says nothing of setuid and setgid.
            Op::Assign => mode & !(self.who & 0o777) | bits,
        }
    }
}

/// Reads one clause: the classes, then one or more operators with their permissions.
fn parse_clause(text: &str, clauses: &mut Vec<Clause>) -> Option<()> {
    let mut chars = text.chars().peekable();
    let mut named = 0;
    while let Some(class) = chars.next_if(|c| "ugoa".contains(*c)) {
        named |= match class {
            'u' => 0o4700,
            'g' => 0o2070,
            'o' => 0o0007,
            _ => CHANGEABLE,
        };
    }
    chars.peek()?;
    while let Some(op) = chars.next() {
        let op = match op {
            '+' => Op::Add,
            '-' => Op::Remove,
            '=' => Op::Assign,
            _ => return None,
        };
        let who = if named == 0 { CHANGEABLE } else { named };
        let mut clause = Clause { who, op, bits: 0, conditional: 0, copied: Vec::new() };
        while let Some(permission) = chars.next_if(|c| !"+-=".contains(*c)) {
            match permission {
                'r' => clause.bits |= 0o444,
                'w' => clause.bits |= 0o222,
                'x' => clause.bits |= 0o111,
                'X' => clause.conditional |= 0o111,
                's' => clause.bits |= 0o6000,
                // "Others" alone have no sticky bit.
                't' if named != 0o0007 => {
                    clause.who |= STICKY;
                    clause.bits |= STICKY;
                }
                't' => {}
                'u' => clause.copied.push(6),
                'g' => clause.copied.push(3),
                'o' => clause.copied.push(0),
                _ => return None,
            }
        }
        clauses.push(clause);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_change_as_chmod_would() {
        for (change, is_dir, before, after) in [
            ("0644", false, 0o755, 0o644),
            ("4755", false, 0o600, 0o4755),
            ("+x", false, 0o644, 0o755),
            ("a-w", false, 0o666, 0o444),
            ("go-rwx", false, 0o777, 0o700),
            ("u=rwX,go=rX", false, 0o600, 0o644),
            ("u=rwX,go=rX", false, 0o700, 0o755),
            ("u=rwX,go=rX", true, 0o600, 0o755),
            ("go=u-w", false, 0o640, 0o644),
            ("g=u", false, 0o4700, 0o4770),
            ("u=rwx", false, 0o4600, 0o700),
            ("u+s", false, 0o755, 0o4755),
            ("g+s", false, 0o755, 0o2755),
            ("o+s", false, 0o755, 0o755),
            ("+t", true, 0o777, 0o1777),
            ("go=", false, 0o777, 0o700),
            ("u+rw-x", false, 0o100, 0o600),
            ("=rw,+X", false, 0o700, 0o777),
        ] {
            let parsed = ModeChange::parse(change).unwrap_or_else(|e| panic!("{e}"));
            let got = parsed.apply(before, is_dir);
            assert_eq!(got, after, "{change} on {before:o}: got {got:o}, not {after:o}");
        }
    }

    #[test]
    fn malformed_modes_are_refused() {
        for text in ["", "64a", "888", "10000", "rwx", "u", "u=q", "z=r", "u=r,,g=r", "u=r,"] {
            assert!(ModeChange::parse(text).is_err(), "{text}");
        }
    }
}
