//! One line per router out of one line per run: means and spreads over seeds, and the order of the
//! table.

use std::collections::BTreeMap;

use crate::between;
use crate::probe::RoutingMetrics;
use crate::results::{Judgements, Metrics, Results, RouterSummary, Row, Spread};
use crate::verdict;

/// Seeds below which a comparison never speaks of better or worse.
pub const VERDICT_SEEDS: usize = 6;

/// The control without routing: every token passes one expert of the same active size.
pub const DENSE: &str = "dense";

/// The control that routes without looking at the token.
pub const RANDOM: &str = "random";

/// Whether `router` is there to be compared with rather than to win.
pub fn is_control(router: &str) -> bool {
    router == DENSE || router == RANDOM
}

/// Summarises runs by router, in the order in which routers first appear, with the verdicts of
/// `judgements`.
///
/// A measure that is absent or not finite in any finished run has no mean and is left out of
/// `metrics`: a mean over the healthy seeds alone would flatter a router that sometimes diverges.
pub fn summarise(rows: &[Row], judgements: Option<&Judgements>) -> Vec<RouterSummary> {
    let mut routers: Vec<&str> = Vec::new();
    for row in rows {
        if !routers.contains(&row.router.as_str()) {
            routers.push(&row.router);
        }
    }
    routers.into_iter().map(|router| summarise_router(router, rows, judgements)).collect()
}

/// Routers by mean validation loss, lowest first; those without one last, in their given order.
pub fn ranked(results: &Results) -> Vec<&RouterSummary> {
    let mut order: Vec<&RouterSummary> = results.summary.iter().collect();
    let loss = |entry: &RouterSummary| mean(entry, "valid_loss").unwrap_or(f64::INFINITY);
    order.sort_by(|a, b| loss(a).total_cmp(&loss(b)));
    order
}

/// Mean of a measure, if the router has one.
pub fn mean(entry: &RouterSummary, measure: &str) -> Option<f64> {
    entry.metrics.get(measure).map(|spread| spread.mean).filter(|mean| mean.is_finite())
}

fn summarise_router(router: &str, rows: &[Row], judged: Option<&Judgements>) -> RouterSummary {
    let of_router = || rows.iter().filter(|row| row.router == router);
    let finished: Vec<&Metrics> = of_router().filter_map(|row| row.metrics.as_ref()).collect();
    let mut metrics = spreads(&finished);
    if let Some(judged) = judged {
        metrics.extend(between::measures(rows, router, &judged.reference));
    }
    RouterSummary {
        router: router.to_owned(),
        runs: finished.len(),
        failed: of_router().count() - finished.len(),
        metrics,
        verdict: judged.map_or_else(|| verdict::NO_VERDICT.to_owned(), |j| verdict::of(j, router)),
    }
}

fn spreads(runs: &[&Metrics]) -> BTreeMap<String, Spread> {
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for run in runs {
        for (name, value) in scalars(run) {
            values.entry(name).or_default().extend(value.filter(|value| value.is_finite()));
        }
    }
    values.retain(|_, values| values.len() == runs.len());
    values.into_iter().map(|(name, values)| (name.to_owned(), spread(&values))).collect()
}

/// Every scalar field of [`Metrics`] under its own name, what the task measured besides, and the routing measures.
pub fn scalars(metrics: &Metrics) -> Vec<(&str, Option<f64>)> {
    let measures = metrics.measures.iter().map(|(name, value)| (name.as_str(), Some(*value)));
    let routing = metrics.routing.iter().flat_map(RoutingMetrics::scalars);
    let fields: [(&str, Option<f64>); 14] = [
        ("valid_loss", Some(metrics.valid_loss)),
        ("valid_perplexity", Some(metrics.valid_perplexity)),
        ("bits_per_byte", metrics.bits_per_byte),
        ("load_imbalance", Some(metrics.load_imbalance)),
        ("dead_experts", Some(metrics.dead_experts as f64)),
        ("dead_expert_proportion", Some(metrics.dead_expert_proportion)),
        ("fraction_tokens_left_behind", Some(metrics.fraction_tokens_left_behind)),
        ("gate_entropy", Some(metrics.gate_entropy)),
        ("tokens_per_second", Some(metrics.tokens_per_second)),
        ("routing_share", Some(metrics.routing_share)),
        ("peak_memory_bytes", Some(metrics.peak_memory_bytes as f64)),
        ("params_active", Some(metrics.params_active as f64)),
        ("params_total", Some(metrics.params_total as f64)),
        ("train_seconds", Some(metrics.train_seconds)),
    ];
    fields.into_iter().chain(measures).chain(routing).collect()
}

