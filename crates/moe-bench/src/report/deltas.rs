//! Small multiples: the validation loss of each router less that of the dense control, on one
//! scale.

use std::ops::Range;

use super::ReportError;
use super::chart::{Axis, Frame, Line, Plot};
use super::course::{Course, plain, step_range};
use super::curve::{Point, difference, over_seeds};
use super::markup::{Name, section};
use super::palette::REFERENCE;
use super::scale::{hull, robust_top};
use super::view::{Entry, View};

/// Markers on one curve at most.
const MARKS: usize = 5;
const LEDE: &str = "\
    Validation loss of each router less that of the dense control with the same seed: below the \
    dashed line the router is ahead. Mean over seeds, with a band from the lowest to the highest \
    difference; the number is the mean at the last evaluation that all seeds have. All panels share \
    their axes.";

/// One panel per router; nothing without a dense control to compare with.
pub(super) fn render(view: &View<'_>) -> Result<String, ReportError> {
    let courses = differences(view);
    if courses.is_empty() {
        return Ok(String::new());
    }
    let (steps, deltas) = (step_range(&courses, 0), delta_range(&courses));
    let panels = courses.iter().map(|course| panel(course, &steps, &deltas));
    let panels: String = panels.collect::<Result<_, _>>()?;
    Ok(section(
        "deltas",
        "Against the dense control",
        LEDE,
        &format!("<div class=\"panels\">{panels}</div>"),
    ))
}

fn differences<'v, 'a>(view: &'v View<'a>) -> Vec<Course<'v, 'a>> {
    let Some(dense) = view.dense() else {
        return Vec::new();
    };
    let others = view.entries.iter().filter(|entry| entry.name() != dense.name());
    others.filter_map(|entry| Course::new(entry, against(entry, dense))).collect()
}

/// Differences by seed: both runs of a seed saw the same data in the same order.
fn against(entry: &Entry<'_>, dense: &Entry<'_>) -> Vec<Point> {
    let partner = |seed: u64| dense.runs.iter().find(|run| run.seed == seed);
    let pairs = entry.runs.iter().filter_map(|run| Some((run, partner(run.seed)?)));
    let curves: Vec<_> = pairs
        .map(|(run, dense)| difference(&run.metrics.valid_curve, &dense.metrics.valid_curve))
        .collect();
    over_seeds(&curves.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

fn delta_range(courses: &[Course<'_, '_>]) -> Range<f64> {
    let late: Vec<f64> = courses.iter().flat_map(Course::late).collect();
    let sizes: Vec<f64> = late.iter().map(|value| value.abs()).collect();
    let top = robust_top(&sizes, 4.0);
    hull(late.into_iter().filter(|value| value.abs() <= top).chain([0.0]), 0.08)
}

fn panel(
    course: &Course<'_, '_>,
    steps: &Range<f64>,
    deltas: &Range<f64>,
) -> Result<String, ReportError> {
    let (name, end) = (course.entry.name(), end(course, steps.end));
    let label = format!("{name} less dense by training step; at the end {end}");
    let x = Axis { range: steps.clone(), title: "training step", show: plain };
    let y = Axis { range: deltas.clone(), title: "Δ loss", show: signed };
    let mut plot = Plot::new(Frame::SMALL, label, x, y);
    let zero = vec![(steps.start, 0.0), (steps.end, 0.0)];
    plot.lines.push(Line { points: zero, look: &REFERENCE, width: 1.2, opacity: 1.0 });
    course.draw(&mut plot, MARKS);
    Ok(format!(
        "<figure class=\"card\"><figcaption>{}{} <b>{end}</b></figcaption>{}</figure>\n",
        course.entry.look.swatch(),
        Name(name),
        plot.svg()?
    ))
}

/// The last difference, with its step if others went on.
fn end(course: &Course<'_, '_>, last: f64) -> String {
    let difference = signed(course.end(), 3);
    match course.points.last() {
        Some(point) if (point.step as f64) < last => format!("{difference} at step {}", point.step),
        _ => difference,
    }
}

/// A difference with its sign; the typographic minus is as wide as the plus.
fn signed(value: f64, decimals: usize) -> String {
    let size = format!("{:.decimals$}", value.abs());
    let zero = size.chars().all(|digit| matches!(digit, '0' | '.'));
    match zero {
        true => size,
        false if value < 0.0 => format!("−{size}"),
        false => format!("+{size}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_but_not_of_nothing() {
        assert_eq!(
            [0.02, -0.02, -0.0001].map(|value| signed(value, 3)),
            ["+0.020", "−0.020", "0.000"]
        );
    }
}
