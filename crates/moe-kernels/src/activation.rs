//! Nonlinearities and their slopes, free of branches so that loops over them become vectors.

use std::f32::consts::{FRAC_1_SQRT_2, LOG2_E};

use crate::arch::Kernel;
use crate::shape::Activation;

/// A nonlinearity of one number.
pub(crate) trait Curve {
    /// Its value and its slope.
    fn both<K: Kernel>(x: f32) -> [f32; 2];

    /// Its value.
    #[inline(always)]
    fn value<K: Kernel>(x: f32) -> f32 {
        Self::both::<K>(x)[0]
    }
}

/// `max(0, x)`; its slope at zero is zero.
pub(crate) struct Relu;
/// `x Phi(x)`.
pub(crate) struct Gelu;
/// `x / (1 + exp(-x))`.
pub(crate) struct Silu;

impl Curve for Relu {
    #[inline(always)]
    fn both<K: Kernel>(x: f32) -> [f32; 2] {
        // Not `max`: a NaN must stay one.
        if x < 0.0 { [0.0, 0.0] } else { [x, if x == 0.0 { 0.0 } else { 1.0 }] }
    }
}

impl Curve for Gelu {
    #[inline(always)]
    fn both<K: Kernel>(x: f32) -> [f32; 2] {
        /// `1 / sqrt(2 pi)`.
        const DENSITY_AT_ZERO: f32 = 0.398_942_3;
        let below = 0.5 + 0.5 * erf::<K>(x * FRAC_1_SQRT_2);
        [x * below, below + x * DENSITY_AT_ZERO * exp::<K>(-0.5 * x * x)]
    }
}

impl Curve for Silu {
    #[inline(always)]
    fn both<K: Kernel>(x: f32) -> [f32; 2] {
        let exp = exp::<K>(-x);
        let sigmoid = 1.0 / (1.0 + exp);
        // `1 - sigmoid` would cancel.
        [x * sigmoid, sigmoid * (1.0 + x * (exp * sigmoid))]
    }
}

/// Work on one of the curves.
pub(crate) trait OnCurve {
    /// Does it.
    fn run<C: Curve>(self);
}

impl Activation {
    /// Runs `work` on the curve of this activation.
    #[inline(always)]
    pub(crate) fn on_curve(self, work: impl OnCurve) {
        match self {
            Self::Relu => work.run::<Relu>(),
            Self::Gelu | Self::Geglu => work.run::<Gelu>(),
            Self::Swiglu => work.run::<Silu>(),
        }
    }
}

