//! Reads cases and prints what comes of them.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use lapstrake_dockerfile::{Capabilities, Images, NoCache, Options, Plan, ResolvedImage, Style, parse, plan};
use lapstrake_llb::{Graph, description, pb};
use lapstrake_oci::{Digest, ImageConfig};
use prost::Message as _;

/// A case's Dockerfile and options.
pub(crate) struct Case {
    pub(crate) text: String,
    pub(crate) options: Options,
    pub(crate) show_ast: bool,
}

impl Case {
    pub(crate) fn read(dir: &Path) -> Self {
        let text = std::fs::read_to_string(dir.join("Dockerfile")).expect("case has a Dockerfile");
        let lines = std::fs::read_to_string(dir.join("options")).unwrap_or_default();
        Self::with(text, &lines)
    }

    /// A text without options.
    pub(crate) fn of(text: String) -> Self {
        Self::with(text, "")
    }

    fn with(text: String, lines: &str) -> Self {
        let mut options = Options {
            target_platform: Some("linux/amd64".parse().expect("valid")),
            capabilities: Capabilities::ALL,
            ..Options::default()
        };
        let mut show_ast = false;
        for line in lines.lines() {
            let (key, value) = line.split_once(' ').unwrap_or((line, ""));
            let (name, rest) = value.split_once('=').unwrap_or((value, ""));
            match key {
                "arg" => drop(options.build_args.insert(name.to_owned(), rest.to_owned())),
                "label" => drop(options.labels.insert(name.to_owned(), rest.to_owned())),
                "target" => options.target = Some(value.to_owned()),
                "platform" => options.target_platform = Some(value.parse().expect("valid")),
                "multi" => options.multi_platform = true,
                "no-cache" if value.is_empty() => options.no_cache = NoCache::All,
                "no-cache" => options.no_cache = NoCache::Stages(vec![value.to_owned()]),
                "small" => options.capabilities = Capabilities::default(),
                "ast" => show_ast = true,
                other => panic!("unknown option {other}"),
            }
        }
        Self { text, options, show_ast }
    }
}

/// Configs for whatever is asked: `onbuild` has triggers, `rich` has a bit of everything.
pub(crate) fn resolve(plan: &Plan) -> Images {
    plan.images_assumed(Images::new(), |request| {
        let config = config(request.key.reference.repository(), &request.key.platform);
        ResolvedImage { digest: format!("sha256:{}", "2".repeat(64)).parse().ok(), config, instead: None }
    })
}

fn config(name: &str, platform: &lapstrake_oci::Platform) -> ImageConfig {
    let mut image = ImageConfig::of_platform(platform);
    let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    image.config.env = own(&["PATH=/usr/bin:/bin", "BASE=1"]);
    image.config.cmd = Some(own(&["sh"]));
    let layer: Digest = format!("sha256:{}", "1".repeat(64)).parse().expect("valid");
    image.rootfs.diff_ids = vec![layer];
    image.history =
        vec![lapstrake_oci::History { created_by: Some("base".to_owned()), ..Default::default() }];
    if name.contains("onbuild") {
        image.config.on_build = own(&["COPY . /app", "RUN make"]);
    }
    if name.contains("other-platform") {
        image.architecture = "s390x".to_owned();
    }
    if name.contains("rich") {
        image.config.user = "app:1000".to_owned();
        image.config.working_dir = "/srv".to_owned();
        image.config.entrypoint = Some(own(&["/entry"]));
        image.config.labels = [("a".to_owned(), "b".to_owned())].into();
        image.config.shell = own(&["/bin/bash", "-c"]);
    }
    image
}

/// Everything about a case as text.
pub(crate) fn report(case: &Case) -> String {
    let parsed = parse("Dockerfile", &case.text);
    let mut out = String::new();
    if case.show_ast {
        let ast = serde_json::to_string_pretty(&parsed.ast).expect("serializable");
        let _ = writeln!(out, "== tree\n{ast}");
    }
    let plan = match plan(&parsed, &case.options) {
        Ok(plan) => plan,
        Err(findings) => {
            let _ = writeln!(out, "== refused\n{}== short\n{findings}", findings.render(Style::Plain));
            return out;
        }
    };
    let images = resolve(&plan);
    let lowered = match plan.lower(&images) {
        Ok(lowered) => lowered,
        Err(findings) => {
            let _ = writeln!(out, "== refused\n{}== short\n{findings}", findings.render(Style::Plain));
            return out;
        }
    };
    if !lowered.warnings.is_empty() {
        let _ = writeln!(out, "== warnings\n{}", lowered.warnings.render(Style::Plain));
    }
    for key in images.keys() {
        let _ = writeln!(out, "== needs {} {}", key.reference, key.platform);
    }
    let _ = writeln!(out, "== context {:?}", lowered.context);
    let _ = writeln!(out, "== graph ({} stages, {} steps)", lowered.stages, lowered.steps);
    out.push_str(&graph(&lowered.definition));
    let config = serde_json::to_string_pretty(&lowered.config).expect("serializable");
    let _ = writeln!(out, "== config\n{config}");
    out
}

/// Identity and name of each vertex, with operations encoded as Go does: the kind of operation last.
pub(crate) fn identities(definition: &pb::Definition) -> Vec<String> {
    let graph = Graph::decode(definition).expect("a valid graph");
    let mut digests = BTreeMap::new();
    let mut out = Vec::new();
    for vertex in graph.vertices() {
        let input = |o: &lapstrake_llb::Output| pb::Input {
            digest: format!("sha256:{}", digests[&o.vertex]),
            index: i64::from(o.index),
        };
        let head = pb::Op {
            inputs: vertex.inputs.iter().map(input).collect(),
            op: None,
            platform: vertex.platform.clone(),
            constraints: Some(pb::WorkerConstraints::default()),
        };
        let mut bytes = head.encode_to_vec();
        bytes.extend(pb::Op { op: Some(vertex.op.clone()), ..pb::Op::default() }.encode_to_vec());
        let digest = Digest::of(&bytes).hex();
        let name = vertex.metadata.description.get(description::CUSTOM_NAME).cloned().unwrap_or_default();
        out.push(format!("{} {name}", &digest[..16]));
        digests.insert(vertex.digest, digest);
    }
    out.extend(graph.target().map(|t| format!("target {}", &digests[&t.vertex][..16])));
    out
}

