//! Who may do what: nobody asked, Basic, or tokens with scopes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde_json::json;

use super::{Shared, lock};

/// Access rules of a registry.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// Everybody may do everything.
    #[default]
    None,
    /// User name and password with every request; each user may do everything.
    Basic(Vec<(String, String)>),
    /// Tokens of the registry's own token server at `/token`.
    Token {
        /// Users and passwords.
        users: Vec<(String, String)>,
        /// Refresh tokens that the OAuth2 form accepts.
        identity_tokens: Vec<String>,
        /// Who asks without credentials may pull.
        anonymous_pull: bool,
        /// How long a token lives, in seconds.
        life_seconds: u64,
        /// How many requests a token is good for, to see it end in mid transfer.
        uses: usize,
        /// Users who get a token for pulling only.
        readers: Vec<String>,
    },
}

impl Auth {
    /// Basic with one user.
    pub fn basic(user: &str, password: &str) -> Self {
        Self::Basic(vec![(user.to_owned(), password.to_owned())])
    }

    /// Tokens with one user; nobody else may do anything.
    pub fn token(user: &str, password: &str) -> Self {
        Self::Token {
            users: vec![(user.to_owned(), password.to_owned())],
            identity_tokens: Vec::new(),
            anonymous_pull: false,
            life_seconds: 300,
            uses: usize::MAX,
            readers: Vec::new(),
        }
    }
}

/// Tokens that were given out.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    given: HashMap<String, Given>,
    serial: u64,
}

#[derive(Debug)]
struct Given {
    /// `(repository, may push)`.
    scopes: Vec<(String, bool)>,
    ends: Instant,
    uses: usize,
}

impl Tokens {
    pub(super) fn revoke(&mut self) {
        self.given.clear();
    }
}

/// Why a request may not be served: the status and a challenge.
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) challenge: Option<String>,
}

/// The right that a request needs: `None` is the bare `/v2/`.
pub(super) struct Need<'a> {
    pub(super) repository: Option<&'a str>,
    pub(super) push: bool,
    /// For a mount: the repository that is read.
    pub(super) from: Option<&'a str>,
}

/// Checks a request's right.
pub(super) fn check(shared: &Shared, headers: &HeaderMap, need: &Need<'_>) -> Result<(), Refusal> {
    match &shared.options.auth {
        Auth::None => Ok(()),
        Auth::Basic(users) => match basic(headers) {
            Some(pair) if users.contains(&pair) => Ok(()),
            _ => Err(Refusal { status: 401, challenge: Some("Basic realm=\"testkit\"".to_owned()) }),
        },
        Auth::Token { .. } => {
            let scope = need.repository.map(|name| {
                format!(",scope=\"repository:{name}:{}\"", if need.push { "pull,push" } else { "pull" })
            });
            let challenge = format!(
                "Bearer realm=\"{}/token\",service=\"testkit\"{}",
                shared.origin,
                scope.unwrap_or_default()
            );
            let refusal = || Refusal { status: 401, challenge: Some(challenge.clone()) };
            let text = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or("");
            let token = text.strip_prefix("Bearer ").ok_or_else(refusal)?;
            let mut tokens = lock(&shared.tokens);
            let given = tokens.given.get_mut(token).ok_or_else(refusal)?;
            if given.ends <= Instant::now() || given.uses == 0 {
                return Err(refusal());
            }
            given.uses = given.uses.saturating_sub(1);
            let may = |name: &str, push: bool| given.scopes.iter().any(|(n, p)| n == name && (*p || !push));
            let allowed = need.repository.is_none_or(|name| may(name, need.push))
                && need.from.is_none_or(|name| may(name, false));
            if allowed { Ok(()) } else { Err(refusal()) }
        }
    }
}

fn basic(headers: &HeaderMap) -> Option<(String, String)> {
    let text = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    let (user, password) = std::str::from_utf8(&bytes).ok()?.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// Answers a token request: status and JSON.
pub(super) fn token(
    shared: &Shared,
    headers: &HeaderMap,
    params: &[(String, String)],
    post: bool,
) -> (u16, serde_json::Value) {
    let Auth::Token { users, identity_tokens, anonymous_pull, life_seconds, uses, readers } =
        &shared.options.auth
    else {
        return (404, json!({ "details": "no token server here" }));
    };
    let all =
        |name: &'static str| params.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str());
    let (known, reader) = if post {
        let token = all("refresh_token").next().unwrap_or("");
        if all("grant_type").next() != Some("refresh_token") || !identity_tokens.iter().any(|t| t == token) {
            // Repeats what it was sent, as careless servers do.
            return (
                401,
                json!({ "error": "invalid_grant", "error_description": format!("bad token {token}") }),
            );
        }
        (true, false)
    } else {
        match basic(headers) {
            None => (false, false),
            Some(pair) if users.contains(&pair) => (true, readers.contains(&pair.0)),
            Some((user, password)) => {
                let text = format!("incorrect password {password} of {user}");
                return (401, json!({ "details": text }));
            }
        }
    };
    let mut scopes = Vec::new();
    for scope in all("scope").flat_map(str::split_ascii_whitespace) {
        let mut parts = scope.split(':');
        let (Some("repository"), Some(name), Some(actions)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if known || *anonymous_pull {
            scopes.push((name.to_owned(), known && !reader && actions.contains("push")));
        }
    }
    let mut tokens = lock(&shared.tokens);
    tokens.serial += 1;
    let value = format!("testkit-token-{}", tokens.serial);
    let ends = Instant::now() + Duration::from_secs(*life_seconds);
    tokens.given.insert(value.clone(), Given { scopes, ends, uses: *uses });
    let key = if post { "access_token" } else { "token" };
    (200, json!({ key: value, "expires_in": life_seconds }))
}
