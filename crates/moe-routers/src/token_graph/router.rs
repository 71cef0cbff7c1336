//! The trainable token graph.
//!
//! Axis letters: `g` groups, `t` tokens, `m` cached tokens, `n = m + t` columns, `d` width, `e` experts,
//! `k` choices, `h` heads.

use super::config::{Cache, Config, Gate, Graph, Mix, Pool};
use super::reference::HostTokenGraph;
use crate::convert::{to_host, to_host1};
use crate::losses;
use crate::plan::ChoicesGtk;
use crate::router::{Aux, Chosen, RouteCx, Router, Routing, axes3, room};
use moe_core::{AuxForm, Reference, RouteError};
use tch::{Kind, Tensor};

/// What a graph is made of besides the tokens; each only where the settings need it.
#[derive(Debug, Default)]
pub struct Sources {
    /// Attention of every head, `[g, h, t, n]`.
    pub attention_ghtn: Option<Tensor>,
    /// Weights of the heads before their softmax, `[h]`.
    pub head_weights_h: Option<Tensor>,
    /// What every head reads at every column, `[g, h, n, d]`.
    pub head_values_ghnd: Option<Tensor>,
    /// A graph handed in, `[g, t, n]`.
    pub graph_gtn: Option<Tensor>,
    /// Sequence of each token, `[g, t]`; only tokens of the same one meet.
    pub segments_gt: Option<Tensor>,
    /// Probabilities or logits of the cached tokens, as [`Mix`] says, `[g, m, e]`.
    pub cached_gme: Option<Tensor>,
}

fn needed<'a>(tensor: &'a Option<Tensor>, what: &'static str) -> Result<&'a Tensor, RouteError> {
    tensor.as_ref().ok_or(RouteError::Missing { what })
}

/// Below every probability that a double can tell from 0: keeps the logarithm's slope finite.
const TINY: f64 = f64::MIN_POSITIVE;

/// `-sum p ln p` along the last axis, with `0 ln 0 = 0`.
pub fn entropy(p: &Tensor) -> Tensor {
    -(p * p.clamp_min(TINY).log()).sum_dim_intlist(-1, false, None)
}

/// Heads to one graph, `[g, t, n]`.
///
/// # Errors
/// A head out of range, missing weights or values.
pub fn pool(config: &Config, x_gtd: &Tensor, sources: &Sources) -> Result<Tensor, RouteError> {
    let attention_ghtn = needed(&sources.attention_ghtn, "attention")?;
    let heads = attention_ghtn.size()[1];
    match config.pool {
        Pool::Mean => Ok(attention_ghtn.mean_dim(1, false, None)),
        Pool::Weighted => {
            let weights_h = needed(&sources.head_weights_h, "head_weights")?;
            let share_h11 = weights_h.softmax(-1, None::<Kind>).view([-1, 1, 1]);
            Ok((attention_ghtn * share_h11).sum_dim_intlist(1, false, None))
        }
        Pool::Single if (config.head as i64) < heads => {
            Ok(attention_ghtn.select(1, config.head as i64))
        }
        Pool::Single => {
            let reason = format!("{} is out of range 0..{heads}", config.head);
            Err(RouteError::Setting { key: "head", reason })
        }
        Pool::LowestEntropy => {
            let order_ght = entropy(&attention_ghtn.detach()).argsort_stable(true, 1, false);
            let head_g1t1 = order_ght.narrow(1, 0, 1).unsqueeze(-1);
            let index = head_g1t1.expand([-1, -1, -1, attention_ghtn.size()[3]], false);
            Ok(attention_ghtn.gather(1, &index, false).squeeze_dim(1))
        }
        Pool::Posterior => {
            let values_ghnd = needed(&sources.head_values_ghnd, "head_values")?;
            Ok(posterior(config.sigma, x_gtd, attention_ghtn, values_ghnd))
        }
    }
}

/// `P(j | u_i)`, proportional to `sum_h A_hij N(u_i; o_hj, sigma^2)`. The likelihoods are taken
/// relative to the best one that a head looks at.
fn posterior(sigma: f64, x_gtd: &Tensor, attention_ghtn: &Tensor, values_ghnd: &Tensor) -> Tensor {
    let off_ghtnd = x_gtd.unsqueeze(1).unsqueeze(3) - values_ghnd.unsqueeze(2);
    let log_ghtn = off_ghtnd.square().sum_dim_intlist(-1, false, None) / (-2.0 * sigma * sigma);
    let unseen_ghtn = attention_ghtn.le(0.0);
    let log_ghtn = log_ghtn.masked_fill(&unseen_ghtn, f64::NEG_INFINITY);
    let best_g1t1 = log_ghtn.detach().amax([1i64, 3].as_slice(), true);
    let joint_ghtn = attention_ghtn * (log_ghtn - best_g1t1).exp();
    let joint_gtn = joint_ghtn.sum_dim_intlist(1, false, None);
    &joint_gtn / joint_gtn.sum_dim_intlist(-1, true, None)
}

