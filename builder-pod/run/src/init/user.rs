//! Who a step runs as, by the image's own `/etc/passwd` and `/etc/group`.

use std::io::Read;
use std::path::Path;

/// Bytes read of either file at most.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// A resolved `user[:group]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// Looks `spec` up in the files' texts, as container runtimes do: an unknown name is an error, an
/// unknown number is fine; supplementary groups count when no group is named. The group itself is always among them.
pub(crate) fn resolve(spec: &str, passwd: &str, group: &str) -> Result<Identity, String> {
    let (user, wanted_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let number: Option<u32> = user.parse().ok();
    let entry = passwd
        .lines()
        .filter_map(User::parse)
        .find(|entry| entry.name == user)
        .or_else(|| passwd.lines().filter_map(User::parse).find(|entry| Some(entry.uid) == number));
    let mut identity = match (&entry, number) {
        (Some(entry), _) => {
            Identity { uid: entry.uid, gid: entry.gid, groups: Vec::new(), home: entry.home.to_owned() }
        }
        (None, Some(uid)) => Identity { uid, ..Identity::default() },
        (None, None) => return Err(format!("user \"{user}\" is not in the image's /etc/passwd")),
    };
    if let Some(wanted) = wanted_group {
        identity.gid = find_group(wanted, group)?;
    } else if let Some(entry) = &entry {
        identity.groups = groups_of(entry.name, group);
    }
    if identity.home.is_empty() {
        identity.home = "/".to_owned();
    }
    // A file that is closed to a group of the user's must stay closed however the group came about.
    if !identity.groups.contains(&identity.gid) {
        identity.groups.insert(0, identity.gid);
    }
    // The kernel takes -1 for "leave as it is".
    if identity.uid == u32::MAX || identity.gid == u32::MAX {
        return Err(format!("user \"{spec}\" is out of range"));
    }
    Ok(identity)
}

/// Looks `spec` up in the files below `/`.
pub(crate) fn resolve_here(spec: &str) -> Result<Identity, String> {
    resolve(spec, &read_small(Path::new("/etc/passwd")), &read_small(Path::new("/etc/group")))
}

/// A missing file, a device or a pipe under that name reads as empty.
fn read_small(path: &Path) -> String {
    let mut bytes = Vec::new();
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file())
        && let Ok(file) = std::fs::File::open(path)
    {
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok(); // What was read counts.
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> User<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Self { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    }
}

fn group_line(line: &str) -> Option<(&str, u32, &str)> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = fields.nth(1)?.parse().ok()?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

fn find_group(wanted: &str, text: &str) -> Result<u32, String> {
    let by_name = text.lines().filter_map(group_line).find(|(name, ..)| *name == wanted);
    if let Some((_, gid, _)) = by_name {
        return Ok(gid);
    }
    wanted.parse().map_err(|_| format!("group \"{wanted}\" is not in the image's /etc/group"))
}

fn groups_of(user: &str, text: &str) -> Vec<u32> {
    let member = |members: &str| members.split(',').any(|member| member.trim() == user);
    text.lines()
        .filter_map(group_line)
        .filter(|(_, _, members)| member(members))
        .map(|(_, gid, _)| gid)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:w:/srv/web:/bin/sh\n12:x:500:500::/twelve:\nbad line\n";
    const GROUP: &str = "root:x:0:\nweb:x:34:\nssl:x:70:other,web\nlogs:x:71:web\n";

    fn who(spec: &str) -> Result<Identity, String> {
        resolve(spec, PASSWD, GROUP)
    }

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity { uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn names_and_numbers_find_the_entry_with_its_groups() {
        assert_eq!(who(""), Ok(identity(0, 0, &[0], "/root")));
        assert_eq!(who("web"), Ok(identity(33, 34, &[34, 70, 71], "/srv/web")));
        assert_eq!(who("33"), Ok(identity(33, 34, &[34, 70, 71], "/srv/web")));
        assert_eq!(
            who("12"),
            Ok(identity(500, 500, &[500], "/twelve")),
            "a name that looks like a number wins"
        );
    }

    #[test]
    fn a_named_group_replaces_the_supplementary_ones() {
        assert_eq!(who("web:ssl"), Ok(identity(33, 70, &[70], "/srv/web")));
        assert_eq!(who("web:4000"), Ok(identity(33, 4000, &[4000], "/srv/web")));
        assert_eq!(who(":ssl"), Ok(identity(0, 70, &[70], "/root")));
    }

    #[test]
    fn unknown_numbers_pass_and_unknown_names_do_not() {
        assert_eq!(who("4711"), Ok(identity(4711, 0, &[0], "/")));
        assert!(who("nobody").expect_err("unknown").contains("\"nobody\""));
        assert!(who("web:nogroup").expect_err("unknown").contains("\"nogroup\""));
        assert!(who("4294967295").is_err());
    }

    #[test]
    fn an_image_without_the_files_knows_root_by_number_only() {
        assert_eq!(resolve("0:0", "", ""), Ok(identity(0, 0, &[0], "/")));
        assert!(resolve("root", "", "").is_err());
    }
}
