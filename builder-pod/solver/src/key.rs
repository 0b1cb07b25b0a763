use std::fmt;

use lapstrake_oci::{Digest, Hasher};
use serde::{Deserialize, Serialize};

/// Changing how keys are made makes every older record unreachable: raise it then.
const VERSION: &[u8] = b"lapstrake cache key 1\0";

/// Under what a result is recorded: equal keys mean equal work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
    /// What other builders call the operation; `None` where nobody else needs to know.
    pub name: Option<OpName>,
}

/// What an operation is called in caches that several builders share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpName {
    /// The operation, whatever its inputs.
    pub digest: Digest,
    /// What of each input is used, in the operation's order.
    pub selectors: Vec<Option<Digest>>,
    /// How many results it has.
    pub outputs: u32,
}

/// How a key came to be, in terms that other builders know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Derivation {
    /// The operation's [`OpName::digest`].
    pub operation: Digest,
    /// How many results it has.
    pub outputs: u32,
    /// Its inputs.
    pub inputs: Vec<Origin>,
}

/// An input of a [`Derivation`]: known by its key, by the contents that are read of it, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Its key and the number of the result that is used.
    pub key: Option<(CacheKey, u32)>,
    /// What of it is used.
    pub selector: Option<Digest>,
    /// The digest of the contents that are read.
    pub content: Option<Digest>,
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
