//! The measures of a log, under the names that dashboards of MoE systems use.

use serde::Serialize;

/// Measures of one layer. Absent ones need what the log does not say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerMeasures {
    /// The layer.
    pub layer: String,
    /// Decisions read.
    pub tokens: u64,
    /// Largest over mean load; 1 is perfect balance. Absent if nothing was routed.
    pub load_imbalance: Option<f64>,
    /// Coefficient of variation of the load.
    pub load_cv: Option<f64>,
    /// Entropy of the load over `ln E`; 1 is even.
    pub load_entropy: Option<f64>,
    /// Experts without a row.
    pub dead_experts: usize,
    /// The same as a share of all experts.
    pub dead_expert_proportion: f64,
    /// Share of tokens that no expert read.
    pub fraction_tokens_left_behind: f64,
    /// Share of choices that found no room.
    pub fraction_choices_dropped: f64,
    /// Mean combine weight of the kept choices. Needs weights.
    pub router_confidence: Option<f64>,
    /// Mean entropy of a token's gate over `ln E`. Needs the whole gate.
    pub gate_entropy: Option<f64>,
    /// Mean entropy of the weights of the chosen experts over `ln k`. Needs weights and `k > 1`.
    pub chosen_entropy: Option<f64>,
    /// Share of tokens whose first expert differs from that in the step before. Needs tokens that come
    /// again, and an order or weights.
    pub routing_fluctuation: Option<f64>,
    /// Share of tokens whose set of experts differs from that in the step before.
    pub routing_fluctuation_set: Option<f64>,
    /// Tokens that came again, over all steps.
    pub tokens_compared: u64,
    /// Share of ordered token pairs that share their first expert in this layer or in the next one, but
    /// not in both; mean over steps (ACMoE, arXiv 2502.15315).
    pub cross_layer_instability: Option<f64>,
    /// What the first expert says of the label. Needs labels.
    pub specialisation: Option<Specialised>,
    /// The pairs of experts chosen together most.
    pub coactivation: Vec<Pair>,
    /// Share of the rows of each expert, `[e]`.
    pub expert_usage: Vec<f64>,
}

/// What the first expert of a token says of its label.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Specialised {
    /// Tokens with a label.
    pub tokens: usize,
    /// Mutual information of label and expert, nats.
    pub mutual_information: f64,
    /// `2 mi / (h_labels + h_experts)`.
    pub normalised: f64,
    /// Share of tokens with the commonest label of their expert.
    pub purity: f64,
}

/// Two experts that tokens choose together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Pair {
    /// The experts, the lower number first.
    pub experts: [usize; 2],
    /// Share of tokens that chose both.
    pub share: f64,
    /// That share over the product of the experts' own shares; 1 is independence. Absent where an expert
    /// kept nothing.
    pub lift: Option<f64>,
}

/// Load in some steps in a row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Window {
    /// First step.
    pub first_step: u64,
    /// Last step.
    pub last_step: u64,
    /// Share of the rows by layer and expert, `[l][e]`, layers in order.
    pub expert_usage: Vec<Vec<f64>>,
}

/// Means over layers; of a measure that only some layers have, over those.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Totals {
    /// Decisions read, over all layers.
    pub decisions: u64,
    /// See [`LayerMeasures`].
    pub load_imbalance: Option<f64>,
    /// See [`LayerMeasures`].
    pub load_cv: Option<f64>,
    /// See [`LayerMeasures`].
    pub load_entropy: Option<f64>,
    /// Over all layers together.
    pub dead_experts: usize,
    /// See [`LayerMeasures`].
    pub dead_expert_proportion: f64,
    /// See [`LayerMeasures`].
    pub fraction_tokens_left_behind: f64,
    /// See [`LayerMeasures`].
    pub router_confidence: Option<f64>,
    /// See [`LayerMeasures`].
    pub gate_entropy: Option<f64>,
    /// See [`LayerMeasures`].
    pub routing_fluctuation: Option<f64>,
    /// See [`LayerMeasures`].
    pub routing_fluctuation_set: Option<f64>,
    /// See [`LayerMeasures`].
    pub cross_layer_instability: Option<f64>,
}

impl Totals {
    pub(super) fn of(layers: &[LayerMeasures]) -> Self {
        let mean = |measure: fn(&LayerMeasures) -> Option<f64>| {
            let values: Vec<f64> = layers.iter().filter_map(measure).collect();
            (!values.is_empty()).then(|| crate::stats::mean(&values))
        };
        Self {
            decisions: layers.iter().map(|l| l.tokens).sum(),
            load_imbalance: mean(|l| l.load_imbalance),
            load_cv: mean(|l| l.load_cv),
            load_entropy: mean(|l| l.load_entropy),
            dead_experts: layers.iter().map(|l| l.dead_experts).sum(),
            dead_expert_proportion: mean(|l| Some(l.dead_expert_proportion)).unwrap_or(0.0),
            fraction_tokens_left_behind: mean(|l| Some(l.fraction_tokens_left_behind))
                .unwrap_or(0.0),
            router_confidence: mean(|l| l.router_confidence),
            gate_entropy: mean(|l| l.gate_entropy),
            routing_fluctuation: mean(|l| l.routing_fluctuation),
            routing_fluctuation_set: mean(|l| l.routing_fluctuation_set),
            cross_layer_instability: mean(|l| l.cross_layer_instability),
        }
    }
}

/// Everything that a log says about routing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoutingReport {
    /// Different steps.
    pub steps: u64,
    /// The first of them.
    pub first_step: u64,
    /// The last of them.
    pub last_step: u64,
    /// Experts of a layer.
    pub experts: usize,
    /// Whether that number was given; otherwise it is the largest index seen plus 1.
    pub experts_given: bool,
    /// Means over layers.
    pub totals: Totals,
    /// Per layer, in order.
    pub layers: Vec<LayerMeasures>,
    /// Load over time.
    pub timeline: Vec<Window>,
}
