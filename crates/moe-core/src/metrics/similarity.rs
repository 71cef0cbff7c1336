//! How alike experts are.
//!
//! Axis letters: `e` experts, `m` entries of an expert's vector.

use super::MetricError;
use crate::score::cosine;
use ndarray::{Array2, ArrayView2};

/// Cosines between one vector per expert: its flattened weights, or its outputs on a probe set.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertSimilarity {
    /// Every pair, `[e, e]`. A zero vector has cosine 0 with everything, itself included.
    pub cosine_ee: Array2<f64>,
    /// Mean off the diagonal; like the next two, 0 for a single expert.
    pub mean: f64,
    /// Largest off the diagonal.
    pub max: f64,
    /// Smallest off the diagonal.
    pub min: f64,
}

impl ExpertSimilarity {
    /// Similarity of the rows of `feature_em`.
    ///
    /// # Errors
    ///
    /// If there are no entries, or one is not finite.
    pub fn of(feature_em: ArrayView2<'_, f64>) -> Result<Self, MetricError> {
        MetricError::check_not_empty("features", feature_em.len())?;
        MetricError::check_finite("features", feature_em)?;
        let cosine_ee = cosine(feature_em, feature_em, f64::MIN_POSITIVE);
        let pairs: Vec<f64> =
            cosine_ee.indexed_iter().filter(|((i, j), _)| i != j).map(|(_, v)| *v).collect();
        if pairs.is_empty() {
            return Ok(Self { cosine_ee, mean: 0.0, max: 0.0, min: 0.0 });
        }
        Ok(Self {
            cosine_ee,
            mean: pairs.iter().sum::<f64>() / pairs.len() as f64,
            max: pairs.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            min: pairs.iter().copied().fold(f64::INFINITY, f64::min),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn similarity_by_hand() {
        // (3, 4) has length 5: cosine 3/5 with the first axis, 0 with the zero vector.
        let got = ExpertSimilarity::of(array![[2.0, 0.0], [3.0, 4.0], [0.0, 0.0]].view()).unwrap();
        let want = array![[1.0, 0.6, 0.0], [0.6, 1.0, 0.0], [0.0, 0.0, 0.0]];
        assert!((&got.cosine_ee - &want).iter().all(|v| v.abs() < 1e-15));
        assert!((got.mean - 0.2).abs() < 1e-15);
        assert!((got.max - 0.6).abs() < 1e-15);
        assert_eq!(got.min, 0.0);
    }

    #[test]
    fn one_expert_is_like_no_other() {
        let got = ExpertSimilarity::of(array![[-1.0, 0.0]].view()).unwrap();
        assert_eq!((got.mean, got.max, got.min), (0.0, 0.0, 0.0));
        assert_eq!(got.cosine_ee, array![[1.0]]);
        assert!(ExpertSimilarity::of(array![[f64::NAN]].view()).is_err());
    }
}
