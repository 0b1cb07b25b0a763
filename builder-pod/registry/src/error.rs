use std::fmt;

use crate::limits::MESSAGE_CHARS_MAX;

/// What a failure means for whoever asked; decides about retries and exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The image, repository or blob is not there.
    NotFound,
    /// Missing or refused credentials, or no right to do it.
    Denied,
    /// The registry cannot be reached or fails; later it may work.
    Unavailable,
    /// The request, the configuration or the answer is wrong; trying again does not help.
    Invalid,
    /// Bytes do not have the digest or size that they must have.
    Corrupt,
    /// The caller's token was cancelled.
    Canceled,
    /// Reading or writing on this side failed (a full disk, say).
    Local,
}

/// What went wrong, without the circumstances.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Kind {
    /// HTTP 404.
    #[error("not found")]
    NotFound,
    /// HTTP 401 after all credentials were tried.
    #[error("authentication failed")]
    Unauthorized,
    /// HTTP 403.
    #[error("access denied")]
    Forbidden,
    /// The token server refused or failed.
    #[error("no token from {host}")]
    Token {
        /// Host of the token server.
        host: String,
        /// Whether it refused (else it failed).
        refused: bool,
        /// Whether asking again later may work.
        retryable: bool,
    },
    /// Who keeps the credentials gave none.
    #[error("no credentials from the client: {0}")]
    Kept(String),
    /// No connection, or it broke, more often than [`Limits`](crate::Limits) allow.
    #[error("cannot reach the registry: {0}")]
    Connect(String),
    /// TLS could not be agreed on; trying again does not help.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// The transfer broke or stalled.
    #[error("transfer broke after {done} of {total} bytes: {why}")]
    Broken {
        /// Bytes that arrived.
        done: u64,
        /// Bytes expected.
        total: u64,
        /// What broke it.
        why: String,
    },
    /// HTTP 5xx, 408 or 429.
    #[error("registry failed")]
    Server,
    /// Another HTTP status that was not expected.
    #[error("registry refused the request")]
    Refused,
    /// The answer is not what the protocol asks for.
    #[error("registry's answer is not valid: {0}")]
    Protocol(String),
    /// The bytes have another digest.
    #[error("digest mismatch: expected {expected}, got {got}")]
    Digest {
        /// What was asked for.
        expected: String,
        /// What the bytes have.
        got: String,
    },
    /// The bytes are more or fewer.
    #[error("size mismatch: expected {expected} bytes, got {got}")]
    Size {
        /// What was asked for.
        expected: u64,
        /// What arrived.
        got: u64,
    },
    /// The configuration is wrong.
    #[error("{0}")]
    Config(String),
    /// Reading the source or writing to the sink failed.
    #[error("{0}")]
    Local(String),
    /// Cancelled by the caller.
    #[error("cancelled")]
    Canceled,
}

/// A failed request, with what was asked of whom and what they said.
///
/// `{}` is one line without a hint; `{:#}` appends the [`hint`](Self::hint).
#[derive(Clone)]
pub struct Error(Box<Parts>);

#[derive(Debug, Clone)]
struct Parts {
    kind: Kind,
    action: String,
    subject: String,
    status: Option<u16>,
    message: Option<String>,
    code: Option<String>,
    hint: Option<String>,
    also: Vec<String>,
}

