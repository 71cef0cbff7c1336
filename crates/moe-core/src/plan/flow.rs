//! Moving tokens through a sparse plan: dispatch, combine, and the dense `[t, e]` forms.
//!
//! Axis letters: `t` tokens of all groups, `d` model width, `e` experts, `n` routed rows.

use super::SparsePlan;
use super::build::counting_sort;
use crate::score::ROWS_PER_TASK;
use ndarray::parallel::prelude::*;
use ndarray::{Array1, Array2, ArrayView2, Axis};

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
        let (starts, row_n) = counting_sort(self.token_n.iter().copied(), self.all_tokens());
        let mut y_td = Array2::zeros((self.all_tokens(), y_nd.ncols()));
        (y_td.axis_iter_mut(Axis(0)).into_par_iter())
            .enumerate()
            .with_min_len(ROWS_PER_TASK)
            .for_each(|(token, mut y_d)| {
                for &row in &row_n[starts[token]..starts[token + 1]] {
                    y_d.scaled_add(self.weight_n[row], &y_nd.row(row));
                }
            });
        y_td
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
