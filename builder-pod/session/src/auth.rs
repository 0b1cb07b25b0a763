//! Credentials for registries, which a client keeps to itself when it can fetch tokens.

use std::time::Duration;

use lapstrake_api::MESSAGE_BYTES_MAX;
use lapstrake_api::auth::auth_client::AuthClient;
use lapstrake_api::auth::{
    CredentialsRequest, FetchTokenRequest, GetTokenAuthorityRequest, VerifyTokenAuthorityRequest,
};
use tonic::Code;
use tonic::transport::Channel;

use crate::error::Error;
use crate::session::{Session, method};

/// How long a client may take where nothing else is said: it may have to ask a person or a program.
pub(crate) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
const KEY_BYTES: usize = 32;

/// Name and password; both empty for a registry that the client knows none for. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Name of the user; empty when the secret is an identity token.
    pub username: String,
    /// Password or identity token.
    pub secret: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials([redacted])")
    }
}

/// What a registry's token shall be good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// Host of the registry.
    pub host: String,
    /// Who asks, as the token server sees it.
    pub client_id: String,
    /// Address of the token server, as the registry named it.
    pub realm: String,
    /// Name of the registry, as it names itself.
    pub service: String,
    /// Such as `repository:library/alpine:pull`.
    pub scopes: Vec<String>,
}

/// A registry's token. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The token itself.
    pub token: String,
    /// How long it is good for; zero when the server did not say.
    pub expires_in: Duration,
    /// When it was issued, in seconds since 1970; zero when the server did not say.
    pub issued_at_s: i64,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

impl Session {
    fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(self.channel())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Awaits an answer of the auth service; `None` when the client does not serve `method`.
    async fn ask<T>(
        &self,
        method: &'static str,
        action: &'static str,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<Option<T>, Error> {
        if !self.serves(method) {
            return Ok(None);
        }
        let bounded = async {
            let Some(most) = self.auth_timeout() else { return call.await };
            let late =
                |_| Err(tonic::Status::deadline_exceeded(format!("no answer within {} s", most.as_secs())));
            tokio::time::timeout(most, call).await.unwrap_or_else(late)
        };
        match self.call(action, bounded).await {
            Ok(answer) => Ok(Some(answer)),
            Err(Error::Call { status, .. }) if status.code() == Code::Unimplemented => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Name and password for a registry; `None` when the client has none to give.
    ///
    /// # Errors
    /// The client is gone or failed.
    pub async fn credentials(&self, host: &str) -> Result<Option<Credentials>, Error> {
        let mut client = self.auth();
        let call = client.credentials(CredentialsRequest { host: host.to_owned() });
        let found = self.ask(method::CREDENTIALS, "get credentials", call).await?;
        let found = found.map(|found| Credentials { username: found.username, secret: found.secret });
        Ok(found.filter(|found| !found.username.is_empty() || !found.secret.is_empty()))
    }

    /// A token that the client fetches with credentials of its own; `None` when it cannot fetch any.
    ///
    /// # Errors
    /// The client is gone, or the token server refused.
    pub async fn fetch_token(&self, request: TokenRequest) -> Result<Option<Token>, Error> {
        let TokenRequest { host, client_id, realm, service, scopes } = request;
        let mut client = self.auth();
        let call = client.fetch_token(FetchTokenRequest { client_id, host, realm, service, scopes });
        let found = self.ask(method::FETCH_TOKEN, "fetch token", call).await?;
        Ok(found.map(|found| Token {
            token: found.token,
            expires_in: Duration::from_secs(u64::try_from(found.expires_in).unwrap_or(0)),
            issued_at_s: found.issued_at,
        }))
    }

    /// The public key (Ed25519) of the client's credentials for a host, other for each `salt`; `None` when it has none.
    ///
    /// # Errors
    /// The client is gone or failed; a key of another length.
    pub async fn token_authority(&self, host: &str, salt: &[u8]) -> Result<Option<[u8; KEY_BYTES]>, Error> {
        let mut client = self.auth();
        let call = client
            .get_token_authority(GetTokenAuthorityRequest { host: host.to_owned(), salt: salt.to_vec() });
        let found = match self.ask(method::TOKEN_AUTHORITY, "get token authority", call).await {
            // So a client says that it has no credentials for the host.
            Err(Error::Call { status, .. }) if status.code() == Code::Unavailable => return Ok(None),
            other => other?,
        };
        let Some(found) = found else { return Ok(None) };
        match <[u8; KEY_BYTES]>::try_from(found.public_key.as_slice()) {
            Ok(key) => Ok(Some(key)),
            Err(_) => Err(Error::Protocol {
                name: host.to_owned(),
                problem: format!("a public key of {} bytes, not {KEY_BYTES}", found.public_key.len()),
            }),
        }
    }

    /// `payload` signed (signature before it) by the key of the client's credentials for a host; `None` when it has
    /// none. Whether the signature is right is for the caller to see.
    ///
    /// # Errors
    /// The client is gone or failed.
    pub async fn verify_token_authority(
        &self,
        host: &str,
        payload: &[u8],
        salt: &[u8],
    ) -> Result<Option<Vec<u8>>, Error> {
        let mut client = self.auth();
        let call = client.verify_token_authority(VerifyTokenAuthorityRequest {
            host: host.to_owned(),
            payload: payload.to_vec(),
            salt: salt.to_vec(),
        });
        let found = self.ask(method::VERIFY_TOKEN_AUTHORITY, "verify token authority", call).await?;
        Ok(found.map(|found| found.signed))
    }
}
