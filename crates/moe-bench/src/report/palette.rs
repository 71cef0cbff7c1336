//! How routers look: a colour, a dash pattern and a marker each, so that colour is never the only
//! cue.
//!
//! The hues follow Okabe and Ito, darkened or lightened until they stand out from the page. Charts
//! are drawn in the colours of the light scheme; style rules map these to variables that the dark
//! scheme redefines.

use plotters::style::RGBColor;

use super::markup::each;

/// Routers after the controls that get a hue of their own.
const HUES: usize = 4;

/// The appearance of a router in all charts.
pub(super) struct Look {
    /// Class that sets the style variables `--c` (colour) and `--d` (dashes).
    pub(super) class: &'static str,
    /// Outline of the marker around the origin, about four units from it.
    pub(super) marker: &'static str,
    light: u32,
    dark: u32,
    dashes: &'static [u32],
}

impl Look {
    /// Colour in the light scheme.
    pub(super) fn colour(&self) -> RGBColor {
        let [_, red, green, blue] = self.light.to_be_bytes();
        RGBColor(red, green, blue)
    }

    /// A short sample of line and marker, for tables and legends.
    pub(super) fn swatch(&self) -> String {
        format!(
            "<svg class=\"swatch {}\" viewBox=\"0 0 30 12\" aria-hidden=\"true\"><path \
             class=\"line\" d=\"M0 6h30\"/><path class=\"mark\" transform=\"translate(15 6)\" \
             d=\"{}\"/></svg>",
            self.class, self.marker
        )
    }

    fn dash_list(&self, scale: u32) -> String {
        let lengths: Vec<String> =
            self.dashes.iter().map(|length| (length * scale).to_string()).collect();
        if lengths.is_empty() { "none".to_owned() } else { lengths.join(" ") }
    }
}

const CIRCLE: &str = "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z";
const SQUARE: &str = "M-3.4-3.4h6.8v6.8h-6.8z";
const TRIANGLE: &str = "M0-4.6L4.2 3.4H-4.2z";
const DIAMOND: &str = "M0-4.8L4.8 0L0 4.8L-4.8 0z";
const BAR: &str = "M-4.6-1.8h9.2v3.6h-9.2z";
const PLUS: &str = "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z";
const DOT: &str = "M-2.6 0a2.6 2.6 0 1 0 5.2 0a2.6 2.6 0 1 0-5.2 0z";

const fn look(
    class: &'static str,
    marker: &'static str,
    [light, dark]: [u32; 2],
    dashes: &'static [u32],
) -> Look {
    Look { class, marker, light, dark, dashes }
}

static BEST: [Look; HUES] = [
    look("c0", CIRCLE, [0x0072b2, 0x56b4e9], &[]),
    look("c1", SQUARE, [0xd55e00, 0xf58a42], &[8, 3]),
    look("c2", TRIANGLE, [0x008060, 0x2dc59a], &[3, 2]),
    look("c3", DIAMOND, [0xa8508b, 0xe592c4], &[9, 3, 2, 3]),
];
static DENSE: Look = look("dense", BAR, [0x1b1f24, 0xf0f2f4], &[14, 3]);
static RANDOM: Look = look("random", PLUS, [0x8a6a00, 0xe6c229], &[2, 3]);
static REST: Look = look("rest", DOT, [0x89919b, 0x87919d], &[]);
/// Look of what is no router: the unigram loss, the frontier.
pub(super) static REFERENCE: Look = look("reference", DOT, [0x5b6471, 0x9aa4b1], &[5, 4]);

/// Looks of routers given by name in the order of the table: the first few and the controls stand
/// out.
pub(super) fn assign<'a>(routers: impl IntoIterator<Item = &'a str>) -> Vec<&'static Look> {
    let mut hues = BEST.iter();
    let mut next = move |router: &str| match router {
        crate::summary::DENSE => &DENSE,
        crate::summary::RANDOM => &RANDOM,
        _ => hues.next().unwrap_or(&REST),
    };
    routers.into_iter().map(&mut next).collect()
}

/// Whether this look stands out from the crowd.
pub(super) fn stands_out(look: &Look) -> bool {
    look.class != REST.class
}

/// Style rules for every look. Plots are drawn `fine` times larger than shown.
pub(super) fn rules(fine: u32) -> String {
    let looks = || BEST.iter().chain([&DENSE, &RANDOM, &REST, &REFERENCE]);
    let light = each(looks(), |look| format!("--{}:#{:06x};", look.class, look.light));
    let dark = each(looks(), |look| format!("--{}:#{:06x};", look.class, look.dark));
    let mapped = each(looks(), |look| mapping(look, fine));
    format!(":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{mapped}")
}

fn mapping(look: &Look, fine: u32) -> String {
    let Look { class, light, .. } = look;
    let (plain, scaled) = (look.dash_list(1), look.dash_list(fine));
    // Only opaque lines are dashed: the faint training curve of the same hue stays whole.
    format!(
        ".{class}{{--c:var(--{class});--d:{plain}}}\n\
         .plot [stroke=\"#{light:06X}\"]{{stroke:var(--{class})}}\n\
         .plot [fill=\"#{light:06X}\"]{{fill:var(--{class})}}\n\
         .plot polyline[stroke=\"#{light:06X}\"][opacity=\"1\"]{{stroke-dasharray:{scaled}}}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_keep_their_look_and_the_crowd_is_grey() {
        let looks = assign(["a", "dense", "b", "c", "random", "d", "e", "f"]);
        let classes: Vec<_> = looks.iter().map(|look| look.class).collect();
        assert_eq!(classes, ["c0", "dense", "c1", "c2", "random", "c3", "rest", "rest"]);
    }

    #[test]
    fn rules_name_colours_as_the_charts_write_them() {
        assert!(rules(4).contains(".plot [stroke=\"#D55E00\"]{stroke:var(--c1)}"));
        assert!(rules(4).contains("stroke-dasharray:32 12"));
    }
}
