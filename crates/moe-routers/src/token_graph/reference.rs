//! The token graph in plain host arithmetic, in the order of the equations.
//!
//! Axis letters: `t` tokens, `m` cached tokens, `n = m + t` columns, `d` width, `e` experts, `k` choices,
//! `h` heads, `l` layers.

use super::GRAPH;
use super::config::{Cache, Config, Gate, Graph, Mix, Pool};
use super::measures::row_entropy;
use crate::router::room;
use moe_core::{
    AuxForm, Choices, Chosen, HostInput, HostRouting, Reference, RouteError, balance, score,
};
use ndarray::{Array1, Array2, Array3, ArrayView1, ArrayView2, ArrayView3, Axis, concatenate, s};

/// What a graph is made of besides the tokens; each only where the settings need it.
#[derive(Debug, Clone, Default)]
pub struct HostSources {
    /// Attention of every head, `[h, t, n]`.
    pub attention_htn: Option<Array3<f64>>,
    /// Weights of the heads before their softmax, `[h]`.
    pub head_weights_h: Option<Array1<f64>>,
    /// What every head reads at every column, `[h, n, d]`.
    pub head_values_hnd: Option<Array3<f64>>,
    /// A graph handed in, `[t, n]`.
    pub graph_tn: Option<Array2<f64>>,
    /// Sequence of each token, `[t]`; only tokens of the same one meet.
    pub segments_t: Option<Array1<f64>>,
    /// Probabilities or logits of the cached tokens, as [`Mix`] says, `[m, e]`.
    pub cached_me: Option<Array2<f64>>,
}

fn missing(what: &'static str) -> RouteError {
    RouteError::Missing { what }
}

/// Heads to one graph, `[t, n]`.
///
/// # Errors
/// A head out of range, missing weights or values.
pub fn host_pool(
    config: &Config,
    x_td: ArrayView2<'_, f64>,
    sources: &HostSources,
) -> Result<Array2<f64>, RouteError> {
    let attention_htn = sources.attention_htn.as_ref().ok_or(missing("attention"))?;
    let heads = attention_htn.len_of(Axis(0));
    let weighted = |weight_h: ArrayView1<'_, f64>| {
        let parts = attention_htn.outer_iter().zip(weight_h);
        parts.fold(Array2::zeros(attention_htn.index_axis(Axis(0), 0).raw_dim()), |sum, (a, w)| {
            sum + &a * *w
        })
    };
    match config.pool {
        Pool::Mean => Ok(weighted(Array1::from_elem(heads, 1.0 / heads as f64).view())),
        Pool::Weighted => {
            let weights_h = sources.head_weights_h.as_ref().ok_or(missing("head_weights"))?;
            let share_1h = score::softmax(weights_h.view().insert_axis(Axis(0)));
            Ok(weighted(share_1h.row(0)))
        }
        Pool::Single if config.head < heads => {
            Ok(attention_htn.index_axis(Axis(0), config.head).to_owned())
        }
        Pool::Single => {
            let reason = format!("{} is out of range 0..{heads}", config.head);
            Err(RouteError::Setting { key: "head", reason })
        }
        Pool::LowestEntropy => Ok(lowest_entropy(attention_htn.view())),
        Pool::Posterior => {
            let values_hnd = sources.head_values_hnd.as_ref().ok_or(missing("head_values"))?;
            Ok(posterior(config.sigma, x_td, attention_htn.view(), values_hnd.view()))
        }
    }
}

/// For each token the row of the head with the smallest entropy; ties go to the lower head.
fn lowest_entropy(attention_htn: ArrayView3<'_, f64>) -> Array2<f64> {
    let entropy_h: Vec<_> = attention_htn.outer_iter().map(row_entropy).collect();
    let mut graph_tn = attention_htn.index_axis(Axis(0), 0).to_owned();
    for t in 0..graph_tn.nrows() {
        let head = moe_core::top_k(entropy_h.iter().map(|entropy_t| -entropy_t[t]), 1)[0];
        graph_tn.row_mut(t).assign(&attention_htn.slice(s![head, t, ..]));
    }
    graph_tn
}

