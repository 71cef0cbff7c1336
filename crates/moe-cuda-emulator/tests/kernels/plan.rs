//! Choices to rows, against the plans of `moe-core`.

use crate::memory::{Memory, ORDERS, kernels, rounded, widened};
use moe_core::{Choices, DropOrder, SparsePlan};
use moe_cuda::Dtype;
use moe_cuda::kernels::{Plan, RouteShape};
use moe_cuda_emulator::Emulator;
use ndarray::Array2;
use proptest::prelude::*;

#[derive(Debug, PartialEq)]
struct Rows {
    end_e: Vec<i32>,
    load_e: Vec<i64>,
    token_n: Vec<i32>,
    weight_n: Vec<f32>,
    row_gtk: Vec<i32>,
}

fn run(
    on: &Emulator,
    shape: &RouteShape,
    (experts, gates): (&[i32], &[f32]),
    capacity: Option<usize>,
) -> Rows {
    let mut expert_gtk = Memory::i32s(experts);
    let mut gate_gtk = Memory::f32s(gates);
    let mut count_qc = Memory::room(shape.queues() * shape.chunks(), 4);
    let mut room_2q = Memory::room(2 * shape.queues(), 4);
    let [mut end_e, mut load_e] = [4, 8].map(|size| Memory::room(shape.experts, size));
    let [mut token_n, mut weight_n, mut row_gtk] =
        [4; 3].map(|size| Memory::room(shape.choices(), size));
    let it = Plan {
        expert_gtk: expert_gtk.address(),
        gate_gtk: gate_gtk.address(),
        count_qc: count_qc.address(),
        counted: false,
        room_2q: room_2q.address(),
        end_e: end_e.address(),
        load_e: load_e.address(),
        token_n: token_n.address(),
        weight_n: weight_n.address(),
        row_gtk: row_gtk.address(),
        capacity,
    };
    // SAFETY: the addresses are those of the tensors above, which have the sizes of `shape`.
    unsafe { kernels(on).plan(shape, &it) }.unwrap();
    let _whole = (count_qc.to_i32s(), room_2q.to_i32s());
    let end_e = end_e.to_i32s();
    let n = end_e.last().map_or(0, |n| *n as usize);
    Rows {
        end_e,
        load_e: load_e.to_i64s(),
        token_n: token_n.to_i32s()[..n].to_vec(),
        weight_n: weight_n.to_f32s()[..n].to_vec(),
        row_gtk: row_gtk.to_i32s(),
    }
}

/// One group after the other, each expert's queue in the order of tokens, then of choices.
fn oracle(shape: &RouteShape, choices: &Choices, capacity: Option<usize>) -> SparsePlan {
    let group = |g: usize| {
        let rows = g * shape.tokens..(g + 1) * shape.tokens;
        let part = Choices {
            expert_tk: choices.expert_tk.slice(ndarray::s![rows.clone(), ..]).to_owned(),
            gate_tk: choices.gate_tk.slice(ndarray::s![rows, ..]).to_owned(),
        };
        SparsePlan::from_choices(&part, shape.experts, capacity, DropOrder::Position).unwrap()
    };
    SparsePlan::stack(&(0..shape.groups).map(group).collect::<Vec<_>>()).unwrap()
}

fn check(on: &Emulator, shape: &RouteShape, seed: u64, capacity: Option<usize>) {
    let all = (shape.groups * shape.tokens, shape.experts);
    let scores = rounded(Dtype::F32, seed, all.0 * all.1);
    let choices =
        Choices::top_k(Array2::from_shape_vec(all, widened(&scores)).unwrap().view(), shape.k);
    let experts: Vec<i32> = choices.expert_tk.iter().map(|e| *e as i32).collect();
    let gates: Vec<f32> = choices.gate_tk.iter().map(|g| *g as f32).collect();
    let got = run(on, shape, (&experts, &gates), capacity);
    let plan = oracle(shape, &choices, capacity);
    assert_eq!(got.load_e, plan.load().iter().map(|n| *n as i64).collect::<Vec<_>>());
    assert_eq!(got.end_e, plan.offsets()[1..].iter().map(|n| *n as i32).collect::<Vec<_>>());
    assert_eq!(got.token_n, plan.token_n().iter().map(|t| *t as i32).collect::<Vec<_>>());
    assert_eq!(widened(&got.weight_n), plan.weight_n());
    assert_eq!(got.row_gtk, rows_of_choices(shape, &experts, &got));
}

/// Where the row of each choice stands, found by expert and token.
fn rows_of_choices(shape: &RouteShape, experts: &[i32], rows: &Rows) -> Vec<i32> {
    let find = |(choice, expert): (usize, &i32)| {
        let Ok(expert) = usize::try_from(*expert) else { return -1 };
        let start = if expert == 0 { 0 } else { rows.end_e[expert - 1] };
        let token = (choice / shape.k) as i32;
        let found = (start..rows.end_e[expert]).find(|row| rows.token_n[*row as usize] == token);
        found.unwrap_or(-1)
    };
    experts.iter().enumerate().map(find).collect()
}

/// One token, empty experts, `k = E`, more chunks and more queues than one turn of a block.
#[test]
fn rows_are_those_of_the_plan() {
    for on in &ORDERS {
        for (groups, tokens, experts, k) in [
            (1, 1, 4, 1),
            (1, 1, 3, 3),
            (2, 33, 64, 2),
            (1, 65, 2, 2),
            (3, 5, 100, 4),
            (1, 0, 3, 1),
        ] {
            let shape = RouteShape { groups, tokens, experts, k };
            for capacity in [None, Some(0), Some(1), Some(7), Some(1000)] {
                check(on, &shape, 11, capacity);
            }
        }
        // 8,200 tokens have 257 chunks, one more than a block has threads.
        check(on, &RouteShape { groups: 1, tokens: 8200, experts: 2, k: 1 }, 5, Some(4000));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_shape(groups in 1usize..4, tokens in 1usize..100, experts in 1usize..20, k in 1usize..9,
        capacity in proptest::option::of(0usize..40), seed in any::<u64>()) {
        let shape = RouteShape { groups, tokens, experts, k: k.min(experts) };
        check(&ORDERS[(seed % 2) as usize], &shape, seed, capacity);
    }
}

/// By hand: three tokens, two choices, two places. Token 0 goes to 0 and 1, token 1 to 1 alone (its first
/// choice was taken back), token 2 to 1 and 0. The third at expert 1 finds no place, and the one taken
/// back took none.
#[test]
fn a_choice_that_queues_nowhere_takes_no_place() {
    let shape = RouteShape { groups: 1, tokens: 3, experts: 3, k: 2 };
    let (experts, gates) = ([0, 1, -1, 1, 1, 0], [0.5, 0.25, 9.0, 1.0, 0.125, 2.0]);
    for on in &ORDERS {
        let want = Rows {
            end_e: vec![2, 4, 4],
            load_e: vec![2, 2, 0],
            token_n: vec![0, 2, 0, 1],
            weight_n: vec![0.5, 2.0, 0.25, 1.0],
            row_gtk: vec![0, 2, -1, 3, -1, 1],
        };
        assert_eq!(run(on, &shape, (&experts, &gates), Some(2)), want);
    }
}
