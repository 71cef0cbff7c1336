//! The registry of routers as text: a list, an entry, and the page `docs/papers.md`.

use moe_routers::{Method, PAPERS, Paper, Settings, residual};
use std::fmt::Write;

/// One line per router.
pub fn list() -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    table.set_header(["name", "from", "presets", "idea"]);
    for paper in PAPERS {
        table.add_row([paper.id, paper.authors, &paper.presets.join(" "), paper.idea]);
    }
    table.trim_fmt()
}

/// Everything about one router, as Markdown.
pub fn entry(paper: &Paper) -> String {
    let mut text = format!("## `{}`: {}\n\n", paper.id, paper.title);
    let arxiv =
        if paper.arxiv.is_empty() { String::new() } else { format!(", arXiv {}", paper.arxiv) };
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(text, "{}{arxiv}. {}\n", paper.authors, paper.idea);
    if matches!(paper.method, Method::Residual(_)) {
        let _ = writeln!(text, "{}\n", use_of_residual(paper.id));
    }
    let _ = writeln!(text, "| equation | item |\n|---|---|");
    for (equation, item) in paper.equations {
        let _ = writeln!(text, "| {equation} | `{item}` |");
    }
    list_of(&mut text, "Where paper, released code and this code differ", paper.deviations);
    list_of(&mut text, "Unverified", paper.unverified);
    let _ = writeln!(text, "\nPresets, with every setting:\n");
    for preset in paper.presets {
        let _ = writeln!(text, "- `{preset}`: {}", settings(paper, preset));
    }
    text
}

/// How a recipe names a residual.
fn use_of_residual(id: &str) -> String {
    let short = residual::short_names(id).map(|(name, preset)| format!("`{name}` for `{preset}`"));
    let short: Vec<_> = short.collect();
    let names = if short.is_empty() { String::new() } else { format!("; {}", short.join(", ")) };
    format!(
        "A residual, beside any router: `residual = \"{id}\"` in a recipe, `smoe+{id}` in a comparison{names}."
    )
}

fn list_of(text: &mut String, title: &str, items: &[&str]) {
    if items.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n{title}:\n");
    for item in items {
        let _ = writeln!(text, "- {item}");
    }
}

/// A preset's settings and whether it is causal.
fn settings(paper: &Paper, preset: &str) -> String {
    let given = Settings::from_iter([("preset".to_owned(), preset.into())]);
    let read = match paper.method {
        Method::Router(read) => read(&given).map(|config| (config.causal(), config.settings())),
        Method::Residual(read) => read(&given).map(|config| (config.causal(), config.settings())),
    };
    let (causal, settings) = match read {
        Ok(read) => read,
        Err(error) => return error.to_string(),
    };
    let causal = if causal { "causal; " } else { "not causal; " };
    let pairs: Vec<_> = settings.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    let all = match pairs.is_empty() {
        true => "nothing to set".into(),
        false => format!("`{}`", pairs.join(", ")),
    };
    format!("{causal}{all}")
}

/// The page `docs/papers.md`.
pub fn page() -> String {
    let mut page = String::from(
        "# Routers\n\n\
         Generated from the registry (`moe papers --markdown`); a test holds it to the code.\n\
         In a recipe: `router = \"NAME\"`, `router = \"NAME:PRESET\"`, or a table with `name`, `preset` and any of the keys.\n",
    );
    for paper in PAPERS {
        page.push('\n');
        page.push_str(&entry(paper));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_in_docs_is_this_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/papers.md");
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(
            written,
            page(),
            "run `cargo run -p moe-bench -- papers --markdown > docs/papers.md`"
        );
    }

    #[test]
    fn a_residual_says_how_it_is_named() {
        let entry = entry(moe_routers::paper("momentum").unwrap());
        for part in [
            "2410.14574",
            "`residual = \"momentum\"` in a recipe, `smoe+momentum` in a comparison",
            "`robust-momentum` for `robust_model`",
            "- `sharpness_model`: not causal; `",
            "- `reference`: causal; ",
        ] {
            assert!(entry.contains(part), "no {part} in {entry}");
        }
    }

    #[test]
    fn every_router_is_listed() {
        assert!(PAPERS.iter().all(|paper| list().contains(paper.id)));
    }
}