impl Error {
    /// `action` is a verb phrase as in "pull manifest", `subject` the name that it was about.
    pub(crate) fn new(kind: Kind, action: impl Into<String>, subject: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            kind,
            action: action.into(),
            subject: subject.into(),
            status: None,
            message: None,
            code: None,
            hint: None,
            also: Vec::new(),
        }))
    }

    /// A configuration error about `subject`.
    pub(crate) fn config(subject: impl Into<String>, why: impl Into<String>) -> Self {
        Self::new(Kind::Config(why.into()), "configure", subject)
    }

    pub(crate) fn with_status(mut self, status: u16) -> Self {
        self.0.status = Some(status);
        self
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    pub(crate) fn with_said(mut self, said: Said) -> Self {
        self.0.code = said.code;
        self.0.message = said.message;
        self
    }

    pub(crate) fn with_also(mut self, also: Vec<String>) -> Self {
        self.0.also = also;
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> &Kind {
        &self.0.kind
    }

    /// What it means for the caller.
    pub fn class(&self) -> Class {
        match self.0.kind {
            Kind::NotFound => Class::NotFound,
            Kind::Unauthorized | Kind::Forbidden | Kind::Kept(_) => Class::Denied,
            Kind::Token { refused: true, .. } => Class::Denied,
            Kind::Token { retryable: true, .. } => Class::Unavailable,
            Kind::Connect(_) | Kind::Broken { .. } | Kind::Server => Class::Unavailable,
            Kind::Token { .. } | Kind::Tls(_) | Kind::Refused | Kind::Protocol(_) | Kind::Config(_) => {
                Class::Invalid
            }
            Kind::Digest { .. } | Kind::Size { .. } => Class::Corrupt,
            Kind::Local(_) => Class::Local,
            Kind::Canceled => Class::Canceled,
        }
    }

    /// Whether the same request may work later without any change.
    pub fn is_retryable(&self) -> bool {
        self.class() == Class::Unavailable
    }

    /// The HTTP status, where there was an answer.
    pub fn status(&self) -> Option<u16> {
        self.0.status
    }

    /// The registry's own error code, such as `MANIFEST_UNKNOWN`.
    pub fn code(&self) -> Option<&str> {
        self.0.code.as_deref()
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The whole text with the hint, on one line.
    pub fn full(&self) -> String {
        format!("{self:#}")
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = &self.0;
        write!(f, "{} {}: {}", parts.action, parts.subject, parts.kind)?;
        let said = match (&parts.code, &parts.message) {
            (Some(code), Some(message)) => Some(format!("{code}: {message}")),
            (Some(one), None) | (None, Some(one)) => Some(one.clone()),
            (None, None) => None,
        };
        match (parts.status, said) {
            (Some(status), Some(said)) => write!(f, " (HTTP {status}: {said})")?,
            (Some(status), None) => write!(f, " (HTTP {status})")?,
            (None, Some(said)) => write!(f, " ({said})")?,
            (None, None) => {}
        }
        for also in &parts.also {
            write!(f, "; before that {also}")?;
        }
        match &parts.hint {
            Some(hint) if f.alternate() => write!(f, "; {hint}"),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "registry::Error({:?}: {self:#})", self.class())
    }
}

impl std::error::Error for Error {}

/// What a registry or token server says in an error body.
#[derive(Debug, Clone, Default)]
pub(crate) struct Said {
    pub(crate) code: Option<String>,
    pub(crate) message: Option<String>,
}

impl Said {
    /// Reads `{"errors":[{"code","message"}]}`, the token servers' `{"details"}` and OAuth2's
    /// `{"error","error_description"}`; of other bodies the first line of a short plain text.
    pub(crate) fn parse(body: &[u8], content_type: &str) -> Self {
        #[derive(serde::Deserialize)]
        struct Item {
            code: Option<serde_json::Value>,
            message: Option<String>,
        }
        #[derive(serde::Deserialize)]
        struct Body {
            #[serde(default)]
            errors: Vec<Item>,
            details: Option<String>,
            message: Option<String>,
            error: Option<String>,
            error_description: Option<String>,
        }
        if let Ok(body) = serde_json::from_slice::<Body>(body) {
            if let Some(item) = body.errors.into_iter().next() {
                let code = item.code.map(|code| match code {
                    serde_json::Value::String(text) => text,
                    other => other.to_string(),
                });
                return Self { code: code.map(|t| clean(&t)), message: item.message.map(|t| clean(&t)) };
            }
            let message = body.error_description.or(body.details).or(body.message);
            return Self { code: body.error.map(|t| clean(&t)), message: message.map(|t| clean(&t)) };
        }
        if content_type.contains("html") {
            return Self::default();
        }
        let line = std::str::from_utf8(body).ok().and_then(|t| t.lines().next()).map(clean);
        Self { code: None, message: line.filter(|line| !line.is_empty()) }
    }

    /// Drops every occurrence of the given secrets: a server may repeat what it was sent.
    pub(crate) fn without(mut self, secrets: &[&str]) -> Self {
        for text in [&mut self.code, &mut self.message].into_iter().flatten() {
            for secret in secrets.iter().filter(|s| !s.is_empty()) {
                *text = text.replace(secret, "[redacted]");
            }
        }
        self
    }
}

/// One line without control characters, cut to [`MESSAGE_CHARS_MAX`].
fn clean(text: &str) -> String {
    let line: String =
        text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(MESSAGE_CHARS_MAX).collect();
    line.trim_end_matches('.').to_owned()
}

/// The message of an error with all its sources, without addresses: those may hold signed queries.
pub(crate) fn chain(error: reqwest::Error) -> String {
    let host = error.url().and_then(|url| url.host_str()).unwrap_or_default().to_owned();
    let error = error.without_url();
    let mut text = String::new();
    let mut source: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = source {
        let part = error.to_string();
        // Wrappers repeat their source; each thing is said once.
        if !part.is_empty() && !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        source = error.source();
    }
    clean(&told_as_go(text, &host))
}

/// What resolvers say of a name that nobody knows.
const UNKNOWN: [&str; 3] =
    ["Name or service not known", "Name does not resolve", "No address associated with hostname"];

/// The words of a failed connection to `host`. A name that nobody knows is told as Go's resolver tells it: those who read a
/// builder's errors look for that.
pub fn told_as_go(text: String, host: &str) -> String {
    match text.split_once("dns error") {
        Some((before, after)) if UNKNOWN.iter().any(|unknown| after.contains(unknown)) => {
            format!("{before}dial tcp: lookup {host}: no such host")
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_what_was_asked_and_what_the_registry_said() {
        let said =
            Said::parse(br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown\n"}]}"#, "");
        let error = Error::new(Kind::NotFound, "pull manifest", "r.example/a:1")
            .with_status(404)
            .with_said(said)
            .with_hint("check the tag");
        let text = "pull manifest r.example/a:1: not found (HTTP 404: MANIFEST_UNKNOWN: manifest unknown)";
        assert_eq!(error.to_string(), text);
        assert_eq!(error.full(), format!("{text}; check the tag"));
        assert_eq!(error.class(), Class::NotFound);
    }

    #[test]
    fn a_name_that_nobody_knows_is_told_as_go_tells_it() {
        let told = |text: &str| told_as_go(text.to_owned(), "r.example");
        let asked = "sending: dns error: failed to lookup address information: ";
        assert_eq!(
            told(&format!("{asked}Name or service not known")),
            "sending: dial tcp: lookup r.example: no such host"
        );
        let later = format!("{asked}Temporary failure in name resolution");
        assert_eq!(told(&later), later, "it may be known");
        assert_eq!(told("connection refused"), "connection refused");
    }

    #[test]
    fn bodies_of_other_shapes_are_understood() {
        let said = |body: &str, kind: &str| {
            let said = Said::parse(body.as_bytes(), kind);
            (said.code.unwrap_or_default(), said.message.unwrap_or_default())
        };
        assert_eq!(
            said(r#"{"details":"incorrect password"}"#, ""),
            (String::new(), "incorrect password".into())
        );
        assert_eq!(
            said(r#"{"error":"invalid_grant","error_description":"expired"}"#, ""),
            ("invalid_grant".into(), "expired".into())
        );
        assert_eq!(said("<html>x", "text/html"), (String::new(), String::new()));
        assert_eq!(said("try later\nmore", "text/plain"), (String::new(), "try later".into()));
        assert_eq!(said(&"x".repeat(1000), "").1.len(), MESSAGE_CHARS_MAX);
    }

    #[test]
    fn a_repeated_secret_is_dropped_from_what_was_said() {
        let said = Said::parse(br#"{"error":"bad token abc123"}"#, "").without(&["abc123", ""]);
        assert_eq!(said.code.as_deref(), Some("bad token [redacted]"));
    }
}
