//! Signatures of files and commits by SSH keys (OpenSSH's `PROTOCOL.sshsig`): checked, never made.

use aws_lc_rs::digest::{self, digest};
use aws_lc_rs::rsa::PublicKeyComponents;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA512, UnparsedPublicKey, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::der::without_zeros;
use crate::wire::{put_string, string};

const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----";
const END: &str = "-----END SSH SIGNATURE-----";
const MAGIC: &[u8] = b"SSHSIG";

/// Why a signature is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// It is no signature.
    #[error("failed to parse ssh signature: {0}")]
    Malformed(&'static str),
    /// Another version than 1.
    #[error("unsupported SSH signature version: {0}")]
    Version(u32),
    /// Contents were digested in a way that is not taken.
    #[error("unsupported SSH signature hash algorithm: {0}")]
    Hash(String),
    /// It is for something else.
    #[error("unexpected SSH signature namespace: {0:?}")]
    Namespace(String),
    /// The key is no line of an `authorized_keys` file.
    #[error("failed to parse ssh public key: {0}")]
    Key(&'static str),
    /// Somebody else signed.
    #[error("failed to verify ssh signature: public key does not match")]
    OtherKey,
    /// The kind of the key is not taken, or not with this kind of signature.
    #[error("failed to verify ssh signature: unsupported algorithm {0}")]
    Algorithm(String),
    /// The signature is not of this data.
    #[error("failed to verify ssh signature: it does not fit what is signed")]
    Wrong,
}

/// Whether a text is meant as such a signature.
pub fn is_signature(armored: &str) -> bool {
    armored.starts_with(BEGIN)
}

/// Checks a signature of `data` by the key of a line as in `authorized_keys`, made for `namespace` (`git`, `file`).
///
/// # Errors
/// As [`SignatureError`] tells; RSA keys of less than 2048 bits and SHA-1 are not taken.
pub fn verify(armored: &str, data: &[u8], key: &str, namespace: &str) -> Result<(), SignatureError> {
    let malformed = || SignatureError::Malformed("its parts are cut");
    let bytes = unarmored(armored)?;
    let rest = bytes.strip_prefix(MAGIC).ok_or(SignatureError::Malformed("it does not begin as one"))?;
    let (version, rest) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
    let version = u32::from_be_bytes(*version);
    if version != 1 {
        return Err(SignatureError::Version(version));
    }
    let (signer, rest) = string(rest).ok_or_else(malformed)?;
    let (meant_for, rest) = string(rest).ok_or_else(malformed)?;
    let (reserved, rest) = string(rest).ok_or_else(malformed)?;
    let (hash, rest) = string(rest).ok_or_else(malformed)?;
    let (signature, rest) = string(rest).ok_or_else(malformed)?;
    if !rest.is_empty() {
        return Err(malformed());
    }
    let contents = match hash {
        b"sha256" => digest(&digest::SHA256, data),
        b"sha512" => digest(&digest::SHA512, data),
        other => return Err(SignatureError::Hash(String::from_utf8_lossy(other).into_owned())),
    };
    if meant_for != namespace.as_bytes() {
        return Err(SignatureError::Namespace(String::from_utf8_lossy(meant_for).into_owned()));
    }
    if public_key(key)? != signer {
        return Err(SignatureError::OtherKey);
    }
    let mut signed = MAGIC.to_vec();
    for part in [meant_for, reserved, hash, contents.as_ref()] {
        put_string(&mut signed, part);
    }
    check(signer, &signed, signature)
}

fn unarmored(armored: &str) -> Result<Vec<u8>, SignatureError> {
    let inner = armored.trim().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END));
    let inner = inner.ok_or(SignatureError::Malformed("it is not between its lines"))?;
    let digits: String = inner.split_ascii_whitespace().collect();
    STANDARD.decode(digits).map_err(|_| SignatureError::Malformed("it is no base64"))
}

/// The key of the first line that has one: options, kind, key, comment.
fn public_key(text: &str) -> Result<Vec<u8>, SignatureError> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in lines {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        for pair in words.windows(2) {
            let [kind, key] = pair else { continue };
            let Ok(bytes) = STANDARD.decode(key) else { continue };
            if string(&bytes).is_some_and(|(inner, _)| inner == kind.as_bytes()) {
                return Ok(bytes);
            }
        }
    }
    Err(SignatureError::Key("no key found"))
}

