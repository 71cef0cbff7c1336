//! Pictures: maps of points by group, a table of counts, a grid of images.

use super::collect::Examples;
use anyhow::{Result, anyhow};
use image::{GrayImage, Luma};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Okabe and Ito's colours, told apart by most eyes; with [`MARKS`] their pairs repeat after 35.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x00, 0x00),
];

/// Shapes of points, so that colour is never the only cue.
#[derive(Debug, Clone, Copy)]
enum Mark {
    Disc,
    Cross,
    Triangle,
    Ring,
    Square,
}

const MARKS: [Mark; 5] = [Mark::Disc, Mark::Cross, Mark::Triangle, Mark::Ring, Mark::Square];

/// Side of a map, width of its legend, and space around both, pixels.
const SIDE: u32 = 640;
const LEGEND: u32 = 160;
const MARGIN: i32 = 16;

/// Rows of the legend.
const ROW: i32 = 18;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("cannot draw: {error}")
}

fn mark(area: &Area<'_>, at: (i32, i32), group: usize) -> Result<()> {
    let colour = COLOURS[group % COLOURS.len()];
    let (fill, line) = (colour.mix(0.75).filled(), colour.stroke_width(1));
    match MARKS[group % MARKS.len()] {
        Mark::Disc => area.draw(&Circle::new(at, 3, fill)),
        Mark::Cross => area.draw(&Cross::new(at, 3, line)),
        Mark::Triangle => area.draw(&TriangleMarker::new(at, 4, fill)),
        Mark::Ring => area.draw(&Circle::new(at, 3, line)),
        Mark::Square => {
            let corners = [(at.0 - 2, at.1 - 2), (at.0 + 3, at.1 + 3)];
            area.draw(&Rectangle::new(corners, fill))
        }
    }
    .map_err(failed)
}

fn write(area: &Area<'_>, text: &str, at: (i32, i32), to: HPos) -> Result<()> {
    let style = ("sans-serif", 13).into_font().color(&BLACK).pos(Pos::new(to, VPos::Center));
    area.draw(&Text::new(text.to_owned(), at, style)).map_err(failed)
}

