//! One question to a Git server by HTTP: for what commit a reference stands. Nothing is cloned.
//!
//! Protocol version 2 answers with that reference alone; a server that knows only older ones sends all
//! references, which are read too.

use std::collections::BTreeMap;

use reqwest::header::CONTENT_TYPE;

/// Most that is read of an answer: an old server with many references.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Asks for the commit of a reference (`refs/heads/…`, `refs/tags/…` or `HEAD`), or says why there is none.
pub(super) async fn ask(client: &reqwest::Client, url: &str, reference: &str) -> Result<String, String> {
    if !url.starts_with("http://") && !url.starts_with("https://") {
        return Err(format!("{url} cannot be followed: only http and https addresses can"));
    }
    let base = url.trim_end_matches('/');
    let place = format!("{base}/info/refs?service=git-upload-pack");
    let request = client.get(&place).header("git-protocol", "version=2");
    let response = request.send().await.map_err(|error| unreachable(url, &error))?;
    let status = response.status();
    if !status.is_success() {
        return Err(refused(url, status));
    }
    let answer = body(response, url).await?;
    let found = match advertised(&answer).map_err(|problem| format!("{url}: {problem}"))? {
        Advertised::Version2 => {
            let request = client
                .post(format!("{base}/git-upload-pack"))
                .header("git-protocol", "version=2")
                .header(CONTENT_TYPE, "application/x-git-upload-pack-request")
                .body(question(reference));
            let response = request.send().await.map_err(|error| unreachable(url, &error))?;
            if !response.status().is_success() {
                return Err(refused(url, response.status()));
            }
            let answer = body(response, url).await?;
            listed(&answer, reference).map_err(|problem| format!("{url}: {problem}"))?
        }
        Advertised::References(mut found) => {
            let peeled = found.remove(&format!("{reference}^{{}}"));
            peeled.or_else(|| found.remove(reference))
        }
    };
    found.ok_or_else(|| format!("{url} has no {reference}"))
}

fn refused(url: &str, status: reqwest::StatusCode) -> String {
    match status.as_u16() {
        // Servers say "not found" too of what one may not see.
        401 | 403 | 404 => format!(
            "{url} answered {status}: following needs a repository that can be read without credentials, since the \
             operator has none"
        ),
        _ => format!("{url} answered {status}"),
    }
}

pub(super) fn unreachable(place: &str, error: &reqwest::Error) -> String {
    let mut text = format!("{place} cannot be reached");
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

async fn body(mut response: reqwest::Response, url: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(url, &error))? {
        if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(format!("{url} sent more than {ANSWER_BYTES_MAX} bytes of references"));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

fn packet(text: &str) -> String {
    format!("{:04x}{text}", text.len() + 4)
}

/// The request for one reference and what it points to.
fn question(reference: &str) -> String {
    let agent = concat!("agent=lapstrake/", env!("CARGO_PKG_VERSION"), "\n");
    [
        packet("command=ls-refs\n"),
        packet(agent),
        "0001".to_owned(),
        packet("peel\n"),
        packet(&format!("ref-prefix {reference}\n")),
        "0000".to_owned(),
    ]
    .concat()
}

/// What the first answer of a server is.
#[derive(Debug, PartialEq, Eq)]
enum Advertised {
    Version2,
    References(BTreeMap<String, String>),
}

fn packets(mut bytes: &[u8]) -> Result<Vec<Option<&[u8]>>, String> {
    let broken = || "its answer is not Git's protocol".to_owned();
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at_checked(4).ok_or_else(broken)?;
        let digits = std::str::from_utf8(head).map_err(|_| broken())?;
        let length = usize::from_str_radix(digits, 16).map_err(|_| broken())?;
        if length < 4 {
            found.push(None);
            bytes = rest;
            continue;
        }
        let (line, rest) = rest.split_at_checked(length - 4).ok_or_else(broken)?;
        found.push(Some(line.strip_suffix(b"\n").unwrap_or(line)));
        bytes = rest;
    }
    Ok(found)
}

fn advertised(answer: &[u8]) -> Result<Advertised, String> {
    let mut found = BTreeMap::new();
    for line in packets(answer)?.into_iter().flatten() {
        let line = String::from_utf8_lossy(line);
        if line == "version 2" {
            return Ok(Advertised::Version2);
        }
        // The first line has the server's capabilities behind a zero byte.
        let line = line.split('\0').next().unwrap_or_default();
        if let Some((id, name)) = line.split_once(' ').filter(|(id, _)| is_id(id)) {
            found.insert(name.to_owned(), id.to_owned());
        }
    }
    Ok(Advertised::References(found))
}

/// The commit of exactly this reference in an answer to [`question`].
fn listed(answer: &[u8], reference: &str) -> Result<Option<String>, String> {
    for line in packets(answer)?.into_iter().flatten() {
        let line = String::from_utf8_lossy(line);
        if let Some(problem) = line.strip_prefix("ERR ") {
            return Err(problem.chars().take(200).collect());
        }
        let mut words = line.split(' ');
        let (Some(id), Some(name)) = (words.next(), words.next()) else { continue };
        if name == reference && is_id(id) {
            let peeled = words.find_map(|word| word.strip_prefix("peeled:")).filter(|id| is_id(id));
            return Ok(Some(peeled.unwrap_or(id).to_owned()));
        }
    }
    Ok(None)
}

fn is_id(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn answer(lines: &[&str]) -> Vec<u8> {
        let mut text: String = lines.iter().map(|line| packet(&format!("{line}\n"))).collect();
        text.push_str("0000");
        text.into_bytes()
    }

    #[test]
    fn a_branch_is_found_by_its_whole_name_only() {
        let bytes = answer(&[&format!("{A} refs/heads/main-2"), &format!("{B} refs/heads/main")]);
        assert_eq!(listed(&bytes, "refs/heads/main").unwrap().as_deref(), Some(B));
        assert_eq!(listed(&bytes, "refs/heads/mai").unwrap(), None);
    }

    #[test]
    fn an_annotated_tag_stands_for_its_commit() {
        let bytes = answer(&[&format!("{A} refs/tags/v1 peeled:{B}")]);
        assert_eq!(listed(&bytes, "refs/tags/v1").unwrap().as_deref(), Some(B));
    }

    #[test]
    fn a_server_of_the_old_protocol_tells_all_its_references() {
        let mut bytes = answer(&["# service=git-upload-pack"]);
        bytes.extend(answer(&[
            &format!("{A} HEAD\0multi_ack symref=HEAD:refs/heads/main"),
            &format!("{A} refs/tags/v1"),
            &format!("{B} refs/tags/v1^{{}}"),
        ]));
        let Advertised::References(found) = advertised(&bytes).unwrap() else { panic!("references") };
        assert_eq!(found["HEAD"], A);
        assert_eq!(found["refs/tags/v1^{}"], B);
    }

    #[test]
    fn a_server_of_version_2_is_known_by_its_first_line() {
        let mut bytes = answer(&["# service=git-upload-pack"]);
        bytes.extend(answer(&["version 2", "ls-refs=unborn"]));
        assert_eq!(advertised(&bytes).unwrap(), Advertised::Version2);
    }

    #[test]
    fn a_servers_error_is_told() {
        let error = listed(&answer(&["ERR no such service"]), "HEAD").unwrap_err();
        assert_eq!(error, "no such service");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            advertised(&bytes).ok();
            listed(&bytes, "HEAD").ok();
        }
    }
}
