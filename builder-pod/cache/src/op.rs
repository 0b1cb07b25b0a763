//! How BuildKit names operations (`CacheMap` in `solver/llbsolver/ops`).
//!
//! The name of an operation leaves out what its inputs' names and contents say already, and what differs from
//! machine to machine without changing a result.

use std::collections::{BTreeMap, BTreeSet};

use lapstrake_llb::pb;
use lapstrake_oci::{Digest, Platform};

use crate::gojson::{Object, array, base64, quoted};

/// An image of a platform, by the digest that its name stands for, and how many of its layers count where not all do.
pub fn image(digest: &Digest, platform: &Platform, layers: Option<usize>) -> Digest {
    let json = Object::new()
        .raw("Digest", &quoted(&digest.to_string()))
        .raw("OS", &quoted(&platform.os))
        .raw("Arch", &quoted(&platform.architecture))
        .text("Variant", platform.variant.as_deref().unwrap_or_default())
        .text("OSVersion", platform.os_version.as_deref().unwrap_or_default())
        .maybe("Limit", layers.map(|count| count.to_string()))
        .end();
    let key = Digest::of(json.as_bytes());
    Digest::of(format!("buildkit.source.v0:{key}").as_bytes())
}

/// A blob of a registry or a layout: itself, its name as a file, its mode, owner and group, as far as they are told.
pub fn blob(digest: &Digest, filename: &str, [mode, uid, gid]: [u32; 3]) -> Digest {
    let json = Object::new()
        .raw("Version", "\"v1\"")
        .raw("Digest", &quoted(&digest.to_string()))
        .raw("Filename", &quoted(filename))
        .raw("Perm", &mode.to_string())
        .raw("UID", &uid.to_string())
        .raw("GID", &gid.to_string())
        .end();
    git(&Digest::of(json.as_bytes()).to_string())
}

/// A Git repository: the commit's id, and behind it what else decides which files there are.
pub fn git(key: &str) -> Digest {
    Digest::of(format!("buildkit.source.v0:{key}").as_bytes())
}

/// A download: its name as a file, its mode, owner and group, the digest of its contents, when the server says that they
/// changed, and what it was asked with beside the usual.
pub fn http(
    filename: &str,
    [mode, uid, gid]: [u32; 3],
    contents: &Digest,
    last_modified: Option<&str>,
    headers: &[(&str, String)],
) -> Digest {
    let header = |(name, value): &(&str, String)| {
        Object::new().raw("Name", &quoted(name)).raw("Value", &quoted(value)).end()
    };
    let json = Object::new()
        .raw("Filename", &quoted(filename))
        .raw("Perm", &mode.to_string())
        .raw("UID", &uid.to_string())
        .raw("GID", &gid.to_string())
        .raw("Checksum", &quoted(&contents.to_string()))
        .text("LastModTime", last_modified.unwrap_or_default())
        .list("Header", headers.iter().map(header))
        .end();
    git(&Digest::of(json.as_bytes()).to_string())
}

/// A command.
pub fn exec(exec: &pb::ExecOp, platform: &Platform) -> Digest {
    let json = Object::new()
        .raw("Type", "\"buildkit.exec.v0\"")
        .raw("Exec", &exec_json(exec))
        .raw("OS", &quoted(&platform.os))
        .raw("Arch", &quoted(&platform.architecture))
        .text("Variant", platform.variant.as_deref().unwrap_or_default())
        .text("OSVersion", platform.os_version.as_deref().unwrap_or_default())
        .end();
    Digest::of(json.as_bytes())
}

fn exec_json(exec: &pb::ExecOp) -> String {
    // Of the only mount that every command has nothing is told.
    let mounts = if is_plain(&exec.mounts) { &[][..] } else { &exec.mounts };
    Object::new()
        .maybe("meta", exec.meta.as_ref().map(meta_json))
        .list("mounts", mounts.iter().map(mount_json))
        .number("network", exec.network.into())
        .number("security", exec.security.into())
        .list(
            "secretenv",
            exec.secretenv.iter().map(|secret| {
                let object = Object::new().text("ID", &secret.id).text("name", &secret.name);
                object.flag("optional", secret.optional).end()
            }),
        )
        .list(
            "cdiDevices",
            exec.cdi_devices.iter().map(|device| {
                Object::new().text("name", &device.name).flag("optional", device.optional).end()
            }),
        )
        .end()
}

fn is_plain(mounts: &[pb::Mount]) -> bool {
    let [one] = mounts else { return false };
    one.dest == "/"
        && !one.readonly
        && one.mount_type == pb::MountType::Bind as i32
        && one.cache_opt.is_none()
        && one.ssh_opt.is_none()
        && one.secret_opt.is_none()
        && one.result_id.is_empty()
}

