//! Every registered router, every preset, held to the contract of [`moe_routers::suite`].
#![expect(clippy::print_stdout, reason = "the measured errors are worth seeing with --nocapture")]

use moe_routers::{routers, suite};

#[test]
fn every_router_keeps_the_contract() {
    let mut broken = Vec::new();
    for (paper, preset) in routers().flat_map(|p| p.presets.iter().map(move |s| (p, s))) {
        let report = suite::check(paper, preset).unwrap_or_else(|e| panic!("{}: {e}", paper.id));
        println!(
            "{:<24} value {:.1e}  gradient {:.1e} ({})  causal {}",
            report.name, report.value_error, report.gradient_error, report.gradients, report.causal
        );
        broken.extend(report.violations.iter().map(|v| format!("{}: {v}", report.name)));
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
