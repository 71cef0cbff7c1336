//! Multiplications and additions of a forward pass, exactly: 2 for every value of a matrix that a row
//! passes through, and 4 t d for the attention of every token.
//!
//! Norms, softmax, activations and sums of residuals are not counted, as in the papers. A router counts
//! with the products of its matrices; sorting and drawing are not products, and the mixing of Soft MoE's
//! slots (4 t s d) is left out.

use super::Vit;
use moe_routers::{ParamStore, Role};

impl Vit {
    /// FLOPs of one image whose sparse layers process `rows_l` rows of experts an image, `[l]`: k T
    /// without drops, at most `E * capacity / images of a group` with a capacity.
    pub fn flops(&self, rows_l: &[f64]) -> f64 {
        let (t, d) = (self.position_td.size()[0] as f64, self.trunk.width as f64);
        let once = (self.head_vd.numel()) as f64;
        let patches = t - f64::from(u8::from(self.class_d.is_some()));
        let layers = self.trunk.layers as f64;
        let attention = layers * t * (4.0 * d * d + 2.0 * t * d);
        let experts = self.sparse_layers().zip(rows_l);
        let experts: f64 = experts.map(|(layer, rows)| rows * layer.experts.products()).sum();
        let shared = patches * self.patch_dn.numel() as f64 + t * self.router_products;
        2.0 * (once + shared + attention + t * self.dense_products() + experts)
    }

    /// Products of one token in all dense feed-forward layers.
    fn dense_products(&self) -> f64 {
        self.blocks.iter().filter_map(|block| block.dense()).map(|network| network.products()).sum()
    }
}

/// Values of all routers' matrices: each token passes through all of them.
pub(crate) fn routed_matrices(store: &ParamStore) -> f64 {
    let entries = store.entries();
    let of_router = entries.iter().filter(|p| p.name.contains(".router."));
    let matrices = of_router.filter(|p| p.role != Role::Buffer && p.tensor.dim() > 1);
    matrices.map(|p| p.tensor.numel() as f64).sum()
}