/// `P(j | u_i)`, proportional to `sum_h A_hij N(u_i; o_hj, sigma^2)`.
fn posterior(
    sigma: f64,
    x_td: ArrayView2<'_, f64>,
    attention_htn: ArrayView3<'_, f64>,
    values_hnd: ArrayView3<'_, f64>,
) -> Array2<f64> {
    let log_htn = Array3::from_shape_fn(attention_htn.raw_dim(), |(h, t, n)| {
        let off_d = &x_td.row(t) - &values_hnd.slice(s![h, n, ..]);
        // A head that does not look has no say, whatever its value.
        let looks = attention_htn[[h, t, n]] > 0.0;
        if looks { -off_d.dot(&off_d) / (2.0 * sigma * sigma) } else { f64::NEG_INFINITY }
    });
    let mut graph_tn = Array2::zeros((x_td.nrows(), values_hnd.len_of(Axis(1))));
    for (t, mut row_n) in graph_tn.rows_mut().into_iter().enumerate() {
        let log_hn = log_htn.index_axis(Axis(1), t);
        let best = log_hn.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        for ((h, n), log) in log_hn.indexed_iter() {
            row_n[n] += attention_htn[[h, t, n]] * (log - best).exp();
        }
        let sum = row_n.sum();
        row_n /= sum;
    }
    graph_tn
}

/// Whether token `i` may read column `n` of `columns`: cached columns always.
fn may_read(config: &Config, sources: &HostSources, cached: usize, (i, n): (usize, usize)) -> bool {
    let Some(j) = n.checked_sub(cached) else { return true };
    let together = sources.segments_t.as_ref().is_none_or(|of_t| of_t[i] == of_t[j]);
    together && (!config.causal || j <= i)
}

/// (2): the row-stochastic graph that is used, `[t, n]`.
///
/// # Errors
/// What the settings need and the sources lack.
pub fn host_graph(
    config: &Config,
    x_td: ArrayView2<'_, f64>,
    w_s_dd: Option<ArrayView2<'_, f64>>,
    sources: &HostSources,
) -> Result<Array2<f64>, RouteError> {
    let tokens = x_td.nrows();
    let mut graph_tn = match config.graph {
        Graph::None => Array2::eye(tokens),
        Graph::Similarity => {
            let left_td = w_s_dd.map_or_else(|| x_td.to_owned(), |w_s_dd| x_td.dot(&w_s_dd));
            let mut logits_tt = left_td.dot(&x_td.t()) / config.tau;
            for (at, logit) in logits_tt.indexed_iter_mut() {
                if !may_read(config, sources, 0, at) {
                    *logit = f64::NEG_INFINITY;
                }
            }
            score::softmax(logits_tt.view())
        }
        Graph::Attention => masked(config, host_pool(config, x_td, sources)?, sources),
        Graph::Given => {
            let graph_tn = sources.graph_tn.clone().ok_or(missing("graph"))?;
            masked(config, graph_tn, sources)
        }
    };
    let cached = graph_tn.ncols() - tokens;
    graph_tn *= 1.0 - config.self_edge;
    graph_tn.slice_mut(s![.., cached..]).diag_mut().mapv_inplace(|p| p + config.self_edge);
    Ok(graph_tn)
}

/// Drops cached columns if they are not used, and what a token may not read; then renormalises. A row
/// that loses all its mass becomes the token itself.
fn masked(config: &Config, graph_tn: Array2<f64>, sources: &HostSources) -> Array2<f64> {
    let tokens = graph_tn.nrows();
    let all = graph_tn.ncols();
    let dropped = if config.cache == Cache::Renormalize { all - tokens } else { 0 };
    if dropped == 0 && !config.causal && sources.segments_t.is_none() {
        return graph_tn;
    }
    let mut graph_tn = graph_tn.slice(s![.., dropped..]).to_owned();
    let cached = graph_tn.ncols() - tokens;
    for (at, p) in graph_tn.indexed_iter_mut() {
        if !may_read(config, sources, cached, at) {
            *p = 0.0;
        }
    }
    for (t, mut row_n) in graph_tn.rows_mut().into_iter().enumerate() {
        let sum = row_n.sum();
        if sum > 0.0 {
            row_n /= sum;
        } else {
            row_n[cached + t] = 1.0;
        }
    }
    graph_tn
}

/// The reference router.
#[derive(Debug, Clone)]
pub struct HostTokenGraph {
    /// `W_r`, `[e, d]`.
    pub router_ed: Array2<f64>,
    /// Its bias, `[e]`.
    pub bias_e: Option<Array1<f64>>,
    /// `W_s`, `[d, d]`; `None` is the identity.
    pub w_s_dd: Option<Array2<f64>>,
    /// Settings.
    pub config: Config,
}

