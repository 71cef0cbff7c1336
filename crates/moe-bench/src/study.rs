//! One Markdown page about one or several comparisons: `moe report DIR.. --study docs/results.md`.
//!
//! Everything on it comes from `results.json` (and `robustness.json` where a comparison has one), so that the
//! page is made again and never edited.

mod robustness;

use crate::claims::{Expected, Finding, findings};
use crate::results::{Results, RouterSummary, Spread};
use crate::summary::ranked;
use crate::table::columns::{ABSENT, magnitude, show_spread};
use crate::table::{Style, markdown, render};
use anyhow::Result;
use std::path::{Path, PathBuf};

/// The page about these comparisons, each with the directory it lies in.
///
/// # Errors
/// A `robustness.json` that cannot be read.
pub fn page(comparisons: &[(PathBuf, Results)]) -> Result<String> {
    let mut parts = vec![HEAD.to_owned()];
    for (dir, results) in comparisons {
        parts.push(comparison(dir, results)?);
    }
    Ok(parts.join("\n\n") + "\n")
}

const HEAD: &str = "\
# Results

Made by `moe report DIR.. --study FILE` from what `moe compare` measured; edit nothing here. How differences are judged is in
[statistics.md](statistics.md), what each routing measure means in [measures.md](measures.md).";

