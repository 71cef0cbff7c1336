//! Curves over the level of every attack: what `moe robust` found for the runs of this comparison.

use std::ops::Range;

use super::ReportError;
use super::chart::{Axis, Frame, Line, Mark, Plot};
use super::course::plain;
use super::markup::{Text, section};
use super::scale::{hull, plottable};
use super::view::{Entry, View};
use crate::robust::{self, Overview};

const LEDE: &str = "\
    One panel per attack: the score on damaged data by the level of the damage (a rate, a severity or a \
    budget), mean over seeds, from the clean score at level 0. The lower row of panels is the share of tokens \
    that go to another set of experts than on clean data, mean over layers and seeds.";

/// The section; nothing without a level to draw.
pub(super) fn render(view: &View<'_>, found: &Overview) -> Result<String, ReportError> {
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
    let body = row(&score)? + &row(&flips)?;
    Ok(section("robustness", "Robustness", LEDE, &body))
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
