//! Evaluation with the routes of every token, and which of them flip.
//!
//! Axis letters: `l` sparse layers, `t` tokens, `k` choices, `b` images, `v` classes.

use super::{Clean, Row, Score};
use crate::inspect::write::Decisions;
use crate::log::EvalLine;
use crate::run::Prepared;
use crate::subject::Subject;
use anyhow::Result;
use moe_core::metrics::RouteFlips;
use moe_data::Split;
use moe_models::LayerTrace;
use std::cell::RefCell;
use tch::Tensor;

/// The experts of every token in every layer, in the order in which an evaluation reads them.
#[derive(Debug, Default)]
pub(super) struct Routes {
    expert_ltk: Vec<Vec<Vec<usize>>>,
    /// Whether a layer mixes all tokens for every expert: then there is nothing to flip.
    mixes: bool,
}

impl Routes {
    /// The routes of a batch after those before.
    pub(super) fn add(&mut self, traces: &[LayerTrace]) {
        self.expert_ltk.resize(traces.len(), Vec::new());
        for (layer, trace) in traces.iter().enumerate() {
            match Decisions::of(&trace.routing) {
                Some(decisions) => self.expert_ltk[layer].extend(decisions.experts),
                None => self.mixes = true,
            }
        }
    }

    /// Tokens of a layer.
    pub(super) fn tokens(&self) -> usize {
        self.expert_ltk.first().map_or(0, Vec::len)
    }

    /// Flips between clean and damaged routes of the pairs of tokens, `[l]`; later layers may have fewer.
    pub(super) fn flips(&self, damaged: &Self, pair_t: &[(usize, usize)]) -> Vec<RouteFlips> {
        if self.mixes || damaged.mixes {
            return Vec::new();
        }
        let layers = self.expert_ltk.iter().zip(&damaged.expert_ltk);
        let count = |(clean_tk, damaged_tk): (&Vec<Vec<usize>>, &Vec<Vec<usize>>)| {
            let mut flips = RouteFlips::default();
            let both = pair_t.iter().filter_map(|&(i, j)| clean_tk.get(i).zip(damaged_tk.get(j)));
            both.for_each(|(clean_k, damaged_k)| flips.add(clean_k, damaged_k));
            flips
        };
        layers.map(count).collect()
    }

    /// Every token with the one at its place.
    pub(super) fn in_place(&self, damaged: &Self) -> Vec<(usize, usize)> {
        (0..self.tokens().min(damaged.tokens())).map(|t| (t, t)).collect()
    }
}

impl Row {
    /// With what flipped.
    pub(super) fn new(
        (attack, level): (&str, f64),
        score: Score,
        flips_l: &[RouteFlips],
        aligned: &str,
    ) -> Self {
        Self {
            attack: attack.into(),
            level,
            score,
            clean: None,
            changed: None,
            flip_rate_l: flips_l.iter().filter_map(RouteFlips::rate).collect(),
            iou_l: flips_l.iter().filter_map(RouteFlips::iou).collect(),
            compared: flips_l.first().map_or(0, RouteFlips::compared),
            aligned: aligned.into(),
        }
    }
}

/// Evaluates a model, and keeps its routes.
pub(super) fn evaluate(prepared: &Prepared, part: (Split, Option<usize>)) -> Result<Clean> {
    evaluate_seeing(prepared, part, &|_| ())
}

/// The same; `see` gets the logits of every batch of images, `[b, v]`.
pub(super) fn evaluate_seeing(
    prepared: &Prepared,
    (split, batches): (Split, Option<usize>),
    see: &dyn Fn(&Tensor),
) -> Result<Clean> {
    let routes = RefCell::new(Routes::default());
    let line = prepared.watch(split, batches, &|scored| {
        routes.borrow_mut().add(&scored.traces);
        scored.logits_bv.iter().for_each(see);
    })?;
    Ok(Clean { score: score(&line, prepared.subject()), routes: routes.into_inner() })
}

fn score(line: &EvalLine, subject: &Subject) -> Score {
    let report = &line.report;
    Score {
        loss: report.loss,
        perplexity: matches!(subject, Subject::Text(_)).then(|| report.loss.exp()),
        accuracy: report.measures.get("accuracy").copied(),
        targets: report.tokens,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(expert_tk: &[&[usize]]) -> Routes {
        Routes { expert_ltk: vec![expert_tk.iter().map(|k| k.to_vec()).collect()], mixes: false }
    }

    #[test]
    fn flips_of_pairs_by_hand() {
        let (clean, damaged) = (routes(&[&[0], &[1], &[2]]), routes(&[&[0], &[9], &[1], &[2]]));
        let moved = clean.flips(&damaged, &[(0, 0), (1, 2), (2, 3)]);
        assert_eq!(moved[0].rate(), Some(0.0));
        let in_place = clean.in_place(&damaged);
        assert_eq!(in_place, [(0, 0), (1, 1), (2, 2)]);
        assert_eq!(clean.flips(&damaged, &in_place)[0].rate(), Some(2.0 / 3.0));
        // A second layer, behind a merging, has one token.
        let merged = |expert: usize| {
            let mut routes = routes(&[&[0], &[1], &[2]]);
            routes.expert_ltk.push(vec![vec![expert]]);
            routes
        };
        let flips = merged(3).flips(&merged(4), &merged(3).in_place(&merged(4)));
        assert_eq!((flips[1].compared(), flips[1].rate()), (1, Some(1.0)));
        let mixed = Routes { mixes: true, ..routes(&[]) };
        assert!(clean.flips(&mixed, &[]).is_empty());
    }
}
