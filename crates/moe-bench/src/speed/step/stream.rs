//! The numbers that initial weights and tokens of the step measurement are made of: splitmix64 (Steele,
//! Lea and Flood 2014), so that any program in any language makes the same.

/// Increment of the generator's state.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The output function of splitmix64.
fn mix(state: u64) -> u64 {
    let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Numbers on `[0, 1)`, multiples of `2^-24`, from the generator whose state begins at `mix(key)`.
pub fn stream(key: u64) -> impl Iterator<Item = f64> {
    let start = mix(key);
    (1u64..).map(move |j| {
        let bits = mix(start.wrapping_add(GOLDEN.wrapping_mul(j))) >> 40;
        bits as f64 / (1u64 << 24) as f64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published outputs of splitmix64 for the seed 1234567.
    #[test]
    fn the_generator_is_splitmix64() {
        let want =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        for (j, want) in (1u64..).zip(want) {
            assert_eq!(mix(1_234_567u64.wrapping_add(GOLDEN.wrapping_mul(j))), want);
        }
    }

    #[test]
    fn numbers_lie_in_the_unit_interval_and_keys_draw_apart() {
        let of = |key| stream(key).take(1000).collect::<Vec<_>>();
        assert!(of(3).iter().all(|u| (0.0..1.0).contains(u)));
        let mean = of(3).iter().sum::<f64>() / 1000.0;
        // Five deviations of a mean of a thousand uniform numbers.
        assert!((mean - 0.5).abs() < 5.0 * (1.0f64 / 12.0 / 1000.0).sqrt(), "{mean}");
        assert!(of(3) != of(4));
    }
}
