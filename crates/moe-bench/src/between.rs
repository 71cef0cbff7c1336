//! Measures that take more than one run: how soon a router is as good as the reference becomes, and how alike
//! its seeds route.
//!
//! Axis letters: `m` runs, `l` sparse layers, `t` probe tokens, `e` experts.

use crate::results::{Metrics, Row, Spread};
use moe_core::metrics::{Consistency, Specialisation};
use moe_core::stats::{mean, standard_deviation};
use ndarray::Array2;
use std::collections::BTreeMap;

/// The measures of the finished runs of `router`, by name:
///
/// - `steps_to_reference`: steps until the validation loss is that of `reference` with the same seed after its
///   last step, on straight lines between evaluations; absent if a seed never gets there.
/// - `reached_reference`: share of seeds that get there.
/// - `inter_run_consistency`: X-MoE's IC of the last evaluation's loads, mean over layers, the diagonal
///   included; `inter_run_consistency_off_diagonal` leaves it out. It compares expert `e` of one seed with
///   expert `e` of another, which only runs from common weights train to the same end.
/// - `inter_run_agreement`: normalised mutual information of two seeds' first experts of the same probe
///   tokens, mean over pairs and layers: whether they part the tokens alike, whatever the experts' names.
pub fn measures(rows: &[Row], router: &str, reference: &str) -> BTreeMap<String, Spread> {
    let found = |row: &&Row| row.router == router && row.metrics.is_some();
    let runs: Vec<&Row> = rows.iter().filter(found).collect();
    let metrics: Vec<&Metrics> = runs.iter().filter_map(|row| row.metrics.as_ref()).collect();
    let steps: Vec<Option<f64>> =
        runs.iter().filter_map(|row| steps(rows, row, reference)).collect();
    let reached: Vec<f64> = steps.iter().flatten().copied().collect();
    let mut measures = BTreeMap::new();
    if !steps.is_empty() {
        let share = reached.len() as f64 / steps.len() as f64;
        measures.insert("reached_reference".to_owned(), Spread { mean: share, sd: None });
    }
    if !steps.is_empty() && reached.len() == metrics.len() {
        measures.insert("steps_to_reference".to_owned(), spread(&reached));
    }
    let names = ["inter_run_consistency", "inter_run_consistency_off_diagonal"];
    for (name, value) in names.into_iter().zip(consistency(&metrics).into_iter().flatten()) {
        measures.insert(name.to_owned(), Spread { mean: value, sd: None });
    }
    let agreement = agreement(&metrics);
    if !agreement.is_empty() {
        measures.insert("inter_run_agreement".to_owned(), spread(&agreement));
    }
    measures
}

fn spread(values: &[f64]) -> Spread {
    let sd = (values.len() > 1).then(|| standard_deviation(values));
    Spread { mean: mean(values), sd }
}

/// Steps of one run to the loss that the reference ends with; `None` outside: no such run of the reference.
fn steps(rows: &[Row], run: &Row, reference: &str) -> Option<Option<f64>> {
    let partner = rows.iter().find(|row| row.router == reference && row.seed == run.seed)?;
    let goal = partner.metrics.as_ref()?.valid_loss;
    let curve = &run.metrics.as_ref()?.valid_curve;
    goal.is_finite().then(|| crossing(curve, goal))
}

/// The step at which a curve first is at `goal` or below.
fn crossing(curve: &[(u64, f64)], goal: f64) -> Option<f64> {
    let at = curve.iter().position(|(_, loss)| *loss <= goal)?;
    let (step, loss) = (curve[at].0 as f64, curve[at].1);
    let Some(&(before, above)) = at.checked_sub(1).map(|before| &curve[before]) else {
        return Some(step);
    };
    let before = before as f64;
    Some(before + (step - before) * (above - goal) / (above - loss))
}

/// IC with and without the diagonal, means over layers; `None` for fewer than two runs.
fn consistency(runs: &[&Metrics]) -> Option<[f64; 2]> {
    let loads: Option<Vec<&Vec<Vec<f64>>>> =
        runs.iter().map(|run| run.expert_usage.last().map(|(_, share_le)| share_le)).collect();
    let loads = loads.filter(|loads| loads.len() > 1)?;
    let layers = loads[0].len();
    let of = |layer: usize| {
        let rows: Option<Vec<&Vec<f64>>> = loads.iter().map(|load| load.get(layer)).collect();
        let flat: Vec<f64> = rows?.into_iter().flatten().copied().collect();
        let load_me = Array2::from_shape_vec((loads.len(), flat.len() / loads.len()), flat).ok()?;
        let found = Consistency::of(load_me.view()).ok()?;
        Some([found.ic, found.ic_off_diagonal])
    };
    let found: Option<Vec<[f64; 2]>> = (0..layers).map(of).collect();
    let found = found.filter(|found| !found.is_empty())?;
    Some([0, 1].map(|which| mean(&found.iter().map(|both| both[which]).collect::<Vec<_>>())))
}

