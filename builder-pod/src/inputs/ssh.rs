//! SSH agents by their ids.

use std::path::Path;
use std::sync::Arc;

use lapstrake_handoff::Reason;
use lapstrake_ssh::{Agent, Key};

use super::{KnownHosts, SshFrom, SshSource};
use crate::error::{BuildError, chain};

/// The id of a mount that names none.
pub(super) const ID_DEFAULT: &str = "default";

/// The most bytes of a file with keys of hosts.
const KNOWN_HOSTS_BYTES_MAX: usize = 1 << 20;

/// An agent for one step.
pub(crate) struct Given {
    pub(crate) agent: Arc<Agent>,
    /// Keys of hosts, as `known_hosts` has them.
    pub(crate) known_hosts: Option<Vec<u8>>,
}

pub(super) fn open(sources: &[SshSource], id: &str) -> Result<Option<Given>, BuildError> {
    let id = if id.is_empty() { ID_DEFAULT } else { id };
    let Some(source) = sources.iter().find(|source| source.id == id) else { return Ok(None) };
    let agent = match &source.from {
        SshFrom::Socket(socket) => Agent::Forward(socket.clone()),
        SshFrom::Keys(paths) => {
            let keys = Key::open_all(paths);
            let unusable =
                |e| BuildError::new(Reason::SecretNotFound, format!("SSH agent {id}: {}", chain(&e)));
            Agent::Keys(keys.map_err(unusable)?)
        }
    };
    let known_hosts = match &source.known_hosts {
        None => None,
        Some(KnownHosts::File(path)) => Some(read_known_hosts(id, path)?),
        Some(KnownHosts::Text(text)) => Some(whole_lines(text.clone().into_bytes())),
    };
    Ok(Some(Given { agent: Arc::new(agent), known_hosts }))
}

fn read_known_hosts(id: &str, path: &Path) -> Result<Vec<u8>, BuildError> {
    let failed = |why: String| {
        let message = format!("SSH agent {id}: known_hosts {}: {why}", path.display());
        BuildError::new(Reason::SecretNotFound, message)
    };
    let text = std::fs::read(path).map_err(|e| failed(e.to_string()))?;
    if text.len() > KNOWN_HOSTS_BYTES_MAX {
        return Err(failed("it is larger than 1 MiB".to_owned()));
    }
    Ok(whole_lines(text))
}

/// Ends the last line, since others may follow.
fn whole_lines(mut text: Vec<u8>) -> Vec<u8> {
    if text.last().is_some_and(|last| *last != b'\n') {
        text.push(b'\n');
    }
    text
}
