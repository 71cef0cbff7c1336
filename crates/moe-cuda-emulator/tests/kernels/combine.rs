//! Gather and gather-sum, against the dispatch and combine of `moe-core`'s plans.

use crate::memory::{DTYPES, Memory, ORDERS, kernels, rounded, widened};
use crate::tolerance::{assert_close, tolerance};
use moe_core::SparsePlan;
use moe_cuda::kernels::{GatherRows, GatherSum};
use moe_cuda::{Address, Dtype};
use moe_cuda_emulator::Emulator;
use ndarray::Array2;
use proptest::prelude::*;

/// A plan of which each expert reads each token or not, as the bits of `seed` fall.
fn plan(tokens: usize, experts: usize, seed: u64) -> SparsePlan {
    let draws = rounded(Dtype::F32, seed, 2 * tokens * experts);
    let row = |e: usize, t: usize| {
        let at = 2 * (e * tokens + t);
        (draws[at] > 0.0).then_some((t, f64::from(draws[at + 1])))
    };
    let list = |e: usize| (0..tokens).filter_map(|t| row(e, t)).collect::<Vec<_>>();
    SparsePlan::from_lists(tokens, &(0..experts).map(list).collect::<Vec<_>>()).unwrap()
}

fn matrix(rows: usize, width: usize, values: &[f32]) -> Array2<f64> {
    Array2::from_shape_vec((rows, width), widened(values)).unwrap()
}

/// Rows of each token in the order of its experts.
fn rows_by_token(plan: &SparsePlan) -> Vec<Vec<i32>> {
    let mut rows_t = vec![Vec::new(); plan.all_tokens()];
    for (row, token) in plan.token_n().iter().enumerate() {
        rows_t[*token].push(i32::try_from(row).unwrap());
    }
    rows_t
}

fn gathers(on: &Emulator, dtype: Dtype, plan: &SparsePlan, width: usize) {
    let (tokens, n) = (plan.all_tokens(), plan.token_n().len());
    let x = rounded(dtype, 31, tokens * width);
    let mut x_td = Memory::values(dtype, &x);
    let token: Vec<i32> = plan.token_n().iter().map(|t| *t as i32).collect();
    let mut token_n = Memory::i32s(&token);
    let (mut rows, mut x_nd) = (Memory::i32s(&[n as i32]), Memory::room_of(dtype, n * width));
    let it = GatherRows {
        x_td: x_td.address(),
        token_n: token_n.address(),
        x_nd: x_nd.address(),
        rows: rows.address(),
        most_rows: n,
        width,
    };
    // SAFETY: the addresses are those of the tensors above.
    unsafe { kernels(on).gather_rows(dtype, &it) }.unwrap();
    let want = plan.dispatch(matrix(tokens, width, &x).view());
    assert_close("x_nd", &x_nd.to_values(dtype), want.as_slice().unwrap(), 0.0);
}

/// How a token finds its rows.
#[derive(Debug, Clone, Copy)]
enum Rows {
    /// `k` places for each token, some of them empty.
    Places,
    /// Between offsets.
    Offsets,
}

struct Sum {
    rows: Rows,
    weighted: bool,
    two: bool,
}

