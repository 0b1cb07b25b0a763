//! Keys and certificates, of the server and of our own small clients.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use crate::{Error, Result, TlsFiles};

fn wrong(what: &'static str, path: &Path) -> impl FnOnce(&dyn std::fmt::Display) -> Error {
    let path = path.to_owned();
    move |why| Error::Tls { what, path, why: why.to_string() }
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if found.is_empty() => Err(wrong(what, path)(&"it holds no certificate in PEM form")),
        Ok(found) => Ok(found),
        Err(error) => Err(wrong(what, path)(&error)),
    }
}

fn authorities(path: &Path) -> Result<RootCertStore> {
    let what = "CA certificate";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(what, path)? {
        roots.add(certificate).map_err(|error| wrong(what, path)(&error))?;
    }
    Ok(roots)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| wrong("private key", path)(&error))
}

/// What the server shows and demands.
pub(crate) fn server(files: &TlsFiles) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
    let builder = builder.with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| wrong("certificate", &files.cert)(&error))?;
    let builder = match &files.ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(authorities(ca)?), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| wrong("CA certificate", ca)(&error))?)
        }
    };
    let pair = builder.with_single_cert(certificates("certificate", &files.cert)?, private_key(&files.key)?);
    let mut config = pair.map_err(|error| wrong("certificate", &files.cert)(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// What a client trusts (`ca`) and shows (`pair`: certificate, key).
///
/// # Errors
/// A file that cannot be read or is not what it should be.
pub fn client(ca: &Path, pair: Option<(PathBuf, PathBuf)>) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| wrong("CA certificate", ca)(&error))?;
    let builder = builder.with_root_certificates(authorities(ca)?);
    let mut config = match pair {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => builder
            .with_client_auth_cert(certificates("certificate", &cert)?, private_key(&key)?)
            .map_err(|error| wrong("certificate", &cert)(&error))?,
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}
