//! Stability, collapse, specialisation and likeness of experts, router by router.

use super::markup::{Text, each, section};
use super::view::{Entry, View};
use crate::table::columns::{ABSENT, magnitude, show_spread};

/// A measure of the summary and how it is shown.
struct Measure {
    name: &'static str,
    title: &'static str,
    legend: &'static str,
    decimals: usize,
}

const MEASURES: [Measure; 13] = [
    measure(
        "routing_fluctuation",
        "fluctu\u{ad}ation",
        "Share of probe tokens whose first expert changed between evaluations, mean over the run.",
        3,
    ),
    measure(
        "routing_fluctuation_end",
        "at the end",
        "The same between the last two evaluations.",
        3,
    ),
    measure(
        "cross_layer_instability",
        "between layers",
        "Share of token pairs together at an expert in one layer or the next, but not in both (ACMoE).",
        3,
    ),
    measure("router_confidence", "confi\u{ad}dence", "Mean combine weight of the kept choices.", 3),
    measure(
        "load_cv",
        "load CV",
        "Standard deviation over mean of the load on the probe tokens.",
        2,
    ),
    measure(
        "representation_collapse",
        "RC",
        "Scatter of router inputs within experts over that between them; smaller is more collapsed.",
        1,
    ),
    measure("effective_rank", "rank in", "Effective rank of what the routers read.", 1),
    measure(
        "effective_rank_output",
        "rank out",
        "Effective rank of what the sparse layers made of it.",
        1,
    ),
    measure(
        "specialisation",
        "speciali\u{ad}sation",
        "Mutual information of first expert and token class, nats.",
        3,
    ),
    measure(
        "expert_similarity_outputs",
        "alike",
        "Mean cosine of two experts’ outputs on the same tokens.",
        3,
    ),
    measure(
        "expert_similarity_weights",
        "alike, weights",
        "Mean cosine of two experts’ weights.",
        3,
    ),
    measure(
        "inter_run_agreement",
        "seeds agree",
        "Normalised mutual information of two seeds’ first experts, whatever the experts are called.",
        3,
    ),
    measure(
        "steps_to_reference",
        "steps to ref.",
        "Steps until the validation loss is the one that the reference ends with; absent if a seed never gets there.",
        0,
    ),
];

const fn measure(
    name: &'static str,
    title: &'static str,
    legend: &'static str,
    decimals: usize,
) -> Measure {
    Measure { name, title, legend, decimals }
}

/// The table; nothing if no run looked at a probe set.
pub(super) fn render(view: &View<'_>) -> String {
    let known = |entry: &&Entry<'_>| entry.summary.metrics.contains_key("effective_rank");
    let entries: Vec<&Entry<'_>> = view.entries.iter().filter(known).collect();
    if entries.is_empty() {
        return String::new();
    }
    let titles = each(&MEASURES, |measure| format!("<th scope=\"col\">{}</th>", measure.title));
    let rows = each(entries, row);
    let legend = each(&MEASURES, |measure| {
        let title = measure.title.replace('\u{ad}', "");
        format!("<div><dt>{title}</dt><dd>{}</dd></div>", Text(measure.legend))
    });
    let table = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Routing measures\"><table>\
         <thead><tr><th scope=\"col\">router</th>{titles}<th scope=\"col\">FLOPs</th></tr></thead>\
         <tbody>\n{rows}</tbody></table></div>\n<details><summary>What the columns mean</summary>\
         <dl class=\"columns\">{legend}<div><dt>FLOPs</dt><dd>Of the forward pass of a token of text, \
         or of an image.</dd></div></dl></details>\n"
    );
    let lede = "On the same validation tokens for every router and seed; means over the sparse \
                layers, ± sample standard deviation over seeds. None of these is a verdict: no test \
                was run on them.";
    section("routing", "Stability, collapse, specialisation", lede, &table)
}

fn row(entry: &Entry<'_>) -> String {
    let cells = each(&MEASURES, |measure| cell(entry, measure));
    let flops = entry.mean("inference_flops").map_or_else(|| ABSENT.to_owned(), magnitude);
    let class = if entry.is_control() { " class=\"control\"" } else { "" };
    format!(
        "<tr{class}><th scope=\"row\">{}<span class=\"name\">{}</span></th>{cells}<td>{}</td></tr>\n",
        entry.look.swatch(),
        Text(entry.name()),
        Text(&flops)
    )
}

fn cell(entry: &Entry<'_>, measure: &Measure) -> String {
    let spread = entry.summary.metrics.get(measure.name);
    let shown =
        spread.map_or_else(|| ABSENT.to_owned(), |spread| show_spread(*spread, measure.decimals));
    match shown.split_once(" ±") {
        Some((mean, sd)) => format!("<td>{} <small>±{}</small></td>", Text(mean), Text(sd)),
        None => format!("<td>{}</td>", Text(&shown)),
    }
}
