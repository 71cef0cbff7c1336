//! Windows, masks and tables against their definitions, and the layer against its formula by loops.

use super::*;
use crate::attention::Attention;
use moe_routers::ParamStore;
use moe_routers::tolerance::tolerance;

const OPTIONS: (Kind, Device) = (Kind::Double, Device::Cpu);

/// Maps, window sides, and whether windows are shifted: tiled, padded, clamped, of one window.
fn layouts() -> impl Iterator<Item = ([i64; 2], i64, bool)> {
    let maps = [[6, 6], [6, 9], [4, 4], [7, 5], [5, 8], [3, 3], [2, 5], [1, 1]];
    let sides = [2, 3, 4];
    let of_map = move |hw| sides.into_iter().map(move |side| (hw, side));
    let layouts = maps.into_iter().flat_map(of_map);
    layouts.flat_map(|(hw, side)| [false, true].map(|shifted| (hw, side, shifted)))
}

/// The group of a place on an axis of the map as it lies, without a roll: windows begin at the shift.
fn group(place: i64, windows: Windows) -> i64 {
    (place - windows.shift).div_euclid(windows.side)
}

/// By definition: both axes have the two tokens in one window.
fn may_attend(windows: Windows, i: i64, j: i64) -> bool {
    let w = windows.hw[1];
    group(i / w, windows) == group(j / w, windows) && group(i % w, windows) == group(j % w, windows)
}

#[test]
fn sides_and_shifts_fit_the_map() {
    let found = |hw, side| {
        let windows = Windows::new(hw, side, true);
        (windows.side, windows.shift, windows.count())
    };
    assert_eq!(found([14, 14], 7), (7, 3, 4));
    assert_eq!(found([7, 7], 7), (7, 0, 1));
    assert_eq!(found([5, 5], 7), (5, 0, 1));
    assert_eq!(found([8, 3], 7), (3, 0, 3));
    assert_eq!(found([9, 8], 4), (4, 2, 6));
    assert_eq!(Windows::new([14, 14], 7, false).shift, 0);
}

#[test]
fn reverse_undoes_partition() {
    for (hw, side, shifted) in layouts() {
        let windows = Windows::new(hw, side, shifted);
        let t = hw[0] * hw[1];
        let x_btd = Tensor::arange(2 * t * 3, OPTIONS).view([2, t, 3]);
        let x_bnqd = windows.partition(&x_btd);
        assert_eq!(x_bnqd.size(), [2, windows.count(), windows.tokens(), 3]);
        assert_eq!(windows.reverse(&x_bnqd), x_btd, "{windows:?}");
    }
}

/// Windows of 2 x 2 on a map of 4 x 4 with the numbers 0 to 15: as they lie, and one further down and right,
/// where the last window has the four corners.
#[test]
fn windows_by_hand() {
    let x_btd = Tensor::arange(16, (Kind::Int64, Device::Cpu)).view([1, 16, 1]);
    let of = |shifted| {
        let x_bnqd = Windows::new([4, 4], 2, shifted).partition(&x_btd);
        Vec::<i64>::try_from(x_bnqd.flatten(0, -1)).unwrap()
    };
    assert_eq!(of(false), [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]);
    assert_eq!(of(true), [5, 6, 9, 10, 7, 4, 11, 8, 13, 14, 1, 2, 15, 12, 3, 0]);
}

/// All pairs of tokens of all windows; a window has no pair that may attend beyond those of the definition,
/// and none of those is missing.
#[test]
fn masks_are_those_of_the_definition() {
    for (hw, side, shifted) in layouts() {
        let (windows, t) = (Windows::new(hw, side, shifted), hw[0] * hw[1]);
        // Tokens are numbered from 1: padding is 0.
        let place_btd = (Tensor::arange(t, OPTIONS) + 1.0).view([1, t, 1]);
        let token_nq = windows.partition(&place_btd).view([windows.count(), windows.tokens()]);
        let mask_nqq = windows.mask(OPTIONS);
        let q = windows.tokens();
        let mut seen = 0;
        for (n, i, j) in (0..windows.count())
            .flat_map(|n| (0..q).flat_map(move |i| (0..q).map(move |j| (n, i, j))))
        {
            let open = mask_nqq.as_ref().is_none_or(|mask| mask.double_value(&[n, i, j]) == 0.0);
            let [i, j] = [i, j].map(|place| token_nq.double_value(&[n, place]) as i64 - 1);
            let want = match [i, j] {
                // What padding attends to is thrown away.
                [-1, -1] => open,
                [-1, _] | [_, -1] => false,
                _ => may_attend(windows, i, j),
            };
            assert_eq!(open, want, "{windows:?}: {i} and {j}");
            seen += i64::from(open && i >= 0 && j >= 0);
        }
        let pairs = (0..t).flat_map(|i| (0..t).map(move |j| (i, j)));
        let want = pairs.filter(|&(i, j)| may_attend(windows, i, j)).count() as i64;
        assert_eq!(seen, want, "{windows:?}");
    }
}

/// Figure of the released code for a window of 2 x 2: three offsets an axis, nine rows; a token and itself
/// are in the middle, row 4; from the right neighbour to the left one dx = -1, row 3; from the lower to the
/// upper dy = -1, row 1.
#[test]
fn rows_of_the_table_by_hand() {
    let rows = Windows::new([2, 2], 2, false).rows_of_table();
    let rows = Vec::<i64>::try_from(rows.flatten(0, 1)).unwrap();
    assert_eq!(rows, [4, 3, 1, 0, 5, 4, 2, 1, 7, 6, 4, 3, 8, 7, 5, 4]);
}

