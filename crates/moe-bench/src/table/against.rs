//! The differences to the reference, as a table: what the verdicts rest on.

use super::{Style, dress, plain};
use crate::results::{Judgement, Results};
use crate::verdict::{NOT_COMPARABLE, seeds_needed};
use comfy_table::Table;

const HEADER: [&str; 8] =
    ["router", "difference", "95 % interval", "p", "p (Holm)", "Hedges' g", "lower in", "verdict"];

/// One line per router that shares two seeds with the reference; empty without any.
pub(super) fn render(results: &Results, style: Style) -> String {
    let Some(judged) = results.judgements.as_ref().filter(|j| !j.entries.is_empty()) else {
        return String::new();
    };
    let mut entries: Vec<&Judgement> = judged.entries.iter().collect();
    entries.sort_by(|a, b| a.paired.mean.total_cmp(&b.paired.mean));
    let mut table = Table::new();
    table.set_header(HEADER);
    table.add_rows(entries.iter().map(|entry| line(entry, style)));
    dress(&mut table, style);
    let needed = seeds_needed(judged.family);
    format!(
        "Validation loss less that of `{}`, seed by seed:\n\n{}\n\nBCa bootstrap intervals of the mean \
         ({} resamples); two-sided sign-flip test.\nHolm over {} tests: alpha = {} needs at least \
         {needed} seeds.",
        plain(&judged.reference, style),
        table.trim_fmt(),
        judged.resamples,
        judged.family,
        judged.alpha
    )
}

fn line(entry: &Judgement, style: Style) -> [String; 8] {
    let paired = &entry.paired;
    let shown = |value: Option<f64>, decimals: usize| {
        value.map_or_else(|| super::columns::ABSENT.to_owned(), |v| format!("{v:.decimals$}"))
    };
    // Without a verdict to come there is nothing to correct.
    let p_holm = entry.p_holm.filter(|_| entry.verdict != NOT_COMPARABLE);
    [
        plain(&entry.router, style),
        format!("{:+.4}", paired.mean),
        format!("{:+.4} to {:+.4}", paired.interval.low, paired.interval.high),
        shown(Some(paired.p), 4),
        shown(p_holm, 4),
        shown(paired.hedges_g, 2),
        format!("{:.0} %", 100.0 * paired.share_below),
        plain(&entry.verdict, style),
    ]
}

#[cfg(test)]
mod tests {
    use crate::report::fixture::results;
    use crate::table::{Style, render};

    #[test]
    fn differences_are_listed_with_what_the_test_needs() {
        let table = render(&results(4, 8), Style::Terminal);
        assert!(table.contains("Validation loss less that of `dense`, seed by seed:"));
        assert!(table.contains("Holm over 3 tests: alpha = 0.05 needs at least 7 seeds."));
        let line = table.lines().filter(|line| line.starts_with("switch")).nth(1).unwrap();
        assert!(line.contains(" to ") && line.contains('%'), "{line}");
    }

    #[test]
    fn one_seed_has_no_differences() {
        assert!(!render(&results(4, 1), Style::Terminal).contains("seed by seed"));
    }
}
