//! The softmax of an output layer with its cross-entropy, in place.
//!
//! ```text
//! p_nv = exp(s_nv - max_v s_nv) / sum_v exp(..)
//! loss = sum_n -ln p_n[y_n]          ds_nv = c (p_nv - [v = y_n])
//! ```
//!
//! Scores are read and written once, in their own type; what lies between is `f32` and stays in the
//! first cache. A row belongs to one thread, so that the number of threads changes nothing.
//!
//! Axis letters: `n` rows, `v` vocabulary.

use crate::activation::exp;
use crate::arch::{Isa, Job, Kernel, Work};
use crate::score::{PARTS, Score, by_halves, narrow};
use crate::{KernelError, tasks};

/// Scores that a thread takes before it asks for more.
const SHARE: usize = 1 << 16;

/// The sum of the cross-entropies of `target_n` under the softmax of the rows of `score_nv`, in nats;
/// the scores become their gradients, times `scale`.
///
/// # Errors
///
/// If the scores are not `n` rows of like length, or a target is none of their columns; nothing is
/// written then.
pub fn cross_entropy<S: Score>(
    score_nv: &mut [S],
    target_n: &[i64],
    scale: f32,
) -> Result<f64, KernelError> {
    let columns = score_nv.len() / target_n.len().max(1);
    KernelError::check("score_nv", columns * target_n.len(), score_nv.len())?;
    let outside = |target: &i64| usize::try_from(*target).map_or(true, |t| t >= columns);
    if let Some(row) = target_n.iter().position(outside) {
        return Err(KernelError::Target { row, target: target_n[row], columns });
    }
    if columns == 0 {
        return Ok(0.0);
    }
    Ok(Isa::detect()
        .for_few_rows()
        .run(S::DTYPE, CrossEntropy { score_nv, target_n, scale, columns }))
}

struct CrossEntropy<'a, S> {
    score_nv: &'a mut [S],
    target_n: &'a [i64],
    scale: f32,
    columns: usize,
}

impl<S: Score> Work for CrossEntropy<'_, S> {
    type Out = f64;

    fn run<K: Kernel>(self, kernel: K) -> f64 {
        let Self { score_nv, target_n, scale, columns } = self;
        let rows = (SHARE / columns).max(1);
        let mut losses = vec![0.0; target_n.len().div_ceil(rows)];
        let parts = score_nv.chunks_mut(rows * columns).zip(target_n.chunks(rows));
        let parts = parts.zip(&mut losses).collect();
        tasks::run_all(parts, |((score_nv, target_n), loss_of)| {
            let row_v = &mut vec![0.0; columns];
            kernel.vectorized(Rows { score_nv, target_n, scale, row_v, loss_of, kernel });
        });
        // Added here: one order of the sum for any number of threads.
        losses.into_iter().sum()
    }
}

/// Some rows of a cross-entropy.
struct Rows<'a, K, S> {
    score_nv: &'a mut [S],
    target_n: &'a [i64],
    scale: f32,
    row_v: &'a mut [f32],
    loss_of: &'a mut f64,
    kernel: K,
}

impl<K: Kernel, S: Score> Job for Rows<'_, K, S> {
    #[inline(always)]
    fn run(self) {
        for (score_v, &target) in
            self.score_nv.chunks_exact_mut(self.row_v.len()).zip(self.target_n)
        {
            let target = target as usize;
            let of_target = score_v[target].wide();
            let (most, sum) = exponentials::<K, S>(score_v, self.row_v);
            *self.loss_of += f64::from(sum).ln() + (f64::from(most) - f64::from(of_target));
            self.row_v[target] -= sum;
            narrow(self.kernel, score_v, self.row_v, self.scale / sum);
        }
    }
}

/// `row_v = exp(s_v - most)`; the largest `s_v`, and the sum of the row.
#[inline(always)]
fn exponentials<K: Kernel, S: Score>(score_v: &[S], row_v: &mut [f32]) -> (f32, f32) {
    let most = largest(score_v);
    let mut sums = [0.0; PARTS];
    let (rows, rest) = row_v.as_chunks_mut::<PARTS>();
    let (scores, rest_scores) = score_v.as_chunks::<PARTS>();
    for (row, score) in rows.iter_mut().zip(scores) {
        for i in 0..PARTS {
            row[i] = exp::<K>(score[i].wide() - most);
            sums[i] += row[i];
        }
    }
    for ((row, score), sum) in rest.iter_mut().zip(rest_scores).zip(&mut sums) {
        *row = exp::<K>(score.wide() - most);
        *sum += *row;
    }
    (most, by_halves(&mut sums))
}

#[inline(always)]
fn largest<S: Score>(score_v: &[S]) -> f32 {
    let mut most = [f32::NEG_INFINITY; PARTS];
    let (blocks, rest) = score_v.as_chunks::<PARTS>();
    for block in blocks {
        for i in 0..PARTS {
            let x = block[i].wide();
            most[i] = if x > most[i] { x } else { most[i] };
        }
    }
    for (most, x) in most.iter_mut().zip(rest) {
        *most = if x.wide() > *most { x.wide() } else { *most };
    }
    most.iter().fold(f32::NEG_INFINITY, |most, &x| if x > most { x } else { most })
}
