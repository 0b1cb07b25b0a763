//! Path arithmetic as Go's `path` and `path/filepath` define it, on bytes.
//!
//! LLB paths were made by Go programs, so their cleaning and wildcard rules are part of the format.
//! A *relative* path here has no leading or trailing slash and no `.`, `..` or empty component;
//! the empty path is the root.

/// A wildcard pattern that is not well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadPattern;

/// The relative path that `path` means below a root: `..` stops at the root.
pub fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// Go's `filepath.Clean` on a pattern: unlike [`clean`] it keeps a leading slash and leading `..`.
pub fn clean_lexically(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                if parts.last().is_some_and(|last| *last != "..") {
                    parts.pop();
                } else if !rooted {
                    parts.push("..");
                }
            }
            part => parts.push(part),
        }
    }
    let body = parts.join("/");
    match (rooted, body.is_empty()) {
        (true, _) => format!("/{body}"),
        (false, true) => ".".to_owned(),
        (false, false) => body,
    }
}

/// `dir` and `name` joined; both relative, either may be empty.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        return name.to_vec();
    }
    if name.is_empty() {
        return dir.to_vec();
    }
    let mut joined = Vec::with_capacity(dir.len() + 1 + name.len());
    joined.extend_from_slice(dir);
    joined.push(b'/');
    joined.extend_from_slice(name);
    joined
}

/// The parent of a relative path and its last component; `None` for the root.
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => Some((&path[..at], &path[at + 1..])),
        None => Some((b"", path)),
    }
}

/// Whether a relative path is `dir` or lies below it; everything lies below the root.
pub fn is_at_or_below(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || path.starts_with(dir) && matches!(path.get(dir.len()), None | Some(b'/'))
}

/// How a relative path is shown to people: absolute below its root.
pub fn show(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

/// Whether a path component holds a wildcard (`*`, `?`, `[`) that is not escaped.
pub fn has_wildcard(name: &[u8]) -> bool {
    let mut bytes = name.iter();
    while let Some(b) = bytes.next() {
        match b {
            b'\\' => {
                bytes.next();
            }
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// Splits a relative path before its first component with a wildcard.
pub fn split_wildcard(path: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let parts: Vec<&[u8]> = path.split(|&b| b == b'/').filter(|part| !part.is_empty()).collect();
    let at = parts.iter().position(|part| has_wildcard(part)).unwrap_or(parts.len());
    (parts[..at].join(&b'/'), parts[at..].join(&b'/'))
}

/// Go's `filepath.Match`: `*` and `?` stop at a slash, `[a-z]` and `[^a]` are classes, `\` escapes.
///
/// # Errors
/// [`BadPattern`] when the pattern is not well formed, even if a mismatch comes earlier.
pub fn matches(pattern: &[u8], name: &[u8]) -> Result<bool, BadPattern> {
    let tokens = tokenize(pattern)?;
    Ok(run(&tokens, &String::from_utf8_lossy(name).chars().collect::<Vec<_>>()))
}

enum Token {
    Char(char),
    Any,
    Star,
    Class { negated: bool, ranges: Vec<(char, char)> },
}

fn tokenize(pattern: &[u8]) -> Result<Vec<Token>, BadPattern> {
    let text = String::from_utf8_lossy(pattern);
    let mut chars = text.chars().peekable();
    let mut tokens = Vec::new();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Star,
            '?' => Token::Any,
            '\\' => Token::Char(chars.next().ok_or(BadPattern)?),
            '[' => {
                let (negated, ranges) = class(&mut chars)?;
                Token::Class { negated, ranges }
            }
            c => Token::Char(c),
        });
    }
    Ok(tokens)
}

/// Reads a class after its `[`, as Go does: at least one range, `]` and `-` only escaped.
pub(crate) fn class(
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
) -> Result<(bool, Vec<(char, char)>), BadPattern> {
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Ok((negated, ranges));
        }
        let low = class_char(chars)?;
        let high = if chars.next_if_eq(&'-').is_some() { class_char(chars)? } else { low };
        ranges.push((low, high));
    }
}

fn class_char(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<char, BadPattern> {
    match chars.next() {
        None | Some('-' | ']') => Err(BadPattern),
        Some('\\') => chars.next().ok_or(BadPattern),
        Some(c) => Ok(c),
    }
}

/// Matches with one point to go back to, the last star: quadratic at worst, never exponential.
fn run(tokens: &[Token], name: &[char]) -> bool {
    let (mut t, mut n) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    loop {
        let step = match tokens.get(t) {
            None => n == name.len(),
            Some(Token::Star) => {
                back = Some((t, n));
                t += 1;
                continue;
            }
            Some(token) => name.get(n).is_some_and(|&c| match token {
                Token::Char(want) => c == *want,
                Token::Any => c != '/',
                Token::Class { negated, ranges } => {
                    ranges.iter().any(|&(low, high)| low <= c && c <= high) != *negated
                }
                Token::Star => false,
            }),
        };
        if step {
            if t == tokens.len() {
                return true;
            }
            t += 1;
            n += 1;
            continue;
        }
        match back {
            // A star takes one more character, but never a slash.
            Some((star, from)) if name.get(from).is_some_and(|&c| c != '/') => {
                back = Some((star, from + 1));
                t = star + 1;
                n = from + 1;
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_clamped_to_the_root() {
        for (path, want) in [
            ("/", ""),
            ("", ""),
            ("../../etc", "etc"),
            ("/a/./b//c/", "a/b/c"),
            ("a/../../b", "b"),
            ("/..", ""),
        ] {
            assert_eq!(clean(path.as_bytes()), want.as_bytes(), "{path}");
        }
    }

    #[test]
    fn lexical_cleaning_is_go_s() {
        for (path, want) in [
            ("", "."),
            ("./", "."),
            ("/", "/"),
            ("a/b/..", "a"),
            ("../a", "../a"),
            ("a/../..", ".."),
            ("/../a", "/a"),
            ("a//b/", "a/b"),
        ] {
            assert_eq!(clean_lexically(path), want, "{path}");
        }
    }

    #[test]
    fn wildcards_match_as_in_go() {
        for (pattern, name, want) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a?b", "a/b", false),
            ("a[^a]b", "a☺b", true),
            ("[a-ζ]*", "α", true),
            ("[\\]a]", "]", true),
            ("[\\-x]", "-", true),
            ("*x", "xxx", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), Ok(want), "{pattern} {name}");
        }
    }

    #[test]
    fn malformed_wildcards_are_errors_even_after_a_mismatch() {
        for pattern in ["[", "[^", "[^bc", "a[", "[]a]", "[-]", "[x-]", "[a-b-c]", "\\", "x[-", "zzz["] {
            assert_eq!(matches(pattern.as_bytes(), b"ab"), Err(BadPattern), "{pattern}");
        }
    }

    #[test]
    fn a_path_is_split_before_its_first_wildcard() {
        for (path, want) in
            [("a/b", ("a/b", "")), ("a/*/c", ("a", "*/c")), ("*", ("", "*")), ("a\\*/b?", ("a\\*", "b?"))]
        {
            let (a, b) = split_wildcard(path.as_bytes());
            assert_eq!((a.as_slice(), b.as_slice()), (want.0.as_bytes(), want.1.as_bytes()), "{path}");
        }
    }
}
