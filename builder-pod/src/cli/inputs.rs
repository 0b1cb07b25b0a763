//! Flags for what steps are given: named and read as those of `docker buildx build`.

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use lapstrake_handoff::{Allow, StepNetwork};

use crate::inputs::{Inputs, KnownHosts, SecretSource, SshFrom, SshSource};
use crate::policy::{self, Policies};

/// The flags.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct InputArgs {
    /// Secret for `RUN --mount=type=secret`: `id=ID[,src=FILE]`, `id=ID,env=VARIABLE` (also `type=file|env`).
    #[arg(long = "secret", value_name = "ID")]
    secrets: Vec<String>,
    /// SSH agent for `RUN --mount=type=ssh`: `default` or an id, with the socket of an agent (that of
    /// $SSH_AUTH_SOCK when absent) or files with keys.
    #[arg(long = "ssh", value_name = "default|ID[=SOCKET|KEY[,KEY]]")]
    ssh: Vec<String>,
    /// Keys of hosts for steps with an SSH agent: `[ID=]FILE` in the form of `known_hosts`.
    #[arg(long = "ssh-known-hosts", value_name = "[ID=]FILE")]
    known_hosts: Vec<String>,
    /// Network of RUN steps that ask for none: default, none or host.
    #[arg(long, value_name = "MODE")]
    network: Option<String>,
    /// What the Dockerfile may ask for beyond the usual: network.host, security.insecure, device,
    /// device=VENDOR/CLASS[=NAME].
    #[arg(long = "allow", value_name = "ENTITLEMENT")]
    allow: Vec<String>,
    /// Directory of files that describe devices for `RUN --device`, in place of /etc/cdi and /var/run/cdi.
    #[arg(long = "cdi-spec-dir", value_name = "DIR", env = "LAPSTRAKE_CDI_SPEC_DIRS", value_delimiter = ':')]
    device_dirs: Vec<PathBuf>,
    /// Rules about what the build may bring from outside, and what is taken in its place: JSON as
    /// `buildctl --source-policy-file` reads it; may be given several times.
    #[arg(long = "source-policy-file", value_name = "FILE")]
    source_policies: Vec<PathBuf>,
    /// Certificates (PEM) for steps, see --step-certificates: a file, or a directory of them. The builder itself trusts the
    /// machine's and those of --registries.
    #[arg(long = "certificate", value_name = "FILE")]
    certificates: Vec<String>,
    /// Steps trust those certificates too. Nothing of them is left in the image.
    #[arg(long)]
    step_certificates: bool,
}

impl InputArgs {
    /// Adds what the command line gives; what it names wins over what is there.
    pub(crate) fn add_to(&self, inputs: &mut Inputs) -> Result<(), String> {
        let mut secrets = self.secrets.iter().map(|text| secret(text)).collect::<Result<Vec<_>, _>>()?;
        secrets.append(&mut inputs.secrets);
        inputs.secrets = secrets;
        for text in &self.ssh {
            let agent = agent(text)?;
            inputs.ssh.retain(|other| other.id != agent.id);
            inputs.ssh.push(agent);
        }
        for text in &self.known_hosts {
            known_hosts(text, &mut inputs.ssh)?;
        }
        match self.network.as_deref() {
            None => {}
            Some("default") => inputs.network = StepNetwork::Default,
            Some("none") => inputs.network = StepNetwork::None,
            Some("host") => inputs.network = StepNetwork::Host,
            Some(other) => {
                return Err(format!("--network {other}: it is one of default, none and host"));
            }
        }
        let policies =
            self.source_policies.iter().map(|path| policy::read(path)).collect::<Result<Vec<_>, _>>();
        let policies = policies.map_err(|e| e.to_string())?;
        let policies = Policies::new(&policies).map_err(|e| format!("--source-policy-file: {e}"))?;
        inputs.policies = policies.and(&inputs.policies);
        inputs.device_dirs.extend(self.device_dirs.iter().cloned());
        for text in &self.allow {
            match text.as_str() {
                "network.host" => inputs.allow.push(Allow::NetworkHost),
                "security.insecure" => inputs.insecure = true,
                "device" => drop(inputs.devices.insert(String::new())),
                other => match other.strip_prefix("device=").filter(|name| !name.contains(',')) {
                    Some(name) => drop(inputs.devices.insert(name.to_owned())),
                    None => {
                        let known = "network.host, security.insecure, device, device=VENDOR/CLASS[=NAME]";
                        return Err(format!("--allow {other}: what can be allowed is {known}"));
                    }
                },
            }
        }
        for path in &self.certificates {
            if !Path::new(path).exists() {
                return Err(format!("--certificate {path}: no such file"));
            }
            inputs.certificates.files.push(path.clone());
        }
        inputs.certificates.in_steps |= self.step_certificates;
        if self.step_certificates && inputs.certificates.files.is_empty() {
            return Err("--step-certificates: name the certificates with --certificate FILE".to_owned());
        }
        Ok(())
    }
}

