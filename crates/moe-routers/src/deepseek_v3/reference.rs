//! DeepSeek-V3's rule in plain host arithmetic.
//!
//! Axis letters: `t` tokens of one group, `e` experts, `k` choices; `n` groups of experts.

use super::{Config, FLOOR, FSource, Score};
use crate::router::room;
use moe_core::{Choices, Chosen, HostInput, HostRouting, Reference, RouteError, score, top_k};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis, s};

/// The host's side of the router.
pub(super) struct Host {
    pub(super) gate_ed: Array2<f64>,
    pub(super) bias_e: Option<Array1<f64>>,
    pub(super) config: Config,
}

/// (1)-(3) of one group.
#[derive(Debug)]
pub struct SelectionHost {
    /// Unbiased scores, `[t, e]`.
    pub score_te: Array2<f64>,
    /// What each group of experts counts, `[t, n_groups]`.
    pub group_score: Array2<f64>,
    /// The groups that stay, best first, `[t, topk_groups]`.
    pub groups: Array2<usize>,
    /// Experts and weights.
    pub choices: Choices,
}

/// (1)-(3), from logits `[t, e]`.
pub fn select_host(
    config: &Config,
    logits_te: ArrayView2<'_, f64>,
    bias_e: Option<ArrayView1<'_, f64>>,
) -> SelectionHost {
    let score_te = match config.score {
        Score::Sigmoid => logits_te.mapv(score::sigmoid), // (1)
        Score::Softmax => score::softmax(logits_te),
    };
    let biased_te = bias_e.map_or(score_te.clone(), |bias_e| &score_te + &bias_e);
    let (t, e) = score_te.dim();
    let size = e / config.n_groups;
    let terms = if bias_e.is_some() { config.group_score_k } else { 1 };
    let group_score = Array2::from_shape_fn((t, config.n_groups), |(t, n)| {
        let of_group = biased_te.slice(s![t, n * size..(n + 1) * size]);
        top_k(of_group.iter().copied(), terms).into_iter().map(|e| of_group[e]).sum()
    });
    let groups = Choices::top_k(group_score.view(), config.topk_groups).expert_tk;
    let open_te = Array2::from_shape_fn((t, e), |(t, e)| {
        let open = groups.row(t).iter().any(|&n| n == e / size);
        if open { biased_te[[t, e]] } else { f64::NEG_INFINITY }
    });
    let choices = Choices::top_k(open_te.view(), config.top_k); // (2)
    let gate_tk = gates(config, score_te.view(), &choices); // (3)
    SelectionHost { choices: choices.with_gates(gate_tk), score_te, group_score, groups }
}

/// (3).
fn gates(config: &Config, score_te: ArrayView2<'_, f64>, choices: &Choices) -> Array2<f64> {
    let gate = |(t, k)| score_te[[t, choices.expert_tk[[t, k]]]];
    let mut gate_tk = Array2::from_shape_fn(choices.expert_tk.dim(), gate);
    if config.normalizes() {
        let sum_t1 = gate_tk.sum_axis(Axis(1)).insert_axis(Axis(1));
        gate_tk /= &sum_t1.mapv(|sum| sum.max(FLOOR));
    }
    gate_tk * config.route_scale
}

/// (5) and its parts.
#[derive(Debug)]
pub struct SequenceBalanceHost {
    /// `f`, `[sequences, e]`.
    pub fraction: Array2<f64>,
    /// `P`, `[sequences, e]`.
    pub mean_prob: Array2<f64>,
    /// Unweighted, the mean over sequences.
    pub value: f64,
}

/// (5) of one group.
///
/// # Errors
/// If `sequence_length` does not divide the tokens.
pub fn sequence_balance_host(
    config: &Config,
    selection: &SelectionHost,
) -> Result<SequenceBalanceHost, RouteError> {
    let (t, e) = selection.score_te.dim();
    let length = config.sequence(t)?;
    let expert_tk = match config.f_source {
        FSource::Unbiased => Choices::top_k(selection.score_te.view(), config.top_k).expert_tk,
        FSource::Selected => selection.choices.expert_tk.clone(),
    };
    let share_te = shares(&selection.score_te);
    let (mut fraction, mut mean_prob) =
        (Array2::zeros((t / length, e)), Array2::zeros((t / length, e)));
    for token in 0..t {
        let mut prob_e = mean_prob.row_mut(token / length);
        prob_e.scaled_add(1.0 / length as f64, &share_te.row(token));
        for &expert in expert_tk.row(token) {
            fraction[[token / length, expert]] += e as f64 / (config.top_k * length) as f64;
        }
    }
    let value = (&fraction * &mean_prob).sum() / (t / length) as f64;
    Ok(SequenceBalanceHost { fraction, mean_prob, value })
}

