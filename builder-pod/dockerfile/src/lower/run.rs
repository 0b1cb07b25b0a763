//! `RUN`.

use lapstrake_llb::{description, pb};

use crate::ast::Run;
use crate::diagnostic::Diagnostic;
use crate::expand::{Lexer, Lookup};
use crate::lower::config::with_shell;
use crate::lower::device::device;
use crate::lower::draft::{DraftOutput, Inputs, NO_INPUT, NO_OUTPUT, named, named_command, operation};
use crate::lower::env::Env;
use crate::lower::mount::Lowered as LoweredMount;
use crate::lower::name::shown;
use crate::lower::path;
use crate::lower::stage::{At, Current, Lower, Lowering};
use crate::lower::state::State;
use crate::options::{Network, Options};
use crate::plan::From;
use crate::words;

/// A command line as it is run, and what progress adds to its name.
struct CommandLine {
    args: Vec<String>,
    /// Mount of an inline script.
    script: Option<DraftOutput>,
    summary: Option<String>,
}

impl Lowering<'_> {
    pub(super) fn run_step(&mut self, current: &mut Current, at: &At<'_>, run: &Run) -> Lower<()> {
        let security = self.security(run)?;
        if let Some(device) = run.devices.first().filter(|_| !self.plan.options.capabilities.devices) {
            return Err(Box::new(Diagnostic::not_yet(device.span, "RUN --device")));
        }
        let options = &self.plan.options;
        let devices = run.devices.iter().map(|word| device(word, options)).collect::<Lower<Vec<_>>>()?;
        if let Some(word) = &run.network
            && word.text == "host"
            && !self.plan.options.capabilities.host_network
        {
            return Err(Box::new(Diagnostic::not_yet(word.span, "RUN --network=host")));
        }
        if let Some(word) = &run.network
            && word.text == "host"
            && !self.plan.options.allow_host_network
        {
            let finding = Diagnostic::error("network-host", word.span, "network.host is not allowed");
            let help = "allow it for this build (--allow network.host), or leave --network=host out";
            return Err(Box::new(finding.help(help)));
        }
        let line = self.command_line(current, at, run)?;
        let mut mounts = Vec::new();
        for (index, word) in run.mounts.iter().enumerate() {
            let from = at.step.from.get(index).unwrap_or(&From::Default);
            mounts.push(self.mount(current, at, word, from)?);
        }
        let network =
            run.network.as_ref().map_or(self.plan.options.network, |word| match word.text.as_str() {
                "none" => Network::None,
                "host" => Network::Host,
                _ => self.plan.options.network,
            });
        let name = self.run_name(current, at, run, &line, &mounts);
        let history = history(&line.args, &current.state);
        self.graph.spend(current.state.env.bytes() + history.len());
        let (mut exec, inputs) = self.exec(&current.state, line, mounts, network, security);
        exec.cdi_devices = devices;
        let op = operation(pb::op::Op::Exec(exec), Some(&current.state.platform));
        let mut metadata = named_command(&name, at.text());
        metadata.ignore_cache = current.ignore_cache;
        let resources = &self.plan.options.resources;
        if !resources.is_empty() {
            metadata.description.insert(description::RESOURCES.to_owned(), resources.to_string());
        }
        let output = self.graph.add(op, inputs.0, metadata, at.lines());
        current.state.output = Some(output);
        current.state.record(history, true, true, self.plan.epoch);
        Ok(())
    }

    fn security(&self, run: &Run) -> Lower<pb::SecurityMode> {
        let Some(word) = run.security.as_ref().filter(|word| word.text == "insecure") else {
            return Ok(pb::SecurityMode::Sandbox);
        };
        if !self.plan.options.capabilities.insecure {
            return Err(Box::new(Diagnostic::not_yet(word.span, "RUN --security=insecure")));
        }
        if !self.plan.options.allow_insecure {
            let finding =
                Diagnostic::error("security-insecure", word.span, "security.insecure is not allowed");
            let help =
                "allow it for this build (--allow security.insecure), or leave --security=insecure out";
            return Err(Box::new(finding.help(help)));
        }
        Ok(pb::SecurityMode::Insecure)
    }

    /// The arguments, with heredocs in their places.
    fn command_line(&mut self, current: &Current, at: &At<'_>, run: &Run) -> Lower<CommandLine> {
        let state = &current.state;
        if run.command.exec {
            let args: Vec<_> = run.command.args.iter().map(|w| w.text.clone()).collect();
            if args.is_empty() {
                let span = at.instruction.keyword.span;
                let message = "RUN needs a command: its JSON array is empty";
                return Err(Box::new(Diagnostic::error("empty-run", span, message)));
            }
            return Ok(CommandLine { args, script: None, summary: None });
        }
        let text = run.command.args.first().map_or("", |word| word.text.as_str());
        let Some(first) = run.heredocs.first() else {
            return Ok(CommandLine { args: with_shell(state, text), script: None, summary: None });
        };
        if words::heredoc(text).is_none() {
            // The shell handles them: the text is put together again.
            let mut script = text.to_owned();
            for heredoc in &run.heredocs {
                script.push_str(&format!("\n{}{}", heredoc.body, heredoc.name));
            }
            return Ok(CommandLine { args: with_shell(state, &script), script: None, summary: None });
        }
        let body = first.contents();
        let summary = Some(summary(&first.body));
        if state.image.os != "windows" && body.starts_with("#!") {
            let script = self.inline_file(&format!("/{}", first.name), 0o755, body.into_bytes());
            let target = path::join("/dev/pipes/", &first.name);
            // BuildKit puts the shell in front here as well.
            return Ok(CommandLine { args: with_shell(state, &target), script: Some(script), summary });
        }
        Ok(CommandLine { args: with_shell(state, &body), script: None, summary })
    }

    /// A file of the Dockerfile in a file system of its own.
    pub(super) fn inline_file(&mut self, path: &str, mode: i32, data: Vec<u8>) -> DraftOutput {
        let make = pb::FileActionMkFile { path: path::clean(path), mode, data, owner: None, timestamp: -1 };
        let action = pb::FileAction {
            input: NO_INPUT,
            secondary_input: NO_INPUT,
            output: 0,
            action: Some(pb::file_action::Action::Mkfile(make)),
        };
        let op = operation(pb::op::Op::File(pb::FileOp { actions: vec![action] }), None);
        self.graph.add(op, Vec::new(), named("[internal] preparing inline document"), None)
    }

    fn run_name(
        &self,
        current: &mut Current,
        at: &At<'_>,
        run: &Run,
        line: &CommandLine,
        mounts: &[LoweredMount],
    ) -> String {
        let mut text = at.text().to_owned();
        if let Some(summary) = line.summary.as_ref().filter(|_| !run.heredocs.is_empty()) {
            text.push_str(&format!(" ({summary})"));
        }
        let lexer = Lexer { raw_quotes: true, raw_escapes: true, keep_unset: true, ..self.lexer() };
        let secrets = mounts.iter().filter_map(|m| m.secret_env.as_ref()).map(|s| s.name.as_str()).collect();
        let Current { state, counter, .. } = current;
        let text = shown(&text, &lexer, &Masked { env: &state.env, secrets });
        counter.next(&text, &state.platform, Some(&state.env), at.step.trigger)
    }

    fn exec(
        &self,
        state: &State,
        line: CommandLine,
        lowered: Vec<LoweredMount>,
        network: Network,
        security: pb::SecurityMode,
    ) -> (pb::ExecOp, Inputs) {
        let options = &self.plan.options;
        let root = pb::Mount { input: NO_INPUT, dest: "/".to_owned(), ..pb::Mount::default() };
        let mut files = vec![(root, state.output)];
        if let Some(script) = line.script {
            let mount = pb::Mount {
                input: NO_INPUT,
                dest: "/dev/pipes/".to_owned(),
                output: NO_OUTPUT,
                selector: "/".to_owned(),
                readonly: true,
                ..pb::Mount::default()
            };
            files.push((mount, Some(script)));
        }
        let (mut secrets, mut ssh, mut secretenv) = (Vec::new(), Vec::new(), Vec::new());
        for LoweredMount { mount, input, secret_env } in lowered {
            secretenv.extend(secret_env);
            let Some(mount) = mount else { continue };
            match pb::MountType::try_from(mount.mount_type) {
                Ok(pb::MountType::Secret) => secrets.push(mount),
                Ok(pb::MountType::Ssh) => ssh.push(mount),
                _ => files.push((mount, input)),
            }
        }
        if options.shm_size_bytes > 0 {
            files.push((shm(options.shm_size_bytes), None));
        }
        let mut meta = meta(state, options, line.args);
        number_ssh(&mut ssh, &mut meta, state);
        let (mut mounts, inputs) = numbered(files);
        mounts.extend(secrets);
        mounts.extend(ssh);
        let network = match network {
            Network::Default => pb::NetMode::Unset,
            Network::None => pb::NetMode::None,
            Network::Host => pb::NetMode::Host,
        };
        let exec = pb::ExecOp {
            meta: Some(meta),
            mounts,
            network: network as i32,
            security: security as i32,
            secretenv,
            ..pb::ExecOp::default()
        };
        (exec, inputs)
    }
}

