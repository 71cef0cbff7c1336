//! The measures of a log as one HTML page.

use crate::report::log_page;
use moe_core::routing_log::RoutingReport;

/// Loads at the end and over time, and the measures of every layer.
pub fn html(name: &str, report: &RoutingReport) -> String {
    let usage: Vec<(u64, Vec<Vec<f64>>)> =
        report.timeline.iter().map(|w| (w.last_step, w.expert_usage.clone())).collect();
    log_page(name, &usage, &super::table(report))
}
