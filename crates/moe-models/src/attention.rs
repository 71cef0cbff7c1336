//! Self-attention, causal or of all tokens: on a CPU through our kernels, elsewhere and in `f64` through
//! libtorch's scaled dot product.
//!
//! Axis letters: `b` batch, `t` tokens, `d` width, `m` heads, `c` width of a head.

pub mod span;
pub mod window;

use crate::precision::Precision;
use moe_routers::Params;
use moe_torch_sys::attention;
use moe_torch_sys::linear::linear;
use tch::Tensor;

/// Multi-head self-attention.
#[derive(Debug)]
pub struct Attention {
    qkv_3dd: Tensor,
    out_dd: Tensor,
    heads: i64,
    precision: Precision,
    causal: bool,
}

impl Attention {
    /// Fresh weights under `params`; `heads` divides `width`. A token sees itself and earlier ones.
    pub fn new(params: &Params<'_>, width: i64, heads: i64, output_scale: f64) -> Self {
        let std = (1.0 / width as f64).sqrt();
        Self {
            qkv_3dd: params.matrix("qkv", &[3 * width, width], std),
            out_dd: params.matrix("out", &[width, width], std * output_scale),
            heads,
            precision: Precision::Fp32,
            causal: true,
        }
    }

    /// Sets what products are carried out in.
    pub(crate) fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
    }

    /// The same, but a token sees all tokens: of an image, or of a text with masks.
    pub fn of_all(self) -> Self {
        Self { causal: false, ..self }
    }

    /// `[b, t, d] -> [b, t, d]`.
    pub fn forward(&self, x_btd: &Tensor) -> Tensor {
        let qkv = self.qkv(x_btd);
        if attention::takes(qkv.kind(), qkv.device()) {
            let y_btd = attention::attention(&qkv, self.heads, self.causal);
            return self
                .mix(&y_btd.unwrap_or_else(|e| panic!("attention: {e}")))
                .to_kind(x_btd.kind());
        }
        let [q_bmtc, k_bmtc, v_bmtc] = self.heads(&qkv);
        let (dropout, grouped_queries) = (0.0, false);
        let y_bmtc = Tensor::scaled_dot_product_attention(
            &q_bmtc,
            &k_bmtc,
            &v_bmtc,
            None::<&Tensor>,
            dropout,
            self.causal,
            None,
            grouped_queries,
        );
        self.output(&y_bmtc).to_kind(x_btd.kind())
    }

    /// The same with the attention weights of every head, `[b, m, t, t]`, which the fused product
    /// never writes down.
    pub fn forward_with_weights(&self, x_btd: &Tensor) -> (Tensor, Tensor) {
        let [q_bmtc, k_bmtc, v_bmtc] = self.heads(&self.qkv(x_btd));
        let (b, m, t, c) = q_bmtc.size4().expect("[b, m, t, c]");
        let (q, k) = (q_bmtc.reshape([b * m, t, c]), k_bmtc.reshape([b * m, t, c]));
        // Mask and scale enter the product, which writes down the scores once.
        let score = self.mask(t, &q).baddbmm(&q, &k.transpose(1, 2), 1.0, (c as f64).powf(-0.5));
        let kind = x_btd.kind();
        let weight_bmtt = score.view([b, m, t, t]).to_kind(kind).softmax(-1, kind);
        let y_bmtc = self.precision.factor(&weight_bmtt).matmul(&v_bmtc);
        (self.output(&y_bmtc).to_kind(kind), weight_bmtt)
    }

    /// What is added to the scores, `[t, t]`: nothing, or minus infinity for later tokens.
    fn mask(&self, t: i64, like: &Tensor) -> Tensor {
        let options = (like.kind(), like.device());
        match self.causal {
            true => Tensor::full([t, t], f64::NEG_INFINITY, options).triu(1),
            false => Tensor::zeros([t, t], options),
        }
    }

    /// Queries, keys and values beside each other, `[b, t, 3 d]`.
    fn qkv(&self, x_btd: &Tensor) -> Tensor {
        linear(&self.precision.factor(x_btd), &self.precision.factor(&self.qkv_3dd))
    }

    /// Queries, keys and values, each `[b, m, t, c]`.
    fn heads(&self, qkv: &Tensor) -> [Tensor; 3] {
        let (b, t, d3) = qkv.size3().expect("[b, t, 3 d]");
        parts(qkv).map(|x_btd| x_btd.view([b, t, self.heads, d3 / 3 / self.heads]).transpose(1, 2))
    }

    /// Heads side by side and mixed, `[b, m, t, c] -> [b, t, d]`.
    fn output(&self, y_bmtc: &Tensor) -> Tensor {
        let (b, m, t, c) = y_bmtc.size4().expect("[b, m, t, c]");
        self.mix(&y_bmtc.transpose(1, 2).contiguous().view([b, t, m * c]))
    }

    /// Heads mixed, `[b, t, d] -> [b, t, d]`.
    fn mix(&self, y_btd: &Tensor) -> Tensor {
        linear(y_btd, &self.precision.factor(&self.out_dd))
    }
}

