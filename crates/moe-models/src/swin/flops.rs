//! Multiplications and additions of a forward pass, exactly ([`crate::flops`]): attention counts the tokens
//! of all windows, padding included, each with those of its window.

use super::{Stage, Swin};
use crate::flops;

impl Swin {
    /// Products of one image whose sparse layers process `rows_l` rows of experts, `[l]`.
    pub(super) fn products(&self, rows_l: &[f64]) -> f64 {
        let blocks = &self.trunk.blocks;
        let of_stage = |(stage, routers): (&Stage, &f64)| {
            let t = stage.tokens() as f64;
            let each = routers + flops::of_dense(&blocks[stage.range()]);
            t * each + (0..stage.blocks.layers).map(|block| stage.attention(block)).sum::<f64>()
        };
        let stages: f64 = self.stages.iter().zip(&self.router_products).map(of_stage).sum();
        let behind = self.stages.iter().skip(1);
        let merged =
            behind.zip(&self.merges).map(|(s, merge)| s.tokens() as f64 * merge.products());
        let patches = self.stages[0].tokens() as f64 * self.patches.products();
        let once = self.trunk.head_vd.numel() as f64;
        once + patches + stages + merged.sum::<f64>() + flops::of_experts(blocks, rows_l)
    }
}

impl Stage {
    /// Products of one image in the attention of block `offset`.
    fn attention(&self, offset: i64) -> f64 {
        let (windows, d) = (self.windows(offset), self.blocks.width as f64);
        let (count, q) = (windows.count() as f64, windows.tokens() as f64);
        count * q * (4.0 * d * d + 2.0 * q * d)
    }
}
