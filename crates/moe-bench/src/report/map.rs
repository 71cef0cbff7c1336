//! Maps of router inputs, a dot per token in the colour of its first expert.

use super::markup::{At, Name, each, open_svg, section};
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
/// Share of the values at each end of an axis of the principal plane that are drawn at its edge.
const OUTERMOST: f64 = 0.02;
/// Tokens as near as this count as the crowd around one, and numbers keep this distance.
const NEAR: f64 = 20.0;

/// One card per router; nothing if no run made a map.
pub(super) fn render(view: &View<'_>) -> String {
    let cards = each(&view.entries, |entry| card(entry).unwrap_or_default());
    if cards.is_empty() {
        return String::new();
    }
    let lede = "What the router of the last sparse layer read, token by token, coloured by the token’s \
                first expert; squares are experts from 8 on. The large picture is t-SNE: it keeps \
                neighbours together, and its distances, sizes and axes mean nothing. A number stands \
                beside the place where its expert’s tokens are densest. The small one is the plane in \
                which the same tokens vary most (principal components), with the share of the variance \
                that it holds; tokens beyond the middle 96 % along an axis stand at its edge. One seed \
                each, the same tokens everywhere.";
    let body = format!("<div class=\"panels wide-panels\">{cards}</div>");
    section("map", "What experts read", lede, &body)
}

fn card(entry: &Entry<'_>) -> Option<String> {
    let (run, map) = entry
        .runs
        .iter()
        .find_map(|run| Some((run, run.metrics.routing.as_ref()?.map.as_ref()?)))?;
    let pictures = pictures(map, entry.name())?;
    Some(format!(
        "<figure class=\"card\"><figcaption>{}{} <small>seed {}, layer {}</small></figcaption>{pictures}</figure>\n",
        entry.look.swatch(),
        Name(entry.name()),
        run.seed,
        map.layer
    ))
}

/// The map by t-SNE and, smaller, its principal plane; results of earlier versions have the plane alone.
fn pictures(map: &Map, name: &str) -> Option<String> {
    let share = format!("principal plane, {:.0} % of the variance", 100.0 * map.explained);
    let plane = |class, numbers| {
        draw(&map.points, &format!("{name}: {share}"), Style { class, cut: OUTERMOST, numbers })
    };
    let Some(tsne) = &map.tsne else {
        return Some(format!("{}<p class=\"under\">{share}</p>", plane("map", true)?));
    };
    let experts = map.points.iter().map(|point| point.2);
    let points: Vec<_> = tsne.xy.iter().zip(experts).map(|((x, y), e)| (*x, *y, e)).collect();
    let style = Style { class: "map", cut: 0.0, numbers: true };
    let large = draw(&points, &format!("{name}: t-SNE of router inputs"), style)?;
    let small = plane("map small", false).unwrap_or_default();
    Some(format!(
        "{large}<div class=\"under\">{small}<p>Above: t-SNE, perplexity {}, {} iterations, start of seed {}.<br/>\
         Beside: {share}.</p></div>",
        tsne.perplexity, tsne.iterations, tsne.seed
    ))
}

type Point = (f64, f64, Option<usize>);
type Place = (f64, f64);

/// How a map is drawn.
struct Style {
    class: &'static str,
    /// Share of the values at each end of an axis that are drawn at its edge.
    cut: f64,
    /// Whether experts are named.
    numbers: bool,
}

/// The map, or nothing where its places cannot be drawn.
fn draw(points: &[Point], label: &str, style: Style) -> Option<String> {
    let fine = |(x, y, _): &&Point| plottable(*x) && plottable(*y);
    let points: Vec<_> = points.iter().filter(fine).collect();
    let across = scale(points.iter().map(|point| point.0), style.cut, EDGE..SIDE - EDGE)?;
    let upwards = scale(points.iter().map(|point| point.1), style.cut, SIDE - EDGE..EDGE)?;
    let mut of: BTreeMap<Option<usize>, Vec<Place>> = BTreeMap::new();
    for (x, y, expert) in &points {
        let place = (across.place(*x), upwards.place(*y));
        let inside = |at: f64| at.clamp(EDGE, SIDE - EDGE);
        of.entry(*expert).or_default().push((inside(place.0), inside(place.1)));
    }
    let dots = each(&of, |(expert, places)| dots(*expert, places));
    let numbers = if style.numbers { numbers(&of, points.len()) } else { String::new() };
    let label = format!("{label}; {} tokens, {} experts", points.len(), of.len());
    let open = open_svg(style.class, SIDE, SIDE, &label);
    Some(format!("{open}{dots}{numbers}</svg>"))
}

