//! Credentials for what a Dockerfile names, by the ids of secrets that BuildKit gave them: `GIT_AUTH_HEADER` and
//! `GIT_AUTH_TOKEN`, both also with `.HOST` behind them, which comes first; `HTTP_AUTH_HEADER_HOST` and
//! `HTTP_AUTH_TOKEN_HOST`; and the SSH agent `default`.
//!
//! Holds: each goes to the host of the address and to no other; none is in a key, a file that is kept, or a message.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lapstrake_handoff::Reason;
use lapstrake_llb::pb;
use lapstrake_source::{SourceAuth, shown_url};
use lapstrake_ssh::Socket;
use lapstrake_store::Store;

use super::attr;
use crate::error::{BuildError, chain};
use crate::inputs::{GivenAgent, StepInputs};

/// Whose name stands before a token, as BuildKit has it.
const TOKEN_USER: &str = "x-access-token";

/// The part of an address up to its path.
pub(super) fn host(url: &str) -> &str {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.split_once(':').map_or(url, |(host, _)| host);
    };
    let end = scheme.len() + 3 + rest.find(['/', '?', '#']).unwrap_or(rest.len());
    url.get(..end).unwrap_or(url)
}

/// What lets git in, and the agent behind it.
pub(super) async fn git(
    inputs: Arc<StepInputs>,
    store: &Store,
    source: &pb::SourceOp,
    url: &str,
) -> Result<(Option<SourceAuth>, Option<Socket>), BuildError> {
    if let Some(id) = attr(source, "git.mountsshsock") {
        // Who has the agent may be far away.
        let (asked, wanted) = (Arc::clone(&inputs), id.to_owned());
        let found = tokio::task::spawn_blocking(move || asked.agent(&wanted)).await;
        let given = found.map_err(BuildError::internal)??;
        let (access, agent) = agent(given, &inputs, store, source, url, id)?;
        return Ok((Some(access), Some(agent)));
    }
    Ok((header(inputs, source, url).await?, None))
}

/// What lets git in over http.
async fn header(
    inputs: Arc<StepInputs>,
    source: &pb::SourceOp,
    url: &str,
) -> Result<Option<SourceAuth>, BuildError> {
    let Some(authority) = authority(url) else { return Ok(None) };
    let header = attr(source, "git.authheadersecret").map(str::to_owned);
    let token = attr(source, "git.authtokensecret").map(str::to_owned);
    let mut names = Vec::new();
    for suffix in [format!(".{authority}"), String::new()] {
        names.extend(header.iter().map(|name| (format!("{name}{suffix}"), false)));
        names.extend(token.iter().map(|name| (format!("{name}{suffix}"), true)));
    }
    let found = first(inputs, names).await?;
    let value = found.map(|(value, is_token)| match is_token {
        true => format!("basic {}", BASE64_STANDARD.encode(format!("{TOKEN_USER}:{value}"))),
        false => value,
    });
    Ok(value.map(|value| SourceAuth::with_header(url, value)).transpose()?)
}

/// What lets a download in.
pub(super) async fn http(
    inputs: Arc<StepInputs>,
    source: &pb::SourceOp,
) -> Result<Option<SourceAuth>, BuildError> {
    let url = &source.identifier;
    let parsed = reqwest::Url::parse(url).ok();
    let Some(host) = parsed.as_ref().and_then(reqwest::Url::host_str) else { return Ok(None) };
    let host = host.trim_matches(['[', ']']);
    let names = match attr(source, "http.authheadersecret") {
        Some(name) => vec![(name.to_owned(), false)],
        None => vec![(format!("HTTP_AUTH_TOKEN_{host}"), true), (format!("HTTP_AUTH_HEADER_{host}"), false)],
    };
    let value = first(inputs, names).await?.map(|(value, is_token)| match is_token {
        true => format!("Bearer {value}"),
        false => value,
    });
    Ok(value.map(|value| SourceAuth::with_header(url, value)).transpose()?)
}

