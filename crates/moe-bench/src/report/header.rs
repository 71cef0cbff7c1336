//! Head of the page: what was compared, where and when, and the result in a few numbers.

use crate::results::DRAWING;
use crate::table::columns::{rate, show_spread};

use super::markup::{Text, each};
use super::view::{Entry, View};

/// Title, origin of the numbers, and the result in brief.
pub(super) fn render(view: &View<'_>) -> String {
    format!(
        "<header>\n<p class=\"kicker\">Sparse mixture of experts</p>\n<h1>Routers compared: \
         {}</h1>\n{}{}</header>\n",
        Text(&view.results.preset),
        origin(view),
        tiles(view)
    )
}

fn origin(view: &View<'_>) -> String {
    let (terms, environment) = (&view.results.terms, &view.results.environment);
    let machine = format!(
        "{}, {} hardware threads, {}",
        environment.cpu, environment.hardware_threads, environment.platform
    );
    let training = format!("{} steps of {} tokens", terms.steps, terms.tokens_per_step);
    let versions = format!("moe {}, libtorch {}", environment.version, environment.libtorch);
    let facts = [
        ("Data", format!("{} · {}", terms.data, terms.tokenizer)),
        ("Training", training),
        ("Started", environment.started.replace('T', " ").replace('Z', " UTC")),
        ("Commit", environment.commit.clone()),
        ("Machine", machine),
        ("Device", environment.device.clone()),
        ("Versions", versions),
    ];
    let facts =
        each(facts, |(name, text)| format!("<div><dt>{name}</dt><dd>{}</dd></div>", Text(&text)));
    format!("<dl class=\"facts\">{facts}</dl>\n")
}

fn tiles(view: &View<'_>) -> String {
    let tiles = [best(view), dense(view), unigram(view), fastest(view)];
    let tiles = each(tiles.into_iter().flatten(), |tile| tile);
    if tiles.is_empty() { String::new() } else { format!("<div class=\"tiles\">{tiles}</div>\n") }
}

fn tile(label: &str, number: &str, note: &str) -> String {
    format!(
        "<div class=\"tile\"><span>{label}</span><strong>{}</strong><em>{}</em></div>",
        Text(number),
        Text(note)
    )
}

fn best(view: &View<'_>) -> Option<String> {
    let entry = view.entries.iter().find(|entry| !entry.is_control())?;
    let note = format!("{}, {}", entry.name(), loss_spread(entry)?);
    Some(tile(
        "Lowest validation loss of a router",
        &format!("{:.3}", entry.mean("valid_loss")?),
        &note,
    ))
}

fn dense(view: &View<'_>) -> Option<String> {
    let entry = view.dense()?;
    let loss = entry.mean("valid_loss")?;
    Some(tile("Dense control", &format!("{loss:.3}"), &loss_spread(entry)?))
}

/// `± 0.004 over 3 seeds`, or `1 seed`.
fn loss_spread(entry: &Entry<'_>) -> Option<String> {
    let shown = show_spread(*entry.summary.metrics.get("valid_loss")?, 3);
    let seeds = match entry.summary.runs {
        1 => "1 seed".to_owned(),
        runs => format!("{runs} seeds"),
    };
    Some(
        shown
            .split_once(" ±")
            .map_or_else(|| seeds.clone(), |(_, sd)| format!("± {sd} over {seeds}")),
    )
}

fn unigram(view: &View<'_>) -> Option<String> {
    let unit = &view.results.terms.unit;
    let nats = format!("nats per {unit}; above it nothing was learned but frequencies");
    let (name, note) = match unit.as_str() {
        DRAWING => ("Error of the mean image", "squared error per drawing".to_owned()),
        "token" | "hidden token" => ("Unigram loss", nats),
        _ => ("Loss of label frequencies", nats),
    };
    Some(tile(name, &format!("{:.3}", view.unigram()?), &note))
}

fn fastest(view: &View<'_>) -> Option<String> {
    let speed = |entry: &Entry<'_>| entry.mean("tokens_per_second");
    let routers = view.entries.iter().filter(|entry| !entry.is_control() && speed(entry).is_some());
    let entry =
        routers.max_by(|a, b| speed(a).unwrap_or(0.0).total_cmp(&speed(b).unwrap_or(0.0)))?;
    Some(tile(
        "Fastest router",
        &rate(speed(entry)?),
        &format!("{}, training tokens per second", entry.name()),
    ))
}
