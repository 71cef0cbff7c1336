//! Control: no routing at all.
//!
//! Every token goes to the one expert of the layer, whose hidden width is the layer's whole active
//! width. What a router is worth is what it gains over this network of equal computation per token.
//!
//! ```text
//! y_t = f(x_t)
//! ```

use crate::config::{ConfigError, Part, Preset, RouterConfig, Settings, resolve, to_settings};
use crate::params::Params;
use crate::plan::ChoicesGtk;
use crate::router::{Chosen, Dims, Method, Paper, RouteCx, Router, Routing, axes3};
use moe_core::{Choices, DropOrder, HostInput, HostRouting, Reference, RouteError};
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What it is.
pub const PAPER: Paper = Paper {
    id: "dense",
    title: "Dense feed-forward network of equal active width",
    authors: "control",
    arxiv: "",
    idea: "One expert, as wide as the experts that a token would visit together; no routing.\n\
        A sparse layer is worth its trouble only if it beats a dense one that computes as much per token.\n\
        Every token goes to the one expert with weight 1.",
    state: "none",
    cost: "one expert call; no W x",
    equations: &[("y = f(x)", "Dense::route")],
    deviations: &[],
    unverified: &[],
    presets: Config::PRESETS,
    compared: &["control"],
    control: true,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Nothing to set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["control"];

    fn preset(_: &str) -> Self {
        Self {}
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, _: usize) -> Result<(), ConfigError> {
        Ok(())
    }

    fn active_experts(&self, _: usize) -> f64 {
        1.0
    }

    fn bank(&self, _: usize) -> usize {
        1
    }

    fn causal(&self) -> bool {
        true
    }

    fn refuses(&self, part: Part) -> Option<&'static str> {
        match part {
            Part::Capacity => Some("its only expert reads every token"),
            Part::Balance | Part::ZLoss => Some("it does not choose"),
        }
    }

    fn build(&self, _: &Params<'_>, _: Dims) -> Box<dyn Router> {
        Box::new(Dense)
    }
}

/// The router that does not choose.
#[derive(Debug)]
struct Dense;

impl Router for Dense {
    fn route(&self, x_gtd: &Tensor, _: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let (g, t, _) = axes3(x_gtd);
        let one_gt1 = Tensor::ones([g, t, 1], (x_gtd.kind(), x_gtd.device()));
        let expert_gtk = one_gt1.zeros_like().to_kind(Kind::Int64);
        let choices = ChoicesGtk::new(expert_gtk, one_gt1.shallow_clone());
        let chosen = Chosen { choices, experts: 1, room: (None, DropOrder::Arrival) };
        Ok(chosen.routing(one_gt1.zeros_like(), one_gt1, Vec::new()))
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(Host)
    }
}

struct Host;

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let ones_t1 = Array2::ones((input.x_td.nrows(), 1));
        let choices = Choices::top_k(ones_t1.view(), 1);
        let chosen = moe_core::Chosen::new(choices, 1, (None, DropOrder::Arrival))?;
        Ok(chosen.routing(Array2::zeros(ones_t1.dim()), ones_t1, Vec::new())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::to_host;
    use crate::{Phase, SeededNoise};

    /// Two tokens, one expert that doubles: (1, 2) -> (2, 4) and (3, 4) -> (6, 8).
    #[test]
    fn by_hand() {
        let x_gtd = Tensor::from_slice(&[1.0, 2.0, 3.0, 4.0]).view([1, 2, 2]);
        let noise = SeededNoise::eval(0, 0);
        let routing = Dense.route(&x_gtd, &RouteCx::new(Phase::Eval, &noise)).unwrap();
        let y_gtd = routing.plan.apply(&x_gtd, |_, rows| rows * 2.0);
        assert_eq!(to_host(&y_gtd.get(0)), ndarray::array![[2.0, 4.0], [6.0, 8.0]]);
    }
}
