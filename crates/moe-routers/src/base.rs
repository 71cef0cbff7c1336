//! BASE layers: tokens are assigned to experts so that every expert gets the same number.
//!
//! *BASE Layers: Simplifying Training of Large, Sparse Models*, Lewis, Bhosale, Dettmers, Goyal,
//! Zettlemoyer, 2021, arXiv 2103.16716.
//!
//! ```text
//! s_te = x_t . c_e                              no gradient into the choice            (1)
//! training:    e(t) maximises sum_t s_{t,e(t)}  with T/E tokens per expert             (2)
//! evaluation:  e(t) = argmax_e s_te                                                    (3)
//! y_t = a E_e(x_t) + (1 - a) x_t,  a = sigmoid(s_{t,e(t)})                             (4)
//! ```
//!
//! Numbers in brackets count the steps of the method. No loss: balance holds by construction.
//!
//! (4) mixes where other layers add. The authors' experts carry their own residual,
//! `E(x) = x + f(x)`, so `y = x + a f(x)`: the plan holds `a`, and the model's ordinary residual
//! around the layer completes the mix.

use crate::config::{
    ConfigError, Part, Preset, RouterConfig, Settings, check_positive, resolve, to_settings,
};
use crate::convert::{to_host, to_indices};
use crate::params::{Init, Params, Role};
use crate::plan::ChoicesGtk;
use crate::router::{Chosen, Dims, Method, Paper, RouteCx, Router, Routing, axes3, room};
use moe_core::{Choices, HostInput, HostRouting, Reference, RouteError, assignment, score};
use ndarray::{Array1, Array2, ArrayView2, Axis};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What it is.
pub const PAPER: Paper = Paper {
    id: "base",
    title: "BASE Layers: Simplifying Training of Large, Sparse Models",
    authors: "Lewis et al. 2021",
    arxiv: "2103.16716",
    idea: "In training, tokens are assigned so that experts get equal numbers and the sum of scores is largest.\n\
        Balance losses compete with the task, and limited room drops tokens.\n\
        Balance holds by construction: no loss, no dropped token.\n\
        In evaluation each token takes its best expert.\n\
        The weight is the sigmoid of the chosen score, which is how the centroids learn.",
    state: "parameters: centroids [e, d]",
    cost: "one expert call; in training an exact assignment on the host, at worst e^3 + e t operations per token of a group of t",
    equations: &[
        ("(1)", "Base::route"),
        ("(2)", "moe_core::assignment::balanced"),
        ("(3)-(4)", "choose"),
    ],
    deviations: &[
        "the authors solve (2) with an auction that turns approximate after 100 rounds, on tokens shuffled across workers; here it is solved exactly, per group, on the host",
        "the mix (4) is a weight a on the expert and the model's own residual, which is the same for experts E(x) = x + f(x); the authors' experts are stacks of such blocks, here one block",
        "training needs a number of tokens that the experts divide, and looks at the whole group; evaluation is causal",
    ],
    unverified: &[],
    presets: Config::PRESETS,
    compared: &["paper"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Length of the orthogonal initial centroids.
    pub gain: f64,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["paper"];

    fn preset(_: &str) -> Self {
        Self { gain: 0.1 }
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, _: usize) -> Result<(), ConfigError> {
        check_positive("gain", self.gain)
    }

    fn active_experts(&self, _: usize) -> f64 {
        1.0
    }

    fn causal(&self) -> bool {
        true
    }

    fn refuses(&self, part: Part) -> Option<&'static str> {
        match part {
            Part::Capacity => None,
            Part::Balance => {
                Some("its training assignment is balanced, so that the loss has no slope")
            }
            Part::ZLoss => None,
        }
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let (shape, init) = ([dims.experts, dims.width], Init::Orthogonal(self.gain));
        Box::new(Base { centroids_ed: params.add("centroids", &shape, init, Role::Decayed) })
    }
}

/// The trainable router.
#[derive(Debug)]
struct Base {
    centroids_ed: Tensor,
}

/// (4): each token's expert, weighed by `a = sigmoid(s)`, the way of the gradient into the router.
pub fn choose(score_gte: &Tensor, expert_gt1: Tensor) -> ChoicesGtk {
    let gate_gt1 = score_gte.gather(-1, &expert_gt1, false).sigmoid();
    ChoicesGtk::new(expert_gt1, gate_gt1)
}

