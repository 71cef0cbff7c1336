//! The differences to the reference: mean, interval, test and effect size of every router.

use crate::results::{Judgement, Judgements};
use crate::verdict::seeds_needed;

use super::markup::{Text, each, section};
use super::view::View;

const COLUMNS: [&str; 8] =
    ["router", "difference", "95 % interval", "p", "p (Holm)", "Hedges’ g", "lower in", "verdict"];

/// The table; nothing where no router shares two seeds with the reference.
pub(super) fn render(view: &View<'_>) -> String {
    let Some(judged) = view.results.judgements.as_ref().filter(|j| !j.entries.is_empty()) else {
        return String::new();
    };
    let mut entries: Vec<&Judgement> = judged.entries.iter().collect();
    entries.sort_by(|a, b| a.paired.mean.total_cmp(&b.paired.mean));
    let titles = each(COLUMNS, |title| format!("<th scope=\"col\">{title}</th>"));
    let rows = each(entries, row);
    let table = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Differences\"><table>\
         <thead><tr>{titles}</tr></thead><tbody>\n{rows}</tbody></table></div>\n"
    );
    let title = format!("Against {}", Text(&judged.reference));
    section("against", &title, &lede(judged), &table)
}

fn lede(judged: &Judgements) -> String {
    format!(
        "Validation loss less that of the reference with the same seed, mean over seeds, with a BCa \
         bootstrap interval ({} resamples); p by flipping signs, two-sided; Holm's correction over {} \
         tests at {}, which needs at least {} seeds to find anything. Every seed's difference is in \
         results.json.",
        judged.resamples,
        judged.family,
        judged.alpha,
        seeds_needed(judged.family)
    )
}

fn row(entry: &Judgement) -> String {
    let paired = &entry.paired;
    let shown = |value: Option<f64>, decimals: usize| {
        value.map_or_else(|| "–".to_owned(), |v| format!("{v:.decimals$}"))
    };
    let cells = [
        format!("{:+.4}", paired.mean),
        format!("{:+.4} to {:+.4}", paired.interval.low, paired.interval.high),
        format!("{:.4}", paired.p),
        shown(entry.p_holm, 4),
        shown(paired.hedges_g, 2),
        format!("{:.0} %", 100.0 * paired.share_below),
        entry.verdict.clone(),
    ];
    let cells = each(cells, |cell| format!("<td>{}</td>", Text(&cell)));
    format!("<tr><th scope=\"row\">{}</th>{cells}</tr>\n", Text(&entry.router))
}
