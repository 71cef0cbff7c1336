//! Charts with two axes: grid, curves and bands by `plotters`, markers and labels on top.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::ReportError;
use super::clip::clip;
use super::markup::{At, Text, each, open_svg};
use super::palette::Look;
use super::scale::{Scale, decimals, ticks};

/// The drawing library has whole pixels only; curves are drawn this many times larger and scaled
/// down.
pub(super) const FINE: u32 = 4;

/// Colour of grid and axes; style rules map it for the dark scheme.
const GRID: RGBColor = RGBColor(0xdd, 0xe1, 0xe6);
/// Colour of labels; style rules map it for the dark scheme.
const LABEL: RGBColor = RGBColor(0x5b, 0x64, 0x71);
/// The library divides text sizes by this on their way into the SVG.
const TEXT_SHRINKAGE: f64 = 1.24;

/// Size of a chart, what its axes need at each side, and how many labels each axis may have.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame {
    pub(super) size: [u32; 2],
    pub(super) left: u32,
    pub(super) right: u32,
    pub(super) ticks: [usize; 2],
    pub(super) font: u32,
}

/// The same chart at the sizes of a desktop, a tablet and a phone.
///
/// One size scaled to all of them would have letters too small here or too large there; style rules
/// show the one that fits.
pub(super) fn at_all_sizes(
    frames: [Frame; 3],
    draw: impl Fn(Frame) -> Plot,
) -> Result<String, ReportError> {
    let sizes = ["wide", "medium", "narrow"].into_iter().zip(frames);
    sizes
        .map(|(class, frame)| Ok(format!("<div class=\"{class}\">{}</div>\n", draw(frame).svg()?)))
        .collect()
}

impl Frame {
    const TOP: u32 = 28;
    const BOTTOM: u32 = 40;

    const HALF: Self = Self { size: [570, 430], left: 48, right: 14, ticks: [6, 7], font: 13 };
    const MEDIUM: Self = Self { size: [720, 400], left: 48, right: 14, ticks: [7, 7], font: 13 };
    const NARROW: Self = Self { size: [350, 320], left: 42, right: 14, ticks: [4, 6], font: 12 };
    /// The width of the page on a tablet and a phone; on a desktop, half of it.
    pub(super) const HALF_WIDTH: [Self; 3] = [Self::HALF, Self::MEDIUM, Self::NARROW];
    /// For one of many charts side by side.
    pub(super) const SMALL: Self =
        Self { size: [270, 170], left: 46, right: 12, ticks: [4, 5], font: 11 };

    /// Places of the ends of the horizontal axis.
    pub(super) fn across(&self) -> Range<f64> {
        f64::from(self.left)..f64::from(self.size[0] - self.right)
    }

    /// Places of the ends of the vertical axis, upwards.
    pub(super) fn upwards(&self) -> Range<f64> {
        f64::from(self.size[1] - Self::BOTTOM)..f64::from(Self::TOP)
    }
}

/// One axis.
pub(super) struct Axis {
    pub(super) range: Range<f64>,
    /// What it measures, with the unit.
    pub(super) title: &'static str,
    /// Shows a value at the given number of decimals.
    pub(super) show: fn(f64, usize) -> String,
}

/// A curve.
pub(super) struct Line {
    pub(super) points: Vec<(f64, f64)>,
    pub(super) look: &'static Look,
    pub(super) width: f64,
    /// Below 1 the line is drawn without dashes.
    pub(super) opacity: f64,
}

/// A filled area.
pub(super) struct Band {
    /// Its corners, in order.
    pub(super) outline: Vec<(f64, f64)>,
    pub(super) look: &'static Look,
}

/// A marker with a tooltip.
pub(super) struct Mark {
    pub(super) spot: (f64, f64),
    pub(super) look: &'static Look,
    pub(super) tip: String,
}

/// Text at a place of the frame, not of the axes.
pub(super) struct Label {
    pub(super) place: (f64, f64),
    /// `start`, `middle` or `end`.
    pub(super) anchor: &'static str,
    /// Class of the look it belongs to.
    pub(super) class: &'static str,
    pub(super) text: String,
}

/// A chart to be drawn.
pub(super) struct Plot {
    pub(super) frame: Frame,
    /// What it shows, read out in its place.
    pub(super) label: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) bands: Vec<Band>,
    pub(super) lines: Vec<Line>,
    pub(super) marks: Vec<Mark>,
    pub(super) labels: Vec<Label>,
}

type Root<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

impl Plot {
    /// A chart with axes and nothing on them.
    pub(super) fn new(frame: Frame, label: String, x: Axis, y: Axis) -> Self {
        Self { frame, label, x, y, bands: vec![], lines: vec![], marks: vec![], labels: vec![] }
    }

    /// Where values stand in the frame.
    pub(super) fn place(&self, (x, y): (f64, f64)) -> (f64, f64) {
        let across = Scale { from: self.x.range.clone(), to: self.frame.across() };
        let upwards = Scale { from: self.y.range.clone(), to: self.frame.upwards() };
        (across.place(x), upwards.place(y))
    }

