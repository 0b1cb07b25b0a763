use lapstrake_oci::{Descriptor, Digest, Hasher};
use serde::{Deserialize, Serialize};

/// What is known of a snapshot as an image layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFacts {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Digest over this layer and all below it; see [`chain_id`].
    pub chain_id: Digest,
    /// Size of the uncompressed tar.
    pub tar_bytes: u64,
    /// The layer's blobs, one per compression that was made or pulled. They may have been removed
    /// since: ask [`crate::Store::has_blob`].
    pub blobs: Vec<Descriptor>,
}

/// The chain id of a layer on top of `parent` (OCI image spec, "Layer ChainID").
pub fn chain_id(parent: Option<&Digest>, diff_id: &Digest) -> Digest {
    match parent {
        None => *diff_id,
        Some(parent) => {
            let mut hasher = Hasher::new();
            hasher.update(format!("{parent} {diff_id}").as_bytes());
            hasher.finish()
        }
    }
}

/// The chain id of a whole image by its diff ids, lowest first; `None` of no layers.
pub fn chain_of<'a>(diff_ids: impl IntoIterator<Item = &'a Digest>) -> Option<Digest> {
    diff_ids.into_iter().fold(None, |parent, diff| Some(chain_id(parent.as_ref(), diff)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chain_ids_follow_the_specification() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(chain_of([&a]), Some(a));
        assert_eq!(chain_of([&a, &b]), Some(Digest::of(format!("{a} {b}").as_bytes())));
        assert_eq!(chain_of([]), None);
    }
}
