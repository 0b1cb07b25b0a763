//! OpenSSH's own format of private keys (`openssh-key-v1`), as far as it is without a passphrase. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::der;
use crate::wire::string;

const BEGIN: &str = "-----BEGIN OPENSSH PRIVATE KEY-----";
const END: &str = "-----END OPENSSH PRIVATE KEY-----";
const MAGIC: &[u8] = b"openssh-key-v1\0";

/// Why a key is not taken.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It is locked.
    Passphrase,
    /// What is wrong, without anything of the contents.
    Malformed(String),
}

pub(crate) fn malformed(why: impl Into<String>) -> Refusal {
    Refusal::Malformed(why.into())
}

/// A key, taken apart.
pub(crate) struct Parts {
    pub(crate) fields: Fields,
    pub(crate) comment: String,
}

/// What a kind of key consists of.
pub(crate) enum Fields {
    Ed25519 { seed: Vec<u8>, public: Vec<u8> },
    Rsa { pkcs1: Vec<u8> },
    Ecdsa { name: String, private: Vec<u8>, public: Vec<u8> },
}

/// Reads the first key of a file.
pub(crate) fn read(text: &str) -> Result<Parts, Refusal> {
    let (_, body) = text.split_once(BEGIN).ok_or_else(cut)?;
    let (body, _) = body.split_once(END).ok_or_else(cut)?;
    let body: String = body.split_whitespace().collect();
    let bytes = STANDARD.decode(body).map_err(|_| malformed("its base64 is damaged"))?;
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| malformed("it is of an unknown version"))?;
    let mut outer = Reader(rest);
    let (cipher, _kdf, _options) = (outer.string()?, outer.string()?, outer.string()?);
    if cipher != b"none" {
        return Err(Refusal::Passphrase);
    }
    if outer.number()? != 1 {
        return Err(malformed("it holds several keys"));
    }
    let _public = outer.string()?;
    private(Reader(outer.string()?))
}

fn private(mut key: Reader<'_>) -> Result<Parts, Refusal> {
    if key.number()? != key.number()? {
        return Err(malformed("it is damaged"));
    }
    let kind = key.text()?;
    let fields = match kind.as_str() {
        "ssh-ed25519" => {
            let public = key.string()?.to_vec();
            // The seed, and the public part once more.
            let seed = key.string()?.get(..32).ok_or_else(cut)?.to_vec();
            Fields::Ed25519 { seed, public }
        }
        "ssh-rsa" => {
            let (n, e, d) = (key.string()?, key.string()?, key.string()?);
            let (inverse, p, q) = (key.string()?, key.string()?, key.string()?);
            // The two exponents that PKCS#1 has besides.
            let (by_p, by_q) = (der::modulo_less_one(d, p), der::modulo_less_one(d, q));
            Fields::Rsa { pkcs1: der::sequence(&[&[0], n, e, d, p, q, &by_p, &by_q, inverse]) }
        }
        _ if kind.starts_with("ecdsa-sha2-") => {
            let name = key.text()?;
            let public = key.string()?.to_vec();
            Fields::Ecdsa { name, private: key.string()?.to_vec(), public }
        }
        _ => return Err(malformed(format!("keys of kind {kind} are not supported"))),
    };
    Ok(Parts { fields, comment: key.text()? })
}

fn cut() -> Refusal {
    malformed("it ends too early")
}

/// Fields one behind the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn string(&mut self) -> Result<&'a [u8], Refusal> {
        let (field, rest) = string(self.0).ok_or_else(cut)?;
        self.0 = rest;
        Ok(field)
    }

    fn text(&mut self) -> Result<String, Refusal> {
        let text = String::from_utf8_lossy(self.string()?);
        Ok(text.chars().filter(|c| !c.is_control()).collect())
    }

    fn number(&mut self) -> Result<u32, Refusal> {
        let (number, rest) = self.0.split_first_chunk::<4>().ok_or_else(cut)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*number))
    }
}
