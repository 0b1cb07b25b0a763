use std::collections::BTreeSet;

use lapstrake_crds::{
    ArgKeyReference, ArgSource, BuildArg, BuildSecret, BuildSecretsFrom, CertificateReference,
    CertificateSource, KeyReference, ProxySource, SecretReference, SshAgent, SshSecretReference,
};

use super::*;
use crate::plan::tests::{build, settings};

fn secret(name: &str) -> SecretReference {
    SecretReference { name: name.into() }
}

fn full() -> ImageBuild {
    let mut build = build();
    let spec = &mut build.spec;
    let git = spec.source.git.as_mut().unwrap();
    git.url = "git@git.example:shop/web.git".into();
    git.secret_ref = Some(secret("deploy"));
    let key_of = |name: &str, key: &str| KeyReference { name: name.into(), key: key.into() };
    spec.secrets = vec![
        BuildSecret { id: "npm".into(), secret_ref: key_of("npm", "token"), optional: false },
        BuildSecret { id: "extra".into(), secret_ref: key_of("extra", ".npmrc"), optional: true },
    ];
    spec.secrets_from =
        vec![BuildSecretsFrom { secret_ref: secret("many"), prefix: "p-".into(), optional: false }];
    spec.ssh = vec![
        SshAgent {
            id: "default".into(),
            secret_ref: SshSecretReference { name: "ssh".into(), keys: Vec::new() },
            known_hosts: None,
        },
        SshAgent {
            id: "other".into(),
            secret_ref: SshSecretReference { name: "ssh".into(), keys: vec!["a".into(), "b".into()] },
            known_hosts: Some("h ssh-ed25519 AAAA".into()),
        },
    ];
    spec.image_pull_secrets = vec![secret("pull")];
    let arg_key = ArgKeyReference { name: "versions".into(), key: "go".into(), optional: true };
    spec.args = vec![BuildArg {
        name: "GO".into(),
        value_from: Some(ArgSource { config_map_key_ref: Some(arg_key), secret_key_ref: None }),
        ..BuildArg::default()
    }];
    let of = CertificateReference { name: "corporate".into(), key: "ca.crt".into() };
    spec.certificates.from = vec![CertificateSource { config_map_ref: Some(of), secret_ref: None }];
    spec.proxy.from = Some(ProxySource { config_map_ref: None, secret_ref: Some(secret("proxy")) });
    build
}

fn accounts() -> Vec<String> {
    vec!["pull".into(), "account".into()]
}

#[test]
fn each_object_is_a_volume_of_its_own_that_only_the_builder_reads() {
    let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
    mount(&full(), &accounts(), &settings(), &mut volumes, &mut mounts);
    let names: BTreeSet<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    assert_eq!(names.len(), volumes.len());
    let places: BTreeSet<&str> = mounts.iter().map(|mount| mount.mount_path.as_str()).collect();
    assert_eq!(places.len(), volumes.len());
    assert!(mounts.iter().all(|mount| mount.read_only == Some(true) && mount.sub_path.is_none()));
    for volume in &volumes {
        let modes = [
            volume.secret.as_ref().and_then(|source| source.default_mode),
            volume.config_map.as_ref().and_then(|source| source.default_mode),
            volume.projected.as_ref().and_then(|source| source.default_mode),
        ];
        assert_eq!(modes.into_iter().flatten().collect::<Vec<_>>(), [0o400], "{}", volume.name);
    }
    let of = |name: &str| volumes.iter().find(|volume| volume.name == name).unwrap();
    let npm = of("secret-0").secret.as_ref().unwrap();
    assert_eq!(
        npm.items.as_ref().unwrap().iter().map(|item| item.key.as_str()).collect::<Vec<_>>(),
        ["token"]
    );
    assert_eq!((npm.optional, of("secret-1").secret.as_ref().unwrap().optional), (Some(false), Some(true)));
    let ssh = of("ssh-0").projected.as_ref().unwrap().sources.as_ref().unwrap();
    let optional: Vec<_> = ssh.iter().map(|source| source.secret.as_ref().unwrap().optional).collect();
    assert_eq!(optional, [Some(false), Some(true)], "known_hosts may be absent, the key may not");
    assert!(of("ssh-1").secret.is_some(), "known hosts are in the spec");
    // What the spec names already is not mounted again for the ServiceAccount.
    assert!(names.contains("account-pull-0") && !names.contains("account-pull-1"));
}

#[test]
fn the_request_has_the_places_of_what_is_mounted_and_nothing_else() {
    let build = full();
    let (mut volumes, mut mounts) = (Vec::new(), Vec::new());
    mount(&build, &accounts(), &settings(), &mut volumes, &mut mounts);
    let mut request = handoff::Request::empty();
    request.source = Source::Git(handoff::GitSource::default());
    fill(&build, &accounts(), &settings(), &mut request);
    let mut named: Vec<String> = request.secrets.iter().map(|secret| secret.path.clone()).collect();
    named.extend(request.ssh.iter().flat_map(|agent| agent.keys.clone()));
    named.extend(request.ssh[0].known_hosts.clone());
    named.extend(request.docker_configs.iter().chain(&request.docker_configs_optional).cloned());
    named.extend(request.args_from.iter().map(|arg| arg.path.clone()));
    named.extend(request.certificates.files.clone());
    named.extend(request.proxy.folder.clone());
    for path in &named {
        assert!(mounts.iter().any(|mount| path.starts_with(&mount.mount_path)), "{path}");
    }
    assert_eq!(request.secrets[0].id.as_deref(), Some("npm"));
    assert_eq!((request.secrets[2].id.as_deref(), request.secrets[2].prefix.as_str()), (None, "p-"));
    let files = request_files(&build, &settings());
    let inline = request.ssh[1].known_hosts.clone().unwrap();
    assert_eq!(files[inline.rsplit_once('/').unwrap().1], "h ssh-ed25519 AAAA");
    assert!(!request.args.contains_key("GO"));
}

#[test]
fn what_is_missing_is_named_with_its_field() {
    let build = full();
    let words =
        |volume: &str, rest: &str| format!("MountVolume.SetUp failed for volume \"{volume}\" : {rest}");
    for (text, told) in [
        (words("secret-0", "secret \"npm\" not found"), "Secret npm does not exist (spec.secrets[npm])"),
        (
            words("secret-0", "references non-existent secret key: token"),
            "Secret npm has no key token (spec.secrets[npm])",
        ),
        (
            words("source-credentials", "references non-existent secret key: known_hosts"),
            "Secret deploy has no key known_hosts (spec.source.git.secretRef): the server's public keys",
        ),
        (
            words("certificates-0", "configmap references non-existent config key: ca.crt"),
            "ConfigMap corporate has no key ca.crt (spec.certificates.from[0])",
        ),
        (words("arg-0", "configmap \"versions\" not found"), "ConfigMap versions does not exist"),
        (words("proxy", "timed out"), "Secret proxy (spec.proxy.from) cannot be mounted yet"),
    ] {
        let explained = explain(&build, &settings(), &text).expect(&text);
        assert!(explained.starts_with(told), "{explained}");
    }
    assert_eq!(explain(&build, &settings(), &words("state", "x")), None);
    assert_eq!(explain(&build, &settings(), "no volume at all"), None);
}

#[test]
fn names_decide_how_a_run_is_done_and_an_older_spec_has_the_name_that_it_had() {
    assert_eq!(identity(&build().spec), Value::Null);
    let mut other = full();
    let before = identity(&other.spec);
    other.spec.secrets[0].secret_ref.key = "other".into();
    assert_ne!(identity(&other.spec), before);
}
