//! Policies applied to a definition: operations that are converted have other names, and so has what is built on them.

use std::collections::{HashMap, HashSet};

use lapstrake_api::pb;
use lapstrake_oci::Digest;
use prost::Message as _;

use super::Policies;
use crate::error::BuildError;

/// Sources that somebody is asked about at the same time.
const JUDGED_MAX: usize = 16;

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
    for bytes in &definition.def {
        // What can't be read is told of by whoever reads the whole.
        let Ok(op) = pb::Op::decode(bytes.as_slice()) else { return Ok(None) };
        ops.push(op);
    }
    let converted = judged(policies, &mut ops)?;
    if converted.is_empty() {
        return Ok(None);
    }
    Ok(Some(renamed(definition, ops, converted)))
}

/// A source operation of a definition.
struct Source<'a> {
    at: usize,
    op: &'a mut pb::SourceOp,
    platform: Option<&'a pb::Platform>,
}

impl Source<'_> {
    /// Its place, if it was converted.
    fn judge(&mut self, policies: &Policies) -> Result<Option<usize>, BuildError> {
        let before = self.op.clone();
        policies.source(self.op, self.platform)?;
        Ok((*self.op != before).then_some(self.at))
    }
}

/// Judges all sources; the places of those that were converted. Where somebody decides who may take a while, about several
/// at the same time.
fn judged(policies: &Policies, ops: &mut [pb::Op]) -> Result<HashSet<usize>, BuildError> {
    let mut sources: Vec<_> = ops
        .iter_mut()
        .enumerate()
        .filter_map(|(at, op)| {
            let pb::Op { op: Some(pb::op::Op::Source(source)), platform, .. } = op else { return None };
            Some(Source { at, op: source, platform: platform.as_ref() })
        })
        .collect();
    if !policies.has_judge() {
        return sources.iter_mut().filter_map(|one| one.judge(policies).transpose()).collect();
    }
    let all_at_once = |some: &mut [Source<'_>]| {
        std::thread::scope(|scope| {
            let asked: Vec<_> = some.iter_mut().map(|one| scope.spawn(|| one.judge(policies))).collect();
            let died = |_| Err(BuildError::internal("a decision about a source was given up"));
            asked.into_iter().map(|one| one.join().unwrap_or_else(died)).collect::<Vec<_>>()
        })
    };
    let mut converted = HashSet::new();
    for some in sources.chunks_mut(JUDGED_MAX) {
        for at in tokio::task::block_in_place(|| all_at_once(some)) {
            converted.extend(at?);
        }
    }
    Ok(converted)
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
