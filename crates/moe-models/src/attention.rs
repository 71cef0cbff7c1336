//! Causal self-attention through libtorch's scaled dot product.
//!
//! Axis letters: `b` batch, `t` tokens, `d` width, `m` heads, `c` width of a head.

use moe_routers::Params;
use tch::Tensor;

/// Multi-head causal self-attention.
#[derive(Debug)]
pub struct Attention {
    qkv_3dd: Tensor,
    out_dd: Tensor,
    heads: i64,
}

impl Attention {
    /// Fresh weights under `params`; `heads` divides `width`.
    pub fn new(params: &Params<'_>, width: i64, heads: i64, output_scale: f64) -> Self {
        let std = (1.0 / width as f64).sqrt();
        Self {
            qkv_3dd: params.matrix("qkv", &[3 * width, width], std),
            out_dd: params.matrix("out", &[width, width], std * output_scale),
            heads,
        }
    }

    /// `[b, t, d] -> [b, t, d]`; a token sees itself and earlier ones.
    pub fn forward(&self, x_btd: &Tensor) -> Tensor {
        let (b, t, d) = x_btd.size3().expect("[b, t, d]");
        let qkv = x_btd.linear(&self.qkv_3dd, None::<&Tensor>);
        let heads = |part: i64| {
            let x_btd = qkv.narrow(-1, part * d, d);
            x_btd.view([b, t, self.heads, d / self.heads]).transpose(1, 2)
        };
        let (dropout, causal, grouped_queries) = (0.0, true, false);
        let y_bmtc = Tensor::scaled_dot_product_attention(
            &heads(0),
            &heads(1),
            &heads(2),
            None::<&Tensor>,
            dropout,
            causal,
            None,
            grouped_queries,
        );
        let y_btd = y_bmtc.transpose(1, 2).contiguous().view([b, t, d]);
        y_btd.linear(&self.out_dd, None::<&Tensor>)
    }
}