/// BuildKit's client sorts mounts by target, and gives the inputs their numbers in that order.
fn numbered(mut files: Vec<(pb::Mount, Option<DraftOutput>)>) -> (Vec<pb::Mount>, Inputs) {
    files.sort_by(|(a, _), (b, _)| a.dest.cmp(&b.dest));
    let mut inputs = Inputs::default();
    let number =
        |(mount, input): (pb::Mount, Option<DraftOutput>)| pb::Mount { input: inputs.index(input), ..mount };
    let mounts = files.into_iter().map(number).collect();
    (mounts, inputs)
}

fn shm(size: i64) -> pb::Mount {
    pb::Mount {
        input: NO_INPUT,
        dest: "/dev/shm".to_owned(),
        output: NO_OUTPUT,
        mount_type: pb::MountType::Tmpfs as i32,
        tmpfs_opt: Some(pb::TmpfsOpt { size }),
        ..pb::Mount::default()
    }
}

fn meta(state: &State, options: &Options, args: Vec<String>) -> pb::Meta {
    let ulimit = |u: &crate::options::Ulimit| pb::Ulimit { name: u.name.clone(), soft: u.soft, hard: u.hard };
    let host = |h: &crate::options::ExtraHost| pb::HostIp { host: h.host.clone(), ip: h.address.to_string() };
    pb::Meta {
        args,
        env: state.env.to_list(),
        cwd: state.dir.clone(),
        user: state.user.clone(),
        proxy_env: proxy(options),
        extra_hosts: options.extra_hosts.iter().map(host).collect(),
        hostname: options.hostname.clone(),
        ulimit: options.ulimits.iter().map(ulimit).collect(),
        cgroup_parent: options.cgroup_parent.clone(),
        remove_mount_stubs_recursive: true,
        ..pb::Meta::default()
    }
}

