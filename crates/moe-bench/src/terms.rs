//! What was and what was not equal between the routers of a comparison.

use crate::cells::Cell;
use crate::recipe::Recipe;
use crate::results::Terms;
use anyhow::Result;
use moe_data::Split;

/// The terms of a comparison of `cells`, all made from `base`.
///
/// # Errors
/// Data that cannot be read.
pub fn terms(base: &Recipe, cells: &[Cell]) -> Result<Terms> {
    let data = base.data.open()?;
    let (train, model) = (&base.train, &base.model);
    Ok(Terms {
        data: data.corpus().into(),
        tokenizer: data.tokenizer().name().into(),
        steps: train.steps,
        tokens_per_step: (train.batch * train.sequence) as u64,
        unigram_loss: data.unigram_nll(Split::Valid),
        equal: vec![
            "data, and the batch of every step: a function of (seed, step)".into(),
            "initial weights of every tensor that has the same name and shape".into(),
            format!(
                "{} steps of {} tokens, optimiser, schedule",
                train.steps,
                train.batch * train.sequence
            ),
            format!(
                "{} experts, of which a token uses a hidden width of {} on average",
                model.experts, model.active_hidden
            ),
        ],
        unequal: cells
            .iter()
            .filter(|c| c.recipe.seed == cells[0].recipe.seed)
            .flat_map(unequal)
            .collect(),
    })
}

/// What sets a router apart, as sentences that begin with its name.
fn unequal(cell: &Cell) -> Vec<String> {
    let Ok(router) = cell.recipe.router.router() else { return Vec::new() };
    let (name, model) = (&cell.router, &cell.recipe.model);
    let asked = model.experts as usize;
    let (bank, active) = (router.bank(asked), router.active_experts(asked));
    let mut facts = Vec::new();
    if bank != asked {
        facts.push(format!("{name}: {bank} expert of width {}, no choice", model.active_hidden));
    } else if active != 2.0 {
        let hidden = model.expert_hidden(router.as_ref());
        facts.push(format!(
            "{name}: {active} of {asked} experts of width {hidden} per token, so that more parameters exist than with two narrower ones"
        ));
    }
    if !router.causal() {
        facts.push(format!(
            "{name}: not causal; a token's route depends on later tokens of its group, so its loss is not comparable with the others'"
        ));
    }
    if cell.recipe.residual.residual().is_ok_and(|residual| !residual.causal()) {
        facts.push(format!(
            "{name}: not causal; its residual mixes all tokens, so its loss is not comparable with the others'"
        ));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn facts(router: &str) -> Vec<String> {
        unequal(&Cell::new(&Recipe::default(), router, 0, Path::new("out")).unwrap())
    }

    #[test]
    fn what_sees_later_tokens_is_said_to() {
        assert_eq!(facts("smoe+momentum"), [""; 0]);
        let sharp = facts("smoe+sharpness-momentum");
        assert!(sharp[0].starts_with("smoe+sharpness-momentum: not causal; its residual"));
        assert!(facts("gshard")[0].contains("a token's route depends on later tokens"));
    }
}