/// What lets a context in: as for what an `ADD` names, but for agents, since a context by SSH is reached as git on this
/// machine reaches it.
pub(crate) async fn access(
    inputs: Arc<StepInputs>,
    url: &str,
    is_git: bool,
) -> Result<Option<SourceAuth>, BuildError> {
    if !is_git {
        return http(inputs, &pb::SourceOp { identifier: url.to_owned(), ..pb::SourceOp::default() }).await;
    }
    let names = [("git.authheadersecret", "GIT_AUTH_HEADER"), ("git.authtokensecret", "GIT_AUTH_TOKEN")];
    let attrs = names.map(|(name, id)| (name.to_owned(), id.to_owned())).into_iter().collect();
    header(inputs, &pb::SourceOp { identifier: String::new(), attrs }, url).await
}

/// Host and port of an http address, as Go's `url.Host` has them.
fn authority(url: &str) -> Option<&str> {
    let (scheme, rest) = host(url).split_once("://")?;
    let is_http = scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http");
    is_http.then(|| rest.rsplit_once('@').map_or(rest, |(_, host)| host))
}

/// The first secret of these ids that the build was given, without the line end behind it.
async fn first(
    inputs: Arc<StepInputs>,
    names: Vec<(String, bool)>,
) -> Result<Option<(String, bool)>, BuildError> {
    let work = move || {
        for (name, is_token) in names {
            let Some(value) = inputs.secret(&name)? else { continue };
            let text = String::from_utf8(value).map_err(|_| {
                BuildError::new(Reason::SecretNotFound, format!("secret {name}: it is not text"))
            })?;
            let text = text.trim_end_matches(['\n', '\r']);
            if !text.is_empty() {
                return Ok(Some((text.to_owned(), is_token)));
            }
        }
        Ok(None)
    };
    tokio::task::spawn_blocking(work).await.map_err(BuildError::internal)?
}

/// The build's agent, served where git finds it.
fn agent(
    given: Option<GivenAgent>,
    inputs: &StepInputs,
    store: &Store,
    source: &pb::SourceOp,
    url: &str,
    id: &str,
) -> Result<(SourceAuth, Socket), BuildError> {
    let lacks = |what: &str| BuildError::new(Reason::SecretNotFound, format!("{}: {what}", shown_url(url)));
    let Some(given) = given else {
        let what = format!(
            "it is reached by SSH, and the build has no agent {id}; give it one (--ssh {id}, or the ImageBuild's spec.ssh)"
        );
        return Err(lacks(&what));
    };
    let hosts = attr(source, "git.knownsshhosts").map(|text| text.as_bytes().to_vec()).or(given.known_hosts);
    let Some(hosts) = hosts else {
        let what = format!(
            "the build has no keys of hosts, without which nobody can tell the server from another; give them with the \
             agent {id} (--ssh-known-hosts FILE, or knownHosts in the ImageBuild's spec.ssh); ssh-keyscan HOST prints them"
        );
        return Err(lacks(&what));
    };
    let dir = store.side_dir("ssh")?.join(inputs.socket_name());
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let socket = Socket::serve(given.agent, dir, 0o600, own.0, own.1);
    let socket = socket.map_err(|e| BuildError::new(Reason::StepFailed, chain(&e)))?;
    // It goes with the socket.
    let known_hosts = socket.path().with_file_name("known_hosts");
    std::fs::write(&known_hosts, hosts).map_err(BuildError::internal)?;
    Ok((SourceAuth::with_agent(url, socket.path(), known_hosts)?, socket))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_what_stands_before_the_path() {
        for (url, own, authority) in [
            ("https://h:8443/a/b.git", "https://h:8443", Some("h:8443")),
            ("https://u:p@h/b.git?x", "https://u:p@h", Some("h")),
            ("git@h:a/b.git", "git@h", None),
            ("ssh://git@h:22/a", "ssh://git@h:22", None),
            ("https://h", "https://h", Some("h")),
        ] {
            assert_eq!((host(url), super::authority(url)), (own, authority), "{url}");
        }
    }
}
