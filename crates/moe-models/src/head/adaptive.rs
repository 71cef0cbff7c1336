//! The adaptive softmax of large vocabularies (Grave et al., *Efficient softmax approximation for GPUs*,
//! ICML 2017, arXiv 1609.04309), and the adaptive embedding that shares its weights (Baevski and Auli 2019,
//! arXiv 1809.10853).
//!
//! ```text
//! ids, most frequent first, are cut at c_1 < ... < c_K into a head and K tails, tail i of width d / q^i
//! head:  h = [W_0; C] x           W_0 [c_1, d] the head's words, C [K, d] a score for every tail
//! tail:  s_i = W_i (P_i x)        W_i [n_i, d / q^i],  P_i [d / q^i, d]
//! p(w) = softmax(h)_w                                  for a word of the head
//! p(w) = softmax(h)_{c_1 + i - 1} softmax(s_i)_{w - c_i}  for a word of tail i
//! embedding of a word of tail i, where weights are tied:  W_i[w - c_i] P_i
//! ```
//!
//! This is an exact distribution, of another form than a full softmax. Only the tails that a batch's
//! targets fall into are computed, each on its tokens alone. `q` is 4, as in the language models that
//! take these papers for their backbone.
//!
//! Axis letters: `n` tokens, `d` width, `v` ids, `r` ids of a cluster, `i` width of a cluster, `k` tails.

use super::cross_entropy;
use crate::lm::ModelError;
use crate::precision::Precision;
use moe_routers::Params;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// The output layer of a vocabulary too large for one softmax; ids go from the most frequent to the
/// rarest, as those of words do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SoftmaxConfig {
    /// First id of every tail, rising: `[20000, 40000, 200000]` for the 267,735 words of WikiText-103.
    pub adaptive: Vec<i64>,
    /// Every tail is this many times narrower than the cluster before it.
    #[serde(default = "four")]
    pub div_value: i64,
}

fn four() -> i64 {
    4
}

impl SoftmaxConfig {
    /// Refuses clusters that are none; `width` is the model's.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn check(&self, width: i64) -> Result<(), ModelError> {
        let error = |reason| Err(ModelError { key: "softmax", reason });
        let rising = self.adaptive.windows(2).all(|pair| pair[0] < pair[1]);
        match self.adaptive.first() {
            None => return error("adaptive needs the first id of at least one tail".into()),
            Some(first) if *first < 1 || !rising => {
                return error(format!("adaptive = {:?} must rise from at least 1", self.adaptive));
            }
            Some(_) => {}
        }
        if self.div_value < 1 {
            return error(format!("div_value = {} must be at least 1", self.div_value));
        }
        let tails = self.adaptive.len();
        if self.width(width, tails).is_none_or(|narrowest| narrowest < 1) {
            let q = self.div_value;
            return error(format!("width {width} / {q}^{tails} is below 1"));
        }
        Ok(())
    }

    /// Refuses a vocabulary without a word for the last tail.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn check_vocab(&self, vocab: i64) -> Result<(), ModelError> {
        let last = self.adaptive.last().copied().unwrap_or_default();
        if last < vocab {
            return Ok(());
        }
        let reason = format!("adaptive cuts at {last}, and the vocabulary has {vocab} ids");
        Err(ModelError { key: "softmax", reason })
    }

    /// Width of a cluster, the head being cluster 0.
    fn width(&self, width: i64, cluster: usize) -> Option<i64> {
        let q = self.div_value.checked_pow(u32::try_from(cluster).ok()?)?;
        Some(width / q)
    }
}

/// A row for every id, rarer ones narrower: the weights that embedding and output layer may share.
#[derive(Debug)]
pub(crate) struct ClusteredTable {
    clusters: Vec<Cluster>,
}

/// Consecutive ids.
#[derive(Debug)]
struct Cluster {
    first: i64,
    weight_ri: Tensor,
    /// None in the head.
    projection_id: Option<Tensor>,
}

impl ClusteredTable {
    /// Fresh weights of `vocab` ids under `params`, with rows of standard deviation `std`.
    pub(crate) fn new(
        params: &Params<'_>,
        config: &SoftmaxConfig,
        (vocab, d): (i64, i64),
        std: f64,
    ) -> Self {
        let firsts: Vec<i64> = std::iter::once(0).chain(config.adaptive.iter().copied()).collect();
        let cluster = |(index, &first): (usize, &i64)| {
            let end = firsts.get(index + 1).copied().unwrap_or(vocab);
            let width = config.width(d, index).expect("a checked configuration");
            let place = params.child(index);
            // Rows times projection are then as large as the rows of the head.
            let spread = (1.0 / width as f64).sqrt();
            Cluster {
                first,
                weight_ri: place.matrix("weight", &[end - first, width], std),
                projection_id: (index > 0).then(|| place.matrix("projection", &[width, d], spread)),
            }
        };
        Self { clusters: firsts.iter().enumerate().map(cluster).collect() }
    }

    /// The same weights.
    pub(crate) fn share(&self) -> Self {
        let share = |cluster: &Cluster| Cluster {
            first: cluster.first,
            weight_ri: cluster.weight_ri.shallow_clone(),
            projection_id: cluster.projection_id.as_ref().map(Tensor::shallow_clone),
        };
        Self { clusters: self.clusters.iter().map(share).collect() }
    }

    /// Any of its tensors, for kind and device.
    pub(crate) fn like(&self) -> &Tensor {
        &self.clusters[0].weight_ri
    }

