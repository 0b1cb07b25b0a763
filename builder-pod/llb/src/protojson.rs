//! Definitions as JSON, in two forms ([`Form`]). In both, what has its default value is left out, and bytes are base64.

use base64::Engine as _;
use prost::Message as _;
use serde_json::{Map, Value, json};

use crate::{GraphError, newer, pb};

/// How messages become JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The canonical mapping of protocol buffers (<https://protobuf.dev/programming-guides/json/>), as clients of
    /// `frontend.convertllb` get it: 64 bit numbers are texts, enumerations are words, names are in camel case.
    Canonical,
    /// As BuildKit's own types are written, which is how provenance has them: numbers are numbers, names are those of
    /// the messages, what is one of several is an object of its own, and operations do not tell their inputs.
    Plain,
}

/// A message in the making.
struct Fields {
    form: Form,
    told: Map<String, Value>,
}

impl Fields {
    fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.told.insert(name.to_owned(), value.into());
        self
    }

    fn text(self, name: &str, value: &str) -> Self {
        if value.is_empty() { self } else { self.set(name, value) }
    }

    fn long(self, name: &str, value: i64) -> Self {
        match (value, self.form) {
            (0, _) => self,
            (value, Form::Canonical) => self.set(name, value.to_string()),
            (value, Form::Plain) => self.set(name, value),
        }
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
        match (value, word, self.form) {
            (0, ..) => self,
            (_, Some(word), Form::Canonical) => self.set(name, word),
            // As the mapping has it: what no word is known of stays a number.
            (value, ..) => self.set(name, value),
        }
    }

    fn done(self) -> Value {
        Value::Object(self.told)
    }
}

/// A definition as `frontend.convertllb` answers it: operations and what is said of them by digest, and the sources.
/// What is said of operations is in the words of BuildKit's client library, which are not those of the mapping.
///
/// # Errors
/// When the bytes of an operation are none.
pub fn definition(definition: &pb::Definition) -> Result<Value, GraphError> {
    let mut operations = Map::new();
    for (index, bytes) in definition.def.iter().enumerate() {
        let undecodable = |error: prost::DecodeError| GraphError::Decode { index, why: error.to_string() };
        let decoded = pb::Op::decode(bytes.as_slice()).map_err(undecodable)?;
        operations.insert(lapstrake_oci::Digest::of(bytes).to_string(), Form::Canonical.op(&decoded));
    }
    let metadata: Map<String, Value> =
        definition.metadata.iter().map(|(digest, one)| (digest.clone(), Form::Plain.metadata(one))).collect();
    let source = definition.source.as_ref().map_or_else(|| json!({}), |of| Form::Canonical.source(of));
    Ok(json!({ "def": operations, "metadata": metadata, "source": source }))
}

impl Form {
    fn fields(self) -> Fields {
        Fields { form: self, told: Map::new() }
    }

