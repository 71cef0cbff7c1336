//! The comparison as one table for people, in a terminal or in a Markdown file.

mod against;
pub(crate) mod columns;

use comfy_table::presets::{ASCII_MARKDOWN, NOTHING};
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, LineStyle, Table};

use crate::results::{DRAWING, Results, RouterSummary, Row, Terms};
use crate::summary::{is_control, ranked};
use columns::{Column, columns};

/// Characters in a line of the terminal.
const TERMINAL: u16 = 120;

/// Where the table will be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// At most 120 characters wide as long as router names are short, headers in two lines.
    Terminal,
    /// A Markdown table; its width is the reader's concern.
    Markdown,
}

/// Renders the leaderboard, lowest mean validation loss first, with what is needed to read it.
pub fn render(results: &Results, style: Style) -> String {
    let parts = [
        table(results, style),
        notes(results, style),
        against::render(results, style),
        failures(results, style),
    ];
    let filled: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    filled.join("\n\n") + "\n"
}

fn table(results: &Results, style: Style) -> String {
    let entries = ranked(results);
    if entries.is_empty() {
        return "No runs.".to_owned();
    }
    let mut table = Table::new();
    let columns = columns(results);
    table.set_header(header(&columns, style));
    table.add_rows(entries.iter().map(|entry| line(entry, &columns, style)));
    dress(&mut table, style);
    table.trim_fmt()
}

/// A Markdown table, text on the left of its first and last columns.
pub(crate) fn markdown(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.set_header(header.iter().copied());
    let plain =
        |row: Vec<String>| row.iter().map(|c| plain(c, Style::Markdown)).collect::<Vec<_>>();
    table.add_rows(rows.into_iter().map(plain));
    dress(&mut table, Style::Markdown);
    table.trim_fmt()
}

