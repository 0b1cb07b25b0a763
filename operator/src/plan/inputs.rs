//! What a pod is given out of Secrets and ConfigMaps: one volume for each, with that key alone where the spec names
//! a key.
//!
//! Holds: the operator names objects and keys, the kubelet reads them; what is not optional holds the pod until it is
//! there, and [`explain`] says which field waits for what.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMapProjection, ConfigMapVolumeSource, KeyToPath, ProjectedVolumeSource, SecretProjection,
    SecretVolumeSource, Volume, VolumeMount, VolumeProjection,
};
use lapstrake_crds::{ImageBuild, ImageBuildSpec, Proxy, SourceKind};
use lapstrake_handoff as handoff;
use lapstrake_handoff::{ArgInput, ContextFrom, SecretInput, Source, SshInput, paths};
use serde_json::{Value, json};

use crate::settings::Settings;

/// Only the builder reads them.
const MODE: i32 = 0o400;
/// Key of the request's ConfigMap with the authorities that the operator's configuration adds.
const AUTHORITIES: &str = "authorities.pem";

/// An object that the kubelet mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Secret,
    ConfigMap,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
        }
    }
}

/// One volume.
#[derive(Clone, Debug)]
struct Input {
    /// Its name in the pod.
    volume: String,
    /// Folder that it is mounted at.
    folder: String,
    kind: Kind,
    object: String,
    /// Keys that it has; all of them where there is none.
    keys: Vec<String>,
    /// Further keys, which may be absent.
    more: Vec<String>,
    optional: bool,
    /// The field of the spec that asks for it.
    field: String,
}

impl Input {
    fn new(volume: String, folder: String, (kind, object): (Kind, &str), field: String) -> Self {
        let (keys, more) = (Vec::new(), Vec::new());
        Self { volume, folder, kind, object: object.to_owned(), keys, more, optional: false, field }
    }

    fn keys<K: Into<String>>(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        self.keys = keys.into_iter().map(Into::into).collect();
        self
    }

    fn more(mut self, keys: &[&str]) -> Self {
        self.more = keys.iter().map(|key| (*key).to_owned()).collect();
        self
    }

    fn optional(mut self, optional: bool) -> Self {
        self.optional = optional;
        self
    }

    fn file(&self, key: &str) -> String {
        format!("{}/{key}", self.folder)
    }

    fn volume(&self) -> Volume {
        let mut volume = Volume { name: self.volume.clone(), ..Volume::default() };
        let optional = Some(self.optional);
        let items = (!self.keys.is_empty()).then(|| items(&self.keys));
        match (self.kind, self.more.is_empty()) {
            (Kind::Secret, true) => {
                volume.secret = Some(SecretVolumeSource {
                    secret_name: Some(self.object.clone()),
                    items,
                    optional,
                    default_mode: Some(MODE),
                });
            }
            (Kind::ConfigMap, true) => {
                volume.config_map = Some(ConfigMapVolumeSource {
                    name: self.object.clone(),
                    items,
                    optional,
                    default_mode: Some(MODE),
                });
            }
            // A volume of one object has its keys all required or all optional.
            (_, false) => {
                volume.projected = Some(ProjectedVolumeSource {
                    default_mode: Some(MODE),
                    sources: Some(vec![
                        self.projection(items, self.optional),
                        self.projection(Some(self::items(&self.more)), true),
                    ]),
                });
            }
        }
        volume
    }

    fn projection(&self, items: Option<Vec<KeyToPath>>, optional: bool) -> VolumeProjection {
        let (name, optional) = (self.object.clone(), Some(optional));
        match self.kind {
            Kind::Secret => VolumeProjection {
                secret: Some(SecretProjection { name, items, optional }),
                ..VolumeProjection::default()
            },
            Kind::ConfigMap => VolumeProjection {
                config_map: Some(ConfigMapProjection { name, items, optional }),
                ..VolumeProjection::default()
            },
        }
    }

    /// What the kubelet's words about this volume mean.
    fn explain(&self, words: &str) -> String {
        let Self { object, field, .. } = self;
        let kind = self.kind.as_str();
        let key = words.split("key: ").nth(1).map(|rest| {
            rest.split(|c: char| !(c.is_ascii_alphanumeric() || "-._".contains(c))).next().unwrap_or_default()
        });
        match key {
            Some(key) if words.contains("non-existent") => {
                let hint = match key {
                    "known_hosts" => ": the server's public keys, as `ssh-keyscan HOST` prints them",
                    _ => "",
                };
                format!("{kind} {object} has no key {key} ({field}){hint}")
            }
            _ if words.contains("not found") => format!(
                "{kind} {object} does not exist ({field}): the build goes on within two minutes of its creation"
            ),
            _ => format!("{kind} {object} ({field}) cannot be mounted yet: {words}"),
        }
    }
}

