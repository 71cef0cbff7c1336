//! Numbers and draws that the tests of this module share with the script that made their constants.

/// Differences of eight pairs, two of them positive; exact in binary, so that ties of resamples do not
/// hang on the order of a sum.
pub(crate) const FEW: [f64; 8] = {
    const UNIT: f64 = 1.0 / 1024.0;
    [
        -31.0 * UNIT,
        -12.0 * UNIT,
        4.0 * UNIT,
        -27.0 * UNIT,
        -19.0 * UNIT,
        -8.0 * UNIT,
        -22.0 * UNIT,
        UNIT,
    ]
};

/// Twelve positive values with a long tail.
pub(crate) const SKEWED: [f64; 12] =
    [0.5, 3.25, 0.75, 0.125, 1.0, 0.25, 6.5, 0.375, 0.625, 2.0, 0.875, 0.0625];

/// More values than all sign patterns are tried of.
pub(crate) const MANY: [f64; 24] = [
    0.276, 0.018, 0.79, 0.255, -0.386, 0.512, 1.454, 1.097, -0.554, -1.115, -0.473, 0.191, -2.175,
    -0.069, -1.096, -0.582, -0.394, -0.166, 0.562, 1.193, 0.021, 1.516, -0.515, 0.502,
];

/// Knuth's linear congruential generator modulo 2^64, which Python repeats in one line.
pub(crate) struct Draws(pub(crate) u64);

impl Draws {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0
    }

    /// Nearly normal: twelve uniform values less their mean.
    pub(crate) fn normal(&mut self) -> f64 {
        (0..12).map(|_| (self.next() >> 11) as f64 / (1u64 << 53) as f64).sum::<f64>() - 6.0
    }
}

/// Agreement with numbers that another program computed in the same precision.
#[track_caller]
pub(crate) fn assert_near(got: f64, want: f64) {
    assert!((got - want).abs() <= 1e-9 * want.abs().max(1.0), "{got} is not {want}");
}
