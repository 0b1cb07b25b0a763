//! The filter language of containerd: `type==regular,inuse`, `id~=^ab`, `labels."a b"==c`.
//!
//! Parsed from what a client sends: bounded, no panics. Several filters are alternatives; the selectors of one
//! must all match.

use std::fmt;

use regex::Regex;

/// Longest filter.
const TEXT_BYTES_MAX: usize = 64 << 10;
/// Most filters of one request.
const FILTERS_MAX: usize = 256;
/// Largest compiled expression.
const REGEX_BYTES_MAX: usize = 1 << 20;

/// Alternatives; none: everything matches.
#[derive(Debug, Default)]
pub(crate) struct Filter(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

/// What is wrong with a filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WrongFilter(String);

impl fmt::Display for WrongFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Filter {
    /// Reads the filters of a request.
    pub(crate) fn parse(texts: &[impl AsRef<str>]) -> Result<Self, WrongFilter> {
        if texts.len() > FILTERS_MAX {
            return Err(WrongFilter(format!("{} filters, more than {FILTERS_MAX}", texts.len())));
        }
        // An empty one matches everything, and so do all together.
        if texts.iter().any(|text| text.as_ref().is_empty()) {
            return Ok(Self::default());
        }
        texts.iter().map(|text| selectors(text.as_ref())).collect::<Result<_, _>>().map(Self)
    }

    /// Whether it matches everything.
    pub(crate) fn is_any(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether something matches of which `value` gives the fields: none where absent.
    pub(crate) fn matches(&self, value: impl Fn(&[String]) -> Option<String>) -> bool {
        let holds = |selector: &Selector| {
            let found = value(&selector.path);
            match &selector.test {
                Test::Present => found.is_some(),
                // What is absent equals nothing, and differs from nothing in particular.
                Test::Equal(wanted) => found.is_some_and(|found| found == *wanted),
                Test::NotEqual(wanted) => found.is_none_or(|found| found != *wanted),
                Test::Matches(regex) => found.is_some_and(|found| regex.is_match(&found)),
            }
        };
        self.is_any() || self.0.iter().any(|selectors| selectors.iter().all(holds))
    }
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
}

fn selectors(text: &str) -> Result<Vec<Selector>, WrongFilter> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(WrongFilter(format!("a filter of {} bytes, more than {TEXT_BYTES_MAX}", text.len())));
    }
    let mut parser = Parser { text, rest: text };
    let mut all = vec![parser.selector()?];
    while !parser.rest.is_empty() {
        if !parser.take(",") {
            return Err(parser.wrong("unexpected input"));
        }
        all.push(parser.selector()?);
    }
    Ok(all)
}