    /// The chart as an SVG element.
    pub(super) fn svg(&self) -> Result<String, ReportError> {
        let ink = self.ink().map_err(|source| ReportError::Chart {
            chart: self.label.clone(),
            reason: source.to_string(),
        })?;
        let [width, height] = self.frame.size.map(f64::from);
        let open = open_svg("plot", width, height, &self.label);
        let marks = each(&self.marks, |mark| self.mark(mark));
        let labels = each(&self.labels, |label| show_label(label, self.frame.font));
        let shrink = 1.0 / f64::from(FINE);
        let titles = self.titles();
        Ok(format!(
            "{open}<g transform=\"scale({shrink})\">\n{ink}</g>\n{titles}{marks}{labels}</svg>\n"
        ))
    }

    /// What `plotters` draws, without the `svg` element around it.
    fn ink(&self) -> Result<String, Box<dyn std::error::Error + '_>> {
        let mut svg = String::new();
        let [width, height] = self.frame.size.map(|length| length * FINE);
        let root = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        self.paint(&root).map_err(|error| error.to_string())?;
        root.present().map_err(|error| error.to_string())?;
        drop(root);
        let (_, body) = svg.split_once('>').unwrap_or_default();
        Ok(body.trim_end().trim_end_matches("</svg>").trim_start().to_owned())
    }

    fn paint<'a>(&self, root: &Root<'a>) -> Drawn<'a> {
        let mut chart = ChartBuilder::on(root)
            .margin_top(Frame::TOP * FINE)
            .margin_right(self.frame.right * FINE)
            .x_label_area_size(Frame::BOTTOM * FINE)
            .y_label_area_size(self.frame.left * FINE)
            .build_cartesian_2d(self.x.range.clone(), self.y.range.clone())?;
        self.grid(&mut chart)?;
        self.bands.iter().try_for_each(|band| self.band(&chart, band))?;
        self.lines.iter().try_for_each(|line| self.line(&chart, line))
    }

    fn grid<'a>(&self, chart: &mut Chart<'a>) -> Drawn<'a> {
        let text = f64::from(self.frame.font * FINE) * TEXT_SHRINKAGE;
        let [across, upwards] = self.frame.ticks;
        let [x_decimals, y_decimals] = [(&self.x, across), (&self.y, upwards)]
            .map(|(axis, count)| decimals(&ticks(&axis.range, count)));
        chart
            .configure_mesh()
            .disable_x_mesh()
            .max_light_lines(0)
            .bold_line_style(GRID.stroke_width(FINE))
            .axis_style(GRID.stroke_width(FINE))
            .label_style(("sans-serif", text).into_font().color(&LABEL))
            .set_all_tick_mark_size(3 * FINE)
            .x_labels(across)
            .y_labels(upwards)
            .x_label_formatter(&|value| (self.x.show)(*value, x_decimals))
            .y_label_formatter(&|value| (self.y.show)(*value, y_decimals))
            .draw()
    }

    fn band<'a>(&self, chart: &Chart<'a>, band: &Band) -> Drawn<'a> {
        let (low, high) = (self.y.range.start, self.y.range.end);
        let outline: Vec<_> = band.outline.iter().map(|&(x, y)| (x, y.clamp(low, high))).collect();
        chart.plotting_area().draw(&Polygon::new(outline, band.look.colour().mix(0.16)))
    }

    fn line<'a>(&self, chart: &Chart<'a>, line: &Line) -> Drawn<'a> {
        let width = (line.width * f64::from(FINE)).round() as u32;
        let style = line.look.colour().mix(line.opacity).stroke_width(width);
        clip(&line.points, &self.y.range)
            .into_iter()
            .try_for_each(|piece| chart.plotting_area().draw(&PathElement::new(piece, style)))
    }

    fn mark(&self, mark: &Mark) -> String {
        if !self.y.range.contains(&mark.spot.1) {
            return String::new();
        }
        let (x, y) = self.place(mark.spot);
        format!(
            "<path class=\"mark {}\" transform=\"translate({} {})\" d=\"{}\"><title>{}</title>\
             </path>\n",
            mark.look.class,
            At(x),
            At(y),
            mark.look.marker,
            Text(&mark.tip)
        )
    }

    /// Axis titles: the vertical one above its axis, so that nobody has to turn their head.
    fn titles(&self) -> String {
        let [width, height] = self.frame.size.map(f64::from);
        let label = |place, anchor, text: &str| Label {
            place,
            anchor,
            class: "title",
            text: text.to_owned(),
        };
        let above = label((2.0, 14.0), "start", self.y.title);
        let below = label((width - f64::from(self.frame.right), height - 4.0), "end", self.x.title);
        each([above, below], |label| show_label(&label, self.frame.font))
    }
}

fn show_label(label: &Label, font: u32) -> String {
    let (x, y) = label.place;
    let Label { anchor, class, text, .. } = label;
    let (x, y, text) = (At(x), At(y), Text(text));
    format!(
        "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\" font-size=\"{font}\">\
         {text}</text>\n"
    )
}
