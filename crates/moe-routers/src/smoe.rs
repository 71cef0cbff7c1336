//! Softmax top-k routing, in both orders of softmax and selection.
//!
//! The common sparse layer of language models: Mixtral (arXiv 2401.04088), OLMoE (2409.02060),
//! Qwen-MoE, and the "SMoE" baseline of the small-model papers (CompeteSMoE family).
//!
//! ```text
//! l = W x
//! softmax_topk:  r = softmax(l),  T = top-k of r,  g_e = r_e for e in T            (1)
//!                normalize:       g_e = r_e / sum over T of r                      (2)
//! topk_softmax:  T = top-k of l,  g = softmax of l over T                          (3)
//! y = scale * sum over T of g_e f_e(x)                                             (4)
//! L_bal = E sum_e f_e P_e,  P from softmax(l)                                      (5)
//! L_z   = mean_t (log sum_e exp l_te)^2                                            (6)
//! capacity: an expert keeps at most C of its tokens, whatever the rank of the choice (7)
//! ```
//!
//! (2) and (3) are the same numbers.

mod config;

pub use config::{Config, DropPolicy, Order};

use crate::config::{Preset, resolve};
use crate::convert::to_host;
use crate::losses;
use crate::plan::ChoicesGtk;
use crate::router::{Aux, Chosen, Method, Paper, RouteCx, Router, Routing, axes3, room};
use moe_core::{
    Choices, HostInput, HostRouting, LoadBalance, Reference, RouteError, balance, score,
};
use ndarray::{Array2, Axis};
use tch::Tensor;