/// `[..., n d]` as `n` parts `[..., d]`. One step of the graph, whose gradient is written once; that of each
/// `narrow` is as wide as all, and they are added.
fn parts<const N: usize>(x: &Tensor) -> [Tensor; N] {
    x.chunk(N as i64, -1).try_into().expect("a width that N divides")
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_routers::ParamStore;
    use moe_routers::tolerance::tolerance;
    use tch::{Device, Kind};

    /// The fused output, of libtorch in `f64` and of the kernels in `f32`, and the other way's output and
    /// weights.
    fn attended(causal: bool, kind: Kind) -> (Tensor, Tensor, Tensor) {
        let store = ParamStore::new(5, Device::Cpu, kind);
        let attention = Attention::new(&store.root(), 12, 3, 1.0);
        let attention = if causal { attention } else { attention.of_all() };
        let x_btd = store.root().matrix("x", &[2, 7, 12], 2.0);
        let (y_btd, weight_bmtt) = attention.forward_with_weights(&x_btd);
        (attention.forward(&x_btd), y_btd, weight_bmtt)
    }

    #[test]
    fn written_down_weights_give_the_fused_output() {
        for (kind, causal) in [Kind::Double, Kind::Float].map(|k| [(k, true), (k, false)]).concat()
        {
            let limit = tolerance(kind).value;
            let (want_btd, got_btd, _) = attended(causal, kind);
            assert!(got_btd.allclose(&want_btd, limit, limit, false), "{kind:?}, causal: {causal}");
        }
    }

    /// Outputs and gradients in `bf16` beside `f32`.
    #[test]
    fn attention_in_bf16_is_attention_and_so_is_its_gradient() {
        let run = |precision| {
            let store = ParamStore::new(5, Device::Cpu, Kind::Float);
            let mut attention = Attention::new(&store.root(), 16, 2, 1.0);
            attention.set_precision(precision);
            let x_btd = store.root().matrix("x", &[2, 33, 16], 2.0);
            let y_btd = attention.forward(&x_btd);
            (y_btd.square()).sum(Kind::Float).backward();
            [y_btd.detach(), x_btd.grad(), attention.qkv_3dd.grad()]
        };
        let limit = tolerance(Kind::BFloat16).gradient;
        for (got, want) in run(Precision::Bf16).iter().zip(&run(Precision::Fp32)) {
            let scale = want.abs().max().double_value(&[]);
            let off = (got - want).abs().max().double_value(&[]) / scale;
            assert!(off > 0.0 && off < limit, "{off}");
        }
    }

    #[test]
    fn weights_sum_to_one_and_are_causal_or_all_positive() {
        let limit = tolerance(Kind::Double).value;
        for causal in [true, false] {
            let (_, _, weight_bmtt) = attended(causal, Kind::Double);
            assert_eq!(weight_bmtt.size(), [2, 3, 7, 7]);
            let sum_bmt = weight_bmtt.sum_dim_intlist(-1, false, None::<Kind>);
            assert!(sum_bmt.allclose(&sum_bmt.ones_like(), limit, limit, false));
            assert_eq!(weight_bmtt.triu(1).abs().max().double_value(&[]) == 0.0, causal);
            assert!(weight_bmtt.diagonal(0, -2, -1).min().double_value(&[]) > 0.0);
            assert_eq!(weight_bmtt.min().double_value(&[]) > 0.0, !causal);
        }
    }
}