fn meta_json(meta: &pb::Meta) -> String {
    let limit = |limit: &pb::Ulimit| {
        Object::new().text("Name", &limit.name).number("Soft", limit.soft).number("Hard", limit.hard).end()
    };
    Object::new()
        .texts("args", &meta.args)
        .texts("env", &meta.env)
        .text("cwd", &meta.cwd)
        .text("user", &meta.user)
        .list("extraHosts", meta.extra_hosts.iter().map(|host| Object::new().text("Host", &host.host).end()))
        .text("hostname", &meta.hostname)
        .list("ulimit", meta.ulimit.iter().map(limit))
        .text("cgroupParent", &meta.cgroup_parent)
        .flag("removeMountStubsRecursive", meta.remove_mount_stubs_recursive)
        .list("validExitCodes", meta.valid_exit_codes.iter().map(ToString::to_string))
        .end()
}

fn mount_json(mount: &pb::Mount) -> String {
    let cache = mount.cache_opt.as_ref().map(|cache| {
        // A cache that the user named is another one elsewhere, and changes no result.
        let namespaced = cache.id.split_once('/').is_some_and(|(_, rest)| rest == mount.dest);
        if cache.sharing == 0 && (cache.id == mount.dest || namespaced) {
            Object::new().text("ID", &cache.id).end()
        } else {
            Object::new().end()
        }
    });
    let secret = mount.secret_opt.as_ref().map(|s| shown(&s.id, s.uid, s.gid, s.mode, s.optional));
    let ssh = mount.ssh_opt.as_ref().map(|s| shown(&s.id, s.uid, s.gid, s.mode, s.optional));
    Object::new()
        .number("input", mount.input)
        .text("dest", &mount.dest)
        .number("output", mount.output)
        .flag("readonly", mount.readonly)
        .number("mountType", mount.mount_type.into())
        .maybe(
            "TmpfsOpt",
            mount.tmpfs_opt.as_ref().map(|tmpfs| Object::new().number("size", tmpfs.size).end()),
        )
        .maybe("cacheOpt", cache)
        .maybe("secretOpt", secret)
        .maybe("SSHOpt", ssh)
        .text("resultID", &mount.result_id)
        .number("contentCache", mount.content_cache.into())
        .end()
}

fn shown(id: &str, uid: u32, gid: u32, mode: u32, optional: bool) -> String {
    Object::new()
        .text("ID", id)
        .number("uid", uid.into())
        .number("gid", gid.into())
        .number("mode", mode.into())
        .flag("optional", optional)
        .end()
}

/// File systems over each other.
pub fn merge(op: &pb::MergeOp) -> Digest {
    let inputs = op.inputs.iter().map(|input| Object::new().number("input", input.input).end());
    let merge = Object::new().list("inputs", inputs).end();
    let json = Object::new().raw("Type", "\"buildkit.merge.v0\"").raw("Merge", &merge);
    Digest::of(json.end().as_bytes())
}

/// What one file system changes over another.
pub fn diff(op: &pb::DiffOp) -> Digest {
    let input = |number: i64| Object::new().number("input", number).end();
    let diff = Object::new()
        .maybe("lower", op.lower.as_ref().map(|lower| input(lower.input)))
        .maybe("upper", op.upper.as_ref().map(|upper| input(upper.input)))
        .end();
    let json = Object::new().raw("Type", "\"buildkit.diff.v0\"").raw("Diff", &diff);
    Digest::of(json.end().as_bytes())
}

/// Inputs as they are.
pub fn passthrough(op: &pb::PassthroughOp) -> Digest {
    let outputs = op.outputs.iter().map(ToString::to_string);
    let passthrough = Object::new().text("id", &op.id).list("outputs", outputs).end();
    let json = Object::new().raw("Type", "\"buildkit.passthrough.v0\"").raw("Passthrough", &passthrough);
    Digest::of(json.end().as_bytes())
}

/// A file operation over this many inputs.
pub fn file(op: &pb::FileOp, inputs: usize) -> Digest {
    let actions: Vec<String> = op
        .actions
        .iter()
        .map(|action| {
            let json = action.action.as_ref().map(|kind| action_json(kind, action.secondary_input, inputs));
            base64(json.unwrap_or_default().as_bytes())
        })
        .collect();
    let indexes: Vec<[i64; 3]> = op.actions.iter().map(|a| [a.input, a.secondary_input, a.output]).collect();
    let json = Object::new().raw("Type", "\"buildkit.file.v0\"").raw("Actions", &array(&actions));
    let json = match is_usual(&indexes) {
        true => json,
        false => json.list("indexes", indexes.iter().map(|[a, b, c]| format!("[{a},{b},{c}]"))),
    };
    Digest::of(json.end().as_bytes())
}

