//! From stage to stage: four neighbouring tokens become one of twice the width (Swin Transformer, section
//! 3.1).
//!
//! ```text
//! y = W norm(x[2i, 2j] ; x[2i+1, 2j] ; x[2i, 2j+1] ; x[2i+1, 2j+1]),   W of 2 d x 4 d, no bias
//! ```
//!
//! A map with an odd side gets a row or a column of zeros below or on the right.
//!
//! Axis letters: `b` batch, `t` tokens, `d` width, `h` height, `w` width of the map; `o = 2 d`, `i = 4 d`.

use crate::block::norm;
use moe_routers::Params;
use moe_routers::norm::TorchNorm;
use moe_routers::residual::LN_EPS;
use moe_torch_sys::linear::linear;
use tch::Tensor;

/// A side of the map behind a merging of one of this length.
pub fn halved(length: i64) -> i64 {
    (length + 1) / 2
}

/// The map from one stage to the next.
#[derive(Debug)]
pub struct PatchMerging {
    norm: TorchNorm,
    weight_oi: Tensor,
    hw: [i64; 2],
}

impl PatchMerging {
    /// Fresh weights under `params` for a map of `hw` tokens of `width` values.
    pub fn new(params: &Params<'_>, width: i64, hw: [i64; 2]) -> Self {
        let four = 4 * width;
        let std = (1.0 / four as f64).sqrt();
        Self {
            norm: norm(&params.child("norm"), four),
            weight_oi: params.matrix("weight", &[2 * width, four], std),
            hw,
        }
    }

    /// Tokens in reading order, `[b, h w, d] -> [b, ceil(h/2) ceil(w/2), 2 d]`.
    ///
    /// # Panics
    /// If the map has another size than this was built for.
    pub fn forward(&self, x_btd: &Tensor) -> Tensor {
        let (b, _, d) = x_btd.size3().expect("[b, t, d]");
        let [h, w] = self.hw;
        let [half_h, half_w] = self.hw.map(halved);
        let x_bhwd = x_btd.reshape([b, h, w, d]);
        let x_bhwd = match h % 2 + w % 2 {
            0 => x_bhwd,
            _ => x_bhwd.constant_pad_nd([0, 0, 0, w % 2, 0, h % 2]),
        };
        let quarters = x_bhwd.view([b, half_h, 2, half_w, 2, d]).permute([0, 1, 3, 4, 2, 5]);
        let x_bti = quarters.reshape([b, half_h * half_w, 4 * d]);
        linear(&self.norm.apply(&x_bti, LN_EPS), &self.weight_oi)
    }

    /// Products of one token behind it.
    pub(super) fn products(&self) -> f64 {
        self.weight_oi.numel() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_routers::ParamStore;
    use moe_routers::tolerance::tolerance;
    use tch::{Device, Kind};

    /// The formula at the head of the file, token by token.
    fn by_loops(merging: &PatchMerging, x_btd: &Tensor) -> Tensor {
        let (b, _, d) = x_btd.size3().unwrap();
        let [h, w] = merging.hw;
        let at = |row: i64, y: i64, x: i64| match y < h && x < w {
            true => x_btd.get(row).get(y * w + x),
            false => Tensor::zeros([d], (Kind::Double, Device::Cpu)),
        };
        let mut tokens = Vec::new();
        for (row, y) in (0..b).flat_map(|row| (0..halved(h)).map(move |y| (row, 2 * y))) {
            for x in (0..halved(w)).map(|x| 2 * x) {
                let four =
                    [at(row, y, x), at(row, y + 1, x), at(row, y, x + 1), at(row, y + 1, x + 1)];
                let four = merging.norm.apply(&Tensor::cat(&four, 0), LN_EPS);
                tokens.push(merging.weight_oi.mv(&four));
            }
        }
        Tensor::stack(&tokens, 0).view([b, halved(h) * halved(w), 2 * d])
    }

    #[test]
    fn four_neighbours_become_one_token() {
        let limit = tolerance(Kind::Double).value;
        for hw in [[4, 6], [5, 4], [3, 7], [1, 1]] {
            let store = ParamStore::new(1, Device::Cpu, Kind::Double);
            let merging = PatchMerging::new(&store.root(), 3, hw);
            let x_btd = store.root().matrix("x", &[2, hw[0] * hw[1], 3], 1.0).detach();
            let (got, want) = (merging.forward(&x_btd), by_loops(&merging, &x_btd));
            assert_eq!(got.size(), want.size());
            assert!(got.allclose(&want, limit, limit, false), "{hw:?}");
        }
    }
}
