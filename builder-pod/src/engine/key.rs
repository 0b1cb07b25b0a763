//! What identifies an operation apart from its inputs. Values in, values out.
//!
//! Our own keys are over an operation's bytes; beside them stand the names that BuildKit has for the same things,
//! by which caches are shared (see `lapstrake-cache`).

use lapstrake_cache::op::{self, Use};
use lapstrake_fileop::Selector;
use lapstrake_llb::{Vertex, pb};
use lapstrake_oci::{Digest, Hasher, Platform};
use lapstrake_solver::{Keying, OpKey, OpName};
use prost::Message as _;

use super::file::copy_action;
use crate::error::BuildError;

/// An image is its layers: another manifest over the same ones is the same file system. Others know it by what
/// its name stood for.
pub(super) fn image(named: &Digest, diff_ids: &[Digest], platform: &Platform, limit: Option<usize>) -> OpKey {
    let mut hasher = Hasher::new();
    hasher.update(format!("image {platform}\n").as_bytes());
    for diff_id in diff_ids {
        hasher.update(diff_id.as_bytes());
    }
    let name = OpName { digest: op::image(named, platform, limit), selectors: Vec::new(), outputs: 1 };
    OpKey { digest: hasher.finish(), inputs: Vec::new(), ephemeral: false, name: Some(name) }
}

/// A directory has no key: what is read of it counts.
pub(super) fn local(vertex: &Vertex) -> OpKey {
    OpKey { digest: vertex.digest.0, inputs: Vec::new(), ephemeral: true, name: None }
}

/// A command: all that it can see but what BuildKit leaves out too (addresses of extra hosts and the
/// proxy variables, which differ from machine to machine).
pub(super) fn exec(exec: &pb::ExecOp, vertex: &Vertex, platform: &Platform) -> OpKey {
    let mut counted = exec.clone();
    if let Some(meta) = &mut counted.meta {
        meta.proxy_env = None;
        for host in &mut meta.extra_hosts {
            host.ip.clear();
        }
    }
    let mut hasher = Hasher::new();
    hasher.update(format!("exec {platform}\n").as_bytes());
    hasher.update(&counted.encode_to_vec());
    let uses = op::exec_uses(exec, vertex.inputs.len());
    let outputs = exec.mounts.iter().filter(|m| m.output >= 0).count();
    over(hasher.finish(), op::exec(exec, platform), uses, outputs)
}

/// A file operation: its bytes. What is copied counts by content, what is copied onto by key.
pub(super) fn file(op: &pb::FileOp, vertex: &Vertex) -> OpKey {
    let mut hasher = Hasher::new();
    hasher.update(b"file\n");
    hasher.update(&op.encode_to_vec());
    let uses = op::file_uses(op, vertex.inputs.len());
    let outputs = op.actions.iter().filter(|a| a.output >= 0).count();
    over(hasher.finish(), op::file(op, vertex.inputs.len()), uses, outputs)
}

/// File systems over each other: what they are.
pub(super) fn merge(op: &pb::MergeOp, vertex: &Vertex) -> OpKey {
    of_whole(b"merge\n", &op.encode_to_vec(), op::merge(op), vertex)
}

/// What one file system changes over another.
pub(super) fn diff(op: &pb::DiffOp, vertex: &Vertex) -> OpKey {
    of_whole(b"diff\n", &op.encode_to_vec(), op::diff(op), vertex)
}

/// Inputs as they are: all of them count.
pub(super) fn passthrough(op: &pb::PassthroughOp, vertex: &Vertex) -> OpKey {
    let mut hasher = Hasher::new();
    hasher.update(b"passthrough\n");
    hasher.update(&op.encode_to_vec());
    over(hasher.finish(), op::passthrough(op), vec![Use::default(); vertex.inputs.len()], op.outputs.len())
}

/// A definition that an input has: what it makes.
pub(super) fn build(op: &pb::BuildOp, vertex: &Vertex) -> OpKey {
    let bytes = op.encode_to_vec();
    let name = Digest::of(&[b"buildkit.build.v0\n", bytes.as_slice()].concat());
    of_whole(b"build\n", &bytes, name, vertex)
}

