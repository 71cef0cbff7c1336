//! What was and what was not equal between the routers of a comparison.

use crate::cells::Cell;
use crate::recipe::Recipe;
use crate::results::{DRAWING, Row, Terms};
use crate::subject::Subject;

/// The terms of a comparison of `cells`, all made from `base`, on its `data`.
pub fn terms(base: &Recipe, data: &Subject, cells: &[Cell]) -> Terms {
    let tokens_per_step = data.tokens_per_step(base);
    let (train, model) = (&base.train, &base.model);
    Terms {
        data: data.name().into(),
        tokenizer: data.tokenizer(),
        steps: train.steps,
        tokens_per_step: tokens_per_step as u64,
        unigram_loss: data.floor(),
        unit: match base.vae {
            Some(_) => DRAWING.into(),
            None => data.unit().trim_end_matches('s').into(),
        },
        equal: vec![
            "data, and the batch of every step: a function of (seed, step)".into(),
            "initial weights of every tensor that has the same name and shape".into(),
            format!("{} steps of {tokens_per_step} tokens, optimiser, schedule", train.steps),
            match &base.vae {
                Some(_) => format!(
                    "{} decoders, of which one draws an image; losses are squared errors of its pixels",
                    model.experts
                ),
                None => format!(
                    "{} experts, of which a token uses a hidden width of {} on average",
                    model.experts, model.active_hidden
                ),
            },
        ],
        unequal: cells
            .iter()
            .filter(|c| c.recipe.seed == cells[0].recipe.seed)
            .flat_map(unequal)
            .collect(),
    }
}

/// What sets a router apart, as sentences that begin with its name.
fn unequal(cell: &Cell) -> Vec<String> {
    let Ok(router) = cell.recipe.router.router() else { return Vec::new() };
    let (name, model) = (&cell.router, &cell.recipe.model);
    let asked = model.experts as usize;
    let (bank, active) = (router.bank(asked), router.trained_experts(asked));
    let mut facts = Vec::new();
    if cell.recipe.vae.is_some() {
        let all = format!("{name}: all {asked} decoders draw every image of a training batch");
        return (active > 1.0).then_some(all).into_iter().collect();
    }
    if bank != asked {
        facts.push(format!("{name}: {bank} expert of width {}, no choice", model.active_hidden));
    } else if active != 2.0 {
        let hidden = model.hidden_of_expert(router.as_ref());
        let (exist, other) = if active < 2.0 { ("more", "narrower") } else { ("fewer", "wider") };
        facts.push(format!(
            "{name}: {active} of {asked} experts of width {hidden} per token, so that {exist} parameters exist than with two {other} ones"
        ));
    }
    let used = router.active_experts(asked);
    if used < active {
        let hidden = used * model.hidden_of_expert(router.as_ref()) as f64;
        facts.push(format!("{name}: a token uses a hidden width of {hidden} only"));
    }
    let text = cell.recipe.is_language_model();
    if text && !router.causal() {
        facts.push(format!(
            "{name}: not causal; a token's route depends on later tokens of its group, so its loss is not comparable with the others'"
        ));
    }
    if text && cell.recipe.residual.residual().is_ok_and(|residual| !residual.causal()) {
        facts.push(format!(
            "{name}: not causal; its residual mixes all tokens, so its loss is not comparable with the others'"
        ));
    }
    facts
}

/// Whether neither router nor residual sees later tokens of its group. Only who predicts the next token gains by that.
pub fn is_causal(cell: &Cell) -> bool {
    if !cell.recipe.is_language_model() {
        return true;
    }
    let residual = || cell.recipe.residual.residual().is_ok_and(|residual| residual.causal());
    cell.recipe.router.router().is_ok_and(|router| router.causal()) && residual()
}

/// Share by which active parameters may differ before it is said.
const SIZE_MARGIN: f64 = 0.05;

/// Routers of which a token uses more or fewer parameters than of the median router, by more than
/// the margin, as sentences that begin with the name. Sizes are known only of finished runs.
pub fn unequal_sizes(rows: &[Row]) -> Vec<String> {
    let mut sizes: Vec<(&str, u64)> = Vec::new();
    for row in rows {
        let Some(metrics) = &row.metrics else { continue };
        if sizes.iter().all(|(router, _)| *router != row.router) {
            sizes.push((&row.router, metrics.params_active));
        }
    }
    let mut sorted: Vec<u64> = sizes.iter().map(|(_, size)| *size).collect();
    sorted.sort_unstable();
    let Some(&median) = sorted.get(sorted.len().saturating_sub(1) / 2) else { return Vec::new() };
    let fact = |(router, size): &(&str, u64)| {
        let off = *size as f64 / median as f64 - 1.0;
        let than = if off > 0.0 { "more" } else { "fewer" };
        let percent = 100.0 * off.abs();
        (off.abs() > SIZE_MARGIN).then(|| {
            format!("{router}: a token uses {size} parameters, {percent:.0} % {than} than the median router's {median}")
        })
    };
    sizes.iter().filter_map(fact).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Metrics;
    use std::path::Path;

    fn row(router: &str, seed: u64, params_active: Option<u64>) -> Row {
        let metrics =
            params_active.map(|params_active| Metrics { params_active, ..Metrics::default() });
        Row { router: router.into(), seed, metrics, error: None }
    }

    /// The median of 90, 100, 100, 104, 130 is 100: 4 % more is within the margin.
    #[test]
    fn sizes_off_the_median_are_said_once() {
        let rows = [
            row("a", 0, Some(100)),
            row("big", 0, Some(130)),
            row("big", 1, Some(130)),
            row("small", 0, None),
            row("small", 1, Some(90)),
            row("b", 0, Some(100)),
            row("near", 0, Some(104)),
            row("failed", 0, None),
        ];
        let want = [
            "big: a token uses 130 parameters, 30 % more than the median router's 100",
            "small: a token uses 90 parameters, 10 % fewer than the median router's 100",
        ];
        assert_eq!(unequal_sizes(&rows), want);
        assert!(unequal_sizes(&[row("failed", 0, None)]).is_empty());
    }

    /// Trained with two experts of width 512 / 2 a token, serving with one.
    #[test]
    fn a_rule_that_serves_with_fewer_experts_says_so() {
        let cell = |router| Cell::new(&Recipe::default(), router, 0, Path::new(".")).unwrap();
        assert!(unequal(&cell("vq-moe")).is_empty());
        let want = "vq-moe:paper_finetune: a token uses a hidden width of 256 only";
        assert_eq!(unequal(&cell("vq-moe:paper_finetune")), [want]);
    }

    fn facts(router: &str) -> Vec<String> {
        unequal(&Cell::new(&Recipe::default(), router, 0, Path::new("out")).unwrap())
    }

    #[test]
    fn in_an_image_no_token_is_later() {
        let images = Recipe::parse(include_str!("../../../recipes/vision.toml"), &[]).unwrap();
        let causal =
            |base: &Recipe| is_causal(&Cell::new(base, "soft-moe", 0, Path::new("out")).unwrap());
        assert!(causal(&images) && !causal(&Recipe::default()));
    }

    #[test]
    fn what_sees_later_tokens_is_said_to() {
        assert_eq!(facts("smoe+momentum"), [""; 0]);
        let sharp = facts("smoe+sharpness-momentum");
        assert!(sharp[0].starts_with("smoe+sharpness-momentum: not causal; its residual"));
        assert!(facts("gshard")[0].contains("a token's route depends on later tokens"));
    }
}
