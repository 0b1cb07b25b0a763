//! PAX records: `length key=value\n`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::Time;

/// A record's key and value.
pub(super) type Record<'a> = (&'a [u8], &'a [u8]);

/// Splits an extended header into its records, in order.
pub(super) fn parse(mut data: &[u8]) -> Result<Vec<Record<'_>>, &'static str> {
    let mut records = Vec::new();
    while !data.is_empty() {
        let space =
            data.iter().position(|b| *b == b' ').ok_or("extended header has a record without length")?;
        let length = decimal(&data[..space]).ok_or("extended header has a record of bad length")?;
        let length = usize::try_from(length).map_err(|_| "extended header has a record of bad length")?;
        if length > data.len() || length < space + 4 {
            return Err("extended header has a record of bad length");
        }
        let (record, rest) = data.split_at(length);
        let (body, end) = record[space + 1..].split_at(length - space - 2);
        let equals =
            body.iter().position(|b| *b == b'=').ok_or("extended header has a record without value")?;
        if end != b"\n" || equals == 0 {
            return Err("extended header has a record that is not closed");
        }
        records.push((&body[..equals], &body[equals + 1..]));
        data = rest;
    }
    Ok(records)
}

/// An attribute's name as part of a record's key, where `=` would end it: GNU tar writes it as `%3D`, and
/// `%` as `%25`. Other programs do not know that, so all other names stay as they are.
pub(super) fn encode_attribute(name: &[u8]) -> Cow<'_, [u8]> {
    if !name.contains(&b'=') && !name.windows(3).any(|three| decoded(three).is_some()) {
        return Cow::Borrowed(name);
    }
    let encode = |byte: &u8| match byte {
        b'=' => b"%3D".to_vec(),
        b'%' => b"%25".to_vec(),
        other => vec![*other],
    };
    Cow::Owned(name.iter().flat_map(encode).collect())
}

/// Undoes [`encode_attribute`].
pub(super) fn decode_attribute(mut key: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(key.len());
    while let [first, rest @ ..] = key {
        let escaped = key.get(..3).and_then(decoded);
        name.push(escaped.unwrap_or(*first));
        key = if escaped.is_some() { &key[3..] } else { rest };
    }
    name
}

fn decoded(three: &[u8]) -> Option<u8> {
    match three {
        b"%3D" => Some(b'='),
        b"%25" => Some(b'%'),
        _ => None,
    }
}

/// A plain decimal number.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// A time as PAX writes it: `-12.345`.
pub(super) fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut halves = text.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(halves.next()?)?).ok()?;
    let mut nanoseconds = 0;
    if let Some(fraction) = halves.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for at in 0..9 {
            nanoseconds = nanoseconds * 10 + fraction.get(at).map_or(0, |d| u32::from(d - b'0'));
        }
    }
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds: 0 },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

/// Encodes records, sorted by key.
pub(super) fn encode(records: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let mut out = Vec::new();
    for (key, value) in records {
        let body = key.len() + value.len() + 3;
        // The length counts its own digits.
        let mut length = body;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        out.extend_from_slice(length.to_string().as_bytes());
        out.push(b' ');
        out.extend_from_slice(key);
        out.push(b'=');
        out.extend_from_slice(value);
        out.push(b'\n');
    }
    out
}
