//! Learning curves of all routers in one chart: all of training, and its second half enlarged.

use std::ops::Range;

use super::ReportError;
use super::chart::{Axis, Frame, Label, Line, Plot, at_all_sizes};
use super::course::{Course, plain, step_range};
use super::curve::smooth;
use super::markup::{Text, each, section};
use super::palette::REFERENCE;
use super::scale::{hull, robust_top, spread_out};
use super::view::{Entry, View};

/// Markers on one curve at most.
const MARKS: usize = 12;
/// Width of the right margin that holds names, and the longest name it holds.
const MARGIN: u32 = 128;
const NAME: usize = 17;
const LEDE: &str = "\
    Validation loss, mean over seeds, with a band from the lowest to the highest seed; the faint \
    line is the smoothed training loss. The best few routers and the controls stand out, the \
    others are grey. The steepest part of the start is cut off.";

/// The section; nothing if no run has a validation curve.
pub(super) fn render(view: &View<'_>) -> Result<String, ReportError> {
    let all = Curves::new(view);
    if all.valid.is_empty() {
        return Ok(String::new());
    }
    let half = all.second_half();
    let whole = at_all_sizes(Frame::HALF_WIDTH, |frame| all.chart(frame))?;
    let enlarged = at_all_sizes(Frame::HALF_WIDTH, |frame| half.chart_with_names(frame))?;
    let body = format!(
        "<figure class=\"card\"><div class=\"pair\"><div><h3>All of training</h3>{whole}</div>\
         <div><h3>Second half, enlarged</h3>{enlarged}</div></div>{}</figure>",
        legend(view)
    );
    Ok(section("curves", "Learning curves", LEDE, &body))
}

/// All that one chart shows.
struct Curves<'v, 'a> {
    start: u64,
    /// Validation loss, lowest mean first.
    valid: Vec<Course<'v, 'a>>,
    /// Smoothed training loss of the routers that stand out.
    train: Vec<Course<'v, 'a>>,
    unigram: Option<f64>,
}

impl<'v, 'a> Curves<'v, 'a> {
    fn new(view: &'v View<'a>) -> Self {
        let valid = view.entries.iter().filter_map(|entry| Course::new(entry, entry.valid_curve()));
        let named = view.entries.iter().filter(|entry| entry.stands_out());
        let train = named.filter_map(|entry| Course::new(entry, smooth(&entry.train_curve())));
        Self { start: 0, valid: valid.collect(), train: train.collect(), unigram: view.unigram() }
    }

    fn second_half(&self) -> Self {
        let start = step_range(&self.valid, 0).end as u64 / 2;
        let since = |courses: &[Course<'v, 'a>]| {
            courses.iter().filter_map(|course| course.since(start)).collect()
        };
        Self { start, valid: since(&self.valid), train: since(&self.train), unigram: None }
    }

    fn chart(&self, frame: Frame) -> Plot {
        let steps = Axis {
            range: step_range(&self.valid, self.start),
            title: "training step",
            show: plain,
        };
        let losses = Axis { range: self.loss_range(), title: "loss", show: plain };
        let mut plot = Plot::new(frame, self.describe(), steps, losses);
        // The crowd first, so that what stands out lies on top; the best last of all.
        let (named, crowd): (Vec<_>, Vec<_>) =
            self.valid.iter().rev().partition(|course| course.entry.stands_out());
        plot.lines.extend(crowd.iter().map(|course| course.line(1.2, 0.6)));
        plot.lines.extend(self.train.iter().map(|course| course.line(1.0, 0.35)));
        named.iter().for_each(|course| course.draw(&mut plot, MARKS));
        self.draw_unigram(&mut plot);
        plot
    }

    /// The chart with names where the curves end, in place of looking them up in the legend.
    fn chart_with_names(&self, frame: Frame) -> Plot {
        if frame.size[0] < 4 * MARGIN {
            return self.chart(frame);
        }
        let mut plot = self.chart(Frame { right: MARGIN, ..frame });
        self.name_ends(&mut plot);
        plot
    }

    fn describe(&self) -> String {
        let ends =
            self.valid.iter().map(|course| format!("{} {:.3}", course.entry.name(), course.end()));
        let ends: Vec<String> = ends.collect();
        format!("Loss by training step from step {}. At the end: {}.", self.start, ends.join(", "))
    }

    fn loss_range(&self) -> Range<f64> {
        let valid: Vec<f64> = self.valid.iter().flat_map(Course::late).collect();
        let train = self.train.iter().map(Course::end);
        let top = robust_top(&valid, 6.0).max(self.unigram.unwrap_or(0.0));
        hull(valid.into_iter().chain(train).chain(self.unigram).filter(|loss| *loss <= top), 0.04)
    }

    fn draw_unigram(&self, plot: &mut Plot) {
        let Some(loss) = self.unigram else { return };
        let Range { start, end } = plot.x.range;
        plot.lines.push(Line {
            points: vec![(start, loss), (end, loss)],
            look: &REFERENCE,
            width: 1.2,
            opacity: 1.0,
        });
        let (x, y) = plot.place((end, loss));
        let text = format!("unigram loss {loss:.3}");
        plot.labels.push(Label {
            place: (x - 4.0, y + 16.0),
            anchor: "end",
            class: REFERENCE.class,
            text,
        });
    }

    fn name_ends(&self, plot: &mut Plot) {
        let named = self.valid.iter().filter(|course| course.entry.stands_out());
        let mut ends: Vec<(f64, &Entry<'_>)> =
            named.map(|course| (plot.place((0.0, course.end())).1 + 4.0, course.entry)).collect();
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut places: Vec<f64> = ends.iter().map(|(y, _)| *y).collect();
        let Range { start: bottom, end: top } = plot.frame.upwards();
        spread_out(&mut places, f64::from(plot.frame.font) + 3.0, top..bottom);
        let x = plot.frame.across().end + 10.0;
        let names = places.into_iter().zip(ends).map(|(y, (_, entry))| name((x, y), entry));
        plot.labels.extend(names);
    }
}

fn name(place: (f64, f64), entry: &Entry<'_>) -> Label {
    let whole = entry.name().to_owned();
    let text = match whole.chars().count() {
        0..=NAME => whole,
        _ => whole.chars().take(NAME - 1).chain(['…']).collect(),
    };
    Label { place, anchor: "start", class: entry.look.class, text }
}

/// The routers that stand out, with their looks.
pub(super) fn legend(view: &View<'_>) -> String {
    let named = view.entries.iter().filter(|entry| entry.stands_out() && !entry.runs.is_empty());
    let items =
        each(named, |entry| format!("<li>{}{}</li>", entry.look.swatch(), Text(entry.name())));
    format!("<ul class=\"legend\">{items}</ul>")
}
