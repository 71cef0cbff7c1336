//! Finding each sentence's translation among all by similarity.
//!
//! Axis letters: `n` sentences, in both languages in the same order; `d` width of an embedding.

use super::MetricError;
use crate::score::cosine;
use ndarray::{ArrayView1, ArrayView2, Axis};

/// Share of sentences whose most similar counterpart is their translation; of equally similar ones the first
/// counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retrieval {
    /// From the sentences of the rows to those of the columns.
    pub forward: f64,
    /// From the columns to the rows.
    pub backward: f64,
}

impl Retrieval {
    /// By similarities `[n, n]`, whose diagonal belongs to the translations.
    ///
    /// # Errors
    ///
    /// If there is no sentence, the shape is not square, or a similarity is not finite.
    pub fn of(similarity_nn: ArrayView2<'_, f64>) -> Result<Self, MetricError> {
        MetricError::check_not_empty("similarities", similarity_nn.len())?;
        let (n, m) = similarity_nn.dim();
        if n != m {
            let (got, expected) = (vec![n, m], vec![n, n]);
            return Err(MetricError::Shape { what: "similarities", got, expected });
        }
        MetricError::check_finite("similarities", similarity_nn)?;
        Ok(Self { forward: found(similarity_nn), backward: found(similarity_nn.t()) })
    }

    /// By the cosine of embeddings `[n, d]`, after the mean of each language was taken out where `centred`
    /// says so: what all sentences of a language share tells none from another.
    ///
    /// # Errors
    ///
    /// As [`Self::of`].
    ///
    /// # Panics
    ///
    /// If the widths differ.
    pub fn of_embeddings(
        source_nd: ArrayView2<'_, f64>,
        target_nd: ArrayView2<'_, f64>,
        centred: bool,
    ) -> Result<Self, MetricError> {
        let prepared = |x_nd: ArrayView2<'_, f64>| match x_nd.mean_axis(Axis(0)) {
            Some(mean_d) if centred => &x_nd - &mean_d,
            _ => x_nd.to_owned(),
        };
        let (source_nd, target_nd) = (prepared(source_nd), prepared(target_nd));
        Self::of(cosine(source_nd.view(), target_nd.view(), f64::MIN_POSITIVE).view())
    }
}

/// Share of rows whose largest value stands on the diagonal.
fn found(similarity_nn: ArrayView2<'_, f64>) -> f64 {
    let rows = similarity_nn.outer_iter().enumerate();
    let right = rows.filter(|(row, values)| first_largest(*values) == *row).count();
    right as f64 / similarity_nn.nrows() as f64
}

fn first_largest(values: ArrayView1<'_, f64>) -> usize {
    (0..values.len()).fold(0, |best, place| if values[place] > values[best] { place } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Rows find columns 0, 0 (a tie with 1) and 2; columns find rows 1, 1 and 2.
    #[test]
    fn accuracy_by_hand() {
        let similarity = array![[0.5, 0.1, 0.0], [0.9, 0.9, 0.2], [0.0, 0.3, 0.4]];
        let got = Retrieval::of(similarity.view()).unwrap();
        assert_eq!(got, Retrieval { forward: 2.0 / 3.0, backward: 2.0 / 3.0 });
        let lower = array![[0.0, 1.0], [0.0, 1.0]];
        let got = Retrieval::of(lower.view()).unwrap();
        assert_eq!(got, Retrieval { forward: 0.5, backward: 0.5 });
    }

    /// A direction that all sentences of a language share hides the others until it is taken out.
    #[test]
    fn centred_embeddings_lose_what_a_language_shares() {
        let source = array![[10.0, 1.0], [10.0, -1.0]];
        let target = array![[-1.0, -9.0], [-1.0, -11.0]];
        let of = |centred| Retrieval::of_embeddings(source.view(), target.view(), centred).unwrap();
        assert_eq!(of(true), Retrieval { forward: 1.0, backward: 1.0 });
        assert_eq!(of(false).forward, 0.5);
    }

    #[test]
    fn what_is_no_square_of_numbers_is_refused() {
        assert!(Retrieval::of(array![[1.0, 2.0]].view()).is_err());
        assert!(Retrieval::of(array![[f64::NAN]].view()).is_err());
        assert!(Retrieval::of(ndarray::Array2::zeros((0, 0)).view()).is_err());
    }
}
