//! Definitions as JSON: the canonical mapping of protocol buffers
//! (<https://protobuf.dev/programming-guides/json/>), as clients of `frontend.convertllb` get them.
//!
//! What has its default value is left out; 64 bit numbers are texts; bytes are base64.

use base64::Engine as _;
use prost::Message as _;
use serde_json::{Map, Value, json};

use crate::{GraphError, pb};

/// A message in the making.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    fn text(self, name: &str, value: &str) -> Self {
        if value.is_empty() { self } else { self.set(name, value) }
    }

    fn long(self, name: &str, value: i64) -> Self {
        if value == 0 { self } else { self.set(name, value.to_string()) }
    }

    fn number(self, name: &str, value: impl Into<i64>) -> Self {
        match value.into() {
            0 => self,
            value => self.set(name, value),
        }
    }

    fn flag(self, name: &str, value: bool) -> Self {
        if value { self.set(name, true) } else { self }
    }

    fn bytes(self, name: &str, value: &[u8]) -> Self {
        self.text(name, &base64::engine::general_purpose::STANDARD.encode(value))
    }

    fn list<T>(self, name: &str, values: &[T], value: impl Fn(&T) -> Value) -> Self {
        match values {
            [] => self,
            values => self.set(name, values.iter().map(value).collect::<Vec<_>>()),
        }
    }

    fn texts(self, name: &str, values: &[String]) -> Self {
        self.list(name, values, |value| json!(value))
    }

    fn message<T>(self, name: &str, value: Option<&T>, as_json: impl Fn(&T) -> Value) -> Self {
        match value {
            Some(value) => self.set(name, as_json(value)),
            None => self,
        }
    }

    fn map<'a, T: 'a>(
        self,
        name: &str,
        values: impl IntoIterator<Item = (&'a String, &'a T)>,
        value: impl Fn(&T) -> Value,
    ) -> Self {
        let map: Map<String, Value> =
            values.into_iter().map(|(key, one)| (key.clone(), value(one))).collect();
        if map.is_empty() { self } else { self.set(name, map) }
    }

    /// A word of an enumeration; its first one is the default.
    fn word(self, name: &str, value: i32, word: Option<&str>) -> Self {
        match (value, word) {
            (0, _) => self,
            (_, Some(word)) => self.set(name, word),
            // As the mapping has it: what no word is known of stays a number.
            (value, None) => self.set(name, value),
        }
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

fn fields() -> Fields {
    Fields::default()
}

/// A definition as `frontend.convertllb` answers it: operations and what is said of them by digest, and the sources.
///
/// # Errors
/// When the bytes of an operation are none.
pub fn definition(definition: &pb::Definition) -> Result<Value, GraphError> {
    let mut operations = Map::new();
    for (index, bytes) in definition.def.iter().enumerate() {
        let undecodable = |error: prost::DecodeError| GraphError::Decode { index, why: error.to_string() };
        let decoded = pb::Op::decode(bytes.as_slice()).map_err(undecodable)?;
        operations.insert(lapstrake_oci::Digest::of(bytes).to_string(), op(&decoded));
    }
    let metadata: Map<String, Value> =
        definition.metadata.iter().map(|(digest, one)| (digest.clone(), metadata(one))).collect();
    let source = definition.source.as_ref().map_or_else(|| json!({}), source);
    Ok(json!({ "def": operations, "metadata": metadata, "source": source }))
}

/// An operation.
pub fn op(op: &pb::Op) -> Value {
    use pb::op::Op;
    let out = fields()
        .list("inputs", &op.inputs, |input| {
            fields().text("digest", &input.digest).long("index", input.index).done()
        })
        .message("platform", op.platform.as_ref(), platform)
        .message("constraints", op.constraints.as_ref(), |of| fields().texts("filter", &of.filter).done());
    let out = match &op.op {
        None => out,
        Some(Op::Exec(of)) => out.set("exec", exec(of)),
        Some(Op::Source(of)) => out.set(
            "source",
            fields().text("identifier", &of.identifier).map("attrs", &of.attrs, |value| json!(value)).done(),
        ),
        Some(Op::File(of)) => out.set("file", fields().list("actions", &of.actions, action).done()),
        Some(Op::Build(of)) => out.set("build", build(of)),
        Some(Op::Merge(of)) => {
            out.set("merge", fields().list("inputs", &of.inputs, |one| input(one.input)).done())
        }
        Some(Op::Diff(of)) => out.set(
            "diff",
            fields()
                .message("lower", of.lower.as_ref(), |one| input(one.input))
                .message("upper", of.upper.as_ref(), |one| input(one.input))
                .done(),
        ),
    };
    out.done()
}

fn input(number: i64) -> Value {
    fields().long("input", number).done()
}

fn platform(of: &pb::Platform) -> Value {
    fields()
        .text("Architecture", &of.architecture)
        .text("OS", &of.os)
        .text("Variant", &of.variant)
        .text("OSVersion", &of.os_version)
        .texts("OSFeatures", &of.os_features)
        .done()
}

fn exec(of: &pb::ExecOp) -> Value {
    let network = pb::NetMode::try_from(of.network).ok();
    let security = pb::SecurityMode::try_from(of.security).ok();
    fields()
        .message("meta", of.meta.as_ref(), meta)
        .list("mounts", &of.mounts, mount)
        .word("network", of.network, network.as_ref().map(pb::NetMode::as_str_name))
        .word("security", of.security, security.as_ref().map(pb::SecurityMode::as_str_name))
        .list("secretenv", &of.secretenv, |one| {
            fields().text("ID", &one.id).text("name", &one.name).flag("optional", one.optional).done()
        })
        .list("cdiDevices", &of.cdi_devices, |one| {
            fields().text("name", &one.name).flag("optional", one.optional).done()
        })
        .done()
}

fn meta(of: &pb::Meta) -> Value {
    fields()
        .texts("args", &of.args)
        .texts("env", &of.env)
        .text("cwd", &of.cwd)
        .text("user", &of.user)
        .message("proxyEnv", of.proxy_env.as_ref(), |proxy| {
            fields()
                .text("httpProxy", &proxy.http_proxy)
                .text("httpsProxy", &proxy.https_proxy)
                .text("ftpProxy", &proxy.ftp_proxy)
                .text("noProxy", &proxy.no_proxy)
                .text("allProxy", &proxy.all_proxy)
                .done()
        })
        .list("extraHosts", &of.extra_hosts, |one| {
            fields().text("Host", &one.host).text("IP", &one.ip).done()
        })
        .text("hostname", &of.hostname)
        .list("ulimit", &of.ulimit, |one| {
            fields().text("Name", &one.name).long("Soft", one.soft).long("Hard", one.hard).done()
        })
        .text("cgroupParent", &of.cgroup_parent)
        .flag("removeMountStubsRecursive", of.remove_mount_stubs_recursive)
        .list("validExitCodes", &of.valid_exit_codes, |code| json!(code))
        .done()
}

fn mount(of: &pb::Mount) -> Value {
    let kind = pb::MountType::try_from(of.mount_type).ok();
    let content = pb::MountContentCache::try_from(of.content_cache).ok();
    fields()
        .long("input", of.input)
        .text("selector", &of.selector)
        .text("dest", &of.dest)
        .long("output", of.output)
        .flag("readonly", of.readonly)
        .word("mountType", of.mount_type, kind.as_ref().map(pb::MountType::as_str_name))
        .message("TmpfsOpt", of.tmpfs_opt.as_ref(), |one| fields().long("size", one.size).done())
        .message("cacheOpt", of.cache_opt.as_ref(), |one| {
            let sharing = pb::CacheSharingOpt::try_from(one.sharing).ok();
            let word = sharing.as_ref().map(pb::CacheSharingOpt::as_str_name);
            fields().text("ID", &one.id).word("sharing", one.sharing, word).done()
        })
        .message("secretOpt", of.secret_opt.as_ref(), |one| {
            owned(&one.id, one.uid, one.gid, one.mode, one.optional)
        })
        .message("SSHOpt", of.ssh_opt.as_ref(), |one| {
            owned(&one.id, one.uid, one.gid, one.mode, one.optional)
        })
        .text("resultID", &of.result_id)
        .word("contentCache", of.content_cache, content.as_ref().map(pb::MountContentCache::as_str_name))
        .done()
}

fn owned(id: &str, uid: u32, gid: u32, mode: u32, optional: bool) -> Value {
    fields()
        .text("ID", id)
        .number("uid", uid)
        .number("gid", gid)
        .number("mode", mode)
        .flag("optional", optional)
        .done()
}

fn build(of: &pb::BuildOp) -> Value {
    fields()
        .long("builder", of.builder)
        .map("inputs", &of.inputs, |one| input(one.input))
        .message("def", of.def.as_ref(), |def| {
            fields()
                .list("def", &def.def, |bytes| json!(base64::engine::general_purpose::STANDARD.encode(bytes)))
                .map("metadata", &def.metadata, whole_metadata)
                .message("Source", def.source.as_ref(), source)
                .done()
        })
        .map("attrs", &of.attrs, |value| json!(value))
        .done()
}

fn action(of: &pb::FileAction) -> Value {
    use pb::file_action::Action;
    let out =
        fields().long("input", of.input).long("secondaryInput", of.secondary_input).long("output", of.output);
    let out = match &of.action {
        None => out,
        Some(Action::Copy(of)) => out.set("copy", copy(of)),
        Some(Action::Mkfile(of)) => out.set(
            "mkfile",
            fields()
                .text("path", &of.path)
                .number("mode", of.mode)
                .bytes("data", &of.data)
                .message("owner", of.owner.as_ref(), owner)
                .long("timestamp", of.timestamp)
                .done(),
        ),
        Some(Action::Mkdir(of)) => out.set(
            "mkdir",
            fields()
                .text("path", &of.path)
                .number("mode", of.mode)
                .flag("makeParents", of.make_parents)
                .message("owner", of.owner.as_ref(), owner)
                .long("timestamp", of.timestamp)
                .done(),
        ),
        Some(Action::Rm(of)) => out.set(
            "rm",
            fields()
                .text("path", &of.path)
                .flag("allowNotFound", of.allow_not_found)
                .flag("allowWildcard", of.allow_wildcard)
                .done(),
        ),
        Some(Action::Symlink(of)) => out.set(
            "symlink",
            fields()
                .text("oldpath", &of.oldpath)
                .text("newpath", &of.newpath)
                .message("owner", of.owner.as_ref(), owner)
                .long("timestamp", of.timestamp)
                .done(),
        ),
    };
    out.done()
}

fn copy(of: &pb::FileActionCopy) -> Value {
    fields()
        .text("src", &of.src)
        .text("dest", &of.dest)
        .message("owner", of.owner.as_ref(), owner)
        .number("mode", of.mode)
        .flag("followSymlink", of.follow_symlink)
        .flag("dirCopyContents", of.dir_copy_contents)
        .flag("attemptUnpackDockerCompatibility", of.attempt_unpack_docker_compatibility)
        .flag("createDestPath", of.create_dest_path)
        .flag("allowWildcard", of.allow_wildcard)
        .flag("allowEmptyWildcard", of.allow_empty_wildcard)
        .long("timestamp", of.timestamp)
        .texts("includePatterns", &of.include_patterns)
        .texts("excludePatterns", &of.exclude_patterns)
        .flag("alwaysReplaceExistingDestPaths", of.always_replace_existing_dest_paths)
        .text("modeStr", &of.mode_str)
        .texts("requiredPaths", &of.required_paths)
        .done()
}

fn owner(of: &pb::ChownOpt) -> Value {
    fields().message("user", of.user.as_ref(), user).message("group", of.group.as_ref(), user).done()
}

fn user(of: &pb::UserOpt) -> Value {
    use pb::user_opt::User;
    match &of.user {
        None => json!({}),
        // One of several is told even where it has its default value.
        Some(User::ById(id)) => json!({ "byID": id }),
        Some(User::ByName(named)) => {
            json!({ "byName": fields().text("name", &named.name).long("input", named.input).done() })
        }
    }
}

/// What is said of an operation, in the words of BuildKit's client library, which are not those of the mapping.
fn metadata(of: &pb::OpMetadata) -> Value {
    fields()
        .flag("ignore_cache", of.ignore_cache)
        .map("description", &of.description, |value| json!(value))
        .message("export_cache", of.export_cache.as_ref(), |one| fields().flag("Value", one.value).done())
        .map("caps", &of.caps, |value| json!(value))
        .message("progress_group", of.progress_group.as_ref(), group)
        .done()
}

fn whole_metadata(of: &pb::OpMetadata) -> Value {
    fields()
        .flag("ignoreCache", of.ignore_cache)
        .map("description", &of.description, |value| json!(value))
        .message("exportCache", of.export_cache.as_ref(), |one| fields().flag("Value", one.value).done())
        .map("caps", &of.caps, |value| json!(value))
        .message("progressGroup", of.progress_group.as_ref(), group)
        .done()
}

fn group(of: &pb::ProgressGroup) -> Value {
    fields().text("id", &of.id).text("name", &of.name).flag("weak", of.weak).done()
}

fn source(of: &pb::Source) -> Value {
    let position =
        |at: &pb::Position| fields().number("line", at.line).number("character", at.character).done();
    let range = |range: &pb::Range| {
        fields()
            .message("start", range.start.as_ref(), position)
            .message("end", range.end.as_ref(), position)
            .done()
    };
    let location = |one: &pb::Location| {
        fields().number("sourceIndex", one.source_index).list("ranges", &one.ranges, range).done()
    };
    fields()
        .map("locations", &of.locations, |all| fields().list("locations", &all.locations, location).done())
        .list("infos", &of.infos, |info| {
            fields()
                .text("filename", &info.filename)
                .bytes("data", &info.data)
                .text("language", &info.language)
                .done()
        })
        .done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_left_out_and_long_numbers_are_texts() {
        let mount = pb::Mount {
            input: -1,
            dest: "/".into(),
            mount_type: pb::MountType::Cache.into(),
            cache_opt: Some(pb::CacheOpt { id: "x".into(), sharing: pb::CacheSharingOpt::Locked.into() }),
            ..pb::Mount::default()
        };
        let expected = json!({
            "input": "-1", "dest": "/", "mountType": "CACHE", "cacheOpt": { "ID": "x", "sharing": "LOCKED" },
        });
        assert_eq!(super::mount(&mount), expected);
        let root = pb::UserOpt { user: Some(pb::user_opt::User::ById(0)) };
        assert_eq!(user(&root), json!({ "byID": 0 }));
    }
}
