//! Losses that a recipe adds to any router, or whose weights it changes.
//!
//! Axis letters: `g` groups, `t` tokens, `e` experts.

use moe_core::AuxForm;
use moe_routers::config::Part;
use moe_routers::{Aux, RouterConfig, Routing, losses};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

/// Weights in the objective. A loss that the router has under this name gets the weight; one that it
/// has not is computed from its logits and choices. Absent leaves the router's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LossWeights {
    /// `E sum_e f_e P_e` with `sum f = 1` (Switch, arXiv 2101.03961, eq. 4).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance: Option<f64>,
    /// Squared coefficient of variation of the experts' summed probabilities (Shazeer et al., arXiv
    /// 1701.06538, eq. 7).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub importance: Option<f64>,
    /// `mean_t (log sum_e exp l_te)^2` (ST-MoE, arXiv 2202.08906, eq. 5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub z: Option<f64>,
}

impl LossWeights {
    /// Every loss by name, with what it acts on.
    fn all(&self) -> [(&'static str, Part, Option<f64>); 3] {
        [
            ("balance", Part::Balance, self.balance),
            ("importance", Part::Balance, self.importance),
            ("z", Part::ZLoss, self.z),
        ]
    }

    /// Refuses weights outside their range, and losses that would do nothing beside `router`.
    ///
    /// # Errors
    /// The key and the reason.
    pub fn check(&self, router: &dyn RouterConfig) -> Result<(), (&'static str, String)> {
        for (name, part, weight) in self.all() {
            let Some(weight) = weight else { continue };
            if !(weight.is_finite() && weight >= 0.0) {
                return Err((name, format!("{weight} must be finite and at least 0")));
            }
            if let Some(reason) = router.refuses(part) {
                return Err((name, format!("has no meaning beside this router: {reason}")));
            }
        }
        Ok(())
    }

    /// Puts the weights into a routing's losses; `padding_gt` as in the routing's context.
    pub(crate) fn apply(&self, routing: &mut Routing, padding_gt: Option<&Tensor>) {
        for (name, _, weight) in self.all() {
            let Some(weight) = weight else { continue };
            match routing.aux.iter_mut().find(|aux| aux.name == name) {
                Some(aux) => aux.weight = weight,
                None => {
                    let value = compute(name, routing, padding_gt);
                    routing.aux.push(Aux { name, weight, value });
                }
            }
        }
    }
}

/// The loss of this name from what the router decided.
///
/// # Panics
/// If a router without choices takes a balance loss: its [`RouterConfig::refuses`] should have said so.
fn compute(name: &str, routing: &Routing, padding_gt: Option<&Tensor>) -> Tensor {
    let logits_gte = &routing.logits_gte;
    let prob_gte = || logits_gte.softmax(-1, logits_gte.kind());
    match name {
        "z" => losses::z_loss_of_valid(logits_gte, padding_gt),
        "importance" => losses::cv_squared(&losses::mean_of_valid(&prob_gte(), padding_gt)),
        _ => {
            let chosen = routing.chosen.as_ref().expect("a router whose tokens choose");
            let expert_gtk = &chosen.choices.expert_gtk;
            losses::load_balance_of_valid(&prob_gte(), expert_gtk, AuxForm::DivK, padding_gt).loss
        }
    }
}
