//! The steps of a definition, as provenance tells them: numbered, inputs before what takes them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use lapstrake_llb::pb;
use lapstrake_llb::protojson::Form;
use lapstrake_oci::{Descriptor, Digest};
use prost::Message as _;
use serde_json::{Map, Value, json};

/// The steps of a result, and the files that they come from.
#[derive(Debug, Clone)]
pub(crate) struct Steps {
    numbered: Numbered,
    source: Option<Value>,
    /// From the lowest to the result: each adds one layer to those of the one before; with the number of its output.
    chain: Vec<(usize, i64)>,
    /// Whether the lowest of them is an image, which has layers of its own.
    begins_with_image: bool,
}

#[derive(Debug, Clone, Default)]
struct Numbered {
    steps: Vec<pb::Op>,
    numbers: BTreeMap<String, usize>,
}

/// Reads a definition.
///
/// # Errors
/// Where it is none.
pub(super) fn read(definition: &pb::Definition) -> Result<Steps, String> {
    let numbered = Numbered::read(definition)?;
    let source = definition.source.as_ref().map(|source| files(source, &numbered)).transpose()?.flatten();
    let (chain, begins_with_image) = numbered.chain();
    Ok(Steps { numbered, source, chain, begins_with_image })
}

impl Numbered {
    fn read(definition: &pb::Definition) -> Result<Self, String> {
        let mut ops = BTreeMap::new();
        let mut last = None;
        for bytes in &definition.def {
            let op =
                pb::Op::decode(bytes.as_slice()).map_err(|e| format!("failed to parse llb proto op: {e}"))?;
            let digest = Digest::of(bytes).to_string();
            last = Some(digest.clone());
            ops.insert(digest, op);
        }
        let Some(last) = last else { return Ok(Self::default()) };
        let mut numbered = Self::default();
        // Depth first, without recursion: a definition may be a chain of any length.
        let mut stack = vec![(last, false)];
        while let Some((digest, inputs_done)) = stack.pop() {
            if numbered.numbers.contains_key(&digest) {
                continue;
            }
            let op = ops.get(&digest).ok_or_else(|| format!("failed to find input {digest}"))?;
            if inputs_done {
                numbered.numbers.insert(digest, numbered.steps.len());
                numbered.steps.push(op.clone());
                continue;
            }
            stack.push((digest, true));
            stack.extend(op.inputs.iter().rev().map(|input| (input.digest.clone(), false)));
        }
        Ok(numbered)
    }

    fn number(&self, digest: &str) -> Option<usize> {
        self.numbers.get(digest).copied()
    }

    fn list(&self) -> Value {
        let step = |(number, op): (usize, &pb::Op)| {
            let inputs = op
                .inputs
                .iter()
                .filter_map(|input| Some(format!("step{}:{}", self.number(&input.digest)?, input.index)));
            let inputs: Vec<String> = inputs.collect();
            let mut step = json!({ "id": format!("step{number}"), "op": Form::Plain.op(&unnamed(op)) });
            if let (false, Some(step)) = (inputs.is_empty(), step.as_object_mut()) {
                step.insert("inputs".to_owned(), json!(inputs));
            }
            step
        };
        self.steps.iter().enumerate().map(step).collect()
    }

    fn digests(&self) -> Value {
        let named =
            self.numbers.iter().map(|(digest, number)| (digest.clone(), json!(format!("step{number}"))));
        Value::Object(named.collect())
    }

    /// From the result down, each step on the file system that it begins with.
    fn chain(&self) -> (Vec<(usize, i64)>, bool) {
        let mut chain = Vec::new();
        let mut image = false;
        let mut next = self.steps.last().and_then(|pointer| pointer.inputs.first());
        while let Some(input) = next {
            let Some(number) = self.number(&input.digest) else { break };
            let Some(op) = self.steps.get(number) else { break };
            chain.push((number, input.index));
            let below = match &op.op {
                Some(pb::op::Op::Source(source)) => {
                    image = source.identifier.starts_with("docker-image://");
                    None
                }
                Some(pb::op::Op::Exec(exec)) => {
                    exec.mounts.iter().find(|mount| mount.output == input.index).map(|mount| mount.input)
                }
                Some(pb::op::Op::File(file)) if file.actions.len() == 1 => {
                    file.actions.first().map(|action| action.input)
                }
                // What these are made of is not one below the other.
                _ => {
                    chain.pop();
                    None
                }
            };
            next = below.and_then(|at| usize::try_from(at).ok()).and_then(|at| op.inputs.get(at));
        }
        chain.reverse();
        (chain, image)
    }
}

/// An operation without the names of a session, which say nothing of what was built.
fn unnamed(op: &pb::Op) -> pb::Op {
    let mut op = op.clone();
    if let Some(pb::op::Op::Source(source)) = &mut op.op {
        source.attrs.retain(|key, _| !matches!(key.as_str(), "local.session" | "local.unique"));
    }
    op
}

