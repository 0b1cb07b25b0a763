//! `.dockerignore` as far as a rule needs it: without exceptions, since a file inside of an ignored directory may be
//! taken back by one.

use regex::Regex;

use crate::lower::clean_path;

/// Patterns of an ignore file without exceptions.
#[derive(Debug, Clone)]
pub(crate) struct Ignored {
    patterns: Vec<Regex>,
    all: bool,
}

impl Ignored {
    /// `None` where there is nothing to say: no patterns, exceptions among them, or what is no pattern.
    pub(crate) fn new(patterns: &[String]) -> Option<Self> {
        let cleaned: Vec<String> = patterns
            .iter()
            .map(|pattern| pattern.trim())
            .filter(|pattern| !pattern.is_empty() && *pattern != "/")
            .map(|pattern| clean_path(pattern).trim_start_matches('/').to_owned())
            .collect();
        if cleaned.is_empty() || cleaned.iter().any(|pattern| pattern.starts_with('!')) {
            return None;
        }
        let all = cleaned.iter().any(|pattern| matches!(pattern.as_str(), "*" | "**" | "**/*"));
        let patterns =
            cleaned.iter().map(|pattern| Regex::new(&regex(pattern)).ok()).collect::<Option<_>>()?;
        Some(Self { patterns, all })
    }

    /// The cleaned path of a source that the patterns leave out.
    pub(crate) fn leaves_out(&self, source: &str) -> Option<String> {
        let path = clean_path(source);
        if (path == "." || path == "/") && !self.all {
            return None;
        }
        let relative = path.trim_start_matches('/');
        let ends = relative.match_indices('/').map(|(at, _)| at).chain([relative.len()]);
        let mut parents = ends.map(|end| &relative[..end]);
        parents.any(|parent| self.patterns.iter().any(|pattern| pattern.is_match(parent))).then_some(path)
    }
}

fn regex(pattern: &str) -> String {
    let mut out = String::from("^");
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.peek() == Some(&'*') => {
                chars.next();
                if chars.peek() == Some(&'/') {
                    chars.next();
                    out.push_str("(.*/)?");
                } else {
                    out.push_str(".*");
                }
            }
            '*' => out.push_str("[^/]*"),
            '?' => out.push_str("[^/]"),
            '[' | ']' => out.push(c),
            '\\' => out.push_str(&regex::escape(&chars.next().map(String::from).unwrap_or_default())),
            c => out.push_str(&regex::escape(&c.to_string())),
        }
    }
    out.push('$');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ignored(patterns: &[&str]) -> Option<Ignored> {
        Ignored::new(&patterns.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn what_lies_in_an_ignored_directory_is_left_out() {
        let rules = ignored(&["node_modules", "*.md", "/a/b", "**/tmp"]).expect("rules");
        for path in ["node_modules/x", "README.md", "./a/b/c", "/x/y/tmp", "tmp"] {
            assert!(rules.leaves_out(path).is_some(), "{path}");
        }
        for path in [".", "/", "src", "src/README.md.txt", "a"] {
            assert_eq!(rules.leaves_out(path), None, "{path}");
        }
        assert_eq!(ignored(&["*"]).expect("rules").leaves_out("./").as_deref(), Some("."));
    }

    #[test]
    fn exceptions_are_too_much() {
        assert!(ignored(&["*", "!src"]).is_none() && ignored(&[]).is_none());
    }
}