fn items(keys: &[String]) -> Vec<KeyToPath> {
    keys.iter().map(|key| KeyToPath { key: key.clone(), path: key.clone(), mode: None }).collect()
}

/// All that is mounted for this ImageBuild, beside the credentials of `output.secretRef`, and the request with
/// the places of it.
fn collect(
    build: &ImageBuild,
    accounts: &[String],
    settings: &Settings,
    request: &mut handoff::Request,
) -> Vec<Input> {
    let spec = &build.spec;
    let mut inputs = Vec::new();
    source(spec, request, &mut inputs);
    contexts(spec, request, &mut inputs);
    secrets(spec, request, &mut inputs);
    agents(spec, request, &mut inputs);
    registries(spec, accounts, request, &mut inputs);
    args(spec, request, &mut inputs);
    certificates(spec, settings, request, &mut inputs);
    proxy(spec, settings, request, &mut inputs);
    inputs
}

fn source(spec: &ImageBuildSpec, request: &mut handoff::Request, inputs: &mut Vec<Input>) {
    let of = |secret: &str, field: &str| {
        let folder = paths::SOURCE_CREDENTIALS_DIR.to_owned();
        Input::new("source-credentials".to_owned(), folder, (Kind::Secret, secret), field.to_owned())
    };
    match (spec.source.kind(), &mut request.source) {
        (Some(SourceKind::Git(git)), Source::Git(wanted)) => {
            if let Some(secret) = &git.secret_ref {
                let input = of(&secret.name, "spec.source.git.secretRef");
                wanted.credentials = Some(input.folder.clone());
                inputs.push(if is_http(&git.url) {
                    input
                } else {
                    input.keys(["ssh-privatekey", "known_hosts"])
                });
            }
        }
        (Some(SourceKind::Http(http)), Source::Http(wanted)) => {
            if let Some(secret) = &http.secret_ref {
                let input = of(&secret.name, "spec.source.http.secretRef");
                wanted.credentials = Some(input.folder.clone());
                inputs.push(input);
            }
        }
        _ => {}
    }
}

fn contexts(spec: &ImageBuildSpec, request: &mut handoff::Request, inputs: &mut Vec<Input>) {
    for (n, context) in spec.contexts.iter().enumerate() {
        let (kind, secret, ssh) = match (&context.git, &context.http) {
            (Some(git), _) => ("git", &git.secret_ref, !is_http(&git.url)),
            (None, Some(http)) => ("http", &http.secret_ref, false),
            (None, None) => continue,
        };
        let Some(secret) = secret else { continue };
        let folder = format!("{}/{n}", paths::CONTEXT_CREDENTIALS_DIR);
        let field = format!("spec.contexts[{}].{kind}.secretRef", context.name);
        let input = Input::new(
            format!("context-credentials-{n}"),
            folder.clone(),
            (Kind::Secret, &secret.name),
            field,
        );
        inputs.push(if ssh { input.keys(["ssh-privatekey", "known_hosts"]) } else { input });
        let wanted = request.contexts.iter_mut().find(|wanted| wanted.name == context.name);
        match wanted.map(|wanted| &mut wanted.from) {
            Some(ContextFrom::Git(git)) => git.credentials = Some(folder),
            Some(ContextFrom::Http(http)) => http.credentials = Some(folder),
            _ => {}
        }
    }
}

fn is_http(url: &str) -> bool {
    ["http://", "https://", "git://"].iter().any(|scheme| url.starts_with(scheme))
}

fn secrets(spec: &ImageBuildSpec, request: &mut handoff::Request, inputs: &mut Vec<Input>) {
    for (n, secret) in spec.secrets.iter().enumerate() {
        let folder = format!("{}/{n}", paths::SECRETS_DIR);
        let key = secret.secret_ref.key.as_str();
        let field = format!("spec.secrets[{}]", secret.id);
        let object = (Kind::Secret, secret.secret_ref.name.as_str());
        let input =
            Input::new(format!("secret-{n}"), folder, object, field).keys([key]).optional(secret.optional);
        let (id, path) = (Some(secret.id.clone()), input.file(key));
        request.secrets.push(SecretInput { id, path, ..SecretInput::default() });
        inputs.push(input);
    }
    for (n, from) in spec.secrets_from.iter().enumerate() {
        let folder = format!("{}/all-{n}", paths::SECRETS_DIR);
        let field = format!("spec.secretsFrom[{n}]");
        let object = (Kind::Secret, from.secret_ref.name.as_str());
        let input = Input::new(format!("secrets-from-{n}"), folder, object, field).optional(from.optional);
        let (prefix, path) = (from.prefix.clone(), input.folder.clone());
        request.secrets.push(SecretInput { prefix, path, ..SecretInput::default() });
        inputs.push(input);
    }
}

