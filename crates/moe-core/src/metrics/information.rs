//! What experts specialise in, and which codes of a codebook are used, from counts.
//!
//! Axis letters: `n` samples, `l` labels, `e` experts.

use super::{MetricError, entropy};
use ndarray::{Array1, Array2, ArrayView, Axis, Dimension};

/// More cells than this are not a table but a mistaken label.
const MAX_CELLS: usize = 1 << 26;

/// How much an expert says about the class of its samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Specialisation {
    /// Samples by label and expert, `[l, e]`.
    pub count_le: Array2<usize>,
    /// Mutual information of label and expert.
    pub mi: f64,
    /// Entropy of the labels.
    pub h_labels: f64,
    /// Entropy of the experts.
    pub h_experts: f64,
    /// `2 mi / (h_labels + h_experts)`; 0 if both are 0.
    pub nmi: f64,
    /// Samples that have the commonest label of their expert, over all samples.
    pub purity: f64,
}

impl Specialisation {
    /// Specialisation of the experts `expert_n` in the labels `label_n`. The numbers of labels and
    /// experts are those given, or the largest plus 1; they only shape the table.
    ///
    /// # Errors
    ///
    /// If there are no samples, the lengths differ, or a label or expert is not below its number.
    pub fn of(
        label_n: &[usize],
        expert_n: &[usize],
        labels: Option<usize>,
        experts: Option<usize>,
    ) -> Result<Self, MetricError> {
        MetricError::check_not_empty("labels", label_n.len())?;
        MetricError::check_shape("experts", &[expert_n.len()], &[label_n.len()])?;
        let labels = below("labels", label_n, labels, MAX_CELLS)?;
        let experts = below("experts", expert_n, experts, MAX_CELLS / labels)?;
        let mut count_le = Array2::zeros((labels, experts));
        label_n.iter().zip(expert_n).for_each(|(&l, &e)| count_le[[l, e]] += 1);
        Self::of_counts(count_le)
    }

    /// As [`Specialisation::of`], from the number of samples by label and expert.
    ///
    /// # Errors
    ///
    /// If there are no samples.
    pub fn of_counts(count_le: Array2<usize>) -> Result<Self, MetricError> {
        let samples = count_le.sum();
        MetricError::check_not_empty("samples", samples)?;
        let h_labels = entropy_of(count_le.sum_axis(Axis(1)).view());
        let h_experts = entropy_of(count_le.sum_axis(Axis(0)).view());
        // Not negative by mathematics; rounding disagrees when label and expert are independent.
        let mi = (h_labels + h_experts - entropy_of(count_le.view())).max(0.0);
        let h = h_labels + h_experts;
        let commonest: usize =
            count_le.axis_iter(Axis(1)).map(|c| c.iter().copied().max().unwrap_or(0)).sum();
        let purity = commonest as f64 / samples as f64;
        let nmi = if h == 0.0 { 0.0 } else { 2.0 * mi / h };
        Ok(Self { count_le, mi, h_labels, h_experts, nmi, purity })
    }
}

/// How many values there are: `given`, or the largest plus 1; at most `max`.
pub(super) fn below(
    what: &'static str,
    value_n: &[usize],
    given: Option<usize>,
    max: usize,
) -> Result<usize, MetricError> {
    let largest = value_n.iter().copied().max().unwrap_or(0);
    let below = given.unwrap_or(largest.saturating_add(1));
    MetricError::check_below(what, value_n, below)?;
    MetricError::check_below(what, &[below], max.saturating_add(1))?;
    Ok(below)
}

/// Entropy of the frequencies of counts.
fn entropy_of<D: Dimension>(counts: ArrayView<'_, usize, D>) -> f64 {
    let total = counts.sum() as f64;
    entropy(counts.iter().map(|&count| count as f64 / total).collect::<Array1<f64>>().view())
}

/// Which codes of a codebook are used, and how evenly.
#[derive(Debug, Clone, PartialEq)]
pub struct CodeUsage {
    /// How often every code occurs.
    pub counts: Vec<usize>,
    /// `exp(entropy)` of the frequencies: the number of codes effectively in use.
    pub perplexity: f64,
    /// Codes that occur.
    pub used: usize,
    /// Their share of the codebook.
    pub usage: f64,
}

