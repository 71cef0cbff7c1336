//! A routing log of our own: every decision of an evaluation, one line per batch and layer.
//!
//! Axis letters: `t` tokens (of all groups of a batch), `b` images, `k` choices, `e` experts, `n` routed rows.

use super::line::FORMAT;
use crate::error::Misuse;
use crate::log::EvalLine;
use crate::run::Prepared;
use crate::subject::Subject;
use anyhow::{Context, Result};
use moe_data::Split;
use moe_routers::convert::{to_host_i64, to_host1};
use moe_routers::{Chosen, Routing, TensorPlan};
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
    /// Of a layer behind a merging of tokens: its tokens are none of those before.
    #[serde(skip_serializing_if = "Option::is_none")]
    block: Option<String>,
    token: u64,
    #[serde(skip_serializing_if = "<[i64]>::is_empty")]
    input: &'a [i64],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    label: Vec<i64>,
    experts: Vec<Vec<usize>>,
    weights: Vec<Vec<f64>>,
    kept: Vec<Vec<bool>>,
}

/// The writer, between batches.
struct Writer {
    file: BufWriter<File>,
    step: u64,
    first: u64,
    known: std::vec::IntoIter<Known>,
}

/// What is known of a batch before a router sees it.
#[derive(Debug, Default)]
struct Known {
    /// Vocabulary ids, `[t]`; empty for images.
    input_t: Vec<i64>,
    /// Classes of the images, `[b]`; empty for text.
    label_b: Vec<i64>,
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
    let known = known(prepared, split, batches.unwrap_or(usize::MAX))?.into_iter();
    let context = || format!("cannot write {}", path.display());
    let mut file = BufWriter::new(File::create(path).with_context(context)?);
    let header = json!({ "format": FORMAT, "num_experts": recipe.model.experts });
    writeln!(file, "{header}").with_context(context)?;
    let step = prepared.steps_taken();
    let state = RefCell::new((Writer { file, step, first: 0, known }, Ok(())));
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

/// What is known of the first `batches` batches of a split.
fn known(prepared: &Prepared, split: Split, batches: usize) -> Result<Vec<Known>> {
    let recipe = prepared.recipe();
    let (batch, sequence) = (recipe.train.batch, recipe.train.sequence);
    match prepared.subject() {
        // A model with a memory reads its texts side by side, not in these windows.
        Subject::Text(_) if recipe.model.span.is_some() => Ok(Vec::new()),
        Subject::Text(text) => {
            let windows = text.eval_batches(split, batch, sequence)?.take(batches);
            let input = windows.map(|batch| batch.x_bt.iter().copied().collect());
            Ok(input.map(|input_t| Known { input_t, ..Known::default() }).collect())
        }
        Subject::Images(images, _) => {
            let labels = images.eval_batches(split, batch)?.take(batches);
            let labels = labels.map(|batch| batch.label_b.to_vec());
            Ok(labels.map(|label_b| Known { label_b, ..Known::default() }).collect())
        }
        Subject::Drawings(..) | Subject::Labelled(_) | Subject::Masked(..) => {
            let message = "--routing-log: knows language models and classifiers of images";
            Err(Misuse::new(message).into())
        }
    }
}

/// The class of the image that each of `tokens` tokens is a part of, `[t]`; images follow one another.
fn labels(label_b: &[i64], tokens: usize) -> Vec<i64> {
    let of_image = tokens / label_b.len().max(1);
    label_b.iter().flat_map(|label| std::iter::repeat_n(*label, of_image)).collect()
}

impl Writer {
    fn batch(&mut self, scored: &Scored) -> Result<()> {
        let Known { input_t, label_b } = self.known.next().unwrap_or_default();
        // Tokens of the first sparse layer, and of this one: a hierarchy merges tokens on the way.
        let mut most = None;
        for trace in &scored.traces {
            let Some(Decisions { experts, weights, kept }) = Decisions::of(&trace.routing) else {
                let message = "--routing-log: this router mixes all tokens for every expert; it \
                               decides nothing that could be logged";
                return Err(Misuse::new(message).into());
            };
            let (step, layer, token) = (self.step, trace.layer, self.first);
            let tokens = experts.len();
            let block = (*most.get_or_insert(tokens) != tokens).then(|| format!("{tokens}-tokens"));
            let (input, label) = (input_t.as_slice(), labels(&label_b, tokens));
            let line =
                BatchLine { step, layer, block, token, input, label, experts, weights, kept };
            serde_json::to_writer(&mut self.file, &line)?;
            self.file.write_all(b"\n")?;
        }
        self.first += most.unwrap_or(scored.count) as u64;
        Ok(())
    }
}

/// What was decided about every token of a batch, over all groups: `[t][k]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Decisions {
    /// The chosen experts, best first; of what experts chose, the heaviest first.
    pub experts: Vec<Vec<usize>>,
    /// Their combine weights.
    pub weights: Vec<Vec<f64>>,
    /// Which choices found room.
    pub kept: Vec<Vec<bool>>,
}

