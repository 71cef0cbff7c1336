//! A look at the probe set while an evaluation runs, and what is made of it afterwards.
//!
//! Axis letters: `g` groups, `t` tokens, `l` sparse layers, `n` samples, `d` width.

use super::{BATCHES, LayerProbe, Map, Neighbours, Routes, layer};
use crate::inspect::write::Decisions;
use crate::tsne::{SEED, Tsne};
use anyhow::Result;
use moe_core::metrics::PrincipalPlane;
use moe_core::routing_log::{LayerId, LayerMeasures, LogOptions, RoutingLog, Token};
use moe_routers::convert::to_host;
use moe_train::Scored;
use ndarray::{Array2, ArrayView2};
use tch::Tensor;

/// Tokens whose vectors are looked at: enough for ranks of some hundreds, and quick.
pub(super) const SAMPLES: usize = 1024;
/// Tokens on a map.
const MAP_POINTS: usize = 400;
/// Iterations of t-SNE, half of which exaggerate; enough for that many tokens.
const ITERATIONS: usize = 500;

/// What one sparse layer did with the probe tokens.
#[derive(Default)]
pub(super) struct Seen {
    /// Absent where the router mixes all tokens, or has one expert only.
    pub(super) decisions: Option<Decisions>,
    /// Experts of the layer, idle ones included.
    experts: usize,
    input: Vec<Tensor>,
    output: Vec<Tensor>,
}

/// All layers, as far as batches were seen.
pub(super) struct Look {
    batches: usize,
    label_bt: Vec<Vec<usize>>,
    pub(super) seen: Vec<Seen>,
}

impl Look {
    /// Nothing seen yet; `label_bt` are the tokens' classes by batch.
    pub(super) fn new(label_bt: Vec<Vec<usize>>) -> Self {
        Self { batches: 0, label_bt, seen: Vec::new() }
    }

    /// Takes note of a batch, unless it is none of the probe set.
    pub(super) fn take(&mut self, scored: &Scored) {
        if self.batches == BATCHES {
            return;
        }
        self.batches += 1;
        self.seen.resize_with(scored.traces.len(), Seen::default);
        for (trace, seen) in scored.traces.iter().zip(&mut self.seen) {
            let flat = |x_gtd: &Option<Tensor>| x_gtd.as_ref().map(|x_gtd| x_gtd.flatten(0, 1));
            seen.experts = trace.routing.plan.load_e().numel();
            seen.input.extend(flat(&trace.input_gtd));
            seen.output.extend(flat(&trace.output_gtd));
            // A single expert leaves nothing to decide.
            let decisions = Decisions::of(&trace.routing).filter(|_| seen.experts > 1);
            match (decisions, &mut seen.decisions) {
                (Some(new), Some(known)) => known.append(new),
                (new, known) => *known = new,
            }
        }
    }

    /// Tokens of the probe set in the first sparse layer.
    pub(super) fn tokens(&self) -> usize {
        self.seen.first().map_or(0, Seen::tokens)
    }

    /// The experts of every token.
    pub(super) fn routes(&self) -> Routes {
        let of = |seen: &Seen| seen.decisions.as_ref().map(|d| d.experts.clone());
        Routes { expert_ltk: self.seen.iter().map(|seen| of(seen).unwrap_or_default()).collect() }
    }

    /// The measures of every layer; `end` allows what takes long.
    pub(super) fn layers(&self, earlier: Option<&Routes>, end: bool) -> Result<Vec<LayerProbe>> {
        let now = self.measures()?;
        let change = earlier.map(|earlier| self.change(earlier)).transpose()?.unwrap_or_default();
        let find = |all: &[LayerMeasures], index: usize| {
            all.iter().find(|layer| layer.layer == self.layer(index).to_string()).cloned()
        };
        let of = |(index, seen): (usize, &Seen)| {
            let routed = layer::routed(find(&now, index).as_ref(), find(&change, index).as_ref());
            layer::spread(routed, seen, end)
        };
        Ok(self.seen.iter().enumerate().map(of).collect())
    }

    /// The measures of the present decisions; nothing where there are none.
    fn measures(&self) -> Result<Vec<LayerMeasures>> {
        let mut log = self.log();
        for (index, decisions) in self.decided() {
            let layer = self.layer(index);
            let label_t = self.label_t(decisions.experts.len());
            for (row, expert_k) in decisions.experts.iter().enumerate() {
                let token = Token {
                    weight_k: Some(&decisions.weights[row]),
                    kept_k: Some(&decisions.kept[row]),
                    label: label_t.get(row).map(String::as_str),
                    ..Token::chose(row as u64, expert_k)
                };
                log.add(0, &layer, &token)?;
            }
        }
        // A model whose routers all mix decides nothing.
        Ok(log.finish().map(|report| report.layers).unwrap_or_default())
    }