/// What it is.
pub const PAPER: Paper = Paper {
    id: "smoe",
    title: "Softmax top-k routing",
    authors: "common practice; Mixtral, OLMoE, Qwen-MoE, CompeteSMoE family",
    arxiv: "2401.04088",
    idea: "A linear map scores every expert; a token visits its k best.\n\
        Experts can specialise if each token visits only the few that suit it.\n\
        Their outputs are weighed by a softmax, taken before or after the choice.\n\
        A balance loss keeps the router from sending everything to the same experts.\n\
        This is what most sparse language models do, and what the other methods change.",
    state: "parameters: router W [e, d]",
    cost: "k expert calls; a selection of k and a softmax over e",
    equations: &[
        ("(1)-(4)", "Smoe::choose"),
        ("(5)", "losses::load_balance"),
        ("(6)", "losses::z_loss"),
        ("(7)", "Config::policy"),
    ],
    deviations: &[
        "capacity (off in every preset) follows Megatron-LM: by token order (`position`) or by the largest gates (`probs`); a recipe's own policy wins over it",
        "`qwen2_moe` leaves out its shared expert, scaled by sigmoid(x . w_s): an expert that every token visits is the layer's business, not the router's",
        "presets `plain` and `smoe` differ in the order of softmax and selection; `normalize` makes them equal",
        "the balance loss keeps the scale of its `balance` form; coefficients are comparable only within one form",
    ],
    unverified: &[
        "OLMoE's loss weights (0.01 and z-loss 0.001)",
        "which balance form the presets' authors logged",
    ],
    presets: Config::PRESETS,
    compared: &["smoe", "plain"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// The trainable router.
#[derive(Debug)]
struct Smoe {
    gate_ed: Tensor,
    config: Config,
}

impl Smoe {
    /// (1)-(4) without the sum: experts and gates of every token.
    fn choose(&self, logits_gte: &Tensor, prob_gte: &Tensor) -> ChoicesGtk {
        let k = self.config.top_k as i64;
        let choices = match self.config.order {
            Order::SoftmaxTopk => ChoicesGtk::top_k(prob_gte, k),
            Order::TopkSoftmax => {
                let choices = ChoicesGtk::top_k(logits_gte, k);
                let gate_gtk = choices.gate_gtk.softmax(-1, logits_gte.kind());
                choices.with_gates(gate_gtk)
            }
        };
        let sum_gt1 = choices.gate_gtk.sum_dim_intlist(-1, true, None);
        let divisor_gt1 = if self.config.normalize { sum_gt1 } else { sum_gt1.ones_like() };
        let gate_gtk = &choices.gate_gtk / divisor_gt1 * self.config.scale;
        choices.with_gates(gate_gtk)
    }
}

impl Router for Smoe {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let logits_gte = x_gtd.linear(&self.gate_ed, None::<&Tensor>);
        let (_, t, e) = axes3(&logits_gte);
        let prob_gte = logits_gte.softmax(-1, logits_gte.kind());
        let choices = self.choose(&logits_gte, &prob_gte);
        let Config { balance, balance_weight, z_weight, top_k, .. } = self.config;
        let padding = cx.padding_gt;
        let terms = losses::load_balance_of_valid(&prob_gte, &choices.expert_gtk, balance, padding);
        let mut aux = vec![Aux { name: "balance", weight: balance_weight, value: terms.loss }];
        if z_weight > 0.0 {
            let value = losses::z_loss_of_valid(&logits_gte, padding);
            aux.push(Aux { name: "z", weight: z_weight, value });
        }
        let own = self.config.policy();
        let room = room(cx.capacity, Some(&own), (t as usize, e as usize, top_k))?;
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

impl Host {
    fn choose(&self, logits_te: &Array2<f64>, prob_te: &Array2<f64>) -> Choices {
        let k = self.config.top_k;
        let choices = match self.config.order {
            Order::SoftmaxTopk => Choices::top_k(prob_te.view(), k),
            Order::TopkSoftmax => {
                let choices = Choices::top_k(logits_te.view(), k);
                let gate_tk = score::softmax(choices.gate_tk.view());
                choices.with_gates(gate_tk)
            }
        };
        let mut gate_tk = choices.gate_tk.clone();
        if self.config.normalize {
            gate_tk /= &gate_tk.sum_axis(Axis(1)).insert_axis(Axis(1));
        }
        choices.with_gates(gate_tk * self.config.scale)
    }
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let logits_te = input.x_td.dot(&self.gate_ed.t());
        let (t, e) = logits_te.dim();
        let prob_te = score::softmax(logits_te.view());
        let choices = self.choose(&logits_te, &prob_te);
        let present_tk = input.present(self.config.top_k)?;
        let (expert_tk, form) = (choices.expert_tk.view(), self.config.balance);
        let balance = LoadBalance::of_valid(prob_te.view(), expert_tk, form, input.padding_t);
        let mut aux = vec![("balance", balance.loss)]; // (5)
        if self.config.z_weight > 0.0 {
            let valid_te = balance::valid_rows(logits_te.view(), input.padding_t);
            aux.push(("z", balance::z_loss(valid_te.view()))); // (6)
        }
        let own = self.config.policy(); // (7)
        let room = room(input.capacity, Some(&own), (t, e, self.config.top_k))?;
        let chosen = moe_core::Chosen::of_present(choices, present_tk.view(), e, room)?;
        Ok(chosen.routing(logits_te, prob_te, aux)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite;
    use moe_core::Plan;
    use ndarray::array;

    /// No preset has a scale: here all have one.
    #[test]
    fn scaled_gates_meet_the_contract() {
        let method =
            Method::Router(|settings| Ok(Box::new(Config { scale: 2.5, ..resolve(settings)? })));
        for preset in ["smoe", "plain", "mixtral"] {
            let report = suite::check(&Paper { method, ..PAPER }, preset).unwrap();
            assert!(report.violations.is_empty(), "{preset}: {:?}", report.violations);
        }
    }

    /// `x = 1` and `W = (ln 1, ln 2, ln 3)^T`, so that `softmax = (1/6, 2/6, 3/6)`.
    /// The two best are experts 2 and 1. `plain` weighs them 3/6 and 2/6; `smoe` and `mixtral`
    /// 3/5 and 2/5. Balance of one token, k = 2: f = (0, 1, 1), P = (1, 2, 3)/6, so
    /// `3 (2/6 + 3/6) = 2.5`. z-loss: `(ln 6)^2`.
    #[test]
    fn by_hand() {
        let gate_ed = array![[0.0], [2f64.ln()], [3f64.ln()]];
        let x_td = array![[1.0]];
        for (preset, want) in
            [("plain", [2. / 6., 3. / 6.]), ("smoe", [0.4, 0.6]), ("mixtral", [0.4, 0.6])]
        {
            let config = Config { z_weight: 1.0, ..Config::preset(preset) };
            let host = Host { gate_ed: gate_ed.clone(), config };
            let routing = host.route(&HostInput::new(x_td.view())).unwrap();
            let Plan::Sparse(plan) = &routing.plan else { panic!("sparse") };
            let combine_te = plan.combine_te();
            assert!((combine_te[[0, 1]] - want[0]).abs() < 1e-12, "{preset}: {combine_te}");
            assert!((combine_te[[0, 2]] - want[1]).abs() < 1e-12, "{preset}: {combine_te}");
            assert!((routing.aux[0].1 - 2.5).abs() < 1e-12);
            assert!((routing.aux[1].1 - 6f64.ln().powi(2)).abs() < 1e-12);
        }
    }
}
