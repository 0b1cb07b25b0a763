//! Signatures of what a build brings from outside: OpenPGP's, and those of SSH keys.
//!
//! What is taken and what is not is as with BuildKit: SHA-2 alone, keys of RSA from 2048 bits, ECDSA and EdDSA; a key must be bound
//! to its certificate, and must not be revoked. Whether it was valid when it signed counts, or whether it is valid now.

use std::io::Read;

use pgp::composed::{Deserializable as _, DetachedSignature, SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::crypto::public_key::PublicKeyAlgorithm;
use pgp::packet::{PublicKey, Signature, SignatureType, SubpacketData};
use pgp::ser::Serialize as _;
use pgp::types::{KeyDetails, PublicParams, Tag, Timestamp};

const PGP: &str = "-----BEGIN PGP SIGNATURE-----";
const KEYS: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
/// Shortest modulus of an RSA key.
const RSA_BITS_MIN: usize = 2048;
/// A signature may be made so much later than now: clocks differ.
const AHEAD_SECONDS_MAX: u32 = 300;

/// Why a signature is not taken; of texts that others made only what they are is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// It is of no known form.
    #[error("invalid signature format")]
    Format,
    /// An SSH key's is not taken.
    #[error(transparent)]
    Ssh(#[from] lapstrake_ssh::SignatureError),
    /// A signature can't be read.
    #[error("failed to decode armored signature: {0}")]
    Signature(String),
    /// Keys can't be read.
    #[error("failed to read armored public key: {0}")]
    Keys(String),
    /// How it was made is not safe.
    #[error("rejecting {0}")]
    Weak(String),
    /// None of the keys made it.
    #[error("signature by {0}: signature made by unknown entity")]
    Unknown(String),
    /// A key made it, or says so, and it does not hold.
    #[error("signature by {signer}: {why}")]
    Wrong {
        /// The key.
        signer: String,
        /// Why not.
        why: String,
    },
    /// It is from the future.
    #[error("signature creation time is in the future")]
    Ahead,
}

/// Whose signature counts, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signer<'a> {
    /// Public keys: blocks of OpenPGP, or a line of `authorized_keys`.
    pub(crate) keys: &'a str,
    /// A key that expired since it signed does not count any more.
    pub(crate) rejects_expired: bool,
}

/// Checks a signature of a Git object, of either form.
pub(crate) fn of_git(data: &[u8], signature: &str, signer: &Signer<'_>) -> Result<(), Error> {
    let open = || Ok(data);
    if lapstrake_ssh::is_signature(signature) {
        return Ok(lapstrake_ssh::verify(signature, data, signer.keys, "git")?);
    }
    match signature.starts_with(PGP) {
        true => of_pgp(&open, signature, signer),
        false => Err(Error::Format),
    }
}

/// Checks a detached signature of OpenPGP; what is signed is opened once for each key that may have made it.
pub(crate) fn of_pgp<R: Read>(
    open: &dyn Fn() -> std::io::Result<R>,
    signature: &str,
    signer: &Signer<'_>,
) -> Result<(), Error> {
    let (detached, _) =
        DetachedSignature::from_string(signature).map_err(|e| Error::Signature(e.to_string()))?;
    let made = &detached.signature;
    let certificates = certificates(signer.keys)?;
    let config = made.config().ok_or_else(|| Error::Weak("unsupported signature version".to_owned()))?;
    if !matches!(config.typ, SignatureType::Binary | SignatureType::Text) {
        return Err(Error::Weak(format!("signature of another kind: {:?}", config.typ)));
    }
    if !matches!(config.hash_alg, HashAlgorithm::Sha256 | HashAlgorithm::Sha384 | HashAlgorithm::Sha512) {
        return Err(Error::Weak(format!("weak/unknown hash: {}", config.hash_alg)));
    }
    use PublicKeyAlgorithm::{ECDSA, EdDSALegacy, RSA, RSASign};
    if !matches!(config.pub_alg, EdDSALegacy | ECDSA | RSA | RSASign) {
        return Err(Error::Weak(format!("unsupported pubkey algorithm: {:?}", config.pub_alg)));
    }
    let created =
        made.created().ok_or_else(|| Error::Signature("it does not say when it was made".to_owned()))?;
    let now = Timestamp::now();
    if created.as_secs() > now.as_secs().saturating_add(AHEAD_SECONDS_MAX) {
        return Err(Error::Ahead);
    }
    // A clock that runs ahead a little is no reason: then it counts from when it was made.
    let at = if signer.rejects_expired { now.max(created) } else { created };
    let mut failure = None;
    for certificate in &certificates {
        match signed(certificate, made, open, at) {
            Some(Ok(())) => return Ok(()),
            Some(Err(why)) => failure = Some(why),
            None => {}
        }
    }
    let signer = made.issuer_key_id().first().map(|id| id.to_string().to_uppercase()).unwrap_or_default();
    Err(match failure {
        Some(why) => Error::Wrong { signer, why },
        None => Error::Unknown(signer),
    })
}

