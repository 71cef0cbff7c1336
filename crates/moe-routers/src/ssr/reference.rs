//! SSR in plain host arithmetic, in the order of the equations; padded tokens are left out before
//! transport rather than masked within it.
//!
//! Axis letters: `t` tokens of one group, `n` those that are no padding, `e` experts, `k` choices.

use super::{COIN, Config, Cost, GateSource, NOISE, NoiseSite, Order};
use crate::router::room;
use moe_core::{Choices, Chosen, HostInput, HostRouting, Reference, RouteError, score};
use ndarray::{Array1, Array2, ArrayView2, Axis};

/// What transport found for one group.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTransport {
    /// What was maximised, noise included, `[t, e]`.
    pub cost_te: Array2<f64>,
    /// `ln Pi`, `[t, e]`; `-inf` at padded tokens.
    pub log_plan_te: Array2<f64>,
    /// Sweeps done.
    pub sweeps: usize,
    /// Whether both residuals came below `tol`.
    pub converged: bool,
    /// `|Pi 1 - 1|` and `|Pi^T 1 - T/E|`.
    pub residuals: (f64, f64),
}

impl HostTransport {
    /// `Pi`, `[t, e]`; zero at padded tokens.
    pub fn plan_te(&self) -> Array2<f64> {
        self.log_plan_te.mapv(f64::exp)
    }

    /// Divergence of the gates (4) from the plan's row, `-ln sum_k Pi`, `[t]`; zero for padding.
    pub fn divergence(&self, expert_tk: &Array2<usize>) -> Array1<f64> {
        let sum_t = score::log_sum_exp(at(&self.log_plan_te, expert_tk).view());
        sum_t.mapv(|log_sum| if log_sum.is_finite() { -log_sum } else { 0.0 })
    }
}

/// (3): balances `cost_te`.
pub fn sinkhorn_host(config: &Config, cost_te: ArrayView2<'_, f64>) -> HostTransport {
    let (t, e) = cost_te.dim();
    let (scaled_te, share) = (&cost_te / config.xi, t as f64 / e as f64);
    let rows = |v_e: &Array1<f64>| -score::log_sum_exp((&scaled_te + v_e).view());
    let columns = |u_t: &Array1<f64>| {
        let sent_te = &scaled_te + &u_t.view().insert_axis(Axis(1));
        share.ln() - score::log_sum_exp(sent_te.t())
    };
    let (mut u_t, mut v_e) = (Array1::zeros(t), Array1::zeros(e));
    let mut found = HostTransport {
        cost_te: cost_te.to_owned(),
        log_plan_te: scaled_te.clone(),
        sweeps: 0,
        converged: false,
        residuals: (0.0, 0.0),
    };
    while found.sweeps < config.max_iters && !found.converged {
        match config.order {
            Order::Vu => {
                v_e = columns(&u_t);
                u_t = rows(&v_e);
            }
            Order::Uv => {
                u_t = rows(&v_e);
                v_e = columns(&u_t);
            }
        }
        found.log_plan_te = &scaled_te + &u_t.view().insert_axis(Axis(1)) + &v_e;
        found.residuals = residuals(&found.plan_te(), share);
        let (row, column) = found.residuals;
        found.converged = config.tol.is_some_and(|tol| row < tol && column < tol);
        found.sweeps += 1;
    }
    found
}

/// L2 norms of what rows miss of 1 and columns of `share`.
fn residuals(plan_te: &Array2<f64>, share: f64) -> (f64, f64) {
    let miss = |sums: Array1<f64>, want: f64| {
        sums.iter().map(|sum| (sum - want).powi(2)).sum::<f64>().sqrt()
    };
    (miss(plan_te.sum_axis(Axis(1)), 1.0), miss(plan_te.sum_axis(Axis(0)), share))
}

/// The rule (5) for given logits, `[t, e]`, with the transport if it was solved. `input` says whether
/// this is training and brings draws and padding.
///
/// # Errors
/// Padding that leaves no token to transport; a capacity policy below one place.
pub fn route_logits_host(
    config: &Config,
    logits_te: ArrayView2<'_, f64>,
    input: &HostInput<'_>,
) -> Result<(HostRouting, Option<HostTransport>), RouteError> {
    let mut weigh_te = noisy(config, NoiseSite::SoftmaxLogits, logits_te, input)?;
    let mut score_te = score::softmax(weigh_te.view());
    let draw = input.draw(COIN).filter(|_| input.train);
    let balanced = draw.is_some_and(|coin| coin.iter().all(|r| *r < config.p)); // (5)
    let transport = balanced.then(|| solve(config, logits_te, input)).transpose()?;
    if let Some(transport) = &transport {
        let plan_te = transport.plan_te();
        for t in valid(logits_te.nrows(), input) {
            score_te.row_mut(t).assign(&plan_te.row(t));
            weigh_te.row_mut(t).assign(&match config.gate_source {
                GateSource::Plan => transport.log_plan_te.row(t),
                GateSource::RawLogits => logits_te.row(t),
            });
        }
    }
    let choices = Choices::top_k(score_te.view(), config.top_k);
    let gate_tk = score::softmax(at(&weigh_te, &choices.expert_tk).view()); // (4)
    let (t, e) = logits_te.dim();
    let room = room(input.capacity, None, (t, e, config.top_k))?;
    let chosen = Chosen::new(choices.with_gates(gate_tk), e, room)?;
    let routing = chosen.routing(
        logits_te.to_owned(),
        &score_te / &score_te.sum_axis(Axis(1)).insert_axis(Axis(1)),
        Vec::new(),
    )?;
    Ok((routing, transport))
}

