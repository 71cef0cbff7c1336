//! GShard in plain host arithmetic, in the order of the equations.

use super::{Config, GUMBEL, Normalize, SECOND, SUM_EPSILON, SecondPolicy};
use crate::router::room;
use moe_core::{
    AuxForm, Choices, Chosen, HostInput, HostRouting, LoadBalance, Plan, Reference, RouteError,
    SparsePlan, score, top_k,
};
use ndarray::{Array2, ArrayView2, Axis, s};

pub(super) struct Host {
    pub(super) gate_ed: Array2<f64>,
    pub(super) config: Config,
}

impl Host {
    /// (1)-(3): experts, and weights before any drop.
    fn choose(
        &self,
        logits_te: &Array2<f64>,
        prob_te: &Array2<f64>,
        gumbel_te: Option<ArrayView2<'_, f64>>,
    ) -> Choices {
        let mut expert_tk = Choices::top_k(prob_te.view(), 2).expert_tk;
        if let Some(gumbel_te) = gumbel_te {
            let noisy_te = logits_te + &gumbel_te;
            for (t, mut expert_k) in expert_tk.outer_iter_mut().enumerate() {
                let mut others_e = noisy_te.row(t).to_owned();
                others_e[expert_k[0]] = f64::NEG_INFINITY;
                expert_k[1] = top_k(others_e, 1)[0];
            }
        }
        let raw = |(t, k)| prob_te[[t, expert_tk[[t, k]]]];
        let mut gate_tk = Array2::from_shape_fn(expert_tk.dim(), raw);
        if self.config.normalize == Normalize::BeforeDrop {
            let sum_t = gate_tk.sum_axis(Axis(1)) + SUM_EPSILON;
            gate_tk /= &sum_t.insert_axis(Axis(1));
        }
        Choices { expert_tk, gate_tk }
    }

    /// (4): which choices queue.
    fn present(
        &self,
        choices: &Choices,
        input: &HostInput<'_>,
    ) -> Result<Array2<bool>, RouteError> {
        let mut present_tk = input.present(2)?;
        let random = input.train && self.config.second_policy == SecondPolicy::Random;
        if let Some(u_t1) = input.draw_of(SECOND, (choices.tokens(), 1))?.filter(|_| random) {
            for t in 0..choices.tokens() {
                let reach = self.config.threshold * u_t1[[t, 0]];
                present_tk[[t, 1]] &= choices.gate_tk[[t, 1]] > reach;
            }
        }
        Ok(present_tk)
    }

    /// (3), where weights are divided after dropping.
    fn plan(&self, chosen: &Chosen) -> Result<Plan, RouteError> {
        if self.config.normalize != Normalize::AfterDrop {
            return Ok(chosen.plan()?);
        }
        let mut gate_tk = chosen.choices.gate_tk.clone();
        gate_tk.zip_mut_with(&chosen.queue.kept_tk, |g, &kept| *g *= f64::from(u8::from(kept)));
        let sum_t = gate_tk.sum_axis(Axis(1)).mapv(|sum| if sum > 0.0 { sum } else { 1.0 });
        gate_tk /= &sum_t.insert_axis(Axis(1));
        let choices = chosen.choices.clone().with_gates(gate_tk);
        Ok(SparsePlan::from_queue(&choices, &chosen.queue, chosen.experts)?.into())
    }
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let logits_te = input.x_td.dot(&self.gate_ed.t());
        let (t, e) = logits_te.dim();
        let prob_te = score::softmax(logits_te.view()); // (1)
        let sampling = input.train && self.config.second_policy == SecondPolicy::Sampling;
        let gumbel_te = input.draw_of(GUMBEL, (t, e))?.filter(|_| sampling);
        let choices = self.choose(&logits_te, &prob_te, gumbel_te); // (2)-(3)
        let present_tk = self.present(&choices, input)?; // (4)
        let first_t1 = choices.expert_tk.slice(s![.., ..1]);
        let padding_t = input.padding_t;
        let balance = LoadBalance::of_valid(prob_te.view(), first_t1, AuxForm::SumK, padding_t);
        let room = room(input.capacity, Some(&self.config.policy()), (t, e, 2))?; // (5)
        let chosen = Chosen::of_present(choices, present_tk.view(), e, room)?;
        Ok(HostRouting {
            plan: self.plan(&chosen)?,
            chosen: Some(chosen),
            logits_te,
            gate_te: prob_te,
            aux: vec![("balance", balance.loss)], // (6)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;
    use ndarray::array;

    /// Three experts, `W = (ln 3, ln 2, ln 1)^T`, two tokens `x = 1`: `r = (3, 2, 1)/6`, first choice 0,
    /// second 1, room for one row. Token 0 keeps both, token 1 neither. Raw weights 1/2 and 1/3;
    /// normalised 3/5 and 2/5 (but for 1e-9 in 5/6). With `u = (0.9, 0.1)` and threshold 0.5 token
    /// 0's second choice goes (0.4 < 0.45), and token 1's takes its place (0.4 > 0.05): under
    /// `after_drop` each lone survivor would get 1. Balance: `f = (1, 0, 0)`, `3 * 1/2 = 1.5`.
    #[test]
    fn by_hand() {
        let gate_ed = array![[3f64.ln()], [2f64.ln()], [0.0]];
        let x_td = Array2::ones((2, 1));
        let combine_te = |normalize, second_policy| {
            let capacity = Some(1);
            let config = Config { capacity, normalize, second_policy, ..Config::preset("paper") };
            let host = Host { gate_ed: gate_ed.clone(), config };
            let draws = [(SECOND, array![[0.9], [0.1]])];
            let input = HostInput::new(x_td.view()).train(true).draws(&draws);
            let routing = host.route(&input).unwrap();
            assert!((routing.aux[0].1 - 1.5).abs() < 1e-12);
            let Plan::Sparse(plan) = &routing.plan else { panic!("sparse") };
            plan.combine_te()
        };
        let near = |got: Array2<f64>, want: Array2<f64>, room: f64| {
            assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < room), "{got} {want}");
        };
        let (all, random) = (SecondPolicy::All, SecondPolicy::Random);
        let want = array![[0.6, 0.4, 0.0], [0.0, 0.0, 0.0]];
        near(combine_te(Normalize::BeforeDrop, all), want.clone(), 1e-8);
        near(combine_te(Normalize::AfterDrop, all), want, 1e-12);
        let want = array![[0.5, 1.0 / 3.0, 0.0], [0.0, 0.0, 0.0]];
        near(combine_te(Normalize::None, all), want, 1e-12);
        let want = array![[0.6, 0.0, 0.0], [0.0, 0.4, 0.0]];
        near(combine_te(Normalize::BeforeDrop, random), want, 1e-8);
        // Raw second weight 1/3 < 0.45 goes, > 0.05 stays.
        let want = array![[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]];
        near(combine_te(Normalize::AfterDrop, random), want, 1e-12);
    }
}
