//! The measures of one sparse layer.
//!
//! Axis letters: `n` samples, `d` width, `e` experts, `m` entries of an expert's vector.

use super::LayerProbe;
use super::look::{SAMPLES, Seen};
use moe_core::metrics::{Collapse, CollapseOptions, ExpertSimilarity, effective_rank};
use moe_core::routing_log::LayerMeasures;
use moe_models::MoeLayer;
use moe_routers::convert::to_host;
use tch::Tensor;

/// Width up to which every evaluation computes ranks; their eigenvalues cost `d^3`. Wider layers get them
/// after the last step only.
const OFTEN: usize = 256;
/// Tokens on which the experts' outputs are compared.
const OUTPUT_TOKENS: usize = 256;

/// What decisions say: of `now`, and of the `change` since the evaluation before.
pub(super) fn routed(now: Option<&LayerMeasures>, change: Option<&LayerMeasures>) -> LayerProbe {
    let (fluctuation, set) = change.map_or((None, None), |change| {
        (change.routing_fluctuation, change.routing_fluctuation_set)
    });
    let change = LayerProbe {
        routing_fluctuation: fluctuation,
        routing_fluctuation_set: set,
        ..LayerProbe::default()
    };
    let Some(now) = now else { return change };
    LayerProbe {
        cross_layer_instability: now.cross_layer_instability,
        router_confidence: now.router_confidence,
        load_imbalance: now.load_imbalance,
        load_cv: now.load_cv,
        load_entropy: now.load_entropy,
        specialisation: now.specialisation.map(|s| s.mutual_information),
        specialisation_normalised: now.specialisation.map(|s| s.normalised),
        ..change
    }
}

/// The same with how far inputs and outputs are spread.
pub(super) fn spread(probe: LayerProbe, seen: &Seen, end: bool) -> LayerProbe {
    let Some(x_nd) = seen.inputs(SAMPLES).filter(|x_nd| end || x_nd.ncols() <= OFTEN) else {
        return probe;
    };
    let first = |expert_k: &Vec<usize>| expert_k.first().copied();
    let collapse = seen.decisions.as_ref().and_then(|decisions| {
        // Tokens that nobody reads are a class of their own.
        let label_n = decisions.experts.iter().take(x_nd.nrows());
        let label_n: Vec<usize> = label_n.map(|e| first(e).unwrap_or(usize::MAX)).collect();
        Collapse::of(x_nd.view(), &label_n, &CollapseOptions::default()).ok()
    });
    LayerProbe {
        representation_collapse: collapse.filter(|c| c.classes > 1).map(|collapse| collapse.rc),
        effective_rank: effective_rank(x_nd.view()).ok(),
        effective_rank_output: seen
            .outputs(SAMPLES)
            .and_then(|y_nd| effective_rank(y_nd.view()).ok()),
        ..probe
    }
}

/// Adds how alike the layer's experts are.
pub(super) fn similarities(probe: &mut LayerProbe, layer: &MoeLayer, seen: &Seen) {
    if layer.experts.count() < 2 {
        return;
    }
    probe.expert_similarity_weights = similarity(&layer.experts.weights_em());
    let x_nd = seen.input_nd(OUTPUT_TOKENS);
    let outputs = x_nd.map(|x_nd| layer.experts.outputs_end(&x_nd).flatten(1, -1));
    probe.expert_similarity_outputs = outputs.and_then(|y_em| similarity(&y_em));
}

fn similarity(feature_em: &Tensor) -> Option<f64> {
    ExpertSimilarity::of(to_host(feature_em).view()).ok().map(|found| found.mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cosines 0 between unit axes, 1 between equal experts: a mean of 1/3 over three pairs.
    #[test]
    fn similarity_by_hand() {
        let feature_em = Tensor::from_slice(&[1.0f32, 0.0, 2.0, 0.0, 0.0, 3.0]).view([3, 2]);
        assert!((similarity(&feature_em).unwrap() - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_not_known_is_absent() {
        assert_eq!(routed(None, None), LayerProbe::default());
        let json = serde_json::to_string(&LayerProbe::default()).unwrap();
        assert_eq!(json, "{}");
        assert_eq!(serde_json::from_str::<LayerProbe>(&json).unwrap(), LayerProbe::default());
    }
}
