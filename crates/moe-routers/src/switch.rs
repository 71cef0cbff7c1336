//! Switch routing: one expert per token.
//!
//! *Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity*,
//! Fedus, Zoph, Shazeer, 2021, arXiv 2101.03961.
//!
//! ```text
//! p = softmax(W (x * U(1 - eps, 1 + eps)))          jitter in training only        (1)
//! e = argmax p;  y = p_e f_e(x)                     not renormalised               (2)
//! capacity = tokens * factor / E                    arrival order                  (3)
//! L_bal = E sum_e f_e P_e                           f before capacity              (4)-(6)
//! ```

use crate::config::{
    ConfigError, Preset, RouterConfig, Settings, check_positive, check_weight, resolve, to_settings,
};
use crate::convert::to_host;
use crate::losses;
use crate::params::Params;
use crate::plan::ChoicesGtk;
use crate::router::{Aux, Chosen, Dims, Method, Paper, RouteCx, Router, Routing, axes3, room};
use moe_core::{
    AuxForm, CapacityPolicy, CapacityRule, Choices, DropOrder, HostInput, HostRouting, Limit,
    LoadBalance, Reference, RouteError, balance, score,
};
use ndarray::Array2;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// What it is.
pub const PAPER: Paper = Paper {
    id: "switch",
    title: "Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity",
    authors: "Fedus et al. 2021",
    arxiv: "2101.03961",
    idea: "Each token visits its single best expert, weighted by that expert's probability.\n\
        A second expert doubles the computation and the communication.\n\
        The weight is how the router gets a gradient though only one expert is chosen.\n\
        Experts have limited room: tokens that come late to a full expert pass it by.\n\
        Jitter on the router's input and a balance loss spread the tokens.",
    state: "parameters: router W [e, d]",
    cost: "at most one expert call; a softmax over e, in training one uniform draw for each of the d inputs",
    equations: &[
        ("(1)-(2)", "Switch::route"),
        ("(3)", "Config::policy"),
        ("(4)-(6)", "losses::load_balance"),
    ],
    deviations: &[
        "capacity follows Mesh TensorFlow (`switch-mesh`: at least 4, at most all tokens), the authors' code; the paper states only factor * tokens / E",
        "jitter multiplies the router's input only, as in Mesh TensorFlow; the experts read the clean token",
        "capacity factors 1.25 in training and 2.0 in evaluation are the code's",
    ],
    unverified: &[],
    presets: Config::PRESETS,
    compared: &["paper"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// Name of the jitter draw, uniform on `[0, 1)`, `[g, t, d]`.
pub const JITTER: &str = "jitter";

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Half width of the multiplicative jitter, `eps` in (1).
    pub jitter: f64,
    /// Rows that an expert keeps of a group; wins over the factors.
    pub capacity: Option<usize>,
    /// Capacity factor in training; `null` is no limit.
    pub capacity_factor: Option<f64>,
    /// Capacity factor in evaluation; `null` is no limit.
    pub eval_capacity_factor: Option<f64>,
    /// How a factor becomes a number of rows.
    pub capacity_rule: CapacityRule,
    /// Least capacity under a factor; `null` takes the rule's own.
    pub min_capacity: Option<usize>,
    /// Weight of the balance loss.
    pub balance_weight: f64,
    /// Weight of the z-loss.
    pub z_weight: f64,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["paper"];

    fn preset(_: &str) -> Self {
        Self {
            jitter: 0.01,
            capacity: None,
            capacity_factor: Some(1.25),
            eval_capacity_factor: Some(2.0),
            capacity_rule: CapacityRule::SwitchMesh,
            min_capacity: None,
            balance_weight: 0.01,
            z_weight: 0.0,
        }
    }
}

impl Config {
    /// (3): the paper's own room per expert.
    fn policy(&self, training: bool) -> CapacityPolicy {
        let factor = if training { self.capacity_factor } else { self.eval_capacity_factor };
        let (rule, min) = (self.capacity_rule, self.min_capacity);
        let limit = match (self.capacity, factor) {
            (Some(rows), _) => Limit::Fixed(rows),
            (None, Some(factor)) => Limit::Factor { factor, rule, min },
            (None, None) => Limit::Unlimited,
        };
        CapacityPolicy { limit, order: DropOrder::Arrival }
    }
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, _: usize) -> Result<(), ConfigError> {
        check_weight("jitter", self.jitter)?;
        let positive = |key, factor: Option<f64>| factor.map_or(Ok(()), |c| check_positive(key, c));
        positive("capacity_factor", self.capacity_factor)?;
        positive("eval_capacity_factor", self.eval_capacity_factor)?;
        check_weight("balance_weight", self.balance_weight)?;
        check_weight("z_weight", self.z_weight)
    }

    fn active_experts(&self, _: usize) -> f64 {
        1.0
    }

    /// With k = 1 a token's place depends on earlier tokens only.
    fn causal(&self) -> bool {
        true
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let gate_ed = params.matrix("gate", &[dims.experts, dims.width], 0.02);
        Box::new(Switch { gate_ed, config: self.clone() })
    }
}

