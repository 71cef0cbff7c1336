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
mod markup;
mod notes;
mod palette;
mod scale;
#[cfg(test)]
mod tests;
mod view;

use crate::results::Results;
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
    let view = View::new(results);
    let body = [
        header::render(&view),
        leaderboard::render(&view),
        against::render(&view),
        losses::render(&view)?,
        deltas::render(&view)?,
        cost::render(&view)?,
        load::render(&view),
        notes::terms(&view),
        notes::failures(&view),
        notes::footer(&view),
    ];
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta \
         name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n<title>Routers \
         compared: {}</title>\n<style>\n{}{}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
        Text(&results.preset),
        palette::rules(chart::FINE),
        include_str!("report/report.css"),
        body.concat()
    ))
}
