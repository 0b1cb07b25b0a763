//! Docker's credential helpers: programs called `docker-credential-NAME`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;

use crate::Redacted;
use crate::credentials::Secret;

/// Helpers that ask a cloud's API need seconds; one that hangs must not hold a build.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Refuses names that could leave the search path.
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    match !name.is_empty() && name.bytes().all(ok) {
        true => Ok(()),
        false => Err("a credential helper's name may hold letters, digits, '-', '_' and '.' only".to_owned()),
    }
}

/// Asks the helper for what it keeps for `server`; `None` where it keeps nothing.
/// The error text has nothing that the helper printed to its output, where secrets go.
pub(crate) async fn get(dir: Option<&Path>, name: &str, server: &str) -> Result<Option<Secret>, String> {
    let program = format!("docker-credential-{name}");
    let path = dir.map_or_else(|| PathBuf::from(&program), |dir| dir.join(&program));
    match tokio::time::timeout(TIMEOUT, run(&path, server)).await {
        Ok(result) => result.map_err(|why| format!("{program}: {why}")),
        Err(_) => Err(format!("{program}: no answer within {} s", TIMEOUT.as_secs())),
    }
}

async fn run(program: &Path, server: &str) -> Result<Option<Secret>, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        #[serde(default)]
        username: String,
        secret: Redacted,
    }
    let mut child = tokio::process::Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("cannot start it: {error}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that does not read its question says so by its exit code.
        stdin.write_all(server.as_bytes()).await.ok();
    }
    let output = child.wait_with_output().await.map_err(|error| error.to_string())?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stdout).to_ascii_lowercase();
        return match text.contains("credentials not found") {
            true => Ok(None),
            false => Err(format!("it failed ({})", output.status)),
        };
    }
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|_| "its answer is not valid".to_owned())?;
    Ok(match answer.username.as_str() {
        _ if answer.secret.reveal().is_empty() => None,
        // Docker's mark for a refresh token.
        "<token>" => Some(Secret::Identity { token: answer.secret }),
        username => Some(Secret::Basic { username: username.to_owned(), password: answer.secret }),
    })
}