fn graph(definition: &pb::Definition) -> String {
    let graph = Graph::decode(definition).expect("a valid graph");
    let mut out = String::new();
    let number = |digest| graph.vertices().iter().position(|v| v.digest == digest).unwrap_or(usize::MAX);
    for (index, vertex) in graph.vertices().iter().enumerate() {
        let lines: Vec<_> =
            vertex.locations.iter().map(|l| format!("{}-{}", l.first_line, l.last_line)).collect();
        let _ = writeln!(out, "#{index} {:?} {}", vertex.name(), lines.join(","));
        let platform =
            vertex.platform.as_ref().map(|p| format!(" {}/{} {}", p.os, p.architecture, p.variant));
        let inputs: Vec<_> =
            vertex.inputs.iter().map(|i| format!("#{}:{}", number(i.vertex), i.index)).collect();
        let ignore = if vertex.metadata.ignore_cache { " no-cache" } else { "" };
        let _ = writeln!(
            out,
            "   {} inputs [{}]{}{ignore}",
            &vertex.digest.0.hex()[..16],
            inputs.join(" "),
            platform.unwrap_or_default()
        );
        operation(&mut out, &vertex.op);
    }
    if let Some(target) = graph.target() {
        let _ = writeln!(out, "target #{}:{}", number(target.vertex), target.index);
    }
    out
}

fn operation(out: &mut String, op: &pb::op::Op) {
    match op {
        pb::op::Op::Source(source) => {
            let _ = writeln!(out, "   source {} {:?}", source.identifier, source.attrs);
        }
        pb::op::Op::Exec(exec) => {
            let meta = exec.meta.clone().unwrap_or_default();
            let _ = writeln!(out, "   exec {:?}", meta.args);
            let _ = writeln!(out, "   env {:?} cwd {:?} user {:?}", meta.env, meta.cwd, meta.user);
            if let Some(proxy) = &meta.proxy_env {
                let _ = writeln!(out, "   {proxy:?}");
            }
            if exec.network != 0 || exec.security != 0 {
                let _ = writeln!(out, "   network {} security {}", exec.network, exec.security);
            }
            for mount in &exec.mounts {
                let kind = pb::MountType::try_from(mount.mount_type).expect("known").as_str_name();
                let _ = write!(out, "   {kind} {} from {}{}", mount.dest, mount.input, mount.selector);
                let _ = write!(out, " to {}{}", mount.output, if mount.readonly { " ro" } else { "" });
                let opts = (&mount.cache_opt, &mount.secret_opt, &mount.ssh_opt, &mount.tmpfs_opt);
                match opts {
                    (Some(o), ..) => writeln!(out, " {o:?}"),
                    (_, Some(o), ..) => writeln!(out, " {o:?}"),
                    (_, _, Some(o), _) => writeln!(out, " {o:?}"),
                    (.., Some(o)) => writeln!(out, " {o:?}"),
                    _ => writeln!(out),
                }
                .expect("a string");
            }
            for secret in &exec.secretenv {
                let _ = writeln!(out, "   {secret:?}");
            }
            for device in &exec.cdi_devices {
                let _ = writeln!(out, "   {device:?}");
            }
        }
        pb::op::Op::File(file) => {
            for action in &file.actions {
                let _ = write!(out, "   {}+{} -> {}: ", action.input, action.secondary_input, action.output);
                let _ = match &action.action {
                    Some(pb::file_action::Action::Copy(copy)) => writeln!(out, "{}", copy_text(copy)),
                    Some(pb::file_action::Action::Mkfile(make)) => {
                        let text = String::from_utf8_lossy(&make.data);
                        writeln!(out, "mkfile {} {:o} {text:?} {}", make.path, make.mode, make.timestamp)
                    }
                    other => writeln!(out, "{other:?}"),
                };
            }
        }
        other => {
            let _ = writeln!(out, "   {other:?}");
        }
    }
}

fn copy_text(copy: &pb::FileActionCopy) -> String {
    let flags = [
        (copy.follow_symlink, "follow"),
        (copy.dir_copy_contents, "contents"),
        (copy.attempt_unpack_docker_compatibility, "unpack"),
        (copy.create_dest_path, "parents"),
        (copy.allow_wildcard, "wildcard"),
        (copy.allow_empty_wildcard, "empty-wildcard"),
        (copy.always_replace_existing_dest_paths, "replace"),
    ];
    let flags: Vec<_> = flags.iter().filter(|(on, _)| *on).map(|(_, name)| *name).collect();
    let mut out = format!("copy {:?} {:?} [{}] mode {}", copy.src, copy.dest, flags.join(" "), copy.mode);
    if !copy.mode_str.is_empty() {
        let _ = write!(out, " {:?}", copy.mode_str);
    }
    for (name, list) in [
        ("include", &copy.include_patterns),
        ("exclude", &copy.exclude_patterns),
        ("required", &copy.required_paths),
    ] {
        if !list.is_empty() {
            let _ = write!(out, " {name} {list:?}");
        }
    }
    if let Some(owner) = &copy.owner {
        let _ = write!(out, " owner {:?} {:?}", owner.user, owner.group);
    }
    out
}
