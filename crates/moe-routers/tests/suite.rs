//! Every registered paper, every preset, held to the contract of [`moe_routers::suite`].
#![expect(clippy::print_stdout, reason = "the measured errors are worth seeing with --nocapture")]

use moe_routers::PAPERS;
use moe_routers::suite::{self, Report, SuiteError};

/// What the suite found, printed.
fn found(name: &str, report: Result<Report, SuiteError>) -> Report {
    let report = report.unwrap_or_else(|e| panic!("{name}: {e}"));
    println!(
        "{:<24} value {:.1e}  gradient {:.1e} ({})  causal {}  refused {:?}",
        report.name,
        report.value_error,
        report.gradient_error,
        report.gradients,
        report.causal,
        report.refusals
    );
    report
}

/// What broke the contract, with the name of the paper.
fn violations(report: &Report) -> impl Iterator<Item = String> {
    report.violations.iter().map(|v| format!("{}: {v}", report.name))
}

#[test]
fn every_paper_keeps_the_contract() {
    let presets = PAPERS.iter().flat_map(|p| p.presets.iter().map(move |s| (p, s)));
    let reports: Vec<_> =
        presets.map(|(paper, preset)| found(paper.id, suite::check(paper, preset))).collect();
    let broken: Vec<_> = reports.iter().flat_map(violations).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    let refusing = reports.iter().filter(|report| !report.refusals.is_empty());
    let refusing: Vec<_> = refusing.map(|report| report.name.as_str()).collect();
    assert_eq!(refusing, REFUSING, "who refuses an input at the edge");
}

/// Presets that refuse an input at the edge, by rule.
const REFUSING: [&str; 6] = [
    "base:paper",
    "sinkhorn:megatron",
    "sinkhorn:megatron_top2",
    "expert-choice:paper",
    "expert-choice:mesh",
    "ac-moe:paper",
];

/// A recipe's `plain`, which is no paper's.
#[test]
fn the_plain_residual_keeps_the_contract() {
    let report = found("plain", suite::check_residual("plain"));
    let broken: Vec<_> = violations(&report).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}