/// The same on the host, `[t, e]`.
pub fn choose_host(score_te: ArrayView2<'_, f64>, expert_t: Vec<usize>) -> Choices {
    let gate = |(t, &e): (usize, &usize)| score::sigmoid(score_te[[t, e]]);
    let gate_t: Array1<f64> = expert_t.iter().enumerate().map(gate).collect();
    let expert_tk = Array1::from_vec(expert_t).insert_axis(Axis(1));
    Choices { expert_tk, gate_tk: gate_t.insert_axis(Axis(1)) }
}

/// `1 - a`: the share of its input that a token keeps, from the combine weights `[…, e] -> […]`; 1
/// for a token that no expert took.
pub fn residual_weight(combine: &Tensor) -> Tensor {
    1.0 - combine.sum_dim_intlist(-1, false, None::<Kind>)
}

/// The same on the host, `[t, e] -> [t]`.
pub fn residual_weight_host(combine_te: ArrayView2<'_, f64>) -> Array1<f64> {
    1.0 - combine_te.sum_axis(Axis(1))
}

/// (2), group by group, `[g, t, e] -> [g, t, 1]`. The solver runs on the host.
///
/// # Errors
/// As [`assignment::balanced`].
fn assign(score_gte: &Tensor) -> Result<Tensor, RouteError> {
    let (g, t, _) = axes3(score_gte);
    let group = |i| assignment::balanced(to_host(&score_gte.get(i)).view());
    let expert_gt: Vec<Vec<usize>> = (0..g).map(group).collect::<Result<_, _>>()?;
    Ok(to_indices(&expert_gt.concat(), &[g, t, 1], score_gte))
}

impl Router for Base {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let score_gte = x_gtd.linear(&self.centroids_ed, None::<&Tensor>); // (1)
        let (_, t, e) = axes3(&score_gte);
        let expert_gt1 = match cx.training() {
            true => assign(&score_gte)?,                          // (2)
            false => ChoicesGtk::top_k(&score_gte, 1).expert_gtk, // (3)
        };
        let choices = choose(&score_gte, expert_gt1); // (4)
        let room = room(cx.capacity, None, (t as usize, e as usize, 1))?;
        let chosen = Chosen { choices, experts: e, room };
        let gate_gte = score_gte.detach().softmax(-1, score_gte.kind());
        Ok(chosen.routing(score_gte, gate_gte, Vec::new()))
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(Host { centroids_ed: to_host(&self.centroids_ed) })
    }
}

struct Host {
    centroids_ed: Array2<f64>,
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let score_te = input.x_td.dot(&self.centroids_ed.t()); // (1)
        let (t, e) = score_te.dim();
        let expert_t = match input.train {
            true => assignment::balanced(score_te.view())?, // (2)
            false => Choices::top_k(score_te.view(), 1).expert_tk.into_iter().collect(), // (3)
        };
        let choices = choose_host(score_te.view(), expert_t); // (4)
        let room = room(input.capacity, None, (t, e, 1))?;
        let chosen = moe_core::Chosen::new(choices, e, room)?;
        let gate_te = score::softmax(score_te.view());
        Ok(chosen.routing(score_te, gate_te, Vec::new())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Two tokens `x = (2, 1)`, centroids `(1, 0)`: scores `(2, 0)` and `(1, 0)`. In training one of
    /// them must go to expert 1; the sum is `2 + 0` if token 1 goes and `0 + 1` if token 0 goes, so
    /// token 1 goes, with `a = sigmoid(0) = 1/2`. In evaluation both visit expert 0.
    #[test]
    fn by_hand() {
        let host = Host { centroids_ed: array![[1.0], [0.0]] };
        let x_td = array![[2.0], [1.0]];
        let (two, one) = (score::sigmoid(2.0), score::sigmoid(1.0));
        for (train, want_te) in
            [(true, array![[two, 0.0], [0.0, 0.5]]), (false, array![[two, 0.0], [one, 0.0]])]
        {
            let routing = host.route(&HostInput::new(x_td.view()).train(train)).unwrap();
            assert_eq!(routing.plan.combine_te(), want_te, "training {train}");
            let kept_t = residual_weight_host(routing.plan.combine_te().view());
            assert!((kept_t[1] - (1.0 - want_te.row(1).sum())).abs() < 1e-12);
        }
    }
}