    /// The same tokens then and now.
    fn change(&self, earlier: &Routes) -> Result<Vec<LayerMeasures>> {
        let mut log = self.log();
        let now = self.routes();
        for (step, routes) in [(0, earlier), (1, &now)] {
            for (index, expert_tk) in routes.expert_ltk.iter().enumerate() {
                for (row, expert_k) in expert_tk.iter().enumerate() {
                    log.add(step, &self.layer(index), &Token::chose(row as u64, expert_k))?;
                }
            }
        }
        Ok(log.finish().map(|report| report.layers).unwrap_or_default())
    }

    /// A layer by its number; one behind a merging of tokens in a block of its own, because its tokens are
    /// none of those before.
    fn layer(&self, index: usize) -> LayerId {
        let tokens = self.seen.get(index).map_or(0, Seen::tokens);
        let block =
            if tokens == self.tokens() { String::new() } else { format!("{tokens}-tokens") };
        LayerId::new(&block, index as u64)
    }

    fn log(&self) -> RoutingLog {
        let experts = self.seen.iter().map(|seen| seen.experts).max();
        let tokens = self.tokens();
        RoutingLog::new(LogOptions { experts, memory: tokens, labels: tokens.max(1) })
    }

    fn decided(&self) -> impl Iterator<Item = (usize, &Decisions)> {
        let layers = self.seen.iter().enumerate();
        layers.filter_map(|(index, seen)| Some((index, seen.decisions.as_ref()?)))
    }

    /// The class of every one of a layer's `tokens`; an image's is that of all its tokens.
    fn label_t(&self, tokens: usize) -> Vec<String> {
        let labels: Vec<usize> =
            self.label_bt.iter().take(self.batches).flatten().copied().collect();
        let known = labels.len();
        if known == 0 || !tokens.is_multiple_of(known) {
            return Vec::new();
        }
        let each = tokens / known;
        labels.iter().flat_map(|label| std::iter::repeat_n(label.to_string(), each)).collect()
    }

    /// The map of the last sparse layer whose router decides.
    pub(super) fn map(&self) -> Option<Map> {
        let (layer, decisions) = self.decided().last()?;
        let x_nd = self.seen[layer].inputs(MAP_POINTS)?;
        let plane = PrincipalPlane::of(x_nd.view()).ok()?;
        let points = plane.xy_n2.outer_iter().zip(&decisions.experts);
        let points = points.map(|(xy, e)| (round(xy[0]), round(xy[1]), e.first().copied()));
        let (explained, points) = (plane.explained, points.collect());
        Some(Map { layer, explained, points, tsne: neighbours(x_nd.view()) })
    }
}

/// Four decimals: what a picture can show.
fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// The tokens by their neighbours; nothing for too few.
fn neighbours(x_nd: ArrayView2<'_, f64>) -> Option<Neighbours> {
    let Tsne { perplexity, xy } = Tsne::of(x_nd, ITERATIONS, &|| ()).ok()?;
    let xy: Vec<_> = xy.into_iter().map(|[x, y]| (round(x), round(y))).collect();
    let finite = xy.iter().all(|(x, y)| x.is_finite() && y.is_finite());
    finite.then_some(Neighbours { perplexity, iterations: ITERATIONS, seed: SEED, xy })
}

impl Seen {
    /// Tokens that the layer saw.
    fn tokens(&self) -> usize {
        self.input.iter().map(|x_nd| x_nd.size()[0] as usize).sum()
    }

    /// What the router read of the first tokens, at most `most` of them.
    pub(super) fn inputs(&self, most: usize) -> Option<Array2<f64>> {
        host(&self.input, most)
    }

    /// What the layer made of them.
    pub(super) fn outputs(&self, most: usize) -> Option<Array2<f64>> {
        host(&self.output, most)
    }

    /// The same as [`Self::inputs`] where the model is.
    pub(super) fn input_nd(&self, most: usize) -> Option<Tensor> {
        first(&self.input, most)
    }
}

fn first(parts: &[Tensor], most: usize) -> Option<Tensor> {
    let all_nd = (!parts.is_empty()).then(|| Tensor::cat(parts, 0))?;
    Some(all_nd.narrow(0, 0, all_nd.size()[0].min(most as i64)))
}

fn host(parts: &[Tensor], most: usize) -> Option<Array2<f64>> {
    first(parts, most).map(|x_nd| to_host(&x_nd))
}
