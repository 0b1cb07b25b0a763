//! Sparse files: old GNU, and PAX 0.0, 0.1 and 1.0.

use super::header::{GNU_EXTENDED, GNU_SPARSE, Header, number};
use super::pax::{Record, decimal};
use crate::limits::SPARSE_PIECES_MAX;

/// Pieces with data: offset and length.
pub(super) type Pieces = Vec<(u64, u64)>;

/// What PAX records say about sparseness.
#[derive(Debug, Default, Clone)]
pub(super) struct PaxSparse {
    pub(super) pieces: Option<Pieces>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Format 1.0: the pieces stand before the data.
    pub(super) in_data: bool,
}

impl PaxSparse {
    pub(super) fn read(records: &[Record<'_>]) -> Result<Option<Self>, &'static str> {
        const BAD: &str = "sparse file has a bad map";
        let mut found = Self::default();
        let (mut seen, mut major, mut minor) = (false, None, None);
        let mut numbers: Vec<u64> = Vec::new();
        let mut listed: Option<Vec<u64>> = None;
        for (key, value) in records {
            let Some(key) = key.strip_prefix(b"GNU.sparse.") else { continue };
            seen = true;
            match key {
                b"major" => major = decimal(value),
                b"minor" => minor = decimal(value),
                b"name" => found.name = Some(value.to_vec()),
                b"size" | b"realsize" => found.real_size = Some(decimal(value).ok_or(BAD)?),
                b"offset" | b"numbytes" => numbers.push(decimal(value).ok_or(BAD)?),
                b"map" if value.is_empty() => listed = Some(Vec::new()),
                b"map" => {
                    let all = value.split(|b| *b == b',').map(|n| decimal(n).ok_or(BAD));
                    listed = Some(all.collect::<Result<_, _>>()?);
                }
                _ => {}
            }
            if numbers.len() > 2 * SPARSE_PIECES_MAX {
                return Err("sparse file has too many pieces");
            }
        }
        if !seen {
            return Ok(None);
        }
        found.in_data = (major, minor) == (Some(1), Some(0));
        if !found.in_data
            && let Some(numbers) = listed.or((!numbers.is_empty()).then_some(numbers))
        {
            found.pieces = Some(pair(&numbers)?);
        }
        if found.real_size.is_none() && (found.in_data || found.pieces.is_some()) {
            return Err("sparse file has no size");
        }
        Ok(Some(found))
    }
}

fn pair(numbers: &[u64]) -> Result<Pieces, &'static str> {
    if !numbers.len().is_multiple_of(2) {
        return Err("sparse file has a bad map");
    }
    Ok(numbers.chunks_exact(2).map(|p| (p[0], p[1])).collect())
}

/// Checks that pieces are in order, do not overlap, lie in the file, and need `stored` bytes of data.
/// Returns them without empty ones.
pub(super) fn check(pieces: Pieces, size: u64, stored: u64) -> Result<Pieces, &'static str> {
    let (mut at, mut sum) = (0u64, 0u64);
    for (offset, length) in &pieces {
        let end = offset.checked_add(*length).ok_or("sparse file has a bad map")?;
        if *offset < at || end > size {
            return Err("sparse file has a bad map");
        }
        at = end;
        sum += length;
    }
    if sum != stored {
        return Err("sparse file has a map that does not fit its data");
    }
    Ok(pieces.into_iter().filter(|(_, length)| *length > 0).collect())
}

/// The pieces in an old GNU header; true where more blocks follow.
pub(super) fn gnu_header(header: &Header) -> Result<(Pieces, bool), &'static str> {
    Ok((gnu_pieces(&header.0[GNU_SPARSE..GNU_SPARSE + 4 * 24])?, header.0[GNU_EXTENDED] == 1))
}

/// The pieces in a block that follows an old GNU header; true where more follow.
pub(super) fn gnu_block(block: &Header) -> Result<(Pieces, bool), &'static str> {
    Ok((gnu_pieces(&block.0[..21 * 24])?, block.0[504] == 1))
}

fn gnu_pieces(bytes: &[u8]) -> Result<Pieces, &'static str> {
    let mut pieces = Vec::new();
    for piece in bytes.chunks_exact(24) {
        if piece[0] == 0 {
            break;
        }
        let part = |bytes| number(bytes).and_then(|n| u64::try_from(n).ok());
        let piece = part(&piece[..12]).zip(part(&piece[12..]));
        pieces.push(piece.ok_or("sparse file has a bad map")?);
    }
    Ok(pieces)
}

/// Parses the map of format 1.0 out of `text`; `None` where it is not complete yet.
pub(super) fn text_map(text: &[u8]) -> Result<Option<Pieces>, &'static str> {
    let complete = text.iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
    let mut lines = text[..complete].split(|b| *b == b'\n');
    let mut next =
        || lines.next().filter(|l| !l.is_empty()).map(|l| decimal(l).ok_or("sparse file has a bad map"));
    let Some(count) = next().transpose()? else {
        // A number has at most 20 digits.
        return if text.len() > 20 { Err("sparse file has a bad map") } else { Ok(None) };
    };
    let count = usize::try_from(count).ok().filter(|c| *c <= SPARSE_PIECES_MAX);
    let count = count.ok_or("sparse file has too many pieces")?;
    let mut numbers = Vec::new();
    while numbers.len() < 2 * count {
        match next().transpose()? {
            Some(number) => numbers.push(number),
            None => return Ok(None),
        }
    }
    pair(&numbers).map(Some)
}