/// An SVG of points, each with the colour and mark of its group; groups without points have no legend.
pub(super) fn scatter(xy: &[[f64; 2]], group_n: &[usize], names: &[String]) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (SIDE + LEGEND, SIDE)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let place = to_pixels(xy);
        for (point, &group) in xy.iter().zip(group_n) {
            mark(&area, place(point), group)?;
        }
        let seen = (0..names.len()).filter(|group| group_n.contains(group));
        for (row, group) in (0_i32..).zip(seen) {
            let y = MARGIN + ROW * row;
            mark(&area, (SIDE as i32, y), group)?;
            write(&area, &names[group], (SIDE as i32 + 12, y), HPos::Left)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// From points to a square of pixels, both axes on one scale.
fn to_pixels(xy: &[[f64; 2]]) -> impl Fn(&[f64; 2]) -> (i32, i32) {
    let bound = |axis: usize, from: f64, pick: fn(f64, f64) -> f64| {
        xy.iter().map(|point| point[axis]).fold(from, pick)
    };
    let low = [0, 1].map(|axis| bound(axis, f64::INFINITY, f64::min));
    let high = [0, 1].map(|axis| bound(axis, f64::NEG_INFINITY, f64::max));
    let length = (high[0] - low[0]).max(high[1] - low[1]).max(f64::MIN_POSITIVE);
    let inside = f64::from(SIDE as i32 - 3 * MARGIN);
    move |point| {
        let on = |axis: usize| (point[axis] - low[axis]) / length * inside;
        (MARGIN + on(0) as i32, MARGIN + on(1) as i32)
    }
}

/// An SVG of counts, rows by columns, shaded by the share of the row.
pub(super) fn table(
    count_le: &[Vec<usize>],
    rows: &[String],
    columns: &[String],
) -> Result<String> {
    const LEFT: i32 = 110;
    let (width, height) = (64, 28);
    let size = (LEFT + width * columns.len() as i32 + MARGIN, height * (rows.len() as i32 + 1));
    let mut svg = String::new();
    {
        let size = (size.0 as u32, size.1 as u32 + MARGIN as u32);
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        for (column, name) in (0_i32..).zip(columns) {
            write(&area, name, (LEFT + width * column + width / 2, height / 2), HPos::Center)?;
        }
        for (row, (name, count_e)) in (1_i32..).zip(rows.iter().zip(count_le)) {
            let (top, total) = (height * row, count_e.iter().sum::<usize>().max(1) as f64);
            write(&area, name, (LEFT - 8, top + height / 2), HPos::Right)?;
            for (column, &count) in (0_i32..).zip(count_e) {
                let left = LEFT + width * column;
                // At most half of the colour, so that black numbers can be read on it.
                let shade = COLOURS[0].mix(0.5 * count as f64 / total).filled();
                let corners = [(left, top), (left + width - 1, top + height - 1)];
                area.draw(&Rectangle::new(corners, shade)).map_err(failed)?;
                let middle = (left + width / 2, top + height / 2);
                write(&area, &count.to_string(), middle, HPos::Center)?;
            }
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

/// Side of an image, how many times it is enlarged, and space between images, pixels.
const IMAGE: u32 = 28;
const ZOOM: u32 = 2;
const GAP: u32 = 4;

/// Three rows for every class: images, one decoder, the mix of all; a wider gap below each class.
pub(super) fn grid(classes: &[Examples]) -> GrayImage {
    let cell = IMAGE * ZOOM + GAP;
    let columns = classes.iter().map(|class| class.given.len()).max().unwrap_or(0) as u32;
    let class_height = 3 * cell + GAP;
    let size = (GAP + columns * cell, GAP + classes.len() as u32 * class_height);
    let mut picture = GrayImage::from_pixel(size.0, size.1, Luma([128]));
    for (index, class) in (0_u32..).zip(classes) {
        for (row, images) in (0_u32..).zip([&class.given, &class.hard, &class.soft]) {
            for (column, pixels) in (0_u32..).zip(images) {
                let corner = (GAP + column * cell, GAP + index * class_height + row * cell);
                paste(&mut picture, pixels, corner);
            }
        }
    }
    picture
}

fn paste(picture: &mut GrayImage, pixels: &[f64], (left, top): (u32, u32)) {
    let side = IMAGE * ZOOM;
    for (x, y) in (0..side).flat_map(|x| (0..side).map(move |y| (x, y))) {
        let value = pixels[((y / ZOOM) * IMAGE + x / ZOOM) as usize];
        picture.put_pixel(left + x, top + y, Luma([(255.0 * value).round() as u8]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_has_every_point_and_a_legend_of_what_is_there() {
        let names = ["a<b", "idle", "c"].map(str::to_owned);
        let svg = scatter(&[[0.0, 0.0], [1.0, 2.0], [1.0, 1.0]], &[0, 0, 2], &names).unwrap();
        roxmltree::Document::parse(&svg).unwrap();
        assert!(svg.contains("a&lt;b") && !svg.contains("idle"), "{svg}");
        // Two discs of the points and one of the legend.
        assert_eq!(svg.matches("<circle").count(), 3, "{svg}");
        // One scale: the longer axis fills the square, the other half of it.
        let place = to_pixels(&[[0.0, 0.0], [1.0, 2.0]]);
        let [start, end] = [place(&[0.0, 0.0]), place(&[1.0, 2.0])];
        assert_eq!((end.1 - start.1, end.0 - start.0), (592, 296));
    }

    #[test]
    fn one_point_is_a_map_too() {
        assert!(scatter(&[[3.0, 3.0]], &[0], &["a".to_owned()]).unwrap().contains("<circle"));
    }

    #[test]
    fn a_table_has_every_count() {
        let names = |letters: &str| letters.chars().map(String::from).collect::<Vec<_>>();
        let svg = table(&[vec![7, 0], vec![1, 12]], &names("ab"), &names("xy")).unwrap();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let texts = document.descendants().filter(|node| node.has_tag_name("text"));
        let texts: Vec<&str> = texts.filter_map(|node| node.text()).map(str::trim).collect();
        assert_eq!(texts, ["x", "y", "a", "7", "0", "b", "1", "12"]);
    }

    /// Two columns of three rows; the corner of the second image of the second row is black on grey.
    #[test]
    fn a_grid_has_its_images_in_place() {
        let class = Examples {
            given: vec![vec![1.0; 784]; 2],
            hard: vec![vec![1.0; 784], vec![0.0; 784]],
            soft: vec![vec![0.5; 784]; 2],
        };
        let picture = grid(&[class.clone(), class]);
        assert_eq!(picture.dimensions(), (4 + 2 * 60, 4 + 2 * 184));
        let at = |x, y| picture.get_pixel(x, y).0[0];
        assert_eq!(
            [at(3, 3), at(4, 4), at(64, 64), at(4, 64), at(4, 124)],
            [128, 255, 0, 255, 128]
        );
        assert_eq!([at(4, 184), at(4, 188)], [128, 255]);
    }
}