fn agents(spec: &ImageBuildSpec, request: &mut handoff::Request, inputs: &mut Vec<Input>) {
    for (n, agent) in spec.ssh.iter().enumerate() {
        let folder = format!("{}/{n}", paths::SSH_DIR);
        let field = format!("spec.ssh[{}]", agent.id);
        let object = (Kind::Secret, agent.secret_ref.name.as_str());
        let mut input = Input::new(format!("ssh-{n}"), folder, object, field).keys(agent.secret_ref.keys());
        let known_hosts = match &agent.known_hosts {
            Some(_) => format!("{}/{}", paths::REQUEST_DIR, known_hosts_key(n)),
            None => {
                input = input.more(&["known_hosts"]);
                input.file("known_hosts")
            }
        };
        request.ssh.push(SshInput {
            id: agent.id.clone(),
            keys: agent.secret_ref.keys().into_iter().map(|key| input.file(key)).collect(),
            known_hosts: Some(known_hosts),
        });
        inputs.push(input);
    }
}

fn registries(
    spec: &ImageBuildSpec,
    accounts: &[String],
    request: &mut handoff::Request,
    inputs: &mut Vec<Input>,
) {
    for (n, secret) in spec.image_pull_secrets.iter().enumerate() {
        let folder = format!("{}/pull-{n}", paths::DOCKER_CONFIGS_DIR);
        let field = format!("spec.imagePullSecrets[{}]", secret.name);
        request.docker_configs.push(folder.clone());
        inputs.push(Input::new(format!("pull-{n}"), folder, (Kind::Secret, &secret.name), field));
    }
    let known = |name: &&String| {
        let own = spec.output.secret_ref.as_ref().is_some_and(|secret| secret.name == **name);
        own || spec.image_pull_secrets.iter().any(|secret| secret.name == **name)
    };
    for (n, secret) in accounts.iter().filter(|name| !known(name)).enumerate() {
        let folder = format!("{}/account-{n}", paths::DOCKER_CONFIGS_DIR);
        let field = "imagePullSecrets of the ServiceAccount".to_owned();
        request.docker_configs_optional.push(folder.clone());
        // As the kubelet: one that does not exist is passed over.
        let input =
            Input::new(format!("account-pull-{n}"), folder, (Kind::Secret, secret), field).optional(true);
        inputs.push(input.keys([".dockerconfigjson", ".dockercfg"]));
    }
}

fn args(spec: &ImageBuildSpec, request: &mut handoff::Request, inputs: &mut Vec<Input>) {
    for (n, arg) in spec.args.iter().enumerate() {
        let Some(from) = &arg.value_from else { continue };
        let (kind, key) = match (&from.config_map_key_ref, &from.secret_key_ref) {
            (Some(key), _) => (Kind::ConfigMap, key),
            (None, Some(key)) => (Kind::Secret, key),
            (None, None) => continue, // refused by the schema
        };
        let folder = format!("{}/{n}", paths::ARGS_DIR);
        let field = format!("spec.args[{}].valueFrom", arg.name);
        let input = Input::new(format!("arg-{n}"), folder, (kind, &key.name), field)
            .keys([key.key.as_str()])
            .optional(key.optional);
        request.args.remove(&arg.name);
        request.args_from.push(ArgInput {
            name: arg.name.clone(),
            path: input.file(&key.key),
            optional: key.optional,
            secret: kind == Kind::Secret,
        });
        inputs.push(input);
    }
}

fn certificates(
    spec: &ImageBuildSpec,
    settings: &Settings,
    request: &mut handoff::Request,
    inputs: &mut Vec<Input>,
) {
    let defaults = &settings.defaults.certificates;
    request.certificates.in_steps = spec.certificates.in_steps || defaults.in_steps;
    if !defaults.pem.is_empty() {
        request.certificates.files.push(format!("{}/{AUTHORITIES}", paths::REQUEST_DIR));
    }
    for (n, from) in spec.certificates.from.iter().enumerate() {
        let (kind, of) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(of), _) => (Kind::ConfigMap, of),
            (None, Some(of)) => (Kind::Secret, of),
            (None, None) => continue, // refused by the schema
        };
        let folder = format!("{}/{n}", paths::CERTIFICATES_DIR);
        let field = format!("spec.certificates.from[{n}]");
        let input =
            Input::new(format!("certificates-{n}"), folder, (kind, &of.name), field).keys([of.key.as_str()]);
        request.certificates.files.push(input.file(&of.key));
        inputs.push(input);
    }
}

