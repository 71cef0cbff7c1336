//! The project's own cases, on every implementation, for the operations that exist.
#![expect(clippy::print_stdout, reason = "the totals are worth seeing with --nocapture")]

use moe_conform::{Backend, Case, check};
use std::path::Path;

#[test]
fn every_case_passes_everywhere() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../conformance");
    let (mut checks, mut failures) = (0, Vec::new());
    for case in Case::below(&dir).unwrap() {
        for verdict in check(&case, &[Backend::Reference, Backend::Torch]) {
            checks += 1;
            if let Some(failure) = verdict.failure {
                failures.push(format!("{} on {:?}: {failure}", verdict.id, verdict.backend));
            }
        }
    }
    println!("{checks} checks");
    assert!(failures.is_empty(), "{} of {checks} failed:\n{}", failures.len(), failures.join("\n"));
}
