//! Values of secrets in what a step prints.
//!
//! Masked are a value as a whole and each of its lines, as they are and in base64 (wherever in a longer text
//! the value stands, and in lines of 64 or 76 characters) and in hexadecimal. No pattern has a line's end in it:
//! what is not at its line's end yet is held back, so that a value is found wherever reads cut it.

use std::sync::{Arc, Mutex, PoisonError};

use aho_corasick::{AhoCorasick, MatchKind};

/// What stands in a secret's place.
const MASK: &[u8] = b"***";
/// Shorter values are no secrets, and would make a log unreadable.
const VALUE_BYTES_MIN: usize = 4;
/// Shorter lines of a value with several lines are text.
const LINE_BYTES_MIN: usize = 6;
/// Longer lines are looked for in pieces of this size.
const PIECE_BYTES: usize = 4096;
/// Bytes of the patterns of all secrets together. What is past them (the end of a very large secret) is not
/// looked for.
const PATTERN_BYTES_MAX: usize = 1 << 20;
/// A larger value is looked for in fewer forms: its lines, and its lines in base64.
const LARGE_BYTES: usize = 16 * 1024;
/// A line without an end is held back up to this.
const HELD_BYTES_MAX: usize = 64 * 1024;

/// All that must not be shown.
#[derive(Default)]
pub(crate) struct Masks(Mutex<Known>);

#[derive(Default)]
struct Known {
    patterns: std::collections::BTreeSet<Vec<u8>>,
    bytes: usize,
    /// Made when it is asked for.
    matcher: Option<Arc<Matcher>>,
}

struct Matcher {
    patterns: AhoCorasick,
    longest: usize,
}

impl Masks {
    /// From here on the value is masked.
    pub(crate) fn learn(&self, value: &[u8]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for pattern in patterns(value) {
            let bytes = known.bytes + pattern.len();
            if bytes <= PATTERN_BYTES_MAX && known.patterns.insert(pattern) {
                known.bytes = bytes;
                known.matcher = None;
            }
        }
    }

    /// The same for the password in an address.
    pub(crate) fn learn_password(&self, address: &str) {
        let authority = address.split_once("://").map_or(address, |(_, rest)| rest);
        let authority = authority.split('/').next().unwrap_or_default();
        if let Some((user, _)) = authority.rsplit_once('@')
            && let Some((_, password)) = user.split_once(':')
        {
            self.learn(password.as_bytes());
        }
    }

    fn matcher(&self) -> Option<Arc<Matcher>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.patterns.is_empty() {
            return None;
        }
        if known.matcher.is_none() {
            // Overlapping finds need this kind.
            let built = AhoCorasick::builder().match_kind(MatchKind::Standard).build(&known.patterns);
            let longest = known.patterns.iter().map(Vec::len).max().unwrap_or(0);
            // It fails by size alone, far beyond the bounds above.
            known.matcher = built.ok().map(|patterns| Arc::new(Matcher { patterns, longest }));
        }
        known.matcher.clone()
    }

    /// A filter for the output of a step that starts now.
    pub(crate) fn filter(&self) -> Masked {
        Masked { matcher: self.matcher(), held: Default::default() }
    }

    /// A text without values of secrets.
    pub(crate) fn text(&self, text: &str) -> String {
        match self.matcher() {
            None => text.to_owned(),
            Some(matcher) => {
                let mut out = Vec::with_capacity(text.len());
                matcher.mask(text.as_bytes(), usize::MAX, &mut out);
                String::from_utf8_lossy(&out).into_owned()
            }
        }
    }
}

impl Matcher {
    /// Appends `bytes` to `out` with values masked; how many bytes were taken. What begins at or after `sure` may be
    /// the beginning of a value, and is left.
    fn mask(&self, bytes: &[u8], sure: usize, out: &mut Vec<u8>) -> usize {
        let mut spans: Vec<(usize, usize)> =
            self.patterns.find_overlapping_iter(bytes).map(|found| (found.start(), found.end())).collect();
        spans.sort_unstable();
        let mut joined: Vec<(usize, usize)> = Vec::new();
        for (start, end) in spans {
            match joined.last_mut() {
                Some(last) if start < last.1 => last.1 = last.1.max(end),
                _ => joined.push((start, end)),
            }
        }
        let sure = sure.min(bytes.len());
        let mut at = 0;
        for (start, end) in joined {
            if start >= sure || end > sure {
                out.extend_from_slice(&bytes[at..start.min(sure)]);
                return start.min(sure);
            }
            out.extend_from_slice(&bytes[at..start]);
            out.extend_from_slice(MASK);
            at = end;
        }
        out.extend_from_slice(&bytes[at..sure]);
        sure
    }
}

