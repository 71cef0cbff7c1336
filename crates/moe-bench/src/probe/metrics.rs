//! What the probe sets of one run come to.
//!
//! Axis letters: `l` sparse layers, `t` probe tokens.

use super::{LayerProbe, Map, ProbeReport, Routes};
use crate::log::EvalLine;
use crate::run::RunDir;
use anyhow::Result;
use moe_core::stats::mean;
use serde::{Deserialize, Serialize};

/// Measures of an evaluation that count the work of a target.
const FLOPS: [&str; 2] = ["flops_per_token", "flops_per_image"];

/// Tokens whose first experts are kept for comparison with other runs.
const KEPT: usize = 1024;

/// Routing measures of one run on its probe set: means over the sparse layers, at the last evaluation unless
/// said otherwise. Absent ones have no meaning for the router.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RoutingMetrics {
    /// Share of tokens whose first expert changed between consecutive evaluations, mean over the run.
    pub routing_fluctuation: Option<f64>,
    /// The same of the whole set of experts.
    pub routing_fluctuation_set: Option<f64>,
    /// The first measure between the last two evaluations only.
    pub routing_fluctuation_end: Option<f64>,
    /// See [`LayerProbe`], like the others below.
    pub cross_layer_instability: Option<f64>,
    /// Mean combine weight of the kept choices.
    pub router_confidence: Option<f64>,
    /// Standard deviation over mean of the load.
    pub load_cv: Option<f64>,
    /// Entropy of the load over `ln E`.
    pub load_entropy: Option<f64>,
    /// Mutual information of first expert and token class, nats.
    pub specialisation: Option<f64>,
    /// The same as a share of the mean of both entropies.
    pub specialisation_normalised: Option<f64>,
    /// `RC` of router inputs; smaller is more collapsed.
    pub representation_collapse: Option<f64>,
    /// Effective rank of router inputs.
    pub effective_rank: Option<f64>,
    /// Effective rank of the sparse layers' outputs.
    pub effective_rank_output: Option<f64>,
    /// Mean cosine of two experts' weights.
    pub expert_similarity_weights: Option<f64>,
    /// Mean cosine of two experts' outputs on the same tokens.
    pub expert_similarity_outputs: Option<f64>,
    /// FLOPs of the forward pass per target: a token of text, or an image.
    pub inference_flops: Option<f64>,
    /// Share of the evaluations' time that looking at the probe set took.
    pub probe_share: Option<f64>,
    /// First-choice fluctuation at each evaluation, mean over layers: `(step, share)`.
    pub fluctuation_curve: Vec<(u64, f64)>,
    /// `RC` at each evaluation, mean over layers.
    pub collapse_curve: Vec<(u64, f64)>,
    /// The first expert of the first probe tokens after the last step, `[l][t]`; none where nobody reads
    /// the token.
    pub first_lt: Vec<Vec<Option<usize>>>,
    /// Router inputs of the last sparse layer in two dimensions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<Map>,
}

impl RoutingMetrics {
    /// The measures of a run's evaluations; `None` if none looked at a probe set.
    pub fn of(evals: &[&EvalLine]) -> Option<Self> {
        let looks = || evals.iter().filter_map(|eval| Some((eval.step, eval.probe.as_ref()?)));
        let last = looks().next_back()?.1;
        let of = |measure: fn(&LayerProbe) -> Option<f64>| over_layers(last, measure);
        let curve = |measure: fn(&LayerProbe) -> Option<f64>| -> Vec<(u64, f64)> {
            looks().filter_map(|(step, look)| Some((step, over_layers(look, measure)?))).collect()
        };
        let fluctuation_curve = curve(|l| l.routing_fluctuation);
        let report = &evals.last()?.report;
        let seconds: f64 = evals.iter().map(|eval| eval.seconds).sum();
        let looking: f64 = looks().map(|(_, look)| look.seconds).sum();
        Some(Self {
            routing_fluctuation: over_run(&fluctuation_curve),
            routing_fluctuation_set: over_run(&curve(|l| l.routing_fluctuation_set)),
            routing_fluctuation_end: of(|l| l.routing_fluctuation),
            cross_layer_instability: of(|l| l.cross_layer_instability),
            router_confidence: of(|l| l.router_confidence),
            load_cv: of(|l| l.load_cv),
            load_entropy: of(|l| l.load_entropy),
            specialisation: of(|l| l.specialisation),
            specialisation_normalised: of(|l| l.specialisation_normalised),
            representation_collapse: of(|l| l.representation_collapse),
            effective_rank: of(|l| l.effective_rank),
            effective_rank_output: of(|l| l.effective_rank_output),
            expert_similarity_weights: of(|l| l.expert_similarity_weights),
            expert_similarity_outputs: of(|l| l.expert_similarity_outputs),
            inference_flops: FLOPS.iter().find_map(|name| report.measures.get(*name)).copied(),
            probe_share: Some(looking / (seconds + looking).max(1e-9)),
            fluctuation_curve,
            collapse_curve: curve(|l| l.representation_collapse),
            first_lt: Vec::new(),
            map: None,
        })
    }

