//! Private keys: read from files, used to sign, never shown.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, ECDSA_P521_SHA512_FIXED_SIGNING,
    EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA512,
};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;

use crate::limits::{KEY_FILE_BYTES_MAX, KEYS_MAX};
use crate::openssh::{self, Refusal, malformed};
use crate::{Error, der, wire};

/// A private key.
pub struct Key {
    pair: Pair,
    /// The public part, as SSH writes it.
    public: Vec<u8>,
    comment: String,
}

enum Pair {
    Ed25519(Ed25519KeyPair),
    Rsa(rsa::KeyPair),
    Ecdsa(&'static Curve, EcdsaKeyPair),
}

/// A curve by its names.
struct Curve {
    signing: &'static EcdsaSigningAlgorithm,
    kind: &'static str,
    name: &'static str,
    /// Bytes of a point without compression.
    point_bytes: usize,
}

static CURVES: [Curve; 3] = [
    Curve {
        signing: &ECDSA_P256_SHA256_FIXED_SIGNING,
        kind: "ecdsa-sha2-nistp256",
        name: "nistp256",
        point_bytes: 65,
    },
    Curve {
        signing: &ECDSA_P384_SHA384_FIXED_SIGNING,
        kind: "ecdsa-sha2-nistp384",
        name: "nistp384",
        point_bytes: 97,
    },
    Curve {
        signing: &ECDSA_P521_SHA512_FIXED_SIGNING,
        kind: "ecdsa-sha2-nistp521",
        name: "nistp521",
        point_bytes: 133,
    },
];

impl Curve {
    /// A private number with the zeros that it is written without.
    fn padded(&self, number: &[u8]) -> Option<Vec<u8>> {
        let digits = der::without_zeros(number);
        let length = (self.point_bytes - 1) / 2;
        let mut padded = vec![0; length.checked_sub(digits.len())?];
        padded.extend(digits);
        Some(padded)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("comment", &self.comment).finish_non_exhaustive()
    }
}

impl Key {
    /// Reads a file: OpenSSH's format, or PEM (PKCS#1, PKCS#8, SEC1). Blocking.
    ///
    /// # Errors
    /// A file that can't be read, a passphrase, a kind of key that is not supported (DSA, keys of hardware,
    /// RSA of less than 2048 bits).
    pub fn open(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(read)?;
        file.take(KEY_FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(read)?;
        if text.len() as u64 > KEY_FILE_BYTES_MAX {
            return Err(Error::TooLarge { path: path.to_owned() });
        }
        let comment = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self::parse(&text, comment).map_err(|why| match why {
            Refusal::Passphrase => Error::Passphrase { path: path.to_owned() },
            Refusal::Malformed(why) => Error::Malformed { path: path.to_owned(), why },
        })
    }

    /// Reads files, and all files of folders (hidden ones left out). Blocking.
    ///
    /// # Errors
    /// As [`Key::open`]; folders without any file.
    pub fn open_all(paths: &[PathBuf]) -> Result<Vec<Self>, Error> {
        let mut keys = Vec::new();
        for path in paths {
            let read = |source| Error::Read { path: path.clone(), source };
            let mut files = vec![path.clone()];
            if std::fs::metadata(path).map_err(read)?.is_dir() {
                files.clear();
                for entry in std::fs::read_dir(path).map_err(read)? {
                    let entry = entry.map_err(read)?;
                    let hidden = entry.file_name().to_string_lossy().starts_with('.');
                    if !hidden && entry.path().is_file() {
                        files.push(entry.path());
                    }
                }
                files.sort();
            }
            for file in files {
                if keys.len() == KEYS_MAX {
                    return Err(Error::TooMany);
                }
                keys.push(Self::open(&file)?);
            }
        }
        match paths.first() {
            Some(path) if keys.is_empty() => Err(Error::Empty { path: path.clone() }),
            _ => Ok(keys),
        }
    }

    fn parse(text: &str, comment: String) -> Result<Self, Refusal> {
        // A Secret's value is easily written without the last end of line, or with Windows' ones.
        let text = text.trim().replace("\r\n", "\n") + "\n";
        if text.contains("BEGIN OPENSSH PRIVATE KEY") {
            return Self::openssh(&text, comment);
        }
        if text.contains("ENCRYPTED") {
            return Err(Refusal::Passphrase);
        }
        let der = PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|_| {
            malformed("it is no private key in OpenSSH's or PEM form (is it the public part?)")
        })?;
        Self::pem(&der, comment)
    }

