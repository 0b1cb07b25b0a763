//! Quotes, escapes and variables, as BuildKit's frontend has them (a subset of the shell's rules).
//!
//! Holds: time is linear in text and values, results are bounded by [`EXPANSION_BYTES_MAX`], nesting by
//! [`EXPANSION_DEPTH_MAX`].

use std::collections::BTreeSet;

use regex::Regex;

use crate::limits::{EXPANSION_BYTES_MAX, EXPANSION_DEPTH_MAX};

/// Where variables come from.
pub(crate) trait Lookup {
    /// The value of a variable, `None` where it is not set.
    fn get(&self, name: &str) -> Option<&str>;
}

/// No variables at all.
impl Lookup for () {
    fn get(&self, _name: &str) -> Option<&str> {
        None
    }
}

impl<T: Lookup> Lookup for &T {
    fn get(&self, name: &str) -> Option<&str> {
        (**self).get(name)
    }
}

/// Why a text can't be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExpandError {
    #[error("missing closing quote {0}")]
    Quote(char),
    #[error("syntax error: missing '}}'")]
    Brace,
    #[error("syntax error: missing '/' in ${{}}")]
    Slash,
    #[error("syntax error: bad substitution")]
    Substitution,
    #[error("unsupported modifier ({0}) in substitution")]
    Modifier(String),
    #[error("{name}: {message}")]
    Required { name: String, message: String },
    #[error("invalid pattern ({pattern}) in substitution: {why}")]
    Pattern { pattern: String, why: String },
    #[error("variable expansion is nested more than {EXPANSION_DEPTH_MAX} deep")]
    Depth,
    #[error("variable expansion gives more than {EXPANSION_BYTES_MAX} bytes")]
    Size,
}

/// A text with its variables put in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Expansion {
    pub(crate) text: String,
    /// Names that were asked for and are not set.
    pub(crate) unset: BTreeSet<String>,
    /// Names that were asked for and are set.
    pub(crate) matched: BTreeSet<String>,
}

/// How texts are read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lexer {
    pub(crate) escape: char,
    /// Quotes stay in the result.
    pub(crate) raw_quotes: bool,
    /// Escape characters stay in the result.
    pub(crate) raw_escapes: bool,
    /// Quotes are characters like others.
    pub(crate) ignore_quotes: bool,
    /// Variables that are not set stay as written.
    pub(crate) keep_unset: bool,
}

impl Lexer {
    /// Quotes and escapes are resolved, unset variables are empty.
    pub(crate) fn new(escape: char) -> Self {
        Self { escape, raw_quotes: false, raw_escapes: false, ignore_quotes: false, keep_unset: false }
    }

    /// Expands `text` to one text.
    pub(crate) fn word(&self, text: &str, env: &dyn Lookup) -> Result<Expansion, ExpandError> {
        let mut walk = Walk::new(self, text, env);
        let text = walk.until(None, self.raw_escapes, None)?;
        Ok(Expansion { text, unset: walk.unset, matched: walk.matched })
    }

    /// Expands `text` and splits the result at whitespace outside quotes.
    pub(crate) fn words(&self, text: &str, env: &dyn Lookup) -> Result<Vec<String>, ExpandError> {
        let mut words = Words::default();
        Walk::new(self, text, env).until(None, self.raw_escapes, Some(&mut words))?;
        Ok(words.finish())
    }
}

#[derive(Default)]
struct Words {
    current: String,
    in_word: bool,
    done: Vec<String>,
}

impl Words {
    fn raw(&mut self, text: &str) {
        self.current.push_str(text);
        self.in_word = true;
    }

    fn split(&mut self, text: &str) {
        for c in text.chars() {
            if !c.is_whitespace() {
                self.current.push(c);
                self.in_word = true;
            } else if self.in_word && !self.current.is_empty() {
                self.done.push(std::mem::take(&mut self.current));
                self.in_word = false;
            }
        }
    }

    fn finish(mut self) -> Vec<String> {
        if !self.current.is_empty() {
            self.done.push(self.current);
        }
        self.done
    }
}

