//! Entropic transport of tokens to experts, (1)-(4), on libtorch. All groups sweep together; one that
//! has converged keeps its potentials, so that groups do not see each other.
//!
//! Axis letters: `g` groups, `t` tokens of a group, `e` experts, `k` choices.

use super::{Config, Cost, NoiseSite, Order, noisy};
use crate::router::{RouteCx, axes3};
use moe_core::RouteError;
use tch::{Kind, Tensor};

/// What transport found for every group.
#[derive(Debug)]
pub struct Transport {
    /// What was maximised, noise included, `[g, t, e]`.
    pub cost_gte: Tensor,
    /// `ln Pi`, `[g, t, e]`; without meaning at padded tokens.
    pub log_plan_gte: Tensor,
    /// `Pi`, `[g, t, e]`; zero at padded tokens.
    pub plan_gte: Tensor,
    /// Sweeps of each group, `[g]`, int64.
    pub sweeps_g: Tensor,
    /// Whether both residuals of a group came below `tol`, `[g]`, bool.
    pub converged_g: Tensor,
    /// `|Pi 1 - 1|` and `|Pi^T 1 - T/E|` of each group, `[g]`.
    pub residuals_g: (Tensor, Tensor),
    /// Tokens that are no padding, `[g, t, 1]`, bool.
    valid_gt1: Tensor,
}

impl Transport {
    /// What experts are chosen by and, before a softmax over the chosen, weighed by: the plan and its
    /// logarithm (4), or `raw_gte` in the place of the latter. Padded tokens keep the `plain` pair.
    pub(super) fn scores(
        &self,
        raw_gte: Option<&Tensor>,
        plain: (&Tensor, &Tensor),
    ) -> (Tensor, Tensor) {
        let weigh_gte = raw_gte.unwrap_or(&self.log_plan_gte);
        let choose =
            |balanced: &Tensor, plain: &Tensor| balanced.where_self(&self.valid_gt1, plain);
        (choose(&self.plan_gte, plain.0), choose(weigh_gte, plain.1))
    }

    /// Divergence of the gates (4) from the plan's row, `-ln sum_k Pi`, `[g, t]`; no other weights on
    /// k experts are closer. Zero for padding.
    pub fn divergence(&self, expert_gtk: &Tensor) -> Tensor {
        let chosen_gtk = self.log_plan_gte.gather(-1, expert_gtk, false);
        let kl_gt: Tensor = -chosen_gtk.logsumexp(-1, false);
        kl_gt.masked_fill(&self.valid_gt1.squeeze_dim(-1).logical_not(), 0.0)
    }
}

/// (1)-(3) for given logits.
///
/// # Errors
/// `padding` that leaves no token of a group.
pub(super) fn solve(
    config: &Config,
    logits_gte: &Tensor,
    cx: &RouteCx<'_>,
) -> Result<Transport, RouteError> {
    if let Some(padding_gt) = cx.padding_gt
        && padding_gt.all_dim(-1, false).any().int64_value(&[]) == 1
    {
        let reason = "covers a whole group: there is nothing to transport".into();
        return Err(RouteError::Setting { key: "padding", reason });
    }
    let clean_gte = cost(config, logits_gte);
    let cost_gte = noisy(config, NoiseSite::Cost, &clean_gte, cx);
    let cost_gte = if config.stop_gradient { cost_gte.detach() } else { cost_gte };
    Ok(sinkhorn(config, &cost_gte, cx.padding_gt))
}

/// (1).
fn cost(config: &Config, logits_gte: &Tensor) -> Tensor {
    match config.cost {
        Cost::Softmax => logits_gte.softmax(-1, logits_gte.kind()),
        Cost::Linear => logits_gte.shallow_clone(),
    }
}

