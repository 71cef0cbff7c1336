//! How routing settles over training: fluctuation between evaluations, and collapse of what routers read.

use super::ReportError;
use super::chart::{Axis, Frame, Plot, at_all_sizes};
use super::course::{Course, plain, step_range};
use super::losses::legend;
use super::markup::section;
use super::scale::{hull, robust_top};
use super::view::View;
use crate::probe::RoutingMetrics;

/// Markers on one curve at most.
const MARKS: usize = 12;
const LEDE: &str = "\
    On the same validation tokens at every evaluation. Fluctuation is the share of tokens whose first \
    expert is another than at the evaluation before. Collapse is the measure RC of what the routers \
    read (X-MoE): scatter within the tokens of an expert over the scatter between experts; smaller \
    is more collapsed. Means over layers and seeds, with a band from the lowest to the highest seed.";

/// The section; nothing if no run looked at a probe set.
pub(super) fn render(view: &View<'_>) -> Result<String, ReportError> {
    let fluctuation = courses(view, |routing| &routing.fluctuation_curve);
    let collapse = courses(view, |routing| &routing.collapse_curve);
    let left = panel(&fluctuation, "Routing fluctuation", "share of tokens")?;
    let right = panel(&collapse, "Representation collapse", "RC of router inputs")?;
    if left.is_empty() && right.is_empty() {
        return Ok(String::new());
    }
    let legend = legend(view);
    let body =
        format!("<figure class=\"card\"><div class=\"pair\">{left}{right}</div>{legend}</figure>");
    Ok(section("settling", "Routing over training", LEDE, &body))
}

fn courses<'v, 'a>(
    view: &'v View<'a>,
    curve: fn(&RoutingMetrics) -> &[(u64, f64)],
) -> Vec<Course<'v, 'a>> {
    let of = |entry| Course::new(entry, super::view::Entry::routing_curve(entry, curve));
    view.entries.iter().filter_map(of).collect()
}

fn panel(
    courses: &[Course<'_, '_>],
    heading: &str,
    title: &'static str,
) -> Result<String, ReportError> {
    if courses.is_empty() {
        return Ok(String::new());
    }
    let charts = at_all_sizes(Frame::HALF_WIDTH, |frame| chart(courses, frame, (heading, title)))?;
    Ok(format!("<div><h3>{heading}</h3>{charts}</div>"))
}

fn chart(courses: &[Course<'_, '_>], frame: Frame, (heading, title): (&str, &'static str)) -> Plot {
    let values: Vec<f64> = courses.iter().flat_map(Course::late).collect();
    let top = robust_top(&values, 6.0);
    let range = hull(values.into_iter().filter(|value| *value <= top), 0.04);
    let ends = courses.iter().map(|c| format!("{} {:.3}", c.entry.name(), c.end()));
    let label =
        format!("{heading} by training step. At the end: {}.", ends.collect::<Vec<_>>().join(", "));
    let x = Axis { range: step_range(courses, 0), title: "training step", show: plain };
    let mut plot = Plot::new(frame, label, x, Axis { range, title, show: plain });
    let (named, crowd): (Vec<_>, Vec<_>) =
        courses.iter().rev().partition(|course| course.entry.stands_out());
    plot.lines.extend(crowd.iter().map(|course| course.line(1.2, 0.6)));
    named.iter().for_each(|course| course.draw(&mut plot, MARKS));
    plot
}
