//! Every registered paper, every preset, held to the contract of [`moe_routers::suite`].
#![expect(clippy::print_stdout, reason = "the measured errors are worth seeing with --nocapture")]

use moe_routers::PAPERS;
use moe_routers::suite::{self, Report, SuiteError};

/// What broke the contract, with the name of the paper.
fn violations(name: &str, report: Result<Report, SuiteError>) -> Vec<String> {
    let report = report.unwrap_or_else(|e| panic!("{name}: {e}"));
    println!(
        "{:<24} value {:.1e}  gradient {:.1e} ({})  causal {}",
        report.name, report.value_error, report.gradient_error, report.gradients, report.causal
    );
    report.violations.iter().map(|v| format!("{}: {v}", report.name)).collect()
}

#[test]
fn every_paper_keeps_the_contract() {
    let presets = PAPERS.iter().flat_map(|p| p.presets.iter().map(move |s| (p, s)));
    let broken: Vec<_> = presets
        .flat_map(|(paper, preset)| violations(paper.id, suite::check(paper, preset)))
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

/// A recipe's `plain`, which is no paper's.
#[test]
fn the_plain_residual_keeps_the_contract() {
    let broken = violations("plain", suite::check_residual("plain"));
    assert!(broken.is_empty(), "{broken:#?}");
}
