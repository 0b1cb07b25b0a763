//! How the world outside is reached: proxies, and authorities that are trusted beside the machine's.

use std::path::{Path, PathBuf};

use crate::{Error, Redacted};

/// Proxies of one's own choice. Without one, those of the environment count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxy {
    /// Address for `http`; may hold user and password.
    pub http: Option<Redacted>,
    /// Address for `https`; may hold user and password.
    pub https: Option<Redacted>,
    /// What is reached without one: names, domains, addresses and networks, separated by commas.
    pub no: String,
}

impl Proxy {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.http.is_none() && self.https.is_none() && self.no.is_empty()
    }

    /// Has a client's connections take these proxies, and no others.
    ///
    /// # Errors
    /// When an address is none; the text does not repeat it.
    pub fn apply(&self, mut builder: reqwest::ClientBuilder) -> Result<reqwest::ClientBuilder, Error> {
        builder = builder.no_proxy();
        let no = reqwest::NoProxy::from_string(&self.no);
        let bad = |what| move |_| Error::config(what, "its address is not valid: write http://host:port");
        if let Some(address) = &self.http {
            let proxy = reqwest::Proxy::http(address.reveal()).map_err(bad("the proxy for http"))?;
            builder = builder.proxy(proxy.no_proxy(no.clone()));
        }
        if let Some(address) = &self.https {
            let proxy = reqwest::Proxy::https(address.reveal()).map_err(bad("the proxy for https"))?;
            builder = builder.proxy(proxy.no_proxy(no));
        }
        Ok(builder)
    }
}

/// The PEM text of files, and of all files in folders, in the order of their names (blocking, small).
///
/// # Errors
/// When one can't be read, or has no certificate.
pub fn read_authorities(paths: &[PathBuf]) -> Result<String, Error> {
    let mut all = String::new();
    for path in paths {
        for file in files(path)? {
            let shown = file.display().to_string();
            let text = std::fs::read_to_string(&file)
                .map_err(|error| Error::config(&shown, format!("cannot read it: {error}")))?;
            let certificates = reqwest::Certificate::from_pem_bundle(text.as_bytes());
            if !certificates.is_ok_and(|found| !found.is_empty()) {
                return Err(Error::config(shown, "it is not a PEM file of certificates"));
            }
            all.push_str(text.trim_end());
            all.push('\n');
        }
    }
    Ok(all)
}

/// The certificates of a PEM text.
///
/// # Errors
/// When it is none.
pub fn certificates(pem: &str) -> Result<Vec<reqwest::Certificate>, Error> {
    reqwest::Certificate::from_pem_bundle(pem.as_bytes())
        .map_err(|_| Error::config("certificates", "not a PEM text of certificates"))
}

fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let failed =
        |error| Error::config(path.display().to_string(), format!("cannot read the folder: {error}"));
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        // What the kubelet keeps its versions in.
        if !entry.file_name().as_encoded_bytes().starts_with(b"..") && entry.path().is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_proxy_is_refused_without_its_password() {
        for address in ["http://", "http://me:hunter2@:x", "://hunter2"] {
            let proxy = Proxy { http: Some(Redacted::new(address)), ..Proxy::default() };
            let error = proxy.apply(reqwest::Client::builder()).expect_err(address).to_string();
            assert!(error.contains("the proxy for http") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("..data")).unwrap();
        assert_eq!(read_authorities(&[dir.path().to_owned()]).unwrap(), "");
        std::fs::write(dir.path().join("ca.crt"), "hello").unwrap();
        let error = read_authorities(&[dir.path().to_owned()]).unwrap_err().to_string();
        assert!(error.contains("ca.crt"), "{error}");
    }
}
