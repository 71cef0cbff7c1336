//! Which blocks of a model are sparse.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A rule of placement, in blocks counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// Every n-th block: `n - 1`, `2 n - 1`, …
    Every(usize),
    /// The last n of every second block (`1`, `3`, `5`, …); all of those if there are fewer.
    Last(usize),
}

impl Placement {
    /// The sparse ones among `layers` blocks, in rising order.
    pub fn sparse_layers(self, layers: usize) -> Vec<usize> {
        match self {
            Self::Every(n) => (0..layers).filter(|layer| (layer + 1).is_multiple_of(n)).collect(),
            Self::Last(n) => {
                let odd: Vec<usize> = (1..layers).step_by(2).collect();
                odd[odd.len().saturating_sub(n)..].to_vec()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(Placement::Every(3).sparse_layers(8), [2, 5]);
        assert_eq!(Placement::Every(1).sparse_layers(2), [0, 1]);
        assert_eq!(Placement::Last(9).sparse_layers(5), [1, 3]);
        assert_eq!(Placement::Last(1).sparse_layers(1), [0usize; 0]);
    }
}
