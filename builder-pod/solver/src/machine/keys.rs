//! How a vertex comes to its key; the two kinds of keys are told at [`super`].

use std::sync::Arc;

use lapstrake_oci::Digest;

use super::{Action, Keys, Machine, State, VertexId};
use crate::key::{CacheKey, Derivation, InputKey, Keying, OpKey, Origin};

impl<R: Clone, E: Clone> Machine<R, E> {
    pub(super) fn described(&mut self, id: VertexId, result: Result<OpKey, E>) {
        if self.gone(id) {
            return;
        }
        match result {
            Ok(op) => self.set(id, State::AwaitKeys(op)),
            Err(error) => self.set(id, State::Failed(id, error)),
        }
    }

    /// The keys of all inputs; `None` while one is missing. A failed input fails the vertex.
    fn input_keys(&mut self, id: VertexId) -> Option<Vec<(Keys, u32)>> {
        let inputs = self.entries.get(&id)?.inputs.clone();
        let mut keys = Vec::with_capacity(inputs.len());
        let mut missing = false;
        for (input, index) in inputs {
            // What takes nothing from the cache is to run, though a record of what rests on it may be there.
            if input.ignore_cache {
                self.want_result(input, index);
            } else {
                self.want_key(input);
            }
            match self.entries.get(&input).map(|e| &e.state) {
                Some(State::Done(k, _)) => keys.push((*k, index)),
                Some(
                    State::Keyed(k)
                    | State::Vouched(_, k)
                    | State::Looking(k)
                    | State::AwaitInputs(k)
                    | State::Following(k)
                    | State::Running(k),
                ) if !input.ignore_cache => keys.push((*k, index)),
                Some(State::Failed(culprit, error)) => {
                    let failed = State::Failed(*culprit, error.clone());
                    self.set(id, failed);
                    return None;
                }
                _ => missing = true,
            }
        }
        (!missing).then_some(keys)
    }

    pub(super) fn try_key(&mut self, id: VertexId) {
        let Some(inputs) = self.input_keys(id) else {
            if self.waits_for_slow(id) {
                self.mark_slow(id);
            }
            return;
        };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let State::AwaitKeys(op) = std::mem::replace(&mut entry.state, State::Idle) else { return };
        // An input that was made anew may have other contents under the key that it had.
        let anew = id.ignore_cache || entry.inputs.iter().any(|(input, _)| input.ignore_cache);
        let ephemeral = op.ephemeral || inputs.iter().any(|(keys, _)| keys.ephemeral);
        let parts: Vec<_> = inputs.iter().map(|(keys, index)| InputKey::Key(keys.key, *index)).collect();
        let fast = op.over(&parts);
        if !ephemeral {
            self.actions.extend(derived(fast, &op, &inputs, &[]));
        }
        if !op.has_content() {
            self.set(id, State::Keyed(Keys { key: fast, fast: None, ephemeral }));
        } else if ephemeral {
            self.set(id, State::AwaitContent(op, None));
        } else if anew {
            // What it reads is needed whatever its key is: all that may run meanwhile.
            self.set(id, State::AwaitContent(op, Some(fast)));
            self.mark_slow(id);
        } else {
            entry.state = State::LookingFast(op, fast);
            entry.pending += 1;
            self.actions.push(Action::LookUp(id, fast));
        }
    }

    pub(super) fn try_hash(&mut self, id: VertexId) {
        let Some(entry) = self.entries.get(&id) else { return };
        let State::AwaitContent(op, _) = &entry.state else { return };
        let (op, inputs, vertex) = (op.clone(), entry.inputs.clone(), Arc::clone(&entry.vertex));
        let mut read = Vec::new();
        let mut missing = false;
        for (number, (keying, (input, index))) in op.inputs.iter().zip(inputs).enumerate() {
            if *keying == Keying::ByContent {
                match self.input_result(id, input, index) {
                    Some(result) => read.push((number, result)),
                    None => missing = true,
                }
            }
        }
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if missing || !matches!(entry.state, State::AwaitContent(..)) {
            return;
        }
        let State::AwaitContent(op, fast) = std::mem::replace(&mut entry.state, State::Idle) else { return };
        let waiting = vec![None; op.inputs.len()];
        entry.state = State::Hashing(op, fast, waiting);
        entry.pending += read.len();
        for (number, result) in read {
            self.actions.push(Action::Hash(id, Arc::clone(&vertex), number, result));
        }
    }

    pub(super) fn hashed(&mut self, id: VertexId, input: usize, result: Result<Digest, E>) {
        if self.gone(id) {
            return;
        }
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let State::Hashing(_, _, digests) = &mut entry.state else { return };
        match result {
            Ok(digest) => {
                if let Some(slot) = digests.get_mut(input) {
                    *slot = Some(digest);
                }
                self.queue.push_back(id);
            }
            Err(error) => self.set(id, State::Failed(id, error)),
        }
    }

    pub(super) fn try_slow_key(&mut self, id: VertexId) {
        let Some(State::Hashing(op, _, digests)) = self.entries.get(&id).map(|e| &e.state) else { return };
        let answered =
            |(keying, digest): (&Keying, &Option<Digest>)| *keying == Keying::ByKey || digest.is_some();
        if !op.inputs.iter().zip(digests).all(answered) {
            return;
        }
        let Some(inputs) = self.input_keys(id) else { return };
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let State::Hashing(op, fast, digests) = std::mem::replace(&mut entry.state, State::Idle) else {
            return;
        };
        let mut ephemeral = op.ephemeral;
        let mut parts = Vec::with_capacity(inputs.len());
        for ((keys, index), digest) in inputs.iter().zip(&digests) {
            parts.push(match digest {
                Some(digest) => InputKey::Content(*digest),
                None => {
                    ephemeral |= keys.ephemeral;
                    InputKey::Key(keys.key, *index)
                }
            });
        }
        let key = op.over(&parts);
        if !ephemeral {
            self.actions.extend(derived(key, &op, &inputs, &digests));
        }
        self.set(id, State::Keyed(Keys { key, fast, ephemeral }));
    }

    /// A vertex whose cheap look-up failed will as a rule run, and so will those above it: all that they
    /// need is asked for now, so that it comes side by side. What has a record costs nothing by that.
    pub(super) fn mark_slow(&mut self, id: VertexId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        if std::mem::replace(&mut entry.slow, true) {
            return;
        }
        self.queue.extend(entry.users.iter().copied());
        let inputs = entry.inputs.clone();
        inputs.into_iter().for_each(|(input, index)| self.want_result(input, index));
    }

    fn waits_for_slow(&self, id: VertexId) -> bool {
        let slow = |(input, _): &(VertexId, u32)| self.entries.get(input).is_some_and(|e| e.slow);
        self.entries
            .get(&id)
            .is_some_and(|e| matches!(e.state, State::AwaitKeys(_)) && e.inputs.iter().any(slow))
    }
}

/// How a key over these inputs came to be, for those who share it.
fn derived<R, E>(
    key: CacheKey,
    op: &OpKey,
    inputs: &[(Keys, u32)],
    contents: &[Option<Digest>],
) -> Option<Action<R, E>> {
    let name = op.name.as_ref()?;
    let origin = |(at, (keys, index)): (usize, &(Keys, u32))| Origin {
        key: (!keys.ephemeral).then_some((keys.key, *index)),
        selector: name.selectors.get(at).copied().flatten(),
        content: contents.get(at).copied().flatten(),
    };
    let inputs = inputs.iter().enumerate().map(origin).collect();
    Some(Action::Derived(key, Derivation { operation: name.digest, outputs: name.outputs, inputs }))
}