/// (3): balances `cost_gte` over the tokens that are no padding (`[g, t]`, bool). The number of
/// sweeps is a constant for the gradient.
pub fn sinkhorn(config: &Config, cost_gte: &Tensor, padding_gt: Option<&Tensor>) -> Transport {
    let problem = Problem::new(config, cost_gte, padding_gt);
    let (g, t, e) = axes3(cost_gte);
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (cost_gte.kind(), cost_gte.device()));
    let mut potentials = (zeros(&[g, t, 1]), zeros(&[g, 1, e]));
    let mut open_g11 = zeros(&[g, 1, 1]).to_kind(Kind::Bool).logical_not();
    let mut sweeps_g11 = open_g11.zeros_like().to_kind(Kind::Int64);
    for _ in 0..config.max_iters {
        let next = problem.sweep(&potentials);
        potentials = (
            next.0.where_self(&open_g11, &potentials.0),
            next.1.where_self(&open_g11, &potentials.1),
        );
        sweeps_g11 += open_g11.to_kind(Kind::Int64);
        let Some(tol) = config.tol else { continue };
        let plan_gte = problem.plan(&problem.log_plan(&potentials).detach());
        let (row_g, column_g) = problem.residuals(&plan_gte);
        open_g11 = row_g.lt(tol).logical_and(&column_g.lt(tol)).logical_not().view([g, 1, 1]);
        if open_g11.any().int64_value(&[]) == 0 {
            break;
        }
    }
    let log_plan_gte = problem.log_plan(&potentials);
    let plan_gte = problem.plan(&log_plan_gte);
    Transport {
        cost_gte: cost_gte.shallow_clone(),
        residuals_g: problem.residuals(&plan_gte),
        log_plan_gte,
        plan_gte,
        sweeps_g: sweeps_g11.view([g]),
        converged_g: open_g11.view([g]).logical_not(),
        valid_gt1: problem.valid_gt1,
    }
}

/// `ln u`, `[g, t, 1]`, and `ln v`, `[g, 1, e]`.
type Potentials = (Tensor, Tensor);

/// What a sweep reads.
struct Problem {
    /// `C / xi`, `[g, t, e]`.
    scaled_gte: Tensor,
    /// Tokens that are no padding, `[g, t, 1]`, bool.
    valid_gt1: Tensor,
    /// Tokens per expert, `T / E`, `[g, 1, 1]`.
    share_g11: Tensor,
    order: Order,
}

impl Problem {
    fn new(config: &Config, cost_gte: &Tensor, padding_gt: Option<&Tensor>) -> Self {
        let (g, t, e) = axes3(cost_gte);
        let valid_gt1 = match padding_gt {
            Some(padding_gt) => padding_gt.logical_not().unsqueeze(-1),
            None => Tensor::ones([g, t, 1], (Kind::Bool, cost_gte.device())),
        };
        let count_g11 = valid_gt1.to_kind(cost_gte.kind()).sum_dim_intlist(1, true, None);
        Self {
            scaled_gte: cost_gte / config.xi,
            valid_gt1,
            share_g11: count_g11 / e as f64,
            order: config.order,
        }
    }

    fn sweep(&self, (u_gt1, v_g1e): &Potentials) -> Potentials {
        match self.order {
            Order::Vu => {
                let v_g1e = self.columns(u_gt1);
                (self.rows(&v_g1e), v_g1e)
            }
            Order::Uv => {
                let u_gt1 = self.rows(v_g1e);
                let v_g1e = self.columns(&u_gt1);
                (u_gt1, v_g1e)
            }
        }
    }

    /// `ln v`: padded tokens send nothing to any expert.
    fn columns(&self, u_gt1: &Tensor) -> Tensor {
        let sent_gte = &self.scaled_gte + u_gt1;
        let sent_gte = sent_gte.masked_fill(&self.valid_gt1.logical_not(), f64::NEG_INFINITY);
        self.share_g11.log() - sent_gte.logsumexp(1, true)
    }

    /// `ln u`.
    fn rows(&self, v_g1e: &Tensor) -> Tensor {
        -(&self.scaled_gte + v_g1e).logsumexp(-1, true)
    }

    fn log_plan(&self, (u_gt1, v_g1e): &Potentials) -> Tensor {
        &self.scaled_gte + u_gt1 + v_g1e
    }

    fn plan(&self, log_plan_gte: &Tensor) -> Tensor {
        log_plan_gte.exp().masked_fill(&self.valid_gt1.logical_not(), 0.0)
    }

    /// L2 norms of what rows miss of 1 and columns of `T / E`, `[g]` each.
    fn residuals(&self, plan_gte: &Tensor) -> (Tensor, Tensor) {
        let rows_gt1 = plan_gte.sum_dim_intlist(-1, true, None);
        let columns_g1e = plan_gte.sum_dim_intlist(1, true, None);
        let norm =
            |miss: Tensor| miss.square().sum_dim_intlist([1, 2].as_slice(), false, None).sqrt();
        let rows_missing = rows_gt1 - self.valid_gt1.to_kind(plan_gte.kind());
        (norm(rows_missing), norm(columns_g1e - &self.share_g11))
    }
}
