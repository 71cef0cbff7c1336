//! Multiplications and additions of a forward pass, exactly ([`crate::flops`]), with 4 t d for the
//! attention of every token.

use super::Vit;
use crate::flops;

impl Vit {
    /// FLOPs of one image whose sparse layers process `rows_l` rows of experts an image, `[l]`: k T
    /// without drops, at most `E * capacity / images of a group` with a capacity.
    pub fn flops(&self, rows_l: &[f64]) -> f64 {
        let (t, d) = (self.position_td.size()[0] as f64, self.trunk.width as f64);
        let once = (self.head_vd.numel()) as f64;
        let patches = t - f64::from(u8::from(self.class_d.is_some()));
        let layers = self.trunk.layers as f64;
        let attention = layers * t * (4.0 * d * d + 2.0 * t * d);
        let experts = flops::of_experts(&self.blocks, rows_l);
        let shared = patches * self.patch_dn.numel() as f64 + t * self.router_products;
        2.0 * (once + shared + attention + t * flops::of_dense(&self.blocks) + experts)
    }
}
