//! Keys and signatures that GnuPG made: Ann's key is EdDSA with a subkey of RSA, Bob's lasted from 2020 to 2021, Cid's is RSA.

use super::*;

const DATA: &[u8] = b"what is signed\n";

fn of(data: &[u8], signature: &str, signer: &Signer<'_>) -> Result<(), Error> {
    of_pgp(&|| Ok(data), signature, signer)
}

macro_rules! file {
    ($name:literal) => {
        include_str!(concat!("testdata/", $name))
    };
}

fn by(keys: &str) -> Signer<'_> {
    Signer { keys, rejects_expired: false }
}

#[test]
fn a_key_and_its_subkey_sign_and_one_of_several_certificates_is_enough() {
    let ann = file!("ann.pub");
    let all = [file!("bob.pub"), file!("cid.pub"), ann].concat();
    for signature in [file!("primary.asc"), file!("subkey.asc")] {
        for keys in [ann, &all] {
            assert_eq!(of(DATA, signature, &by(keys)), Ok(()));
            assert_eq!(of_git(DATA, signature, &Signer { keys, rejects_expired: true }), Ok(()));
        }
        let error = of(b"another thing\n", signature, &by(ann)).expect_err("not signed");
        assert!(matches!(error, Error::Wrong { .. }), "{error}");
        let error = of(DATA, signature, &by(file!("cid.pub"))).expect_err("signed by another");
        assert!(matches!(error, Error::Unknown(_)), "{error}");
    }
    assert_eq!(of(DATA, file!("cid.asc"), &by(&all)), Ok(()));
}

#[test]
fn a_subkey_that_its_key_did_not_bind_signs_nothing() {
    let (mut keys, _) = SignedPublicKey::from_string_many(file!("ann.pub")).expect("keys");
    let mut ann = keys.next().expect("one").expect("readable");
    for subkey in &mut ann.public_subkeys {
        subkey.signatures.clear();
    }
    let (made, _) = DetachedSignature::from_string(file!("subkey.asc")).expect("a signature");
    let found = signed(&ann, &made.signature, &|| Ok(DATA), Timestamp::now());
    assert_eq!(found, Some(Err("subkey is not bound to its key".to_owned())));
}

#[test]
fn weak_digests_and_revoked_keys_are_refused() {
    let error = of(DATA, file!("sha1.asc"), &by(file!("ann.pub"))).expect_err("SHA-1");
    assert!(matches!(&error, Error::Weak(why) if why.contains("hash")), "{error}");
    let error = of(DATA, file!("cid.asc"), &by(file!("cid-revoked.pub"))).expect_err("revoked");
    assert!(error.to_string().contains("key revoked"), "{error}");
}

#[test]
fn a_key_that_expired_since_counts_only_where_that_is_let_pass() {
    let bob = file!("bob.pub");
    assert_eq!(of(DATA, file!("bob.asc"), &by(bob)), Ok(()));
    let error = of(DATA, file!("bob.asc"), &Signer { keys: bob, rejects_expired: true });
    assert!(error.expect_err("expired").to_string().contains("key expired"));
}

#[test]
fn what_is_no_signature_or_no_key_is_told_so() {
    assert_eq!(of_git(DATA, "a text", &by(file!("ann.pub"))), Err(Error::Format));
    let cut = file!("primary.asc").replace("-----END", "");
    assert!(of(DATA, &cut, &by(file!("ann.pub"))).is_err());
    let error = of(DATA, file!("primary.asc"), &by("no key")).expect_err("no key");
    assert!(matches!(error, Error::Keys(_)), "{error}");
}