struct Walk<'a> {
    lexer: &'a Lexer,
    rest: std::str::Chars<'a>,
    env: &'a dyn Lookup,
    raw_escapes: bool,
    depth: usize,
    unset: BTreeSet<String>,
    matched: BTreeSet<String>,
}

impl<'a> Walk<'a> {
    fn new(lexer: &'a Lexer, text: &'a str, env: &'a dyn Lookup) -> Self {
        let (raw_escapes, unset, matched) = (lexer.raw_escapes, BTreeSet::new(), BTreeSet::new());
        Self { lexer, rest: text.chars(), env, raw_escapes, depth: 0, unset, matched }
    }

    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    /// Reads up to `stop`, which is consumed, or to the end.
    fn until(
        &mut self,
        stop: Option<char>,
        raw_escapes: bool,
        words: Option<&mut Words>,
    ) -> Result<String, ExpandError> {
        if self.depth >= EXPANSION_DEPTH_MAX {
            return Err(ExpandError::Depth);
        }
        self.depth += 1;
        let before = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let out = self.until_inner(stop, words);
        self.raw_escapes = before;
        self.depth -= 1;
        out
    }

    fn until_inner(&mut self, stop: Option<char>, words: Option<&mut Words>) -> Result<String, ExpandError> {
        let (mut out, mut none) = (String::new(), Words::default());
        let (words, wanted) = match words {
            Some(words) => (words, true),
            None => (&mut none, false),
        };
        while let Some(c) = self.peek() {
            if stop == Some(c) {
                self.rest.next();
                return Ok(out);
            }
            let special = match c {
                '$' => Some(self.dollar()?),
                '<' => Some(self.heredoc()),
                '\'' if !self.lexer.ignore_quotes => Some(self.single()?),
                '"' if !self.lexer.ignore_quotes => Some(self.double()?),
                _ => None,
            };
            match special {
                Some(text) => {
                    out.push_str(&text);
                    match (wanted, c) {
                        (false, _) => {}
                        (true, '$') => words.split(&text),
                        (true, _) => words.raw(&text),
                    }
                }
                None => self.plain(&mut out, wanted.then_some(&mut *words)),
            }
            if out.len() > EXPANSION_BYTES_MAX {
                return Err(ExpandError::Size);
            }
        }
        if stop.is_some() { Err(ExpandError::Brace) } else { Ok(out) }
    }

    /// One character, or an escaped one.
    fn plain(&mut self, out: &mut String, words: Option<&mut Words>) {
        let Some(c) = self.rest.next() else { return };
        let mut none = Words::default();
        let words = words.unwrap_or(&mut none);
        let mut buffer = [0; 4];
        if c != self.lexer.escape {
            words.split(c.encode_utf8(&mut buffer));
            out.push(c);
            return;
        }
        if self.raw_escapes {
            words.raw(c.encode_utf8(&mut buffer));
            out.push(c);
        }
        if let Some(next) = self.rest.next() {
            words.raw(next.encode_utf8(&mut buffer));
            out.push(next);
        }
    }

    fn single(&mut self) -> Result<String, ExpandError> {
        let mut out = String::new();
        self.rest.next();
        let inner = self.rest.as_str();
        let end = inner.find('\'').ok_or(ExpandError::Quote('\''))?;
        if self.lexer.raw_quotes {
            out.push('\'');
        }
        out.push_str(&inner[..end]);
        if self.lexer.raw_quotes {
            out.push('\'');
        }
        self.rest = inner[end + 1..].chars();
        Ok(out)
    }