/// Rows divided by their sum.
fn shares(score_te: &Array2<f64>) -> Array2<f64> {
    let sum_t1 = score_te.sum_axis(Axis(1)).insert_axis(Axis(1));
    score_te / &sum_t1.mapv(|sum| sum.max(FLOOR))
}

/// (4): the bias after a step whose loads were `load_e`.
pub fn updated_bias_host(
    config: &Config,
    bias_e: ArrayView1<'_, f64>,
    load_e: ArrayView1<'_, f64>,
) -> Array1<f64> {
    let mean = load_e.mean().unwrap_or(0.0);
    // `signum` of zero is one.
    let sign = |load: &f64| if *load == mean { 0.0 } else { (mean - load).signum() };
    &bias_e + &load_e.map(|load| sign(load) * config.gamma)
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let logits_te = input.x_td.dot(&self.gate_ed.t());
        let (t, e) = logits_te.dim();
        let bias_e = self.bias_e.as_ref().map(|bias_e| bias_e.view());
        let selection = select_host(&self.config, logits_te.view(), bias_e);
        let balance = sequence_balance_host(&self.config, &selection)?.value;
        let room = room(input.capacity, None, (t, e, self.config.top_k))?;
        let chosen = Chosen::new(selection.choices, e, room)?;
        Ok(chosen.routing(logits_te, shares(&selection.score_te), vec![("balance", balance)])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Preset, RouterConfig};
    use crate::{Dims, ParamStore};
    use ndarray::{arr1, array};
    use tch::{Device, Kind, Tensor};

    /// Logits `ln(odds)` with odds `(1/3, 3, 1, 1)`: scores `(1/4, 3/4, 1/2, 1/2)`, bias `(0, 0, 0.2,
    /// 0.05)`. Two groups count `1/4 + 3/4 = 1` and `0.7 + 0.55 = 1.25`: the second stays, though
    /// expert 1 has the best score of all; without a bias tensor they count their maxima, 3/4 and
    /// 1/2, and the first stays. k = 2, scale 2.5: experts 2, 3 weigh `2.5 * 1/2` each; without bias
    /// experts 1, 0 weigh `2.5 * (3/4, 1/4)`. (5): the top 2 of the unbiased scores are 1 and 2 (the
    /// lower of the tie), `f = 4/2 = 2`, `P = (1, 3, 2, 2)/8`, so `2 (3/8 + 2/8) = 1.25`.
    #[test]
    fn by_hand() {
        let config = Config { top_k: 2, n_groups: 2, topk_groups: 1, ..Config::preset("paper") };
        let logits_te = array![[(1.0f64 / 3.0).ln(), 3f64.ln(), 0.0, 0.0]];
        let bias_e = array![0.0, 0.0, 0.2, 0.05];
        for (bias_e, want_te) in [
            (Some(bias_e), array![[0.0, 0.0, 1.25, 1.25]]),
            (None, array![[0.625, 1.875, 0.0, 0.0]]),
        ] {
            let host = Host { gate_ed: Array2::eye(4), bias_e, config: config.clone() };
            let routing = host.route(&HostInput::new(logits_te.view())).unwrap();
            let difference = routing.plan.combine_te() - want_te;
            assert!(difference.iter().all(|v| v.abs() < 1e-12), "{difference}");
            assert!((routing.aux("balance").unwrap() - 1.25).abs() < 1e-12);
        }
    }

    /// Loads `(5, 3, 1, 3)` with mean 3: the first bias falls by gamma, the third rises. The router
    /// keeps it in a buffer, which the store, and so a checkpoint, holds.
    #[test]
    fn the_bias_follows_the_load() {
        let config = Config::preset("small");
        let want = [-1e-3, 0.0, 1e-3, 0.0];
        let host =
            updated_bias_host(&config, arr1(&[0.0; 4]).view(), arr1(&[5., 3., 1., 3.]).view());
        assert_eq!(host.to_vec(), want);
        let store = ParamStore::new(0, Device::Cpu, Kind::Double);
        let mut router = config.build(&store.root(), Dims { width: 2, experts: 4 });
        router.after_step(&Tensor::from_slice(&[5i64, 3, 1, 3]));
        let entries = store.entries();
        let bias = entries.iter().find(|p| p.name == "bias").unwrap();
        assert_eq!(Vec::<f64>::try_from(&bias.tensor).unwrap(), want);
    }
}