/// The trainable router.
#[derive(Debug)]
struct Switch {
    gate_ed: Tensor,
    config: Config,
}

impl Switch {
    /// The router's input (1): jittered in training.
    fn jittered(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Tensor {
        if !cx.training() || self.config.jitter == 0.0 {
            return x_gtd.shallow_clone();
        }
        x_gtd * (cx.uniform(JITTER, x_gtd) * 2.0 - 1.0) * self.config.jitter + x_gtd
    }
}

impl Router for Switch {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let logits_gte = self.jittered(x_gtd, cx).linear(&self.gate_ed, None::<&Tensor>);
        let (_, t, e) = axes3(&logits_gte);
        let prob_gte = logits_gte.softmax(-1, logits_gte.kind());
        let choices = ChoicesGtk::top_k(&prob_gte, 1);
        let (expert_gtk, padding) = (&choices.expert_gtk, cx.padding_gt);
        let value =
            losses::load_balance_of_valid(&prob_gte, expert_gtk, AuxForm::SumK, padding).loss;
        let mut aux = vec![Aux { name: "balance", weight: self.config.balance_weight, value }];
        if self.config.z_weight > 0.0 {
            let value = losses::z_loss_of_valid(&logits_gte, padding);
            aux.push(Aux { name: "z", weight: self.config.z_weight, value });
        }
        let room = room(
            cx.capacity,
            Some(&self.config.policy(cx.training())),
            (t as usize, e as usize, 1),
        )?;
        let chosen = Chosen { choices: choices.without_padding(padding), experts: e, room };
        Ok(chosen.routing(logits_gte, prob_gte.detach(), aux))
    }

    fn takes_padding(&self) -> bool {
        true
    }

    fn reference(&self) -> Box<dyn Reference> {
        Box::new(Host { gate_ed: to_host(&self.gate_ed), config: self.config.clone() })
    }
}

struct Host {
    gate_ed: Array2<f64>,
    config: Config,
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let mut x_td = input.x_td.to_owned();
        if let Some(u_td) = input.draw(JITTER).filter(|_| input.train) {
            let eps = self.config.jitter;
            x_td.zip_mut_with(&u_td, |x, &u| *x *= 1.0 - eps + 2.0 * eps * u); // (1)
        }
        let logits_te = x_td.dot(&self.gate_ed.t());
        let (t, e) = logits_te.dim();
        let prob_te = score::softmax(logits_te.view());
        let choices = Choices::top_k(prob_te.view(), 1); // (2)
        let (expert_tk, padding_t) = (choices.expert_tk.view(), input.padding_t);
        let present_tk = input.present(1)?;
        let balance = LoadBalance::of_valid(prob_te.view(), expert_tk, AuxForm::SumK, padding_t);
        let mut aux = vec![("balance", balance.loss)]; // (4)-(6), before capacity
        if self.config.z_weight > 0.0 {
            let valid_te = balance::valid_rows(logits_te.view(), padding_t);
            aux.push(("z", balance::z_loss(valid_te.view())));
        }
        let room = room(input.capacity, Some(&self.config.policy(input.train)), (t, e, 1))?; // (3)
        let chosen = moe_core::Chosen::of_present(choices, present_tk.view(), e, room)?;
        Ok(chosen.routing(logits_te, prob_te, aux)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_core::Plan;
    use ndarray::array;

    /// Two experts, `p = (1/4, 3/4)` for every token of six (`x = 1`, `W = (0, ln 3)^T`). Expert 1
    /// has room for `max(4, min(6, int(6 * 1.25 / 2))) = 4`: the first four tokens go there with
    /// weight 3/4, the last two pass by. Balance: `f = (0, 1)`, `P = (1/4, 3/4)`, `2 * 3/4 = 1.5`.
    #[test]
    fn by_hand() {
        let host = Host { gate_ed: array![[0.0], [3f64.ln()]], config: Config::preset("paper") };
        let x_td = Array2::ones((6, 1));
        let routing = host.route(&HostInput::new(x_td.view()).train(true)).unwrap();
        let Plan::Sparse(plan) = &routing.plan else { panic!("sparse") };
        let weight_t: Vec<f64> = plan.combine_te().column(1).to_vec();
        for (got, want) in weight_t.iter().zip([0.75, 0.75, 0.75, 0.75, 0.0, 0.0]) {
            assert!((got - want).abs() < 1e-12, "{weight_t:?}");
        }
        assert!((routing.aux[0].1 - 1.5).abs() < 1e-12);
    }
}
