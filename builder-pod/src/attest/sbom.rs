//! Lists of what is in an image: the step that has a scanner write one, and what is added to what it wrote.
//!
//! The protocol is BuildKit's: the scanner is an image whose program finds file systems below `/run/src` and writes statements to
//! `/run/out`.

use std::collections::{BTreeMap, HashSet};

use lapstrake_llb::pb;
use lapstrake_oci::{ContainerConfig, Digest, Reference};
use prost::Message as _;
use serde_json::{Value, json};

/// Kind of such a list.
pub(crate) const SPDX: &str = "https://spdx.dev/Document";
/// What the image itself is called among what is scanned.
pub(crate) const CORE: &str = "sbom";
/// Where scanners find it.
const SOURCE: &str = "/run/src/core/sbom";
/// Where they find the rest.
const EXTRAS: &str = "/run/src/extras";
/// Where they write to.
const OUT: &str = "/run/out/";

/// A scanner that was found.
pub(crate) struct Scanner<'a> {
    /// The image.
    pub(crate) name: &'a Reference,
    /// What it starts with.
    pub(crate) config: &'a ContainerConfig,
    /// The platform that it runs on.
    pub(crate) platform: pb::Platform,
    /// What it is told.
    pub(crate) parameters: &'a BTreeMap<String, String>,
}

impl Scanner<'_> {
    /// The definition of what the scanner writes about the result of another one. `extras` are further file systems by their names;
    /// `id` is the platform that it is for.
    ///
    /// # Errors
    /// Where a definition is none, or the scanner has no program.
    pub(crate) fn scan(
        &self,
        id: &str,
        of: &pb::Definition,
        extras: &BTreeMap<String, pb::Definition>,
        ignore_cache: bool,
    ) -> Result<pb::Definition, String> {
        let config = self.config;
        let args: Vec<String> =
            [&config.entrypoint, &config.cmd].into_iter().flatten().flatten().cloned().collect();
        if args.is_empty() {
            return Err(format!("scanner {} does not have cmd", self.name));
        }
        let mut all = Joined::default();
        let core = all.add(of)?.ok_or("there is nothing to be scanned")?;
        let image = pb::Op {
            op: Some(pb::op::Op::Source(pb::SourceOp {
                identifier: format!("docker-image://{}", whole(self.name)),
                ..Default::default()
            })),
            platform: Some(self.platform.clone()),
            constraints: Some(pb::WorkerConstraints::default()),
            ..Default::default()
        };
        let mut step = Step { inputs: vec![all.op(&image)], mounts: vec![mount("/", 0, 0, false)] };
        step.mounts.push(pb::Mount {
            mount_type: pb::MountType::Tmpfs.into(),
            tmpfs_opt: Some(pb::TmpfsOpt::default()),
            ..mount("/tmp", -1, -1, false)
        });
        step.read(SOURCE, core);
        for (name, definition) in extras {
            if let Some(extra) = all.add(definition)? {
                step.read(&format!("{EXTRAS}/sbom-{name}"), extra);
            }
        }
        step.mounts.push(mount(OUT.trim_end_matches('/'), -1, 1, false));
        let cwd = if config.working_dir.is_empty() { "/" } else { &config.working_dir };
        let exec = pb::ExecOp {
            meta: Some(pb::Meta {
                args,
                env: self.environment(!extras.is_empty()),
                cwd: cwd.to_owned(),
                remove_mount_stubs_recursive: true,
                ..Default::default()
            }),
            mounts: step.mounts,
            ..Default::default()
        };
        let exec = pb::Op {
            inputs: step.inputs,
            op: Some(pb::op::Op::Exec(exec)),
            platform: Some(self.platform.clone()),
            constraints: Some(pb::WorkerConstraints::default()),
        };
        let name = format!("[{id}] generating sbom using {}", whole(self.name));
        let scanned = all.op(&exec);
        let description = [(lapstrake_llb::description::CUSTOM_NAME.to_owned(), name)].into();
        let metadata = pb::OpMetadata { ignore_cache, description, ..Default::default() };
        all.definition.metadata.insert(scanned.digest.clone(), metadata);
        let pointer = pb::Op { inputs: vec![pb::Input { index: 1, ..scanned }], ..Default::default() };
        all.definition.def.push(pointer.encode_to_vec());
        Ok(all.definition)
    }

    fn environment(&self, has_extras: bool) -> Vec<String> {
        let mut told = vec![
            ("BUILDKIT_SCAN_DESTINATION".to_owned(), OUT.to_owned()),
            ("BUILDKIT_SCAN_SOURCE".to_owned(), SOURCE.to_owned()),
        ];
        if has_extras {
            told.push(("BUILDKIT_SCAN_SOURCE_EXTRAS".to_owned(), EXTRAS.to_owned()));
        }
        let parameters = self.parameters.iter();
        told.extend(parameters.map(|(name, value)| (format!("BUILDKIT_SCAN_{name}"), value.clone())));
        let set = |name: &str| told.iter().any(|(known, _)| known == name);
        let own = self.config.env.iter().filter(|pair| !set(pair.split('=').next().unwrap_or_default()));
        own.cloned().chain(told.iter().map(|(name, value)| format!("{name}={value}"))).collect()
    }
}

