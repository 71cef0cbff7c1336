//! SMoE-Dropout by hand.

use super::*;
use Schedule::*;
use ndarray::array;

/// From 2 to 6 over 600 steps. Linear: at 300 `4 * 1/2 + 2 = 4`; at 75 `r(4/8) + 2`, a half that
/// rounds to the even 0. Cosine at 400: `cos(pi/3) = 1/2`, so `r(-2) + 6 = 4` going up and
/// `r(2) + 2 = 4` going down. Exponential at 600: `0.99^300 = 0.049`, `r(-0.2) + 6 = 6`; at 100:
/// `0.99^50 = 0.605`, `r(-2.42) + 6 = 4`; at 3 the exponent is `3 div 2 = 1`: `r(-3.96) + 6 = 2`.
/// Beyond the end k stays.
#[test]
fn schedules_by_hand() {
    let range = Range { k_min: 2, k_max: 6, steps_total: 600 };
    let cases: [(Schedule, &[(u64, usize)]); 5] = [
        (LinearIncrease, &[(0, 2), (75, 2), (300, 4), (900, 6)]),
        (LinearDecrease, &[(0, 6), (75, 6), (600, 2), (900, 2)]),
        (CosineIncrease, &[(0, 2), (400, 4), (700, 6)]),
        (CosineDecrease, &[(0, 6), (400, 4)]),
        (ExpIncrease, &[(0, 2), (3, 2), (100, 4), (600, 6)]),
    ];
    for (schedule, points) in cases {
        for &(step, k) in points {
            assert_eq!(schedule.top_k(range, step), k, "{schedule:?} at {step}");
        }
    }
    let refused = |schedule: Schedule, range| schedule.check(range).unwrap_err().to_string();
    assert!(refused(LinearIncrease, Range { k_min: 7, ..range }).starts_with("k_min"));
    assert!(refused(ExpIncrease, Range { steps_total: 299, ..range }).starts_with("steps_total"));
}

/// `l = (0, ln 3, ln 2)`. In evaluation k = 3: weights `(1, 3, 2)/6`. At the first step k is
/// `3 div 2 = 1`: expert 1 with weight 1. At step 5000 of 10000 `r(2 * 1/2) + 1 = 2`: `3/5, 2/5`.
#[test]
fn by_hand() {
    let gate_ed = array![[0.0], [3f64.ln()], [2f64.ln()]];
    let host = Host { gate_ed, config: Config::preset("paper") };
    let x_td = array![[1.0]];
    for (step, want_te) in [
        (None, array![[1. / 6., 0.5, 2. / 6.]]),
        (Some(0), array![[0.0, 1.0, 0.0]]),
        (Some(5000), array![[0.0, 0.6, 0.4]]),
    ] {
        let input = HostInput::new(x_td.view()).train(step.is_some());
        let routing = host.route(&input.step(step.unwrap_or(0))).unwrap();
        let difference = routing.plan.combine_te() - want_te;
        assert!(difference.iter().all(|v| v.abs() < 1e-12), "{step:?}: {difference}");
    }
}
