//! The largest values of a row, exactly as a stable sort lists them, at the price of a selection.

use tch::{Kind, Tensor};

/// Indices of the `k` largest along the last axis, largest first, the lower index first among equals,
/// NaN before everything: the head of a stable descending sort. `[.., n] -> [.., k]`, int64.
///
/// `topk` alone promises nothing about equals. A number of at most 32 bits and its index fit into one
/// integer, and among distinct integers there are none; sorting rows of 256 takes eight times as long.
///
/// # Panics
/// On a scalar, or if there are fewer than `k` values.
pub fn largest(score: &Tensor, k: i64) -> Tensor {
    let score = score.detach();
    match score.kind() {
        Kind::Float | Kind::Half | Kind::BFloat16 => keys(&score).topk(k, -1, true, true).1,
        _ => score.argsort_stable(true, -1, true).narrow(-1, 0, k),
    }
}

/// Integers in the order of (value, falling index).
fn keys(score: &Tensor) -> Tensor {
    let n = *score.size().last().expect("an axis");
    // One bit pattern for all NaN, above infinity, and one for both zeros.
    let value = score.to_kind(Kind::Float).nan_to_num(f64::NAN, f64::INFINITY, f64::NEG_INFINITY);
    let bits = (value + 0.0).view_dtype(Kind::Int);
    // Floats are ordered as their bits are, negative ones in reverse.
    let reversed = bits.bitwise_right_shift_tensor_scalar(31).bitwise_and_(i64::from(i32::MAX));
    let rank = bits.bitwise_xor_tensor(&reversed).to_kind(Kind::Int64);
    rank * n - Tensor::arange(n, (Kind::Int64, score.device()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    fn sorted(score: &Tensor, k: i64) -> Tensor {
        score.argsort_stable(true, -1, true).narrow(-1, 0, k)
    }

    #[test]
    fn edges_are_ordered_as_a_stable_sort_orders_them() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let tiny = f32::from_bits(1);
        let rows = [
            [0.0, -0.0, tiny, -tiny, 0.0, -0.0, inf, -inf],
            [nan, 1.0, -nan, inf, 1.0, nan, f32::MAX, f32::MIN],
            [-inf, -inf, -1.0, -inf, -2.0, -1.0, f32::MIN, -inf],
            [3.0; 8],
        ];
        let score = Tensor::from_slice(&rows.concat()).view([4, 8]);
        for k in 1..=8 {
            assert_eq!(largest(&score, k), sorted(&score, k), "k = {k}");
        }
    }

    #[test]
    fn many_ties_in_every_kind() {
        for kind in [Kind::Float, Kind::Half, Kind::BFloat16, Kind::Double] {
            // Few distinct values, of both signs.
            let score = (Tensor::randn([7, 300], (Kind::Float, Device::Cpu)) * 3.0).round();
            let score = score.to_kind(kind) / 4.0;
            for k in [1, 2, 17, 300] {
                assert_eq!(largest(&score, k), sorted(&score, k), "{kind:?}, k = {k}");
            }
        }
    }
}
