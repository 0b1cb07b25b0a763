//! `RUN --mount=…`.

use lapstrake_llb::pb;

use crate::ast::Word;
use crate::diagnostic::Diagnostic;
use crate::lower::draft::{CONTEXT, DraftOutput, NO_INPUT, NO_OUTPUT, named, operation};
use crate::lower::stage::{At, Current, Lower, Lowering};
use crate::lower::{copy, path};
use crate::plan::From;
use crate::suggest;

const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];
const SHARING: [&str; 3] = ["shared", "private", "locked"];
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

/// A `key[=value]` of a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    /// In lower case.
    pub(crate) key: String,
    pub(crate) value: Option<Word>,
    /// As written.
    pub(crate) word: Word,
}

/// Splits a mount at its commas, as a line of CSV.
pub(crate) fn fields(mount: &Word) -> Lower<Vec<Field>> {
    let mut out = Vec::new();
    let (mut start, mut quoted) = (0, false);
    for (at, c) in mount.text.char_indices().chain([(mount.text.len(), ',')]) {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted || at == mount.text.len() => {
                let mut word = mount.part(start..at);
                if let Some(inner) = word.text.strip_prefix('"').and_then(|t| t.strip_suffix('"')) {
                    word = Word { text: inner.replace("\"\"", "\""), span: word.span };
                }
                out.push(field(word));
                start = at + 1;
            }
            _ => {}
        }
    }
    if quoted {
        let message = "mount has a quote without its end";
        return Err(Box::new(Diagnostic::error("invalid-mount", mount.span, message)));
    }
    Ok(out)
}

fn field(word: Word) -> Field {
    match word.text.find('=') {
        None => Field { key: word.text.to_lowercase(), value: None, word },
        Some(at) => Field {
            key: word.text[..at].to_lowercase(),
            value: Some(word.part(at + 1..word.text.len())),
            word,
        },
    }
}

/// A mount, understood.
#[derive(Debug, Default)]
struct Mount {
    kind: String,
    source: String,
    target: Option<Word>,
    read_only: Option<bool>,
    size: i64,
    id: String,
    sharing: Option<Word>,
    required: bool,
    env: Option<String>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    has_from: bool,
}

/// What a mount adds to a step.
pub(super) struct Lowered {
    pub(super) mount: Option<pb::Mount>,
    pub(super) input: Option<DraftOutput>,
    pub(super) secret_env: Option<pb::SecretEnv>,
}

