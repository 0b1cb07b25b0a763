//! Credentials that somebody else keeps: he uses them himself where he can.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::Redacted;

/// What a keeper promises.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, String>> + Send + 'a>>;

/// Somebody who has credentials for registries, a client of a daemon for instance.
pub trait Keeper: std::fmt::Debug + Send + Sync {
    /// User name and password for a registry; none where he has none. An error says why nothing can be had.
    fn credentials<'a>(&'a self, registry: &'a str) -> Answer<'a, Option<(String, Redacted)>>;

    /// A token that he fetches himself, so that nobody else learns his credentials; none where he does not do that.
    fn token<'a>(&'a self, wanted: &'a TokenWanted) -> Answer<'a, Option<KeptToken>>;
}

/// The token that a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenWanted {
    /// The registry.
    pub registry: String,
    /// Address of its token server.
    pub realm: String,
    /// What the token server calls the registry.
    pub service: Option<String>,
    /// What it is for, as `repository:app:pull`.
    pub scopes: Vec<String>,
}

/// A token that somebody else fetched.
#[derive(Debug, Clone)]
pub struct KeptToken {
    /// The token.
    pub value: Redacted,
    /// How long it holds; zero where that was not said.
    pub expires_in: Duration,
}

/// A keeper by identity.
#[derive(Debug, Clone)]
pub(crate) struct Kept(pub(crate) Arc<dyn Keeper>);

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Kept {}
