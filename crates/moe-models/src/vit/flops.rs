//! Multiplications and additions of a forward pass, exactly ([`crate::flops`]), with 4 t d for the
//! attention of every token.

use super::Vit;
use crate::flops;

impl Vit {
    /// Products of one image whose sparse layers process `rows_l` rows of experts, `[l]`.
    pub(super) fn products(&self, rows_l: &[f64]) -> f64 {
        let (t, d) = (self.position_td.size()[0] as f64, self.sizes.width as f64);
        let once = self.trunk.head_vd.numel() as f64;
        let patches = t - f64::from(u8::from(self.class_d.is_some()));
        let layers = self.sizes.layers as f64;
        let attention = layers * t * (4.0 * d * d + 2.0 * t * d);
        let blocks = &self.trunk.blocks;
        let shared = patches * self.patches.products() + t * self.router_products;
        let dense = t * flops::of_dense(blocks);
        once + shared + attention + dense + flops::of_experts(blocks, rows_l)
    }
}