/// Sockets without a target get numbered ones, and the environment names the first.
fn number_ssh(ssh: &mut [pb::Mount], meta: &mut pb::Meta, state: &State) {
    for (index, mount) in ssh.iter_mut().enumerate() {
        if mount.dest.is_empty() {
            mount.dest = format!("/run/buildkit/ssh_agent.{index}");
        }
    }
    if let Some(first) = ssh.first()
        && state.env.get("SSH_AUTH_SOCK").is_none()
    {
        meta.env.push(format!("SSH_AUTH_SOCK={}", first.dest));
    }
}

/// Proxies of the build args; they are no part of what a step is.
fn proxy(options: &Options) -> Option<pb::ProxyEnv> {
    let mut out = pb::ProxyEnv::default();
    let mut any = false;
    for (name, value) in &options.build_args {
        let field = match name.to_ascii_lowercase().as_str() {
            "http_proxy" => &mut out.http_proxy,
            "https_proxy" => &mut out.https_proxy,
            "ftp_proxy" => &mut out.ftp_proxy,
            "no_proxy" => &mut out.no_proxy,
            "all_proxy" => &mut out.all_proxy,
            _ => continue,
        };
        field.clone_from(value);
        any = true;
    }
    any.then_some(out)
}

/// The text of the history entry: declared arguments with their values, then the command.
fn history(args: &[String], state: &State) -> String {
    let mut declared: Vec<(&str, &str)> = Vec::new();
    let mut places = std::collections::HashMap::new();
    for (name, value) in &state.args {
        let name = name.as_str();
        let value = state.env.get(name).or(value.as_deref()).unwrap_or("");
        match places.get(name) {
            Some(place) => declared[*place] = (name, value),
            None => {
                places.insert(name, declared.len());
                declared.push((name, value));
            }
        }
    }
    let mut words = Vec::new();
    if !declared.is_empty() {
        words.push(format!("|{}", declared.len()));
        words.extend(declared.iter().map(|(name, value)| format!("{name}={value}")));
    }
    words.extend(args.iter().cloned());
    format!("RUN {}", words.join(" "))
}

/// The first line of an inline script.
fn summary(body: &str) -> String {
    let body = body.trim();
    match body.split_once('\n') {
        Some((first, _)) => format!("{}...", first.trim_end_matches('\r')),
        None => body.to_owned(),
    }
}

/// The environment with the values of secrets masked.
struct Masked<'a> {
    env: &'a Env,
    secrets: Vec<&'a str>,
}

impl Lookup for Masked<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        if self.secrets.contains(&name) { Some("****") } else { self.env.get(name) }
    }
}
