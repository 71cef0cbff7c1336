//! Noisy top-k gating in plain host arithmetic, in the order of the equations.

use super::{CV_EPSILON, Config, NOISE};
use crate::router::room;
use moe_core::balance::cv_squared_guarded;
use moe_core::{Choices, Chosen, HostInput, HostRouting, Reference, RouteError, score, top_k};
use ndarray::{Array1, Array2, ArrayView2, Axis};

/// The reference, with a copy of the parameters.
#[derive(Debug)]
pub struct Host {
    /// `Wg` transposed, `[e, d]`.
    pub gate_ed: Array2<f64>,
    /// `Wn` transposed, `[e, d]`.
    pub noise_gate_ed: Array2<f64>,
    /// Settings.
    pub config: Config,
}

/// Everything that the equations name, of one group.
#[derive(Debug)]
pub struct HostTerms {
    /// `h`, `[t, e]`.
    pub clean_te: Array2<f64>,
    /// Standard deviation of the noise, zero without noise, `[t, e]`.
    pub std_te: Array2<f64>,
    /// `H`, `[t, e]`.
    pub noisy_te: Array2<f64>,
    /// Experts and gates (3).
    pub choices: Choices,
    /// `P` of (9), `[t, e]`; with noise and k < E only.
    pub prob_te: Option<Array2<f64>>,
    /// (6), `[e]`.
    pub importance_e: Array1<f64>,
    /// (10), `[e]`.
    pub load_e: Array1<f64>,
}

impl Host {
    /// The equations; without `noise_te` there is no noise.
    pub fn terms(
        &self,
        x_td: ArrayView2<'_, f64>,
        noise_te: Option<ArrayView2<'_, f64>>,
    ) -> HostTerms {
        let (k, experts) = (self.config.top_k, self.gate_ed.nrows());
        let clean_te = x_td.dot(&self.gate_ed.t());
        let std_te = match noise_te {
            Some(_) => x_td
                .dot(&self.noise_gate_ed.t())
                .mapv(|raw| score::softplus(raw) + self.config.noise_epsilon),
            None => Array2::zeros(clean_te.dim()),
        };
        let noisy_te = match noise_te {
            Some(noise_te) => &clean_te + &(&std_te * &noise_te), // (4)
            None => clean_te.clone(),
        };
        let choices = Choices::top_k(noisy_te.view(), k); // (5)
        let gate_tk = score::softmax(choices.gate_tk.view()); // (3)
        let mut gate_te = Array2::zeros(clean_te.dim());
        for ((t, rank), &gate) in gate_tk.indexed_iter() {
            gate_te[[t, choices.expert_tk[[t, rank]]]] = gate;
        }
        let smooth = noise_te.is_some() && k < experts;
        let prob_te = smooth.then(|| probability(&clean_te, &std_te, &noisy_te, k));
        let positive_te = gate_te.mapv(|gate| f64::from(u8::from(gate > 0.0)));
        HostTerms {
            importance_e: gate_te.sum_axis(Axis(0)),
            load_e: prob_te.as_ref().unwrap_or(&positive_te).sum_axis(Axis(0)),
            choices: choices.with_gates(gate_tk),
            clean_te,
            std_te,
            noisy_te,
            prob_te,
        }
    }
}

/// (8)-(9).
fn probability(
    clean_te: &Array2<f64>,
    std_te: &Array2<f64>,
    noisy_te: &Array2<f64>,
    k: usize,
) -> Array2<f64> {
    Array2::from_shape_fn(clean_te.dim(), |(t, e)| {
        let noisy_e = noisy_te.row(t);
        let best = top_k(noisy_e.iter().copied(), k + 1);
        let (t_in, t_out) = (noisy_e[best[k]], noisy_e[best[k - 1]]);
        let threshold = if noisy_e[e] > t_in { t_in } else { t_out };
        score::normal_cdf((clean_te[[t, e]] - threshold) / std_te[[t, e]])
    })
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let (t, e) = (input.x_td.nrows(), self.gate_ed.nrows());
        let noise_te = input.draw_of(NOISE, (t, e))?.filter(|_| input.train);
        let terms = self.terms(input.x_td, noise_te);
        let cv = |x_e: &Array1<f64>| cv_squared_guarded(x_e.view(), CV_EPSILON);
        let aux = vec![("importance", cv(&terms.importance_e)), ("load", cv(&terms.load_e))];
        let room = room(input.capacity, None, (t, e, self.config.top_k))?;
        let present_tk = input.present(self.config.top_k)?;
        let chosen = Chosen::of_present(terms.choices, present_tk.view(), e, room)?;
        Ok(chosen.routing(terms.clean_te, score::softmax(terms.noisy_te.view()), aux)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Preset;
    use ndarray::array;

    /// One token `x = 1`, three experts, k = 1, `h = (1, 0, 0)`. `Wn = 0` and epsilon `1 - ln 2` make
    /// `std = 1`. Noise (-2, 0, 0.5) gives `H = (-1, 0, 0.5)`: expert 2 wins with gate 1. Thresholds:
    /// 0 (the second best) for expert 2, 0.5 (the best) for the others: `P = Phi(0.5), Phi(-0.5),
    /// Phi(0)`; since `Phi(x) + Phi(-x) = 1` the loads sum to 1.5.
    /// Importance (0, 0, 1): mean 1/3, variance 2/9, CV^2 = 2. Without noise expert 0 wins, and the
    /// load is a count: the same CV^2.
    #[test]
    fn by_hand() {
        let noise_epsilon = 1.0 - 2f64.ln();
        let host = Host {
            gate_ed: array![[1.0], [0.0], [0.0]],
            noise_gate_ed: Array2::zeros((3, 1)),
            config: Config { top_k: 1, noise_epsilon, ..Config::preset("paper") },
        };
        let x_td = array![[1.0]];
        let terms = host.terms(x_td.view(), Some(array![[-2.0, 0.0, 0.5]].view()));
        assert_eq!(terms.choices.expert_tk, array![[2]]);
        let phi = score::normal_cdf;
        for (got, want) in terms.load_e.iter().zip([phi(0.5), phi(-0.5), 0.5]) {
            assert!((got - want).abs() < 1e-12, "{}", terms.load_e);
        }
        let routing = host.route(&HostInput::new(x_td.view())).unwrap();
        let [("importance", importance), ("load", load)] = routing.aux[..] else { panic!("two") };
        assert!((importance - 2.0).abs() < 1e-8 && (load - 2.0).abs() < 1e-8);
    }
}
