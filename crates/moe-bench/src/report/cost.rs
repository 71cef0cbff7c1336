//! Cost against quality: training speed, or FLOPs of inference, across; validation loss upwards.

use super::ReportError;
use super::chart::{Axis, Frame, Line, Mark, Plot, at_all_sizes};
use super::course::plain;
use super::labels::{Spot, place_names};
use super::markup::{Text, section};
use super::palette::REFERENCE;
use super::scale::{hull, plottable, robust_top};
use super::view::{Entry, View};
use crate::table::columns::{magnitude, rate};

/// What quality is paid with.
struct Price {
    measure: &'static str,
    axis: &'static str,
    heading: &'static str,
    /// Whether more of it is better.
    more: bool,
    show: fn(f64, usize) -> String,
    /// A value with its unit.
    tell: fn(f64) -> String,
}

const PRICES: [Price; 2] = [
    Price {
        measure: "tokens_per_second",
        axis: "training tokens per second",
        heading: "Training speed",
        more: true,
        show: kilo,
        tell: |speed| format!("{} tokens per second", rate(speed)),
    },
    Price {
        measure: "inference_flops",
        axis: "FLOPs of a forward pass per target",
        heading: "Inference",
        more: false,
        show: mega,
        tell: |flops| format!("{}FLOPs per target", magnitude(flops)),
    },
];

/// A router with both measures.
struct Offer<'v, 'a> {
    entry: &'v Entry<'a>,
    price: &'static Price,
    cost: f64,
    loss: f64,
}

/// The charts; nothing if no router has both measures.
pub(super) fn render(view: &View<'_>) -> Result<String, ReportError> {
    let panels: Result<Vec<String>, ReportError> =
        PRICES.iter().map(|price| panel(view, price)).collect();
    let panels = panels?.concat();
    if panels.is_empty() {
        return Ok(String::new());
    }
    let body = format!("<figure class=\"card\"><div class=\"pair\">{panels}</div></figure>");
    let lede = "Training speed: further right is faster. Inference: further left is cheaper. Further down is \
                better in both. Bars span one sample standard deviation over seeds. The dashed line joins the \
                routers that no other beats in both. Speeds hold for the machine above only; FLOPs are \
                counted without sorts and draws.";
    Ok(section("cost", "Cost against quality", lede, &body))
}

fn panel(view: &View<'_>, price: &'static Price) -> Result<String, ReportError> {
    let offers: Vec<Offer<'_, '_>> =
        view.entries.iter().filter_map(|entry| offer(entry, price)).collect();
    if offers.is_empty() {
        return Ok(String::new());
    }
    let top = robust_top(&offers.iter().map(|offer| offer.loss).collect::<Vec<_>>(), 4.0);
    let (near, far): (Vec<_>, Vec<_>) = offers.into_iter().partition(|offer| offer.loss <= top);
    let charts = at_all_sizes(Frame::HALF_WIDTH, |frame| chart(&near, frame, price))?;
    Ok(format!("<div><h3>{}</h3>{charts}{}</div>", price.heading, off_the_scale(&far)))
}

fn offer<'v, 'a>(entry: &'v Entry<'a>, price: &'static Price) -> Option<Offer<'v, 'a>> {
    let (cost, loss) = (entry.mean(price.measure)?, entry.mean("valid_loss")?);
    Some(Offer { entry, price, cost, loss })
}

fn chart(offers: &[Offer<'_, '_>], frame: Frame, price: &Price) -> Plot {
    let loss = hull(offers.iter().map(|offer| offer.loss), 0.12);
    let cost = hull(offers.iter().map(|offer| offer.cost), 0.08);
    let x = Axis { range: cost, title: price.axis, show: price.show };
    let y = Axis { range: loss, title: "validation loss", show: plain };
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

/// A count in millions, so that an axis does not change its unit.
fn mega(value: f64, _: usize) -> String {
    format!("{}M", (value / 1e4).round() / 1e2)
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
    format!("Validation loss against cost. {}.", all.join("; "))
}

/// Offers that no other beats in cost and loss, along the axis.
fn frontier(offers: &[Offer<'_, '_>]) -> Vec<(f64, f64)> {
    let beaten = |offer: &Offer<'_, '_>| {
        let as_good = |other: &Offer<'_, '_>| match offer.price.more {
            true => other.cost >= offer.cost,
            false => other.cost <= offer.cost,
        };
        offers.iter().any(|other| as_good(other) && other.loss < offer.loss)
    };
    let mut best: Vec<_> =
        offers.iter().filter(|offer| !beaten(offer)).map(|o| (o.cost, o.loss)).collect();
    best.sort_by(|a, b| a.0.total_cmp(&b.0));
    best
}

/// One sample standard deviation to both sides, where there is one.
fn bars(offer: &Offer<'_, '_>) -> [Line; 2] {
    let Offer { entry, price, cost, loss } = offer;
    let (across, upright) = (offer.deviation(price.measure), offer.deviation("valid_loss"));
    let bar = |points| Line { points, look: entry.look, width: 1.0, opacity: 0.55 };
    [
        bar(vec![(cost - across, *loss), (cost + across, *loss)]),
        bar(vec![(*cost, loss - upright), (*cost, loss + upright)]),
    ]
}

fn mark(offer: &Offer<'_, '_>) -> Mark {
    Mark { spot: (offer.cost, offer.loss), look: offer.entry.look, tip: offer.tip() }
}

fn spot<'v>(plot: &Plot, offer: &Offer<'v, '_>) -> Spot<'v> {
    let place = plot.place((offer.cost, offer.loss));
    let far = (
        offer.cost + offer.deviation(offer.price.measure),
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
        let cost = (self.price.tell)(self.cost);
        format!("{}: loss {:.3} at {cost}", self.entry.name(), self.loss)
    }
}