impl Lowering<'_> {
    /// Lowers one mount of a step.
    pub(super) fn mount(
        &mut self,
        current: &Current,
        at: &At<'_>,
        word: &Word,
        from: &From,
    ) -> Lower<Lowered> {
        let mount = self.read_mount(current, word)?;
        check(&mount, word)?;
        let capable = &self.plan.options.capabilities;
        let missing = match mount.kind.as_str() {
            "cache" => !capable.cache_mounts,
            "secret" => !capable.secret_mounts,
            "ssh" => !capable.ssh_mounts,
            _ => false,
        };
        if missing {
            let what = format!("RUN --mount=type={}", mount.kind);
            return Err(Box::new(Diagnostic::not_yet(word.span, what)));
        }
        match mount.kind.as_str() {
            "secret" => Ok(secret(&mount)),
            "ssh" => Ok(ssh(&mount)),
            _ => self.files_mount(current, at, word, from, &mount),
        }
    }

    fn read_mount(&mut self, current: &Current, word: &Word) -> Lower<Mount> {
        let mut mount = Mount { kind: "bind".to_owned(), ..Mount::default() };
        for field in fields(word)? {
            let value = match &field.value {
                Some(value) => Some(self.expand(&current.state.env, value)?),
                None => None,
            };
            read_field(&mut mount, &field, value)?;
        }
        Ok(mount)
    }

    fn files_mount(
        &mut self,
        current: &Current,
        at: &At<'_>,
        word: &Word,
        from: &From,
        mount: &Mount,
    ) -> Lower<Lowered> {
        let target = mount.target.as_ref().map_or("", |t| t.text.as_str());
        let target = match path::clean(target).starts_with('/') {
            true => target.to_owned(),
            false => path::join("/", &path::join(&current.state.dir, target)),
        };
        if target == "/" {
            let span = mount.target.as_ref().map_or(word.span, |t| t.span);
            let message = format!("invalid mount target {target:?}");
            return Err(Box::new(Diagnostic::error("invalid-mount", span, message)));
        }
        let (tmpfs, cache) = (mount.kind == "tmpfs", mount.kind == "cache");
        let source = path::join("/", &mount.source);
        let mut input = match from {
            _ if tmpfs => None,
            From::Default if cache => None,
            From::Default if !mount.has_from => {
                self.context_paths.insert(source.clone());
                Some(CONTEXT)
            }
            from => self.files(from)?,
        };
        let mut selector = if source == "/" { String::new() } else { source };
        if selector.is_empty() && cache && (mount.uid.or(mount.gid).or(mount.mode)).is_some() {
            input = Some(self.cache_directory(at, input, mount));
            selector = "/cache".to_owned();
        }
        let read_only = mount.read_only.unwrap_or(!tmpfs && !cache);
        let mut out = pb::Mount {
            input: NO_INPUT,
            selector,
            dest: target,
            output: NO_OUTPUT,
            readonly: read_only,
            ..pb::Mount::default()
        };
        if tmpfs {
            out.mount_type = pb::MountType::Tmpfs as i32;
            out.tmpfs_opt = Some(pb::TmpfsOpt { size: mount.size });
        }
        if cache {
            out.mount_type = pb::MountType::Cache as i32;
            out.cache_opt = Some(self.cache_options(mount));
        }
        Ok(Lowered { mount: Some(out), input, secret_env: None })
    }

    fn cache_options(&self, mount: &Mount) -> pb::CacheOpt {
        let id = match mount.id.as_str() {
            "" => path::clean(mount.target.as_ref().map_or("", |t| t.text.as_str())),
            id => id.to_owned(),
        };
        let sharing = match mount.sharing.as_ref().map(|s| s.text.as_str()) {
            Some("private") => pb::CacheSharingOpt::Private,
            Some("locked") => pb::CacheSharingOpt::Locked,
            _ => pb::CacheSharingOpt::Shared,
        };
        let id = format!("{}/{id}", self.plan.options.cache_namespace);
        pb::CacheOpt { id, sharing: sharing as i32 }
    }

    /// The directory that a cache mount starts with, where it has an owner or mode of its own.
    fn cache_directory(&mut self, at: &At<'_>, base: Option<DraftOutput>, mount: &Mount) -> DraftOutput {
        let owner = pb::ChownOpt {
            user: Some(copy::user_by_id(mount.uid.unwrap_or(0))),
            group: Some(copy::user_by_id(mount.gid.unwrap_or(0))),
        };
        let action = pb::file_action::Action::Mkdir(pb::FileActionMkDir {
            path: "/cache".to_owned(),
            mode: i32::try_from(mount.mode.unwrap_or(0o755) & 0o777).unwrap_or(0o755),
            make_parents: false,
            owner: Some(owner),
            timestamp: -1,
        });
        let input = if base.is_some() { 0 } else { NO_INPUT };
        let action = pb::FileAction { input, secondary_input: NO_INPUT, output: 0, action: Some(action) };
        let op = operation(pb::op::Op::File(pb::FileOp { actions: vec![action] }), None);
        let metadata = named("[internal] setting cache mount permissions");
        self.graph.add(op, base.into_iter().collect(), metadata, at.lines())
    }
}

fn error<T>(span: crate::Span, message: String) -> Lower<T> {
    Err(Box::new(Diagnostic::error("invalid-mount", span, message)))
}