/// Everything about one comparison.
fn comparison(dir: &Path, results: &Results) -> Result<String> {
    let costs = robustness::Costs::read(dir, results)?;
    let parts = [
        intro(results),
        format!("### Leaderboard\n\n{}", render(results, Style::Markdown).trim_end()),
        routing(results),
        convergence(results),
        costs.table(),
        claims(results, &costs),
        unequal(results),
    ];
    Ok(parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n\n"))
}

fn intro(results: &Results) -> String {
    let (terms, machine) = (&results.terms, &results.environment);
    let mut seeds: Vec<u64> = results.rows.iter().map(|row| row.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    format!(
        "## {}: {}\n\n{} routers, {} seeds, {} steps of {} tokens ({}). Commit `{}`, started {}, {} with {}, \
         libtorch {}, device {}.",
        results.preset,
        terms.data,
        results.summary.len(),
        seeds.len(),
        terms.steps,
        terms.tokens_per_step,
        terms.tokenizer,
        machine.commit,
        machine.started,
        machine.cpu,
        machine.cpu_features.join(" "),
        machine.libtorch,
        machine.device
    )
}

/// A column: measure, title, decimals.
type Column = (&'static str, &'static str, usize);

const ROUTING: [Column; 9] = [
    ("routing_fluctuation", "fluctuation", 3),
    ("routing_fluctuation_end", "at the end", 3),
    ("cross_layer_instability", "between layers", 3),
    ("router_confidence", "confidence", 3),
    ("representation_collapse", "RC", 1),
    ("effective_rank", "rank in", 1),
    ("effective_rank_output", "rank out", 1),
    ("specialisation", "specialisation", 3),
    ("expert_similarity_outputs", "outputs alike", 3),
];

fn routing(results: &Results) -> String {
    let rows = rows(results, &ROUTING, "effective_rank");
    if rows.is_empty() {
        return String::new();
    }
    let table = table(&ROUTING, rows);
    format!(
        "### Fluctuation, collapse, specialisation\n\n{table}\n\nOn the same validation tokens for every \
         router; means over sparse layers, ± sample standard deviation over seeds. RC: smaller is more \
         collapsed; where routes have nothing to do with the input (`random`) there is little scatter between \
         experts, and RC is large."
    )
}

const CONVERGENCE: [Column; 4] = [
    ("steps_to_reference", "steps to the reference's final loss", 0),
    ("reached_reference", "share of seeds that get there", 2),
    ("inter_run_agreement", "seeds agree (NMI)", 3),
    ("inter_run_consistency", "IC of loads", 3),
];

fn convergence(results: &Results) -> String {
    let entries = ranked(results);
    let line = |entry: &&RouterSummary| {
        let flops = crate::summary::mean(entry, "inference_flops").map_or(ABSENT.into(), magnitude);
        let mut cells = vec![entry.router.clone()];
        cells.extend(CONVERGENCE.iter().map(|column| cell(entry, column)));
        cells.push(flops);
        cells
    };
    let known = |entry: &&&RouterSummary| entry.metrics.contains_key("reached_reference");
    let rows: Vec<Vec<String>> = entries.iter().filter(known).map(line).collect();
    if rows.is_empty() {
        return String::new();
    }
    let titles: Vec<&str> = std::iter::once("router")
        .chain(CONVERGENCE.iter().map(|column| column.1))
        .chain(["inference FLOPs"])
        .collect();
    format!("### Convergence, agreement of seeds, cost\n\n{}", markdown(&titles, rows))
}

fn table(columns: &[Column], rows: Vec<Vec<String>>) -> String {
    let titles: Vec<&str> =
        std::iter::once("router").chain(columns.iter().map(|column| column.1)).collect();
    markdown(&titles, rows)
}

/// A row per router that has the measure `known`, in the order of the leaderboard.
fn rows(results: &Results, columns: &[Column], known: &str) -> Vec<Vec<String>> {
    let entries = ranked(results).into_iter().filter(|entry| entry.metrics.contains_key(known));
    let line = |entry: &RouterSummary| {
        let cells = columns.iter().map(|column| cell(entry, column));
        std::iter::once(entry.router.clone()).chain(cells).collect()
    };
    entries.map(line).collect()
}

fn cell(entry: &RouterSummary, (measure, _, decimals): &Column) -> String {
    let spread: Option<&Spread> = entry.metrics.get(*measure);
    spread.map_or_else(|| ABSENT.into(), |spread| show_spread(*spread, *decimals))
}

fn claims(results: &Results, costs: &robustness::Costs) -> String {
    let found = findings(results, &|row, attack| costs.of(row, attack));
    if found.is_empty() {
        return String::new();
    }
    let failed =
        found.iter().filter(|(_, f)| f.verdict != "held" && f.verdict != "no verdict").count();
    let line = |(claim, finding): &(&'static crate::claims::Claim, Finding)| {
        let paired = &finding.paired;
        let p = match finding.p_holm.is_finite() {
            true => format!("{:.4}", finding.p_holm),
            false => ABSENT.to_owned(),
        };
        vec![
            format!("{} ({})", claim.router, claim.arxiv()),
            claim.says.to_owned(),
            claim.measure.replace('_', " "),
            if claim.expected == Expected::Lower { "lower" } else { "higher" }.to_owned(),
            format!("{:+.4}", paired.mean),
            format!("{:+.4} to {:+.4}", paired.interval.low, paired.interval.high),
            p,
            finding.pairs.to_string(),
            finding.verdict.to_owned(),
        ]
    };
    let titles = [
        "paper",
        "claim",
        "measure",
        "promised",
        "found",
        "95 % interval",
        "p (Holm)",
        "seeds",
        "verdict",
    ];
    let table = markdown(&titles, found.iter().map(line).collect());
    format!(
        "### What papers claim, at this scale\n\n{table}\n\nMethod less baseline (`smoe`; `v-moe` for images), seed by \
         seed; sign-flip test, Holm over the claims of this table. `held`: significant with the promised sign. \
         `opposite`: significant with the other. `not shown`: tested, no difference found, which is not the \
         same as none. `no verdict`: too few seeds for the number of claims. {failed} of {} claims did not \
         hold here. What was not equal stands below; models are small and training short, so that this says \
         nothing about the papers' scale.",
        found.len()
    )
}

fn unequal(results: &Results) -> String {
    let facts: Vec<String> = results.terms.unequal.iter().map(|fact| format!("- {fact}")).collect();
    if facts.is_empty() { String::new() } else { format!("### Not equal\n\n{}", facts.join("\n")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::results;

    #[test]
    fn a_page_has_every_part_that_was_measured() {
        let comparisons = [(PathBuf::from("nowhere"), results(6, 3))];
        let page = page(&comparisons).unwrap();
        for part in [
            "# Results",
            "## tiny",
            "### Leaderboard",
            "### Fluctuation",
            "### Convergence",
            "### Not equal",
        ] {
            assert!(page.contains(part), "no {part}");
        }
        // No claim is about these routers, and nobody attacked them.
        assert!(!page.contains("### What papers") && !page.contains("Robustness"));
        assert!(!page.contains("NaN") && !page.contains("nowhere"));
    }

    #[test]
    fn results_without_looks_have_a_page_too() {
        let mut results = results(3, 2);
        results.rows.iter_mut().filter_map(|r| r.metrics.as_mut()).for_each(|m| m.routing = None);
        let rows = crate::report::fixture::from_rows(results.rows);
        let page = page(&[(PathBuf::new(), rows)]).unwrap();
        assert!(page.contains("### Leaderboard") && !page.contains("### Fluctuation"));
    }
}