/// (1)-(3) over the tokens that are no padding.
fn solve(
    config: &Config,
    logits_te: ArrayView2<'_, f64>,
    input: &HostInput<'_>,
) -> Result<HostTransport, RouteError> {
    let valid_n = valid(logits_te.nrows(), input);
    if valid_n.is_empty() {
        let reason = "covers the whole group: there is nothing to transport".into();
        return Err(RouteError::Setting { key: "padding", reason });
    }
    let clean_te = match config.cost {
        Cost::Softmax => score::softmax(logits_te),
        Cost::Linear => logits_te.to_owned(),
    };
    let cost_te = noisy(config, NoiseSite::Cost, clean_te.view(), input)?;
    let found = sinkhorn_host(config, cost_te.select(Axis(0), &valid_n).view());
    let mut log_plan_te = Array2::from_elem(cost_te.dim(), f64::NEG_INFINITY);
    for (n, &t) in valid_n.iter().enumerate() {
        log_plan_te.row_mut(t).assign(&found.log_plan_te.row(n));
    }
    Ok(HostTransport { cost_te, log_plan_te, ..found })
}

/// Tokens that are no padding.
fn valid(tokens: usize, input: &HostInput<'_>) -> Vec<usize> {
    (0..tokens).filter(|&t| !input.padding_t.is_some_and(|padding_t| padding_t[t])).collect()
}

fn noisy(
    config: &Config,
    site: NoiseSite,
    clean_te: ArrayView2<'_, f64>,
    input: &HostInput<'_>,
) -> Result<Array2<f64>, RouteError> {
    let noise_te = input.draw_of(NOISE, clean_te.dim())?;
    Ok(match noise_te.filter(|_| input.train && config.noise_site == site) {
        Some(noise_te) => &clean_te + &(&noise_te * config.noise_alpha),
        None => clean_te.to_owned(),
    })
}

/// The values of the chosen experts, `[t, k]`.
fn at(from_te: &Array2<f64>, expert_tk: &Array2<usize>) -> Array2<f64> {
    Array2::from_shape_fn(expert_tk.dim(), |(t, k)| from_te[[t, expert_tk[[t, k]]]])
}

/// The router of the moment.
pub(super) struct Host {
    pub(super) gate_ed: Array2<f64>,
    pub(super) config: Config,
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let logits_te = input.x_td.dot(&self.gate_ed.t());
        let (mut routing, _) = route_logits_host(&self.config, logits_te.view(), input)?;
        // The released rule sends padded tokens through the softmax; a layer sends them nowhere.
        if let Some(chosen) = routing.chosen.clone().filter(|_| input.padding_t.is_some()) {
            let k = self.config.top_k;
            let room = room(input.capacity, None, (logits_te.nrows(), logits_te.ncols(), k))?;
            let present_tk = input.present(k)?;
            let chosen =
                Chosen::of_present(chosen.choices, present_tk.view(), chosen.experts, room)?;
            routing = HostRouting { plan: chosen.plan()?, chosen: Some(chosen), ..routing };
        }
        Ok(routing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;
    use moe_core::Plan;
    use ndarray::array;

    /// Two tokens, two experts, linear cost, xi = 1, `Z = [[2, 0], [1, 1]]`. With T/E = 1 the plan is
    /// `[[q, 1 - q], [1 - q, q]]`, and scaling rows and columns leaves the cross ratio alone:
    /// `(q / (1 - q))^2 = exp(2 + 1 - 0 - 1)`, so `q = sigmoid(1)`. Expert 0 serves token 0 and
    /// expert 1 token 1, each with gate 1 for k = 1 and divergence `-ln sigmoid(1)`. A coin of p is
    /// not below p: plain routing then breaks the tie of token 1 to expert 0.
    #[test]
    fn by_hand() {
        let config = Config { top_k: 1, tol: Some(1e-14), ..Config::preset("ssr_l") };
        let host = Host { gate_ed: Array2::eye(2), config };
        let x_td = array![[2.0, 0.0], [1.0, 1.0]];
        for (coin, loads) in [(0.0009, [1, 1]), (0.001, [2, 0])] {
            let draws = [(COIN, array![[coin]])];
            let input = HostInput::new(x_td.view()).train(true).draws(&draws);
            let (routing, transport) =
                route_logits_host(&host.config, x_td.view(), &input).unwrap();
            let Plan::Sparse(plan) = &routing.plan else { panic!("sparse") };
            assert_eq!(plan.load(), loads, "coin {coin}");
            assert_eq!(plan.weight_n(), [1.0, 1.0]);
            let Some(transport) = transport else { continue };
            let q = score::sigmoid(1.0);
            let want = array![[q, 1.0 - q], [1.0 - q, q]];
            assert!((transport.plan_te() - want).iter().all(|miss| miss.abs() < 1e-12));
            let kl_t = transport.divergence(&array![[0], [1]]);
            assert!(kl_t.iter().all(|kl| (kl + q.ln()).abs() < 1e-12));
        }
    }
}