fn read_field(mount: &mut Mount, field: &Field, value: Option<Word>) -> Lower<()> {
    let key = field.key.as_str();
    let span = value.as_ref().map_or(field.word.span, |v| v.span);
    let flag = || -> Lower<bool> {
        match value.as_ref().map(|v| v.text.as_str()) {
            None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some(other) => error(span, format!("invalid value for {key}: {other}")),
        }
    };
    let unexpected = |mount: &Mount| {
        error(field.word.span, format!("unexpected key '{key}' for mount type '{}'", mount.kind))
    };
    match key {
        "readonly" | "ro" => mount.read_only = Some(flag()?),
        "readwrite" | "rw" => mount.read_only = Some(!flag()?),
        "required" if matches!(mount.kind.as_str(), "secret" | "ssh") => mount.required = flag()?,
        "required" => return unexpected(mount),
        _ if !KEYS.contains(&key) => {
            let message = format!("unexpected key '{key}' in '{}'", field.word.text);
            let finding = Diagnostic::error("invalid-mount", field.word.span, message);
            let near = suggest::nearest(key, KEYS);
            return Err(Box::new(finding.note(format!("keys are {}", KEYS.join(", "))).suggest(near)));
        }
        _ => {
            let Some(value) = value else {
                return error(span, format!("invalid field '{}' must be a key=value pair", field.word.text));
            };
            return read_value(mount, key, value, &unexpected);
        }
    }
    Ok(())
}

fn read_value(
    mount: &mut Mount,
    key: &str,
    value: Word,
    unexpected: &dyn Fn(&Mount) -> Lower<()>,
) -> Lower<()> {
    let one_of = |value: &Word, known: &[&'static str], what: &str| -> Lower<String> {
        let text = value.text.to_lowercase();
        if known.contains(&text.as_str()) {
            return Ok(text);
        }
        let message = format!("unsupported {what} {:?}", value.text);
        let finding = Diagnostic::error("invalid-mount", value.span, message);
        let near = suggest::nearest(&text, known.iter().copied());
        Err(Box::new(finding.note(format!("it is one of {}", known.join(", "))).suggest(near)))
    };
    let number = |value: &Word, radix: u32| {
        u32::from_str_radix(&value.text, radix)
            .or_else(|_| error(value.span, format!("invalid value {} for {key}", value.text)))
    };
    match key {
        "type" => mount.kind = one_of(&value, &TYPES, "mount type")?,
        "from" => mount.has_from = !value.text.is_empty(),
        "source" | "src" => mount.source = value.text,
        "target" | "dst" | "destination" => mount.target = Some(value).filter(|v| !v.text.is_empty()),
        "size" if mount.kind == "tmpfs" => {
            mount.size = match bytes(&value.text) {
                Some(size) => size,
                None => return error(value.span, format!("invalid value for {key}: {}", value.text)),
            }
        }
        "size" => return unexpected(mount),
        "id" => mount.id = value.text,
        "sharing" => {
            let text = one_of(&value, &SHARING, "sharing value")?;
            mount.sharing = Some(Word { text, span: value.span });
        }
        "mode" => mount.mode = Some(number(&value, 8)?),
        "uid" => mount.uid = Some(number(&value, 10)?),
        "gid" => mount.gid = Some(number(&value, 10)?),
        _ => mount.env = Some(value.text),
    }
    Ok(())
}

/// Rules that need the whole mount.
fn check(mount: &Mount, word: &Word) -> Lower<()> {
    let kind = mount.kind.as_str();
    let has_file = matches!(kind, "secret" | "ssh" | "cache");
    for (name, given) in [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)] {
        if given.is_some() && !has_file {
            return error(word.span, format!("{name} not allowed for {kind:?} type mounts"));
        }
    }
    if let Some(sharing) = &mount.sharing
        && kind != "cache"
    {
        return error(sharing.span, format!("invalid cache sharing set for {kind} mount"));
    }
    if kind == "ssh" && !mount.source.is_empty() {
        return error(word.span, "ssh does not support source".to_owned());
    }
    if kind == "secret" {
        if mount.has_from {
            return error(word.span, "secret mount should not have a from".to_owned());
        }
        if mount.source.is_empty() && mount.target.is_none() && mount.id.is_empty() {
            let message = "invalid secret mount. one of source, target required";
            let finding = Diagnostic::error("invalid-mount", word.span, message);
            return Err(Box::new(finding.help("say which secret: id=NAME, as it is given to the build")));
        }
        if !mount.source.is_empty() && !mount.id.is_empty() {
            return error(word.span, "both source and id can't be set".to_owned());
        }
    }
    Ok(())
}

