//! Control: uniform random routing.
//!
//! Every token draws its experts anew at each step and weighs them equally. A learned router that
//! is not better than this has learned nothing.
//!
//! ```text
//! u_te ~ U(0, 1);  T_t = top-k of u_t;  y_t = (1/k) sum over e in T_t of f_e(x_t)
//! ```

use crate::config::{
    ConfigError, Part, Preset, RouterConfig, Settings, Symmetry, check_top_k, resolve, to_settings,
};
use crate::params::Params;
use crate::plan::ChoicesGtk;
use crate::router::{Chosen, Dims, Method, Paper, RouteCx, Router, Routing, axes3, room};
use moe_core::{Choices, HostInput, HostRouting, Reference, RouteError};
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// What it is.
pub const PAPER: Paper = Paper {
    id: "random",
    title: "Uniform random routing",
    authors: "control",
    arxiv: "",
    idea: "Every token draws k experts anew, uniformly, in training and in evaluation.\n\
        A learned router has to beat chance, and this is chance.\n\
        Each drawn expert has weight 1/k; who goes where is not learned.",
    state: "none",
    cost: "k expert calls; no W x, but e uniform draws and a selection of k",
    equations: &[("T = top-k of u", "Random::route")],
    deviations: &[],
    unverified: &[],
    presets: Config::PRESETS,
    compared: &["control"],
    control: true,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Name of the draw, uniform on `[0, 1)`, `[g, t, e]`.
pub const DRAW: &str = "random";

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Experts per token.
    pub top_k: usize,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["control"];

    fn preset(_: &str) -> Self {
        Self { top_k: 2 }
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        check_top_k(self.top_k, experts)
    }

    fn active_experts(&self, _: usize) -> f64 {
        self.top_k as f64
    }

    fn causal(&self) -> bool {
        true
    }

    fn refuses(&self, part: Part) -> Option<&'static str> {
        match part {
            Part::Capacity => None,
            Part::Balance | Part::ZLoss => Some("its routes are drawn; no gradient reaches them"),
        }
    }

    fn symmetry(&self) -> Symmetry {
        Symmetry { position: true, number: true, draws: true }
    }

    fn build(&self, _: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        Box::new(Random { top_k: self.top_k, experts: dims.experts })
    }
}

/// The router without parameters.
#[derive(Debug, Clone, Copy)]
struct Random {
    top_k: usize,
    experts: i64,
}

impl Router for Random {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let (g, t, _) = axes3(x_gtd);
        let logits_gte = Tensor::zeros([g, t, self.experts], (x_gtd.kind(), x_gtd.device()));
        let u_gte = cx.uniform(DRAW, &logits_gte);
        let choices = ChoicesGtk::top_k(&u_gte, self.top_k as i64);
        let gate_gtk = choices.gate_gtk.ones_like() / self.top_k as f64;
        let room = room(cx.capacity, None, (t as usize, self.experts as usize, self.top_k))?;
        let chosen = Chosen { choices: choices.with_gates(gate_gtk), experts: self.experts, room };
        let gate_gte = logits_gte.softmax(-1, logits_gte.kind());
        Ok(chosen.routing(logits_gte, gate_gte, Vec::new()))
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(*self)
    }
}

impl Reference for Random {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let (t, e) = (input.x_td.nrows(), self.experts as usize);
        let u_te = input.draw(DRAW).ok_or(RouteError::Missing { what: DRAW })?;
        let gate_tk = Array2::from_elem((t, self.top_k), 1.0 / self.top_k as f64);
        let choices = Choices::top_k(u_te, self.top_k).with_gates(gate_tk);
        let room = room(input.capacity, None, (t, e, self.top_k))?;
        let chosen = moe_core::Chosen::new(choices, e, room)?;
        Ok(chosen.routing(
            Array2::zeros((t, e)),
            Array2::from_elem((t, e), 1.0 / e as f64),
            Vec::new(),
        )?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_core::Plan;

    /// u = (0.2, 0.9, 0.5), k = 2: experts 1 and 2, half of each.
    #[test]
    fn by_hand() {
        let u_te = ndarray::array![[0.2, 0.9, 0.5]];
        let x_td = ndarray::array![[1.0]];
        let draws = [(DRAW, u_te)];
        let input = HostInput::new(x_td.view()).draws(&draws);
        let routing = Reference::route(&Random { top_k: 2, experts: 3 }, &input).unwrap();
        let Plan::Sparse(plan) = routing.plan else { panic!("sparse") };
        assert_eq!(plan.combine_te(), ndarray::array![[0.0, 0.5, 0.5]]);
    }
}
