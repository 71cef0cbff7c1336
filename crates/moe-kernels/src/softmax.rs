//! Softmax over rows of scores, in place: that of an output layer with its cross-entropy, and that of
//! causal attention with its gradient.
//!
//! ```text
//! p_nv = exp(s_nv - max_v s_nv) / sum_v exp(..)
//! loss = sum_n -ln p_n[y_n]          ds_nv = c (p_nv - [v = y_n])
//! p_ij = softmax_{j <= i}(c s_ij)    ds_ij = c p_ij (dp_ij - sum_j p_ij dp_ij)
//! ```
//!
//! Scores are read and written once, in their own type; what lies between is `f32` and stays in the
//! first cache. A row belongs to one thread, so that the number of threads changes nothing.
//!
//! Axis letters: `n` rows, `v` vocabulary, `b` batch and heads, `i` queries, `j` keys.

use crate::activation::exp;
use crate::arch::{Isa, Job, Kernel, Work, to_bf16};
use crate::{Dtype, KernelError, tasks};

/// Partial sums of a row: one register of the widest instruction set.
const PARTS: usize = 16;

/// Scores that a thread takes before it asks for more.
const SHARE: usize = 1 << 16;

/// The upper 16 bits of an `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Bf16(pub u16);

/// What scores are stored in.
pub trait Score: Copy + Send + Sync {
    /// What products of such values are carried out in.
    const DTYPE: Dtype;

    /// As `f32`.
    fn wide(self) -> f32;

    /// The nearest value, ties to even.
    fn narrow(x: f32) -> Self;
}

impl Score for f32 {
    const DTYPE: Dtype = Dtype::F32;

    #[inline(always)]
    fn wide(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        x
    }
}

impl Score for Bf16 {
    const DTYPE: Dtype = Dtype::Bf16;

    #[inline(always)]
    fn wide(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        Self(to_bf16(x) as u16)
    }
}

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
    Ok(Isa::detect().run(Dtype::F32, CrossEntropy { score_nv, target_n, scale, columns }))
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
            kernel.vectorized(Rows { score_nv, target_n, scale, row_v, loss_of });
        });
        // Added here: one order of the sum for any number of threads.
        losses.into_iter().sum()
    }
}

/// Some rows of a cross-entropy.
struct Rows<'a, S> {
    score_nv: &'a mut [S],
    target_n: &'a [i64],
    scale: f32,
    row_v: &'a mut [f32],
    loss_of: &'a mut f64,
}

impl<S: Score> Job for Rows<'_, S> {
    #[inline(always)]
    fn run(self) {
        for (score_v, &target) in
            self.score_nv.chunks_exact_mut(self.row_v.len()).zip(self.target_n)
        {
            let target = target as usize;
            let of_target = score_v[target].wide();
            let (most, sum) = exponentials(score_v, 1.0, self.row_v);
            *self.loss_of += f64::from(sum).ln() + (f64::from(most) - f64::from(of_target));
            self.row_v[target] -= sum;
            write_scaled(self.row_v, self.scale / sum, score_v);
        }
    }
}

/// `row_j = exp(scale s_j - most)`; the largest `scale s_j`, and the sum of the row.
#[inline(always)]
fn exponentials<S: Score>(score_j: &[S], scale: f32, row_j: &mut [f32]) -> (f32, f32) {
    for (row, score) in row_j.iter_mut().zip(score_j) {
        *row = scale * score.wide();
    }
    let most = largest(row_j);
    let mut sums = [0.0; PARTS];
    let mut blocks = row_j.chunks_exact_mut(PARTS);
    for block in &mut blocks {
        for (row, sum) in block.iter_mut().zip(&mut sums) {
            *row = exp(*row - most);
            *sum += *row;
        }
    }
    for (row, sum) in blocks.into_remainder().iter_mut().zip(&mut sums) {
        *row = exp(*row - most);
        *sum += *row;
    }
    (most, sums.iter().sum())
}

#[inline(always)]
fn largest(row: &[f32]) -> f32 {
    let mut most = [f32::NEG_INFINITY; PARTS];
    let blocks = row.chunks_exact(PARTS);
    let rest = blocks.remainder();
    for block in blocks.chain([rest]) {
        for (most, &x) in most.iter_mut().zip(block) {
            *most = if x > *most { x } else { *most };
        }
    }
    most.iter().fold(f32::NEG_INFINITY, |most, &x| if x > most { x } else { most })
}

#[inline(always)]
fn write_scaled<S: Score>(row: &[f32], scale: f32, to: &mut [S]) {
    for (to, row) in to.iter_mut().zip(row) {
        *to = S::narrow(scale * row);
    }
}

