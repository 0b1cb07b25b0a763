//! Looks up the owner that `--chown` names.

use std::os::fd::BorrowedFd;

use crate::action::Owner;
use crate::error::Error;
use crate::limits::ACCOUNT_FILE_BYTES_MAX;
use crate::view::View;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// The ids that `user[:group]` stands for in the tree at `root`.
///
/// Numbers stand for themselves and `root` for 0, without a look at the tree. A user by number without a
/// group has the group of that number; a user by name has its group from `/etc/passwd`.
///
/// # Errors
/// [`Error::UnknownOwner`] when a name is not in the tree's account files.
pub fn lookup_user(root: BorrowedFd<'_>, text: &str) -> Result<Owner, Error> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let mut owner = match number(user) {
        Some(id) => Owner { uid: id, gid: id },
        None => {
            let fields = find(root, PASSWD, "user", user)?;
            match (fields.get(2).and_then(|f| f.parse().ok()), fields.get(3).and_then(|f| f.parse().ok())) {
                (Some(uid), Some(gid)) => Owner { uid, gid },
                _ => return Err(unknown(PASSWD, "user", user)),
            }
        }
    };
    if let Some(group) = group {
        owner.gid = match number(group) {
            Some(id) => id,
            None => {
                let fields = find(root, GROUP, "group", group)?;
                fields.get(2).and_then(|f| f.parse().ok()).ok_or_else(|| unknown(GROUP, "group", group))?
            }
        };
    }
    Ok(owner)
}

fn number(text: &str) -> Option<u32> {
    if text == "root" { Some(0) } else { text.parse().ok().filter(|id| *id <= i32::MAX.unsigned_abs()) }
}

fn unknown(file: &'static str, kind: &'static str, name: &str) -> Error {
    Error::UnknownOwner { kind, name: name.to_owned(), file }
}

fn find(
    root: BorrowedFd<'_>,
    file: &'static str,
    kind: &'static str,
    name: &str,
) -> Result<Vec<String>, Error> {
    let content = View::snapshot(root).read(file, ACCOUNT_FILE_BYTES_MAX)?.unwrap_or_default();
    String::from_utf8_lossy(&content)
        .lines()
        .map(|line| line.trim().split(':').map(str::to_owned).collect::<Vec<_>>())
        .find(|fields| !name.is_empty() && fields.first().is_some_and(|field| field == name))
        .ok_or_else(|| unknown(file, kind, name))
}