/// Masks the output of one step.
pub(crate) struct Masked {
    matcher: Option<Arc<Matcher>>,
    /// What is held back, by stream.
    held: [Vec<u8>; 2],
}

impl Masked {
    /// Takes output of a stream (0 or 1) and hands on what may be shown.
    pub(crate) fn push(&mut self, stream: usize, bytes: &[u8], mut show: impl FnMut(&[u8])) {
        let (Some(matcher), Some(held)) = (&self.matcher, self.held.get_mut(stream)) else {
            return show(bytes);
        };
        held.extend_from_slice(bytes);
        let lines = held.iter().rposition(|byte| matches!(byte, b'\n' | b'\r')).map_or(0, |at| at + 1);
        let mut out = Vec::new();
        if lines > 0 {
            matcher.mask(&held[..lines], usize::MAX, &mut out);
            held.drain(..lines);
        }
        if held.len() > HELD_BYTES_MAX {
            let taken = matcher.mask(held, held.len().saturating_sub(matcher.longest), &mut out);
            held.drain(..taken);
            if held.len() > 2 * HELD_BYTES_MAX {
                // Values one over the other without an end: all of it is one.
                out.extend_from_slice(MASK);
                held.clear();
            }
        }
        if !out.is_empty() {
            show(&out);
        }
    }

    /// The step has ended: what was held back.
    pub(crate) fn finish(&mut self, mut show: impl FnMut(usize, &[u8])) {
        let Some(matcher) = &self.matcher else { return };
        for (stream, held) in self.held.iter_mut().enumerate() {
            if !held.is_empty() {
                let mut out = Vec::new();
                matcher.mask(held, usize::MAX, &mut out);
                held.clear();
                show(stream, &out);
            }
        }
    }
}

/// All forms of a value.
fn patterns(value: &[u8]) -> Vec<Vec<u8>> {
    let whole = value.trim_ascii();
    let lines: Vec<&[u8]> = whole.split(|byte| matches!(byte, b'\n' | b'\r')).collect();
    let least = if lines.len() > 1 { LINE_BYTES_MIN } else { VALUE_BYTES_MIN };
    let mut out = Vec::new();
    if whole.len() < VALUE_BYTES_MIN {
        return out;
    }
    for line in lines.iter().map(|line| line.trim_ascii()).filter(|line| line.len() >= least) {
        for piece in line.chunks(PIECE_BYTES) {
            if piece.len() >= least {
                out.push(piece.to_vec());
            }
            if piece.len() >= least && value.len() <= LARGE_BYTES {
                out.extend(base64_inside(piece));
                out.push(hex(piece, b"0123456789abcdef"));
                out.push(hex(piece, b"0123456789ABCDEF"));
            }
        }
    }
    // Encoded as a whole, in lines of 76 and of 64 characters; the spaces around it count there.
    for bytes_of_line in [57, 48] {
        for piece in value.chunks(bytes_of_line) {
            out.extend(base64_inside(piece).into_iter().next());
        }
    }
    out.extend(base64_inside(&value[..value.len().min(PIECE_BYTES)]).into_iter().next());
    out.retain(|pattern| pattern.len() >= VALUE_BYTES_MIN);
    out
}

fn hex(bytes: &[u8], digits: &[u8; 16]) -> Vec<u8> {
    bytes.iter().flat_map(|byte| [digits[usize::from(byte >> 4)], digits[usize::from(byte & 15)]]).collect()
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL_SAFE: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The characters that bytes become in base64 whatever stands around them, for each of the three places that they
/// may begin at; too short ones, which could be anything, are left out. The first is that of the beginning.
fn base64_inside(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for alphabet in [STANDARD, URL_SAFE] {
        for skew in 0..3_usize {
            let bits = |at: usize| -> Option<u8> {
                // The bit `at` of the text, in which the value begins after `skew` bytes.
                let byte = (at / 8).checked_sub(skew)?;
                bytes.get(byte).map(|byte| byte >> (7 - at % 8) & 1)
            };
            let first = (skew * 8).div_ceil(6);
            let last = (skew + bytes.len()) * 8 / 6;
            let digit = |at: usize| {
                let value = (0..6).try_fold(0_u8, |value, bit| Some(value << 1 | bits(at * 6 + bit)?))?;
                alphabet.get(usize::from(value)).copied()
            };
            let text: Vec<u8> = (first..last).filter_map(digit).collect();
            if text.len() >= LINE_BYTES_MIN && !out.contains(&text) {
                out.push(text);
            }
        }
    }
    out
}

#[cfg(test)]
#[path = "mask_tests.rs"]
mod tests;
