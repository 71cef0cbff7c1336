//! ACMoE in plain host arithmetic, in the order of the equations.
//!
//! Axis letters: `t` tokens, `d` width, `e` experts, `k` choices, `c` clusters.

use super::config::{Config, Empty, Gate, Measure, Mix, Rescale, Score};
use super::{NOISE, WEIGHTS};
use moe_core::{
    AuxForm, Choices, Chosen, HostInput, HostRouting, Reference, RouteError, balance, score,
};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};

/// What the previous sparse layer says of the tokens.
#[derive(Debug, Clone)]
pub struct HostLabels {
    /// Its experts, best first, `[t, k]`; the first column is the cluster.
    pub expert_tk: Array2<usize>,
    /// Their scores, `[t, k]`; needed to mix.
    pub score_tk: Option<Array2<f64>>,
}

impl HostLabels {
    /// Labels and scores of a previous routing whose tokens chose.
    ///
    /// # Errors
    /// If they did not.
    pub fn of(previous: &HostRouting) -> Result<Self, RouteError> {
        let what = "the previous layer's choices";
        let chosen = previous.chosen.as_ref().ok_or(RouteError::Missing { what })?;
        let expert_tk = chosen.choices.expert_tk.clone();
        let at = |((t, _), &e): ((usize, usize), &usize)| previous.logits_te[[t, e]];
        let score = expert_tk.indexed_iter().map(at).collect();
        let score_tk = Array2::from_shape_vec(expert_tk.dim(), score).expect("the same shape");
        Ok(Self { expert_tk, score_tk: Some(score_tk) })
    }

    /// One more than the largest label of all columns.
    pub fn experts(&self) -> usize {
        self.expert_tk.iter().max().map_or(0, |label| label + 1)
    }
}

/// Statistics of the clusters.
#[derive(Debug, Clone)]
pub struct HostClusters {
    /// Spread of each feature, `[c, d]`; 0 for an empty cluster.
    pub dispersion_cd: Array2<f64>,
    /// Mean of each feature, `[c, d]`; 0 for an empty cluster.
    pub mean_cd: Array2<f64>,
    /// Tokens.
    pub count_c: Vec<usize>,
}

/// A scaled group.
#[derive(Debug, Clone)]
pub struct HostScaling {
    /// Weights of the clusters, `[c, d]`; `None` without labels.
    pub weights_cd: Option<Array2<f64>>,
    /// Weights of the tokens, `[t, d]`.
    pub token_weights_td: Array2<f64>,
    /// The scaled tokens, `[t, d]`.
    pub scaled_td: Array2<f64>,
}

/// (1), the number of clusters.
///
/// # Errors
/// If `num_clusters` has no place for a label.
pub fn host_cluster_count(config: &Config, labels: &HostLabels) -> Result<usize, RouteError> {
    super::cluster_count(config, labels.experts())
}

/// (2).
pub fn host_dispersion(
    measure: Measure,
    x_td: ArrayView2<'_, f64>,
    label_t: ArrayView1<'_, usize>,
    clusters: usize,
) -> HostClusters {
    let (_, d) = x_td.dim();
    let mut mean_cd = Array2::zeros((clusters, d));
    let mut dispersion_cd = Array2::zeros((clusters, d));
    let mut count_c = vec![0; clusters];
    for c in 0..clusters {
        let members: Vec<usize> = (0..label_t.len()).filter(|&t| label_t[t] == c).collect();
        count_c[c] = members.len();
        if let Some(mean_d) = x_td.select(Axis(0), &members).mean_axis(Axis(0)) {
            for (q, &mean) in mean_d.indexed_iter() {
                let values: Vec<f64> = members.iter().map(|&t| x_td[[t, q]]).collect();
                dispersion_cd[[c, q]] = spread(measure, &values, mean);
            }
            mean_cd.row_mut(c).assign(&mean_d);
        }
    }
    HostClusters { dispersion_cd, mean_cd, count_c }
}

/// Spread of one feature in one cluster.
fn spread(measure: Measure, values: &[f64], mean: f64) -> f64 {
    let n = values.len() as f64;
    match measure {
        Measure::Mad => values.iter().map(|v| (v - mean).abs()).sum::<f64>() / n,
        Measure::Var => values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n,
        Measure::Pairwise => {
            let pairs = values.iter().flat_map(|a| values.iter().map(move |b| (a - b).abs()));
            // A value and itself add nothing; a single value makes no pair.
            pairs.sum::<f64>() / (n * (n - 1.0)).max(1.0)
        }
    }
}