/// Mean and sample standard deviation of at least one value.
fn spread(values: &[f64]) -> Spread {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Spread { mean, sd: (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summarise(rows: &[Row]) -> Vec<RouterSummary> {
        super::summarise(rows, None)
    }

    fn run(router: &str, seed: u64, valid_loss: f64) -> Row {
        let metrics = Metrics { valid_loss, dead_experts: seed, ..Metrics::default() };
        Row { router: router.to_owned(), seed, metrics: Some(metrics), error: None }
    }

    fn failure(router: &str, seed: u64) -> Row {
        Row { router: router.to_owned(), seed, metrics: None, error: Some("no memory".to_owned()) }
    }

    #[test]
    fn means_and_sample_deviations() {
        let summary = summarise(&[run("a", 1, 1.0), run("a", 2, 2.0), run("a", 3, 6.0)]);
        let loss = summary[0].metrics["valid_loss"];
        assert_eq!(loss.mean, 3.0);
        assert!((loss.sd.unwrap() - 7.0_f64.sqrt()).abs() < 1e-12);
        assert_eq!(summary[0].metrics["dead_experts"].mean, 2.0);
    }

    #[test]
    fn one_seed_has_no_deviation() {
        let summary = summarise(&[run("a", 1, 1.5)]);
        assert_eq!(summary[0].metrics["valid_loss"], Spread { mean: 1.5, sd: None });
    }

    #[test]
    fn routers_keep_the_order_of_first_appearance() {
        let summary = summarise(&[run("b", 1, 1.0), run("a", 1, 1.0), run("b", 2, 1.0)]);
        let names: Vec<_> = summary.iter().map(|entry| entry.router.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
        assert_eq!(summary[0].runs, 2);
    }

    #[test]
    fn every_scalar_field_of_the_schema_is_summarised() {
        let metrics = Metrics { bits_per_byte: Some(1.0), ..Metrics::default() };
        let json = serde_json::to_value(&metrics).unwrap();
        let fields = json.as_object().unwrap().iter();
        let scalar: Vec<_> =
            fields.filter(|(_, v)| v.is_number()).map(|(k, _)| k.clone()).collect();
        let summarised: Vec<_> =
            scalars(&metrics).iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(summarised, scalar);
    }

    #[test]
    fn failed_runs_are_counted_and_do_not_enter_means() {
        let summary = summarise(&[run("a", 1, 1.0), failure("a", 2), failure("b", 1)]);
        assert_eq!((summary[0].runs, summary[0].failed), (1, 1));
        assert_eq!(summary[0].metrics["valid_loss"].mean, 1.0);
        assert_eq!((summary[1].runs, summary[1].failed), (0, 1));
        assert!(summary[1].metrics.is_empty());
    }

    #[test]
    fn measures_that_are_not_finite_have_no_mean() {
        let summary = summarise(&[run("a", 1, 1.0), run("a", 2, f64::NAN)]);
        assert!(!summary[0].metrics.contains_key("valid_loss"));
        assert!(!summary[0].metrics.contains_key("bits_per_byte"));
        assert!(summary[0].metrics.contains_key("dead_experts"));
    }

    #[test]
    fn without_judgements_no_verdict() {
        let rows: Vec<Row> = (0..50).map(|seed| run("a", seed, 1.0)).collect();
        assert_eq!(summarise(&rows)[0].verdict, verdict::NO_VERDICT);
    }

    #[test]
    fn no_rows_no_summary() {
        assert!(summarise(&[]).is_empty());
    }
}
