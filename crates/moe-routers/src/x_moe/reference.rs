//! X-MoE in plain host arithmetic, in the order of the equations.

use super::gate::SUM_FLOOR;
use super::{Config, Gate, NormalizeGates, SECOND, SecondPolicy, balance_host};
use moe_core::{
    Choices, Chosen, HostInput, HostRouting, Plan, PlanError, Queue, Reference, RouteError,
    SparsePlan, score,
};
use ndarray::{Array1, Array2, ArrayView2, Axis};

/// The rule with the parameters of a moment.
#[derive(Debug)]
pub struct Host {
    pub(super) proj_pd: Array2<f64>,
    pub(super) bias_p: Option<Array1<f64>>,
    pub(super) emb_ep: Array2<f64>,
    pub(super) temperature: f64,
    pub(super) config: Config,
}

impl Host {
    /// (5), `[t, d] -> [t, p]`.
    pub fn project(&self, x_td: ArrayView2<'_, f64>) -> Array2<f64> {
        let p_tp = x_td.dot(&self.proj_pd.t());
        match &self.bias_p {
            Some(bias_p) => p_tp + bias_p,
            None => p_tp,
        }
    }

    /// (6), `[t, p] -> [t, e]`, before the temperature.
    pub fn scores(&self, p_tp: ArrayView2<'_, f64>) -> Array2<f64> {
        let cosine_te = score::cosine(p_tp, self.emb_ep.view(), self.config.eps);
        let score_te = if self.config.normalize_token {
            cosine_te
        } else {
            let norm_t = p_tp.map_axis(Axis(1), |p| p.dot(&p).sqrt().max(self.config.eps));
            cosine_te * norm_t.insert_axis(Axis(1))
        };
        if self.config.make_finite { make_finite(score_te) } else { score_te }
    }

    /// The embeddings after rescaling, `[e, p]`.
    pub fn embeddings(&self) -> ArrayView2<'_, f64> {
        self.emb_ep.view()
    }

    /// `tau`.
    pub fn temperature(&self) -> f64 {
        self.temperature
    }

    /// (8) for all experts: sigmoid, or else softmax, of scores over temperature.
    pub fn probabilities(&self, logits_te: ArrayView2<'_, f64>) -> Array2<f64> {
        match self.config.gate {
            Gate::Sigmoid => logits_te.mapv(score::sigmoid),
            Gate::Softmax | Gate::SoftmaxTopk => score::softmax(logits_te),
        }
    }

    /// (7)-(8).
    fn choose(&self, score_te: &Array2<f64>, logits_te: &Array2<f64>) -> Choices {
        let choices = Choices::top_k(score_te.view(), self.config.top_k);
        let at = |from_te: &Array2<f64>| {
            Array2::from_shape_fn(choices.expert_tk.dim(), |(t, k)| {
                from_te[[t, choices.expert_tk[[t, k]]]]
            })
        };
        let gate_tk = match self.config.gate {
            Gate::SoftmaxTopk => score::softmax(at(logits_te).view()),
            _ => at(&self.probabilities(logits_te.view())),
        };
        let before = self.config.normalize_gates == NormalizeGates::BeforeDrop;
        let gate_tk = if before { normalized(gate_tk) } else { gate_tk };
        choices.with_gates(gate_tk)
    }

    /// Which choices queue: all, but for those of padded tokens and the second ones that the random
    /// policy takes back.
    fn present(&self, choices: &Choices, input: &HostInput<'_>) -> Array2<bool> {
        let valid = |t: usize| input.padding_t.is_none_or(|padding_t| !padding_t[t]);
        let mut present_tk = Array2::from_shape_fn(choices.expert_tk.dim(), |(t, _)| valid(t));
        let random = self.config.second_policy == SecondPolicy::Random && self.config.top_k > 1;
        if let Some(u_t1) = input.draw(SECOND).filter(|_| random && input.train) {
            for t in 0..choices.tokens() {
                present_tk[[t, 1]] &= 2.0 * choices.gate_tk[[t, 1]] > u_t1[[t, 0]];
            }
        }
        present_tk
    }

    /// The plan of the choices that were kept; with `after_drop` their weights sum to 1.
    fn plan(&self, chosen: &Chosen) -> Result<Plan, PlanError> {
        if self.config.normalize_gates != NormalizeGates::AfterDrop {
            return chosen.plan();
        }
        let kept_tk = chosen.queue.kept_tk.mapv(|kept| f64::from(u8::from(kept)));
        let gate_tk = normalized(&chosen.choices.gate_tk * &kept_tk);
        let choices = chosen.choices.clone().with_gates(gate_tk);
        SparsePlan::from_queue(&choices, &chosen.queue, chosen.experts).map(Plan::Sparse)
    }
}

/// Gates divided by their sum.
fn normalized(gate_tk: Array2<f64>) -> Array2<f64> {
    let sum_t = gate_tk.sum_axis(Axis(1)).mapv(|sum| sum.max(SUM_FLOOR));
    gate_tk / sum_t.insert_axis(Axis(1))
}

fn make_finite(score_te: Array2<f64>) -> Array2<f64> {
    let finite = score_te.iter().copied().filter(|s| s.is_finite());
    let smallest = finite.fold(f64::INFINITY, f64::min);
    score_te.mapv(|s| if s.is_finite() { s } else { smallest })
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let score_te = self.scores(self.project(input.x_td).view());
        let (t, e) = score_te.dim();
        let logits_te = &score_te / self.temperature;
        let choices = self.choose(&score_te, &logits_te);
        let first_t = choices.expert_tk.column(0).to_vec();
        let balance = balance_host(&self.config, score_te.view(), &first_t, input.padding_t); // (9)
        let (slots, order) = self.config.room(input.capacity, (t, e))?;
        let present_tk = self.present(&choices, input);
        let queue = Queue::of_present(&choices, present_tk.view(), e, slots, order)?;
        let chosen = Chosen { choices, queue, experts: e, slots };
        Ok(HostRouting {
            plan: self.plan(&chosen)?,
            chosen: Some(chosen),
            gate_te: score::softmax(logits_te.view()),
            logits_te,
            aux: vec![("balance", balance.loss)],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;
    use moe_core::Plan;
    use ndarray::array;

    /// Projection = identity of the plane, embeddings along the axes, tau = tau0 = 0.3. The token
    /// (3, 4) has cosines 3/5 and 4/5; expert 1 wins with gate `1 / (1 + exp(-0.2/0.3))`. Scaling
    /// token or embedding changes nothing. Balance: t = (0, 1), so 2 times that gate.
    #[test]
    fn by_hand() {
        let config = Config::preset("paper");
        let host = |scale: f64| Host {
            proj_pd: Array2::eye(2),
            bias_p: None,
            emb_ep: Array2::eye(2) * scale,
            temperature: 0.3,
            config: config.clone(),
        };
        let want = score::sigmoid(0.2 / 0.3);
        for scale in [1.0, 7.0] {
            let x_td = array![[3.0, 4.0]] * scale;
            let routing = host(scale).route(&HostInput::new(x_td.view())).unwrap();
            let Plan::Sparse(plan) = &routing.plan else { panic!("sparse") };
            let rows: Vec<_> = plan.rows(1).collect();
            assert_eq!(rows.len(), 1);
            assert!((rows[0].1 - want).abs() < 1e-12);
            assert!((routing.aux[0].1 - 2.0 * want).abs() < 1e-12);
        }
    }
}