/// Whether token `i` may not read token `j`, `[g or 1, t, t]`, bool; `None` where all read all.
fn barred(config: &Config, x_gtd: &Tensor, sources: &Sources) -> Option<Tensor> {
    let (_, t, _) = axes3(x_gtd);
    let later_1tt = || Tensor::ones([1, t, t], (Kind::Bool, x_gtd.device())).triu(1);
    let apart_gtt = |of_gt: &Tensor| of_gt.unsqueeze(1).ne_tensor(&of_gt.unsqueeze(2));
    match (config.causal, &sources.segments_gt) {
        (false, None) => None,
        (true, None) => Some(later_1tt()),
        (false, Some(of_gt)) => Some(apart_gtt(of_gt)),
        (true, Some(of_gt)) => Some(later_1tt().logical_or(&apart_gtt(of_gt))),
    }
}

/// (2): the row-stochastic graph that is used, `[g, t, n]`.
///
/// # Errors
/// What the settings need and the sources lack.
pub fn graph(
    config: &Config,
    x_gtd: &Tensor,
    w_s_dd: Option<&Tensor>,
    sources: &Sources,
) -> Result<Tensor, RouteError> {
    let (g, t, _) = axes3(x_gtd);
    let eye_tt = Tensor::eye(t, (x_gtd.kind(), x_gtd.device()));
    let graph_gtn = match config.graph {
        Graph::None => eye_tt.expand([g, t, t], false),
        Graph::Similarity => {
            let left_gtd =
                w_s_dd.map_or_else(|| x_gtd.shallow_clone(), |w_s_dd| x_gtd.matmul(w_s_dd));
            let logits_gtt = left_gtd.matmul(&x_gtd.transpose(1, 2)) / config.tau;
            let open_gtt = match barred(config, x_gtd, sources) {
                Some(barred_gtt) => logits_gtt.masked_fill(&barred_gtt, f64::NEG_INFINITY),
                None => logits_gtt,
            };
            open_gtt.softmax(-1, x_gtd.kind())
        }
        Graph::Attention => masked(config, &pool(config, x_gtd, sources)?, x_gtd, sources),
        Graph::Given => masked(config, needed(&sources.graph_gtn, "graph")?, x_gtd, sources),
    };
    let graph_gtn = with_self_edge(config, graph_gtn, &eye_tt);
    Ok(if config.detach_graph { graph_gtn.detach() } else { graph_gtn })
}

/// Adds the token itself to its row, `[g, t, n] -> [g, t, n]`.
fn with_self_edge(config: &Config, graph_gtn: Tensor, eye_tt: &Tensor) -> Tensor {
    if config.self_edge == 0.0 {
        return graph_gtn;
    }
    let cached = graph_gtn.size()[2] - eye_tt.size()[0];
    let itself_tn = eye_tt.constant_pad_nd([cached, 0]) * config.self_edge;
    graph_gtn * (1.0 - config.self_edge) + itself_tn
}

/// Drops cached columns if they are not used, and what a token may not read; then renormalises. A row
/// that loses all its mass becomes the token itself.
fn masked(config: &Config, graph_gtn: &Tensor, x_gtd: &Tensor, sources: &Sources) -> Tensor {
    let (_, t, all) = axes3(graph_gtn);
    let dropped = if config.cache == Cache::Renormalize { all - t } else { 0 };
    let barred_gtt = barred(config, x_gtd, sources);
    if dropped == 0 && barred_gtt.is_none() {
        return graph_gtn.shallow_clone();
    }
    let cached = all - dropped - t;
    let graph_gtn = graph_gtn.narrow(2, dropped, all - dropped);
    let graph_gtn = match barred_gtt {
        // Cached columns stay open.
        Some(barred_gtt) => graph_gtn.masked_fill(&barred_gtt.constant_pad_nd([cached, 0]), 0.0),
        None => graph_gtn,
    };
    let sum_gt1 = graph_gtn.sum_dim_intlist(-1, true, None);
    let lost_gt1 = sum_gt1.le(0.0);
    let eye_tn = Tensor::eye(t, (x_gtd.kind(), x_gtd.device())).constant_pad_nd([cached, 0]);
    let rows_gtn = graph_gtn / sum_gt1.masked_fill(&lost_gt1, 1.0);
    eye_tn.where_self(&lost_gt1, &rows_gtn)
}