fn sums(on: &Emulator, dtype: Dtype, plan: &SparsePlan, width: usize, sum: &Sum) {
    let (tokens, n) = (plan.all_tokens(), plan.token_n().len());
    let (a, b) = (rounded(dtype, 41, n * width), rounded(dtype, 42, n * width));
    let weight: Vec<f32> = plan.weight_n().iter().map(|w| *w as f32).collect();
    let rows_t = rows_by_token(plan);
    let k = rows_t.iter().map(Vec::len).max().unwrap_or(0);
    // The empty places stand first, so that they would be read if they were taken for rows.
    let places = |rows: &Vec<i32>| [vec![-1; k - rows.len()], rows.clone()].concat();
    let (row, offset): (Vec<i32>, Vec<i64>) = match sum.rows {
        Rows::Places => (rows_t.iter().flat_map(places).collect(), Vec::new()),
        Rows::Offsets => {
            let ends = rows_t.iter().scan(0, |end, rows| {
                *end += rows.len() as i64;
                Some(*end)
            });
            (rows_t.concat(), [0].into_iter().chain(ends).collect())
        }
    };
    let [mut a_nd, mut b_nd] = [&a, &b].map(|values| Memory::values(dtype, values));
    let mut weight_n = Memory::f32s(&weight);
    let (mut row_i, mut offset_t) = (Memory::i32s(&row), Memory::i64s(&offset));
    let mut out_td = Memory::room_of(dtype, tokens * width);
    let given =
        |there: bool, memory: &mut Memory| if there { memory.address() } else { Address::NULL };
    let it = GatherSum {
        a_nd: a_nd.address(),
        b_nd: given(sum.two, &mut b_nd),
        weight_n: given(sum.weighted, &mut weight_n),
        row_i: row_i.address(),
        offset_t: given(matches!(sum.rows, Rows::Offsets), &mut offset_t),
        k,
        out_td: out_td.address(),
        tokens,
        width,
    };
    // SAFETY: the addresses are those of the tensors above.
    unsafe { kernels(on).gather_sum(dtype, &it) }.unwrap();
    let mut y_nd = matrix(n, width, &a);
    if sum.two {
        y_nd += &matrix(n, width, &b);
    }
    let want = if sum.weighted {
        plan.combine(y_nd.view())
    } else {
        unweighted(plan).combine(y_nd.view())
    };
    assert_close("out_td", &out_td.to_values(dtype), want.as_slice().unwrap(), tolerance(dtype));
}

fn unweighted(plan: &SparsePlan) -> SparsePlan {
    let (token_n, ones) = (plan.token_n().to_vec(), vec![1.0; plan.token_n().len()]);
    SparsePlan::from_parts(1, plan.tokens(), plan.offsets().to_vec(), token_n, ones).unwrap()
}

fn check(on: &Emulator, tokens: usize, experts: usize, width: usize, seed: u64) {
    let plan = plan(tokens, experts, seed);
    for dtype in DTYPES {
        gathers(on, dtype, &plan, width);
        for rows in [Rows::Places, Rows::Offsets] {
            for (weighted, two) in [(true, false), (true, true), (false, false), (false, true)] {
                sums(on, dtype, &plan, width, &Sum { rows, weighted, two });
            }
        }
    }
}

/// One token, tokens without rows, whole packs and odd widths, wider than one turn of a block.
#[test]
fn rows_go_out_and_come_back() {
    for on in &ORDERS {
        for (tokens, experts, width) in [(1, 1, 1), (1, 5, 8), (9, 3, 7), (4, 2, 2056), (3, 2, 261)]
        {
            check(on, tokens, experts, width, 17);
        }
    }
}

/// Experts 0, 2 and 3 have no rows; 1 and 4 keep what they have.
#[test]
fn only_experts_without_rows_are_cleared() {
    for on in &ORDERS {
        for dtype in DTYPES {
            let each = 70_000;
            let values = rounded(dtype, 3, 5 * each);
            let (mut w_ei, mut end_e) =
                (Memory::values(dtype, &values), Memory::i32s(&[0, 2, 2, 2, 3]));
            let addresses = (w_ei.address(), end_e.address());
            // SAFETY: the addresses are those of the tensors above.
            unsafe { kernels(on).clear_empty(dtype, addresses, 5, each) }.unwrap();
            let mut want = widened(&values);
            want[..each].fill(0.0);
            want[2 * each..4 * each].fill(0.0);
            assert_eq!(w_ei.to_values(dtype), want);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_shape(tokens in 1usize..24, experts in 1usize..9, width in 1usize..40, seed in any::<u64>()) {
        check(&ORDERS[(seed % 2) as usize], tokens, experts, width, seed);
    }
}
