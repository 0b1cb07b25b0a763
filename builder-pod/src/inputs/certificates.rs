//! Certificates for steps.

use std::path::{Path, PathBuf};

use lapstrake_handoff::Reason;
use lapstrake_run::StepCertificates;

use crate::error::BuildError;

/// Where the builder itself may have the usual authorities.
const USUAL: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// The most bytes of certificates that a step is given.
const BYTES_MAX: usize = 4 << 20;

/// What steps trust beside the image's own authorities; `None` where no file is named.
pub(super) fn for_steps(files: &[String]) -> Result<Option<StepCertificates>, BuildError> {
    let mut extra = String::new();
    for path in files.iter().map(Path::new) {
        for file in listed(path)? {
            extra.push_str(&certificates(&file)?);
            if extra.len() > BYTES_MAX {
                return Err(invalid(&file, "certificates for steps are larger than 4 MiB"));
            }
        }
    }
    if extra.is_empty() {
        return Ok(None);
    }
    let usual = USUAL.iter().find_map(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    Ok(Some(StepCertificates { extra, usual }))
}

/// The file itself, or those of a folder that a ConfigMap or Secret became.
fn listed(path: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let failed = |e: std::io::Error| invalid(path, &e.to_string());
    if !std::fs::metadata(path).map_err(failed)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if !entry.file_name().to_string_lossy().starts_with('.') && entry.path().is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn invalid(path: &Path, why: &str) -> BuildError {
    BuildError::new(Reason::RequestInvalid, format!("certificate {}: {why}", path.display()))
}

/// The certificates of a file, and nothing else of it: a key may stand beside them.
fn certificates(path: &Path) -> Result<String, BuildError> {
    let text = std::fs::read(path).map_err(|e| invalid(path, &e.to_string()))?;
    let only = only_certificates(&String::from_utf8_lossy(&text));
    if only.is_empty() {
        return Err(invalid(path, "it has no certificate in PEM form"));
    }
    Ok(only)
}

fn only_certificates(text: &str) -> String {
    let mut only = String::new();
    let mut rest = text;
    while let Some((_, tail)) = rest.split_once(BEGIN) {
        let Some((body, tail)) = tail.split_once(END) else { break };
        let body: Vec<&str> = body.split_whitespace().collect();
        only.push_str(&format!("{BEGIN}\n{}\n{END}\n", body.join("\n")));
        rest = tail;
    }
    only
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_certificates_are_taken_of_a_file() {
        let text = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\nsubject=a\n\
                    -----BEGIN CERTIFICATE-----\r\nQQ\r\nQg\r\n-----END CERTIFICATE-----\n\
                    -----BEGIN CERTIFICATE-----\nQ";
        let only = only_certificates(text);
        assert_eq!(only, "-----BEGIN CERTIFICATE-----\nQQ\nQg\n-----END CERTIFICATE-----\n");
    }

    #[test]
    fn a_file_without_a_certificate_is_named() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("tls.key");
        std::fs::write(&path, "c2VjcmV0").expect("written");
        let error = for_steps(&[path.display().to_string()]).expect_err("no certificate").to_string();
        assert!(error.contains("tls.key: it has no certificate") && !error.contains("c2VjcmV0"), "{error}");
        assert!(for_steps(&[]).expect("nothing").is_none());
    }
}
