//! Results as the report shows them: routers in the order of the table, each with its runs and its
//! look.

use crate::probe::RoutingMetrics;
use crate::results::{Metrics, Results, RouterSummary, Row};
use crate::summary::{DENSE, is_control, ranked};

use super::curve::{Point, over_seeds};
use super::palette::{Look, assign, stands_out};
use super::scale::plottable;

/// All that the sections of the report are made from.
pub(super) struct View<'a> {
    pub(super) results: &'a Results,
    /// Lowest mean validation loss first.
    pub(super) entries: Vec<Entry<'a>>,
}

/// One router.
pub(super) struct Entry<'a> {
    pub(super) summary: &'a RouterSummary,
    /// Finished runs.
    pub(super) runs: Vec<Run<'a>>,
    pub(super) look: &'static Look,
}

/// One finished run.
pub(super) struct Run<'a> {
    pub(super) seed: u64,
    pub(super) metrics: &'a Metrics,
}

impl<'a> View<'a> {
    /// Brings rows and summaries together.
    pub(super) fn new(results: &'a Results) -> Self {
        let order = ranked(results);
        let looks = assign(order.iter().map(|summary| summary.router.as_str()));
        let entries = order.into_iter().zip(looks);
        let entries = entries.map(|(summary, look)| Entry {
            summary,
            runs: runs(results, &summary.router),
            look,
        });
        Self { results, entries: entries.collect() }
    }

    /// The control without routing.
    pub(super) fn dense(&self) -> Option<&Entry<'a>> {
        self.entries.iter().find(|entry| entry.name() == DENSE && !entry.runs.is_empty())
    }

    /// The loss under the unigram model, if it can be drawn.
    pub(super) fn unigram(&self) -> Option<f64> {
        Some(self.results.terms.unigram_loss).filter(|loss| plottable(*loss) && *loss > 0.0)
    }

    /// Runs without metrics.
    pub(super) fn failures(&self) -> impl Iterator<Item = &'a Row> {
        self.results.rows.iter().filter(|row| row.metrics.is_none())
    }
}

impl<'a> Entry<'a> {
    pub(super) fn name(&self) -> &'a str {
        &self.summary.router
    }

    pub(super) fn is_control(&self) -> bool {
        is_control(self.name())
    }

    /// Whether the charts give it a hue of its own.
    pub(super) fn stands_out(&self) -> bool {
        stands_out(self.look)
    }

    /// Mean of a measure that can be drawn.
    pub(super) fn mean(&self, measure: &str) -> Option<f64> {
        crate::summary::mean(self.summary, measure).filter(|mean| plottable(*mean))
    }

    /// Validation loss of each finished seed that has one that can be drawn.
    pub(super) fn seed_losses(&self) -> impl Iterator<Item = (u64, f64)> {
        let losses = self.runs.iter().map(|run| (run.seed, run.metrics.valid_loss));
        losses.filter(|(_, loss)| plottable(*loss))
    }

    /// Validation loss over steps, seeds brought together.
    pub(super) fn valid_curve(&self) -> Vec<Point> {
        over_seeds(
            &self.runs.iter().map(|run| run.metrics.valid_curve.as_slice()).collect::<Vec<_>>(),
        )
    }

    /// A routing measure over steps, seeds brought together.
    pub(super) fn routing_curve(&self, curve: fn(&RoutingMetrics) -> &[(u64, f64)]) -> Vec<Point> {
        let routing = self.runs.iter().filter_map(|run| run.metrics.routing.as_ref());
        over_seeds(&routing.map(curve).collect::<Vec<_>>())
    }

    /// Training loss over steps, seeds brought together.
    pub(super) fn train_curve(&self) -> Vec<Point> {
        over_seeds(
            &self.runs.iter().map(|run| run.metrics.train_curve.as_slice()).collect::<Vec<_>>(),
        )
    }
}

fn runs<'a>(results: &'a Results, router: &str) -> Vec<Run<'a>> {
    let rows = results.rows.iter().filter(|row| row.router == router);
    rows.filter_map(|row| Some(Run { seed: row.seed, metrics: row.metrics.as_ref()? })).collect()
}
