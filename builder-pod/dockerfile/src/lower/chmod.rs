//! `--chmod`: octal or symbolic.

/// A mode as the copy operation takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Permission bits.
    Octal(i32),
    /// Clauses as `u=rwX,go=rX`.
    Symbolic(String),
}

/// Reads a mode; the error is the finding's text.
pub(crate) fn parse(text: &str) -> Result<Mode, String> {
    let octal =
        || format!("invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777");
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return match i32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o7777 => Ok(Mode::Octal(mode)),
            _ => Err(octal()),
        };
    }
    if text.split(',').all(clause) {
        return Ok(Mode::Symbolic(text.to_owned()));
    }
    Err(format!("invalid chmod parameter: '{text}'. it is neither octal nor of the form u=rwX,go=rX"))
}

/// `[ugoa…]` and at least one of `+-=` with permissions.
fn clause(text: &str) -> bool {
    let actions = text.trim_start_matches(['u', 'g', 'o', 'a']);
    if !actions.starts_with(['+', '-', '=']) {
        return false;
    }
    actions
        .chars()
        .all(|c| matches!(c, '+' | '-' | '=' | 'r' | 'w' | 'x' | 'X' | 's' | 't' | 'u' | 'g' | 'o'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_and_symbolic_modes_are_told_apart_and_checked() {
        assert_eq!(parse("0755"), Ok(Mode::Octal(0o755)));
        assert_eq!(parse("7777"), Ok(Mode::Octal(0o7777)));
        for text in ["u=rwX,go=rX", "+x", "a-w", "go=u-w", "u+s,+t", "go="] {
            assert_eq!(parse(text), Ok(Mode::Symbolic(text.to_owned())));
        }
        for text in ["64a", "10000", "888", "", "u", "z+x", "u+x,", "u+q"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
