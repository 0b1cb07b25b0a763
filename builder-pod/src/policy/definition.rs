//! Policies applied to a definition: operations that are converted have other names, and so has what is built on them.

use std::collections::{HashMap, HashSet};

use lapstrake_api::pb;
use lapstrake_oci::Digest;
use prost::Message as _;

use super::Policies;
use crate::error::BuildError;

/// The definition that counts in place of one; none where it is the same.
///
/// # Errors
/// A source is denied, or rules can't be applied to it.
pub(crate) fn applied(
    policies: &Policies,
    definition: &pb::Definition,
) -> Result<Option<pb::Definition>, BuildError> {
    if policies.is_empty() {
        return Ok(None);
    }
    let mut ops = Vec::with_capacity(definition.def.len());
    let mut converted = HashSet::new();
    for (at, bytes) in definition.def.iter().enumerate() {
        // What can't be read is told of by whoever reads the whole.
        let Ok(mut op) = pb::Op::decode(bytes.as_slice()) else { return Ok(None) };
        if let Some(pb::op::Op::Source(source)) = &mut op.op {
            let before = source.clone();
            policies.source(source)?;
            if *source != before {
                converted.insert(at);
            }
        }
        ops.push(op);
    }
    if converted.is_empty() {
        return Ok(None);
    }
    Ok(Some(renamed(definition, ops, converted)))
}

/// Gives names anew to the operations that were changed, and to those that rest on them.
fn renamed(definition: &pb::Definition, mut ops: Vec<pb::Op>, mut changed: HashSet<usize>) -> pb::Definition {
    let old: Vec<String> = definition.def.iter().map(|bytes| Digest::of(bytes).to_string()).collect();
    let mut out = definition.clone();
    let mut names: HashMap<&str, String> = HashMap::new();
    // Names follow from names: those of inputs come first, wherever they stand.
    for at in inputs_first(&old, &ops) {
        let (Some(op), Some(name)) = (ops.get_mut(at), old.get(at)) else { continue };
        for input in &mut op.inputs {
            if let Some(name) = names.get(input.digest.as_str()) {
                input.digest.clone_from(name);
                changed.insert(at);
            }
        }
        if changed.contains(&at) {
            let bytes = lapstrake_llb::encode(op);
            names.insert(name, Digest::of(&bytes).to_string());
            if let Some(slot) = out.def.get_mut(at) {
                *slot = bytes;
            }
        }
    }
    let name = |old: String| names.get(old.as_str()).cloned().unwrap_or(old);
    out.metadata = out.metadata.into_iter().map(|(digest, one)| (name(digest), one)).collect();
    if let Some(source) = &mut out.source {
        let locations = std::mem::take(&mut source.locations);
        source.locations = locations.into_iter().map(|(digest, one)| (name(digest), one)).collect();
    }
    out
}

/// The places of all operations, those of inputs before those of users.
fn inputs_first(names: &[String], ops: &[pb::Op]) -> Vec<usize> {
    let places: HashMap<&str, usize> =
        names.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
    let mut order = Vec::with_capacity(ops.len());
    let mut seen = vec![false; ops.len()];
    for root in 0..ops.len() {
        let mut stack = vec![(root, false)];
        while let Some((at, inputs_done)) = stack.pop() {
            if inputs_done {
                order.push(at);
                continue;
            }
            if seen.get_mut(at).is_none_or(|seen| std::mem::replace(seen, true)) {
                continue;
            }
            stack.push((at, true));
            let inputs = ops.get(at).into_iter().flat_map(|op| &op.inputs);
            stack.extend(inputs.filter_map(|input| Some((*places.get(input.digest.as_str())?, false))));
        }
    }
    order
}
