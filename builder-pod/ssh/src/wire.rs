//! The agent protocol's messages, as far as they are answered. Pure.

/// What a client asks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request<'a> {
    /// Which keys are there.
    Identities,
    /// A signature over `data` by the key with this public part.
    Sign {
        /// Public key, as SSH writes it.
        key: &'a [u8],
        /// What is signed.
        data: &'a [u8],
        /// [`SHA2_256`], [`SHA2_512`].
        flags: u32,
    },
    /// Anything else, and what makes no sense.
    Other,
}

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// An RSA signature by SHA-256 is wanted.
pub(crate) const SHA2_256: u32 = 2;
/// An RSA signature by SHA-512 is wanted.
pub(crate) const SHA2_512: u32 = 4;

/// "No", as a whole message with its length.
pub(crate) const REFUSED: [u8; 5] = [0, 0, 0, 1, FAILURE];

/// Reads a message without its length.
pub(crate) fn read(message: &[u8]) -> Request<'_> {
    match message {
        [REQUEST_IDENTITIES] => Request::Identities,
        [SIGN_REQUEST, rest @ ..] => sign(rest).unwrap_or(Request::Other),
        _ => Request::Other,
    }
}

fn sign(rest: &[u8]) -> Option<Request<'_>> {
    let (key, rest) = string(rest)?;
    let (data, rest) = string(rest)?;
    let flags = u32::from_be_bytes(rest.try_into().ok()?);
    Some(Request::Sign { key, data, flags })
}

/// Whether another agent's answer is one of the two that we pass on.
pub(crate) fn is_answer(message: &[u8]) -> bool {
    matches!(message.first(), Some(&(IDENTITIES_ANSWER | SIGN_RESPONSE)))
}

/// A string of SSH (length and bytes), and what follows it.
pub(crate) fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

/// Appends a string of SSH.
pub(crate) fn put_string(out: &mut Vec<u8>, bytes: &[u8]) {
    // Nothing here is longer than a message, whose length fits.
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(bytes);
}

/// Appends a non-negative number of SSH: without leading zeros, but with one where its first bit is set.
pub(crate) fn put_number(out: &mut Vec<u8>, big_endian: &[u8]) {
    let digits = crate::der::without_zeros(big_endian);
    let mut number = Vec::with_capacity(digits.len() + 1);
    if digits.first().is_some_and(|byte| byte & 0x80 != 0) {
        number.push(0);
    }
    number.extend(digits);
    put_string(out, &number);
}

/// The keys that are there: public part and comment.
pub(crate) fn identities<'a>(keys: impl ExactSizeIterator<Item = (&'a [u8], &'a str)>) -> Vec<u8> {
    let mut body = vec![IDENTITIES_ANSWER];
    body.extend(u32::try_from(keys.len()).unwrap_or(0).to_be_bytes());
    for (key, comment) in keys {
        put_string(&mut body, key);
        put_string(&mut body, comment.as_bytes());
    }
    message(&body)
}

/// A signature.
pub(crate) fn signed(signature: &[u8]) -> Vec<u8> {
    let mut body = vec![SIGN_RESPONSE];
    put_string(&mut body, signature);
    message(&body)
}

/// A message with its length.
pub(crate) fn message(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 4);
    put_string(&mut out, body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_two_requests_are_understood() {
        assert_eq!(read(&[11]), Request::Identities);
        let mut sign = vec![13];
        put_string(&mut sign, b"key");
        put_string(&mut sign, b"data");
        sign.extend([0, 0, 0, 4]);
        assert_eq!(read(&sign), Request::Sign { key: b"key", data: b"data", flags: SHA2_512 });
        // Add, remove, remove all, lock, unlock, extension; cut and overlong ones.
        for other in [&[17][..], &[18], &[19], &[22], &[23], &[27], &[], &sign[..9], &[11, 0]] {
            assert_eq!(read(other), Request::Other, "{other:?}");
        }
        sign.push(0);
        assert_eq!(read(&sign), Request::Other);
        assert_eq!(read(&[13, 0xff, 0xff, 0xff, 0xff, 1]), Request::Other);
    }

    #[test]
    fn numbers_are_never_negative() {
        let number = |bytes: &[u8]| {
            let mut out = Vec::new();
            put_number(&mut out, bytes);
            out
        };
        assert_eq!(number(&[0, 0, 0x7f]), [0, 0, 0, 1, 0x7f]);
        assert_eq!(number(&[0x80]), [0, 0, 0, 2, 0, 0x80]);
        assert_eq!(number(&[0]), [0, 0, 0, 0]);
    }

    #[test]
    fn a_forwarded_agent_may_only_answer_what_was_asked() {
        assert!(is_answer(&[12, 0]) && is_answer(&[14]));
        for other in [&[][..], &[5], &[6], &[28]] {
            assert!(!is_answer(other));
        }
    }
}
