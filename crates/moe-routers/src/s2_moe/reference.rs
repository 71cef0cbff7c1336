//! S2MoE in plain host arithmetic.
//!
//! Axis letters: `t` tokens of one group, `d` width, `e` experts, `k` choices.

mod augment;

pub use augment::{Augmented, Perturbation, augment};

use super::router::{EPS1, EPS2};
use super::{Balance, Config, NORM_FLOOR, NceOn};
use crate::router::room;
use moe_core::balance::valid_rows;
use moe_core::{
    AuxForm, Choices, Chosen, HostExpert, HostInput, HostRouting, LoadBalance, Reference,
    RouteError, score,
};
use ndarray::{Array1, Array2, ArrayView2, Axis, Zip};

/// Statistics of (1) that training may hold constant, as draws.
const HELD: [&str; 2] = ["mean", "std"];

/// (4) per token, `[t]`.
pub fn info_nce(
    a_td: ArrayView2<'_, f64>,
    b_td: ArrayView2<'_, f64>,
    tau: f64,
    symmetric: bool,
) -> Array1<f64> {
    let logits_tt = score::cosine(a_td, b_td, NORM_FLOOR) / tau;
    let own_t = logits_tt.diag().to_owned();
    let forth_t = score::log_sum_exp(logits_tt.view()) - &own_t;
    if !symmetric {
        return forth_t;
    }
    (forth_t + score::log_sum_exp(logits_tt.t()) - own_t) / 2.0
}

/// (5) of the clean routing over the tokens that are no padding; `kl` does not read the choices.
///
/// # Panics
/// If `switch` has no choices to count.
pub fn balance(
    form: Balance,
    logits_te: ArrayView2<'_, f64>,
    expert_tk: Option<ArrayView2<'_, usize>>,
    padding_t: Option<&[bool]>,
) -> f64 {
    let prob_te = score::softmax(logits_te);
    match form {
        Balance::Switch => {
            let expert_tk = expert_tk.expect("the switch form counts choices");
            LoadBalance::of_valid(prob_te.view(), expert_tk, AuxForm::DivK, padding_t).loss
        }
        Balance::Kl => {
            let mean_e = valid_rows(prob_te.view(), padding_t).mean_axis(Axis(0));
            let uniform = 1.0 / prob_te.ncols() as f64;
            let term = |p: f64| p * (p / uniform).ln();
            mean_e.into_iter().flatten().filter(|p| *p > 0.0).map(term).sum()
        }
    }
}

/// The router on the host, with the parameters of the moment; as [`super::S2Moe`].
#[derive(Debug, Clone)]
pub struct HostS2Moe {
    /// Router, `[e, d]`.
    pub router_ed: Array2<f64>,
    /// Its bias, `[e]`; zero where there is none.
    pub bias_e: Array1<f64>,
    /// Blend gate, `[d]`; inference does not read it.
    pub blend_d: Array1<f64>,
    /// Its bias.
    pub blend_bias: f64,
    /// Settings.
    pub config: Config,
}

/// Both passes of a training step; as [`super::Passes`].
#[derive(Debug, Clone)]
pub struct Passes {
    /// Blended output, `[t, d]`.
    pub y_td: Array2<f64>,
    /// Output of the tokens, `[t, d]`.
    pub clean_td: Array2<f64>,
    /// Output of the noisy copies, `[t, d]`.
    pub noisy_td: Array2<f64>,
    /// Experts of the noisy copies, `[t, k]`.
    pub noisy_expert_tk: Array2<usize>,
    /// The noisy copies.
    pub augmented: Augmented,
    /// Blend `g`, `[t]`.
    pub blend_t: Array1<f64>,
    /// Routing of the tokens, with the balance loss (5).
    pub routing: HostRouting,
}

impl HostS2Moe {
    /// (2) of `x_td`, the tokens of `input` or their copies.
    fn choose(
        &self,
        x_td: ArrayView2<'_, f64>,
        k: usize,
        input: &HostInput<'_>,
    ) -> Result<(Array2<f64>, Chosen), RouteError> {
        let logits_te = x_td.dot(&self.router_ed.t()) + &self.bias_e;
        let (t, e) = logits_te.dim();
        let choices = Choices::top_k(logits_te.view(), k);
        let gate_tk = score::softmax(choices.gate_tk.view());
        let room = room(input.capacity, None, (t, e, k))?;
        let present_tk = input.present(k)?;
        let chosen = Chosen::of_present(choices.with_gates(gate_tk), present_tk.view(), e, room)?;
        Ok((logits_te, chosen))
    }

    /// A training step but for (4).
    ///
    /// # Errors
    /// Gates that are not finite, or no room.
    pub fn passes(
        &self,
        input: &HostInput<'_>,
        given: &Perturbation,
        expert: &HostExpert<'_>,
    ) -> Result<Passes, RouteError> {
        let (x_td, k) = (input.x_td, self.config.top_k);
        let augmented = augment(&self.config, x_td, given, input.padding_t); // (1)
        let routing = self.routing(k, input)?; // (2)
        let clean_td = routing.plan.apply(x_td, expert);
        let rerouted = match self.config.reroute {
            true => Some(self.choose(augmented.x_td.view(), k, input)?.1),
            false => None,
        };
        let noisy = rerouted.as_ref().or(routing.chosen.as_ref()).expect("tokens choose");
        let noisy_td = noisy.plan()?.apply(augmented.x_td.view(), expert);
        let noisy_expert_tk = noisy.choices.expert_tk.clone();
        let blend_t = (x_td.dot(&self.blend_d) + self.blend_bias).mapv(score::sigmoid);
        let mut y_td = clean_td.clone(); // (3)
        Zip::from(y_td.rows_mut()).and(noisy_td.rows()).and(&blend_t).for_each(
            |mut y_d, n_d, &g| y_d.zip_mut_with(&n_d, |y, n| *y = g * *y + (1.0 - g) * n),
        );
        Ok(Passes { y_td, clean_td, noisy_td, noisy_expert_tk, augmented, blend_t, routing })
    }

