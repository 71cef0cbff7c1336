//! The leaderboard: the table of the terminal, with every seed's validation loss drawn beside its
//! mean.

use crate::summary::VERDICT_SEEDS;
use crate::table::columns::{Column, columns};

use super::markup::{At, Text, each, open_svg, section};
use super::scale::{Scale, decimals, hull, robust_top, ticks};
use super::view::{Entry, View};

const WIDTH: f64 = 160.0;
const HEIGHT: f64 = 30.0;
/// Room for half a marker at both ends.
const EDGE: f64 = 12.0;

/// The table and how to read it.
pub(super) fn render(view: &View<'_>) -> String {
    if view.entries.is_empty() {
        return section("leaderboard", "Leaderboard", "", "<p>No runs.</p>");
    }
    let lede = "Lowest mean validation loss first. Each dot is one seed, the bar is the mean, the \
                line spans one sample standard deviation to both sides; the dashed line is the \
                mean of the dense control.";
    section(
        "leaderboard",
        "Leaderboard",
        lede,
        &format!("{}{}{}", table(view), verdict(), legend(&columns(view.results))),
    )
}

fn table(view: &View<'_>) -> String {
    let strip = Strip::new(view);
    let columns = columns(view.results);
    let titles = each(&columns, |column| format!("<th scope=\"col\">{}</th>", column.name));
    let rows = each(&view.entries, |entry| row(entry, &columns, &strip));
    format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Leaderboard\">\
         <table>\n<thead><tr><th scope=\"col\">router</th><th scope=\"col\" class=\"strip\">valid \
         loss per seed{}</th><th scope=\"col\" class=\"verdict\">verdict</th>{titles}</tr>\
         </thead>\n<tbody>\n{rows}</tbody></table></div>\n",
        strip.axis()
    )
}

fn row(entry: &Entry<'_>, columns: &[&Column], strip: &Strip) -> String {
    let class = if entry.is_control() { " class=\"control\"" } else { "" };
    let tag = if entry.is_control() { " <small>control</small>" } else { "" };
    let cells = each(columns, |column| format!("<td>{}</td>", cell(&column.show(entry.summary))));
    format!(
        "<tr{class}><th scope=\"row\">{}<span class=\"name\">{}{tag}</span></th><td class=\"strip\">{}</td><td class=\"verdict\">{}</td>{cells}\
         </tr>\n",
        entry.look.swatch(),
        Text(entry.name()),
        strip.draw(entry),
        Text(&entry.summary.verdict)
    )
}

/// A number, its deviation set back.
fn cell(text: &str) -> String {
    match text.split_once(" ±") {
        Some((mean, sd)) => format!("{} <small>±{}</small>", Text(mean), Text(sd)),
        None => Text(text).to_string(),
    }
}

/// The small plots in the rows, on one common scale.
struct Strip {
    scale: Scale,
    ticks: Vec<f64>,
    dense: Option<f64>,
}

impl Strip {
    fn new(view: &View<'_>) -> Self {
        let losses: Vec<f64> = view
            .entries
            .iter()
            .flat_map(|entry| entry.seed_losses().map(|(_, loss)| loss))
            .collect();
        let top = robust_top(&losses, 4.0);
        let from = hull(losses.into_iter().filter(|loss| *loss <= top), 0.04);
        let dense = view.dense().and_then(|entry| entry.mean("valid_loss"));
        let ticks = ticks(&from, 4);
        Self { scale: Scale { from, to: EDGE..WIDTH - EDGE }, ticks, dense }
    }

    fn axis(&self) -> String {
        let decimals = decimals(&self.ticks);
        let label = |tick: &f64| {
            let x = At(self.scale.place(*tick));
            format!("<text x=\"{x}\" y=\"12\" text-anchor=\"middle\">{tick:.decimals$}</text>")
        };
        let open = open_svg("strip", WIDTH, 16.0, "Axis of validation loss");
        format!("{open}{}</svg>", each(&self.ticks, label))
    }

    fn draw(&self, entry: &Entry<'_>) -> String {
        let spread = entry.summary.metrics.get("valid_loss");
        let label = cell_label(entry);
        let open = open_svg(&format!("strip {}", entry.look.class), WIDTH, HEIGHT, &label);
        let interval =
            spread.map_or_else(String::new, |spread| self.interval(spread.mean, spread.sd));
        let seeds = each(entry.seed_losses(), |(seed, loss)| self.seed(seed, loss));
        format!("{open}{}{interval}{seeds}</svg>", self.guides())
    }

    fn guides(&self) -> String {
        let guides = each(&self.ticks, |tick| upright("guide", self.scale.place(*tick), 0.0));
        let dense = self.dense.filter(|loss| self.scale.holds(*loss));
        guides
            + &dense
                .map_or_else(String::new, |loss| upright("baseline", self.scale.place(loss), 0.0))
    }

    fn interval(&self, mean: f64, sd: Option<f64>) -> String {
        if !self.scale.holds(mean) {
            return String::new();
        }
        let ends = sd
            .filter(|sd| sd.is_finite())
            .map(|sd| [mean - sd, mean + sd].map(|end| self.bounded(end)));
        let span = ends.map_or_else(String::new, |[from, to]| {
            format!("<path class=\"span\" d=\"M{} {}H{}\"/>", At(from), HEIGHT / 2.0, At(to))
        });
        span + &upright("mean", self.scale.place(mean), 8.0)
    }

    fn seed(&self, seed: u64, loss: f64) -> String {
        let tip = format!("<title>seed {seed}: {loss:.4}</title>");
        let (x, y) = (At(self.bounded(loss)), HEIGHT / 2.0);
        if self.scale.holds(loss) {
            return format!(
                "<circle class=\"seed\" cx=\"{x}\" cy=\"{y}\" r=\"3.2\">{tip}</circle>"
            );
        }
        // Too far out for the common scale: an arrow at the edge.
        format!("<path class=\"seed\" d=\"M{} 10l7 5l-7 5z\">{tip}</path>", At(WIDTH - EDGE + 2.0))
    }

    fn bounded(&self, loss: f64) -> f64 {
        self.scale.place(loss).clamp(0.0, WIDTH)
    }
}

fn upright(class: &str, x: f64, inset: f64) -> String {
    format!("<path class=\"{class}\" d=\"M{} {inset}V{}\"/>", At(x), HEIGHT - inset)
}

fn cell_label(entry: &Entry<'_>) -> String {
    let losses: Vec<String> =
        entry.seed_losses().map(|(seed, loss)| format!("seed {seed} {loss:.3}")).collect();
    match losses.is_empty() {
        true => format!("{}: no validation loss", entry.name()),
        false => format!("Validation loss of {}: {}", entry.name(), losses.join(", ")),
    }
}

fn verdict() -> String {
    format!(
        "<p class=\"note\"><strong>Verdict.</strong> Better or worse than the reference only if a \
         paired test over seeds supports it, corrected for the number of routers. With fewer than \
         {VERDICT_SEEDS} finished seeds the table never says better or worse. <em>No \
         verdict</em> and <em>no difference</em> do not mean <em>equal</em>. A router that is not \
         causal has a loss that is <em>not comparable</em>.</p>\n"
    )
}

fn legend(columns: &[&Column]) -> String {
    let explained = columns.iter().filter(|column| !column.legend.is_empty());
    let items = each(explained, |column| {
        format!("<div><dt>{}</dt><dd>{}</dd></div>", column.name, Text(column.legend))
    });
    format!(
        "<details><summary>What the columns mean</summary><dl class=\"columns\">{items}</dl>\
         </details>\n"
    )
}