struct Step {
    inputs: Vec<pb::Input>,
    mounts: Vec<pb::Mount>,
}

impl Step {
    /// Gives it something to read.
    fn read(&mut self, dest: &str, from: pb::Input) {
        let known = self.inputs.iter().position(|input| *input == from);
        let at = known.unwrap_or_else(|| {
            self.inputs.push(from);
            self.inputs.len() - 1
        });
        self.mounts.push(mount(dest, i64::try_from(at).unwrap_or(-1), -1, true));
    }
}

fn mount(dest: &str, input: i64, output: i64, readonly: bool) -> pb::Mount {
    pb::Mount { dest: dest.to_owned(), input, output, readonly, ..Default::default() }
}

fn whole(name: &Reference) -> String {
    match (name.tag(), name.digest()) {
        (None, None) => format!("{name}:latest"),
        _ => name.to_string(),
    }
}

/// Operations of several definitions, each once.
#[derive(Default)]
struct Joined {
    definition: pb::Definition,
    known: HashSet<Digest>,
}

impl Joined {
    /// Adds all of a definition; what its result is. None for the empty file system.
    fn add(&mut self, of: &pb::Definition) -> Result<Option<pb::Input>, String> {
        let Some((pointer, ops)) = of.def.split_last() else { return Ok(None) };
        for bytes in ops {
            if self.known.insert(Digest::of(bytes)) {
                self.definition.def.push(bytes.clone());
            }
        }
        self.definition.metadata.extend(of.metadata.clone());
        let pointer = pb::Op::decode(pointer.as_slice()).map_err(|e| e.to_string())?;
        Ok(pointer.inputs.first().cloned())
    }

    /// Adds an operation; its first result.
    fn op(&mut self, op: &pb::Op) -> pb::Input {
        let bytes = op.encode_to_vec();
        let digest = Digest::of(&bytes);
        if self.known.insert(digest) {
            self.definition.def.push(bytes);
        }
        pb::Input { digest: digest.to_string(), index: 0 }
    }
}

