//! Modes as Go writes them, which is how they travel.

use rustix::fs::FileType;

const DIR: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;
const DEVICE: u32 = 1 << 26;
const FIFO: u32 = 1 << 25;
const SOCKET: u32 = 1 << 24;
const SETUID: u32 = 1 << 23;
const SETGID: u32 = 1 << 22;
const CHAR_DEVICE: u32 = 1 << 21;
const STICKY: u32 = 1 << 20;
const IRREGULAR: u32 = 1 << 19;
const TYPES: u32 = DIR | SYMLINK | DEVICE | FIFO | SOCKET | CHAR_DEVICE | IRREGULAR;

/// What a mode says that an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    BlockDevice,
    CharDevice,
    Fifo,
    /// Sockets, and what no system makes.
    Other,
}

impl Kind {
    pub(crate) fn of(mode: u32) -> Self {
        match mode & TYPES {
            0 => Self::File,
            DIR => Self::Directory,
            SYMLINK => Self::Symlink,
            DEVICE => Self::BlockDevice,
            FIFO => Self::Fifo,
            types if types & !(DEVICE | CHAR_DEVICE) == 0 => Self::CharDevice,
            _ => Self::Other,
        }
    }

    /// The same in the kernel's words.
    pub(crate) fn file_type(self) -> Option<FileType> {
        Some(match self {
            Self::File => FileType::RegularFile,
            Self::Directory => FileType::Directory,
            Self::Symlink => FileType::Symlink,
            Self::BlockDevice => FileType::BlockDevice,
            Self::CharDevice => FileType::CharacterDevice,
            Self::Fifo => FileType::Fifo,
            Self::Other => return None,
        })
    }
}

/// The permission bits, with set-id and sticky ones, as the kernel has them.
pub(crate) fn permissions(mode: u32) -> u32 {
    let bit = |go: u32, unix: u32| if mode & go == 0 { 0 } else { unix };
    (mode & 0o777) | bit(SETUID, 0o4000) | bit(SETGID, 0o2000) | bit(STICKY, 0o1000)
}

/// A kernel's mode as Go writes it. Sockets become files, as fsutil has them.
pub(crate) fn to_go(mode: u32) -> u32 {
    let bit = |unix: u32, go: u32| if mode & unix == 0 { 0 } else { go };
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => DIR,
        FileType::Symlink => SYMLINK,
        FileType::BlockDevice => DEVICE,
        FileType::CharacterDevice => DEVICE | CHAR_DEVICE,
        FileType::Fifo => FIFO,
        _ => 0,
    };
    kind | (mode & 0o777) | bit(0o4000, SETUID) | bit(0o2000, SETGID) | bit(0o1000, STICKY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_survive_the_way_to_go_and_back() {
        let kinds = [
            (0o100_000, Kind::File),
            (0o040_000, Kind::Directory),
            (0o120_000, Kind::Symlink),
            (0o060_000, Kind::BlockDevice),
            (0o020_000, Kind::CharDevice),
            (0o010_000, Kind::Fifo),
        ];
        for (bits, kind) in kinds {
            for permission in [0, 0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o7777] {
                let go = to_go(bits | permission);
                assert_eq!((Kind::of(go), permissions(go)), (kind, permission));
            }
        }
    }

    #[test]
    fn a_mode_of_two_kinds_is_none_of_them() {
        assert_eq!(Kind::of(DIR | SYMLINK), Kind::Other);
        assert_eq!(Kind::of(SOCKET), Kind::Other);
        assert_eq!(Kind::of(IRREGULAR), Kind::Other);
    }
}
