//! Messages of fsutil's transfer, with names as bytes: a file's name need not be UTF-8, and a generated
//! `String` would refuse the whole stream.

use bytes::Bytes;

/// What a packet is.
pub(crate) mod kind {
    pub(crate) const STAT: i32 = 0;
    pub(crate) const REQ: i32 = 1;
    pub(crate) const DATA: i32 = 2;
    pub(crate) const FIN: i32 = 3;
    pub(crate) const ERR: i32 = 4;
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Packet {
    #[prost(int32, tag = "1")]
    pub(crate) kind: i32,
    #[prost(message, optional, tag = "2")]
    pub(crate) stat: Option<Stat>,
    #[prost(uint32, tag = "3")]
    pub(crate) id: u32,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) data: Bytes,
}

/// An entry of the tree. An empty packet in its place ends the list.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Stat {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) path: Vec<u8>,
    /// As Go has modes: see `mode.rs`.
    #[prost(uint32, tag = "2")]
    pub(crate) mode: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) uid: u32,
    #[prost(uint32, tag = "4")]
    pub(crate) gid: u32,
    #[prost(int64, tag = "5")]
    pub(crate) size: i64,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "6")]
    pub(crate) mod_time: i64,
    /// What a symlink says, or the earlier path that a hard link is the same file as.
    #[prost(bytes = "vec", tag = "7")]
    pub(crate) linkname: Vec<u8>,
    #[prost(int64, tag = "8")]
    pub(crate) devmajor: i64,
    #[prost(int64, tag = "9")]
    pub(crate) devminor: i64,
    #[prost(message, repeated, tag = "10")]
    pub(crate) xattrs: Vec<Xattr>,
}

/// On the wire a map's entry.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Xattr {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) value: Vec<u8>,
}

impl Packet {
    pub(crate) fn of(kind: i32) -> Self {
        Self { kind, stat: None, id: 0, data: Bytes::new() }
    }

    pub(crate) fn request(id: u32) -> Self {
        Self { id, ..Self::of(kind::REQ) }
    }

    pub(crate) fn error(text: &str) -> Self {
        Self { data: Bytes::copy_from_slice(text.as_bytes()), ..Self::of(kind::ERR) }
    }
}
