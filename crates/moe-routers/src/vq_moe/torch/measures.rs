//! What the codes say of a layer, on libtorch.
//!
//! Axis letters: `t` tokens, `d` width, `e` experts, `k` choices, `c` codes.

use tch::{Kind, Tensor};

/// Share of the tokens that have each code, `[c]`.
pub fn usage(code_t: &Tensor, codes: i64, kind: Kind) -> Tensor {
    code_t.bincount(None::<Tensor>, codes).to_kind(kind) / code_t.numel() as f64
}

/// Number of codes in use, as the exponential of the entropy over the last axis; the epsilon is the
/// release's.
pub fn perplexity(usage_c: &Tensor) -> Tensor {
    (usage_c * (usage_c + 1e-10).log()).sum_dim_intlist(-1, false, None::<Kind>).neg().exp()
}

/// New usage, rate and codes of a codebook after a step whose tokens had `code_t`.
pub fn reanchored(
    decay: f64,
    codebook_cd: &Tensor,
    code_t: &Tensor,
    usage_c: &Tensor,
    anchor_cd: &Tensor,
) -> (Tensor, Tensor, Tensor) {
    let codes = codebook_cd.size()[0];
    let share_c = usage(code_t, codes, usage_c.kind());
    let usage_c = usage_c * decay + share_c * (1.0 - decay);
    let rate_c = (&usage_c * (-10.0 * codes as f64 / (1.0 - decay)) - 1e-3).exp();
    let rate_c1 = rate_c.unsqueeze(-1);
    let codebook_cd = codebook_cd * (1.0 - &rate_c1) + anchor_cd * rate_c1;
    (usage_c, rate_c, codebook_cd)
}

/// The terms of a balance loss, and the loss.
#[derive(Debug)]
pub struct Balance {
    /// Share of all choices, without a graph, `[e]`.
    pub fraction_e: Tensor,
    /// Mean probability, `[e]`.
    pub mean_prob_e: Tensor,
    /// The loss, a scalar.
    pub loss: Tensor,
}

/// `E sum_e f_e P_e` over softmax(logits / temperature); the release divides it by k.
pub fn balance_terms(
    logits_te: &Tensor,
    expert_tk: &Tensor,
    temperature: f64,
    over_k: bool,
) -> Balance {
    let (experts, k) = (logits_te.size()[1], expert_tk.size()[1]);
    let prob_te = (logits_te / temperature).softmax(-1, logits_te.kind());
    let fraction_e = usage(&expert_tk.flatten(0, -1), experts, logits_te.kind());
    let mean_prob_e = prob_te.mean_dim(0, false, None);
    let scale = experts as f64 / if over_k { k as f64 } else { 1.0 };
    let loss = (&fraction_e * &mean_prob_e).sum(None::<Kind>) * scale;
    Balance { fraction_e, mean_prob_e, loss }
}