impl Parser<'_> {
    fn wrong(&self, why: &str) -> WrongFilter {
        let at = self.text.len() - self.rest.len();
        let (before, after) = self.text.split_at_checked(at).unwrap_or((self.text, ""));
        WrongFilter(format!("filters: parse error: [{before} >|{after}|<]: {why}"))
    }

    fn take(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn selector(&mut self) -> Result<Selector, WrongFilter> {
        let mut path = vec![self.field()?];
        while self.take(".") {
            path.push(self.field()?);
        }
        if self.rest.is_empty() || self.rest.starts_with(',') {
            return Ok(Selector { path, test: Test::Present });
        }
        let test = if self.take("==") {
            Test::Equal(self.value(&['"', '\''])?)
        } else if self.take("!=") {
            Test::NotEqual(self.value(&['"', '\''])?)
        } else if self.take("~=") {
            let text = self.value(&['"', '\'', '/', '|'])?;
            let regex = regex::RegexBuilder::new(&text).size_limit(REGEX_BYTES_MAX).build();
            Test::Matches(regex.map_err(|error| self.wrong(&error.to_string()))?)
        } else {
            return Err(self.wrong(r#"expected an operator ("=="|"!="|"~=")"#));
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, WrongFilter> {
        if self.rest.starts_with(['"', '\'']) {
            return self.quoted();
        }
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(self.rest.len());
        let (field, rest) = self.rest.split_at_checked(end).unwrap_or_default();
        if !field.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
            return Err(self.wrong("expected field or quoted"));
        }
        self.rest = rest;
        Ok(field.to_owned())
    }

    fn value(&mut self, quotes: &[char]) -> Result<String, WrongFilter> {
        if self.rest.starts_with(quotes) {
            return self.quoted();
        }
        let end = self.rest.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(self.rest.len());
        let (value, rest) = self.rest.split_at_checked(end).unwrap_or_default();
        if value.is_empty() {
            return Err(self.wrong("expected value or quoted"));
        }
        self.rest = rest;
        Ok(value.to_owned())
    }

    fn quoted(&mut self) -> Result<String, WrongFilter> {
        let mut chars = self.rest.char_indices();
        let quote = chars.next().map(|(_, quote)| quote);
        let mut out = String::new();
        while let Some((at, c)) = chars.next() {
            match c {
                c if Some(c) == quote => {
                    self.rest = self.rest.get(at + c.len_utf8()..).unwrap_or_default();
                    return Ok(out);
                }
                // Only in strings: an expression's backslashes are its own.
                '\\' if matches!(quote, Some('"' | '\'')) => match chars.next() {
                    Some((_, 'n')) => out.push('\n'),
                    Some((_, 't')) => out.push('\t'),
                    Some((_, c @ ('\\' | '"' | '\''))) => out.push(c),
                    _ => return Err(self.wrong("unquoting failed: invalid syntax")),
                },
                '\\' if chars.clone().next().map(|(_, next)| next) == quote => {
                    out.extend(quote);
                    chars.next();
                }
                c => out.push(c),
            }
        }
        Err(self.wrong("literal not terminated"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(filters: &[&str]) -> bool {
        let filter = Filter::parse(filters).expect("valid");
        filter.matches(|path| match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["id"] => Some("abc123".to_owned()),
            ["type"] => Some("source.local".to_owned()),
            ["inuse"] => Some(String::new()),
            ["labels", "a b"] => Some("x,y".to_owned()),
            _ => None,
        })
    }

    #[test]
    fn selectors_of_one_filter_are_all_needed_and_filters_are_alternatives() {
        assert!(matches(&[]) && matches(&["", "type==regular"]));
        assert!(matches(&["type==source.local,inuse"]));
        assert!(!matches(&["type==source.local,mutable"]));
        assert!(matches(&["type==regular", "id==abc123"]));
        assert!(!matches(&["type==regular", "id==abc"]));
    }

    #[test]
    fn each_operator_is_containerd_s() {
        assert!(matches(&["id!=x"]) && !matches(&["id!=abc123"]) && matches(&["nothing!=x"]));
        assert!(matches(&["id~=^abc"]) && !matches(&["id~=^bc"]) && !matches(&["nothing~=."]));
        assert!(matches(&[r#"labels."a b"=="x,y""#]) && matches(&["labels.'a b'"]));
        assert!(matches(&["id~=/^a.c[0-9]+$/,inuse"]) && matches(&["id~=|^abc|"]));
        assert!(!matches(&["inuse==true"]), "presence has no text");
    }

    #[test]
    fn what_is_no_filter_is_told_with_its_place() {
        for (text, part) in [
            ("type=regular", r#"[type >|=regular|<]: expected an operator ("=="|"!="|"~=")"#),
            ("==x", "expected field or quoted"),
            ("id==", "expected value or quoted"),
            ("id==a b", "unexpected input"),
            ("id==\"a", "literal not terminated"),
            ("id~=(", "regex"),
            ("1d==x", "expected field or quoted"),
            ("id==a,", "expected field or quoted"),
        ] {
            let wrong = Filter::parse(&[text]).expect_err(text).to_string();
            assert!(wrong.starts_with("filters: parse error: ") && wrong.contains(part), "{text}: {wrong}");
        }
    }
}
