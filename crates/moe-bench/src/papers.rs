//! The registry of papers as text: a list, an entry, and the page `docs/papers.md`.

use moe_routers::{ConfigError, Method, PAPERS, Paper, Settings, residual};
use std::fmt::Write;

/// One line per paper.
pub fn list() -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    table.set_header(["name", "from", "presets", "idea"]);
    for paper in PAPERS {
        table.add_row([paper.id, paper.authors, &paper.presets.join(" "), headline(paper)]);
    }
    table.trim_fmt()
}

/// The first line of its idea.
fn headline(paper: &Paper) -> &'static str {
    paper.idea.lines().next().unwrap_or_default()
}

/// Everything about one paper, as Markdown.
pub fn entry(paper: &Paper) -> String {
    let mut text = format!("## `{}`\n\n**{}**. {}", paper.id, paper.title, paper.authors);
    // Writing to a string cannot fail, here and below.
    if !paper.arxiv.is_empty() {
        let _ = write!(text, ", [arXiv {0}](https://arxiv.org/abs/{0})", paper.arxiv);
    }
    let _ = writeln!(text, "\n\n{}\n", paper.idea);
    let _ = writeln!(text, "- In a recipe: {}", recipe_key(paper));
    let _ = writeln!(text, "- State: {}", paper.state);
    let _ = writeln!(text, "- Cost per token: {}\n", paper.cost);
    let file = paper.id.replace('-', "_") + ".rs";
    let head = "The equations stand at the head of";
    let _ = writeln!(text, "{head} [`{file}`](../{SOURCES}/{file}); these items carry them out:\n");
    let _ = writeln!(text, "| equation | item |\n|---|---|");
    for (equation, item) in paper.equations {
        let _ = writeln!(text, "| {equation} | `{item}` |");
    }
    list_of(&mut text, "Where paper, released code and this code differ", paper.deviations);
    list_of(&mut text, "Unverified", paper.unverified);
    presets(&mut text, paper);
    text
}

/// How a recipe names it, and what else does.
fn recipe_key(paper: &Paper) -> String {
    let key = match paper.method {
        Method::Router(_) => "router",
        Method::Residual(_) => "residual",
    };
    let mut text = format!("`{key} = \"{}\"`", paper.id);
    if let Some(other) = paper.presets.get(1) {
        text += &format!(", or with another preset `{key} = \"{}:{other}\"`", paper.id);
    }
    if matches!(paper.method, Method::Residual(_)) {
        text += &format!("; in a comparison, beside any router, `smoe+{}`", paper.id);
    }
    let short = residual::short_names(paper.id);
    short.fold(text, |text, (name, preset)| format!("{text}; `{name}` is short for `{preset}`"))
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

/// The default preset with every setting, the others by how they differ from it.
fn presets(text: &mut String, paper: &Paper) {
    let _ = writeln!(text, "\nPresets, the default first:\n");
    let first = resolved(paper, paper.presets[0]).map(|(_, settings)| settings).unwrap_or_default();
    for (i, preset) in paper.presets.iter().enumerate() {
        let line = match resolved(paper, preset) {
            Err(error) => error.to_string(),
            Ok((causal, settings)) if i == 0 => causal.to_owned() + &all_of(&settings),
            Ok((causal, settings)) => causal.to_owned() + &difference(&first, &settings),
        };
        let _ = writeln!(text, "- `{preset}`: {line}");
    }
}

/// Whether a preset is causal, in words, and its settings.
fn resolved(paper: &Paper, preset: &str) -> Result<(&'static str, Settings), ConfigError> {
    let given = Settings::from_iter([("preset".to_owned(), preset.into())]);
    let (causal, settings) = match paper.method {
        Method::Router(read) => read(&given).map(|config| (config.causal(), config.settings())),
        Method::Residual(read) => read(&given).map(|config| (config.causal(), config.settings())),
    }?;
    Ok((if causal { "causal; " } else { "not causal; " }, settings))
}

fn all_of(settings: &Settings) -> String {
    let pairs: Vec<_> = settings.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    match pairs.is_empty() {
        true => "nothing to set".into(),
        false => format!("`{}`", pairs.join(", ")),
    }
}

fn difference(first: &Settings, settings: &Settings) -> String {
    let other = settings.iter().filter(|(key, value)| first.get(*key) != Some(value));
    let other: Settings = other.map(|(key, value)| (key.clone(), value.clone())).collect();
    match other.is_empty() {
        true => "the same under another name".into(),
        false => all_of(&other),
    }
}

/// The page `docs/papers.md`.
pub fn page() -> String {
    let mut page = String::from(HEAD);
    for paper in PAPERS {
        let (id, idea) = (paper.id, headline(paper));
        let _ = writeln!(page, "| [`{id}`](#{id}) | {} | {idea} |", paper.authors);
    }
    for paper in PAPERS {
        page.push('\n');
        page.push_str(&entry(paper));
    }
    page
}

/// Where the papers' files are.
const SOURCES: &str = "crates/moe-routers/src";

/// What stands before the entries.
const HEAD: &str = "# Papers

Every method of this workspace: controls first, then by year. Generated from the registry (`moe papers --markdown`); a test holds
it to the code. In a recipe a method is a name (`router = \"x-moe\"`), a name with a preset (`router = \"x-moe:tutel\"`), or a table
with `name`, `preset` and any of its settings; what is `null` here is `\"none\"` there. `moe papers NAME` shows one entry.

In shapes and costs: `d` width, `e` experts, `k` choices per token, `t` tokens of a group, `g` groups. A cost is what a token costs
beyond the scores W x, which are e d multiply-adds; an expert call is one expert's work on one token. *Causal* is a preset under which
a token's route depends on no later token, in evaluation; only such presets are fair in a language model.

| name | from | idea |
|---|---|---|
";

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
    fn every_paper_is_listed_and_described() {
        for paper in PAPERS {
            assert!(list().contains(paper.id), "{}", paper.id);
            let lines = paper.idea.lines().count();
            assert!((1..=5).contains(&lines), "{}: an idea of {lines} lines", paper.id);
            assert!(!paper.state.is_empty() && !paper.cost.is_empty(), "{}", paper.id);
            let text = entry(paper);
            let (_, link) = text.split_once("](../").expect("a link to its file");
            let file = link.split_once(')').map_or(link, |(file, _)| file);
            let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
            assert!(std::path::Path::new(root).join(file).is_file(), "{file}");
        }
    }

    /// Settings that a preset shares with the default are not repeated, and none of the others is lost.
    #[test]
    fn presets_show_what_sets_them_apart() {
        let smoe = entry(moe_routers::paper("smoe").unwrap());
        assert!(smoe.contains("- `plain`: causal; `order = \"softmax_topk\"`\n"), "{smoe}");
        assert!(smoe.contains("z_weight = 0.0`\n") && smoe.contains("z_weight = 0.001`\n"));
    }

    #[test]
    fn a_residual_says_how_it_is_named() {
        let entry = entry(moe_routers::paper("momentum").unwrap());
        for part in [
            "2410.14574",
            "`residual = \"momentum\"`",
            "`smoe+momentum`",
            "`robust-momentum` is short for `robust_model`",
            "- `sharpness_model`: not causal; ",
            "- `reference`: causal; ",
        ] {
            assert!(entry.contains(part), "no {part} in {entry}");
        }
    }
}
