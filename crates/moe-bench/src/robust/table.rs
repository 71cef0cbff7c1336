//! The rows of a run as a table.

use super::{Entry, HardSet, Overview, Robustness, Row, Score, UnknownSet};
use comfy_table::{CellAlignment, Table, presets::NOTHING};

const ABSENT: &str = "–";

/// The clean score, a line per attack and level, and what was not run.
pub(super) fn of_run(found: &Robustness) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    let [first, second] = measures(&found.clean).map(|(name, _)| name);
    table.set_header(["attack", "level", first, second, "changed", "routes flipped, by layer"]);
    let clean = measures(&found.clean).map(|(_, value)| value);
    let none = ABSENT.to_owned();
    table.add_row(
        ["clean".to_owned(), none.clone()].into_iter().chain(clean).chain([none.clone(), none]),
    );
    for row in &found.rows {
        table.add_row(line(row));
    }
    table.column_iter_mut().skip(1).for_each(|c| c.set_cell_alignment(CellAlignment::Right));
    let mut text = table.trim_fmt();
    for other in &found.not_run {
        text += &format!("\nnot run: {} {}: {}", other.attack, other.level, other.reason);
    }
    if let Some(mce) = &found.mce {
        let (n, of) = (mce.corruption_k.len(), &mce.against);
        text +=
            &format!("\nmean corruption error over {n} corruptions against {of}: {:.3}", mce.mce);
    }
    for part in [hard(&found.hard), unknown(&found.unknown)].into_iter().flatten() {
        text += &format!("\n\n{part}");
    }
    text
}

/// A table with numbers to the right; none without rows.
fn aligned(header: &[&str], rows: Vec<Vec<String>>) -> Option<String> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    let some = !rows.is_empty();
    table.add_rows(rows);
    table.column_iter_mut().skip(1).for_each(|c| c.set_cell_alignment(CellAlignment::Right));
    some.then(|| table.trim_fmt())
}

fn hard(sets: &[HardSet]) -> Option<String> {
    let row = |set: &HardSet| {
        let all = set.score.accuracy.map_or(ABSENT.into(), |all| format!("{all:.4}"));
        let among = format!("{:.4}", set.accuracy_among);
        let counts = [set.score.targets, set.classes].map(|count| count.to_string());
        [vec![set.name.clone()], counts.to_vec(), vec![among, all]].concat()
    };
    let header = ["hard pictures", "images", "classes", "accuracy among them", "among all"];
    aligned(&header, sets.iter().map(row).collect())
}

fn unknown(sets: &[UnknownSet]) -> Option<String> {
    let row = |set: &UnknownSet| {
        let counts = [set.images, set.known].map(|count| count.to_string());
        let measures = [set.auroc, set.aupr, set.fpr95].map(|share| format!("{share:.4}"));
        [vec![set.name.clone()], counts.to_vec(), measures.to_vec()].concat()
    };
    let header = ["pictures of no class", "images", "known", "AUROC", "AUPR", "FPR95"];
    aligned(&header, sets.iter().map(row).collect())
}

fn line(row: &Row) -> Vec<String> {
    let share = |share: &f64| format!("{:.2} %", 100.0 * share);
    let changed = row.changed.as_ref().map_or(ABSENT.into(), share);
    let flips: Vec<String> = row.flip_rate_l.iter().map(share).collect();
    let flips = if flips.is_empty() { ABSENT.into() } else { flips.join("  ") };
    let [first, second] = measures(&row.score).map(|(_, value)| value);
    vec![row.attack.clone(), row.level.to_string(), first, second, changed, flips]
}

/// The loss, and what stands beside it.
fn measures(score: &Score) -> [(&'static str, String); 2] {
    let second = match (score.perplexity, score.accuracy) {
        (Some(perplexity), _) => ("perplexity", format!("{perplexity:.3}")),
        (None, Some(accuracy)) => ("accuracy", format!("{accuracy:.4}")),
        (None, None) => ("", String::new()),
    };
    [("loss", format!("{:.4}", score.loss)), second]
}

/// A comparison as Markdown: a table per attack or other set, a line per router, a column per level or measure.
pub(super) fn of_comparison(overview: &Overview) -> String {
    let mut attacks: Vec<&str> = Vec::new();
    for entry in &overview.entries {
        if !attacks.contains(&entry.attack.as_str()) {
            attacks.push(&entry.attack);
        }
    }
    let batches = overview.batches.map_or_else(String::new, |n| format!(", the first {n} batches"));
    let mut text = format!(
        "# Robustness\n\n{} on the {} split{batches}: mean over seeds [95 % interval by BCa bootstrap]; routes \
         flipped: mean over layers and seeds.\n",
        overview.measure, overview.split
    );
    attacks.iter().for_each(|attack| text += &of_attack(overview, attack));
    for line in &overview.not_run {
        text += &format!("\nNot run: {line}\n");
    }
    text
}

/// Level and measure.
type Column<'a> = (f64, Option<&'a str>);

fn column(entry: &Entry) -> Column<'_> {
    (entry.level, entry.measure.as_deref())
}

fn of_attack(overview: &Overview, attack: &str) -> String {
    let entries: Vec<&Entry> = overview.entries.iter().filter(|e| e.attack == attack).collect();
    let (mut columns, mut routers): (Vec<Column<'_>>, Vec<&str>) = (Vec::new(), Vec::new());
    for entry in &entries {
        if !columns.contains(&column(entry)) {
            columns.push(column(entry));
        }
        if !routers.contains(&entry.router.as_str()) {
            routers.push(&entry.router);
        }
    }
    columns.sort_by(|a, b| a.0.total_cmp(&b.0));
    let title = |(level, measure): &Column<'_>| match measure {
        Some(measure) => (*measure).to_owned(),
        None if *level == 0.0 => attack.to_owned(),
        None => level.to_string(),
    };
    let mut text = format!("\n## {attack}\n\n| router | seeds |");
    columns.iter().for_each(|column| text += &format!(" {} |", title(column)));
    text += &format!("\n|---|---|{}\n", "---|".repeat(columns.len()));
    for router in routers {
        let of = |at: &Column<'_>| entries.iter().find(|e| e.router == router && column(e) == *at);
        let seeds = columns.iter().filter_map(of).map(|entry| entry.seeds.len()).min();
        text += &format!("| {router} | {} |", seeds.unwrap_or(0));
        columns.iter().for_each(|at| {
            text += &format!(" {} |", of(at).map_or(ABSENT.to_owned(), |entry| cell(entry)));
        });
        text.push('\n');
    }
    text
}

fn cell(entry: &Entry) -> String {
    let interval = entry.interval.map_or_else(String::new, |interval| {
        format!(" [{:.3}, {:.3}]", interval.low, interval.high)
    });
    let flips = entry
        .flips
        .map_or_else(String::new, |flips| format!("; flips {:.1} %", 100.0 * flips.mean));
    format!("{:.3}{interval}{flips}", entry.score.mean)
}