/// All certificates of one or several blocks.
fn certificates(text: &str) -> Result<Vec<SignedPublicKey>, Error> {
    let unreadable = |e: pgp::errors::Error| Error::Keys(e.to_string());
    let mut all = Vec::new();
    let begins: Vec<usize> = text.match_indices(KEYS).map(|(at, _)| at).collect();
    let ends = begins.iter().skip(1).copied().chain([text.len()]);
    for (begin, end) in begins.iter().zip(ends) {
        let block = text.get(*begin..end).unwrap_or_default();
        let (keys, _) = SignedPublicKey::from_string_many(block).map_err(unreadable)?;
        all.extend(keys.collect::<Result<Vec<_>, _>>().map_err(unreadable)?);
    }
    match all.is_empty() {
        true => Err(Error::Keys("no armored data found".to_owned())),
        false => Ok(all),
    }
}

/// Whether a key of a certificate made a signature, and may have; none where it is somebody else's.
fn signed<R: Read>(
    certificate: &SignedPublicKey,
    made: &Signature,
    open: &dyn Fn() -> std::io::Result<R>,
    at: Timestamp,
) -> Option<Result<(), String>> {
    let primary = &certificate.primary_key;
    if is_issuer(made, primary) {
        let work = || {
            let data = open().map_err(|e| e.to_string())?;
            made.verify(primary, data).map_err(|e| e.to_string())?;
            may_sign(certificate, None, made, at)
        };
        return Some(work());
    }
    let subkey = certificate.public_subkeys.iter().find(|subkey| is_issuer(made, &subkey.key))?;
    let work = || {
        let data = open().map_err(|e| e.to_string())?;
        made.verify(&subkey.key, data).map_err(|e| e.to_string())?;
        may_sign(certificate, Some(subkey), made, at)
    };
    Some(work())
}

fn is_issuer(made: &Signature, key: &impl KeyDetails) -> bool {
    let (id, fingerprint) = (key.legacy_key_id(), key.fingerprint());
    let (ids, fingerprints) = (made.issuer_key_id(), made.issuer_fingerprint());
    ids.contains(&&id) || fingerprints.contains(&&fingerprint)
}

/// Whether a key of a certificate may sign at a time: it is bound, meant for that, neither expired nor revoked.
fn may_sign(
    certificate: &SignedPublicKey,
    subkey: Option<&SignedPublicSubKey>,
    made: &Signature,
    at: Timestamp,
) -> Result<(), String> {
    let primary = &certificate.primary_key;
    if let Some(revoked) =
        certificate.details.revocation_signatures.iter().find(|s| s.verify_key(primary).is_ok())
    {
        let text = revoked.revocation_reason_string().map(|text| String::from_utf8_lossy(text).into_owned());
        return Err(match text.filter(|text| !text.is_empty()) {
            Some(text) => format!("key revoked: {text}"),
            None => "key revoked".to_owned(),
        });
    }
    if expires(made.created(), made.signature_expiration_time())
        .is_some_and(|end| end < u64::from(at.as_secs()))
    {
        return Err("signature expired".to_owned());
    }
    let own = own_signature(certificate, at).ok_or("key has no signature of its own that holds")?;
    lives(primary, own, at)?;
    let bits = rsa_bits(primary);
    if bits.is_some_and(|bits| bits < RSA_BITS_MIN) {
        return Err(format!("RSA key too short: {} bits", bits.unwrap_or_default()));
    }
    match subkey {
        None if flagged(own) && !own.key_flags().sign() => Err("key is not for signing".to_owned()),
        None => Ok(()),
        Some(subkey) => {
            let binding = binding(primary, subkey, at)?;
            lives(&subkey.key, binding, at)
        }
    }
}