impl CodeUsage {
    /// Usage of the indices into a codebook of `codes` codes.
    ///
    /// # Errors
    ///
    /// If there are no indices or no codes, or an index is not below `codes`.
    pub fn of(index_n: &[usize], codes: usize) -> Result<Self, MetricError> {
        let holds = (1..=MAX_CELLS).contains(&codes);
        MetricError::check_setting("codes", codes as f64, "in 1..=67108864", holds)?;
        MetricError::check_not_empty("indices", index_n.len())?;
        MetricError::check_below("indices", index_n, codes)?;
        let mut counts = vec![0; codes];
        index_n.iter().for_each(|&index| counts[index] += 1);
        let used = counts.iter().filter(|&&count| count > 0).count();
        let perplexity = entropy_of(Array1::from_vec(counts.clone()).view()).exp();
        Ok(Self { counts, perplexity, used, usage: used as f64 / codes as f64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn specialisation_by_hand() {
        // Labels 2, 2 of four; experts 3, 1; cells 2, 1, 1.
        let got = Specialisation::of(&[0, 0, 1, 1], &[0, 0, 0, 1], None, None).unwrap();
        assert_eq!(got.count_le, array![[2, 0], [1, 1]]);
        let (ln2, ln3) = (2f64.ln(), 3f64.ln());
        // H(l) = ln 2; H(e) = 2 ln 2 - 3/4 ln 3; H(l, e) = 3/2 ln 2.
        let mi = 1.5 * ln2 - 0.75 * ln3;
        assert!((got.mi - mi).abs() < 1e-15);
        assert!((got.nmi - 2.0 * mi / (3.0 * ln2 - 0.75 * ln3)).abs() < 1e-15);
        // Expert 0 has two of label 0, expert 1 one of label 1.
        assert_eq!(got.purity, 0.75);
        // One expert for three labels is right about one of them; three for one label always are.
        let purity =
            |l: &[usize], e: &[usize]| Specialisation::of(l, e, None, None).unwrap().purity;
        assert_eq!((purity(&[0, 1, 2], &[0; 3]), purity(&[0; 3], &[0, 1, 2])), (1.0 / 3.0, 1.0));
    }

    #[test]
    fn a_single_cell_has_no_information() {
        let got = Specialisation::of(&[0, 0], &[1, 1], None, Some(3)).unwrap();
        assert_eq!((got.mi, got.nmi, got.purity), (0.0, 0.0, 1.0));
        assert_eq!(got.count_le, array![[0, 2, 0]]);
    }

    #[test]
    fn labels_out_of_their_number_are_refused() {
        let refused = |l: &[usize], e: &[usize], labels| {
            Specialisation::of(l, e, labels, None).unwrap_err().to_string()
        };
        assert_eq!(refused(&[0, 2], &[0, 0], Some(2)), "value 1 of labels is 2, out of range 0..2");
        assert_eq!(refused(&[0], &[0, 0], None), "experts: shape [2], expected [1]");
        assert!(refused(&[], &[], None).contains("shape"));
        // A table of this size would take the machine's memory.
        assert!(refused(&[1 << 20], &[1 << 20], None).contains("range"));
        assert!(refused(&[usize::MAX], &[0], None).contains("range"));
    }

    #[test]
    fn code_usage_by_hand() {
        // Frequencies 1/2, 1/4, 1/4, 0: entropy 3/2 ln 2.
        let got = CodeUsage::of(&[0, 0, 1, 2], 4).unwrap();
        assert_eq!((got.counts, got.used, got.usage), (vec![2, 1, 1, 0], 3, 0.75));
        assert!((got.perplexity - 2f64.powf(1.5)).abs() < 1e-15);
        assert!(CodeUsage::of(&[4], 4).unwrap_err().to_string().contains("range"));
        assert!(CodeUsage::of(&[0], 0).unwrap_err().to_string().starts_with("codes"));
    }
}
