//! Scaling curves as an SVG: time to the left, memory to the right, both axes logarithmic.

use super::{Curve, Point, Scaling};
use plotters::coord::Shift;
use plotters::prelude::*;
use std::ops::Range;

/// The blue of Okabe and Ito.
const INK: RGBColor = RGBColor(0x00, 0x72, 0xb2);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// Width of a chart and height of a row of two.
const CHART: (u32, u32) = (480, 320);

/// A row of two charts for each curve.
///
/// # Errors
/// In the drawing library's words.
pub fn svg(scaling: &Scaling) -> Result<String, String> {
    let mut text = String::new();
    let rows = scaling.curves.len().max(1);
    {
        let size = (2 * CHART.0, CHART.1 * rows as u32);
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        paint(&root, &scaling.curves, rows).map_err(|error| error.to_string())?;
        root.present().map_err(|error| error.to_string())?;
    }
    Ok(text)
}

fn paint<'a>(root: &Area<'a>, curves: &[Curve], rows: usize) -> Drawn<'a> {
    root.fill(&WHITE)?;
    let areas = root.split_evenly((rows, 2));
    for (curve, pair) in curves.iter().zip(areas.chunks(2)) {
        let title = |what: &str, slope: f64| {
            format!(
                "{what} against {}, {}: slope {slope:.2}",
                curve.axis.name(),
                curve.dtype.name()
            )
        };
        chart(&pair[0], &title("ms", curve.time_slope), curve, |point| point.ms)?;
        chart(&pair[1], &title("MiB", curve.memory_slope), curve, |point| point.peak_mib)?;
    }
    Ok(())
}

fn chart<'a>(area: &Area<'a>, title: &str, curve: &Curve, of: fn(&Point) -> f64) -> Drawn<'a> {
    let spots: Vec<(f64, f64)> = curve.points.iter().map(|p| (p.value as f64, of(p))).collect();
    let (x, y) = (around(spots.iter().map(|s| s.0)), around(spots.iter().map(|s| s.1)));
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(28)
        .y_label_area_size(56)
        .build_cartesian_2d(x.log_scale(), y.log_scale())?;
    chart.configure_mesh().max_light_lines(0).draw()?;
    chart.draw_series(LineSeries::new(spots.iter().copied(), INK.stroke_width(2)))?;
    chart.draw_series(spots.iter().map(|&spot| Circle::new(spot, 4, INK.filled())))?;
    Ok(())
}

/// From a little below the smallest to a little above the largest.
fn around(values: impl Iterator<Item = f64> + Clone) -> Range<f64> {
    let smallest = values.clone().fold(f64::INFINITY, f64::min);
    smallest / 1.3..values.fold(0.0, f64::max) * 1.3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speed::machine::Machine;
    use crate::speed::scaling::Axis;
    use crate::speed::{Dtype, Pass};
    use tch::Device;

    #[test]
    fn every_point_of_every_curve_is_drawn() {
        let point = |value: i64| {
            let ms = value as f64 / 3.0;
            Point { value, ms, range_ms: [ms, ms], peak_mib: 7.0 }
        };
        let curve = |axis| {
            Curve::new((axis, Pass::Forward, Dtype::F32), [256, 1024, 4096].map(point).to_vec())
        };
        let curves = vec![curve(Axis::Tokens), curve(Axis::Width)];
        let svg = svg(&Scaling { machine: Machine::now(Device::Cpu), curves }).unwrap();
        assert_eq!(svg.matches("<circle").count(), 2 * 2 * 3);
        assert!(svg.contains("ms against width, f32: slope 1.00"), "{svg}");
        assert!(svg.contains("MiB against tokens, f32: slope 0.00"));
    }
}