impl Decisions {
    /// The decisions of a layer; `None` where every expert reads mixtures of all tokens.
    pub fn of(routing: &Routing) -> Option<Self> {
        match (&routing.chosen, &routing.plan) {
            (Some(chosen), _) => Some(Self::of_choices(chosen)),
            (None, TensorPlan::Sparse(rows)) => Some(Self::of_rows(
                (rows.groups * rows.tokens) as usize,
                (&to_host_i64(&rows.token_n), &to_host_i64(&rows.load_e)),
                &to_host1(&rows.weight_n).to_vec(),
            )),
            (None, TensorPlan::Soft(_)) => None,
        }
    }

    /// Adds the tokens of a later batch.
    pub fn append(&mut self, later: Self) {
        self.experts.extend(later.experts);
        self.weights.extend(later.weights);
        self.kept.extend(later.kept);
    }

    /// What tokens chose, and which choices found room.
    fn of_choices(chosen: &Chosen) -> Self {
        let choices = &chosen.choices;
        let k = choices.expert_gtk.size()[2] as usize;
        let (slots, order) = chosen.room;
        let place_n = to_host_i64(&choices.positions(chosen.experts, order));
        let room = slots.map_or(i64::MAX, |slots| slots as i64);
        let kept: Vec<bool> = place_n.iter().map(|place| (0..room).contains(place)).collect();
        let expert_n: Vec<usize> =
            to_host_i64(&choices.expert_gtk).into_iter().map(|e| e as usize).collect();
        Self {
            experts: rows(&expert_n, k),
            weights: rows(&to_host1(&choices.gate_gtk.flatten(0, -1)).to_vec(), k),
            kept: rows(&kept, k),
        }
    }

    /// Where experts choose: the experts that read each token, the heaviest first.
    fn of_rows(tokens: usize, (token_n, load_e): (&[i64], &[i64]), weight_n: &[f64]) -> Self {
        let expert_n =
            (0usize..).zip(load_e).flat_map(|(e, &n)| std::iter::repeat_n(e, n as usize));
        let mut read_t: Vec<Vec<(usize, f64)>> = vec![Vec::new(); tokens];
        for ((&token, &weight), expert) in token_n.iter().zip(weight_n).zip(expert_n) {
            read_t[token as usize].push((expert, weight));
        }
        read_t.iter_mut().for_each(|read| read.sort_by(|a, b| b.1.total_cmp(&a.1)));
        Self {
            experts: read_t.iter().map(|read| read.iter().map(|(e, _)| *e).collect()).collect(),
            weights: read_t.iter().map(|read| read.iter().map(|(_, w)| *w).collect()).collect(),
            kept: read_t.iter().map(|read| vec![true; read.len()]).collect(),
        }
    }
}

fn rows<T: Clone>(values: &[T], k: usize) -> Vec<Vec<T>> {
    values.chunks(k).map(<[T]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two images of three tokens.
    #[test]
    fn tokens_have_the_class_of_their_image() {
        assert_eq!(labels(&[7, 2], 6), [7, 7, 7, 2, 2, 2]);
        assert_eq!(labels(&[], 6), [0; 0]);
    }

    /// Expert 0 reads tokens 2 and 0, expert 1 token 2: token 1 is left behind.
    #[test]
    fn rows_become_decisions() {
        let found = Decisions::of_rows(3, (&[2, 0, 2], &[2, 1]), &[0.25, 1.0, 0.5]);
        assert_eq!(found.experts, [vec![0], vec![], vec![1, 0]]);
        assert_eq!(found.weights, [vec![1.0], vec![], vec![0.5, 0.25]]);
        assert_eq!(found.kept, [vec![true], vec![], vec![true, true]]);
    }
}
