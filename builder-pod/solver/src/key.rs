use std::fmt;

use lapstrake_oci::{Digest, Hasher};

/// Changing how keys are made makes every older record unreachable: raise it then.
const VERSION: &[u8] = b"lapstrake cache key 1\0";

/// Under what a result is recorded: equal keys mean equal work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheKey(pub Digest);

impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What identifies an operation apart from its inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpKey {
    /// Digest of all that changes the result: arguments, environment, platform, a source's revision.
    pub digest: Digest,
    /// How each input enters the key, in the operation's order.
    pub inputs: Vec<Keying>,
    /// True where `digest` holds for this job only (a client's directory): no record is looked up or
    /// kept under a key that has it.
    pub ephemeral: bool,
}

/// How an input enters a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keying {
    /// By the input's own key.
    ByKey,
    /// By the contents of what the operation reads of it, so that the same files made in another way
    /// are the same input.
    ByContent,
}

/// An input as it enters a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKey {
    /// The key of the input and the number of the result that is used.
    Key(CacheKey, u32),
    /// The digest of the contents that are read.
    Content(Digest),
}

impl OpKey {
    /// The key of the operation over these inputs.
    pub fn over(&self, inputs: &[InputKey]) -> CacheKey {
        let mut hasher = Hasher::new();
        hasher.update(VERSION);
        hasher.update(self.digest.as_bytes());
        hasher.update(&(inputs.len() as u64).to_le_bytes());
        for input in inputs {
            match input {
                InputKey::Key(key, index) => {
                    hasher.update(&[0]);
                    hasher.update(key.0.as_bytes());
                    hasher.update(&index.to_le_bytes());
                }
                InputKey::Content(digest) => {
                    hasher.update(&[1]);
                    hasher.update(digest.as_bytes());
                }
            }
        }
        CacheKey(hasher.finish())
    }

    /// Whether some input enters by its contents.
    pub fn has_content(&self) -> bool {
        self.inputs.contains(&Keying::ByContent)
    }
}
