//! Expert load: how evenly each router used its experts, at the end and on the way there.

use super::grid::Grid;
use super::heat::{colour_key, end_map, time_map};
use super::markup::{Name, each, section};
use super::view::{Entry, View};

/// One card per router with experts; nothing if no run recorded its load.
pub(super) fn render(view: &View<'_>) -> String {
    let cards = each(&view.entries, |entry| card(entry).unwrap_or_default());
    if cards.is_empty() {
        return String::new();
    }
    let lede = "Rows that each expert received over an equal share: 1 is uniform load, 2 twice \
                that, × an expert without a single row. Above, layers and experts at the end of \
                training; below, the same at each evaluation on the way. One seed each: experts of \
                different seeds do not correspond, so a mean over seeds would hide imbalance. \
                Layers and experts are counted from 0.";
    let body = format!("{}<div class=\"panels wide-panels\">{cards}</div>", colour_key());
    section("load", "Expert load", lede, &body)
}

fn card(entry: &Entry<'_>) -> Option<String> {
    let (run, grid) =
        entry.runs.iter().find_map(|run| Some((run, Grid::new(&run.metrics.expert_usage)?)))?;
    let name = format!("{}, seed {}", entry.name(), run.seed);
    Some(format!(
        "<figure class=\"card\"><figcaption>{}{} <small>seed {}</small></figcaption>{}\
         {}</figure>\n",
        entry.look.swatch(),
        Name(entry.name()),
        run.seed,
        end_map(&grid, &name),
        time_map(&grid, &name)
    ))
}
