//! Causal attention of a few heads, forward and backward.

use moe_kernels::{AttentionInput, Heads, Isa, Score, attention, attention_backward};

use crate::Work;

/// Tokens beyond one panel of every kernel, and not a multiple of any.
const HEADS: Heads = Heads { batch: 1, tokens: 100, heads: 2, width: 32, causal: true };

/// Both passes on values between -1 and 1.
pub(crate) fn work<S: Score + 'static>(isa: Isa) -> Work {
    let tokens = HEADS.batch * HEADS.tokens * HEADS.heads;
    let value = |i: usize| S::narrow((i * 7919 % 2001) as f32 / 1000.0 - 1.0);
    let of = |count: usize| -> Vec<S> { (0..count).map(value).collect() };
    let (qkv, dy) = (of(3 * tokens * HEADS.width), of(tokens * HEADS.width));
    let (mut y, mut dqkv, mut log_bmt) = (dy.clone(), qkv.clone(), vec![0.0; tokens]);
    Box::new(move || {
        attention(isa, &HEADS, &qkv, &mut y, &mut log_bmt)?;
        let input = AttentionInput { qkv: &qkv, y: &y, log_bmt: &log_bmt, dy: &dy };
        attention_backward(isa, &HEADS, input, &mut dqkv)
    })
}
