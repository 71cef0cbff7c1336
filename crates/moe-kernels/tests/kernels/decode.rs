//! Decoding against plain `f64` loops.

use crate::instruction_sets;
use crate::oracle::problem::{Narrow, Numbers, Problem, activations, packed};
use crate::oracle::tolerance::{relative_error, tolerance};
use moe_kernels::{Dtype, Groups, Isa, MOST_TOKENS, Shape, Workspace, decode};
use proptest::prelude::*;

/// A problem in which every token has `choices` different experts, and those experts in the order
/// in which the token names them.
fn chosen(shape: Shape, tokens: usize, choices: usize, seed: u64) -> (Problem, Vec<u32>) {
    let mut numbers = Numbers(seed);
    let mut expert_tk = Vec::new();
    for _ in 0..tokens {
        let mut experts: Vec<u32> = (0..shape.experts as u32).collect();
        for _ in 0..choices {
            let pick = numbers.bits() as usize % experts.len();
            expert_tk.push(experts.swap_remove(pick));
        }
    }
    let mut groups = Groups::default();
    groups.sort(shape.experts, &expert_tk).unwrap();
    let token_n = groups.items().iter().map(|item| item / choices as u32).collect();
    let offset_e = groups.offset().to_vec();
    let mut problem = Problem::with_rows(shape, tokens, offset_e, token_n, numbers);
    // Weights are drawn by choice, and the oracle wants them by row.
    let weight_tk = problem.values.weight_n.clone();
    problem.values.weight_n = groups.items().iter().map(|&item| weight_tk[item as usize]).collect();
    (problem, expert_tk)
}

fn check(problem: &Problem, expert_tk: &[u32]) {
    let mut groups = Groups::default();
    groups.sort(problem.shape.experts, expert_tk).unwrap();
    let mut workspace = Workspace::new();
    for (dtype, problem) in [(Dtype::F32, problem), (Dtype::Bf16, &problem.rounded())] {
        let (want, narrow) = (problem.output(), Narrow::of(problem));
        let mut weight_tk = vec![0.0; expert_tk.len()];
        for (&item, &weight) in groups.items().iter().zip(&narrow.weight_n) {
            weight_tk[item as usize] = weight;
        }
        for isa in instruction_sets() {
            let packed = packed(problem, &narrow, isa, dtype);
            let mut y_td = vec![f32::NAN; want.len()];
            let x_td = &narrow.x_td;
            decode(&packed, x_td, expert_tk, &weight_tk, &mut y_td, &mut workspace).unwrap();
            let error = relative_error(&y_td, &want);
            assert!(error <= tolerance(dtype).value, "{isa:?} {dtype:?}: off by {error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_shape(
        experts in 1..=6_usize, width in 1..=70_usize, hidden in 1..=70_usize,
        tokens in 0..=MOST_TOKENS, choices in 1..=6_usize,
        activation in activations(), bias: bool, seed: u64,
    ) {
        let shape = Shape { experts, width, hidden, activation, bias };
        let (problem, expert_tk) = chosen(shape, tokens, choices.min(experts), seed);
        check(&problem, &expert_tk);
    }
}

/// Deeper than a part of a panel, and more rows of an expert than any tile has.
#[test]
fn one_expert_reads_all_tokens() {
    for activation in moe_kernels::Activation::ALL {
        let shape = Shape { experts: 1, width: 450, hidden: 390, activation, bias: true };
        let (problem, expert_tk) = chosen(shape, MOST_TOKENS, 1, 3);
        check(&problem, &expert_tk);
    }
}

/// An expert named twice by a token counts twice.
#[test]
fn an_expert_named_twice_counts_twice() {
    let activation = moe_kernels::Activation::Relu;
    let shape = Shape { experts: 2, width: 5, hidden: 7, activation, bias: true };
    let (problem, _) = chosen(shape, MOST_TOKENS, 1, 4);
    let narrow = Narrow::of(&problem);
    let packed = packed(&problem, &narrow, Isa::detect(), Dtype::F32);
    let mut workspace = Workspace::new();
    let mut run = |expert_tk: &[u32], weight: f32| {
        let mut y_td = vec![0.0; narrow.x_td.len()];
        let weight_tk = vec![weight; expert_tk.len()];
        decode(&packed, &narrow.x_td, expert_tk, &weight_tk, &mut y_td, &mut workspace).unwrap();
        y_td
    };
    assert_eq!(run(&[1; 2 * MOST_TOKENS], 0.5), run(&[1; MOST_TOKENS], 1.0));
}