/// Actions one after the other on the first input, from the second one.
fn is_usual(indexes: &[[i64; 3]]) -> bool {
    let count = indexes.len() as i64;
    let usual = |(at, [input, secondary, output]): (i64, &[i64; 3])| {
        let onto = if at == 0 { 0 } else { count + at - 1 };
        let yields = if at == count - 1 { 0 } else { -1 };
        *input == onto && matches!(secondary, -1 | 1) && *output == yields
    };
    count > 0 && (0..).zip(indexes).all(usual)
}

fn action_json(action: &pb::file_action::Action, secondary: i64, inputs: usize) -> String {
    use pb::file_action::Action;
    match action {
        Action::Copy(copy) => {
            let src =
                if secondary != -1 && secondary < inputs as i64 { base(&copy.src) } else { copy.src.clone() };
            copy_json(copy, &src)
        }
        Action::Mkfile(file) => Object::new()
            .text("path", &file.path)
            .number("mode", file.mode.into())
            .bytes("data", &file.data)
            .maybe("owner", file.owner.as_ref().map(owner_json))
            .number("timestamp", file.timestamp)
            .end(),
        Action::Mkdir(dir) => Object::new()
            .text("path", &dir.path)
            .number("mode", dir.mode.into())
            .flag("makeParents", dir.make_parents)
            .maybe("owner", dir.owner.as_ref().map(owner_json))
            .number("timestamp", dir.timestamp)
            .end(),
        Action::Symlink(link) => Object::new()
            .text("oldpath", &link.oldpath)
            .text("newpath", &link.newpath)
            .maybe("owner", link.owner.as_ref().map(owner_json))
            .number("timestamp", link.timestamp)
            .end(),
        Action::Rm(rm) => Object::new()
            .text("path", &rm.path)
            .flag("allowNotFound", rm.allow_not_found)
            .flag("allowWildcard", rm.allow_wildcard)
            .end(),
    }
}

fn copy_json(copy: &pb::FileActionCopy, src: &str) -> String {
    Object::new()
        .text("src", src)
        .text("dest", &copy.dest)
        .maybe("owner", copy.owner.as_ref().map(owner_json))
        .number("mode", copy.mode.into())
        .flag("followSymlink", copy.follow_symlink)
        .flag("dirCopyContents", copy.dir_copy_contents)
        .flag("attemptUnpackDockerCompatibility", copy.attempt_unpack_docker_compatibility)
        .flag("createDestPath", copy.create_dest_path)
        .flag("allowWildcard", copy.allow_wildcard)
        .flag("allowEmptyWildcard", copy.allow_empty_wildcard)
        .number("timestamp", copy.timestamp)
        .texts("include_patterns", &copy.include_patterns)
        .texts("exclude_patterns", &copy.exclude_patterns)
        .flag("alwaysReplaceExistingDestPaths", copy.always_replace_existing_dest_paths)
        .text("modeStr", &copy.mode_str)
        .texts("required_paths", &copy.required_paths)
        .end()
}

fn owner_json(owner: &pb::ChownOpt) -> String {
    let one = |user: &pb::UserOpt| {
        let user = match &user.user {
            Some(pb::user_opt::User::ByName(name)) => {
                let name = Object::new().text("name", &name.name).number("input", name.input).end();
                Object::new().raw("byName", &name).end()
            }
            Some(pb::user_opt::User::ById(id)) => Object::new().number("byId", (*id).into()).end(),
            None => Object::new().end(),
        };
        Object::new().raw("User", &user).end()
    };
    Object::new()
        .maybe("user", owner.user.as_ref().map(one))
        .maybe("group", owner.group.as_ref().map(one))
        .end()
}

/// Go's `path.Base`.
fn base(path: &str) -> String {
    if path.is_empty() {
        return ".".to_owned();
    }
    match path.trim_end_matches('/').rsplit('/').next() {
        None | Some("") => "/".to_owned(),
        Some(name) => name.to_owned(),
    }
}

/// What an operation uses of an input.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Use {
    /// The digest of the paths, where only some are used.
    pub selector: Option<Digest>,
    /// The contents of what is used tell as much as the input's name.
    pub by_contents: bool,
}

/// How a command uses its inputs.
pub fn exec_uses(exec: &pb::ExecOp, inputs: usize) -> Vec<Use> {
    (0..inputs)
        .map(|input| {
            let mounts = || exec.mounts.iter().filter(|m| m.input == input as i64 && shows_input(m));
            let paths: Vec<String> = mounts().map(|mount| absolute(&mount.selector)).collect();
            Use {
                selector: (!paths.is_empty()).then(|| Digest::of(paths.join("\0").as_bytes())),
                by_contents: mounts().next().is_some() && mounts().all(reads_contents),
            }
        })
        .collect()
}