/// Scores of queries against keys, `[b, i, j]` with as many keys as queries, to the attention weights of
/// the keys up to each query, in place: `softmax(scale score)`, and zeros for later keys.
///
/// # Errors
///
/// If the scores are no squares of `tokens`.
pub fn causal_softmax<S: Score>(
    score_bij: &mut [S],
    tokens: usize,
    scale: f32,
) -> Result<(), KernelError> {
    check_squares("score_bij", score_bij.len(), tokens)?;
    Isa::detect().run(Dtype::F32, Causal { score_bij, tokens, scale });
    Ok(())
}

/// The gradient of the scores of [`causal_softmax`] from its result `weight_bij` and the result's gradient,
/// in the place of the latter.
///
/// # Errors
///
/// If the two are no squares of `tokens`, or not of one length.
pub fn causal_softmax_backward<S: Score>(
    weight_bij: &[S],
    grad_bij: &mut [S],
    tokens: usize,
    scale: f32,
) -> Result<(), KernelError> {
    check_squares("weight_bij", weight_bij.len(), tokens)?;
    KernelError::check("grad_bij", weight_bij.len(), grad_bij.len())?;
    Isa::detect().run(Dtype::F32, CausalBackward { weight_bij, grad_bij, tokens, scale });
    Ok(())
}

fn check_squares(what: &'static str, got: usize, tokens: usize) -> Result<(), KernelError> {
    let axes = [got, tokens, tokens];
    let square = tokens.checked_mul(tokens).ok_or(KernelError::Overflow { what, axes })?;
    KernelError::check(what, got / square.max(1) * square, got)
}

struct Causal<'a, S> {
    score_bij: &'a mut [S],
    tokens: usize,
    scale: f32,
}

impl<S: Score> Work for Causal<'_, S> {
    type Out = ();

    fn run<K: Kernel>(self, kernel: K) {
        let Self { score_bij, tokens, scale } = self;
        if tokens == 0 {
            return;
        }
        tasks::run_all(score_bij.chunks_mut(tokens * tokens).collect(), |score_ij| {
            let row_j = &mut vec![0.0; tokens];
            kernel.vectorized(Square { score_ij, scale, row_j });
        });
    }
}

/// The scores of one head.
struct Square<'a, S> {
    score_ij: &'a mut [S],
    scale: f32,
    row_j: &'a mut [f32],
}

impl<S: Score> Job for Square<'_, S> {
    #[inline(always)]
    fn run(self) {
        let tokens = self.row_j.len();
        for (i, score_j) in self.score_ij.chunks_exact_mut(tokens).enumerate() {
            let (seen_j, later_j) = score_j.split_at_mut(i + 1);
            let row_j = &mut self.row_j[..=i];
            let (_, sum) = exponentials(seen_j, self.scale, row_j);
            write_scaled(row_j, 1.0 / sum, seen_j);
            later_j.fill(S::narrow(0.0));
        }
    }
}

struct CausalBackward<'a, S> {
    weight_bij: &'a [S],
    grad_bij: &'a mut [S],
    tokens: usize,
    scale: f32,
}

impl<S: Score> Work for CausalBackward<'_, S> {
    type Out = ();

    fn run<K: Kernel>(self, kernel: K) {
        let Self { weight_bij, grad_bij, tokens, scale } = self;
        if tokens == 0 {
            return;
        }
        let square = tokens * tokens;
        let squares = grad_bij.chunks_mut(square).zip(weight_bij.chunks(square));
        tasks::run_all(squares.collect(), |(grad_ij, weight_ij)| {
            kernel.vectorized(SquareBackward { weight_ij, grad_ij, tokens, scale });
        });
    }
}

/// The gradient of the scores of one head.
struct SquareBackward<'a, S> {
    weight_ij: &'a [S],
    grad_ij: &'a mut [S],
    tokens: usize,
    scale: f32,
}

impl<S: Score> Job for SquareBackward<'_, S> {
    #[inline(always)]
    fn run(self) {
        let rows = self.grad_ij.chunks_exact_mut(self.tokens);
        for (i, (grad_j, weight_j)) in
            rows.zip(self.weight_ij.chunks_exact(self.tokens)).enumerate()
        {
            let (seen_j, later_j) = grad_j.split_at_mut(i + 1);
            let mean = dot(&weight_j[..=i], seen_j);
            for (grad, weight) in seen_j.iter_mut().zip(weight_j) {
                *grad = S::narrow(self.scale * weight.wide() * (grad.wide() - mean));
            }
            later_j.fill(S::narrow(0.0));
        }
    }
}

#[inline(always)]
pub(crate) fn dot<S: Score>(a: &[S], b: &[S]) -> f32 {
    let mut sums = [0.0; PARTS];
    for (a, b) in a.chunks(PARTS).zip(b.chunks(PARTS)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a.wide() * b.wide();
        }
    }
    sums.iter().sum()
}
