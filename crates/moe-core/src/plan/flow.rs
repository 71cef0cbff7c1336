//! Moving tokens through a sparse plan: dispatch, combine, and the dense `[t, e]` forms.
//!
//! Axis letters: `t` tokens of all groups, `d` model width, `e` experts, `n` routed rows.

use super::SparsePlan;
use crate::score::ROWS_PER_TASK;
use ndarray::parallel::prelude::*;
use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis};

impl SparsePlan {
    /// Gathers the rows every expert reads, `[t, d] -> [n, d]`.
    ///
    /// # Panics
    ///
    /// If `x_td` has another number of tokens than the plan.
    pub fn dispatch(&self, x_td: ArrayView2<'_, f64>) -> Array2<f64> {
        let (x, tokens) = (x_td.shape(), self.all_tokens());
        assert_eq!(x[0], tokens, "dispatch of x_td {x:?} by a plan of {tokens} tokens");
        let mut x_nd = Array2::zeros((self.token_n.len(), x_td.ncols()));
        (x_nd.axis_iter_mut(Axis(0)).into_par_iter())
            .zip(&self.token_n)
            .with_min_len(ROWS_PER_TASK)
            .for_each(|(mut row_d, &token)| row_d.assign(&x_td.row(token)));
        x_nd
    }

    /// Sums the experts' outputs back to the tokens by weight, `[n, d] -> [t, d]`; a token without
    /// rows is zero.
    ///
    /// The terms of a token are added in the order of the experts, whatever the number of threads.
    ///
    /// # Panics
    ///
    /// If `y_nd` has another number of rows than the plan.
    pub fn combine(&self, y_nd: ArrayView2<'_, f64>) -> Array2<f64> {
        let (y, rows) = (y_nd.shape(), self.token_n.len());
        assert_eq!(y[0], rows, "combine of y_nd {y:?} by a plan of {rows} rows");
        let mut y_td = Array2::zeros((self.all_tokens(), y_nd.ncols()));
        // Every task scans all rows for its own tokens: as many tasks as threads, no more.
        let tokens_per_task = self.all_tokens().div_ceil(rayon::current_num_threads());
        let tokens_per_task = tokens_per_task.max(ROWS_PER_TASK);
        (y_td.axis_chunks_iter_mut(Axis(0), tokens_per_task).into_par_iter())
            .enumerate()
            .for_each(|(task, y_td)| self.scatter(y_nd, task * tokens_per_task, y_td));
        y_td
    }

    /// Adds the weighted rows of the tokens from `first` on to `y_td`, as far as it reaches.
    fn scatter(&self, y_nd: ArrayView2<'_, f64>, first: usize, mut y_td: ArrayViewMut2<'_, f64>) {
        let own = first..first + y_td.nrows();
        for (row, (token, &weight)) in self.token_n.iter().zip(&self.weight_n).enumerate() {
            if own.contains(token) {
                y_td.row_mut(token - first).scaled_add(weight, &y_nd.row(row));
            }
        }
    }

    /// 1 where a token is sent to an expert and kept, else 0, `[t, e]`.
    pub fn mask_te(&self) -> Array2<f64> {
        self.dense_te(|_| 1.0)
    }

    /// The weight with which an expert's output enters a token, else 0, `[t, e]`.
    pub fn combine_te(&self) -> Array2<f64> {
        self.dense_te(|weight| weight)
    }

    fn dense_te(&self, value: impl Fn(f64) -> f64) -> Array2<f64> {
        let mut dense_te = Array2::zeros((self.all_tokens(), self.experts()));
        for expert in 0..self.experts() {
            for (token, weight) in self.rows(expert) {
                dense_te[[token, expert]] = value(weight);
            }
        }
        dense_te
    }

    /// How many experts read each token, `[t]`; 0 for a dropped one.
    pub fn kept_per_token(&self) -> Vec<usize> {
        let mut kept_t = vec![0; self.all_tokens()];
        self.token_n.iter().for_each(|&token| kept_t[token] += 1);
        kept_t
    }

    /// The sum of the weights of each token, `[t]`; 0 for a dropped one.
    pub fn weight_per_token(&self) -> Array1<f64> {
        let mut weight_t = Array1::zeros(self.all_tokens());
        self.token_n.iter().zip(&self.weight_n).for_each(|(&token, w)| weight_t[token] += w);
        weight_t
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Three tokens, two experts; expert 0 reads tokens 2 and 0, expert 1 reads token 2.
    fn plan() -> SparsePlan {
        SparsePlan::from_lists(3, &[vec![(2, 0.5), (0, 2.0)], vec![(2, 0.25)]]).unwrap()
    }

    #[test]
    fn dispatch_and_combine_by_hand() {
        let x_td = array![[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]];
        let x_nd = plan().dispatch(x_td.view());
        assert_eq!(x_nd, array![[5.0, 6.0], [1.0, 2.0], [5.0, 6.0]]);
        let y_nd = array![[10.0, 0.0], [1.0, 1.0], [4.0, 8.0]];
        // Token 0: 2 (1, 1); token 1 was dropped; token 2: 0.5 (10, 0) + 0.25 (4, 8).
        assert_eq!(plan().combine(y_nd.view()), array![[2.0, 2.0], [0.0, 0.0], [6.0, 2.0]]);
    }

    #[test]
    fn dense_forms_and_sums_by_hand() {
        assert_eq!(plan().mask_te(), array![[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]);
        assert_eq!(plan().combine_te(), array![[2.0, 0.0], [0.0, 0.0], [0.5, 0.25]]);
        assert_eq!(plan().kept_per_token(), [1, 0, 2]);
        assert_eq!(plan().weight_per_token(), array![2.0, 0.0, 0.75]);
    }

    #[test]
    #[should_panic(expected = "dispatch of x_td [2, 1] by a plan of 3 tokens")]
    fn dispatch_names_both_shapes() {
        plan().dispatch(Array2::ones((2, 1)).view());
    }

    #[test]
    #[should_panic(expected = "combine of y_nd [2, 1] by a plan of 3 rows")]
    fn combine_names_both_shapes() {
        plan().combine(Array2::ones((2, 1)).view());
    }
}
