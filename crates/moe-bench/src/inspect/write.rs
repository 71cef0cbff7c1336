//! A routing log of our own: every decision of an evaluation, one line per batch and layer.
//!
//! Axis letters: `t` tokens (of all groups of a batch), `k` choices, `e` experts, `n` routed rows.

use super::line::FORMAT;
use crate::error::Misuse;
use crate::log::EvalLine;
use crate::run::Prepared;
use anyhow::{Context, Result};
use moe_data::Split;
use moe_routers::convert::{to_host_i64, to_host1};
use moe_routers::{Chosen, TensorPlan};
use moe_train::Scored;
use serde::Serialize;
use serde_json::json;
use std::cell::RefCell;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// One line: the decisions of one layer about one batch.
#[derive(Debug, Serialize)]
struct BatchLine<'a> {
    step: u64,
    layer: usize,
    token: u64,
    input: &'a [i64],
    experts: Vec<Vec<i64>>,
    weights: Vec<Vec<f64>>,
    kept: Vec<Vec<bool>>,
}

/// The writer, between batches.
struct Writer {
    file: BufWriter<File>,
    step: u64,
    first: u64,
    inputs: std::vec::IntoIter<Vec<i64>>,
}

/// Evaluates and writes every decision to `path`.
///
/// # Errors
/// As [`Prepared::evaluate`]; a file that cannot be written; a router that mixes all tokens.
pub fn decisions(
    prepared: &Prepared,
    (split, batches): (Split, Option<usize>),
    path: &Path,
) -> Result<EvalLine> {
    let recipe = prepared.recipe();
    let (batch, sequence) = (recipe.train.batch, recipe.train.sequence);
    let inputs = prepared.data().eval_batches(split, batch, sequence)?;
    let inputs: Vec<Vec<i64>> = inputs
        .take(batches.unwrap_or(usize::MAX))
        .map(|batch| batch.x_bt.iter().copied().collect())
        .collect();
    let context = || format!("cannot write {}", path.display());
    let mut file = BufWriter::new(File::create(path).with_context(context)?);
    let header = json!({ "format": FORMAT, "num_experts": recipe.model.experts });
    writeln!(file, "{header}").with_context(context)?;
    let step = prepared.steps_taken();
    let state = RefCell::new((Writer { file, step, first: 0, inputs: inputs.into_iter() }, Ok(())));
    let line = prepared.watch(split, batches, &|scored| {
        let (writer, outcome) = &mut *state.borrow_mut();
        if outcome.is_ok() {
            *outcome = writer.batch(scored);
        }
    })?;
    let (mut writer, outcome) = state.into_inner();
    outcome?;
    writer.file.flush().with_context(context)?;
    Ok(line)
}

impl Writer {
    fn batch(&mut self, scored: &Scored) -> Result<()> {
        let input = self.inputs.next().unwrap_or_default();
        for trace in &scored.traces {
            let (experts, weights, kept) = match (&trace.routing.chosen, &trace.routing.plan) {
                (Some(chosen), _) => of_choices(chosen),
                (None, TensorPlan::Sparse(rows)) => of_rows(
                    input.len(),
                    (&to_host_i64(&rows.token_n), &to_host_i64(&rows.load_e)),
                    &to_host1(&rows.weight_n).to_vec(),
                ),
                (None, TensorPlan::Soft(_)) => {
                    let message = "--routing-log: this router mixes all tokens for every expert; it \
                                   decides nothing that could be logged";
                    return Err(Misuse::new(message).into());
                }
            };
            let (step, layer, token) = (self.step, trace.layer, self.first);
            let line = BatchLine { step, layer, token, input: &input, experts, weights, kept };
            serde_json::to_writer(&mut self.file, &line)?;
            self.file.write_all(b"\n")?;
        }
        self.first += input.len() as u64;
        Ok(())
    }
}

type Decisions = (Vec<Vec<i64>>, Vec<Vec<f64>>, Vec<Vec<bool>>);

/// What tokens chose, and which choices found room.
fn of_choices(chosen: &Chosen) -> Decisions {
    let choices = &chosen.choices;
    let k = choices.expert_gtk.size()[2] as usize;
    let (slots, order) = chosen.room;
    let place_n = to_host_i64(&choices.positions(chosen.experts, order));
    let room = slots.map_or(i64::MAX, |slots| slots as i64);
    let kept: Vec<bool> = place_n.iter().map(|place| (0..room).contains(place)).collect();
    (
        rows(&to_host_i64(&choices.expert_gtk), k),
        rows(&to_host1(&choices.gate_gtk.flatten(0, -1)).to_vec(), k),
        rows(&kept, k),
    )
}

fn rows<T: Clone>(values: &[T], k: usize) -> Vec<Vec<T>> {
    values.chunks(k).map(<[T]>::to_vec).collect()
}

/// Where experts choose: the experts that read each token, the heaviest first.
fn of_rows(tokens: usize, (token_n, load_e): (&[i64], &[i64]), weight_n: &[f64]) -> Decisions {
    let expert_n = (0i64..).zip(load_e).flat_map(|(e, &n)| std::iter::repeat_n(e, n as usize));
    let mut read_t: Vec<Vec<(i64, f64)>> = vec![Vec::new(); tokens];
    for ((&token, &weight), expert) in token_n.iter().zip(weight_n).zip(expert_n) {
        read_t[token as usize].push((expert, weight));
    }
    read_t.iter_mut().for_each(|read| read.sort_by(|a, b| b.1.total_cmp(&a.1)));
    let experts = read_t.iter().map(|read| read.iter().map(|(e, _)| *e).collect()).collect();
    let weights = read_t.iter().map(|read| read.iter().map(|(_, w)| *w).collect()).collect();
    let kept = read_t.iter().map(|read| vec![true; read.len()]).collect();
    (experts, weights, kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expert 0 reads tokens 2 and 0, expert 1 token 2: token 1 is left behind.
    #[test]
    fn rows_become_decisions() {
        let (experts, weights, kept) = of_rows(3, (&[2, 0, 2], &[2, 1]), &[0.25, 1.0, 0.5]);
        assert_eq!(experts, [vec![0], vec![], vec![1, 0]]);
        assert_eq!(weights, [vec![1.0], vec![], vec![0.5, 0.25]]);
        assert_eq!(kept, [vec![true], vec![], vec![true, true]]);
    }
}