fn shows_input(mount: &pb::Mount) -> bool {
    use pb::MountType::{Secret, Ssh, Tmpfs};
    ![Secret as i32, Ssh as i32, Tmpfs as i32].contains(&mount.mount_type)
}

/// A mount whose changes nobody sees, or that shows all there is, counts by its contents; the root file system
/// never does.
fn reads_contents(mount: &pb::Mount) -> bool {
    let safe = mount.output == -1 || mount.readonly || absolute(&mount.selector) == "/";
    let wanted = if mount.content_cache == pb::MountContentCache::On as i32 {
        true
    } else if mount.content_cache == pb::MountContentCache::Off as i32 {
        false
    } else {
        mount.dest != "/"
    };
    safe && wanted
}

/// Go's `path.Join("/", path)`: absolute, without `.`, `..` and doubled slashes.
pub fn absolute(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// How a file operation uses its inputs: what is copied counts by contents, and so do account files of an input
/// that is not changed.
pub fn file_uses(op: &pb::FileOp, inputs: usize) -> Vec<Use> {
    let onto: BTreeSet<i64> = op.actions.iter().map(|action| action.input).collect();
    let mut paths: BTreeMap<i64, Vec<&str>> = BTreeMap::new();
    for action in &op.actions {
        for (input, path) in account_files(action) {
            paths.entry(input).or_default().push(path);
        }
        if let Some(pb::file_action::Action::Copy(copy)) = &action.action {
            paths.entry(action.secondary_input).or_default().push(&copy.src);
        }
    }
    (0..inputs as i64)
        .map(|input| match paths.get(&input).filter(|_| !onto.contains(&input)) {
            None => Use::default(),
            Some(paths) => {
                let mut paths = paths.clone();
                paths.sort_unstable_by(|a, b| b.cmp(a));
                Use { selector: Some(Digest::of(paths.join("\0").as_bytes())), by_contents: true }
            }
        })
        .collect()
}

/// The account files that an action looks owners up in, with the input that has them.
pub fn account_files(action: &pb::FileAction) -> Vec<(i64, &'static str)> {
    use pb::file_action::Action;
    let owner = match &action.action {
        Some(Action::Copy(copy)) => copy.owner.as_ref(),
        Some(Action::Mkfile(file)) => file.owner.as_ref(),
        Some(Action::Mkdir(dir)) => dir.owner.as_ref(),
        Some(Action::Symlink(link)) => link.owner.as_ref(),
        Some(Action::Rm(_)) | None => None,
    };
    let named = |user: Option<&pb::UserOpt>| match user.and_then(|user| user.user.as_ref()) {
        Some(pb::user_opt::User::ByName(name)) => Some(name.input),
        _ => None,
    };
    let user = named(owner.and_then(|owner| owner.user.as_ref())).map(|input| (input, "/etc/passwd"));
    let group = named(owner.and_then(|owner| owner.group.as_ref())).map(|input| (input, "/etc/group"));
    user.into_iter().chain(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_and_differences_have_buildkit_s_names() {
        // Digests of what BuildKit 0.34.2's own types are in JSON.
        let merge = pb::MergeOp { inputs: vec![pb::MergeInput { input: 0 }, pb::MergeInput { input: 1 }] };
        let name = "sha256:436287a2dc2ce494f564331be9ea3a9f27ebec398567877043da2f618f33d6c8";
        assert_eq!(super::merge(&merge).to_string(), name);
        let diff = pb::DiffOp {
            lower: Some(pb::LowerDiffInput { input: -1 }),
            upper: Some(pb::UpperDiffInput { input: 0 }),
        };
        let name = "sha256:f5284a0f1782a8c2cdb29841228c32706cbf04332ad37c3c7cb41659c6eeba0a";
        assert_eq!(super::diff(&diff).to_string(), name);
    }

    #[test]
    fn what_is_handed_on_and_blobs_and_cut_images_have_buildkit_s_names() {
        // Digests of what BuildKit 0.34.2's own types are in JSON.
        let handed = pb::PassthroughOp { id: "p".to_owned(), outputs: vec![1, 0] };
        let name = "sha256:7aa90d90038069278cf7de152ac255db22464044ab5715a01c9d4dd538dfa10d";
        assert_eq!(passthrough(&handed).to_string(), name);
        let x = Digest::of(b"x");
        let name = "sha256:313c3614235b80b13280c56f6b0a8d54b38b8fa5fcbd758f62caf14666393094";
        assert_eq!(blob(&x, "f", [0o640, 3, 4]).to_string(), name);
        let platform = Platform::new("linux", "amd64", None);
        let name = "sha256:4495eb5b4961e1289de33766a8f9a1448d57df064886c847c2b819354a155ddb";
        assert_eq!(image(&x, &platform, Some(7)).to_string(), name);
    }
}
