//! Names beside points, placed so that they hide neither points nor each other.

use super::chart::{Frame, Label};
use super::palette::{Look, stands_out};

/// Room that a marker takes to each side of its place.
const MARKER: f64 = 6.0;
/// Width of a letter over the size of its font, on the safe side for system fonts.
const LETTER: f64 = 0.6;

/// A point to be named.
pub(super) struct Spot<'a> {
    /// Its place in the frame.
    pub(super) place: (f64, f64),
    /// Half the lengths of its bars, across and upwards.
    pub(super) reach: (f64, f64),
    pub(super) name: &'a str,
    pub(super) look: &'static Look,
}

/// Part of the frame: left, top, right, bottom.
type Area = [f64; 4];

/// Names for as many spots as there is room for, those that stand out first.
pub(super) fn place_names(frame: &Frame, mut spots: Vec<Spot<'_>>) -> Vec<Label> {
    spots.sort_by_key(|spot| !stands_out(spot.look));
    let mut taken: Vec<Area> = spots.iter().flat_map(ink).collect();
    let mut labels = Vec::new();
    for spot in &spots {
        let free =
            candidates(spot, frame.font).into_iter().find(|(area, _)| is_free(area, frame, &taken));
        if let Some((area, label)) = free {
            taken.push(area);
            labels.push(label);
        }
    }
    labels
}

/// What a point covers: its marker and its two bars.
fn ink(spot: &Spot<'_>) -> [Area; 3] {
    let (across, upwards) = spot.reach;
    [(MARKER, MARKER), (across, 1.0), (1.0, upwards)].map(|(dx, dy)| around(spot.place, dx, dy))
}

fn around((x, y): (f64, f64), dx: f64, dy: f64) -> Area {
    [x - dx, y - dy, x + dx, y + dy]
}

fn is_free(area: &Area, frame: &Frame, taken: &[Area]) -> bool {
    let (across, upwards) = (frame.across(), frame.upwards());
    let inside = area[0] >= across.start
        && area[2] <= across.end
        && area[1] >= upwards.end
        && area[3] <= upwards.start;
    inside && !taken.iter().any(|other| overlap(area, other))
}

fn overlap(a: &Area, b: &Area) -> bool {
    a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
}

/// Right, left, above and below the point, in order of preference.
fn candidates(spot: &Spot<'_>, font: u32) -> [(Area, Label); 4] {
    let height = f64::from(font);
    let width = spot.name.chars().count() as f64 * height * LETTER;
    let (x, y) = spot.place;
    let across = spot.reach.0.max(MARKER) + 3.0;
    let upwards = spot.reach.1.max(MARKER) + 2.0 + height / 2.0;
    [
        (x + across, y, "start", x + across),
        (x - across, y, "end", x - across - width),
        (x, y - upwards, "middle", x - width / 2.0),
        (x, y + upwards, "middle", x - width / 2.0),
    ]
    .map(|(x, middle, anchor, left)| {
        let area = [left, middle - height / 2.0, left + width, middle + height / 2.0];
        // Letters without ascenders are centred about a third of the font above their base line.
        let place = (x, middle + height * 0.34);
        (area, Label { place, anchor, class: spot.look.class, text: spot.name.to_owned() })
    })
}

#[cfg(test)]
mod tests {
    use super::super::palette::assign;
    use super::*;

    fn spots(places: &[(f64, f64)]) -> Vec<Spot<'static>> {
        let looks = assign(["a", "b", "c", "d", "e", "f"]);
        places
            .iter()
            .zip(looks)
            .map(|(&place, look)| Spot { place, reach: (0.0, 0.0), name: "router", look })
            .collect()
    }

    #[test]
    fn a_name_goes_right_of_its_point_and_left_at_the_edge() {
        let labels = place_names(&Frame::SMALL, spots(&[(100.0, 60.0), (250.0, 100.0)]));
        assert_eq!([labels[0].anchor, labels[1].anchor], ["start", "end"]);
    }

    #[test]
    fn what_has_no_room_stays_without_a_name() {
        let labels = place_names(&Frame::SMALL, spots(&[(150.0, 80.0); 6]));
        assert_eq!(labels.len(), 4);
    }
}