fn proxy(
    spec: &ImageBuildSpec,
    settings: &Settings,
    request: &mut handoff::Request,
    inputs: &mut Vec<Input>,
) {
    let proxy: &Proxy = if spec.proxy.is_default() { &settings.defaults.proxy } else { &spec.proxy };
    request.proxy.http.clone_from(&proxy.http);
    request.proxy.https.clone_from(&proxy.https);
    request.proxy.no.clone_from(&proxy.no_proxy);
    request.proxy.in_steps = proxy.in_steps;
    let Some(from) = &proxy.from else { return };
    let (kind, of) = match (&from.config_map_ref, &from.secret_ref) {
        (Some(of), _) => (Kind::ConfigMap, of),
        (None, Some(of)) => (Kind::Secret, of),
        (None, None) => return, // refused by the schema
    };
    let folder = paths::PROXY_DIR.to_owned();
    request.proxy.folder = Some(folder.clone());
    inputs.push(Input::new("proxy".to_owned(), folder, (kind, &of.name), "spec.proxy.from".to_owned()));
}

/// The key of the request's ConfigMap with an agent's `knownHosts`.
fn known_hosts_key(n: usize) -> String {
    format!("known-hosts-{n}")
}

/// Puts the places of what is mounted into a request.
pub(crate) fn fill(
    build: &ImageBuild,
    accounts: &[String],
    settings: &Settings,
    request: &mut handoff::Request,
) {
    collect(build, accounts, settings, request);
}

/// What stands beside the request in its ConfigMap.
pub(crate) fn request_files(build: &ImageBuild, settings: &Settings) -> BTreeMap<String, String> {
    let known_hosts = build.spec.ssh.iter().enumerate();
    let known_hosts =
        known_hosts.filter_map(|(n, agent)| Some((known_hosts_key(n), agent.known_hosts.clone()?)));
    let pem = &settings.defaults.certificates.pem;
    let pem = (!pem.is_empty()).then(|| (AUTHORITIES.to_owned(), pem.clone()));
    known_hosts.chain(pem).collect()
}

/// The volumes, and where they are mounted.
pub(crate) fn mount(
    build: &ImageBuild,
    accounts: &[String],
    settings: &Settings,
    volumes: &mut Vec<Volume>,
    mounts: &mut Vec<VolumeMount>,
) {
    for input in all(build, accounts, settings) {
        volumes.push(input.volume());
        mounts.push(VolumeMount {
            name: input.volume.clone(),
            mount_path: input.folder.clone(),
            read_only: Some(true),
            ..VolumeMount::default()
        });
    }
}

fn all(build: &ImageBuild, accounts: &[String], settings: &Settings) -> Vec<Input> {
    let mut request = handoff::Request::empty();
    request.source = match build.spec.source.kind() {
        Some(SourceKind::Git(_)) => Source::Git(handoff::GitSource::default()),
        Some(SourceKind::Http(_)) => Source::Http(handoff::HttpSource::default()),
        _ => Source::Inline(Vec::new()),
    };
    collect(build, accounts, settings, &mut request)
}

/// Which field of the spec waits for what, by the kubelet's words about a volume that it can't mount; `None` if the
/// words are about another volume.
pub(crate) fn explain(build: &ImageBuild, settings: &Settings, words: &str) -> Option<String> {
    let volume = words.split("for volume \"").nth(1)?.split('"').next()?;
    all(build, &[], settings)
        .into_iter()
        .find(|input| input.volume == volume)
        .map(|input| input.explain(words))
}

/// What of it a run is named by: the names, for nobody here knows the contents. `Null` where there is nothing.
pub(crate) fn identity(spec: &ImageBuildSpec) -> Value {
    let plain = ImageBuildSpec::default();
    let same = spec.secrets == plain.secrets
        && spec.secrets_from == plain.secrets_from
        && spec.ssh == plain.ssh
        && spec.image_pull_secrets == plain.image_pull_secrets
        && spec.certificates == plain.certificates
        && spec.proxy == plain.proxy;
    if same {
        return Value::Null;
    }
    json!([spec.secrets, spec.secrets_from, spec.ssh, spec.image_pull_secrets, spec.certificates, spec.proxy])
}

#[cfg(test)]
#[path = "inputs_tests.rs"]
mod tests;
