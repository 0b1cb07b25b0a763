//! Operations as JSON in the form that provenance has them: that of BuildKit's own messages, in which numbers are numbers and words of
//! enumerations too. (`lapstrake_llb::protojson` is the other one.)

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lapstrake_llb::pb;
use serde_json::{Map, Value, json};

/// An object in the making; what has its default value is left out.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn set(mut self, name: &str, value: Value) -> Self {
        self.0.insert(name.to_owned(), value);
        self
    }

    fn text(self, name: &str, value: &str) -> Self {
        if value.is_empty() { self } else { self.set(name, json!(value)) }
    }

    fn number(self, name: &str, value: impl Into<i64>) -> Self {
        match value.into() {
            0 => self,
            value => self.set(name, json!(value)),
        }
    }

    fn flag(self, name: &str, value: bool) -> Self {
        if value { self.set(name, json!(true)) } else { self }
    }

    fn list<T>(self, name: &str, values: &[T], value: impl Fn(&T) -> Value) -> Self {
        match values {
            [] => self,
            values => self.set(name, values.iter().map(value).collect()),
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
        if map.is_empty() { self } else { self.set(name, Value::Object(map)) }
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

fn fields() -> Fields {
    Fields::default()
}

/// An operation without its inputs.
pub(super) fn op(op: &pb::Op) -> Value {
    use pb::op::Op;
    let kind = match &op.op {
        None => fields(),
        Some(Op::Exec(of)) => fields().set("exec", exec(of)),
        Some(Op::Source(of)) => fields().set("source", source(of)),
        Some(Op::File(of)) => fields().set("file", fields().list("actions", &of.actions, action).done()),
        Some(Op::Build(of)) => fields().set("build", build(of)),
        Some(Op::Merge(of)) => {
            fields().set("merge", fields().list("inputs", &of.inputs, |one| input(one.input)).done())
        }
        Some(Op::Diff(of)) => {
            let lower = fields().message("lower", of.lower.as_ref(), |one| input(one.input));
            fields().set("diff", lower.message("upper", of.upper.as_ref(), |one| input(one.input)).done())
        }
    };
    fields()
        .set("Op", kind.done())
        .message("platform", op.platform.as_ref(), platform)
        .message("constraints", op.constraints.as_ref(), |of| fields().texts("filter", &of.filter).done())
        .done()
}

fn input(number: i64) -> Value {
    fields().number("input", number).done()
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

/// What a session is called says nothing of what was built.
fn source(of: &pb::SourceOp) -> Value {
    let attributes =
        of.attrs.iter().filter(|(key, _)| !matches!(key.as_str(), "local.session" | "local.unique"));
    fields().text("identifier", &of.identifier).map("attrs", attributes, |value| json!(value)).done()
}

fn exec(of: &pb::ExecOp) -> Value {
    fields()
        .message("meta", of.meta.as_ref(), meta)
        .list("mounts", &of.mounts, mount)
        .number("network", of.network)
        .number("security", of.security)
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
        .message("proxy_env", of.proxy_env.as_ref(), |proxy| {
            fields()
                .text("http_proxy", &proxy.http_proxy)
                .text("https_proxy", &proxy.https_proxy)
                .text("ftp_proxy", &proxy.ftp_proxy)
                .text("no_proxy", &proxy.no_proxy)
                .text("all_proxy", &proxy.all_proxy)
                .done()
        })
        .list("extraHosts", &of.extra_hosts, |one| {
            fields().text("Host", &one.host).text("IP", &one.ip).done()
        })
        .text("hostname", &of.hostname)
        .list("ulimit", &of.ulimit, |one| {
            fields().text("Name", &one.name).number("Soft", one.soft).number("Hard", one.hard).done()
        })
        .text("cgroupParent", &of.cgroup_parent)
        .flag("removeMountStubsRecursive", of.remove_mount_stubs_recursive)
        .list("validExitCodes", &of.valid_exit_codes, |code| json!(code))
        .done()
}

fn mount(of: &pb::Mount) -> Value {
    fields()
        .number("input", of.input)
        .text("selector", &of.selector)
        .text("dest", &of.dest)
        .number("output", of.output)
        .flag("readonly", of.readonly)
        .number("mountType", of.mount_type)
        .message("TmpfsOpt", of.tmpfs_opt.as_ref(), |one| fields().number("size", one.size).done())
        .message("cacheOpt", of.cache_opt.as_ref(), |one| {
            fields().text("ID", &one.id).number("sharing", one.sharing).done()
        })
        .message("secretOpt", of.secret_opt.as_ref(), |one| {
            owned(&one.id, (one.uid, one.gid), one.mode, one.optional)
        })
        .message("SSHOpt", of.ssh_opt.as_ref(), |one| {
            owned(&one.id, (one.uid, one.gid), one.mode, one.optional)
        })
        .text("resultID", &of.result_id)
        .number("contentCache", of.content_cache)
        .done()
}

fn owned(id: &str, (uid, gid): (u32, u32), mode: u32, optional: bool) -> Value {
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
        .number("builder", of.builder)
        .map("inputs", &of.inputs, |one| input(one.input))
        .message("def", of.def.as_ref(), |def| {
            fields().list("def", &def.def, |bytes| json!(BASE64_STANDARD.encode(bytes))).done()
        })
        .map("attrs", &of.attrs, |value| json!(value))
        .done()
}

fn action(of: &pb::FileAction) -> Value {
    use pb::file_action::Action;
    let kind = match &of.action {
        Some(Action::Copy(of)) => fields().set("copy", copy(of)),
        Some(Action::Mkfile(of)) => {
            let data = BASE64_STANDARD.encode(&of.data);
            let made = fields().text("path", &of.path).number("mode", of.mode).text("data", &data);
            let made = made.message("owner", of.owner.as_ref(), owner).number("timestamp", of.timestamp);
            fields().set("mkfile", made.done())
        }
        Some(Action::Mkdir(of)) => {
            let made = fields().text("path", &of.path).number("mode", of.mode);
            let made = made.flag("makeParents", of.make_parents).message("owner", of.owner.as_ref(), owner);
            fields().set("mkdir", made.number("timestamp", of.timestamp).done())
        }
        Some(Action::Rm(of)) => {
            let gone = fields().text("path", &of.path).flag("allowNotFound", of.allow_not_found);
            fields().set("rm", gone.flag("allowWildcard", of.allow_wildcard).done())
        }
        Some(Action::Symlink(of)) => {
            let link = fields().text("oldpath", &of.oldpath).text("newpath", &of.newpath);
            let link = link.message("owner", of.owner.as_ref(), owner).number("timestamp", of.timestamp);
            fields().set("symlink", link.done())
        }
        None => fields(),
    };
    json!({
        "input": of.input,
        "secondaryInput": of.secondary_input,
        "output": of.output,
        "Action": kind.done(),
    })
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
        .number("timestamp", of.timestamp)
        .texts("include_patterns", &of.include_patterns)
        .texts("exclude_patterns", &of.exclude_patterns)
        .flag("alwaysReplaceExistingDestPaths", of.always_replace_existing_dest_paths)
        .text("modeStr", &of.mode_str)
        .texts("required_paths", &of.required_paths)
        .done()
}

fn owner(of: &pb::ChownOpt) -> Value {
    fields().message("user", of.user.as_ref(), user).message("group", of.group.as_ref(), user).done()
}

fn user(of: &pb::UserOpt) -> Value {
    use pb::user_opt::User;
    let who = match &of.user {
        Some(User::ByName(named)) => {
            let named = fields().text("name", &named.name).number("input", named.input);
            fields().set("byName", named.done())
        }
        Some(User::ById(id)) => fields().number("byId", *id),
        None => fields(),
    };
    json!({ "User": who.done() })
}

/// Places in files.
pub(super) fn locations(of: &pb::Locations) -> Value {
    let position =
        |at: &pb::Position| fields().number("line", at.line).number("character", at.character).done();
    let range = |range: &pb::Range| {
        let start = fields().message("start", range.start.as_ref(), position);
        start.message("end", range.end.as_ref(), position).done()
    };
    let location = |one: &pb::Location| {
        fields().number("sourceIndex", one.source_index).list("ranges", &one.ranges, range).done()
    };
    fields().list("locations", &of.locations, location).done()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_numbers_and_inputs_of_actions_are_always_told() {
        let mount = pb::Mount {
            input: -1,
            dest: "/run/secrets/x".into(),
            mount_type: pb::MountType::Secret.into(),
            secret_opt: Some(pb::SecretOpt { id: "x".into(), mode: 256, ..Default::default() }),
            ..Default::default()
        };
        assert_eq!(
            super::mount(&mount),
            json!({ "input": -1, "dest": "/run/secrets/x", "mountType": 1, "secretOpt": { "ID": "x", "mode": 256 } })
        );
        let told = action(&pb::FileAction { input: 0, secondary_input: 1, ..Default::default() });
        assert_eq!(told, json!({ "input": 0, "secondaryInput": 1, "output": 0, "Action": {} }));
    }

    #[test]
    fn the_name_of_a_session_is_not_told() {
        let attrs = [("local.session", "s"), ("local.unique", "u"), ("local.differ", "none")];
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let told = source(&pb::SourceOp { identifier: "local://context".into(), attrs });
        assert_eq!(told, json!({ "identifier": "local://context", "attrs": { "local.differ": "none" } }));
    }
}
