//! Curves over the level of every attack, and a table of other sets: what `moe robust` found for the runs of this
//! comparison.

use std::ops::Range;

use super::ReportError;
use super::chart::{Axis, Frame, Line, Mark, Plot};
use super::course::plain;
use super::markup::{Text, each, section};
use super::scale::{hull, plottable};
use super::view::{Entry, View};
use crate::robust::{self, Overview};
use crate::table::columns::ABSENT;

const LEDE: &str = "\
    One panel per attack: the score on damaged data by the level of the damage (a rate, a severity or a \
    budget), mean over seeds, from the clean score at level 0. The lower row of panels is the share of tokens \
    that go to another set of experts than on clean data, mean over layers and seeds.";

const SETS: &str = "\
    Pictures of other sets, mean over seeds with the 95 % interval: hard ones of some of the classes, with \
    logits restricted to these and among all; and pictures of no class, told from those of the split by the \
    largest softmax (FPR95: share of the split taken for unknown where about 95 % of the unknown are found; \
    lower is better). They have no clean counterpart, so there are no flips.";

/// The section; nothing where nothing was measured.
pub(super) fn render(view: &View<'_>, found: &Overview) -> Result<String, ReportError> {
    let curves = attacked(view, found)?;
    let sets = sets(view, found);
    if curves.is_empty() && sets.is_empty() {
        return Ok(String::new());
    }
    let lede = if curves.is_empty() { "" } else { LEDE };
    Ok(section("robustness", "Robustness", lede, &(curves + &sets)))
}

/// The curves; nothing without a level to draw.
fn attacked(view: &View<'_>, found: &Overview) -> Result<String, ReportError> {
    let mut attacks: Vec<&str> = Vec::new();
    for entry in found.entries.iter().filter(|entry| entry.level > 0.0) {
        if !attacks.contains(&entry.attack.as_str()) {
            attacks.push(&entry.attack);
        }
    }
    if attacks.is_empty() {
        return Ok(String::new());
    }
    let row = |measure: &Measure| -> Result<String, ReportError> {
        let panels: Vec<String> = attacks
            .iter()
            .map(|attack| panel(view, found, attack, measure))
            .collect::<Result<_, _>>()?;
        Ok(format!("<div class=\"panels\">{}</div>", panels.concat()))
    };
    let score =
        Measure { title: score_title(found), clean: true, of: |entry| Some(entry.score.mean) };
    let flips = Measure {
        title: "share of tokens",
        clean: false,
        of: |entry| entry.flips.map(|flips| flips.mean),
    };
    Ok(row(&score)? + &row(&flips)?)
}

/// A row per router, a column per set and measure; nothing where no other set was looked at.
fn sets(view: &View<'_>, found: &Overview) -> String {
    let mut columns: Vec<(&str, &str)> = Vec::new();
    for entry in &found.entries {
        let column = entry.measure.as_deref().map(|measure| (entry.attack.as_str(), measure));
        columns.extend(column.filter(|column| !columns.contains(column)));
    }
    if columns.is_empty() {
        return String::new();
    }
    let title = |(set, measure): &(&str, &str)| {
        format!("<th scope=\"col\">{}: {}</th>", Text(set), Text(measure))
    };
    let row = |entry: &Entry<'_>| {
        let cells = each(&columns, |column| cell(found, entry.name(), *column));
        format!(
            "<tr><th scope=\"row\">{}<span class=\"name\">{}</span></th>{cells}</tr>\n",
            entry.look.swatch(),
            Text(entry.name())
        )
    };
    let measured = |entry: &&Entry<'_>| found.entries.iter().any(|e| e.router == entry.name());
    format!(
        "<p class=\"note\">{SETS}</p>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" \
         aria-label=\"Other sets\"><table><thead><tr><th scope=\"col\">router</th>{}</tr></thead>\
         <tbody>\n{}</tbody></table></div>\n",
        each(&columns, title),
        each(view.entries.iter().filter(measured), row)
    )
}

fn cell(found: &Overview, router: &str, (set, measure): (&str, &str)) -> String {
    let is = |e: &&robust::Entry| {
        e.router == router && e.attack == set && e.measure.as_deref() == Some(measure)
    };
    let Some(entry) = found.entries.iter().find(is) else {
        return format!("<td>{ABSENT}</td>");
    };
    let interval = entry.interval.map_or_else(String::new, |interval| {
        format!(" <small>[{:.3}, {:.3}]</small>", interval.low, interval.high)
    });
    format!("<td>{:.3}{interval}</td>", entry.score.mean)
}

fn score_title(found: &Overview) -> &'static str {
    if found.measure == "perplexity" { "perplexity" } else { "accuracy" }
}

/// What a row of panels shows.
struct Measure {
    title: &'static str,
    /// Whether clean data have it; else it is 0 there.
    clean: bool,
    of: fn(&robust::Entry) -> Option<f64>,
}

/// A router's values by level.
struct Curve<'v, 'a> {
    entry: &'v Entry<'a>,
    points: Vec<(f64, f64)>,
}

fn curves<'v, 'a>(
    view: &'v View<'a>,
    found: &Overview,
    attack: &str,
    measure: &Measure,
) -> Vec<Curve<'v, 'a>> {
    let curve = |entry: &'v Entry<'a>| {
        let of = |attack: &str| {
            let mine =
                found.entries.iter().filter(|e| e.router == entry.name() && e.attack == attack);
            mine.filter_map(|e| Some((e.level, (measure.of)(e)?))).collect::<Vec<_>>()
        };
        let mut points = of(attack);
        if points.is_empty() {
            return None;
        }
        points.extend(if measure.clean { of("clean") } else { vec![(0.0, 0.0)] });
        points.retain(|point| plottable(point.1));
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Some(Curve { entry, points })
    };
    view.entries.iter().filter_map(curve).collect()
}

fn panel(
    view: &View<'_>,
    found: &Overview,
    attack: &str,
    measure: &Measure,
) -> Result<String, ReportError> {
    let curves = curves(view, found, attack, measure);
    let points = || curves.iter().flat_map(|curve| curve.points.iter());
    let levels: Range<f64> = 0.0..points().map(|point| point.0).fold(f64::MIN_POSITIVE, f64::max);
    let x = Axis { range: levels, title: "level", show: plain };
    let y = Axis {
        range: hull(points().map(|point| point.1), 0.08),
        title: measure.title,
        show: plain,
    };
    let label = format!("{} under {attack} by level", measure.title);
    let mut plot = Plot::new(Frame::SMALL, label, x, y);
    for curve in curves.iter().rev() {
        let look = curve.entry.look;
        let (width, opacity) = if curve.entry.stands_out() { (1.8, 1.0) } else { (1.2, 0.6) };
        plot.lines.push(Line { points: curve.points.clone(), look, width, opacity });
        plot.marks.extend(curve.points.iter().map(|&spot| {
            let tip = format!("{}, {attack} {}: {:.4}", curve.entry.name(), spot.0, spot.1);
            Mark { spot, look, tip }
        }));
    }
    Ok(format!(
        "<figure class=\"card\"><figcaption>{}</figcaption>{}</figure>\n",
        Text(attack),
        plot.svg()?
    ))
}
