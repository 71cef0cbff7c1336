//! Selective Sinkhorn Routing: optimal transport on a few training steps instead of a balance loss.
//!
//! *Selective Sinkhorn Routing for Improved Sparse Mixture of Experts*, 2025, arXiv 2511.08972.
//!
//! ```text
//! C    = Z  or  softmax(Z),  Z = X W                              cost, to be maximised      (1)
//! Pi   = argmax <Pi, C> - xi <Pi, ln Pi>,  Pi 1 = 1,  Pi^T 1 = T/E                           (2)
//! ln v = ln(T/E) - lse_t(C/xi + ln u),  ln u = -lse_e(C/xi + ln v),  ln Pi = C/xi + ln u + ln v  (3)
//! g    = the k largest entries of a row of Pi, divided by their sum                          (4)
//! r < p, r ~ U[0, 1), in training: (1)-(4); else top-k of softmax(Z), softmax over the chosen Z  (5)
//! ```
//!
//! The numbers count the steps of the method: the body of the paper was not available. There is no
//! balance loss and no capacity limit.
//!
//! Axis letters: `g` groups, `t` tokens of a group, `d` width, `e` experts, `k` choices.

mod config;
mod reference;
mod transport;

pub use config::{Config, Cost, GateSource, NoiseSite, Order};
pub use reference::{HostTransport, route_logits_host, sinkhorn_host};
pub use transport::{Transport, sinkhorn};

use crate::config::{Preset, resolve};
use crate::convert::to_host;
use crate::plan::ChoicesGtk;
use crate::router::{Chosen, Method, Paper, RouteCx, Router, Routing, axes3, room};
use moe_core::{Reference, RouteError};
use tch::{Device, Kind, Tensor};