/// `a b + c`, rounded once where the kernel's processor does that in one instruction.
#[inline(always)]
fn multiply_add<K: Kernel>(a: f32, b: f32, c: f32) -> f32 {
    if K::FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// A polynomial by Horner's rule, the highest coefficient first.
#[inline(always)]
fn polynomial<K: Kernel, const N: usize>(x: f32, coefficients: [f32; N]) -> f32 {
    let mut p = coefficients[0];
    for coefficient in &coefficients[1..] {
        p = multiply_add::<K>(p, x, *coefficient);
    }
    p
}

/// `exp(x)` to 2 units in the last place for `-87 <= x <= 88`; clamped outside.
///
/// `2^n exp(r)` with `|r| <= ln(2) / 2`, `ln 2` in two parts, and a polynomial of degree 7
/// (coefficients of Cephes' `expf`, S. Moshier).
#[inline(always)]
pub(crate) fn exp<K: Kernel>(x: f32) -> f32 {
    /// Adding it rounds to an integer, which stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    const TAYLOR: [f32; 6] =
        [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    // Comparisons that are false for NaN, so that it passes through.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = multiply_add::<K>(x, LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = multiply_add::<K>(-n, LN_2_LOW, multiply_add::<K>(-n, LN_2_HIGH, x));
    let mantissa = multiply_add::<K>(polynomial::<K, 6>(r, TAYLOR), r * r, r) + 1.0;
    let exponent = (shifted.to_bits() << 23).wrapping_add(127 << 23);
    mantissa * f32::from_bits(exponent)
}

/// The error function, by the rational approximation of Eigen's `erf` for `f32`.
#[inline(always)]
fn erf<K: Kernel>(x: f32) -> f32 {
    const ABOVE: [f32; 7] = [
        -2.726_142_3e-10,
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906_3e-4,
        -2.954_6e-3,
        -1.609_603_3e-2,
    ];
    const BELOW: [f32; 5] =
        [-1.456_607_2e-5, -2.133_740_6e-4, -1.682_827_e-3, -7.373_329e-3, -1.426_473_9e-2];
    let y = x * x;
    let inside = x * polynomial::<K, 7>(y, ABOVE) / polynomial::<K, 5>(y, BELOW);
    // From here on it is one to the last bit, and a product with a large number must see that.
    let above = if x > 4.0 { 1.0 } else { inside };
    if x < -4.0 { -1.0 } else { above }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Plain = crate::arch::Portable<f32>;

    /// The largest error of `got` against `want` over `[-30, 30]`, relative to `max(|want|, 1)`.
    fn worst(got: fn(f32) -> f32, want: fn(f64) -> f64) -> f64 {
        let points = (-30_000..=30_000).map(|i| i as f32 * 1e-3);
        let error = |x: f32| {
            let want = want(f64::from(x));
            (f64::from(got(x)) - want).abs() / want.abs().max(1.0)
        };
        points.map(error).fold(0.0, f64::max)
    }

    fn gelu(x: f64) -> f64 {
        0.5 * x * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2))
    }

    fn gelu_slope(x: f64) -> f64 {
        let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        0.5 * (1.0 + libm::erf(x * std::f64::consts::FRAC_1_SQRT_2)) + x * density
    }

    fn silu(x: f64) -> f64 {
        x / (1.0 + (-x).exp())
    }

    fn silu_slope(x: f64) -> f64 {
        let sigmoid = 1.0 / (1.0 + (-x).exp());
        sigmoid * (1.0 + x * (1.0 - sigmoid))
    }

    /// A few units in the last place of numbers near one.
    const CLOSE: f64 = 5e-7;

    /// The same times the largest argument at which the error function still matters, about 5.6.
    const CLOSE_TIMES_X: f64 = 1.5e-6;

    fn curves_follow_their_formulas_on<K: Kernel>() {
        assert!(worst(Gelu::value::<K>, gelu) < CLOSE_TIMES_X);
        assert!(worst(|x| Gelu::both::<K>(x)[1], gelu_slope) < CLOSE);
        assert!(worst(Silu::value::<K>, silu) < CLOSE);
        assert!(worst(|x| Silu::both::<K>(x)[1], silu_slope) < CLOSE);
        assert!(worst(exp::<K>, f64::exp) < CLOSE);
    }

    #[test]
    fn curves_follow_their_formulas() {
        const { assert!(!Plain::FUSED) };
        curves_follow_their_formulas_on::<Plain>();
        // The arithmetic alone: without the processor's instruction the library's is called.
        #[cfg(target_arch = "x86_64")]
        curves_follow_their_formulas_on::<crate::arch::Avx512>();
    }

    #[test]
    fn the_ends_of_the_line() {
        for curve in [Relu::both::<Plain>, Gelu::both::<Plain>, Silu::both::<Plain>] {
            assert!(curve(f32::NAN)[0].is_nan());
            assert_eq!(curve(1e9), [1e9, 1.0]);
            assert!(curve(-1e9)[0].abs() < 1e-6 && curve(-1e9)[1].abs() < 1e-6);
        }
        assert_eq!((Relu::both::<Plain>(0.0), Relu::both::<Plain>(-0.0)), ([0.0, 0.0], [0.0, 0.0]));
    }
}
