//! Names of snapshots.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Names a snapshot. Ten characters, so that the paths of a long chain stay short; drawn at random and
/// never given twice, so that an old record cannot name a new snapshot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(u64);

const ID_ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const ID_LEN: usize = 10;

impl SnapshotId {
    pub(crate) fn random() -> Result<Self> {
        let mut bytes = [0; 8];
        let path = Path::new("/dev/urandom");
        File::open(path)
            .and_then(|mut f| f.read_exact(&mut bytes))
            .map_err(|e| Error::io("read", path, e))?;
        Ok(Self(u64::from_le_bytes(bytes) >> (64 - 5 * ID_LEN)))
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (0..ID_LEN)
            .rev()
            .try_for_each(|at| write!(f, "{}", char::from(ID_ALPHABET[(self.0 >> (5 * at)) as usize & 31])))
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is not a snapshot id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a snapshot id")]
pub struct NotAnId;

impl FromStr for SnapshotId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        if text.len() != ID_LEN {
            return Err(NotAnId);
        }
        text.bytes().try_fold(Self(0), |id, byte| {
            let digit = ID_ALPHABET.iter().position(|c| *c == byte).ok_or(NotAnId)?;
            Ok(Self(id.0 << 5 | digit as u64))
        })
    }
}

impl Serialize for SnapshotId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SnapshotId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