/// The trainable router.
#[derive(Debug)]
pub struct TokenGraph {
    /// `W_r`, `[e, d]`.
    pub router_ed: Tensor,
    /// Its bias, `[e]`.
    pub bias_e: Option<Tensor>,
    /// `W_s`, `[d, d]`; `None` is the identity.
    pub w_s_dd: Option<Tensor>,
    /// Settings.
    pub config: Config,
}

/// A routing and what led to it.
#[derive(Debug)]
pub struct Decision {
    /// Own choices, `[g, t, e]`.
    pub prob_gte: Tensor,
    /// Mixed choices, `[g, t, e]`.
    pub mixed_gte: Tensor,
    /// The graph that was used, `[g, t, n]`.
    pub graph_gtn: Tensor,
    /// Who computes what.
    pub routing: Routing,
}

/// (3).
fn mixed(graph_gtn: &Tensor, own_gte: &Tensor, sources: &Sources) -> Result<Tensor, RouteError> {
    if graph_gtn.size()[2] == own_gte.size()[1] {
        return Ok(graph_gtn.matmul(own_gte));
    }
    let cached_gme = needed(&sources.cached_gme, "prev_probs or prev_logits")?;
    Ok(graph_gtn.matmul(&Tensor::cat(&[cached_gme, own_gte], 1)))
}

impl TokenGraph {
    /// Routes.
    ///
    /// # Errors
    /// As [`graph`], and a capacity that cannot be used.
    pub fn decide(
        &self,
        x_gtd: &Tensor,
        cx: &RouteCx<'_>,
        sources: &Sources,
    ) -> Result<Decision, RouteError> {
        let logits_gte = x_gtd.linear(&self.router_ed, self.bias_e.as_ref()); // (1)
        let kind = logits_gte.kind();
        let prob_gte = logits_gte.softmax(-1, kind);
        let graph_gtn = graph(&self.config, x_gtd, self.w_s_dd.as_ref(), sources)?; // (2)
        let mixed_gte = match self.config.mix {
            Mix::Prob => mixed(&graph_gtn, &prob_gte, sources)?,
            Mix::Logit => mixed(&graph_gtn, &logits_gte, sources)?.softmax(-1, kind),
        };
        let choices = self.choose(&mixed_gte, &prob_gte);
        let value = losses::load_balance(&mixed_gte, &choices.expert_gtk, AuxForm::SumK);
        let (_, t, e) = axes3(&mixed_gte);
        let room = room(cx.capacity, None, (t as usize, e as usize, self.config.top_k))?;
        let chosen = Chosen { choices, experts: e, room };
        let routing = chosen.routing(
            logits_gte,
            mixed_gte.detach(),
            vec![Aux { name: "balance", weight: self.config.balance_weight, value }],
        );
        Ok(Decision { prob_gte, mixed_gte, graph_gtn, routing })
    }

    /// (4).
    fn choose(&self, mixed_gte: &Tensor, prob_gte: &Tensor) -> ChoicesGtk {
        let choices = ChoicesGtk::top_k(mixed_gte, self.config.top_k as i64);
        let mut gate_gtk = match self.config.gate {
            Gate::Mixed => choices.gate_gtk.shallow_clone(),
            Gate::Own => prob_gte.gather(-1, &choices.expert_gtk, false),
        };
        if self.config.renormalize {
            gate_gtk = &gate_gtk / gate_gtk.sum_dim_intlist(-1, true, None);
        }
        choices.with_gates(gate_gtk)
    }
}

impl Router for TokenGraph {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let mut sources = Sources::default();
        match (self.config.graph, cx.attention_gmtt) {
            (Graph::Attention, Some(attention)) => {
                sources.attention_ghtn = Some(attention.shallow_clone());
            }
            (Graph::Given, Some(attention)) => {
                sources.graph_gtn = Some(attention.mean_dim(1, false, None));
            }
            _ => {}
        }
        Ok(self.decide(x_gtd, cx, &sources)?.routing)
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(HostTokenGraph {
            router_ed: to_host(&self.router_ed),
            bias_e: self.bias_e.as_ref().map(to_host1),
            w_s_dd: self.w_s_dd.as_ref().map(to_host),
            config: self.config.clone(),
        })
    }
}