/// Adds to a list of what is in an image who added to it, and to each of its files the layer that it is in; `layer_of` knows.
/// What is no such list stays as it is.
pub(crate) fn supplement(document: &mut Value, layer_of: &mut dyn FnMut(&str) -> Option<Digest>) {
    if document.get("spdxVersion").and_then(Value::as_str).is_none() {
        return;
    }
    let files = document.get_mut("files").and_then(Value::as_array_mut);
    for file in files.into_iter().flatten() {
        let said = file.get("comment").and_then(Value::as_str).is_some_and(|text| !text.is_empty());
        let name = file.get("fileName").and_then(Value::as_str).filter(|_| !said);
        let layer = name.map(str::to_owned).and_then(|name| layer_of(&name));
        if let (Some(layer), Some(file)) = (layer, file.as_object_mut()) {
            file.insert("comment".to_owned(), json!(format!("layerID: {layer}")));
        }
    }
    if let Some(document) = document.as_object_mut() {
        let info = document.entry("creationInfo").or_insert_with(|| json!({}));
        let info = info.as_object_mut().map(|info| info.entry("creators").or_insert_with(|| json!([])));
        if let Some(creators) = info.and_then(Value::as_array_mut) {
            creators.push(json!(format!("Tool: lapstrake-{}", env!("CARGO_PKG_VERSION"))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> pb::Definition {
        let source = pb::SourceOp { identifier: text.to_owned(), ..Default::default() };
        let op = pb::Op { op: Some(pb::op::Op::Source(source)), ..Default::default() };
        let mut all = Joined::default();
        let input = all.op(&op);
        let pointer = pb::Op { inputs: vec![input], ..Default::default() };
        all.definition.def.push(pointer.encode_to_vec());
        all.definition
    }

    fn scanned(extras: &[(&str, pb::Definition)]) -> (lapstrake_llb::Graph, pb::ExecOp) {
        let config = ContainerConfig {
            entrypoint: Some(vec!["/scan".to_owned()]),
            env: vec!["PATH=/bin".to_owned(), "BUILDKIT_SCAN_X=0".to_owned()],
            ..Default::default()
        };
        let parameters = BTreeMap::from([("X".to_owned(), "1".to_owned())]);
        let scanner = Scanner {
            name: &"h.example/scanner".parse().expect("a name"),
            config: &config,
            platform: pb::Platform::default(),
            parameters: &parameters,
        };
        let extras = extras.iter().map(|(name, of)| ((*name).to_owned(), of.clone())).collect();
        let made =
            scanner.scan("linux/amd64", &of("docker-image://x"), &extras, true).expect("it can be scanned");
        let graph = lapstrake_llb::Graph::decode(&made).expect("a graph");
        let target = graph.target().expect("it has a result");
        assert_eq!(target.index, 1);
        let vertex = graph.vertex(target.vertex).expect("the step").clone();
        assert!(vertex.metadata.ignore_cache);
        assert_eq!(vertex.name(), "[linux/amd64] generating sbom using h.example/scanner:latest");
        let pb::op::Op::Exec(exec) = &vertex.op else { panic!("it is a step") };
        (graph, exec.clone())
    }

    #[test]
    fn a_scanner_finds_the_result_and_writes_beside_it() {
        let (graph, exec) = scanned(&[]);
        assert_eq!(graph.vertices().len(), 3);
        let dests: Vec<_> = exec.mounts.iter().map(|mount| (mount.dest.as_str(), mount.readonly)).collect();
        assert_eq!(dests, [("/", false), ("/tmp", false), (SOURCE, true), ("/run/out", false)]);
        let env = exec.meta.expect("it has a program").env;
        assert!(
            env.contains(&"BUILDKIT_SCAN_X=1".to_owned()) && !env.contains(&"BUILDKIT_SCAN_X=0".to_owned())
        );
        assert!(!env.iter().any(|pair| pair.starts_with("BUILDKIT_SCAN_SOURCE_EXTRAS")));
    }

    #[test]
    fn further_file_systems_stand_beside_the_result() {
        let (graph, exec) = scanned(&[("base", of("docker-image://y")), ("same", of("docker-image://x"))]);
        // What is the same stands once.
        assert_eq!(graph.vertices().len(), 4);
        let dests: Vec<_> = exec.mounts.iter().map(|mount| mount.dest.as_str()).collect();
        assert!(dests.contains(&"/run/src/extras/sbom-base") && dests.contains(&"/run/src/extras/sbom-same"));
    }

    #[test]
    fn files_of_a_list_are_told_their_layers() {
        let mut document = json!({
            "spdxVersion": "SPDX-2.3",
            "files": [{ "fileName": "/a" }, { "fileName": "/b", "comment": "mine" }, { "fileName": "/gone" }],
        });
        let layer = Digest::of(b"layer");
        supplement(&mut document, &mut |name| (name != "/gone").then_some(layer));
        assert_eq!(document["files"][0]["comment"], json!(format!("layerID: {layer}")));
        assert_eq!(document["files"][1]["comment"], json!("mine"));
        assert!(document["files"][2].get("comment").is_none());
        assert_eq!(document["creationInfo"]["creators"].as_array().map(Vec::len), Some(1));
        let mut other = json!({ "x": 1 });
        supplement(&mut other, &mut |_| None);
        assert_eq!(other, json!({ "x": 1 }));
    }
}
