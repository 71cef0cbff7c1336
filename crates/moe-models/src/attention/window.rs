//! Attention inside windows of a map of tokens, every other time shifted: Swin Transformer.
//!
//! *Swin Transformer: Hierarchical Vision Transformer using Shifted Windows*, Liu et al. 2021, arXiv
//! 2103.14030.
//!
//! ```text
//! y_i = sum_j softmax_j(q_i . k_j / sqrt(c) + B[dy, dx]) v_j,   j in the window of i       (4)
//! ```
//!
//! `dy`, `dx` in `-(M-1) ..= M-1` lead from `j` to `i`; `B` is learned, a value for every head. Windows are
//! of `M x M` tokens and tile the map from its upper left corner. Shifted windows begin `M/2` (rounded down)
//! further down and right: the map is rolled up and left by as much, so that there are no more windows than
//! before, and what the roll brought together is masked apart. A map that is no wider or no higher than a
//! window has windows of its shorter side and no shift, as in the released code. A map that windows do not
//! tile gets tokens of padding below and on the right, to which no token attends.
//!
//! Axis letters: `b` batch, `t` tokens, `d` width, `m` heads, `c` width of a head, `n` windows of a map, `q`
//! tokens of a window, `h` height and `w` width of the map, `r` rows of the table.

use super::parts;
use moe_routers::{Init, Params, Role};
use moe_torch_sys::linear::linear;
use tch::{Device, Kind, Tensor};

/// Windows on a map of `h` x `w` tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    hw: [i64; 2],
    side: i64,
    shift: i64,
}

impl Windows {
    /// Windows of side `side`, or of the map's shorter side if that is not longer; shifted ones if there is
    /// room for a shift.
    pub fn new([h, w]: [i64; 2], side: i64, shifted: bool) -> Self {
        let shorter = h.min(w);
        let shift = if shifted && shorter > side { side / 2 } else { 0 };
        Self { hw: [h, w], side: side.min(shorter), shift }
    }

    /// Tokens of a window.
    pub fn tokens(&self) -> i64 {
        self.side * self.side
    }

    /// Number of windows.
    pub fn count(&self) -> i64 {
        self.padded().map(|length| length / self.side).iter().product()
    }

    /// Height and width of the map with its padding.
    fn padded(&self) -> [i64; 2] {
        self.hw.map(|length| (length + self.side - 1) / self.side * self.side)
    }

    /// Tokens in reading order to tokens by window, padding included, `[b, t, d] -> [b, n, q, d]`.
    pub fn partition(&self, x_btd: &Tensor) -> Tensor {
        let (b, _, d) = x_btd.size3().expect("[b, t, d]");
        let ([h, w], [high, wide]) = (self.hw, self.padded());
        let x_bhwd = x_btd.reshape([b, h, w, d]);
        let x_bhwd = match [high, wide] == self.hw {
            true => x_bhwd,
            false => x_bhwd.constant_pad_nd([0, 0, 0, wide - w, 0, high - h]),
        };
        self.tiles(&self.rolled(x_bhwd, -self.shift))
    }

    /// The inverse of [`Self::partition`], without the padding, `[b, n, q, d] -> [b, t, d]`.
    pub fn reverse(&self, x_bnqd: &Tensor) -> Tensor {
        let (b, _, _, d) = x_bnqd.size4().expect("[b, n, q, d]");
        let ([h, w], [high, wide], m) = (self.hw, self.padded(), self.side);
        let x = x_bnqd.view([b, high / m, wide / m, m, m, d]).permute([0, 1, 3, 2, 4, 5]);
        let x_bhwd = self.rolled(x.reshape([b, high, wide, d]), self.shift);
        x_bhwd.narrow(1, 0, h).narrow(2, 0, w).reshape([b, h * w, d])
    }

    fn rolled(&self, x_bhwd: Tensor, by: i64) -> Tensor {
        if by == 0 { x_bhwd } else { x_bhwd.roll([by, by], [1, 2]) }
    }

    /// `[b, h, w, d] -> [b, n, q, d]`, of a map that windows tile.
    fn tiles(&self, x_bhwd: &Tensor) -> Tensor {
        let (b, h, w, d) = x_bhwd.size4().expect("[b, h, w, d]");
        let m = self.side;
        let x = x_bhwd.reshape([b, h / m, m, w / m, m, d]).permute([0, 1, 3, 2, 4, 5]);
        x.reshape([b, h / m * (w / m), m * m, d])
    }

    /// What is added to the scores of every window, `[n, q, q]`: minus infinity between tokens that the roll
    /// brought together, and between tokens and padding. `None` where all may attend to all.
    fn mask(&self, options: (Kind, Device)) -> Option<Tensor> {
        let ([high, wide], [h, w]) = (self.padded(), self.hw);
        if self.shift == 0 && [high, wide] == self.hw {
            return None;
        }
        let region = |y: i64, x: i64| {
            let (padding_y, padding_x) =
                ((y + self.shift) % high >= h, (x + self.shift) % wide >= w);
            let part = 3 * self.part(y, high) + self.part(x, wide);
            2 * part + i64::from(padding_y || padding_x)
        };
        let all = (0..high).flat_map(|y| (0..wide).map(move |x| region(y, x)));
        let region_n = Tensor::from_slice(&all.collect::<Vec<i64>>());
        let region_nq = self.tiles(&region_n.view([1, high, wide, 1])).squeeze();
        let region_nq = region_nq.view([-1, self.tokens()]);
        let apart_nqq = region_nq.unsqueeze(2).not_equal_tensor(&region_nq.unsqueeze(1));
        let mask_nqq = Tensor::zeros(apart_nqq.size(), options);
        Some(mask_nqq.masked_fill(&apart_nqq.to_device(options.1), f64::NEG_INFINITY))
    }

