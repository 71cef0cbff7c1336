//! Cost against quality: training speed across, validation loss upwards.

use super::ReportError;
use super::chart::{Axis, Frame, Line, Mark, Plot, at_all_sizes};
use super::course::plain;
use super::labels::{Spot, place_names};
use super::markup::{Text, section};
use super::palette::REFERENCE;
use super::scale::{hull, plottable, robust_top};
use super::view::{Entry, View};
use crate::table::columns::rate;

/// A router with both measures.
struct Offer<'v, 'a> {
    entry: &'v Entry<'a>,
    speed: f64,
    loss: f64,
}

/// The chart; nothing if no router has both measures.
pub(super) fn render(view: &View<'_>) -> Result<String, ReportError> {
    let offers: Vec<Offer<'_, '_>> = view.entries.iter().filter_map(offer).collect();
    if offers.is_empty() {
        return Ok(String::new());
    }
    let top = robust_top(&offers.iter().map(|offer| offer.loss).collect::<Vec<_>>(), 4.0);
    let (near, far): (Vec<_>, Vec<_>) = offers.into_iter().partition(|offer| offer.loss <= top);
    let charts = at_all_sizes(Frame::FULL_WIDTH, |frame| chart(&near, frame))?;
    let body = format!("<figure class=\"card\">{charts}{}</figure>", off_the_scale(&far));
    let lede = "Further right is faster, further down is better. Bars span one sample standard \
                deviation over seeds. The dashed line joins the routers that no other beats in \
                both. Speeds hold for the machine above only.";
    Ok(section("cost", "Cost against quality", lede, &body))
}

fn offer<'v, 'a>(entry: &'v Entry<'a>) -> Option<Offer<'v, 'a>> {
    Some(Offer { entry, speed: entry.mean("tokens_per_second")?, loss: entry.mean("valid_loss")? })
}

fn chart(offers: &[Offer<'_, '_>], frame: Frame) -> Plot {
    let loss = hull(offers.iter().map(|offer| offer.loss), 0.12);
    let speed = hull(offers.iter().map(|offer| offer.speed), 0.08);
    let x = Axis { range: speed, title: "training tokens per second", show: kilo };
    let y = Axis { range: loss, title: "validation loss, nats", show: plain };
    let mut plot = Plot::new(frame, describe(offers), x, y);
    plot.lines.push(Line { points: frontier(offers), look: &REFERENCE, width: 1.2, opacity: 1.0 });
    plot.lines.extend(offers.iter().rev().flat_map(bars));
    plot.marks.extend(offers.iter().rev().map(mark));
    let spots: Vec<Spot<'_>> = offers.iter().map(|offer| spot(&plot, offer)).collect();
    plot.labels = place_names(&frame, spots);
    plot
}

/// A speed in thousands from the first thousand on, so that an axis does not change its unit.
fn kilo(value: f64, decimals: usize) -> String {
    if value < 1e3 { format!("{value:.decimals$}") } else { format!("{}k", value.round() / 1e3) }
}

/// Names what is too far out to be drawn with the others.
fn off_the_scale(offers: &[Offer<'_, '_>]) -> String {
    if offers.is_empty() {
        return String::new();
    }
    let all: Vec<String> = offers.iter().map(Offer::tip).collect();
    format!("<p class=\"note\">Too far up to be shown: {}.</p>", Text(&all.join("; ")))
}

fn describe(offers: &[Offer<'_, '_>]) -> String {
    let all: Vec<String> = offers.iter().map(Offer::tip).collect();
    format!("Validation loss against training speed. {}.", all.join("; "))
}

/// Offers that no other beats in speed and loss, slowest first.
fn frontier(offers: &[Offer<'_, '_>]) -> Vec<(f64, f64)> {
    let beaten = |offer: &Offer<'_, '_>| {
        offers.iter().any(|other| other.speed >= offer.speed && other.loss < offer.loss)
    };
    let mut best: Vec<_> =
        offers.iter().filter(|offer| !beaten(offer)).map(|o| (o.speed, o.loss)).collect();
    best.sort_by(|a, b| a.0.total_cmp(&b.0));
    best
}

/// One sample standard deviation to both sides, where there is one.
fn bars(offer: &Offer<'_, '_>) -> [Line; 2] {
    let Offer { entry, speed, loss } = offer;
    let (across, upright) = (offer.deviation("tokens_per_second"), offer.deviation("valid_loss"));
    let bar = |points| Line { points, look: entry.look, width: 1.0, opacity: 0.55 };
    [
        bar(vec![(speed - across, *loss), (speed + across, *loss)]),
        bar(vec![(*speed, loss - upright), (*speed, loss + upright)]),
    ]
}

fn mark(offer: &Offer<'_, '_>) -> Mark {
    Mark { spot: (offer.speed, offer.loss), look: offer.entry.look, tip: offer.tip() }
}

fn spot<'v>(plot: &Plot, offer: &Offer<'v, '_>) -> Spot<'v> {
    let place = plot.place((offer.speed, offer.loss));
    let far = (
        offer.speed + offer.deviation("tokens_per_second"),
        offer.loss + offer.deviation("valid_loss"),
    );
    let (right, top) = plot.place(far);
    Spot {
        place,
        reach: (right - place.0, place.1 - top),
        name: offer.entry.name(),
        look: offer.entry.look,
    }
}

impl Offer<'_, '_> {
    fn deviation(&self, measure: &str) -> f64 {
        let spread = self.entry.summary.metrics.get(measure);
        spread.and_then(|spread| spread.sd).filter(|sd| plottable(*sd)).unwrap_or(0.0)
    }

    fn tip(&self) -> String {
        format!(
            "{}: loss {:.3} at {} tokens per second",
            self.entry.name(),
            self.loss,
            rate(self.speed)
        )
    }
}
