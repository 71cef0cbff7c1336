//! `moe conform`: runs conformance cases and reports them by paper.

use crate::cli::{BackendArg, ConformArgs};
use crate::error::Misuse;
use crate::say::{say_json, say_line};
use anyhow::{Result, ensure};
use moe_conform::{Backend, Case, Verdict, check};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Sums over the cases of one paper on one implementation.
#[derive(Debug, Default)]
struct Total {
    passed: usize,
    failed: usize,
    worst: f64,
}

/// Runs every case below the directory.
///
/// # Errors
/// Files that are no cases (misuse), or a case that fails.
pub fn run(args: &ConformArgs) -> Result<()> {
    let cases = Case::below(&args.dir).map_err(|e| Misuse::new(e.to_string()))?;
    let backends: &[Backend] = match args.backend {
        BackendArg::Reference => &[Backend::Reference],
        BackendArg::Torch => &[Backend::Torch],
        BackendArg::All => &[Backend::Reference, Backend::Torch],
    };
    let verdicts: Vec<(&Case, Verdict)> = cases
        .iter()
        .flat_map(|case| check(case, backends).into_iter().map(move |v| (case, v)))
        .collect();
    let failed = verdicts.iter().filter(|(_, v)| v.failure.is_some()).count();
    if args.json {
        let list: Vec<Value> = verdicts.iter().map(|(case, v)| as_json(case, v)).collect();
        say_json(&list)?;
    } else {
        verdicts.iter().try_for_each(|(_, verdict)| say_line(line(verdict)))?;
        say_totals(&verdicts)?;
    }
    ensure!(failed == 0, "{failed} of {} checks failed", verdicts.len());
    Ok(())
}

fn name(backend: Backend) -> &'static str {
    match backend {
        Backend::Reference => "reference",
        Backend::Torch => "torch",
    }
}

fn line(verdict: &Verdict) -> String {
    let Verdict { id, backend, worst, failure } = verdict;
    match failure {
        None => format!("ok    {:<9} {id}  worst error {worst:.1e}", name(*backend)),
        Some(reason) => format!("FAIL  {:<9} {id}: {reason}", name(*backend)),
    }
}

fn as_json(case: &Case, verdict: &Verdict) -> Value {
    json!({
        "id": verdict.id,
        "op": case.op,
        "backend": name(verdict.backend),
        "passed": verdict.failure.is_none(),
        "worst_relative_error": verdict.failure.is_none().then_some(verdict.worst),
        "failure": verdict.failure,
    })
}

fn say_totals(verdicts: &[(&Case, Verdict)]) -> std::io::Result<()> {
    let mut totals: BTreeMap<(&str, &str), Total> = BTreeMap::new();
    for (case, verdict) in verdicts {
        let paper = case.op.split('.').next().unwrap_or_default();
        let total = totals.entry((paper, name(verdict.backend))).or_default();
        match verdict.failure {
            None => total.passed += 1,
            Some(_) => total.failed += 1,
        }
        if verdict.failure.is_none() {
            total.worst = total.worst.max(verdict.worst);
        }
    }
    for ((paper, backend), Total { passed, failed, worst }) in totals {
        say_line(format_args!(
            "{paper:<12} {backend:<9} {passed:>4} passed, {failed} failed, worst relative error {worst:.1e}"
        ))?;
    }
    Ok(())
}