/// What it is.
pub const PAPER: Paper = Paper {
    id: "ssr",
    title: "Selective Sinkhorn Routing for Improved Sparse Mixture of Experts",
    authors: "2025",
    arxiv: "2511.08972",
    idea: "A small share of the training steps assigns tokens by entropic optimal transport with equal loads.\n\
        A balance loss works against the task, and balancing every step by optimal transport is slow.\n\
        All other steps, and evaluation, are plain softmax top-k.\n\
        The few balanced steps are meant to keep all experts in use without any balance loss.",
    state: "parameters: router W [e, d]",
    cost: "k expert calls; a softmax over e and a selection of k; on a share `p` of the training steps also up to `max_iters` Sinkhorn sweeps over the [t, e] costs of a group",
    equations: &[
        ("(1)", "transport::cost"),
        ("(2)-(3)", "sinkhorn"),
        ("(4)", "Transport::scores"),
        ("(5)", "route_logits"),
    ],
    deviations: &[
        "padded tokens visit no expert: the conformance operation, like the release, sends them through the softmax, the router drops them",
        "`paper` is `ssr_s`, the softmax cost; `ssr_l` is the linear one. No reference code is published, so there is no `reference` preset",
        "`third_party` takes its numbers from an implementation that cites the paper; it detaches the plan, which is `stop_gradient = true` here",
        "`sinkhorn_raw_gate` keeps only choice and gate rule of a prototype, which stops on the change of u and v, balances in evaluation too, and has a balance loss",
        "one coin per step and layer, and transport inside each group (T is the tokens of the group that are no padding)",
    ],
    unverified: &[
        "everything but the idea: only abstracts and second-hand accounts were at hand",
        "site of the noise, gradient through the plan, scope of the coin and of T: all are settings or stated above",
    ],
    presets: Config::PRESETS,
    compared: &["paper"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Name of the draw that chooses the branch (5), uniform on `[0, 1)`, `[1, 1]` for all groups.
pub const COIN: &str = "coin";

/// Name of the noise, standard normal, `[g, t, e]`; scaled by `noise_alpha` inside.
pub const NOISE: &str = "noise";

/// Which draws choose the Sinkhorn branch (5); strictly below `p`.
pub fn selects(draw: &Tensor, p: f64) -> Tensor {
    draw.lt(p)
}

/// The trainable router.
#[derive(Debug)]
struct Ssr {
    gate_ed: Tensor,
    config: Config,
}

impl Router for Ssr {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let logits_gte = x_gtd.linear(&self.gate_ed, None::<&Tensor>);
        let (routing, _) = route_logits(&self.config, &logits_gte, cx)?;
        Ok(unpadded(routing, cx.padding_gt))
    }

    fn takes_padding(&self) -> bool {
        true
    }

    fn reference(&self) -> Box<dyn Reference> {
        let config = self.config.clone();
        Box::new(reference::Host { gate_ed: to_host(&self.gate_ed), config })
    }
}

/// The released rule sends padded tokens through the softmax; a layer sends them nowhere.
fn unpadded(routing: Routing, padding_gt: Option<&Tensor>) -> Routing {
    let Some(chosen) = routing.chosen else { return routing };
    let choices = chosen.choices.without_padding(padding_gt);
    let chosen = Chosen { choices, ..chosen };
    Routing { plan: chosen.plan(), chosen: Some(chosen), ..routing }
}

/// The rule (5) for given logits, `[g, t, e]`, with the transport if it was solved.
///
/// # Errors
/// A group that is all padding has nothing to transport; a capacity policy below one place.
pub fn route_logits(
    config: &Config,
    logits_gte: &Tensor,
    cx: &RouteCx<'_>,
) -> Result<(Routing, Option<Transport>), RouteError> {
    let (_, t, e) = axes3(logits_gte);
    let noisy_gte = noisy(config, NoiseSite::SoftmaxLogits, logits_gte, cx);
    let transport =
        balanced(config, cx).then(|| transport::solve(config, logits_gte, cx)).transpose()?;
    let prob_gte = noisy_gte.softmax(-1, noisy_gte.kind());
    let (score_gte, weigh_gte) = match &transport {
        Some(transport) => {
            let raw_gte = (config.gate_source == GateSource::RawLogits).then_some(logits_gte);
            transport.scores(raw_gte, (&prob_gte, &noisy_gte))
        }
        None => (prob_gte, noisy_gte),
    };
    let choices = ChoicesGtk::top_k(&score_gte, config.top_k as i64);
    let gate_gtk = weigh_gte.gather(-1, &choices.expert_gtk, false).softmax(-1, weigh_gte.kind());
    let room = room(cx.capacity, None, (t as usize, e as usize, config.top_k))?;
    let chosen = Chosen { choices: choices.with_gates(gate_gtk), experts: e, room };
    let gate_gte = score_gte.detach();
    let routing = chosen.routing(
        logits_gte.shallow_clone(),
        &gate_gte / gate_gte.sum_dim_intlist(-1, true, None),
        Vec::new(),
    );
    Ok((routing, transport))
}

/// Whether this step takes the Sinkhorn branch. The coin is drawn on the host, whatever the device,
/// so that reading it stalls nothing.
fn balanced(config: &Config, cx: &RouteCx<'_>) -> bool {
    let draw = || cx.uniform(COIN, &Tensor::zeros([1, 1], (Kind::Double, Device::Cpu)));
    cx.training() && selects(&draw(), config.p).any().int64_value(&[]) == 1
}

/// `clean` with the noise, if this is its site and a training step.
fn noisy(config: &Config, site: NoiseSite, clean_gte: &Tensor, cx: &RouteCx<'_>) -> Tensor {
    if config.noise_site != site || !cx.training() || config.noise_alpha == 0.0 {
        return clean_gte.shallow_clone();
    }
    clean_gte + cx.normal(NOISE, clean_gte) * config.noise_alpha
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite;
    use crate::tolerance::tolerance;

    /// The paper's presets take the Sinkhorn branch too rarely for the suite to see it: here they
    /// take it always.
    const ALWAYS: Paper = Paper {
        method: Method::Router(|settings| Ok(Box::new(Config { p: 1.0, ..resolve(settings)? }))),
        ..PAPER
    };

    /// The same with noise on the cost.
    const NOISY_COST: Paper = Paper {
        method: Method::Router(|settings| {
            let (noise_site, noise_alpha) = (NoiseSite::Cost, 0.3);
            Ok(Box::new(Config { p: 1.0, noise_site, noise_alpha, ..resolve(settings)? }))
        }),
        ..PAPER
    };

    /// Never, with noise on the logits.
    const NOISY_LOGITS: Paper = Paper {
        method: Method::Router(|settings| {
            let (noise_site, noise_alpha) = (NoiseSite::SoftmaxLogits, 0.3);
            Ok(Box::new(Config { p: 0.0, noise_site, noise_alpha, ..resolve(settings)? }))
        }),
        ..PAPER
    };

    #[test]
    fn both_branches_meet_the_contract() {
        for paper in [ALWAYS, NOISY_COST, NOISY_LOGITS] {
            for preset in PAPER.presets {
                let report = suite::check(&paper, preset).unwrap();
                assert!(report.violations.is_empty(), "{preset}: {:?}", report.violations);
            }
        }
    }

    /// Balanced steps weigh every expert alike, whatever the logits: an expert's bias is invisible.
    #[test]
    fn a_linear_cost_does_not_see_the_bias_of_an_expert() {
        let config = Config { tol: None, ..Config::preset("ssr_l") };
        let cost_gte = Tensor::randn([2, 6, 3], (Kind::Double, Device::Cpu));
        let bias_e = Tensor::from_slice(&[3.0, 0.0, -5.0]);
        let plain = sinkhorn(&config, &cost_gte, None).plan_gte;
        let biased = sinkhorn(&config, &(&cost_gte + bias_e), None).plan_gte;
        let limit = tolerance(Kind::Double).value;
        assert!(plain.allclose(&biased, limit, limit, false));
        let columns_ge = plain.sum_dim_intlist(1, false, None);
        assert!(columns_ge.allclose(&columns_ge.full_like(2.0), limit, limit, false));
    }
}