fn secret(text: &str) -> Result<SecretSource, String> {
    let wrong = |why: String| format!("--secret {text}: {why}");
    let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
    for field in text.split(',') {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| wrong(format!("invalid field '{field}' must be a key=value pair")))?;
        match key.to_ascii_lowercase().as_str() {
            "id" => id = Some(value),
            "src" | "source" => file = Some(value),
            "env" => variable = Some(value),
            "type" if matches!(value, "file" | "env") => kind = Some(value),
            "type" => return Err(wrong(format!("unsupported secret type '{value}': it is file or env"))),
            _ => return Err(wrong(format!("unexpected key '{key}': keys are id, src, env and type"))),
        }
    }
    let id = id.filter(|id| !id.is_empty()).ok_or_else(|| wrong("it needs an id".to_owned()))?.to_owned();
    // As buildx: of type env, `src` names the variable.
    if kind == Some("env") && variable.is_none() {
        variable = file.take().or(Some(&id));
    }
    if file.is_none() && variable.is_none() {
        // As BuildKit: a variable of that name, else a file.
        match std::env::var_os(&id) {
            Some(_) if kind.is_none() => variable = Some(&id),
            _ => file = Some(&id),
        }
    }
    match (file, variable) {
        (Some(_), Some(_)) => Err(wrong("src and env exclude each other".to_owned())),
        (_, Some(name)) => Ok(SecretSource::Variable { name: name.to_owned(), id }),
        (file, None) => {
            let path = PathBuf::from(file.unwrap_or_default());
            // Told now, not after half of the build.
            std::fs::metadata(&path).map_err(|e| wrong(format!("{}: {e}", path.display())))?;
            Ok(SecretSource::File { path, id })
        }
    }
}

fn agent(text: &str) -> Result<SshSource, String> {
    let wrong = |why: String| format!("--ssh {text}: {why}");
    let (id, paths) = text.split_once('=').unwrap_or((text, ""));
    if id.is_empty() {
        return Err(wrong("it needs an id, as in --ssh default".to_owned()));
    }
    let mut paths: Vec<PathBuf> = paths.split(',').filter(|p| !p.is_empty()).map(PathBuf::from).collect();
    if paths.is_empty() {
        let socket =
            std::env::var_os("SSH_AUTH_SOCK").filter(|socket| !socket.is_empty()).ok_or_else(|| {
                wrong(
                    "no agent: SSH_AUTH_SOCK is not set; start one (ssh-agent), or name a key file"
                        .to_owned(),
                )
            })?;
        paths.push(socket.into());
    }
    let mut sockets = 0;
    for path in &paths {
        let kind = std::fs::metadata(path).map_err(|e| wrong(format!("{}: {e}", path.display())))?;
        sockets += usize::from(kind.file_type().is_socket());
    }
    let from = match (sockets, paths.len()) {
        (0, _) => SshFrom::Keys(paths),
        (1, 1) => SshFrom::Socket(paths.remove(0)),
        (_, all) if sockets == all => return Err(wrong("only one socket is allowed".to_owned())),
        _ => return Err(wrong("a socket and key files exclude each other".to_owned())),
    };
    if let SshFrom::Keys(keys) = &from {
        // Told now: a passphrase, or the public part in place of the private one.
        lapstrake_ssh::Key::open_all(keys).map_err(|e| wrong(crate::error::chain(&e)))?;
    }
    Ok(SshSource { id: id.to_owned(), from, known_hosts: None })
}

