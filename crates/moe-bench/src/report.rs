//! The comparison as one HTML page that needs nothing else: no network, no fonts, no scripts.

mod against;
mod chart;
mod clip;
mod cost;
mod course;
mod curve;
mod deltas;
#[cfg(test)]
pub(crate) mod fixture;
mod grid;
mod header;
mod heat;
mod labels;
mod leaderboard;
mod load;
mod losses;
mod map;
mod markup;
mod notes;
mod palette;
mod robustness;
mod routing;
mod scale;
mod settling;
#[cfg(test)]
mod tests;
mod view;

use crate::results::Results;
use crate::robust::Overview;
use markup::Text;
use view::View;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A chart could not be drawn.
    #[error("cannot draw the chart “{chart}”: {reason}")]
    Chart {
        /// What the chart shows.
        chart: String,
        /// What the drawing library says.
        reason: String,
    },
}

/// Writes the report of a comparison as one HTML document.
pub fn html(results: &Results) -> Result<String, ReportError> {
    html_with(results, None)
}

/// The same with what `moe robust` found for the comparison's runs.
pub fn html_with(results: &Results, robust: Option<&Overview>) -> Result<String, ReportError> {
    let view = View::new(results);
    let robust = robust.map(|found| robustness::render(&view, found)).transpose()?;
    let body = [
        header::render(&view),
        leaderboard::render(&view),
        against::render(&view),
        losses::render(&view)?,
        deltas::render(&view)?,
        cost::render(&view)?,
        load::render(&view),
        robust.unwrap_or_default(),
        settling::render(&view)?,
        routing::render(&view),
        map::render(&view),
        notes::terms(&view),
        notes::failures(&view),
        notes::footer(&view),
    ];
    let title = format!("Routers compared: {}", Text(&results.preset));
    Ok(document(&title, &body.concat()))
}

fn document(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta \
         name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>{title}\
         </title>\n<style>\n{}{}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        palette::rules(chart::FINE),
        include_str!("report/report.css"),
    )
}

/// A page about one routing log: its loads at the end and over time, and its measures as `text`.
pub(crate) fn log_page(name: &str, usage: &[(u64, Vec<Vec<f64>>)], text: &str) -> String {
    let name = Text(name).to_string();
    let maps = grid::Grid::new(usage).map_or_else(String::new, |grid| {
        let (end, time) = (heat::end_map(&grid, &name), heat::time_map(&grid, &name));
        format!("{}<figure class=\"card\">{end}{time}</figure>", heat::colour_key())
    });
    let lede = "Rows that each expert received over an equal share, at the end of the log and on the \
                way there; 1 is uniform load.";
    let loads = markup::section("load", "Expert load", lede, &maps);
    let measures = format!("<div class=\"scroll\" tabindex=\"0\"><pre>{}</pre></div>", Text(text));
    let measures = markup::section("measures", "Measures", "", &measures);
    document(&name, &format!("<header><h1>Routing log {name}</h1></header>\n{measures}{loads}"))
}