    fn openssh(text: &str, comment: String) -> Result<Self, Refusal> {
        let key = openssh::read(text)?;
        let comment = if key.comment.is_empty() { comment } else { key.comment };
        let pair = match key.fields {
            openssh::Fields::Ed25519 { seed, public } => {
                Pair::Ed25519(Ed25519KeyPair::from_seed_and_public_key(&seed, &public).map_err(unusable)?)
            }
            openssh::Fields::Rsa { pkcs1 } => Pair::Rsa(rsa::KeyPair::from_der(&pkcs1).map_err(unusable)?),
            openssh::Fields::Ecdsa { name, private, public } => {
                let curve = CURVES.iter().find(|curve| curve.name == name);
                let curve = curve.ok_or_else(|| malformed("its curve is not supported"))?;
                let private = curve.padded(&private).ok_or_else(|| malformed("its numbers make no sense"))?;
                let pair = EcdsaKeyPair::from_private_key_and_public_key(curve.signing, &private, &public);
                Pair::Ecdsa(curve, pair.map_err(unusable)?)
            }
        };
        Ok(Self::of(pair, comment))
    }

    fn pem(der: &PrivateKeyDer<'_>, comment: String) -> Result<Self, Refusal> {
        let bytes = der.secret_der();
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(bytes) {
            return Ok(Self::of(Pair::Ed25519(pair), comment));
        }
        let rsa = match der {
            PrivateKeyDer::Pkcs1(_) => rsa::KeyPair::from_der(bytes),
            _ => rsa::KeyPair::from_pkcs8(bytes),
        };
        if let Ok(pair) = rsa {
            return Ok(Self::of(Pair::Rsa(pair), comment));
        }
        for curve in &CURVES {
            if let Ok(pair) = EcdsaKeyPair::from_private_key_der(curve.signing, bytes)
                && pair.public_key().as_ref().len() == curve.point_bytes
            {
                return Ok(Self::of(Pair::Ecdsa(curve, pair), comment));
            }
        }
        Err(malformed("it is no Ed25519, ECDSA or RSA key of at least 2048 bits"))
    }

    fn of(pair: Pair, comment: String) -> Self {
        let mut public = Vec::new();
        match &pair {
            Pair::Ed25519(pair) => {
                wire::put_string(&mut public, b"ssh-ed25519");
                wire::put_string(&mut public, pair.public_key().as_ref());
            }
            Pair::Rsa(pair) => {
                wire::put_string(&mut public, b"ssh-rsa");
                // The modulus comes first in ASN.1, the exponent in SSH.
                let numbers = der::numbers(pair.public_key().as_ref()).unwrap_or_default();
                for number in numbers.iter().rev() {
                    wire::put_number(&mut public, number);
                }
            }
            Pair::Ecdsa(curve, pair) => {
                wire::put_string(&mut public, curve.kind.as_bytes());
                wire::put_string(&mut public, curve.name.as_bytes());
                wire::put_string(&mut public, pair.public_key().as_ref());
            }
        }
        Self { pair, public, comment }
    }

    /// The public part, as SSH writes it.
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// What the key is called.
    pub fn comment(&self) -> &str {
        &self.comment
    }

    /// A signature in SSH's form; `None` where the flags ask for what is not given any more (SHA-1).
    pub(crate) fn sign(&self, data: &[u8], flags: u32) -> Option<Vec<u8>> {
        let random = SystemRandom::new();
        let mut out = Vec::new();
        match &self.pair {
            Pair::Ed25519(pair) => {
                wire::put_string(&mut out, b"ssh-ed25519");
                wire::put_string(&mut out, pair.sign(data).as_ref());
            }
            Pair::Rsa(pair) => {
                let (name, padding) = if flags & wire::SHA2_512 != 0 {
                    ("rsa-sha2-512", &RSA_PKCS1_SHA512)
                } else if flags & wire::SHA2_256 != 0 {
                    ("rsa-sha2-256", &RSA_PKCS1_SHA256)
                } else {
                    return None;
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &random, data, &mut signature).ok()?;
                wire::put_string(&mut out, name.as_bytes());
                wire::put_string(&mut out, &signature);
            }
            Pair::Ecdsa(curve, pair) => {
                let signature = pair.sign(&random, data).ok()?;
                let (r, s) = signature.as_ref().split_at(signature.as_ref().len() / 2);
                let mut numbers = Vec::new();
                wire::put_number(&mut numbers, r);
                wire::put_number(&mut numbers, s);
                wire::put_string(&mut out, curve.kind.as_bytes());
                wire::put_string(&mut out, &numbers);
            }
        }
        Some(out)
    }
}

fn unusable(why: aws_lc_rs::error::KeyRejected) -> Refusal {
    malformed(format!("it can't be used: {why}"))
}

#[cfg(test)]
#[path = "key_tests.rs"]
mod tests;