    /// The clean routing with `k` choices, and the balance loss (5) in training.
    fn routing(&self, k: usize, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let (logits_te, chosen) = self.choose(input.x_td, k, input)?;
        let expert_tk = chosen.choices.expert_tk.view();
        let form = self.config.balance;
        let loss = balance(form, logits_te.view(), Some(expert_tk), input.padding_t);
        let gate_te = score::softmax(logits_te.view());
        Ok(chosen.routing(
            logits_te,
            gate_te,
            if input.train { vec![("balance", loss)] } else { Vec::new() },
        )?)
    }

    /// (4) of what the settings contrast, over the tokens that are no padding; 0 without any.
    pub fn uncertainty(&self, input: &HostInput<'_>, passes: &Passes) -> f64 {
        let (a_td, b_td) = match self.config.nce_on {
            NceOn::Inputs => (input.x_td, passes.augmented.x_td.view()),
            NceOn::Outputs => (passes.clean_td.view(), passes.noisy_td.view()),
        };
        let valid = |rows_td| valid_rows(rows_td, input.padding_t);
        let nce_t = info_nce(valid(a_td).view(), valid(b_td).view(), self.config.tau, false);
        nce_t.mean().unwrap_or(0.0)
    }

    /// The draws of `input`, and the statistics that it holds constant.
    fn perturbation(input: &HostInput<'_>) -> Result<Perturbation, RouteError> {
        let draw = |name| {
            Ok::<_, RouteError>(input.draw_of(name, input.x_td.dim())?.map(|draw| draw.to_owned()))
        };
        let [mean_td, std_td] = HELD;
        Ok(Perturbation {
            eps1_td: draw(EPS1)?,
            eps2_td: draw(EPS2)?,
            held: draw(mean_td)?.zip(draw(std_td)?).map(|(mean_td, std_td)| [mean_td, std_td]),
            ..Perturbation::default()
        })
    }
}

impl Reference for HostS2Moe {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let k = if input.train { self.config.top_k } else { self.config.top_k_infer };
        self.routing(k, input)
    }

    fn layer(
        &self,
        input: &HostInput<'_>,
        expert: &HostExpert<'_>,
    ) -> Result<(Array2<f64>, HostRouting), RouteError> {
        if !input.train {
            let routing = self.route(input)?; // (6)
            return Ok((routing.plan.apply(input.x_td, expert), routing));
        }
        let mut passes = self.passes(input, &Self::perturbation(input)?, expert)?;
        if self.config.beta > 0.0 {
            passes.routing.aux.push(("info_nce", self.uncertainty(input, &passes)));
        }
        Ok((passes.y_td, passes.routing))
    }

    /// The statistics of (1), where no gradient flows through them.
    fn constants(
        &self,
        input: &HostInput<'_>,
    ) -> Result<Vec<(&'static str, Array2<f64>)>, RouteError> {
        if !self.config.detach_stats {
            return Ok(Vec::new());
        }
        let given = Perturbation::default();
        let found = augment(&self.config, input.x_td, &given, input.padding_t);
        Ok(HELD.into_iter().zip([found.mean_td, found.std_td]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;
    use ndarray::array;

    /// Two tokens, one expert that doubles its rows, gate of zero so g = 1/2. `x = (1, 3)`: mean 2,
    /// unbiased deviation sqrt(2). With e1 = (1, 0) and e2 = (0, 1):
    /// `x^_0 = (1 + sqrt 2) 1 + 2`, `x^_1 = 3 + 2 + sqrt 2`. `y = (2 x + 2 x^) / 2 = x + x^`. All cosines
    /// of positive numbers are 1, so InfoNCE is ln 2; one expert is balanced at exactly 1.
    #[test]
    fn by_hand() {
        let x_td = array![[1.0], [3.0]];
        let given = Perturbation {
            eps1_td: Some(array![[1.0], [0.0]]),
            eps2_td: Some(array![[0.0], [1.0]]),
            ..Perturbation::default()
        };
        let host = HostS2Moe {
            router_ed: array![[1.0]],
            bias_e: array![0.0],
            blend_d: array![0.0],
            blend_bias: 0.0,
            config: Config { top_k: 1, ..Config::preset("paper") },
        };
        let (input, root) = (HostInput::new(x_td.view()), 2f64.sqrt());
        let double = |_, rows: ArrayView2<'_, f64>| &rows * 2.0;
        let found = host.passes(&input.train(true), &given, &double).unwrap();
        let want = array![[1.0 + 3.0 + root], [3.0 + 5.0 + root]];
        assert!((&found.y_td - &want).iter().all(|miss| miss.abs() < 1e-12), "{found:?}");
        assert!((host.uncertainty(&input, &found) - 2f64.ln()).abs() < 1e-12);
        assert_eq!(found.routing.aux, [("balance", 1.0)]);
        assert_eq!(host.layer(&input, &double).unwrap().0, &x_td * 2.0);
    }
}
