//! Layers that are being made: who wants one that another output, cache or build is making waits for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::layers::Layer;

/// A layer that one makes while the others wait; empty until it is made.
pub(super) type Cell = tokio::sync::Mutex<Option<Layer>>;

/// All layers that are being made, by what they are and how they are wanted.
#[derive(Debug, Default)]
pub(crate) struct Making {
    cells: Mutex<HashMap<Vec<u8>, Weak<Cell>>>,
}

impl Making {
    /// The place of a layer. It lasts as long as somebody has it: whoever made the layer keeps it until the store knows the layer.
    pub(super) fn cell(&self, key: Vec<u8>) -> Arc<Cell> {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = cells.get(&key).and_then(Weak::upgrade) {
            return cell;
        }
        cells.retain(|_, cell| cell.strong_count() > 0);
        let cell = Arc::default();
        cells.insert(key, Arc::downgrade(&cell));
        cell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_the_same_for_all_who_have_it_and_goes_with_the_last() {
        let making = Making::default();
        let (first, other) = (making.cell(b"a".to_vec()), making.cell(b"b".to_vec()));
        assert!(Arc::ptr_eq(&first, &making.cell(b"a".to_vec())));
        assert!(!Arc::ptr_eq(&first, &other));
        drop((first, other));
        let _next = making.cell(b"c".to_vec());
        assert_eq!(making.cells.lock().expect("no panic").len(), 1);
    }
}
