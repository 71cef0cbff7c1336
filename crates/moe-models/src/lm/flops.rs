//! Multiplications and additions of one token's forward pass: 2 for every value of a matrix that it passes
//! through, and those of attention.
//!
//! Counted as for images ([`crate::Vit::flops`]): no norms, softmax, activations, sorts or draws. A router
//! that drops tokens is counted as if it dropped none, and a residual that runs its layer twice as if it
//! ran it once.

use super::DecoderLm;
use crate::vit::flops::routed_matrices;
use moe_routers::ParamStore;

impl DecoderLm {
    /// FLOPs of a token in sequences of `sequence` tokens, the mean over its places. `store` holds the
    /// model's parameters.
    pub fn flops(&self, store: &ParamStore, sequence: usize) -> f64 {
        let d = self.config.width as f64;
        let attention = 4.0 * d * d + self.attended(sequence) * d;
        let dense: f64 =
            self.blocks.iter().filter_map(|block| block.dense()).map(|n| n.products()).sum();
        let bank = |experts: &crate::Experts| experts.products() * experts.count() as f64;
        let sparse: f64 = self.sparse_layers().map(|layer| bank(&layer.experts)).sum();
        let experts = sparse * self.active_share;
        let head = self.head_vd.numel() as f64;
        let layers = self.config.layers as f64;
        2.0 * (layers * attention + dense + experts + routed_matrices(store) + head)
    }

    /// Positions of products with keys, values and relative positions, per token and width.
    fn attended(&self, sequence: usize) -> f64 {
        match self.config.span {
            Some(span) => 3.0 * span as f64,
            None => (sequence + 1) as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{DecoderLm, LmConfig, Rules};
    use moe_routers::{ParamStore, RouterConfig, Settings};
    use tch::{Device, Kind};

    /// Two blocks of width 4, the second sparse: 4 experts of hidden width 8 / 2, two a token.
    #[test]
    fn flops_by_hand() {
        let config = LmConfig {
            width: 4,
            layers: 2,
            heads: 2,
            context: 8,
            moe_every: 2,
            experts: 4,
            active_hidden: 8,
            ..LmConfig::default()
        };
        let paper = moe_routers::PAPERS.iter().find(|paper| paper.id == "smoe").unwrap();
        let router: Box<dyn RouterConfig> = paper.router(&Settings::default()).unwrap();
        let store = ParamStore::new(0, Device::Cpu, Kind::Float);
        let model = DecoderLm::new(&store, &config, &Rules::new(router.as_ref()), 10).unwrap();
        // Attention 4 * 16 + 2 * (7 + 1) / 2 * 4 a block, dense 2 * 4 * 8, experts 2 * (2 * 4 * 4), router
        // 4 * 4, head 10 * 4.
        let products = 2 * (64 + 32) + 64 + 64 + 16 + 40;
        assert_eq!(model.flops(&store, 7), 2.0 * f64::from(products));
    }
}
