//! What an ImageBuild has in its cluster, where a build on this machine does not reach: what was not given by a flag
//! instead is said, with the flag.
//!
//! Volumes and credentials of registries are no part of it: here the state directory is the cache, and `docker login`
//! gives the credentials.

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::inputs::{KnownHosts, SecretSource};
use crate::options::BuildOptions;

/// Those fields of `spec` that name Secrets, ConfigMaps and what else is a cluster's.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct InCluster {
    /// Arguments whose values are keys of objects. The manifest's reader puts them here.
    #[serde(skip)]
    pub(crate) args: Vec<String>,
    /// Contexts that are another ImageBuild's image: their names, and that ImageBuild's.
    #[serde(skip)]
    pub(crate) builds: Vec<(String, String)>,
    /// The Secret with the source's credentials, as above.
    #[serde(skip)]
    pub(crate) source_credentials: Option<String>,
    secrets: Vec<Secret>,
    secrets_from: Vec<SecretsFrom>,
    ssh: Vec<Agent>,
    cache: Cache,
    certificates: Certificates,
    proxy: Proxy,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Secret {
    id: String,
    secret_ref: Key,
    #[serde(default)]
    optional: bool,
}

#[derive(Debug, Deserialize)]
struct Key {
    name: String,
    key: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Named {
    pub(crate) name: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SecretsFrom {
    secret_ref: Named,
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    optional: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Agent {
    id: String,
    secret_ref: Named,
    known_hosts: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cache {
    registry: Option<RegistryCache>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RegistryCache {
    from: Vec<CacheName>,
    to: Option<CacheName>,
    inline: bool,
}

#[derive(Debug, Deserialize)]
struct CacheName {
    image: String,
    mode: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Certificates {
    from: Vec<IgnoredAny>,
    in_steps: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Proxy {
    http: Option<String>,
    https: Option<String>,
    from: Option<IgnoredAny>,
    in_steps: bool,
}

impl InCluster {
    /// Looks at what the flags gave, takes from the manifest what is usable here, and warns of what is missing.
    pub(crate) fn settle(&self, options: &mut BuildOptions) {
        for agent in &self.ssh {
            let given = options.inputs.ssh.iter_mut().find(|given| given.id == agent.id);
            if let (Some(given), Some(text)) = (given, &agent.known_hosts)
                && given.known_hosts.is_none()
            {
                given.known_hosts = Some(KnownHosts::Text(text.clone()));
            }
        }
        let missing = [
            self.missing_source(),
            self.missing_args(options),
            self.missing_builds(options),
            self.missing_secrets(options),
            self.missing_agents(options),
            self.missing_network(options),
            self.missing_cache(options),
        ];
        options.warnings.extend(missing.into_iter().flatten());
    }

    fn missing_source(&self) -> Vec<String> {
        let say = |secret: &String| {
            format!(
                "the source's credentials are in the cluster (Secret {secret}): if it cannot be fetched without, \
                 build a directory with its files"
            )
        };
        self.source_credentials.iter().map(say).collect()
    }

    fn missing_builds(&self, options: &BuildOptions) -> Vec<String> {
        let missing =
            self.builds.iter().filter(|(name, _)| !options.named.contains_key(&name.to_lowercase()));
        missing
            .map(|(name, build)| {
                format!(
                    "context {name} is the image of the ImageBuild {build} in the cluster: give it by --build-context \
                     {name}=docker-image://IMAGE"
                )
            })
            .collect()
    }

    fn missing_args(&self, options: &BuildOptions) -> Vec<String> {
        let missing = self.args.iter().filter(|name| !options.args.contains_key(*name));
        missing
            .map(|name| {
                format!("build argument {name} has its value in the cluster: give it by --build-arg {name}=…")
            })
            .collect()
    }

    fn missing_secrets(&self, options: &BuildOptions) -> Vec<String> {
        let given: Vec<&str> = options.inputs.secrets.iter().filter_map(id).collect();
        let mut missing = Vec::new();
        for Secret { id, secret_ref: Key { name, key }, optional } in &self.secrets {
            if !optional && !given.contains(&id.as_str()) {
                missing.push(format!(
                    "secret {id} is in the cluster (Secret {name}, key {key}), and steps run without it: give it by \
                     --secret id={id},src=FILE or --secret id={id},env=VARIABLE"
                ));
            }
        }
        for SecretsFrom { secret_ref: Named { name }, prefix, optional } in &self.secrets_from {
            let own = |given: &&str| self.secrets.iter().any(|secret| secret.id == **given);
            let some = given.iter().any(|given| given.starts_with(prefix.as_str()) && !own(given));
            if !optional && !some {
                missing.push(format!(
                    "the secrets {prefix}KEY are in the cluster (all keys of Secret {name}), and steps run without \
                     them: give those that are needed by --secret id={prefix}KEY,src=FILE"
                ));
            }
        }
        missing
    }

    fn missing_agents(&self, options: &BuildOptions) -> Vec<String> {
        let given = |agent: &&Agent| options.inputs.ssh.iter().any(|given| given.id == agent.id);
        let missing = self.ssh.iter().filter(|agent| !given(agent));
        missing
            .map(|Agent { id, secret_ref: Named { name }, known_hosts }| {
                let hosts = match known_hosts {
                    Some(_) => String::new(),
                    None => format!(", and the keys of hosts by --ssh-known-hosts {id}=FILE"),
                };
                format!(
                    "the keys of SSH agent {id} are in the cluster (Secret {name}), and steps run without it: give \
                     one by --ssh {id} (the agent of $SSH_AUTH_SOCK) or --ssh {id}=KEYFILE{hosts}"
                )
            })
            .collect()
    }

    fn missing_network(&self, options: &BuildOptions) -> Vec<String> {
        let mut missing = Vec::new();
        if !self.certificates.from.is_empty() && options.inputs.certificates.files.is_empty() {
            let steps = match self.certificates.in_steps {
                true => ", and give steps theirs by --certificate FILE --step-certificates",
                false => "",
            };
            missing.push(format!(
                "certificates are in the cluster: name those of registries in --registries FILE (ca){steps}"
            ));
        }
        let proxy = &self.proxy;
        let is_proxy = |name: &String| name.to_ascii_uppercase().ends_with("_PROXY");
        if proxy.http.is_some() || proxy.https.is_some() || proxy.from.is_some() {
            let steps = match proxy.in_steps && !options.args.keys().any(is_proxy) {
                true => ", and steps have none: give theirs by --build-arg HTTPS_PROXY=…",
                false => "",
            };
            missing.push(format!(
                "the proxies of the ImageBuild are the cluster's: here those of the environment count{steps}"
            ));
        }
        missing
    }

    fn missing_cache(&self, options: &BuildOptions) -> Vec<String> {
        let Some(cache) = &self.cache.registry else { return Vec::new() };
        let mut flags = Vec::new();
        if options.cache_from.is_empty() {
            flags.extend(cache.from.iter().map(|from| format!("--cache-from {}", from.image)));
        }
        if options.cache_to.is_empty() {
            flags.extend(cache.to.iter().map(|CacheName { image, mode }| {
                let mode = mode.as_deref().unwrap_or("min").to_ascii_lowercase();
                format!("--cache-to type=registry,ref={image},mode={mode}")
            }));
            flags.extend(cache.inline.then(|| "--cache-to type=inline".to_owned()));
        }
        match flags.is_empty() {
            true => Vec::new(),
            false => {
                vec![format!("the registry cache of the ImageBuild is not used unasked: {}", flags.join(" "))]
            }
        }
    }
}

/// The id of a secret that a flag gave.
fn id(source: &SecretSource) -> Option<&str> {
    match source {
        SecretSource::File { id, .. } | SecretSource::Variable { id, .. } => Some(id),
        SecretSource::Folder { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use lapstrake_handoff::CacheImport;

    use super::*;
    use crate::inputs::{SshFrom, SshSource};
    use crate::options::Context;

    const SPEC: &str = "
secrets:
- {id: npm, secretRef: {name: npm, key: token}}
- {id: sentry, secretRef: {name: sentry, key: dsn}, optional: true}
secretsFrom:
- {secretRef: {name: mirrors}, prefix: mirror-}
ssh:
- {id: default, secretRef: {name: deploy}}
- {id: modules, secretRef: {name: modules}, knownHosts: git.example ssh-ed25519 AAAA}
cache: {volume: {size: 1Gi}, registry: {from: [{image: registry.example/cache}], to: {image: registry.example/to, mode: Max}}}
certificates: {from: [{configMapRef: {name: ca}}], inSteps: true}
proxy: {http: 'http://proxy:3128', inSteps: true}
";

    fn in_cluster() -> InCluster {
        let read: InCluster = serde_saphyr::from_str(SPEC).expect("reads");
        let builds = vec![("base".to_owned(), "shop-base".to_owned())];
        InCluster {
            args: vec!["VERSION".to_owned()],
            source_credentials: Some("git".to_owned()),
            builds,
            ..read
        }
    }

    fn warnings(mut options: BuildOptions) -> (Vec<String>, BuildOptions) {
        in_cluster().settle(&mut options);
        (std::mem::take(&mut options.warnings), options)
    }

    fn options() -> BuildOptions {
        BuildOptions::new(Context::Inline(Default::default()))
    }

    #[test]
    fn what_is_missing_here_is_said_with_its_flag() {
        let (warnings, _) = warnings(options());
        let flags = [
            "Secret git",
            "--build-arg VERSION=",
            "ImageBuild shop-base in the cluster: give it by --build-context base=docker-image://IMAGE",
            "--secret id=npm,src=FILE",
            "--secret id=mirror-KEY,src=FILE",
            "--ssh default=KEYFILE, and the keys of hosts by --ssh-known-hosts default=FILE",
            "--ssh modules=KEYFILE",
            "--certificate FILE --step-certificates",
            "--build-arg HTTPS_PROXY=",
            "--cache-from registry.example/cache --cache-to type=registry,ref=registry.example/to,mode=max",
        ];
        assert_eq!(warnings.len(), flags.len(), "the optional secret is not missed: {warnings:#?}");
        for (warning, flag) in warnings.iter().zip(flags) {
            assert!(warning.contains(flag), "{flag}: {warning}");
        }
        assert!(!warnings[6].contains("--ssh-known-hosts"), "the manifest has them: {}", warnings[6]);
    }

    #[test]
    fn what_flags_give_is_not_missing_and_hosts_of_the_manifest_count() {
        let mut given = options();
        given.args = [("VERSION", "1"), ("https_proxy", "http://p")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        let secret = |id: &str| SecretSource::Variable { id: id.to_owned(), name: "A".to_owned() };
        given.inputs.secrets = vec![secret("npm"), secret("mirror-a")];
        let agent = |id: &str, known_hosts| SshSource {
            id: id.to_owned(),
            from: SshFrom::Keys(Vec::new()),
            known_hosts,
        };
        let image = crate::asked::image_context("base", "registry.example/base").expect("an image");
        given.named = [("base".to_owned(), image)].into();
        let own = KnownHosts::File("/own".into());
        given.inputs.ssh = vec![agent("default", Some(own.clone())), agent("modules", None)];
        given.inputs.certificates.files = vec!["/ca".to_owned()];
        given.cache_from = vec![CacheImport::Registry { reference: "a".to_owned(), insecure: false }];
        let (warnings, options) = warnings(given);
        let [source, proxy, cache] = &warnings[..] else { panic!("{warnings:#?}") };
        assert!(source.contains("Secret git") && proxy.ends_with("count"), "{warnings:#?}");
        assert!(cache.contains("--cache-to") && !cache.contains("--cache-from"), "{cache}");
        assert_eq!(options.inputs.ssh[0].known_hosts, Some(own));
        let text = "git.example ssh-ed25519 AAAA".to_owned();
        assert_eq!(options.inputs.ssh[1].known_hosts, Some(KnownHosts::Text(text)));
    }
}