fn secret(mount: &Mount) -> Lowered {
    let target = mount.target.as_ref().map(|t| t.text.clone());
    let id = match (mount.source.as_str(), mount.id.as_str()) {
        ("", "") => path::base(target.as_deref().unwrap_or("")).to_owned(),
        ("", id) => id.to_owned(),
        (source, _) => source.to_owned(),
    };
    let dest = match (&mount.env, target) {
        (_, Some(target)) => Some(target),
        (None, None) => Some(format!("/run/secrets/{}", path::base(&id))),
        (Some(_), None) => None,
    };
    let optional = !mount.required;
    let secret_env = mount.env.clone().map(|name| pb::SecretEnv { id: id.clone(), name, optional });
    let mount = dest.map(|dest| pb::Mount {
        input: NO_INPUT,
        dest,
        mount_type: pb::MountType::Secret as i32,
        secret_opt: Some(pb::SecretOpt {
            id,
            uid: mount.uid.unwrap_or(0),
            gid: mount.gid.unwrap_or(0),
            mode: mount.mode.unwrap_or(0o400),
            optional,
        }),
        ..pb::Mount::default()
    });
    Lowered { mount, input: None, secret_env }
}

fn ssh(mount: &Mount) -> Lowered {
    // An empty target is given its number by the step.
    let dest = mount.target.as_ref().map(|t| t.text.clone()).unwrap_or_default();
    let ssh = pb::SshOpt {
        id: mount.id.clone(),
        uid: mount.uid.unwrap_or(0),
        gid: mount.gid.unwrap_or(0),
        mode: mount.mode.unwrap_or(0o600),
        optional: !mount.required,
    };
    let mount = pb::Mount {
        input: NO_INPUT,
        dest,
        mount_type: pb::MountType::Ssh as i32,
        ssh_opt: Some(ssh),
        ..pb::Mount::default()
    };
    Lowered { mount: Some(mount), input: None, secret_env: None }
}

/// A size as `64m`; units are powers of 1024.
fn bytes(text: &str) -> Option<i64> {
    let lower = text.trim().to_ascii_lowercase();
    let number_end = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let (number, unit) = lower.split_at(number_end);
    let unit = unit.trim().trim_end_matches("ib").trim_end_matches('b');
    let power = ["", "k", "m", "g", "t", "p"].iter().position(|u| *u == unit)?;
    let number: f64 = number.parse().ok()?;
    let bytes = number * 1024f64.powi(i32::try_from(power).ok()?);
    (bytes >= 0.0 && bytes < i64::MAX as f64).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Span;

    #[test]
    fn mounts_split_at_commas_outside_quotes() {
        let text = "type=cache,\"target=/a,b\",ro";
        let fields =
            fields(&Word { text: text.to_owned(), span: Span::new(10, 10 + text.len()) }).expect("valid");
        assert_eq!(fields[1].value.as_ref().map(|v| v.text.as_str()), Some("/a,b"));
        assert_eq!((fields[2].key.as_str(), &fields[2].value), ("ro", &None));
        assert_eq!(fields[0].value.as_ref().map(|v| v.span), Some(Span::new(15, 20)));
    }

    #[test]
    fn sizes_have_binary_units() {
        for (text, size) in [("64m", 67_108_864), ("1.5KiB", 1536), ("10", 10), ("1g", 1_073_741_824)] {
            assert_eq!(bytes(text), Some(size));
        }
        assert_eq!(bytes("x"), None);
        assert_eq!(bytes("1q"), None);
    }
}