    /// Which part of the rolled map's side of `length` a place is in: 0 where no window has a seam, 1 before
    /// the seam of the last window, 2 behind it.
    fn part(&self, place: i64, length: i64) -> i64 {
        match self.shift {
            0 => 0,
            _ if place < length - self.side => 0,
            shift => 1 + i64::from(place >= length - shift),
        }
    }

    /// The table's row for every query and key of a window, `[q, q]`: `(dy + M - 1)(2 M - 1) + dx + M - 1`.
    fn rows_of_table(&self) -> Tensor {
        let m = self.side;
        let between = move |query: i64, key: i64| {
            let (dy, dx) = (query / m - key / m, query % m - key % m);
            (dy + m - 1) * (2 * m - 1) + dx + m - 1
        };
        let q = self.tokens();
        let all = (0..q).flat_map(|query| (0..q).map(move |key| between(query, key)));
        Tensor::from_slice(&all.collect::<Vec<i64>>()).view([q, q])
    }
}

/// Multi-head attention inside windows, with a bias by relative position.
#[derive(Debug)]
pub struct WindowAttention {
    qkv_3dd: Tensor,
    qkv_3d: Tensor,
    out_dd: Tensor,
    out_d: Tensor,
    /// `B` of equation 4, all pairs of offsets.
    position_rm: Tensor,
    /// Rows of that table, `[q * q]`.
    row_of_pair: Tensor,
    mask_nqq: Option<Tensor>,
    windows: Windows,
    heads: i64,
}

/// Standard deviation of the initial table, as in the released code.
const POSITION_STD: f64 = 0.02;

impl WindowAttention {
    /// Fresh weights under `params`; `heads` divides `width`.
    pub fn new(
        params: &Params<'_>,
        (width, heads): (i64, i64),
        windows: Windows,
        output_scale: f64,
    ) -> Self {
        let std = (1.0 / width as f64).sqrt();
        let rows = (2 * windows.side - 1) * (2 * windows.side - 1);
        let (device, normal) = (params.device(), Init::Normal(POSITION_STD));
        // A sketch has no memory for a value of every pair, and is not run.
        let runs = !params.is_sketch();
        let row_of_pair =
            if runs { windows.rows_of_table().flatten(0, 1) } else { Tensor::from(0i64) };
        Self {
            qkv_3dd: params.matrix("qkv", &[3 * width, width], std),
            qkv_3d: params.constant("qkv_bias", &[3 * width], 0.0),
            out_dd: params.matrix("out", &[width, width], std * output_scale),
            out_d: params.constant("out_bias", &[width], 0.0),
            position_rm: params.add("position", &[rows, heads], normal, Role::Undecayed),
            row_of_pair: row_of_pair.to_device(device),
            mask_nqq: if runs { windows.mask((params.kind(), device)) } else { None },
            windows,
            heads,
        }
    }

    /// Tokens of the map in reading order, `[b, t, d] -> [b, t, d]`.
    ///
    /// # Panics
    /// If `t` is not the number of the map's tokens.
    pub fn forward(&self, x_btd: &Tensor) -> Tensor {
        let x_bnqd = self.windows.partition(x_btd);
        let [q_bnmqc, k_bnmqc, v_bnmqc] = self.heads(&x_bnqd);
        let scale = (q_bnmqc.size()[4] as f64).powf(-0.5);
        let score_bnmqq = (q_bnmqc * scale).matmul(&k_bnmqc.transpose(-2, -1)) + self.bias();
        let weight_bnmqq = score_bnmqq.softmax(-1, None::<Kind>);
        let y_bnqd = weight_bnmqq.matmul(&v_bnmqc).transpose(2, 3).flatten(3, 4);
        let y_bnqd = linear(&y_bnqd, &self.out_dd) + &self.out_d;
        self.windows.reverse(&y_bnqd)
    }

    /// Queries, keys and values, each `[b, n, m, q, c]`.
    fn heads(&self, x_bnqd: &Tensor) -> [Tensor; 3] {
        let (b, n, q, d) = x_bnqd.size4().expect("[b, n, q, d]");
        let qkv = linear(x_bnqd, &self.qkv_3dd) + &self.qkv_3d;
        let head = |x_bnqd: Tensor| x_bnqd.reshape([b, n, q, self.heads, d / self.heads]);
        parts(&qkv).map(|x_bnqd| head(x_bnqd).transpose(2, 3))
    }

    /// What is added to the scores: the table's values and the mask, `[m, q, q]` or `[n, m, q, q]`.
    fn bias(&self) -> Tensor {
        let q = self.windows.tokens();
        let pair_rm = self.position_rm.index_select(0, &self.row_of_pair);
        let bias_mqq = pair_rm.view([q, q, self.heads]).permute([2, 0, 1]);
        match &self.mask_nqq {
            Some(mask_nqq) => bias_mqq + mask_nqq.unsqueeze(1),
            None => bias_mqq,
        }
    }
}

#[cfg(test)]
mod tests;
