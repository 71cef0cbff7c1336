//! Heat maps of expert load, on a scale of colours that is centred at uniform load.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::grid::{Grid, SHADES, class, number};
use super::markup::{At, Text, each, open_svg};

/// Experts up to which cells are wide enough for numbers.
const NUMBERED: usize = 10;
/// Width of a map and the part of it left of the cells.
const WIDTH: f64 = 330.0;
const LEFT: f64 = 50.0;

/// Layers by experts at the last evaluation, with numbers where they fit.
pub(super) fn end_map(grid: &Grid, name: &str) -> String {
    const ROW: f64 = 22.0;
    const TOP: f64 = 18.0;
    let rows = each(0..grid.layers, |layer| end_row(grid, layer, TOP + ROW * layer as f64, ROW));
    let height = TOP + ROW * grid.layers as f64 + 1.0;
    let open = open_svg("heat", WIDTH, height, &end_label(grid, name));
    format!("{open}{}{}{rows}</svg>", text("start", 0.0, 12.0, "expert"), expert_heads(grid))
}

fn expert_heads(grid: &Grid) -> String {
    let width = (WIDTH - LEFT) / grid.experts as f64;
    let every = grid.experts.div_ceil(16);
    each((0..grid.experts).step_by(every), |expert| {
        text("middle", LEFT + width * (expert as f64 + 0.5), 12.0, &expert.to_string())
    })
}

fn end_label(grid: &Grid, name: &str) -> String {
    let row = |layer: usize| {
        let loads = (0..grid.experts).map(|expert| number(grid.end(layer, expert)));
        format!("layer {layer}: {}", loads.collect::<Vec<_>>().join(", "))
    };
    let rows: Vec<String> = (0..grid.layers).map(row).collect();
    format!("{name}: load of each expert at the end over uniform load. {}.", rows.join("; "))
}

fn end_row(grid: &Grid, layer: usize, y: f64, height: f64) -> String {
    let width = (WIDTH - LEFT) / grid.experts as f64;
    let cells = each(0..grid.experts, |expert| {
        let load = grid.end(layer, expert);
        let shown = if grid.experts <= NUMBERED { number(load) } else { String::new() };
        let tip = if grid.is_small() { tip(layer, expert, load) } else { String::new() };
        cell(class(load), [LEFT + width * expert as f64, y, width, height], &shown, &tip)
    });
    text("start", 0.0, y + height * 0.66, &format!("layer {layer}")) + &cells
}

fn tip(layer: usize, expert: usize, load: f64) -> String {
    format!("<title>layer {layer}, expert {expert}: {} of uniform load</title>", number(load))
}

/// One cell; `tip` is markup.
fn cell(class: &str, [x, y, width, height]: [f64; 4], shown: &str, tip: &str) -> String {
    let number = text("middle", x + width / 2.0, y + height * 0.66, shown);
    let (x, y, width, height) = (At(x), At(y), At(width - 1.0), At(height - 1.0));
    format!(
        "<g class=\"{class}\"><rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"/>\
         {number}{tip}</g>"
    )
}

/// Experts over evaluations, one block per layer.
pub(super) fn time_map(grid: &Grid, name: &str) -> String {
    const GAP: f64 = 8.0;
    let row = row_height(grid);
    let block = row * grid.experts as f64;
    let top = |layer: usize| 16.0 + (block + GAP) * layer as f64;
    let blocks = each(0..grid.layers, |layer| time_block(grid, layer, top(layer), row));
    let foot = top(grid.layers) + 6.0;
    let label = format!("{name}: load of each expert by training step, one block per layer");
    let open = open_svg("heat", WIDTH, foot + 8.0, &label);
    let head = text("end", LEFT - 4.0, 9.0, "expert");
    format!("{open}{head}{blocks}{}</svg>", time_axis(grid, foot))
}

/// Height of one expert: blocks of about 72 and maps of about 480 in all, yet never invisible.
fn row_height(grid: &Grid) -> f64 {
    let block = (480.0 / grid.layers as f64).min(72.0);
    (block / grid.experts as f64).clamp(1.0, 9.0)
}

fn time_axis(grid: &Grid, y: f64) -> String {
    let end = |step: Option<&u64>| step.map_or_else(String::new, u64::to_string);
    let first = text("start", LEFT, y, &end(grid.steps.first()));
    let middle = text("middle", (LEFT + WIDTH) / 2.0, y, "training step");
    let last = text("end", WIDTH, y, &end(grid.steps.last()));
    first + &middle + &last
}

fn time_block(grid: &Grid, layer: usize, top: f64, row: f64) -> String {
    let mut shapes: BTreeMap<&str, String> = BTreeMap::new();
    for expert in 0..grid.experts {
        for (class, from, to) in grid.stretches(layer, expert) {
            let shape = shapes.entry(class).or_default();
            push_stretch(shape, grid, [from, to], [top + row * expert as f64, row]);
        }
    }
    let drawn = each(shapes, |(class, shape)| format!("<path class=\"{class}\" d=\"{shape}\"/>"));
    let bottom = top + row * grid.experts as f64;
    let name = text("start", 0.0, (top + bottom) / 2.0 + 4.0, &format!("layer {layer}"));
    drawn + &name + &expert_ends(grid, top, bottom)
}

/// Adds a rectangle to a path; one path per colour is a tenth of the size of one element per cell.
fn push_stretch(shape: &mut String, grid: &Grid, [from, to]: [usize; 2], [y, height]: [f64; 2]) {
    let width = (WIDTH - LEFT) / grid.columns() as f64;
    let x = At(LEFT + width * from as f64);
    let length = At(width * (to - from) as f64);
    // Writing to a string cannot fail.
    let _ = write!(shape, "M{x} {}h{length}v{}h-{length}z", At(y), At(height));
}

/// First and last expert beside a block that has room for both.
fn expert_ends(grid: &Grid, top: f64, bottom: f64) -> String {
    if bottom - top < 34.0 {
        return String::new();
    }
    let last = (grid.experts - 1).to_string();
    text("end", LEFT - 4.0, top + 8.0, "0") + &text("end", LEFT - 4.0, bottom - 1.0, &last)
}

/// The colour legend, and the hatching of experts without rows.
pub(super) fn colour_key() -> String {
    const CELL: f64 = 26.0;
    const HATCH: &str = "<defs><pattern id=\"no-rows\" width=\"4\" height=\"4\" \
                         patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">\
                         <path class=\"hatch\" d=\"M0 0v4\"/></pattern></defs>";
    let left = |shade: usize| 40.0 + CELL * shade as f64;
    let shades = each(SHADES.iter().enumerate(), |(shade, class)| {
        format!("<rect class=\"{class}\" x=\"{}\" width=\"{CELL}\" height=\"14\"/>", left(shade))
    });
    let ticks = [(0, "¼"), (2, "½"), (4, "1 uniform"), (6, "2"), (8, "4 and more")];
    let ticks = each(ticks, |(shade, tick)| text("middle", left(shade) + CELL / 2.0, 28.0, tick));
    let none = cell("dead", [1.0, 0.0, 27.0, 15.0], "×", "") + &text("middle", 14.0, 28.0, "none");
    let label = "Colours from a quarter of uniform load to four times uniform load";
    format!("{}{HATCH}{none}{shades}{ticks}</svg>", open_svg("heat key", 310.0, 32.0, label))
}

fn text(anchor: &str, x: f64, y: f64, content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    let (x, y, content) = (At(x), At(y), Text(content));
    format!("<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{content}</text>")
}