/// Checks the innermost signature: its kind and its bytes.
fn check(key: &[u8], signed: &[u8], signature: &[u8]) -> Result<(), SignatureError> {
    let malformed = || SignatureError::Malformed("the signature in it is cut");
    let cut = || SignatureError::Key("it is cut");
    let (kind, key) = string(key).ok_or_else(cut)?;
    let (algorithm, rest) = string(signature).ok_or_else(malformed)?;
    let (bytes, rest) = string(rest).ok_or_else(malformed)?;
    let unknown = || SignatureError::Algorithm(String::from_utf8_lossy(algorithm).into_owned());
    // Keys of hardware sign what they are given together with where it came from and how often they did.
    let of_hardware = |application: &[u8]| {
        let mut all = digest(&digest::SHA256, application).as_ref().to_vec();
        all.extend(rest);
        all.extend(digest(&digest::SHA256, signed).as_ref());
        (rest.len() == 5).then_some(all)
    };
    match (kind, algorithm) {
        (b"ssh-ed25519", b"ssh-ed25519") => {
            let (point, _) = string(key).ok_or_else(cut)?;
            fits(&ED25519, point, signed, bytes)
        }
        (b"sk-ssh-ed25519@openssh.com", b"sk-ssh-ed25519@openssh.com") => {
            let (point, more) = string(key).ok_or_else(cut)?;
            let (application, _) = string(more).ok_or_else(cut)?;
            fits(&ED25519, point, &of_hardware(application).ok_or_else(malformed)?, bytes)
        }
        (b"sk-ecdsa-sha2-nistp256@openssh.com", b"sk-ecdsa-sha2-nistp256@openssh.com") => {
            let (_, more) = string(key).ok_or_else(cut)?;
            let (point, more) = string(more).ok_or_else(cut)?;
            let (application, _) = string(more).ok_or_else(cut)?;
            let signed = of_hardware(application).ok_or_else(malformed)?;
            fits(&ECDSA_P256_SHA256_FIXED, point, &signed, &fixed(bytes, 32).ok_or_else(malformed)?)
        }
        (b"ssh-rsa", b"rsa-sha2-256" | b"rsa-sha2-512") => {
            let (e, more) = string(key).ok_or_else(cut)?;
            let (n, _) = string(more).ok_or_else(cut)?;
            let parameters = match algorithm {
                b"rsa-sha2-256" => &RSA_PKCS1_2048_8192_SHA256,
                _ => &RSA_PKCS1_2048_8192_SHA512,
            };
            let key = PublicKeyComponents { n: without_zeros(n), e: without_zeros(e) };
            key.verify(parameters, signed, bytes).map_err(|_| SignatureError::Wrong)
        }
        (kind, algorithm) if kind == algorithm && kind.starts_with(b"ecdsa-sha2-") => {
            let (parameters, size): (&'static dyn VerificationAlgorithm, _) = match kind {
                b"ecdsa-sha2-nistp256" => (&ECDSA_P256_SHA256_FIXED, 32),
                b"ecdsa-sha2-nistp384" => (&ECDSA_P384_SHA384_FIXED, 48),
                b"ecdsa-sha2-nistp521" => (&ECDSA_P521_SHA512_FIXED, 66),
                _ => return Err(unknown()),
            };
            let (_, more) = string(key).ok_or_else(cut)?;
            let (point, _) = string(more).ok_or_else(cut)?;
            fits(parameters, point, signed, &fixed(bytes, size).ok_or_else(malformed)?)
        }
        _ => Err(unknown()),
    }
}

fn fits(
    algorithm: &'static dyn VerificationAlgorithm,
    key: &[u8],
    signed: &[u8],
    signature: &[u8],
) -> Result<(), SignatureError> {
    UnparsedPublicKey::new(algorithm, key).verify(signed, signature).map_err(|_| SignatureError::Wrong)
}

/// Two numbers of SSH as digits of one length, one behind the other.
fn fixed(bytes: &[u8], size: usize) -> Option<Vec<u8>> {
    let (r, rest) = string(bytes)?;
    let (s, _) = string(rest)?;
    let mut out = Vec::with_capacity(2 * size);
    for number in [r, s] {
        let digits = without_zeros(number);
        out.resize(out.len() + size.checked_sub(digits.len())?, 0);
        out.extend(digits);
    }
    Some(out)
}

#[cfg(test)]
#[path = "signature_tests.rs"]
mod tests;