/// Agreement of every two runs, means over layers.
fn agreement(runs: &[&Metrics]) -> Vec<f64> {
    let first: Vec<&Vec<Vec<Option<usize>>>> =
        runs.iter().filter_map(|run| run.routing.as_ref()).map(|r| &r.first_lt).collect();
    let pairs = (0..first.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
    pairs.filter_map(|(i, j)| agreement_of(first[i], first[j])).collect()
}

fn agreement_of(a_lt: &[Vec<Option<usize>>], b_lt: &[Vec<Option<usize>>]) -> Option<f64> {
    // Being read by nobody is a class like an expert.
    let class = |first_t: &Vec<Option<usize>>| -> Vec<usize> {
        first_t.iter().map(|first| first.map_or(0, |expert| expert + 1)).collect()
    };
    let of = |(a_t, b_t): (&Vec<_>, &Vec<_>)| {
        Specialisation::of(&class(a_t), &class(b_t), None, None).ok().map(|found| found.nmi)
    };
    let found: Vec<f64> = a_lt.iter().zip(b_lt).filter_map(of).collect();
    (!found.is_empty()).then(|| mean(&found))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::RoutingMetrics;

    fn run(router: &str, seed: u64, curve: &[(u64, f64)], first_t: &[usize]) -> Row {
        let first_lt = vec![first_t.iter().map(|&expert| Some(expert)).collect()];
        let metrics = Metrics {
            valid_loss: curve.last().map_or(f64::NAN, |point| point.1),
            valid_curve: curve.to_vec(),
            expert_usage: vec![(9, vec![vec![0.5 + 0.25 * seed as f64, 0.5 - 0.25 * seed as f64]])],
            routing: Some(RoutingMetrics { first_lt, ..RoutingMetrics::default() }),
            ..Metrics::default()
        };
        Row { router: router.into(), seed, metrics: Some(metrics), error: None }
    }

    /// The reference ends at 2. Falling from 3 at step 10 to 1 at step 20, that loss is met at step 15.
    #[test]
    fn steps_to_the_reference_lie_between_evaluations() {
        let reference = run("smoe", 0, &[(0, 5.0), (20, 2.0)], &[0, 1]);
        let fast = run("fast", 0, &[(0, 5.0), (10, 3.0), (20, 1.0)], &[0, 1]);
        let slow = run("slow", 0, &[(0, 5.0), (20, 2.5)], &[0, 1]);
        let rows = [reference, fast, slow];
        let of = |router| measures(&rows, router, "smoe");
        assert_eq!(of("fast")["steps_to_reference"], Spread { mean: 15.0, sd: None });
        assert_eq!(of("smoe")["steps_to_reference"].mean, 20.0);
        assert_eq!(of("slow")["reached_reference"].mean, 0.0);
        assert!(!of("slow").contains_key("steps_to_reference"));
        assert_eq!(crossing(&[(0, 1.0)], 2.0), Some(0.0));
        assert!(!measures(&rows, "fast", "gone").contains_key("reached_reference"));
    }

    /// The same parting of the tokens under exchanged names agrees wholly, an independent one not at all;
    /// the loads (1/2, 1/2) and (3/4, 1/4) correlate with themselves only: IC 2/4.
    #[test]
    fn seeds_agree_whatever_experts_are_called() {
        let of = |other: &[usize]| {
            let rows = [run("a", 0, &[], &[0, 0, 1, 1]), run("a", 1, &[], other)];
            measures(&rows, "a", "a")
        };
        let swapped = of(&[1, 1, 0, 0]);
        assert!((swapped["inter_run_agreement"].mean - 1.0).abs() < 1e-12);
        assert!(of(&[0, 1, 0, 1])["inter_run_agreement"].mean.abs() < 1e-12);
        assert_eq!(swapped["inter_run_consistency"].mean, 0.5);
        assert_eq!(swapped["inter_run_consistency_off_diagonal"].mean, 0.0);
        let alone = [run("a", 0, &[], &[0])];
        assert!(measures(&alone, "a", "a").is_empty());
    }
}