/// (3)-(6). `count_c` is read under [`Empty::Neutral`] only.
///
/// # Errors
/// If a cluster that counts has `s + eps <= 0`.
pub fn host_weights(
    config: &Config,
    dispersion_cd: ArrayView2<'_, f64>,
    count_c: &[usize],
) -> Result<Array2<f64>, RouteError> {
    let counts = |c: &usize| config.empty == Empty::AsCode || count_c[*c] >= config.min_count;
    let active: Vec<usize> = (0..dispersion_cd.nrows()).filter(counts).collect();
    let mut weights_cd = Array2::ones(dispersion_cd.dim());
    if active.is_empty() {
        return Ok(weights_cd);
    }
    let spread_cd = dispersion_cd.select(Axis(0), &active) + config.eps;
    if let Some(spread) = spread_cd.iter().find(|spread| **spread <= 0.0) {
        return Err(super::no_spread(*spread));
    }
    let mut w_cd = spread_cd.mapv(f64::recip); // (3)
    let mean = |w_cd: &Array2<f64>| w_cd.mean().expect("some cluster counts");
    let before = mean(&w_cd); // (4)
    if config.clip > 0.0 {
        w_cd.mapv_inplace(|w| w.min(config.clip * before)); // (5)
    }
    match config.rescale {
        Rescale::None => {}
        Rescale::PerFeature => w_cd /= &w_cd.mean_axis(Axis(0)).expect("some cluster counts"),
        Rescale::GlobalPre => w_cd /= before,
        Rescale::GlobalPost => w_cd /= mean(&w_cd),
    }
    for (row, &c) in active.iter().enumerate() {
        weights_cd.row_mut(c).assign(&w_cd.row(row));
    }
    Ok(weights_cd)
}

/// (7): the weights of every token.
fn token_weights(
    config: &Config,
    weights_cd: &Array2<f64>,
    labels: &HostLabels,
) -> Result<Array2<f64>, RouteError> {
    let share_tk = match (config.mix, &labels.score_tk) {
        (Mix::Top1, _) => Array2::ones((labels.expert_tk.nrows(), 1)),
        (_, None) => return Err(RouteError::Missing { what: "prev_scores" }),
        (Mix::Soft, Some(score_tk)) => score::softmax(score_tk.view()),
        (Mix::Raw, Some(score_tk)) => score_tk.clone(),
    };
    let mut token_td = Array2::zeros((share_tk.nrows(), weights_cd.ncols()));
    for ((t, k), &share) in share_tk.indexed_iter() {
        let row_d = weights_cd.row(labels.expert_tk[[t, k]]);
        token_td.row_mut(t).scaled_add(share, &row_d);
    }
    Ok(token_td)
}

/// (1)-(7): the scaled tokens. Without labels nothing is scaled; `frozen_cd` takes the place of the
/// weights of this group.
///
/// # Errors
/// Labels of another number of tokens or without a row of weights, no spread, missing scores.
pub fn host_scale(
    config: &Config,
    x_td: ArrayView2<'_, f64>,
    labels: Option<&HostLabels>,
    frozen_cd: Option<ArrayView2<'_, f64>>,
) -> Result<HostScaling, RouteError> {
    let Some(labels) = labels else {
        let token_weights_td = Array2::ones(x_td.dim());
        return Ok(HostScaling { weights_cd: None, token_weights_td, scaled_td: x_td.to_owned() });
    };
    let (got, expected) = (labels.expert_tk.dim(), (x_td.nrows(), labels.expert_tk.ncols()));
    if got != expected {
        return Err(RouteError::Shape { what: "previous choices", expected, got });
    }
    let weights_cd = match frozen_cd {
        Some(frozen_cd) => {
            super::check_frozen(labels.experts(), frozen_cd.nrows())?;
            frozen_cd.to_owned()
        }
        None => {
            let clusters = host_cluster_count(config, labels)?;
            let found = host_dispersion(config.measure, x_td, labels.expert_tk.column(0), clusters);
            host_weights(config, found.dispersion_cd.view(), &found.count_c)?
        }
    };
    let token_weights_td = token_weights(config, &weights_cd, labels)?;
    let scaled_td = &token_weights_td * &x_td;
    Ok(HostScaling { weights_cd: Some(weights_cd), token_weights_td, scaled_td })
}