    fn double(&mut self) -> Result<String, ExpandError> {
        let mut out = String::new();
        let quote = self.rest.next().filter(|_| self.lexer.raw_quotes);
        out.extend(quote);
        loop {
            match self.peek() {
                None => return Err(ExpandError::Quote('"')),
                Some('"') => {
                    self.rest.next();
                    out.extend(quote);
                    return Ok(out);
                }
                Some('$') => out.push_str(&self.dollar()?),
                Some(mut c) => {
                    self.rest.next();
                    if c == self.lexer.escape {
                        // Patterns need a doubled escape, even where quotes are kept.
                        let doubled = self.raw_escapes && (!self.lexer.raw_quotes || self.depth > 1);
                        match self.peek() {
                            None => continue,
                            Some(next) if next == '"' || next == '$' || next == self.lexer.escape => {
                                if self.raw_escapes {
                                    out.push(c);
                                }
                                self.rest.next();
                                c = next;
                            }
                            Some(_) if doubled => out.push(c),
                            Some(_) => {}
                        }
                    }
                    out.push(c);
                }
            }
            if out.len() > EXPANSION_BYTES_MAX {
                return Err(ExpandError::Size);
            }
        }
    }

    /// `<<` and the whitespace after it stay together, so that `<< EOF` is one word.
    fn heredoc(&mut self) -> String {
        let mut out = String::from("<");
        self.rest.next();
        if self.peek() != Some('<') {
            return out;
        }
        self.rest.next();
        out.push('<');
        while let Some(c @ ('\t' | '\r' | ' ')) = self.peek() {
            self.rest.next();
            out.push(c);
        }
        out
    }

    fn name(&mut self) -> String {
        let text = self.rest.as_str();
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let length = match text.chars().next() {
            Some(c) if c.is_ascii_digit() => digits,
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => 1,
            _ => text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len()),
        };
        let (name, rest) = text.split_at(length);
        self.rest = rest.chars();
        name.to_owned()
    }

    fn lookup(&mut self, name: &str) -> Option<String> {
        let value = self.env.get(name).map(str::to_owned);
        let names = if value.is_none() { &mut self.unset } else { &mut self.matched };
        if !names.contains(name) {
            names.insert(name.to_owned());
        }
        value
    }

    fn dollar(&mut self) -> Result<String, ExpandError> {
        self.rest.next();
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.lookup(&name) {
                Some(value) => value,
                None if self.lexer.keep_unset => format!("${name}"),
                None => String::new(),
            });
        }
        self.rest.next();
        match self.peek() {
            None => return Err(ExpandError::Brace),
            Some('{' | '}' | ':') => return Err(ExpandError::Substitution),
            Some(_) => {}
        }
        let name = self.name();
        match self.rest.next() {
            Some('}') => Ok(match self.lookup(&name) {
                Some(value) => value,
                None if self.lexer.keep_unset => format!("${{{name}}}"),
                None => String::new(),
            }),
            Some('/') => self.replacement(&name),
            Some(':') => {
                let operator = self.rest.next();
                self.modified(&name, operator, true)
            }
            operator @ Some('+' | '-' | '?' | '#' | '%') => self.modified(&name, operator, false),
            None => Err(ExpandError::Brace),
            Some(other) => Err(ExpandError::Modifier(other.to_string())),
        }
    }

    /// A nested text that `stop` ends; running out of text is reported as the missing `stop`.
    fn nested(&mut self, stop: char, raw_escapes: bool, missing: ExpandError) -> Result<String, ExpandError> {
        let out = self.until(Some(stop), raw_escapes, None);
        match out {
            Err(ExpandError::Depth | ExpandError::Size | ExpandError::Required { .. }) | Ok(_) => out,
            Err(_) if self.peek().is_none() => Err(missing),
            Err(_) => out,
        }
    }

    fn modified(
        &mut self,
        name: &str,
        operator: Option<char>,
        null_is_unset: bool,
    ) -> Result<String, ExpandError> {
        let Some(operator) = operator else { return Err(ExpandError::Brace) };
        let shown = if null_is_unset { format!(":{operator}") } else { operator.to_string() };
        let pattern = matches!(operator, '#' | '%');
        if null_is_unset && pattern || !matches!(operator, '+' | '-' | '?' | '#' | '%') {
            return Err(ExpandError::Modifier(shown));
        }
        let word = self.nested('}', pattern, ExpandError::Brace)?;
        let value = self.lookup(name);
        if self.lexer.keep_unset && value.is_none() {
            return Ok(format!("${{{name}{shown}{word}}}"));
        }
        let present = value.as_deref().filter(|v| !(null_is_unset && v.is_empty()));
        match operator {
            '-' => Ok(present.map_or(word, str::to_owned)),
            '+' => Ok(present.map(|_| word).unwrap_or_default()),
            '?' => match present {
                Some(value) => Ok(value.to_owned()),
                None => {
                    let state = if value.is_none() { "unset" } else { "empty" };
                    let default = format!("is not allowed to be {state}");
                    let message = if word.is_empty() { default } else { word };
                    Err(ExpandError::Required { name: name.to_owned(), message })
                }
            },
            _ => {
                let (greedy, word) = match word.strip_prefix(operator) {
                    Some(word) => (true, word),
                    None => (false, word.as_str()),
                };
                let value = value.unwrap_or_default();
                if operator == '#' {
                    trim_prefix(word, &value, greedy)
                } else {
                    trim_suffix(word, &value, greedy)
                }
            }
        }
    }

    /// `${name/pattern/text}` and `${name//pattern/text}`.
    fn replacement(&mut self, name: &str) -> Result<String, ExpandError> {
        let all = self.peek() == Some('/');
        if all {
            self.rest.next();
        }
        let pattern = self.nested('/', true, ExpandError::Slash)?;
        let with = self.nested('}', true, ExpandError::Brace)?;
        let value = match self.lookup(name) {
            None if self.lexer.keep_unset => return Ok(format!("${{{name}/{pattern}/{with}}}")),
            value => value.unwrap_or_default(),
        };
        let regex = pattern_regex(&pattern, true, false)?;
        let limit = usize::from(!all);
        Ok(regex.replacen(&value, limit, regex::NoExpand(&with)).into_owned())
    }
}