/// An operation with one result, whose inputs count by their keys.
fn of_whole(kind: &[u8], bytes: &[u8], name: Digest, vertex: &Vertex) -> OpKey {
    let mut hasher = Hasher::new();
    hasher.update(kind);
    hasher.update(bytes);
    over(hasher.finish(), name, vec![Use::default(); vertex.inputs.len()], 1)
}

fn over(digest: Digest, name: Digest, uses: Vec<Use>, outputs: usize) -> OpKey {
    let keying = |used: &Use| if used.by_contents { Keying::ByContent } else { Keying::ByKey };
    let inputs = uses.iter().map(keying).collect();
    let selectors = uses.iter().map(|used| used.selector).collect();
    let name = OpName { digest: name, selectors, outputs: u32::try_from(outputs).unwrap_or(u32::MAX) };
    OpKey { digest, inputs, ephemeral: false, name: Some(name) }
}

/// What an operation reads of an input that counts by content, in the order in which it enters the digest.
pub(super) fn selectors(vertex: &Vertex, input: usize) -> Result<Vec<Selector>, BuildError> {
    let input = input as i64;
    match &vertex.op {
        pb::op::Op::Exec(exec) => {
            let paths = exec
                .mounts
                .iter()
                .filter(|m| m.input == input)
                .map(|m| lapstrake_cache::op::absolute(&m.selector))
                .collect();
            let paths = without_nested(paths);
            if paths.iter().any(|path| path == "/") {
                return Ok(vec![Selector::default()]);
            }
            let followed = |path| Selector { path, follow_links: true, ..Selector::default() };
            Ok(paths.into_iter().map(followed).collect())
        }
        pb::op::Op::File(op) => {
            let mut all = Vec::new();
            for action in &op.actions {
                let accounts = op::account_files(action).into_iter().filter(|(at, _)| *at == input);
                all.extend(accounts.map(|(_, path)| Selector {
                    path: path.to_owned(),
                    follow_links: true,
                    ..Selector::default()
                }));
                if let Some(pb::file_action::Action::Copy(copy)) = &action.action
                    && action.secondary_input == input
                {
                    let mut selector = Selector::of(&copy_action(copy, None)?);
                    selector.wildcard &= has_wildcard(&copy.src);
                    all.push(selector);
                }
            }
            Ok(once(all))
        }
        _ => Ok(vec![Selector::default()]),
    }
}

fn has_wildcard(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// A path that lies below another one is read with it.
fn once(all: Vec<Selector>) -> Vec<Selector> {
    let narrow =
        |s: &Selector| s.wildcard || !s.include_patterns.is_empty() || !s.exclude_patterns.is_empty();
    let (narrow, plain): (Vec<_>, Vec<_>) = all.into_iter().partition(narrow);
    let mut selectors = Vec::new();
    for follow_links in [false, true] {
        let paths = plain.iter().filter(|s| s.follow_links == follow_links).map(|s| s.path.clone()).collect();
        for path in without_nested(paths) {
            let required = plain.iter().filter(|s| s.path == path).flat_map(|s| s.required_paths.clone());
            let required_paths = required.collect();
            selectors.push(Selector { path, follow_links, required_paths, ..Selector::default() });
        }
    }
    selectors.extend(narrow);
    selectors.sort_by(|a, b| a.path.cmp(&b.path));
    selectors
}

fn without_nested(mut paths: Vec<String>) -> Vec<String> {
    if paths.len() <= 1 {
        return paths;
    }
    paths.sort();
    paths.dedup();
    let below = |path: &String, dir: &String| {
        let dir = if dir.ends_with('/') { dir.clone() } else { format!("{dir}/") };
        path.starts_with(&dir)
    };
    let all = paths.clone();
    paths.retain(|path| !all.iter().any(|dir| dir != path && below(path, dir)));
    paths
}

/// The digest of several contents together, as BuildKit joins them.
pub(super) fn joined(digests: &[Digest]) -> Digest {
    let texts: Vec<String> = digests.iter().map(ToString::to_string).collect();
    Digest::of(texts.join("\0").as_bytes())
}
