//! `[registry."host"]` as settings of our registry client.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use lapstrake_registry::{HostConfig, HostsConfig};

use super::Note;
use super::file::{KeyPair, Registry};
use crate::{Error, Result};

pub(crate) fn hosts(tables: BTreeMap<String, Registry>, notes: &mut Vec<Note>) -> Result<HostsConfig> {
    let mut hosts = HostsConfig::default();
    for (host, mut table) in tables {
        for dir in std::mem::take(&mut table.tls_config_dir) {
            let (ca, pairs) = certificates(&dir)?;
            table.ca.extend(ca);
            table.keypair.extend(pairs);
        }
        if table.keypair.len() > 1 {
            let text = format!("registry {host}: of several key pairs only the first is used");
            notes.push(Note::warning(text));
        }
        let pair = table.keypair.into_iter().next();
        let (client_cert, client_key) = pair.map(|pair| (pair.cert, pair.key)).unzip();
        let config = HostConfig {
            mirrors: table.mirrors,
            http: table.http,
            insecure: table.insecure.unwrap_or(false),
            ca: table.ca,
            client_cert,
            client_key,
        };
        hosts = hosts.with(host, config);
    }
    Ok(hosts)
}

/// CAs (`*.crt`) and key pairs (`*.cert` with `*.key`) of a directory; one that is not there has none.
fn certificates(dir: &Path) -> Result<(Vec<PathBuf>, Vec<KeyPair>)> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
            return Ok(Default::default());
        }
        Err(error) => return Err(Error::io("list", dir)(error)),
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let with = |extension| paths.iter().filter(move |path| path.extension().is_some_and(|e| e == extension));
    let ca = with("crt").cloned().collect();
    let pairs =
        with("cert").map(|cert| KeyPair { cert: cert.clone(), key: cert.with_extension("key") }).collect();
    Ok((ca, pairs))
}