/// The files of a definition and which steps come from where; none where there are no files.
fn files(source: &pb::Source, numbered: &Numbered) -> Result<Option<Value>, String> {
    if source.infos.is_empty() {
        return Ok(None);
    }
    let mut infos = Vec::new();
    for info in &source.infos {
        let mut told = Map::new();
        for (key, text) in [("filename", &info.filename), ("language", &info.language)] {
            if !text.is_empty() {
                told.insert(key.to_owned(), json!(text));
            }
        }
        told.insert("data".to_owned(), json!(BASE64_STANDARD.encode(&info.data)));
        if let Some(definition) = &info.definition {
            let made = Numbered::read(definition)?;
            told.insert("llbDefinition".to_owned(), made.list());
            told.insert("digestMapping".to_owned(), made.digests());
        }
        infos.push(Value::Object(told));
    }
    let locations = source.locations.iter().filter_map(|(digest, of)| {
        Some((format!("step{}", numbered.number(digest)?), Form::Plain.locations(of)))
    });
    let locations: Map<String, Value> = locations.collect();
    let mut told = json!({ "infos": infos });
    if let (false, Some(told)) = (locations.is_empty(), told.as_object_mut()) {
        told.insert("locations".to_owned(), Value::Object(locations));
    }
    Ok(Some(told))
}

impl Steps {
    /// The steps and their digests.
    pub(super) fn config(&self) -> Value {
        json!({ "llbDefinition": self.numbered.list(), "digestMapping": self.numbered.digests() })
    }

    /// The files that they come from.
    pub(super) fn source(&self) -> Option<Value> {
        self.source.clone()
    }

    /// Which layers are there after which step, of a result with these, lowest first, of which the first `base` are the base image's.
    pub(super) fn layers(&self, layers: &[Descriptor], base: usize) -> Map<String, Value> {
        let mut told = Map::new();
        let mut there = 0;
        for (at, (number, output)) in self.chain.iter().enumerate() {
            there += if at == 0 && self.begins_with_image { base } else { 1 };
            let Some(layers) = layers.get(..there).filter(|layers| !layers.is_empty()) else { break };
            told.insert(format!("step{number}:{output}"), json!([layers]));
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_session_is_not_told() {
        let attrs = [("local.session", "s"), ("local.unique", "u"), ("local.differ", "none")];
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let source = pb::SourceOp { identifier: "local://context".into(), attrs };
        let told =
            Form::Plain.op(&unnamed(&pb::Op { op: Some(pb::op::Op::Source(source)), ..pb::Op::default() }));
        let source = json!({ "identifier": "local://context", "attrs": { "local.differ": "none" } });
        assert_eq!(told, json!({ "Op": { "source": source } }));
    }

    fn input(op: &pb::Op, index: i64) -> pb::Input {
        pb::Input { digest: Digest::of(&op.encode_to_vec()).to_string(), index }
    }

    /// An image, a step on it, and the pointer to the step's result.
    fn definition() -> (pb::Definition, [String; 2]) {
        let source = pb::SourceOp {
            identifier: "docker-image://docker.io/library/x:latest".into(),
            ..Default::default()
        };
        let image = pb::Op { op: Some(pb::op::Op::Source(source)), ..Default::default() };
        let root = pb::Mount { dest: "/".into(), ..Default::default() };
        let exec = pb::ExecOp { mounts: vec![root], ..Default::default() };
        let step =
            pb::Op { inputs: vec![input(&image, 0)], op: Some(pb::op::Op::Exec(exec)), ..Default::default() };
        let pointer = pb::Op { inputs: vec![input(&step, 0)], ..Default::default() };
        let digests = [input(&image, 0).digest, input(&step, 0).digest];
        let place = pb::Location { source_index: 0, ranges: Vec::new() };
        let places = pb::Locations { locations: vec![place] };
        let info =
            pb::SourceInfo { filename: "Dockerfile".into(), data: b"FROM x".to_vec(), ..Default::default() };
        let source = pb::Source { locations: [(digests[1].clone(), places)].into(), infos: vec![info] };
        let def = [&image, &step, &pointer].map(prost::Message::encode_to_vec).to_vec();
        (pb::Definition { def, source: Some(source), ..Default::default() }, digests)
    }

    #[test]
    fn steps_are_numbered_inputs_first_and_know_their_places() {
        let (definition, digests) = definition();
        let steps = read(&definition).expect("a definition");
        let config = steps.config();
        assert_eq!(config["digestMapping"][&digests[0]], json!("step0"));
        assert_eq!(config["llbDefinition"][1]["inputs"], json!(["step0:0"]));
        assert_eq!(
            config["llbDefinition"][2],
            json!({ "id": "step2", "inputs": ["step1:0"], "op": { "Op": {} } })
        );
        let source = steps.source().expect("there is a file");
        assert_eq!(source["infos"][0]["data"], json!(BASE64_STANDARD.encode("FROM x")));
        assert_eq!(source["locations"]["step1"], json!({ "locations": [{}] }));
    }

    #[test]
    fn each_step_adds_a_layer_to_those_of_the_image() {
        let (definition, _) = definition();
        let steps = read(&definition).expect("a definition");
        let layer = |name: &[u8]| Descriptor::of("layer", name);
        let all = [layer(b"a"), layer(b"b"), layer(b"c")];
        let told = steps.layers(&all, 2);
        assert_eq!(told["step0:0"][0].as_array().map(Vec::len), Some(2));
        assert_eq!(told["step1:0"][0].as_array().map(Vec::len), Some(3));
        // What was not packed is not told.
        assert_eq!(steps.layers(&all[..2], 2).len(), 1);
    }
}