fn expires(from: Option<Timestamp>, lasts: Option<pgp::types::Duration>) -> Option<u64> {
    let lasts = lasts.map(|lasts| u64::from(lasts.as_secs())).filter(|seconds| *seconds > 0)?;
    Some(u64::from(from?.as_secs()) + lasts)
}

fn lives(key: &impl KeyDetails, by: &Signature, at: Timestamp) -> Result<(), String> {
    let created = key.created_at();
    let end = expires(Some(created), by.key_expiration_time());
    match created > at || end.is_some_and(|end| end < u64::from(at.as_secs())) {
        true => Err("key expired".to_owned()),
        false => Ok(()),
    }
}

fn flagged(signature: &Signature) -> bool {
    let hashed = signature.config().map(|config| config.hashed_subpackets.as_slice()).unwrap_or_default();
    hashed.iter().any(|packet| matches!(packet.data, SubpacketData::KeyFlags(_)))
}

/// The newest signature by which a certificate says what it is.
fn own_signature(certificate: &SignedPublicKey, at: Timestamp) -> Option<&Signature> {
    let key = &certificate.primary_key;
    let of_users = certificate.details.users.iter().flat_map(|user| {
        let holds = |one: &&Signature| one.verify_certification(key, Tag::UserId, &user.id).is_ok();
        let own = user.signatures.iter().filter(|one| is_issuer(one, key)).filter(holds);
        let newest =
            own.filter(|one| one.created().is_some_and(|time| time <= at)).max_by_key(|one| one.created());
        newest.filter(|one| one.typ() != Some(SignatureType::CertRevocation))
    });
    let direct = certificate.details.direct_signatures.iter();
    let direct = direct.filter(|one| is_issuer(one, key) && one.verify_key(key).is_ok());
    let direct = direct.filter(|one| one.created().is_some_and(|time| time <= at));
    of_users.chain(direct).max_by_key(|one| one.created())
}

/// The newest signature that binds a key to a certificate, and by which it may sign.
fn binding<'a>(
    primary: &PublicKey,
    subkey: &'a SignedPublicSubKey,
    at: Timestamp,
) -> Result<&'a Signature, String> {
    let holds = |one: &&Signature| one.verify_subkey_binding(primary, &subkey.key).is_ok();
    let all: Vec<&Signature> = subkey.signatures.iter().filter(holds).collect();
    if all.iter().any(|one| one.typ() == Some(SignatureType::SubkeyRevocation)) {
        return Err("subkey revoked".to_owned());
    }
    let bound = all.into_iter().filter(|one| one.created().is_some_and(|time| time <= at));
    let newest = bound.max_by_key(|one| one.created()).ok_or("subkey is not bound to its key")?;
    // Both must say that they belong together, else a key could claim another one's signatures.
    let back = newest.embedded_signature();
    let both = back.is_some_and(|back| back.verify_primary_key_binding(&subkey.key, primary).is_ok());
    match newest.key_flags().sign() && both {
        true => Ok(newest),
        false => Err("subkey is not for signing".to_owned()),
    }
}

fn rsa_bits(key: &PublicKey) -> Option<usize> {
    let PublicParams::RSA(params) = key.public_params() else { return None };
    // The modulus comes first, and how many bits it has before it.
    let bytes = params.to_bytes().ok()?;
    let (bits, _) = bytes.split_first_chunk::<2>()?;
    Some(usize::from(u16::from_be_bytes(*bits)))
}

#[cfg(test)]
mod tests;
