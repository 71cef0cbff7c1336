//! Neither threads nor what ran before change a bit.

use crate::instruction_sets;
use crate::oracle::problem::{Answer, Narrow, Problem, answer, packed};
use moe_kernels::{Activation, Dtype, Isa, Shape, Workspace, decode};

fn in_pool<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

/// Several blocks of rows for some experts, and several parts of a weight's sum.
fn problem() -> Problem {
    let activation = Activation::Swiglu;
    let shape = Shape { experts: 3, width: 40, hidden: 50, activation, bias: true };
    Problem::new(shape, 1500, 140, 9, 11)
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let problem = problem();
    for isa in instruction_sets() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let run = |threads| {
                in_pool(threads, || {
                    answer(&problem, isa, dtype, true, 0.25, &mut Workspace::new()).unwrap()
                })
            };
            let one = run(1);
            assert_eq!(one, run(2), "{isa:?} {dtype:?}");
            assert_eq!(one, run(5), "{isa:?} {dtype:?}");
        }
    }
}

/// A workspace that has seen larger and other problems, NaN too, gives the bits of a fresh one, and a hidden
/// layer that is computed again those of a saved one.
#[test]
fn a_used_workspace_and_recomputing_change_nothing() {
    let problem = problem();
    let mut workspace = Workspace::new();
    let other = Shape { experts: 2, width: 90, activation: Activation::Gelu, ..problem.shape };
    let mut other = Problem::new(other, 700, 255, 9, 5);
    // Whatever is multiplied by the zeros that fill up an operand must not be left over from here.
    other.values.x_td.fill(f64::NAN);
    let kinds = instruction_sets().into_iter();
    for (isa, dtype) in kinds.flat_map(|isa| [(isa, Dtype::F32), (isa, Dtype::Bf16)]) {
        let fresh = answer(&problem, isa, dtype, true, 0.0, &mut Workspace::new()).unwrap();
        let run = |problem, save, workspace: &mut Workspace| -> Answer {
            answer(problem, isa, dtype, save, 0.0, workspace).unwrap()
        };
        run(&other, false, &mut workspace);
        assert_eq!(fresh, run(&problem, true, &mut workspace), "{isa:?} {dtype:?}");
        assert_eq!(fresh, run(&problem, false, &mut workspace), "{isa:?} {dtype:?}");
        assert_eq!(fresh, run(&problem, false, &mut workspace), "{isa:?} {dtype:?}");
    }
}

/// Gradients of weights are added to what is there, those of inputs are not.
#[test]
fn gradients_of_weights_accumulate() {
    let activation = Activation::Geglu;
    let shape = Shape { experts: 3, width: 20, hidden: 33, activation, bias: true };
    // An expert without rows keeps what it has.
    let problem = Problem::new(shape, 30, 140, 1, 2);
    let run = |start| {
        let mut workspace = Workspace::new();
        answer(&problem, Isa::detect(), Dtype::F32, true, start, &mut workspace).unwrap()
    };
    let (from_zero, from_two) = (run(0.0), run(2.0));
    assert_eq!(from_zero.grads[..2], from_two.grads[..2]);
    for (zero, two) in from_zero.grads[2..].iter().zip(&from_two.grads[2..]) {
        let moved: Vec<f64> = zero.iter().map(|&x| f64::from(x) + 2.0).collect();
        let error = crate::oracle::tolerance::relative_error(two, &moved);
        assert!(
            error <= crate::oracle::tolerance::tolerance(Dtype::F32).gradient,
            "off by {error}"
        );
    }
}

#[test]
fn decoding_does_not_depend_on_threads() {
    let activation = Activation::Gelu;
    let shape = Shape { experts: 4, width: 300, hidden: 500, activation, bias: false };
    let problem = Problem::new(shape, 3, 255, 9, 8);
    let narrow = Narrow::of(&problem);
    let packed = packed(&problem, &narrow, Isa::detect(), Dtype::F32);
    let expert_tk = [0, 3, 2, 1, 3, 0];
    let run = |threads| {
        in_pool(threads, || {
            let mut y_td = vec![0.0; narrow.x_td.len()];
            let (x_td, weight_tk) = (&narrow.x_td, &narrow.weight_n[..6]);
            decode(&packed, x_td, &expert_tk, weight_tk, &mut y_td, &mut Workspace::new()).unwrap();
            y_td
        })
    };
    assert_eq!(run(1), run(2));
}