/// An axis over all but the outermost values, which would squash the others.
fn scale(values: impl Iterator<Item = f64>, cut: f64, to: std::ops::Range<f64>) -> Option<Scale> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    let cut = (values.len() as f64 * cut) as usize;
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
    // The second cue where colours begin again.
    let square = expert.is_some_and(|expert| expert / COLOURS % 2 == 1);
    let square = if square { " square" } else { "" };
    format!(
        "<path class=\"e{colour}{square}\" d=\"{path}\"><title>{what}: {}</title></path>",
        places.len()
    )
}

/// The numbers of experts with enough tokens, those with most tokens placed first.
fn numbers(of: &BTreeMap<Option<usize>, Vec<Place>>, tokens: usize) -> String {
    let least = (tokens as f64 * NAMED).ceil() as usize;
    let mut named: Vec<_> = of.iter().filter(|(_, all)| all.len() >= least.max(1)).collect();
    named.sort_by_key(|(_, places)| std::cmp::Reverse(places.len()));
    let mut taken: Vec<Place> = Vec::new();
    each(named, |(expert, places)| {
        let place = crowd(places, &taken);
        taken.push(place);
        let shown = expert.map_or_else(|| "–".to_owned(), |expert| expert.to_string());
        // Above the crowd, which may be a single spot that it would hide; below where there is no room.
        let beside = if place.1 < 2.0 * EDGE { 20.0 } else { -8.0 };
        let (x, y) = (At(place.0), At(place.1 + beside));
        format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{shown}</text>")
    })
}

/// The place with most others near it that keeps its distance to those taken, if one does.
fn crowd(places: &[Place], taken: &[Place]) -> Place {
    let near = |a: &Place, b: &Place| (a.0 - b.0).hypot(a.1 - b.1) < NEAR;
    let free = |place: &Place| !taken.iter().any(|other| near(place, other));
    let others = |place: &Place| places.iter().filter(|other| near(place, other)).count();
    let best = places.iter().rev().max_by_key(|place| (free(place), others(place)));
    *best.expect("an expert that is named reads tokens")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::Neighbours;

    #[test]
    fn every_token_is_a_dot_and_every_expert_a_path() {
        let points =
            vec![(0.0, 0.0, Some(0)), (1.0, 1.0, Some(9)), (2.0, 0.5, Some(9)), (1.0, 0.0, None)];
        let map = Map { layer: 1, explained: 0.5, points, tsne: None };
        let svg = pictures(&map, "x").unwrap();
        assert_eq!((svg.matches("h0").count(), svg.matches("<path").count()), (4, 3));
        assert!(svg.contains("class=\"e1 square\"") && svg.contains("class=\"e0\""));
        assert!(svg.contains(">9</text>") && svg.contains(">–</text>"));
        assert!(svg.contains("50 % of the variance") && !svg.contains("t-SNE"));
        assert!(pictures(&Map { points: vec![(f64::NAN, 0.0, None)], ..map }, "x").is_none());
    }

    #[test]
    fn neighbours_come_first_and_say_how_they_were_made() {
        let points = vec![(0.0, 0.0, Some(0)), (1.0, 1.0, Some(1))];
        let xy = vec![(5.0, 5.0), (-5.0, 5.0)];
        let tsne = Neighbours { perplexity: 30.0, iterations: 500, seed: 42, xy };
        let page = pictures(&Map { layer: 1, explained: 0.5, points, tsne: Some(tsne) }, "x");
        let page = page.unwrap();
        let (large, rest) = page.split_once("class=\"map small\"").unwrap();
        assert!(large.contains(">0</text>") && !rest.contains("</text>"), "{page}");
        assert!(rest.contains("perplexity 30, 500 iterations, start of seed 42"), "{page}");
    }

    /// Two tokens side by side are a crowd, unless its place is taken.
    #[test]
    fn numbers_stand_in_crowds_and_not_on_each_other() {
        let places = [(100.0, 0.0), (0.0, 0.0), (1.0, 0.0)];
        assert_eq!(crowd(&places, &[]), (0.0, 0.0));
        assert_eq!(crowd(&places, &[(2.0, 3.0)]), (100.0, 0.0));
        assert_eq!(crowd(&places, &[(2.0, 3.0), (99.0, 0.0)]), (0.0, 0.0));
    }
}
