//! Ordered include and exclude patterns, as `.dockerignore` and LLB use them.
//!
//! In: patterns such as `docs`, `**/*.md`, `!docs/README.md`. Out: whether a path matches.
//! Holds: the last pattern that matches decides; a pattern that matches a directory matches all
//! below it; time is linear in pattern and path (no backtracking).
//! Never: touches a file.
//!
//! The rules are those of Docker's matcher. Where that one hands the inside of `[…]` or the character after
//! `\` to its regex engine unread (`\d` would be any digit), this one reads them as Go's `filepath.Match`
//! does, which is what its documentation says.

use regex::Regex;

use crate::path;

/// Why a pattern list is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pattern \"{pattern}\" {reason}")]
pub struct PatternError {
    /// Which of the given patterns, counted from 0.
    pub index: usize,
    /// The pattern as it was given.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// An ordered list of patterns.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    patterns: Vec<Pattern>,
    negations: bool,
}

/// Which patterns matched a directory; handed on to its children.
#[derive(Debug, Clone, Default)]
pub struct MatchState(Option<Vec<bool>>);

#[derive(Debug, Clone)]
struct Pattern {
    text: String,
    negated: bool,
    matcher: Matcher,
}

#[derive(Debug, Clone)]
enum Matcher {
    Exact,
    /// The text before a trailing `**`.
    Prefix(usize),
    /// The text after a leading `**`.
    Suffix,
    Regex(Regex),
}

impl Patterns {
    /// Reads `patterns` in order. Blank ones are skipped, each is cleaned as a path.
    ///
    /// # Errors
    /// The first pattern that is malformed.
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self, PatternError> {
        let mut list = Self::default();
        for (index, given) in patterns.into_iter().enumerate() {
            let given = given.as_ref();
            let error = |reason| PatternError { index, pattern: given.to_owned(), reason };
            if given.trim().is_empty() {
                continue;
            }
            let cleaned = path::clean_lexically(given.trim());
            let (negated, text) = match cleaned.strip_prefix('!') {
                Some("") => return Err(error("excepts nothing: a path must follow \"!\"")),
                Some(rest) => (true, rest.to_owned()),
                None => (false, cleaned),
            };
            let matcher = compile(&text).map_err(error)?;
            list.negations |= negated;
            list.patterns.push(Pattern { text, negated, matcher });
        }
        Ok(list)
    }

    /// Whether there is no pattern at all.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether any pattern is a `!` exception.
    pub fn has_negations(&self) -> bool {
        self.negations
    }

    /// Whether `path` (relative, slashes) or one of its parents matches.
    pub fn matches(&self, path: &str) -> bool {
        let mut matched = false;
        for pattern in &self.patterns {
            // An inclusion cannot change a match, an exception cannot change a mismatch.
            if pattern.negated == matched && pattern.matches_or_parent(path) {
                matched = !pattern.negated;
            }
        }
        matched
    }

    /// The same as [`Patterns::matches`] for a walk: `parent` is what the call for the parent
    /// directory gave, or the default at the top.
    pub fn matches_below(&self, path: &str, parent: &MatchState) -> (bool, MatchState) {
        let mut matched = false;
        let mut state = vec![false; self.patterns.len()];
        for (at, pattern) in self.patterns.iter().enumerate() {
            let inherited = parent.0.as_ref().is_some_and(|flags| flags.get(at) == Some(&true));
            if !inherited && pattern.negated != matched {
                continue;
            }
            state[at] = inherited
                || match parent.0 {
                    Some(_) => pattern.matches(path),
                    None => pattern.matches_or_parent(path),
                };
            if state[at] {
                matched = !pattern.negated;
            }
        }
        (matched, MatchState(Some(state)))
    }

    /// Whether a pattern that is (`negated`) or is not an exception may match something below `dir`.
    ///
    /// May say yes in vain, never no in vain.
    pub fn may_match_below(&self, dir: &str, negated: bool) -> bool {
        let inside = format!("{dir}/");
        self.patterns.iter().filter(|pattern| pattern.negated == negated).any(|pattern| {
            let literal = pattern.text.strip_suffix("/**").unwrap_or(&pattern.text);
            let literal = literal.strip_suffix("/*").unwrap_or(literal);
            match literal.find(['*', '?', '[', ']', '\\', '^']) {
                // The part before the first wildcard must agree with the directory as far as both go.
                Some(at) => inside.starts_with(&literal[..at]) || literal[..at].starts_with(&inside),
                None => {
                    format!("{literal}/").starts_with(&inside) || inside.starts_with(&format!("{literal}/"))
                }
            }
        })
    }
}

impl Pattern {
    fn matches(&self, path: &str) -> bool {
        match &self.matcher {
            Matcher::Exact => path == self.text,
            Matcher::Prefix(len) => path.starts_with(&self.text[..*len]),
            Matcher::Suffix => {
                let suffix = &self.text[2..];
                path.ends_with(suffix) || suffix.strip_prefix('/') == Some(path)
            }
            Matcher::Regex(regex) => regex.is_match(path),
        }
    }

    fn matches_or_parent(&self, path: &str) -> bool {
        self.matches(path) || path.match_indices('/').any(|(at, _)| self.matches(&path[..at]))
    }
}

/// The regex of a pattern, or the cheaper form that says the same.
fn compile(text: &str) -> Result<Matcher, &'static str> {
    const MALFORMED: &str = "is malformed";
    path::matches(text.as_bytes(), b".").map_err(|_| MALFORMED)?;
    let mut regex = String::from("(?s)^");
    let mut matcher = Matcher::Exact;
    let mut special = false;
    let mut chars = text.chars().peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                // "**/" is "**": it also stands for no directory at all.
                chars.next_if_eq(&'/');
                if chars.peek().is_some() {
                    regex.push_str("(.*/)?");
                    special = true;
                } else if matches!(matcher, Matcher::Exact) && !special {
                    matcher = Matcher::Prefix(text.len() - 2);
                } else {
                    regex.push_str(".*");
                    special = true;
                }
                if first {
                    matcher = Matcher::Suffix;
                    special = false;
                }
            }
            '*' => {
                regex.push_str("[^/]*");
                special = true;
            }
            '?' => {
                regex.push_str("[^/]");
                special = true;
            }
            '\\' => {
                let escaped = chars.next().ok_or(MALFORMED)?;
                regex.push_str(&regex::escape(&escaped.to_string()));
                special = true;
            }
            '[' => {
                push_class(&mut regex, &mut chars).ok_or(MALFORMED)?;
                special = true;
            }
            c => regex.push_str(&regex::escape(&c.to_string())),
        }
        first = false;
    }
    if !special {
        return Ok(matcher);
    }
    regex.push('$');
    Regex::new(&regex).map(Matcher::Regex).map_err(|_| "is too large")
}

fn push_class(regex: &mut String, chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<()> {
    let (negated, ranges) = path::class(chars).ok()?;
    regex.push_str(if negated { "[^" } else { "[" });
    let mut any = false;
    for (low, high) in ranges.into_iter().filter(|(low, high)| low <= high) {
        any = true;
        regex.push_str(&format!("\\x{{{:x}}}-\\x{{{:x}}}", u32::from(low), u32::from(high)));
    }
    if !any {
        // Only reversed ranges: a class of nothing.
        regex.push_str("a&&b");
    }
    regex.push(']');
    Some(())
}

#[cfg(test)]
#[path = "pattern_tests.rs"]
mod tests;
