//! One short run, and everything that the gates look at.
//!
//! Axis letters: `n` tokens of a batch, `d` width.

use crate::cells::Cell;
use crate::inspect::write::Decisions;
use crate::recipe::Recipe;
use crate::run::{Prepared, prepare};
use anyhow::Result;
use moe_core::metrics::{Collapse, CollapseOptions, effective_rank};
use moe_core::routing_log::{LayerId, LogOptions, RoutingLog, Token};
use moe_core::stats::mean;
use moe_data::Split;
use moe_routers::convert::to_host;
use moe_train::Scored;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tch::Device;

const RECIPE: &str = include_str!("../../../../recipes/gate.toml");

/// What a short run measured.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ShortRun {
    /// Training loss of every step, then the validation loss.
    pub(super) losses: Vec<f64>,
    /// Routing measures by name.
    pub(super) quality: BTreeMap<String, f64>,
}

impl ShortRun {
    /// Trains `router`, looking at its routing halfway and at the end.
    pub(super) fn of(router: &str, seed: u64) -> Result<Self> {
        let base = Recipe::parse(RECIPE, &[])?;
        let recipe = Cell::new(&base, router, seed, Path::new("."))?.recipe;
        let mut prepared = prepare(&recipe, Device::Cpu, &Arc::default())?;
        let mut probe = Probe::new(recipe.model.experts as usize);
        let mut losses = Vec::new();
        for step in 1..=recipe.train.steps {
            losses.push(prepared.trainer_mut().train_step()?.loss);
            if step == recipe.train.steps / 2 {
                probe.look(&prepared)?;
            }
        }
        losses.push(probe.look(&prepared)?);
        Ok(Self { losses, quality: probe.quality() })
    }
}

/// What is seen on the probe set, the first validation batches.
struct Probe {
    log: RoutingLog,
    gate_entropy: f64,
    collapse: Vec<f64>,
    rank: Vec<f64>,
}

impl Probe {
    fn new(experts: usize) -> Self {
        let options = LogOptions { experts: Some(experts), ..LogOptions::default() };
        let log = RoutingLog::new(options);
        Self { log, gate_entropy: 0.0, collapse: Vec::new(), rank: Vec::new() }
    }

    /// Evaluates and takes note; the validation loss comes back. Collapse is that of the last look.
    fn look(&mut self, prepared: &Prepared) -> Result<f64> {
        (self.collapse, self.rank) = Default::default();
        let step = prepared.steps_taken();
        let batches = Some(prepared.recipe().train.eval_batches);
        let state = RefCell::new((&mut *self, 0, Ok(())));
        let line = prepared.watch(Split::Valid, batches, &|scored| {
            let (probe, first, outcome) = &mut *state.borrow_mut();
            if outcome.is_ok() {
                *outcome = probe.take(step, *first, scored);
            }
            *first += scored.count as u64;
        })?;
        state.into_inner().2?;
        let layers = &line.report.layers;
        self.gate_entropy = mean(&layers.iter().map(|l| l.gate_entropy).collect::<Vec<_>>());
        Ok(line.report.loss)
    }

    fn take(&mut self, step: u64, first: u64, scored: &Scored) -> Result<()> {
        for trace in &scored.traces {
            let layer = LayerId::new("", trace.layer as u64);
            let input_gtd = trace.input_gtd.as_ref().expect("an evaluation keeps it");
            let x_nd = to_host(&input_gtd.flatten(0, 1));
            self.rank.push(effective_rank(x_nd.view())?);
            let Some(decisions) = Decisions::of(&trace.routing) else { continue };
            let mut label_n = Vec::new();
            for (row, expert_k) in decisions.experts.iter().enumerate() {
                let token = Token {
                    weight_k: Some(&decisions.weights[row]),
                    kept_k: Some(&decisions.kept[row]),
                    ..Token::chose(first + row as u64, expert_k)
                };
                self.log.add(step, &layer, &token)?;
                // Tokens that nobody read are a class of their own.
                label_n.push(expert_k.first().copied().unwrap_or(usize::MAX));
            }
            let options = CollapseOptions::default();
            self.collapse.push(Collapse::of(x_nd.view(), &label_n, &options)?.rc);
        }
        Ok(())
    }

    fn quality(self) -> BTreeMap<String, f64> {
        let mut quality = BTreeMap::from([
            ("gate_entropy".to_owned(), self.gate_entropy),
            ("effective_rank".to_owned(), mean(&self.rank)),
        ]);
        if !self.collapse.is_empty() {
            quality.insert("representation_collapse".to_owned(), mean(&self.collapse));
        }
        // A router that mixes all tokens decides nothing: it has no load to look at.
        if let Ok(report) = self.log.finish() {
            let totals = report.totals;
            let measures = [
                ("load_imbalance", totals.load_imbalance),
                ("load_entropy", totals.load_entropy),
                ("dead_expert_proportion", Some(totals.dead_expert_proportion)),
                ("fraction_tokens_left_behind", Some(totals.fraction_tokens_left_behind)),
                ("router_confidence", totals.router_confidence),
                ("routing_fluctuation", totals.routing_fluctuation),
                ("cross_layer_instability", totals.cross_layer_instability),
            ];
            let known = measures.into_iter().filter_map(|(name, v)| Some((name.to_owned(), v?)));
            quality.extend(known);
        }
        quality
    }
}