/// A routing and what led to it.
#[derive(Debug, Clone)]
pub struct HostDecision {
    /// Own choices, `[t, e]`.
    pub prob_te: Array2<f64>,
    /// The graph that was used, `[t, n]`.
    pub graph_tn: Array2<f64>,
    /// Who computes what; its gate distribution is the mixed choice.
    pub routing: HostRouting,
}

impl HostTokenGraph {
    fn graph(
        &self,
        x_td: ArrayView2<'_, f64>,
        sources: &HostSources,
    ) -> Result<Array2<f64>, RouteError> {
        host_graph(&self.config, x_td, self.w_s_dd.as_ref().map(|w| w.view()), sources)
    }

    /// (3).
    fn mixed(
        &self,
        graph_tn: &Array2<f64>,
        own_te: &Array2<f64>,
        sources: &HostSources,
    ) -> Result<Array2<f64>, RouteError> {
        let cached = graph_tn.ncols() - own_te.nrows();
        let all_ne = match &sources.cached_me {
            _ if cached == 0 => own_te.clone(),
            Some(cached_me) => concatenate(Axis(0), &[cached_me.view(), own_te.view()])
                .expect("cached choices have a column per expert"),
            None => return Err(missing("prev_probs or prev_logits")),
        };
        Ok(graph_tn.dot(&all_ne))
    }

    /// Routes one group.
    ///
    /// # Errors
    /// As [`host_graph`], and a capacity that cannot be used.
    pub fn decide(
        &self,
        input: &HostInput<'_>,
        sources: &HostSources,
    ) -> Result<HostDecision, RouteError> {
        let mut logits_te = input.x_td.dot(&self.router_ed.t()); // (1)
        if let Some(bias_e) = &self.bias_e {
            logits_te += bias_e;
        }
        let prob_te = score::softmax(logits_te.view());
        let graph_tn = match input.draw(GRAPH) {
            Some(graph_tn) => graph_tn.to_owned(),
            None => self.graph(input.x_td, sources)?, // (2)
        };
        let mixed_te = match self.config.mix {
            Mix::Prob => self.mixed(&graph_tn, &prob_te, sources)?,
            Mix::Logit => score::softmax(self.mixed(&graph_tn, &logits_te, sources)?.view()),
        };
        let choices = self.choose(&mixed_te, &prob_te);
        let form = AuxForm::SumK;
        let value = balance::load_balance(mixed_te.view(), choices.expert_tk.view(), form);
        let (t, e) = mixed_te.dim();
        let chosen =
            Chosen::new(choices, e, room(input.capacity, None, (t, e, self.config.top_k))?)?;
        let routing = chosen.routing(logits_te, mixed_te, vec![("balance", value)])?;
        Ok(HostDecision { prob_te, graph_tn, routing })
    }

    /// (4).
    fn choose(&self, mixed_te: &Array2<f64>, prob_te: &Array2<f64>) -> Choices {
        let mut choices = Choices::top_k(mixed_te.view(), self.config.top_k);
        if self.config.gate == Gate::Own {
            let at = |(t, k)| prob_te[[t, choices.expert_tk[[t, k]]]];
            choices.gate_tk = Array2::from_shape_fn(choices.expert_tk.dim(), at);
        }
        if self.config.renormalize { choices.renormalised() } else { choices }
    }
}

/// What the seam hands in: one matrix, the attention or the graph.
fn handed_in(input: &HostInput<'_>) -> HostSources {
    let attention_htn = input.attention_mtt.map(|a| a.to_owned());
    let graph_tn = input.attention_mtt.and_then(|a| a.mean_axis(Axis(0)));
    HostSources { attention_htn, graph_tn, ..HostSources::default() }
}

impl Reference for HostTokenGraph {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        Ok(self.decide(input, &handed_in(input))?.routing)
    }

    fn constants(
        &self,
        input: &HostInput<'_>,
    ) -> Result<Vec<(&'static str, Array2<f64>)>, RouteError> {
        if !self.config.detach_graph {
            return Ok(Vec::new());
        }
        Ok(vec![(GRAPH, self.graph(input.x_td, &handed_in(input))?)])
    }
}