/// The reference router.
#[derive(Debug, Clone)]
pub struct HostAcMoe {
    /// Expert embeddings or router rows, `[e, d]`.
    pub matrix_ed: Array2<f64>,
    /// Bias of a linear router, `[e]`.
    pub bias_e: Option<Array1<f64>>,
    /// Settings.
    pub config: Config,
}

/// A routing and what led to it.
#[derive(Debug, Clone)]
pub struct HostDecision {
    /// The scaled tokens.
    pub scaling: HostScaling,
    /// Logits with noise, by which experts are chosen, `[t, e]`.
    pub noisy_te: Array2<f64>,
    /// Who computes what.
    pub routing: HostRouting,
}

impl HostAcMoe {
    /// (8).
    fn scores(&self, scaled_td: &Array2<f64>) -> Array2<f64> {
        let mut matrix_ed = self.matrix_ed.clone();
        if self.config.score == Score::Embedding {
            let norm_e = matrix_ed.map_axis(Axis(1), |e| e.dot(&e).sqrt());
            matrix_ed /= &norm_e.mapv(|n| n.max(self.config.embed_eps)).insert_axis(Axis(1));
        }
        let logits_te = scaled_td.dot(&matrix_ed.t());
        match &self.bias_e {
            Some(bias_e) => logits_te + bias_e,
            None => logits_te,
        }
    }

    /// (9).
    fn choose(&self, noisy_te: &Array2<f64>) -> Choices {
        let choices = Choices::top_k(noisy_te.view(), self.config.top_k);
        let gate_tk = match self.config.gate {
            Gate::SoftmaxK => score::softmax(choices.gate_tk.view()),
            Gate::SoftmaxAll => {
                let prob_te = score::softmax(noisy_te.view());
                let at = |(t, k)| prob_te[[t, choices.expert_tk[[t, k]]]];
                Array2::from_shape_fn(choices.expert_tk.dim(), at)
            }
        };
        choices.with_gates(gate_tk)
    }

    /// Routes one group under these labels; `frozen_cd` takes the place of the group's weights.
    ///
    /// # Errors
    /// As [`host_scale`], and a capacity that cannot be used.
    pub fn decide(
        &self,
        input: &HostInput<'_>,
        labels: Option<&HostLabels>,
        frozen_cd: Option<ArrayView2<'_, f64>>,
    ) -> Result<HostDecision, RouteError> {
        let scaling = host_scale(&self.config, input.x_td, labels, frozen_cd)?;
        let logits_te = self.scores(&scaling.scaled_td);
        let std = self.config.noise_std / logits_te.ncols() as f64;
        let noise_te = input.draw_of(NOISE, logits_te.dim())?.filter(|_| input.train);
        let noisy_te = noise_te.map_or_else(|| logits_te.clone(), |n| &logits_te + &(&n * std));
        let choices = self.choose(&noisy_te);
        let prob_te = score::softmax(noisy_te.view());
        let value = balance::load_balance(prob_te.view(), choices.expert_tk.view(), AuxForm::SumK);
        let room = self.config.room(input.capacity, logits_te.dim())?;
        let chosen = Chosen::new(choices, logits_te.ncols(), room)?;
        let routing = chosen.routing(logits_te, prob_te, vec![("balance", value)])?;
        Ok(HostDecision { scaling, noisy_te, routing })
    }
}

impl Reference for HostAcMoe {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let labels = input.previous.map(HostLabels::of).transpose()?;
        Ok(self.decide(input, labels.as_ref(), input.draw(WEIGHTS))?.routing)
    }

    fn constants(
        &self,
        input: &HostInput<'_>,
    ) -> Result<Vec<(&'static str, Array2<f64>)>, RouteError> {
        let labels = input.previous.map(HostLabels::of).transpose()?;
        let scaling = host_scale(&self.config, input.x_td, labels.as_ref(), None)?;
        Ok(scaling.weights_cd.map(|weights_cd| (WEIGHTS, weights_cd)).into_iter().collect())
    }
}
