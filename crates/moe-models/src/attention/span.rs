//! Attention to the last `l` positions before a token, with relative positions and a memory: the
//! backbone of the language models of ACMoE and MomentumSMoE (adaptive span, arXiv 1905.07799, with
//! the span held fixed; Transformer-XL, arXiv 1901.02860).
//!
//! ```text
//! s_tr = q_t . (k_{t-l+r} + p_r) / sqrt(c),   r = 0 .. l-1,   y_t = sum_r softmax_r(s_t)_r v_{t-l+r}
//! ```
//!
//! A token does not see itself: the residual stream carries it on. Positions before the text are zeros
//! and take part in the softmax, as in the released code; keys and values have no bias, so what they
//! are given is zero. The memory is what the layer read at the last `l` positions, without its graph.
//!
//! Axis letters: `b` batch, `t` tokens, `d` width, `m` heads, `c` width of a head, `l` span, `n = l + t`.

use super::parts;
use moe_routers::Params;
use tch::{Kind, Tensor};

/// Multi-head attention over a sliding span.
#[derive(Debug)]
pub struct SpanAttention {
    query_dd: Tensor,
    key_value_2dd: Tensor,
    position_cl: Tensor,
    out_dd: Tensor,
    heads: i64,
}

impl SpanAttention {
    /// Fresh weights under `params`; `heads` divides `width`, and a token sees `span` positions.
    pub fn new(
        params: &Params<'_>,
        (width, heads, span): (i64, i64, i64),
        output_scale: f64,
    ) -> Self {
        let std = (1.0 / width as f64).sqrt();
        let head_width = width / heads;
        Self {
            query_dd: params.matrix("query", &[width, width], std),
            key_value_2dd: params.matrix("key_value", &[2 * width, width], std),
            // The release draws the table from a standard normal.
            position_cl: params.matrix("position", &[head_width, span], 1.0),
            out_dd: params.matrix("out", &[width, width], std * output_scale),
            heads,
        }
    }

    /// Positions that a token sees.
    pub fn span(&self) -> i64 {
        self.position_cl.size()[1]
    }

    /// `x_btd` after the `span` positions `memory_bld`, to `[b, t, d]`.
    ///
    /// # Panics
    /// If the memory has another span, batch or width.
    pub fn forward(&self, x_btd: &Tensor, memory_bld: &Tensor) -> Tensor {
        let seen_bnd = Tensor::cat(&[memory_bld, x_btd], 1);
        let key_value = seen_bnd.linear(&self.key_value_2dd, None::<&Tensor>);
        let [k_bmnc, v_bmnc] = parts(&key_value).map(|x_bnd| self.heads(&x_bnd));
        let q_bmtc = self.heads(&x_btd.linear(&self.query_dd, None::<&Tensor>));
        let (scale, span) = ((k_bmnc.size()[3] as f64).sqrt(), self.span());
        let content_bmtl = band(&q_bmtc.matmul(&k_bmnc.transpose(-2, -1)), span);
        let position_bmtl = q_bmtc.matmul(&self.position_cl);
        let weight_bmtl = ((content_bmtl + position_bmtl) / scale).softmax(-1, None::<Kind>);
        let y_bmtc = spread(&weight_bmtl).matmul(&v_bmnc);
        let y_btd = y_bmtc.transpose(1, 2).contiguous().flatten(2, 3);
        y_btd.linear(&self.out_dd, None::<&Tensor>)
    }

    /// The memory for the tokens after `x_btd`.
    pub fn remember(&self, x_btd: &Tensor, memory_bld: &Tensor) -> Tensor {
        let seen_bnd = Tensor::cat(&[memory_bld, &x_btd.detach()], 1);
        let span = self.span();
        seen_bnd.narrow(1, seen_bnd.size()[1] - span, span)
    }

    /// `[b, n, d] -> [b, m, n, c]`.
    fn heads(&self, x_bnd: &Tensor) -> Tensor {
        let (b, n, d) = x_bnd.size3().expect("[b, n, d]");
        x_bnd.reshape([b, n, self.heads, d / self.heads]).transpose(1, 2)
    }
}

/// `band[t, r] = full[t, t + r]`, `[b, m, t, n] -> [b, m, t, l]`: of the `n = l + t` positions at hand,
/// the `l` before each token.
fn band(full_bmtn: &Tensor, span: i64) -> Tensor {
    let (b, m, t, n) = full_bmtn.size4().expect("[b, m, t, n]");
    let full_bmtn = full_bmtn.contiguous();
    full_bmtn.as_strided([b, m, t, span], [m * t * n, t * n, n + 1, 1], None::<i64>)
}

