//! Maps of router inputs, a dot per token in the colour of its first expert.

use super::markup::{At, Text, each, open_svg, section};
use super::scale::{Scale, hull, plottable};
use super::view::{Entry, View};
use crate::probe::Map;
use std::collections::BTreeMap;
use std::fmt::Write;

const SIDE: f64 = 330.0;
const EDGE: f64 = 12.0;
/// Colours; experts beyond begin again, told apart by their numbers.
const COLOURS: usize = 8;
/// Share of the tokens that an expert must read to be named on the map.
const NAMED: f64 = 0.02;
/// Share of the values at each end of an axis that are drawn at its edge.
const OUTERMOST: f64 = 0.02;

/// One card per router; nothing if no run made a map.
pub(super) fn render(view: &View<'_>) -> String {
    let cards = each(&view.entries, |entry| card(entry).unwrap_or_default());
    if cards.is_empty() {
        return String::new();
    }
    let lede = "What the router of the last sparse layer read, token by token, in the plane in which \
                it varies most (principal components), coloured by the token’s first expert; a number \
                stands at the median of its expert’s tokens. The percentage is the share of the variance \
                that the plane holds: what looks mixed here may be apart in other directions. Tokens \
                beyond the middle 96 % along an axis stand at the edge. One seed each, the same tokens \
                everywhere.";
    let body = format!("<div class=\"panels wide-panels\">{cards}</div>");
    section("map", "What experts read", lede, &body)
}

fn card(entry: &Entry<'_>) -> Option<String> {
    let (run, map) = entry
        .runs
        .iter()
        .find_map(|run| Some((run, run.metrics.routing.as_ref()?.map.as_ref()?)))?;
    let drawing = draw(map, entry.name())?;
    Some(format!(
        "<figure class=\"card\"><figcaption>{}{} <small>seed {}, layer {}, {:.0} %</small></figcaption>{drawing}</figure>\n",
        entry.look.swatch(),
        Text(entry.name()),
        run.seed,
        map.layer,
        100.0 * map.explained
    ))
}

type Place = (f64, f64);

/// The map, or nothing where its places cannot be drawn.
fn draw(map: &Map, name: &str) -> Option<String> {
    let fine = |(x, y, _): &&(f64, f64, Option<usize>)| plottable(*x) && plottable(*y);
    let points: Vec<_> = map.points.iter().filter(fine).collect();
    let across = scale(points.iter().map(|point| point.0), EDGE..SIDE - EDGE)?;
    let upwards = scale(points.iter().map(|point| point.1), SIDE - EDGE..EDGE)?;
    let mut of: BTreeMap<Option<usize>, Vec<Place>> = BTreeMap::new();
    for (x, y, expert) in &points {
        let place = (across.place(*x), upwards.place(*y));
        let inside = |at: f64| at.clamp(EDGE, SIDE - EDGE);
        of.entry(*expert).or_default().push((inside(place.0), inside(place.1)));
    }
    let dots = each(&of, |(expert, places)| dots(*expert, places));
    let least = (points.len() as f64 * NAMED).ceil() as usize;
    let named = of.iter().filter(|(_, places)| places.len() >= least.max(1));
    let numbers = each(named, |(expert, places)| number(*expert, places));
    let label = format!("{name}: router inputs of {} tokens, {} experts", points.len(), of.len());
    let open = open_svg("map", SIDE, SIDE, &label);
    Some(format!("{open}{dots}{numbers}</svg>"))
}

/// An axis over all but the outermost values, which would squash the others.
fn scale(values: impl Iterator<Item = f64>, to: std::ops::Range<f64>) -> Option<Scale> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let cut = (values.len() as f64 * OUTERMOST) as usize;
    Some(Scale { from: hull([values[cut], values[last - cut]], 0.02), to })
}

/// Strokes without length and with round ends: a dot in a few bytes.
fn dots(expert: Option<usize>, places: &[Place]) -> String {
    let mut path = String::new();
    for (x, y) in places {
        write!(path, "M{} {}h0", At(*x), At(*y)).expect("text grows");
    }
    let colour = expert.map_or(COLOURS - 1, |expert| expert % COLOURS);
    let what = expert.map_or_else(|| "read by nobody".to_owned(), |e| format!("expert {e}"));
    format!("<path class=\"e{colour}\" d=\"{path}\"><title>{what}: {}</title></path>", places.len())
}

fn number(expert: Option<usize>, places: &[Place]) -> String {
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let x = median(places.iter().map(|place| place.0).collect());
    let y = median(places.iter().map(|place| place.1).collect()) + 5.0;
    let shown = expert.map_or_else(|| "–".to_owned(), |expert| expert.to_string());
    format!("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{shown}</text>", At(x), At(y))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_a_dot_and_every_expert_a_path() {
        let points =
            vec![(0.0, 0.0, Some(0)), (1.0, 1.0, Some(9)), (2.0, 0.5, Some(9)), (1.0, 0.0, None)];
        let map = Map { layer: 1, explained: 0.5, points };
        let svg = draw(&map, "x").unwrap();
        assert_eq!((svg.matches("h0").count(), svg.matches("<path").count()), (4, 3));
        assert!(
            svg.contains("class=\"e1\"") && svg.contains(">9</text>") && svg.contains(">–</text>")
        );
        assert!(draw(&Map { points: vec![(f64::NAN, 0.0, None)], ..map }, "x").is_none());
    }
}
