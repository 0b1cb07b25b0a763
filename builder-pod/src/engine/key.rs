//! What identifies an operation apart from its inputs. Values in, values out.

use std::collections::BTreeSet;

use lapstrake_fileop::Selector;
use lapstrake_llb::{Vertex, pb};
use lapstrake_oci::{Digest, Hasher, Platform};
use lapstrake_solver::{Keying, OpKey};
use prost::Message as _;

use super::file::copy_action;
use crate::error::BuildError;

/// An image is its layers: another manifest over the same ones is the same file system.
pub(super) fn image(diff_ids: &[Digest], platform: &Platform) -> OpKey {
    let mut hasher = Hasher::new();
    hasher.update(format!("image {platform}\n").as_bytes());
    for diff_id in diff_ids {
        hasher.update(diff_id.as_bytes());
    }
    OpKey { digest: hasher.finish(), inputs: Vec::new(), ephemeral: false }
}

/// A directory has no key: what is read of it counts.
pub(super) fn local(vertex: &Vertex) -> OpKey {
    OpKey { digest: vertex.digest.0, inputs: Vec::new(), ephemeral: true }
}

/// A command: all that it can see but what BuildKit leaves out too (addresses of extra hosts and the
/// proxy variables, which differ from machine to machine).
pub(super) fn exec(exec: &pb::ExecOp, vertex: &Vertex, platform: &Platform) -> Result<OpKey, BuildError> {
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
    let inputs = (0..vertex.inputs.len()).map(|input| exec_keying(exec, input)).collect();
    Ok(OpKey { digest: hasher.finish(), inputs, ephemeral: false })
}

/// An input that the command only reads counts by what it reads; the root file system never does.
fn exec_keying(exec: &pb::ExecOp, input: usize) -> Keying {
    let mut mounts = exec.mounts.iter().filter(|m| usize::try_from(m.input) == Ok(input)).peekable();
    let read_only = mounts.peek().is_some() && mounts.all(|m| m.dest != "/" && (m.readonly || m.output < 0));
    if read_only { Keying::ByContent } else { Keying::ByKey }
}

/// A file operation: its bytes. What is copied counts by content, what is copied onto by key.
pub(super) fn file(op: &pb::FileOp, vertex: &Vertex) -> OpKey {
    let mut hasher = Hasher::new();
    hasher.update(b"file\n");
    hasher.update(&op.encode_to_vec());
    let onto: BTreeSet<i64> = op.actions.iter().map(|a| a.input).collect();
    let lookups = owner_inputs(op);
    let keying = |input: usize| {
        let input = input as i64;
        if onto.contains(&input) || lookups.contains(&input) { Keying::ByKey } else { Keying::ByContent }
    };
    OpKey {
        digest: hasher.finish(),
        inputs: (0..vertex.inputs.len()).map(keying).collect(),
        ephemeral: false,
    }
}

/// Inputs whose account files are read.
fn owner_inputs(op: &pb::FileOp) -> BTreeSet<i64> {
    let owners = op.actions.iter().filter_map(|a| match &a.action {
        Some(pb::file_action::Action::Copy(c)) => c.owner.as_ref(),
        Some(pb::file_action::Action::Mkfile(c)) => c.owner.as_ref(),
        Some(pb::file_action::Action::Mkdir(c)) => c.owner.as_ref(),
        Some(pb::file_action::Action::Symlink(c)) => c.owner.as_ref(),
        _ => None,
    });
    let users = owners.flat_map(|o| [&o.user, &o.group]).filter_map(|u| u.as_ref()?.user.as_ref());
    users
        .filter_map(|u| match u {
            pb::user_opt::User::ByName(name) => Some(name.input),
            pb::user_opt::User::ById(_) => None,
        })
        .collect()
}

/// What an operation reads of an input that counts by content.
pub(super) fn selectors(vertex: &Vertex, input: usize) -> Result<Vec<Selector>, BuildError> {
    let input = input as i64;
    match &vertex.op {
        pb::op::Op::Exec(exec) => {
            let mounts = exec.mounts.iter().filter(|m| m.input == input);
            Ok(mounts
                .map(|m| Selector { path: m.selector.clone(), follow_links: true, ..Selector::default() })
                .collect())
        }
        pb::op::Op::File(op) => op
            .actions
            .iter()
            .filter(|a| a.secondary_input == input)
            .filter_map(|a| match &a.action {
                Some(pb::file_action::Action::Copy(copy)) => {
                    Some(copy_action(copy, None).map(|c| Selector::of(&c)))
                }
                _ => None,
            })
            .collect(),
        _ => Ok(vec![Selector::default()]),
    }
}