    /// A name that is not the same in both forms.
    fn name(self, canonical: &'static str, plain: &'static str) -> &'static str {
        match self {
            Self::Canonical => canonical,
            Self::Plain => plain,
        }
    }

    /// What is one of several, among the fields of the message or in an object of its own.
    fn one_of(self, fields: Fields, name: &str, one: Option<(&str, Value)>) -> Fields {
        let one = one.map(|(key, value)| (key.to_owned(), value));
        match self {
            Self::Canonical => one.into_iter().fold(fields, |fields, (key, value)| fields.set(&key, value)),
            Self::Plain => fields.set(name, Value::Object(one.into_iter().collect())),
        }
    }

    /// An operation.
    pub fn op(self, op: &pb::Op) -> Value {
        use pb::op::Op;
        let inputs = match self {
            Self::Canonical => op.inputs.as_slice(),
            Self::Plain => &[],
        };
        let fields = self
            .fields()
            .list("inputs", inputs, |input| {
                self.fields().text("digest", &input.digest).long("index", input.index).done()
            })
            .message("platform", op.platform.as_ref(), |of| self.platform(of))
            .message("constraints", op.constraints.as_ref(), |of| {
                self.fields().texts("filter", &of.filter).done()
            });
        let input = |number| self.input(number);
        let kind = op.op.as_ref().map(|kind| match kind {
            Op::Exec(of) => ("exec", self.exec(of)),
            Op::Source(of) => {
                let source = self.fields().text("identifier", &of.identifier);
                ("source", source.map("attrs", &of.attrs, |value| json!(value)).done())
            }
            Op::File(of) => {
                ("file", self.fields().list("actions", &of.actions, |one| self.action(one)).done())
            }
            Op::Build(of) => ("build", self.build(of)),
            Op::Merge(of) => {
                ("merge", self.fields().list("inputs", &of.inputs, |one| input(one.input)).done())
            }
            Op::Diff(of) => {
                let lower = self.fields().message("lower", of.lower.as_ref(), |one| input(one.input));
                ("diff", lower.message("upper", of.upper.as_ref(), |one| input(one.input)).done())
            }
            Op::Passthrough(of) => {
                let number = |one: &i64| match self {
                    Self::Canonical => json!(one.to_string()),
                    Self::Plain => json!(one),
                };
                ("passthrough", self.fields().text("id", &of.id).list("outputs", &of.outputs, number).done())
            }
        });
        self.one_of(fields, "Op", kind).done()
    }

    fn input(self, number: i64) -> Value {
        self.fields().long("input", number).done()
    }

    fn platform(self, of: &pb::Platform) -> Value {
        self.fields()
            .text("Architecture", &of.architecture)
            .text("OS", &of.os)
            .text("Variant", &of.variant)
            .text("OSVersion", &of.os_version)
            .texts("OSFeatures", &of.os_features)
            .done()
    }

    fn exec(self, of: &pb::ExecOp) -> Value {
        let network = pb::NetMode::try_from(of.network).ok();
        let security = pb::SecurityMode::try_from(of.security).ok();
        self.fields()
            .message("meta", of.meta.as_ref(), |of| self.meta(of))
            .list("mounts", &of.mounts, |of| self.mount(of))
            .word("network", of.network, network.as_ref().map(pb::NetMode::as_str_name))
            .word("security", of.security, security.as_ref().map(pb::SecurityMode::as_str_name))
            .list("secretenv", &of.secretenv, |one| {
                self.fields()
                    .text("ID", &one.id)
                    .text("name", &one.name)
                    .flag("optional", one.optional)
                    .done()
            })
            .list("cdiDevices", &of.cdi_devices, |one| {
                self.fields().text("name", &one.name).flag("optional", one.optional).done()
            })
            .done()
    }

    fn meta(self, of: &pb::Meta) -> Value {
        let proxy = |proxy: &pb::ProxyEnv| {
            self.fields()
                .text(self.name("httpProxy", "http_proxy"), &proxy.http_proxy)
                .text(self.name("httpsProxy", "https_proxy"), &proxy.https_proxy)
                .text(self.name("ftpProxy", "ftp_proxy"), &proxy.ftp_proxy)
                .text(self.name("noProxy", "no_proxy"), &proxy.no_proxy)
                .text(self.name("allProxy", "all_proxy"), &proxy.all_proxy)
                .done()
        };
        self.fields()
            .texts("args", &of.args)
            .texts("env", &of.env)
            .text("cwd", &of.cwd)
            .text("user", &of.user)
            .message(self.name("proxyEnv", "proxy_env"), of.proxy_env.as_ref(), proxy)
            .list("extraHosts", &of.extra_hosts, |one| {
                self.fields().text("Host", &one.host).text("IP", &one.ip).done()
            })
            .text("hostname", &of.hostname)
            .list("ulimit", &of.ulimit, |one| {
                self.fields().text("Name", &one.name).long("Soft", one.soft).long("Hard", one.hard).done()
            })
            .text("cgroupParent", &of.cgroup_parent)
            .flag("removeMountStubsRecursive", of.remove_mount_stubs_recursive)
            .list("validExitCodes", &of.valid_exit_codes, |code| json!(code))
            .done()
    }

    fn mount(self, of: &pb::Mount) -> Value {
        let kind = pb::MountType::try_from(of.mount_type).ok();
        let content = pb::MountContentCache::try_from(of.content_cache).ok();
        self.fields()
            .long("input", of.input)
            .text("selector", &of.selector)
            .text("dest", &of.dest)
            .long("output", of.output)
            .flag("readonly", of.readonly)
            .word("mountType", of.mount_type, kind.as_ref().map(pb::MountType::as_str_name))
            .message("TmpfsOpt", of.tmpfs_opt.as_ref(), |one| self.fields().long("size", one.size).done())
            .message("cacheOpt", of.cache_opt.as_ref(), |one| {
                let sharing = pb::CacheSharingOpt::try_from(one.sharing).ok();
                let word = sharing.as_ref().map(pb::CacheSharingOpt::as_str_name);
                self.fields().text("ID", &one.id).word("sharing", one.sharing, word).done()
            })
            .message("secretOpt", of.secret_opt.as_ref(), |one| {
                self.owned(&one.id, (one.uid, one.gid), one.mode, one.optional)
            })
            .message("SSHOpt", of.ssh_opt.as_ref(), |one| {
                self.owned(&one.id, (one.uid, one.gid), one.mode, one.optional)
            })
            .text("resultID", &of.result_id)
            .word("contentCache", of.content_cache, content.as_ref().map(pb::MountContentCache::as_str_name))
            .done()
    }

    fn owned(self, id: &str, (uid, gid): (u32, u32), mode: u32, optional: bool) -> Value {
        self.fields()
            .text("ID", id)
            .number("uid", uid)
            .number("gid", gid)
            .number("mode", mode)
            .flag("optional", optional)
            .done()
    }

    fn build(self, of: &pb::BuildOp) -> Value {
        let definition = |def: &pb::Definition| {
            let bytes = |bytes: &Vec<u8>| json!(base64::engine::general_purpose::STANDARD.encode(bytes));
            self.fields()
                .list("def", &def.def, bytes)
                .map("metadata", &def.metadata, |one| self.metadata(one))
                .message("Source", def.source.as_ref(), |of| self.source(of))
                .done()
        };
        self.fields()
            .long("builder", of.builder)
            .map("inputs", &of.inputs, |one| self.input(one.input))
            .message("def", of.def.as_ref(), definition)
            .map("attrs", &of.attrs, |value| json!(value))
            .done()
    }

    fn action(self, of: &pb::FileAction) -> Value {
        let fields = match self {
            Self::Canonical => self
                .fields()
                .long("input", of.input)
                .long("secondaryInput", of.secondary_input)
                .long("output", of.output),
            // They are told even where they have their default value.
            Self::Plain => self
                .fields()
                .set("input", of.input)
                .set("secondaryInput", of.secondary_input)
                .set("output", of.output),
        };
        self.one_of(fields, "Action", of.action.as_ref().map(|kind| self.kind_of_action(kind))).done()
    }

    fn kind_of_action(self, kind: &pb::file_action::Action) -> (&'static str, Value) {
        use pb::file_action::Action;
        let owner = |of: &pb::ChownOpt| self.owner(of);
        match kind {
            Action::Copy(of) => ("copy", self.copy(of)),
            Action::Mkfile(of) => {
                let made =
                    self.fields().text("path", &of.path).number("mode", of.mode).bytes("data", &of.data);
                let made = made.message("owner", of.owner.as_ref(), owner).long("timestamp", of.timestamp);
                ("mkfile", made.done())
            }
            Action::Mkdir(of) => {
                let made = self.fields().text("path", &of.path).number("mode", of.mode);
                let made =
                    made.flag("makeParents", of.make_parents).message("owner", of.owner.as_ref(), owner);
                ("mkdir", made.long("timestamp", of.timestamp).done())
            }
            Action::Rm(of) => {
                let gone = self.fields().text("path", &of.path).flag("allowNotFound", of.allow_not_found);
                ("rm", gone.flag("allowWildcard", of.allow_wildcard).done())
            }
            Action::Symlink(of) => {
                let link = self.fields().text("oldpath", &of.oldpath).text("newpath", &of.newpath);
                let link = link.message("owner", of.owner.as_ref(), owner).long("timestamp", of.timestamp);
                ("symlink", link.done())
            }
        }
    }

    fn copy(self, of: &pb::FileActionCopy) -> Value {
        self.fields()
            .text("src", &of.src)
            .text("dest", &of.dest)
            .message("owner", of.owner.as_ref(), |of| self.owner(of))
            .number("mode", of.mode)
            .flag("followSymlink", of.follow_symlink)
            .flag("dirCopyContents", of.dir_copy_contents)
            .flag("attemptUnpackDockerCompatibility", of.attempt_unpack_docker_compatibility)
            .flag("createDestPath", of.create_dest_path)
            .flag("allowWildcard", of.allow_wildcard)
            .flag("allowEmptyWildcard", of.allow_empty_wildcard)
            .long("timestamp", of.timestamp)
            .texts(self.name("includePatterns", "include_patterns"), &of.include_patterns)
            .texts(self.name("excludePatterns", "exclude_patterns"), &of.exclude_patterns)
            .flag("alwaysReplaceExistingDestPaths", of.always_replace_existing_dest_paths)
            .text("modeStr", &of.mode_str)
            .texts(self.name("requiredPaths", "required_paths"), &of.required_paths)
            .done()
    }

    fn owner(self, of: &pb::ChownOpt) -> Value {
        let user = |of: &pb::UserOpt| self.user(of);
        self.fields().message("user", of.user.as_ref(), user).message("group", of.group.as_ref(), user).done()
    }

    fn user(self, of: &pb::UserOpt) -> Value {
        use pb::user_opt::User;
        let who = of.user.as_ref().and_then(|user| match (user, self) {
            (User::ByName(named), _) => {
                let named = self.fields().text("name", &named.name).long("input", named.input);
                Some(("byName", named.done()))
            }
            // One of several is told even where it has its default value.
            (User::ById(id), Self::Canonical) => Some(("byID", json!(id))),
            (User::ById(0), Self::Plain) => None,
            (User::ById(id), Self::Plain) => Some(("byId", json!(id))),
        });
        self.one_of(self.fields(), "User", who).done()
    }

    fn metadata(self, of: &pb::OpMetadata) -> Value {
        let group = |of: &pb::ProgressGroup| {
            self.fields().text("id", &of.id).text("name", &of.name).flag("weak", of.weak).done()
        };
        let of = newer::OpMetadata::from(of.clone());
        let limits = |of: &newer::LinuxResources| {
            let counts = self.fields().long("memory", of.memory).long("memorySwap", of.memory_swap);
            // The kernel's numbers are signed.
            let counts = counts.long("cpuShares", i64::try_from(of.cpu_shares).unwrap_or(i64::MAX));
            let counts = counts.long("cpuPeriod", i64::try_from(of.cpu_period).unwrap_or(i64::MAX));
            let counts = counts.long("cpuQuota", of.cpu_quota);
            counts.text("cpusetCpus", &of.cpuset_cpus).text("cpusetMems", &of.cpuset_mems).done()
        };
        self.fields()
            .flag(self.name("ignoreCache", "ignore_cache"), of.ignore_cache)
            .map("description", &of.description, |value| json!(value))
            .message(self.name("exportCache", "export_cache"), of.export_cache.as_ref(), |one| {
                self.fields().flag("Value", one.value).done()
            })
            .map("caps", &of.caps, |value| json!(value))
            .message(self.name("progressGroup", "progress_group"), of.progress_group.as_ref(), group)
            .message(self.name("linuxResources", "linux_resources"), of.linux_resources.as_ref(), limits)
            .done()
    }

    fn source(self, of: &pb::Source) -> Value {
        self.fields()
            .map("locations", &of.locations, |all| self.locations(all))
            .list("infos", &of.infos, |info| self.source_info(info))
            .done()
    }

    /// A file that operations come from.
    pub fn source_info(self, of: &pb::SourceInfo) -> Value {
        self.fields()
            .text("filename", &of.filename)
            .bytes("data", &of.data)
            .message("definition", of.definition.as_ref(), |definition| self.message(definition))
            .text("language", &of.language)
            .done()
    }

    /// A definition as a message, whose operations are bytes.
    fn message(self, of: &pb::Definition) -> Value {
        let bytes = |bytes: &Vec<u8>| json!(base64::engine::general_purpose::STANDARD.encode(bytes));
        self.fields()
            .list("def", &of.def, bytes)
            .map("metadata", &of.metadata, |one| self.metadata(one))
            .message(self.name("source", "Source"), of.source.as_ref(), |source| self.source(source))
            .done()
    }

    /// Places in files.
    pub fn locations(self, of: &pb::Locations) -> Value {
        let location = |one: &pb::Location| {
            let place = self.fields().number("sourceIndex", one.source_index);
            place.list("ranges", &one.ranges, |range| self.range(range)).done()
        };
        self.fields().list("locations", &of.locations, location).done()
    }

    /// Lines of a file.
    pub fn range(self, of: &pb::Range) -> Value {
        let position = |at: &pb::Position| {
            self.fields().number("line", at.line).number("character", at.character).done()
        };
        let start = self.fields().message("start", of.start.as_ref(), position);
        start.message("end", of.end.as_ref(), position).done()
    }
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
        assert_eq!(Form::Canonical.mount(&mount), expected);
        let root = pb::UserOpt { user: Some(pb::user_opt::User::ById(0)) };
        assert_eq!(Form::Canonical.user(&root), json!({ "byID": 0 }));
    }

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
            Form::Plain.mount(&mount),
            json!({ "input": -1, "dest": "/run/secrets/x", "mountType": 1, "secretOpt": { "ID": "x", "mode": 256 } })
        );
        let told = Form::Plain.action(&pb::FileAction { input: 0, secondary_input: 1, ..Default::default() });
        assert_eq!(told, json!({ "input": 0, "secondaryInput": 1, "output": 0, "Action": {} }));
    }

    #[test]
    fn what_is_one_of_several_stands_where_each_form_has_it() {
        let user = |id| pb::UserOpt { user: Some(pb::user_opt::User::ById(id)) };
        assert_eq!(Form::Plain.user(&user(7)), json!({ "User": { "byId": 7 } }));
        assert_eq!(Form::Plain.user(&user(0)), json!({ "User": {} }));
        let source = pb::SourceOp { identifier: "local://x".into(), ..Default::default() };
        let op = pb::Op {
            inputs: vec![pb::Input { digest: "sha256:0".into(), index: 0 }],
            op: Some(pb::op::Op::Source(source)),
            ..Default::default()
        };
        assert_eq!(Form::Plain.op(&op), json!({ "Op": { "source": { "identifier": "local://x" } } }));
        let canonical =
            json!({ "inputs": [{ "digest": "sha256:0" }], "source": { "identifier": "local://x" } });
        assert_eq!(Form::Canonical.op(&op), canonical);
    }
}