    /// Adds what `dir` keeps of the look after `step`.
    ///
    /// # Errors
    /// Files that are none of a probe set.
    pub fn keep(&mut self, dir: &RunDir, step: u64) -> Result<()> {
        self.first_lt = Routes::read(dir, step)?.map(|r| r.first_lt(KEPT)).unwrap_or_default();
        self.map = Map::read(dir)?;
        Ok(())
    }

    /// Every scalar field under its own name.
    pub fn scalars(&self) -> [(&str, Option<f64>); 16] {
        [
            ("routing_fluctuation", self.routing_fluctuation),
            ("routing_fluctuation_set", self.routing_fluctuation_set),
            ("routing_fluctuation_end", self.routing_fluctuation_end),
            ("cross_layer_instability", self.cross_layer_instability),
            ("router_confidence", self.router_confidence),
            ("load_cv", self.load_cv),
            ("load_entropy", self.load_entropy),
            ("specialisation", self.specialisation),
            ("specialisation_normalised", self.specialisation_normalised),
            ("representation_collapse", self.representation_collapse),
            ("effective_rank", self.effective_rank),
            ("effective_rank_output", self.effective_rank_output),
            ("expert_similarity_weights", self.expert_similarity_weights),
            ("expert_similarity_outputs", self.expert_similarity_outputs),
            ("inference_flops", self.inference_flops),
            ("probe_share", self.probe_share),
        ]
    }
}

/// Mean over the layers that have the measure.
fn over_layers(look: &ProbeReport, measure: fn(&LayerProbe) -> Option<f64>) -> Option<f64> {
    let values: Vec<f64> = look.layers.iter().filter_map(measure).collect();
    (!values.is_empty()).then(|| mean(&values))
}

fn over_run(curve: &[(u64, f64)]) -> Option<f64> {
    let values: Vec<f64> = curve.iter().map(|(_, value)| *value).collect();
    (!values.is_empty()).then(|| mean(&values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use moe_train::EvalReport;

    fn eval(step: u64, fluctuations: &[Option<f64>]) -> EvalLine {
        let layer = |routing_fluctuation: &Option<f64>| LayerProbe {
            routing_fluctuation: *routing_fluctuation,
            effective_rank: Some(step as f64),
            ..LayerProbe::default()
        };
        let layers = fluctuations.iter().map(layer).collect();
        let report = EvalReport {
            loss: 1.0,
            tokens: 1,
            layers: vec![],
            routing_share: 0.0,
            measures: [("flops_per_image".to_owned(), 7.0)].into(),
        };
        let probe = Some(ProbeReport { tokens: 4, seconds: 1.0, layers });
        EvalLine { step, split: "valid".into(), bits_per_byte: None, seconds: 3.0, report, probe }
    }

    /// Layers 0.5 and 0.3, then 0.1 and none: means 0.4 and 0.1, over the run 0.25.
    #[test]
    fn means_over_layers_and_over_the_run() {
        let evals = [
            eval(10, &[None, None]),
            eval(20, &[Some(0.5), Some(0.3)]),
            eval(30, &[Some(0.1), None]),
        ];
        let found = RoutingMetrics::of(&evals.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(found.fluctuation_curve, [(20, 0.4), (30, 0.1)]);
        assert_eq!(found.routing_fluctuation, Some(0.25));
        assert_eq!((found.routing_fluctuation_end, found.effective_rank), (Some(0.1), Some(30.0)));
        assert_eq!((found.inference_flops, found.probe_share), (Some(7.0), Some(0.25)));
        assert_eq!(found.representation_collapse, None);
    }

    #[test]
    fn without_looks_nothing_is_known() {
        let bare = EvalLine { probe: None, ..eval(10, &[]) };
        assert_eq!(RoutingMetrics::of(&[&bare]), None);
        assert_eq!(RoutingMetrics::of(&[]), None);
    }

    #[test]
    fn every_scalar_field_has_its_name() {
        let json = serde_json::to_value(RoutingMetrics::default()).unwrap();
        let fields = json.as_object().unwrap().iter();
        let scalar: Vec<_> = fields.filter(|(_, v)| v.is_null()).map(|(k, _)| k.as_str()).collect();
        let none = RoutingMetrics::default();
        let named = none.scalars().map(|(name, _)| name);
        assert_eq!(named.to_vec(), scalar);
    }
}