fn dress(table: &mut Table, style: Style) {
    let rule = LineStyle::none().fill('─');
    let (look, arrangement) = match style {
        Style::Terminal => (NOTHING.header_separator(rule), ContentArrangement::Dynamic),
        Style::Markdown => (ASCII_MARKDOWN, ContentArrangement::Disabled),
    };
    table.load_style(look).set_content_arrangement(arrangement).set_width(TERMINAL);
    let last = table.column_count().saturating_sub(1);
    for column in table.column_iter_mut() {
        let numeric = (1..last).contains(&column.index);
        column.set_cell_alignment(if numeric { CellAlignment::Right } else { CellAlignment::Left });
        if column.index > 0 {
            // A number broken over two lines would be read as two numbers; names may break.
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
        if style == Style::Terminal {
            column.set_padding((0, 1));
        }
    }
}

fn header(columns: &[&Column], style: Style) -> Vec<String> {
    let title = |column: &&Column| match style {
        Style::Terminal => column.short.join("\n"),
        Style::Markdown => column.name.to_owned(),
    };
    let middle = columns.iter().map(title);
    let [first, last] = ["router", "verdict"].map(|name| match style {
        Style::Terminal => format!("\n{name}"),
        Style::Markdown => name.to_owned(),
    });
    std::iter::once(first).chain(middle).chain([last]).collect()
}

fn line(entry: &RouterSummary, columns: &[&Column], style: Style) -> Vec<String> {
    let mut name = plain(&entry.router, style);
    if is_control(&entry.router) {
        name.push('*');
    }
    let middle = columns.iter().map(|column| column.show(entry));
    std::iter::once(name).chain(middle).chain([plain(&entry.verdict, style)]).collect()
}

fn notes(results: &Results, style: Style) -> String {
    let unigram = floor(&results.terms);
    let legend = columns(results).into_iter().filter(|column| !column.legend.is_empty());
    let legend = legend.map(|column| note(column.name, column.legend, style));
    let fixed = [("verdict", VERDICT_LEGEND), ("*", CONTROL_LEGEND)];
    let fixed = fixed.map(|(name, text)| note(name, text, style));
    let lines: Vec<String> = legend.chain(fixed).collect();
    format!("{unigram}\n\n{}", lines.join("\n"))
}

/// The loss without a model.
fn floor(terms: &Terms) -> String {
    let (name, what) = match terms.unit.as_str() {
        DRAWING => {
            let error = terms.unigram_loss;
            return format!("Squared error of the mean image: {error:.3} per drawing.");
        }
        "token" | "hidden token" => ("Unigram loss", "token"),
        _ => ("Loss of label frequencies", "label"),
    };
    format!(
        "{name}: {:.3} nats per {}; a model above it has learned less than {what} frequencies.",
        terms.unigram_loss, terms.unit
    )
}

const VERDICT_LEGEND: &str =
    "Whether a test supports a difference in loss to the reference; below 6 seeds none is claimed.";
const CONTROL_LEGEND: &str =
    "Control: `dense` has no experts to choose from, `random` chooses blindly.";

fn note(name: &str, text: &str, style: Style) -> String {
    match style {
        Style::Terminal => format!("  {name:<13} {text}"),
        Style::Markdown => format!("- **{}**: {text}", name.replace('*', "\\*")),
    }
}

fn failures(results: &Results, style: Style) -> String {
    let lines: Vec<String> = results.rows.iter().filter_map(|row| failure(row, style)).collect();
    if lines.is_empty() { String::new() } else { format!("Failed runs:\n\n{}", lines.join("\n")) }
}

fn failure(row: &Row, style: Style) -> Option<String> {
    if row.metrics.is_some() {
        return None;
    }
    let reason = plain(row.error.as_deref().unwrap_or("no reason recorded"), style);
    let name = format!("{} (seed {})", plain(&row.router, style), row.seed);
    Some(match style {
        Style::Terminal => format!("  {name}: {reason}"),
        Style::Markdown => format!("- {name}: {reason}"),
    })
}

/// Text from data on one line, without what would drive a terminal or break a Markdown table.
fn plain(text: &str, style: Style) -> String {
    let line = text
        .split(char::is_whitespace)
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    let shown: String = line.chars().filter(|letter| !letter.is_control()).collect();
    match style {
        Style::Terminal => shown,
        Style::Markdown => shown.replace('|', "\\|").replace('<', "&lt;"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::fixture::{failure, from_rows, results};

    fn line_of<'a>(text: &'a str, router: &str) -> &'a str {
        text.lines().find(|line| line.starts_with(router)).unwrap()
    }

    #[test]
    fn the_terminal_holds_every_line() {
        let table = render(&results(25, 3), Style::Terminal);
        let longest = table.lines().map(|line| line.chars().count()).max();
        assert!(longest <= Some(usize::from(TERMINAL)), "{longest:?}");
    }

    #[test]
    fn numbers_are_never_broken() {
        let mut results = results(3, 3);
        results.summary[2].router =
            "a router with a very long name that cannot fit beside its numbers".to_owned();
        let table = render(&results, Style::Terminal);
        let first = line_of(&table, "a router");
        assert!(table.lines().all(|line| line.chars().count() <= usize::from(TERMINAL)));
        for part in [" ±", "1.25 M", "4.56 M", "3/3", "no verdict"] {
            assert!(first.contains(part), "{part}");
        }
    }

    #[test]
    fn rows_are_sorted_by_loss_and_controls_are_marked() {
        let table = render(&results(8, 3), Style::Terminal);
        let place = |router: &str| table.find(router).unwrap();
        assert!(
            place("\ndense*") < place("\nnoisy-topk") && place("\nnoisy-topk") < place("\nhash")
        );
        assert!(table.contains("\nrandom*") && table.contains("Unigram loss: 3.070"));
    }

    #[test]
    fn the_dense_control_has_no_measures_of_experts() {
        let table = render(&results(1, 3), Style::Terminal);
        assert_eq!(line_of(&table, "dense*").matches(columns::ABSENT).count(), 5);
    }

    #[test]
    fn failed_runs_are_listed_with_their_reason() {
        let rows = vec![failure("switch", 3, "no memory:\n  \u{1b}[31m4 GB")];
        let table = render(&from_rows(rows), Style::Terminal);
        assert!(table.contains("switch (seed 3): no memory: [31m4 GB"));
        assert!(line_of(&table, "switch").contains("0/1"));
    }

    #[test]
    fn markdown_rows_have_equally_many_cells() {
        let rows = results(3, 3).rows.into_iter().chain([failure("a|b<i>", 1, "x")]).collect();
        let results = from_rows(rows);
        let table = render(&results, Style::Markdown);
        let cells = |line: &str| line.replace("\\|", "").matches('|').count();
        let rows: Vec<usize> =
            table.lines().filter(|line| line.starts_with('|')).map(cells).collect();
        assert_eq!(rows[..6], [columns(&results).len() + 3; 6]);
        assert_eq!(rows[6..], [9; 4]);
        assert!(table.contains("a\\|b&lt;i>"));
    }

    /// What only text has is left out of a comparison on images, and accuracy where nothing has it.
    #[test]
    fn columns_follow_what_was_measured() {
        assert!(!render(&results(2, 2), Style::Markdown).contains("accuracy"));
        let mut images = results(2, 2);
        for metrics in images.rows.iter_mut().filter_map(|row| row.metrics.as_mut()) {
            metrics.measures.insert("accuracy".to_owned(), 0.875);
        }
        let mut images = from_rows(images.rows);
        images.terms.unit = "image".to_owned();
        let table = render(&images, Style::Markdown);
        assert!(table.contains(" accuracy |"), "{table}");
        assert!(table.contains("0.875 ±0.000") && table.contains("nats per image"), "{table}");
        assert!(!table.contains("perplexity") && !table.contains("bits/byte"), "{table}");
    }

    #[test]
    fn odd_numbers_are_absent() {
        let mut odd = results(2, 2);
        for metrics in odd.rows.iter_mut().filter_map(|row| row.metrics.as_mut()) {
            metrics.valid_loss = f64::NAN;
        }
        assert!(!render(&from_rows(odd.rows), Style::Terminal).contains("NaN"));
    }

    #[test]
    fn no_runs_no_table() {
        assert!(render(&from_rows(Vec::new()), Style::Terminal).starts_with("No runs."));
    }
}
