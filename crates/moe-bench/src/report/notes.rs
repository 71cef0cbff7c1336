//! The sections of words: equal terms, failed runs, and how to run it again.

use std::collections::BTreeSet;

use crate::results::Row;

use super::markup::{Text, each, section};
use super::view::View;

/// Mark of a build from a tree with changes.
const DIRTY: &str = "-dirty";
const DIRTY_NOTE: &str = " The tree of this build had changes that the commit does not hold.";

/// What was equal for all routers and what was not.
pub(super) fn terms(view: &View<'_>) -> String {
    let terms = &view.results.terms;
    let body = format!(
        "<div class=\"columns\"><div><h3>Equal for all</h3>{}</div><div><h3>Not equal</h3>{}</div>\
         </div>",
        list(&terms.equal, "same"),
        list(&terms.unequal, "differs")
    );
    section("terms", "Terms of the comparison", "", &body)
}

fn list(facts: &[String], class: &str) -> String {
    if facts.is_empty() {
        return "<p>Nothing recorded.</p>".to_owned();
    }
    format!("<ul class=\"{class}\">{}</ul>", each(facts, |fact| format!("<li>{}</li>", Text(fact))))
}

/// Runs that did not finish; nothing if all did.
pub(super) fn failures(view: &View<'_>) -> String {
    let rows = each(view.failures(), failure);
    if rows.is_empty() {
        return String::new();
    }
    let lede = "These runs did not finish and enter no mean.";
    let table = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Failed runs\"><table \
         class=\"failed\"><thead><tr><th scope=\"col\">router</th><th scope=\"col\">seed</th><th \
         scope=\"col\">reason</th></tr></thead><tbody>{rows}</tbody></table></div>"
    );
    section("failures", "Failed runs", lede, &table)
}

fn failure(row: &Row) -> String {
    let reason = row.error.as_deref().unwrap_or("no reason recorded");
    format!(
        "<tr><th scope=\"row\">{}</th><td>{}</td><td>{}</td></tr>",
        Text(&row.router),
        row.seed,
        Text(reason)
    )
}

/// How to run it again.
pub(super) fn footer(view: &View<'_>) -> String {
    let environment = &view.results.environment;
    let features = environment.cpu_features.join(", ");
    format!(
        "<footer>\n<h2>Run it again</h2>\n<p>Check out commit <code>{}</code>, build it, and run \
         the preset <code>{}</code> on the device <code>{}</code> with these seeds: {}. Losses \
         repeat where libtorch ({}), device and instruction sets ({}) are the same; speeds depend \
         on the machine and on what else it does. Every number of this page is in \
         <code>results.json</code> beside it ({}).{}</p>\n</footer>\n",
        Text(environment.commit.trim_end_matches(DIRTY)),
        Text(&view.results.preset),
        Text(&environment.device),
        seeds(view),
        Text(&environment.libtorch),
        Text(if features.is_empty() { "unknown" } else { &features }),
        Text(&view.results.schema),
        if environment.commit.ends_with(DIRTY) { DIRTY_NOTE } else { "" }
    )
}

fn seeds(view: &View<'_>) -> String {
    let seeds: BTreeSet<u64> = view.results.rows.iter().map(|row| row.seed).collect();
    let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
    if seeds.is_empty() { "none".to_owned() } else { seeds.join(", ") }
}