    /// Ids to rows of the model's width, whatever axes they have.
    pub(crate) fn embed(&self, id: &Tensor) -> Tensor {
        // Every cluster is asked about every id: a mask costs less than a wait for the device.
        let rows = self.clusters.iter().map(|cluster| {
            let (local, inside) = cluster.local(id);
            let row = Tensor::embedding(&cluster.weight_ri, &local, -1, false, false);
            let row = match &cluster.projection_id {
                Some(projection_id) => row.matmul(projection_id),
                None => row,
            };
            row * inside.unsqueeze(-1)
        });
        rows.reduce(|sum, row| sum + row).expect("a head")
    }
}

impl Cluster {
    fn size(&self) -> i64 {
        self.weight_ri.size()[0]
    }

    /// Ids counted from the cluster's first, 0 outside of it, and whether they are inside.
    fn local(&self, id: &Tensor) -> (Tensor, Tensor) {
        let local = id - self.first;
        let inside = local.ge(0).logical_and(&local.lt(self.size()));
        (local * &inside, inside)
    }

    /// What the cluster's words are scored by: `[n, d] -> [n, i]`.
    fn project(&self, x_nd: &Tensor, precision: Precision) -> Tensor {
        match &self.projection_id {
            Some(projection_id) => precision.linear(x_nd, projection_id),
            None => x_nd.shallow_clone(),
        }
    }

    /// Values that one token is multiplied with.
    fn products(&self) -> f64 {
        let projection = self.projection_id.as_ref().map_or(0, Tensor::numel);
        (self.weight_ri.numel() + projection) as f64
    }
}

/// The output layer.
#[derive(Debug)]
pub(crate) struct Adaptive {
    table: ClusteredTable,
    score_kd: Tensor,
}

impl Adaptive {
    /// The output layer on the words of `table`, with fresh scores of the tails under `params`.
    pub(crate) fn new(params: &Params<'_>, table: ClusteredTable, d: i64, std: f64) -> Self {
        let tails = table.clusters.len() as i64 - 1;
        Self { score_kd: params.matrix("tails", &[tails, d], std), table }
    }

    fn head(&self) -> &Cluster {
        &self.table.clusters[0]
    }

    fn tails(&self) -> &[Cluster] {
        &self.table.clusters[1..]
    }

    /// The head's words, then the tails.
    fn head_weight(&self) -> Tensor {
        Tensor::cat(&[&self.head().weight_ri, &self.score_kd], 0)
    }

    /// Targets in the head's softmax: a word of a tail is the tail.
    fn head_target(&self, y_n: &Tensor) -> Tensor {
        let words = self.head().size();
        let tails = self.tails().iter().map(|tail| y_n.ge(tail.first).to_kind(Kind::Int64));
        let which_n = tails.reduce(|sum, one| sum + one).expect("at least one tail");
        let tail_n = which_n + (words - 1);
        y_n.where_self(&y_n.lt(words), &tail_n)
    }

    /// Mean cross-entropy of `y_n` (int64), a scalar with its graph.
    pub(crate) fn loss(&self, x_nd: &Tensor, y_n: &Tensor, precision: Precision) -> Tensor {
        let tokens = y_n.numel() as f64;
        let target_n = self.head_target(y_n);
        let mut loss = cross_entropy(x_nd, &self.head_weight(), &target_n, precision);
        for tail in self.tails() {
            let (local_n, inside_n) = tail.local(y_n);
            let place_r = inside_n.nonzero().squeeze_dim(1);
            let count = place_r.numel();
            if count == 0 {
                continue;
            }
            // `embedding` adds rows of the gradient in a fixed order; `index_select` does not.
            let x_rd = Tensor::embedding(x_nd, &place_r, -1, false, false);
            let (x_ri, y_r) = (tail.project(&x_rd, precision), local_n.index_select(0, &place_r));
            let of_tail = cross_entropy(&x_ri, &tail.weight_ri, &y_r, precision);
            loss += of_tail * (count as f64 / tokens);
        }
        loss
    }

    /// Log-probabilities of all ids, `[n, d] -> [n, v]`.
    pub(crate) fn log_prob(&self, x_nd: &Tensor, precision: Precision) -> Tensor {
        let log_softmax = |score: Tensor| score.log_softmax(-1, score.kind());
        let head_n = log_softmax(precision.linear(x_nd, &self.head_weight()));
        let words = self.head().size();
        let mut parts = vec![head_n.narrow(-1, 0, words)];
        for (index, tail) in self.tails().iter().enumerate() {
            let score_nr = precision.linear(&tail.project(x_nd, precision), &tail.weight_ri);
            parts.push(log_softmax(score_nr) + head_n.narrow(-1, words + index as i64, 1));
        }
        Tensor::cat(&parts, -1)
    }

    /// Values that a token is multiplied with, mean over these targets, a scalar: every token asks the
    /// head, a word of a tail its tail too.
    pub(crate) fn products(&self, y_n: &Tensor) -> Tensor {
        let always = self.head().products() + self.score_kd.numel() as f64;
        let tails = self.tails().iter().map(|tail| {
            let (_, inside_n) = tail.local(y_n);
            inside_n.mean(Kind::Double) * tail.products()
        });
        tails.reduce(|sum, one| sum + one).expect("at least one tail") + always
    }
}

#[cfg(test)]
mod tests;