/// The inverse of [`band`], zeros elsewhere, `[b, m, t, l] -> [b, m, t, n]`: rows that are one longer
/// than `n`, read as rows of `n`, move on by one a row.
fn spread(band_bmtl: &Tensor) -> Tensor {
    let (b, m, t, span) = band_bmtl.size4().expect("[b, m, t, l]");
    let n = span + t;
    let long = band_bmtl.constant_pad_nd([0, t + 1]).flatten(2, 3);
    long.narrow(2, 0, t * n).view([b, m, t, n])
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_routers::ParamStore;
    use moe_routers::tolerance::tolerance;
    use tch::Device;

    const SPAN: i64 = 3;

    fn attention() -> (ParamStore, SpanAttention, Tensor) {
        let store = ParamStore::new(5, Device::Cpu, Kind::Double);
        let attention = SpanAttention::new(&store.root(), (8, 2, SPAN), 1.0);
        let x_btd = store.root().matrix("x", &[2, 6, 8], 2.0).detach();
        (store, attention, x_btd)
    }

    fn nothing(x_btd: &Tensor) -> Tensor {
        let (b, _, d) = x_btd.size3().unwrap();
        Tensor::zeros([b, SPAN, d], (Kind::Double, Device::Cpu))
    }

    fn near(a: &Tensor, b: &Tensor) -> bool {
        let limit = tolerance(Kind::Double).value;
        a.allclose(b, limit, limit, false)
    }

    /// The formula at the head of the file, token by token and head by head.
    fn by_loops(attention: &SpanAttention, x_btd: &Tensor) -> Tensor {
        let (b, t, d) = x_btd.size3().unwrap();
        let (heads, c) = (attention.heads, d / attention.heads);
        let seen_bnd = Tensor::cat(&[&nothing(x_btd), x_btd], 1);
        let y_btd = x_btd.zeros_like();
        for (row, token) in (0..b).flat_map(|row| (0..t).map(move |token| (row, token))) {
            for head in 0..heads {
                let of = |w: &Tensor, first: i64, x_d: &Tensor| {
                    w.narrow(0, first + head * c, c).matmul(x_d)
                };
                let at = |position: i64| seen_bnd.get(row).get(position);
                let q_c = of(&attention.query_dd, 0, &at(SPAN + token));
                let score: Vec<Tensor> = (0..SPAN)
                    .map(|r| {
                        let k_c = of(&attention.key_value_2dd, 0, &at(token + r));
                        let p_c = attention.position_cl.select(1, r);
                        q_c.dot(&(k_c + p_c)) / (c as f64).sqrt()
                    })
                    .collect();
                let weight_l = Tensor::stack(&score, 0).softmax(0, Kind::Double);
                for r in 0..SPAN {
                    let v_c = of(&attention.key_value_2dd, d, &at(token + r));
                    let mut y_c = y_btd.get(row).get(token).narrow(0, head * c, c);
                    y_c += v_c * weight_l.get(r);
                }
            }
        }
        y_btd.matmul(&attention.out_dd.tr())
    }

    #[test]
    fn equals_the_formula() {
        let _guard = tch::no_grad_guard();
        let (_store, attention, x_btd) = attention();
        let y_btd = attention.forward(&x_btd, &nothing(&x_btd));
        assert!(near(&y_btd, &by_loops(&attention, &x_btd)));
    }

    /// Two blocks with the memory between them are one long block.
    #[test]
    fn memory_carries_a_text_over() {
        let (_store, attention, x_btd) = attention();
        let nothing = nothing(&x_btd);
        let whole = attention.forward(&x_btd, &nothing);
        for first in 1..6 {
            let (a, b) = (x_btd.narrow(1, 0, first), x_btd.narrow(1, first, 6 - first));
            let memory_bld = attention.remember(&a, &nothing);
            assert_eq!(memory_bld.size(), [2, SPAN, 8]);
            let halves = [attention.forward(&a, &nothing), attention.forward(&b, &memory_bld)];
            assert!(near(&whole, &Tensor::cat(&halves, 1)), "cut after {first}");
        }
    }

    #[test]
    fn a_token_sees_neither_itself_nor_what_comes_later_nor_beyond_the_span() {
        let (_store, mut attention, x_btd) = attention();
        // Without queries: a token's own query is the one thing of itself that it uses.
        attention.query_dd = attention.query_dd.zeros_like();
        let x_btd = x_btd.set_requires_grad(true);
        attention.forward(&x_btd, &nothing(&x_btd)).get(0).get(5).sum(Kind::Double).backward();
        let reached = |t: i64| x_btd.grad().get(0).get(t).abs().max().double_value(&[]) > 0.0;
        assert_eq!([0, 1, 2, 3, 4, 5].map(reached), [false, false, true, true, true, false]);
    }

    #[test]
    fn band_and_spread_are_inverse() {
        let full = Tensor::arange(10, (Kind::Double, Device::Cpu)).view([1, 1, 2, 5]);
        let band = band(&full, 3);
        let values: Vec<f64> = Vec::try_from(&band.flatten(0, -1)).unwrap();
        assert_eq!(values, [0.0, 1.0, 2.0, 6.0, 7.0, 8.0]);
        let back: Vec<f64> = Vec::try_from(&spread(&band).flatten(0, -1)).unwrap();
        assert_eq!(back, [0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 6.0, 7.0, 8.0, 0.0]);
    }
}