/// A shell pattern of `*`, `?` and escapes as a regular expression.
fn pattern_regex(pattern: &str, greedy: bool, anchored: bool) -> Result<Regex, ExpandError> {
    let bad = |why: String| ExpandError::Pattern { pattern: pattern.to_owned(), why };
    let mut out = String::from(if anchored { "^" } else { "" });
    let mut chars = pattern.chars().peekable();
    let mut buffer = [0; 4];
    while let Some(c) = chars.next() {
        match c {
            '*' => out.push_str(if greedy { ".*" } else { ".*?" }),
            '?' => out.push('.'),
            '\\' => match chars.peek() {
                // Needed to write them inside ${}, no part of the pattern.
                Some('}' | '/') => {}
                Some(next @ ('*' | '?' | '\\')) => {
                    out.push_str(&regex::escape(next.encode_utf8(&mut buffer)));
                    chars.next();
                }
                Some(next) => return Err(bad(format!("invalid escape '\\{next}'"))),
                None => return Err(bad("it ends in an escape character".to_owned())),
            },
            c => out.push_str(&regex::escape(c.encode_utf8(&mut buffer))),
        }
    }
    Regex::new(&out).map_err(|_| bad("it is too large".to_owned()))
}

fn trim_prefix(pattern: &str, value: &str, greedy: bool) -> Result<String, ExpandError> {
    let found = pattern_regex(pattern, greedy, true)?.find(value);
    Ok(value[found.map_or(0, |m| m.end())..].to_owned())
}

/// The shortest match at the end can't be asked of a regular expression; turned round it is a prefix.
fn trim_suffix(pattern: &str, value: &str, greedy: bool) -> Result<String, ExpandError> {
    let mut reversed: Vec<String> = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        let mut piece = String::from(c);
        if c == '\\' {
            piece.extend(chars.next());
        }
        reversed.push(piece);
    }
    reversed.reverse();
    let value: String = value.chars().rev().collect();
    Ok(trim_prefix(&reversed.concat(), &value, greedy)?.chars().rev().collect())
}

#[cfg(test)]
mod tests;
