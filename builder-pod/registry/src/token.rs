//! Tokens of token servers (the distribution project's token specification and its OAuth2 form).

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::Redacted;
use crate::limits::{TOKEN_LIFE_DEFAULT, TOKEN_MARGIN};

/// What may be done with which repositories.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Scopes(BTreeMap<String, bool>);

impl Scopes {
    /// Reading from a repository.
    pub(crate) fn pull(repository: &str) -> Self {
        Self(BTreeMap::from([(repository.to_owned(), false)]))
    }

    /// Reading from and writing to a repository.
    pub(crate) fn push(repository: &str) -> Self {
        Self(BTreeMap::from([(repository.to_owned(), true)]))
    }

    /// With reading from one more repository, as a mount needs.
    pub(crate) fn and_pull(mut self, repository: &str) -> Self {
        self.0.entry(repository.to_owned()).or_insert(false);
        self
    }

    /// Whether a token for `self` serves where `wanted` is needed.
    pub(crate) fn covers(&self, wanted: &Self) -> bool {
        wanted.0.iter().all(|(name, push)| self.0.get(name).is_some_and(|mine| *mine || !push))
    }

    /// The `scope` parameters, one a repository.
    pub(crate) fn texts(&self) -> impl Iterator<Item = String> {
        self.0
            .iter()
            .map(|(name, push)| format!("repository:{name}:{}", if *push { "pull,push" } else { "pull" }))
    }
}

/// A token and the end of its life.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) value: Redacted,
    ends: Instant,
}

impl Token {
    /// Whether it can still be shown.
    pub(crate) fn is_fresh(&self) -> bool {
        Instant::now() + TOKEN_MARGIN < self.ends
    }

    /// A token that was fetched just now; a life of zero is the usual one.
    pub(crate) fn of(value: Redacted, life: Duration) -> Self {
        let life = if life.is_zero() { TOKEN_LIFE_DEFAULT } else { life };
        Self { value, ends: Instant::now() + life }
    }

    /// Reads a token server's answer, received just now.
    pub(crate) fn parse(body: &[u8], now: jiff::Timestamp) -> Result<Self, &'static str> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<Redacted>,
            access_token: Option<Redacted>,
            expires_in: Option<f64>,
            issued_at: Option<String>,
        }
        let answer: Answer = serde_json::from_slice(body).map_err(|_| "its answer is not valid JSON")?;
        let given = |token: Option<Redacted>| token.filter(|t| !t.reveal().is_empty());
        let value = given(answer.token).or(given(answer.access_token)).ok_or("its answer has no token")?;
        let life = match answer.expires_in {
            Some(seconds) if (1.0..=1e9).contains(&seconds) => Duration::from_secs_f64(seconds),
            _ => TOKEN_LIFE_DEFAULT,
        };
        let age = answer
            .issued_at
            .and_then(|text| text.parse::<jiff::Timestamp>().ok())
            .and_then(|issued| Duration::try_from(now.duration_since(issued)).ok())
            .unwrap_or_default();
        // A clock that is ahead of the server's would make every token look dead: then its age is unknown.
        let left = life.checked_sub(age).filter(|left| *left > TOKEN_MARGIN).unwrap_or(life);
        Ok(Self { value, ends: Instant::now() + left })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(body: &str) -> u64 {
        let now = "2026-01-01T00:01:40Z".parse().expect("a time");
        let token = Token::parse(body.as_bytes(), now).expect("a token");
        (token.ends - Instant::now()).as_secs_f64().round() as u64
    }

    #[test]
    fn a_token_lives_as_long_as_its_server_says() {
        assert_eq!(left(r#"{"token":"t"}"#), 60);
        assert_eq!(left(r#"{"access_token":"t","expires_in":300}"#), 300);
        assert_eq!(left(r#"{"token":"t","expires_in":300,"issued_at":"2026-01-01T00:00:00Z"}"#), 200);
        assert_eq!(left(r#"{"token":"t","expires_in":300,"issued_at":"2026-01-01T00:09:00.5Z"}"#), 300);
        assert_eq!(left(r#"{"token":"t","expires_in":50,"issued_at":"2025-01-01T00:00:00Z"}"#), 50);
        assert_eq!(left(r#"{"token":"","access_token":"t","expires_in":-1,"issued_at":"?"}"#), 60);
        let now = jiff::Timestamp::UNIX_EPOCH;
        assert!(Token::parse(b"{}", now).is_err() && Token::parse(b"[", now).is_err());
    }

    #[test]
    fn a_wider_token_serves_narrower_needs() {
        let both = Scopes::push("a").and_pull("b");
        assert!(both.covers(&Scopes::pull("a")) && both.covers(&Scopes::pull("b")));
        assert!(!both.covers(&Scopes::push("b")) && !both.covers(&Scopes::pull("c")));
        assert_eq!(Scopes::push("a").and_pull("a"), Scopes::push("a"));
        assert_eq!(both.texts().collect::<Vec<_>>(), ["repository:a:pull,push", "repository:b:pull"]);
    }
}
