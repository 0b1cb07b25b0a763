//! Values of attributes, read and refused as BuildKit does: its words are Go's.

use lapstrake_handoff::{Compression, Reason};

use super::Attributes;
use crate::error::BuildError;

/// A mistake of the client.
pub(super) fn refused(text: impl Into<String>) -> BuildError {
    BuildError::new(Reason::RequestInvalid, text.into())
}

/// What Go's `strconv.ParseBool` takes.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    }
}

/// What Go's `strconv.ParseInt` takes.
pub(super) fn integer(text: &str) -> Result<i64, String> {
    use std::num::IntErrorKind::{NegOverflow, PosOverflow};
    text.parse().map_err(|error: std::num::ParseIntError| {
        let why = match error.kind() {
            PosOverflow | NegOverflow => "value out of range",
            _ => "invalid syntax",
        };
        format!("strconv.ParseInt: parsing {text:?}: {why}")
    })
}

/// Takes a switch out of attributes.
pub(super) fn switch(attributes: &mut Attributes, key: &str) -> Result<Option<bool>, BuildError> {
    let read = |text: String| {
        boolean(&text).map_err(|why| refused(format!("non-bool value specified for {key}: {why}")))
    };
    attributes.remove(key).map(read).transpose()
}

/// The same where the bare name switches it on.
pub(super) fn bare_switch(attributes: &mut Attributes, key: &str) -> Result<Option<bool>, BuildError> {
    match attributes.get(key).is_some_and(String::is_empty) {
        true => {
            attributes.remove(key);
            Ok(Some(true))
        }
        false => switch(attributes, key),
    }
}

/// How layers are packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Packing {
    /// In which format.
    pub(crate) compression: Compression,
    /// The format is eStargz: gzip with a table of contents.
    pub(crate) estargz: bool,
    /// At which level.
    pub(crate) level: Option<i32>,
    /// Layers of another packing too.
    pub(crate) force: bool,
}

/// Takes the attributes of packing.
pub(super) fn packing(attributes: &mut Attributes) -> Result<Packing, BuildError> {
    let mut packing = Packing::default();
    if let Some(text) = attributes.remove("compression") {
        (packing.compression, packing.estargz) = match text.as_str() {
            "gzip" => (Compression::Gzip, false),
            "estargz" => (Compression::Gzip, true),
            "zstd" => (Compression::Zstd, false),
            "uncompressed" => (Compression::Uncompressed, false),
            other => return Err(refused(format!("unsupported compression type {other}"))),
        };
    }
    if let Some(text) = attributes.remove("force-compression") {
        packing.force = text.is_empty()
            || boolean(&text).map_err(|why| {
                refused(format!("non-bool value {text} specified for force-compression: {why}"))
            })?;
    }
    if let Some(text) = attributes.remove("compression-level") {
        let level = integer(&text).map_err(|why| {
            refused(format!("non-integer value {text} specified for compression-level: {why}"))
        })?;
        // What is out of a format's range is moved into it where layers are packed.
        packing.level = Some(i32::try_from(level).unwrap_or(if level < 0 { i32::MIN } else { i32::MAX }));
    }
    Ok(packing)
}
