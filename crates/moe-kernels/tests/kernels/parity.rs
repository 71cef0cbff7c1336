//! Every kernel of this machine against plain `f64` loops.

use crate::instruction_sets;
use crate::oracle::problem::{Problem, answer, problems};
use crate::oracle::tolerance::{DIFFERENCES, STEP, relative_error, relative_to, tolerance};
use moe_kernels::{Activation, Dtype, Shape, Workspace};
use proptest::prelude::*;

/// Outputs and gradients of all kernels, hidden layer saved and not.
fn check(problem: &Problem) {
    check_in(problem, Dtype::F32);
    check_in(&problem.rounded(), Dtype::Bf16);
}

fn check_in(problem: &Problem, dtype: Dtype) {
    let (y_td, mut want) = (problem.output(), problem.gradients());
    let (want, bound, terms) = (want.all_mut(), tolerance(dtype), problem.terms());
    let mut workspace = Workspace::new();
    for isa in instruction_sets() {
        for save in [false, true] {
            let got = answer(problem, isa, dtype, save, 0.0, &mut workspace).unwrap();
            let error = relative_error(&got.y_td, &y_td);
            assert!(error <= bound.value, "{isa:?} {dtype:?}: output off by {error}");
            for (((name, want), got), least) in want.iter().zip(&got.grads).zip(terms) {
                let error = relative_to(least, got, want);
                assert!(error <= bound.gradient, "{isa:?} {dtype:?}: {name} off by {error}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn small_shapes(problem in problems(5, 37, 41, 33)) {
        check(&problem);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn shapes_of_several_parts(problem in problems(2, 70, 600, 40)) {
        check(&problem);
    }

    #[test]
    fn widths_of_several_parts(problem in problems(2, 600, 70, 40)) {
        check(&problem);
    }
}

/// More rows of an expert than a task takes, and than fit in one part of a weight's sum.
#[test]
fn many_rows() {
    for activation in [Activation::Gelu, Activation::Swiglu] {
        let shape = Shape { experts: 2, width: 9, hidden: 18, activation, bias: true };
        check(&Problem::new(shape, 1100, 255, 9, 7));
    }
}

/// The oracle's gradients are those of its outputs.
#[test]
fn the_oracle_agrees_with_central_differences() {
    for (seed, activation) in Activation::ALL.into_iter().enumerate() {
        let shape = Shape { experts: 2, width: 3, hidden: 4, activation, bias: true };
        let problem = Problem::new(shape, 4, 180, 9, seed as u64);
        let mut gradients = problem.gradients();
        for (index, (name, gradient)) in gradients.all_mut().into_iter().enumerate() {
            for (at, gradient) in gradient.iter().enumerate() {
                let difference = difference(&problem, index, at);
                assert!((gradient - difference).abs() < DIFFERENCES, "{activation:?} {name} {at}");
            }
        }
    }
}

/// The central difference of `output . dy` in a value.
fn difference(problem: &Problem, array: usize, at: usize) -> f64 {
    let moved = |step: f64| {
        let mut problem = problem.clone();
        problem.values.all_mut()[array].1[at] += step;
        problem.output().iter().zip(&problem.dy_td).map(|(y, dy)| y * dy).sum::<f64>()
    };
    (moved(STEP) - moved(-STEP)) / (2.0 * STEP)
}
