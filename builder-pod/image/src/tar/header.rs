//! The fields of a 512-byte header.

use super::BLOCK_BYTES;

/// Where a field lies.
pub(super) type Field = std::ops::Range<usize>;

pub(super) const NAME: Field = 0..100;
pub(super) const MODE: Field = 100..108;
pub(super) const UID: Field = 108..116;
pub(super) const GID: Field = 116..124;
pub(super) const SIZE: Field = 124..136;
pub(super) const MTIME: Field = 136..148;
pub(super) const CHECKSUM: Field = 148..156;
pub(super) const TYPE: usize = 156;
pub(super) const LINK: Field = 157..257;
pub(super) const MAGIC: Field = 257..265;
pub(super) const DEV_MAJOR: Field = 329..337;
pub(super) const DEV_MINOR: Field = 337..345;
pub(super) const PREFIX: Field = 345..500;
/// Prefix in the format of `star`, which has times behind it.
const STAR_PREFIX: Field = 345..476;
const STAR_TRAILER: Field = 508..512;
pub(super) const GNU_SPARSE: usize = 386;
pub(super) const GNU_EXTENDED: usize = 482;
pub(super) const GNU_REAL_SIZE: Field = 483..495;

pub(super) const USTAR: &[u8; 8] = b"ustar\x0000";
pub(super) const GNU: &[u8; 8] = b"ustar  \0";

/// A header block.
pub(super) struct Header(pub(super) [u8; BLOCK_BYTES]);

impl Header {
    pub(super) fn is_zero(&self) -> bool {
        self.0.iter().all(|b| *b == 0)
    }

    /// Whether the checksum fits, by the sum of unsigned or (old tars) signed bytes.
    pub(super) fn checksum_fits(&self) -> bool {
        let Some(wanted) = self.number(CHECKSUM) else { return false };
        let blank = |i| CHECKSUM.contains(&i);
        let byte = |i: usize, b: u8| if blank(i) { b' ' } else { b };
        let unsigned: i64 = self.0.iter().enumerate().map(|(i, b)| i64::from(byte(i, *b))).sum();
        let signed: i64 = self.0.iter().enumerate().map(|(i, b)| i64::from(byte(i, *b).cast_signed())).sum();
        wanted == unsigned || wanted == signed
    }

    pub(super) fn is_gnu(&self) -> bool {
        self.0[MAGIC] == *GNU
    }

    fn has_prefix(&self) -> bool {
        self.0[MAGIC].starts_with(b"ustar\0")
    }

    /// Text up to the first NUL.
    pub(super) fn text(&self, field: Field) -> &[u8] {
        let bytes = &self.0[field];
        &bytes[..bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len())]
    }

    /// A number in octal or base 256; `None` where it is neither, or does not fit.
    pub(super) fn number(&self, field: Field) -> Option<i64> {
        number(&self.0[field])
    }

    /// The path, prefix included.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = self.text(NAME);
        if !self.has_prefix() {
            return name.to_vec();
        }
        let star = self.0[STAR_TRAILER] == *b"tar\0";
        match self.text(if star { STAR_PREFIX } else { PREFIX }) {
            b"" => name.to_vec(),
            prefix => [prefix, b"/", name].concat(),
        }
    }
}

/// Parses a numeric field.
pub(super) fn number(bytes: &[u8]) -> Option<i64> {
    let first = *bytes.first()?;
    if first & 0x80 != 0 {
        // Base 256, two's complement; the second highest bit is the sign.
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, byte) in bytes.iter().enumerate() {
            let byte = if at == 0 && !negative { byte & 0x7f } else { *byte };
            value = value << 8 | i128::from(byte);
            if i64::try_from(value).is_err() {
                return None;
            }
        }
        return i64::try_from(value).ok();
    }
    let trimmed = bytes.trim_ascii_start();
    let end = trimmed.iter().position(|b| *b == 0 || *b == b' ').unwrap_or(trimmed.len());
    // What follows the terminator is ignored, as Go does.
    trimmed[..end].iter().try_fold(0i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Writes `value` as zero-padded octal with a trailing NUL; false where it does not fit.
pub(super) fn put_octal(field: &mut [u8], value: u64) -> bool {
    let digits = field.len() - 1;
    if digits < 22 && value >> (3 * digits) != 0 {
        return false;
    }
    for (at, byte) in field[..digits].iter_mut().rev().enumerate() {
        *byte = b'0' + ((value >> (3 * at)) & 7) as u8;
    }
    field[digits] = 0;
    true
}