#[test]
fn rows_of_the_table_are_one_for_every_offset() {
    for side in [1, 3, 5] {
        let windows = Windows::new([side, side], side, false);
        let rows = windows.rows_of_table();
        let q = windows.tokens();
        for (i, j) in (0..q).flat_map(|i| (0..q).map(move |j| (i, j))) {
            let offset = [i / side - j / side, i % side - j % side];
            let all = (1 - side..side).flat_map(|dy| (1 - side..side).map(move |dx| [dy, dx]));
            let want = all.into_iter().position(|other| other == offset).unwrap();
            assert_eq!(rows.int64_value(&[i, j]), want as i64);
        }
    }
}

fn attention(windows: Windows) -> (ParamStore, WindowAttention, Tensor) {
    let store = ParamStore::new(5, Device::Cpu, Kind::Double);
    let attention = WindowAttention::new(&store.root(), (8, 2), windows, 1.0);
    for param in store.entries().iter().filter(|p| p.name != "out" && p.name != "qkv") {
        let _ = tch::no_grad(|| param.tensor.shallow_clone().uniform_(-1.0, 1.0));
    }
    let t = windows.hw[0] * windows.hw[1];
    let x_btd = store.root().matrix("x", &[2, t, 8], 2.0).detach();
    (store, attention, x_btd)
}

/// Equation 4 on the map as it lies: no roll, no padding, no mask, token by token and head by head.
fn by_loops(attention: &WindowAttention, x_btd: &Tensor) -> Tensor {
    let (b, t, d) = x_btd.size3().unwrap();
    let (windows, c) = (attention.windows, d / attention.heads);
    let (w, m) = (windows.hw[1], windows.side);
    let qkv = x_btd.matmul(&attention.qkv_3dd.tr()) + &attention.qkv_3d;
    let y_btd = x_btd.zeros_like();
    for (row, i, head) in (0..b)
        .flat_map(|row| (0..t).map(move |i| (row, i)))
        .flat_map(|(row, i)| (0..attention.heads).map(move |head| (row, i, head)))
    {
        let part =
            |which: i64, token: i64| qkv.get(row).get(token).narrow(0, which * d + head * c, c);
        let seen: Vec<i64> = (0..t).filter(|&j| may_attend(windows, i, j)).collect();
        let score = |&j: &i64| {
            let (dy, dx) = (i / w - j / w, i % w - j % w);
            let table_row = (dy + m - 1) * (2 * m - 1) + dx + m - 1;
            let bias = attention.position_rm.double_value(&[table_row, head]);
            part(0, i).dot(&part(1, j)).double_value(&[]) / (c as f64).sqrt() + bias
        };
        let score: Vec<f64> = seen.iter().map(score).collect();
        let sum: f64 = score.iter().map(|s| s.exp()).sum();
        let mut y_c = y_btd.get(row).get(i).narrow(0, head * c, c);
        for (j, score) in seen.iter().zip(score) {
            y_c += part(2, *j) * (score.exp() / sum);
        }
    }
    y_btd.matmul(&attention.out_dd.tr()) + &attention.out_d
}

#[test]
fn equals_the_formula_by_loops() {
    let _guard = tch::no_grad_guard();
    let limit = tolerance(Kind::Double).value;
    for (hw, side, shifted) in layouts() {
        let (_store, attention, x_btd) = attention(Windows::new(hw, side, shifted));
        let (got, want) = (attention.forward(&x_btd), by_loops(&attention, &x_btd));
        assert!(got.allclose(&want, limit, limit, false), "{:?}", attention.windows);
    }
}

/// A window that covers the map is attention of all tokens to all, plus the bias: without a bias, that of the
/// other models.
#[test]
fn one_window_without_a_bias_is_plain_attention() {
    let (store, attention, x_btd) = attention(Windows::new([3, 3], 3, true));
    let given =
        store.entries().iter().map(|p| (p.name.clone(), p.tensor.detach())).collect::<Vec<_>>();
    for name in ["qkv_bias", "out_bias", "position"] {
        let (_, tensor) = given.iter().find(|(found, _)| found == name).unwrap();
        let _ = tch::no_grad(|| tensor.shallow_clone().zero_());
    }
    let other = ParamStore::new(0, Device::Cpu, Kind::Double).with_given(given);
    let plain = Attention::new(&other.root(), 8, 2, 1.0).of_all();
    let limit = tolerance(Kind::Double).value;
    assert!(attention.forward(&x_btd).allclose(&plain.forward(&x_btd), limit, limit, false));
}

/// A value of the table moves the scores of its offset alone: what it adds to one key's score, it adds for
/// every token that has a key there.
#[test]
fn gradients_reach_every_parameter_and_every_offset() {
    let (store, attention, x_btd) = attention(Windows::new([6, 6], 3, true));
    attention.forward(&x_btd).sin().sum(Kind::Double).backward();
    let entries = store.entries();
    for param in entries.iter().filter(|p| p.name != "x") {
        let grad = param.tensor.grad();
        assert!(grad.abs().max().double_value(&[]) > 0.0, "{}", param.name);
    }
    let grad_rm = attention.position_rm.grad();
    assert!(grad_rm.abs().min().double_value(&[]) > 0.0, "a row of the table without a gradient");
}