fn known_hosts(text: &str, agents: &mut [SshSource]) -> Result<(), String> {
    let wrong = |why: String| format!("--ssh-known-hosts {text}: {why}");
    let (id, path) = text.split_once('=').unwrap_or(("default", text));
    let path = PathBuf::from(path);
    std::fs::metadata(&path).map_err(|e| wrong(format!("{}: {e}", path.display())))?;
    let agent = agents.iter_mut().find(|agent| agent.id == id);
    agent.ok_or_else(|| wrong(format!("there is no agent {id}: give --ssh {id}")))?.known_hosts =
        Some(KnownHosts::File(path));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_read_as_buildx_reads_them() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("token");
        std::fs::write(&path, "x").expect("written");
        let file = |id: &str| SecretSource::File { id: id.to_owned(), path: path.clone() };
        let at = path.display();
        for text in [format!("id=a,src={at}"), format!("type=file,source={at},ID=a")] {
            assert_eq!(secret(&text), Ok(file("a")), "{text}");
        }
        let variable = |name: &str| SecretSource::Variable { id: "PATH".to_owned(), name: name.to_owned() };
        for (text, name) in [
            ("id=PATH,env=A", "A"),
            ("id=PATH,type=env,src=A", "A"),
            ("id=PATH", "PATH"),
            ("id=PATH,type=env", "PATH"),
        ] {
            assert_eq!(secret(text), Ok(variable(name)), "{text}");
        }
        for (text, why) in [
            ("a", "key=value"),
            ("src=/x", "needs an id"),
            ("id=a,src=/no/such/file", "/no/such/file"),
            ("id=no-such-file", "no-such-file: No such file"),
            ("id=a,type=vault", "unsupported secret type 'vault'"),
            ("id=a,mode=1", "unexpected key 'mode'"),
            ("id=a,src=/x,env=B", "exclude each other"),
        ] {
            let error = secret(text).expect_err(text);
            assert!(error.contains(why) && error.starts_with("--secret"), "{error}");
        }
    }

    #[test]
    fn what_is_allowed_is_read_as_buildx_reads_it() {
        let allow = ["network.host", "security.insecure", "device=a/b", "device"].map(str::to_owned).to_vec();
        let mut inputs = Inputs::default();
        InputArgs { allow, ..InputArgs::default() }.add_to(&mut inputs).expect("valid");
        assert!(inputs.insecure && inputs.allows_host_network());
        assert_eq!(inputs.devices.into_iter().collect::<Vec<_>>(), ["", "a/b"]);
    }

    #[test]
    fn mistakes_with_agents_networks_and_leaves_are_told() {
        for (text, why) in
            [("=x", "needs an id"), ("a=/no/such/key", "/no/such/key"), ("a=/etc/passwd", "no private key")]
        {
            let error = agent(text).expect_err(text);
            assert!(error.contains(why), "{error}");
        }
        let refused = |args: InputArgs| args.add_to(&mut Inputs::default()).expect_err("refused");
        let args = InputArgs { network: Some("bridge".to_owned()), ..InputArgs::default() };
        assert!(refused(args).contains("default, none and host"));
        let args = InputArgs { allow: vec!["security.none".to_owned()], ..InputArgs::default() };
        assert!(refused(args).contains("network.host, security.insecure, device"));
        let args = InputArgs { known_hosts: vec!["a=/etc/passwd".to_owned()], ..InputArgs::default() };
        assert!(refused(args).contains("there is no agent a"));
        let args = InputArgs { step_certificates: true, ..InputArgs::default() };
        assert!(refused(args).contains("--certificate FILE"));
    }
}
