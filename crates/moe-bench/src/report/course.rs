//! The course of one router over training, and how it is drawn.

use std::ops::Range;

use super::chart::{Band, Line, Mark, Plot};
use super::curve::{DETAIL, Point, thin};
use super::view::Entry;

/// The first part of training, which would squash all that follows if it set the scale.
const WARM_UP: f64 = 0.1;

/// A measure of one router over training steps.
#[derive(Clone)]
pub(super) struct Course<'v, 'a> {
    pub(super) entry: &'v Entry<'a>,
    pub(super) points: Vec<Point>,
}

impl<'v, 'a> Course<'v, 'a> {
    /// The course of a router, if there is anything to draw.
    pub(super) fn new(entry: &'v Entry<'a>, points: Vec<Point>) -> Option<Self> {
        (!points.is_empty()).then_some(Self { entry, points })
    }

    /// The mean at the last step.
    pub(super) fn end(&self) -> f64 {
        self.points.last().map_or(f64::NAN, |point| point.mean)
    }

    /// The part from `step` on.
    pub(super) fn since(&self, step: u64) -> Option<Self> {
        let points = self.points.iter().copied().filter(|point| point.step >= step);
        Self::new(self.entry, points.collect())
    }

    /// Least and largest values after the warm-up.
    pub(super) fn late(&self) -> impl Iterator<Item = f64> {
        let start = self.points.last().map_or(0.0, |point| point.step as f64 * WARM_UP);
        let late = self.points.iter().filter(move |point| point.step as f64 >= start);
        late.flat_map(|point| [point.low, point.high])
    }

    /// The mean as a line.
    pub(super) fn line(&self, width: f64, opacity: f64) -> Line {
        let points = thin(&self.points, DETAIL);
        let points = points.iter().map(|point| (point.step as f64, point.mean)).collect();
        Line { points, look: self.entry.look, width, opacity }
    }

    /// Draws band, line and at most `marks` markers.
    pub(super) fn draw(&self, plot: &mut Plot, marks: usize) {
        let range = plot.y.range.clone();
        let inside = |point: &Point| range.contains(&point.low) && range.contains(&point.high);
        let pieces = self.points.split(|point| !inside(point)).filter(|piece| piece.len() > 1);
        plot.bands.extend(pieces.map(|piece| self.band(&thin(piece, DETAIL))));
        plot.lines.push(self.line(1.8, 1.0));
        plot.marks.extend(thin(&self.points, marks).iter().map(|point| self.mark(point)));
    }

    fn band(&self, piece: &[Point]) -> Band {
        let upper = piece.iter().map(|point| (point.step as f64, point.high));
        let lower = piece.iter().rev().map(|point| (point.step as f64, point.low));
        Band { outline: upper.chain(lower).collect(), look: self.entry.look }
    }

    fn mark(&self, point: &Point) -> Mark {
        let tip = format!("{}, step {}: {:.4}", self.entry.name(), point.step, point.mean);
        Mark { spot: (point.step as f64, point.mean), look: self.entry.look, tip }
    }
}

/// From `start` to the last step of any course.
pub(super) fn step_range(courses: &[Course<'_, '_>], start: u64) -> Range<f64> {
    let last =
        courses.iter().filter_map(|course| course.points.last()).map(|point| point.step).max();
    start as f64..last.unwrap_or(0).max(start + 1) as f64
}

/// A value of an axis as it is.
pub(super) fn plain(value: f64, decimals: usize) -> String {
    format!("{value:.decimals$}")
}
