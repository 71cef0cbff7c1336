//! What products are carried out in. Parameters, norms, softmax, routers, losses and the stream between
//! layers are `f32` either way.

use moe_torch_sys::linear::linear;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Element type of the factors of a model's products: attention, dense layers, experts, output layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As the parameters are.
    #[default]
    Fp32,
    /// Rounded to 16 bits with the exponent of 32; sums in `f32`.
    Bf16,
}

impl Precision {
    /// A factor of a product, with its graph.
    pub fn factor(self, x: &Tensor) -> Tensor {
        match self {
            Self::Fp32 => x.shallow_clone(),
            Self::Bf16 => x.to_kind(Kind::BFloat16),
        }
    }

    /// `x W^T` without a bias, as `x` is.
    pub fn linear(self, x: &Tensor, weight: &Tensor) -> Tensor {
        linear(&self.factor(x), &self.factor(weight)).to_kind(x.kind())
    }
}
