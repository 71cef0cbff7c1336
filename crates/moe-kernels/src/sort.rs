//! A stable counting sort by a small key.
//!
//! Axis letters: `n` rows, `e` experts.

use crate::KernelError;

/// Items gathered by key, in the order in which they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Groups {
    offset: Vec<usize>,
    items: Vec<u32>,
}

impl Groups {
    /// The items of a key.
    ///
    /// # Panics
    ///
    /// If there is no such key.
    pub fn of(&self, key: usize) -> &[u32] {
        &self.items[self.offset[key]..self.offset[key + 1]]
    }

    /// Where the items of each key start, and the end, `[keys + 1]`.
    pub fn offset(&self) -> &[usize] {
        &self.offset
    }

    /// All items, sorted by key.
    pub fn items(&self) -> &[u32] {
        &self.items
    }

    /// Gathers the items `0..key_n.len()` by their keys, all below `keys`: histogram, prefix sum,
    /// scatter.
    ///
    /// # Errors
    ///
    /// If a key is out of range, which reads as an expert, or there are more items than `u32` counts.
    pub fn sort(&mut self, keys: usize, key_n: &[u32]) -> Result<(), KernelError> {
        let out = key_n.iter().enumerate().find(|(_, key)| **key as usize >= keys);
        if let Some((choice, &expert)) = out {
            return Err(KernelError::Expert { choice, expert: expert as usize, experts: keys });
        }
        if u32::try_from(key_n.len()).is_err() {
            return Err(KernelError::Overflow { what: "choices", axes: [key_n.len(), 1, 1] });
        }
        self.count(keys, key_n);
        self.scatter(key_n);
        Ok(())
    }

    /// Where each key's items end, one place early: `scatter` moves them to where they start.
    fn count(&mut self, keys: usize, key_n: &[u32]) {
        self.offset.clear();
        self.offset.resize(keys + 1, 0);
        for &key in key_n {
            self.offset[key as usize] += 1;
        }
        let mut sum = 0;
        for offset in &mut self.offset {
            sum += *offset;
            *offset = sum;
        }
    }

    /// Backwards, so that equal keys keep their order while each offset falls to its key's start.
    fn scatter(&mut self, key_n: &[u32]) {
        self.items.clear();
        self.items.resize(key_n.len(), 0);
        for (item, &key) in key_n.iter().enumerate().rev() {
            let place = &mut self.offset[key as usize];
            *place -= 1;
            self.items[*place] = item as u32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_keep_their_order() {
        let mut groups = Groups::default();
        groups.sort(4, &[2, 0, 2, 3, 0, 2]).unwrap();
        assert_eq!(groups.offset(), [0, 2, 2, 5, 6]);
        assert_eq!(groups.items(), [1, 4, 0, 2, 5, 3]);
        assert_eq!(
            (groups.of(0), groups.of(1), groups.of(2)),
            (&[1, 4][..], &[][..], &[0, 2, 5][..])
        );
        groups.sort(1, &[]).unwrap();
        assert_eq!((groups.offset(), groups.items()), (&[0, 0][..], &[][..]));
    }

    #[test]
    fn keys_out_of_range_are_named() {
        let error = Groups::default().sort(2, &[1, 0, 2]).unwrap_err();
        assert_eq!(error, KernelError::Expert { choice: 2, expert: 2, experts: 2 });
    }
}
