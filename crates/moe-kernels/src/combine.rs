//! The weighted sum of each token's rows.
//!
//! Axis letters: `n` rows, `t` tokens, `d` width.

use crate::arch::{Job, Kernel};
use crate::sort::Groups;
use crate::tasks;

/// Tokens that a thread sums before it asks for more.
const TOKENS: usize = 32;

/// `y[t] = sum of row_nd[n]` over the rows of each token, in the order of the plan: a gather for each
/// token rather than scattered additions, so that every sum has one order whatever the threads do.
pub(crate) fn combine<K: Kernel>(
    kernel: K,
    width: usize,
    rows_of: &Groups,
    row_nd: &[f32],
    y_td: &mut [f32],
) {
    let chunks = y_td.chunks_mut(TOKENS * width).enumerate().collect();
    tasks::run_all(chunks, |(chunk, y_td): (usize, _)| {
        kernel.vectorized(Sums { rows_of, first: chunk * TOKENS, row_nd, width, y_td });
    });
}

/// The sums of some tokens.
struct Sums<'a> {
    rows_of: &'a Groups,
    /// The first token.
    first: usize,
    row_nd: &'a [f32],
    width: usize,
    y_td: &'a mut [f32],
}

impl Job for Sums<'_> {
    #[inline(always)]
    fn run(self) {
        for (token, y_d) in self.y_td.chunks_exact_mut(self.width).enumerate() {
            sum(self.rows_of.of(self.first + token), self.row_nd, y_d);
        }
    }
}

#[inline(always)]
fn sum(rows: &[u32], row_nd: &[f32], y_d: &mut [f32]) {
    let width = y_d.len();
    let row = |row: u32| &row_nd[row as usize * width..][..width];
    match rows {
        [] => y_d.fill(0.0),
        [only] => y_d.copy_from_slice(row(*only)),
        [first, second, rest @ ..] => {
            for ((y, a), b) in y_d.iter_mut().zip(row(*first)).zip(row(*second)) {
                *y = a + b;
            }
            for &next in rest {
                for (y, x) in y_d.iter_mut().zip(row(next)) {
                    *y += x;
                }
            }
        }
    }
}
