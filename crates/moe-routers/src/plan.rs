//! The plan on the device: which row each expert reads, and how rows come back to their tokens.
//!
//! Rows are sorted by expert, then by group, then by place in the expert's queue, as in
//! [`moe_core::SparsePlan`]. Weights carry the autograd graph; indices do not.
//!
//! Axis letters: `g` groups, `t` tokens of a group, `d` width, `e` experts, `k` choices, `n` routed
//! rows, `s` slots, `p` slots of one expert.

use crate::convert::{to_host, to_host_i64, to_host1};
use crate::order::largest;
use moe_core::{DropOrder, Plan, PlanError, SoftPlan, SparsePlan};
use tch::{Device, Kind, Tensor};

/// Who computes what, with which weight.
#[derive(Debug)]
pub enum TensorPlan {
    /// Each expert reads some tokens.
    Sparse(SparseRows),
    /// Each expert reads mixtures of all tokens of a group (Soft MoE).
    Soft(SoftSlots),
}

/// Rows of all groups together, sorted by expert.
#[derive(Debug)]
pub struct SparseRows {
    /// Token that each row reads, counted over all groups (`group * t + token`), `[n]`, int64.
    pub token_n: Tensor,
    /// Combine weight of each row, `[n]`.
    pub weight_n: Tensor,
    /// Rows of each expert, `[e]`, int64.
    pub load_e: Tensor,
    /// Number of groups.
    pub groups: i64,
    /// Tokens of a group.
    pub tokens: i64,
}

/// Dense mixtures inside each group.
#[derive(Debug)]
pub struct SoftSlots {
    /// How a slot reads the tokens, `[g, t, s]`; columns sum to one.
    pub dispatch_gts: Tensor,
    /// How a token reads the slots, `[g, t, s]`; rows sum to one.
    pub combine_gts: Tensor,
    /// Slots of one expert, `p`; `s = e * p`.
    pub slots_per_expert: i64,
}

/// What every token chose, best first.
#[derive(Debug)]
pub struct ChoicesGtk {
    /// Experts in rank order, `[g, t, k]`, int64.
    pub expert_gtk: Tensor,
    /// Their combine weights, `[g, t, k]`.
    pub gate_gtk: Tensor,
    /// Choices that queue at all, `[g, t, k]`, bool; `None` is all of them. A choice that was taken
    /// back, or a padded token, takes no place.
    pub present_gtk: Option<Tensor>,
}

impl ChoicesGtk {
    /// Experts and weights as given.
    pub fn new(expert_gtk: Tensor, gate_gtk: Tensor) -> Self {
        Self { expert_gtk, gate_gtk, present_gtk: None }
    }

    /// The `k` largest scores of every token; the scores themselves are the gates.
    ///
    /// Ties go to the lower index.
    pub fn top_k(score_gte: &Tensor, k: i64) -> Self {
        let expert_gtk = largest(score_gte, k);
        let gate_gtk = score_gte.gather(-1, &expert_gtk, false);
        Self::new(expert_gtk, gate_gtk)
    }

    /// The same experts with other weights.
    pub fn with_gates(self, gate_gtk: Tensor) -> Self {
        Self { gate_gtk, ..self }
    }

    /// Without the choices of padded tokens (`padding_gt`, `[g, t]`, bool), which take no place.
    pub fn without_padding(self, padding_gt: Option<&Tensor>) -> Self {
        let Some(padding_gt) = padding_gt else { return self };
        let valid_gt1 = padding_gt.logical_not().unsqueeze(-1);
        let present_gtk = match &self.present_gtk {
            Some(present_gtk) => present_gtk.logical_and(&valid_gt1),
            None => valid_gt1.expand_as(&self.expert_gtk).contiguous(),
        };
        self.present(present_gtk)
    }

    /// Only the choices that are true in `present_gtk`.
    pub fn present(self, present_gtk: Tensor) -> Self {
        Self { present_gtk: Some(present_gtk), ..self }
    }

    /// Queues the choices at their experts; each expert keeps the first `slots` of every group.
    ///
    /// Choices come in the order that `order` says. The queue counts rejected choices too, so a place is free only if it was
    /// never taken.
    pub fn plan(&self, experts: i64, (slots, order): (Option<usize>, DropOrder)) -> TensorPlan {
        let (groups, tokens, k) = self.expert_gtk.size3().expect("[g, t, k]");
        let (mut choice_n, place_n, mut length_eg) = self.queued(experts, order);
        if let Some(slots) = slots.map(|s| s.min((tokens * k) as usize) as i64) {
            choice_n = choice_n.masked_select(&place_n.lt(slots));
            length_eg = length_eg.clamp_max(slots);
        }
        TensorPlan::Sparse(SparseRows {
            token_n: choice_n.divide_scalar_mode(k, "floor"),
            weight_n: self.gate_gtk.flatten(0, -1).index_select(0, &choice_n),
            load_e: length_eg.view([experts, groups]).sum_dim_intlist(1, false, Kind::Int64),
            groups,
            tokens,
        })
    }

    /// The choices (as indices into the flattened `[g, t, k]`) sorted by expert, then by group, then
    /// by place in the queue; their places; the lengths of the queues, `[e * g]`.
    fn queued(&self, experts: i64, order: DropOrder) -> (Tensor, Tensor, Tensor) {
        let (groups, tokens, k) = self.expert_gtk.size3().expect("[g, t, k]");
        let mut choice_n = self.visiting_order(order);
        if let Some(present_gtk) = &self.present_gtk {
            let present_n = present_gtk.flatten(0, -1).index_select(0, &choice_n);
            choice_n = choice_n.masked_select(&present_n);
        }
        let expert_n = self.expert_gtk.flatten(0, -1).index_select(0, &choice_n);
        let queue_n = expert_n * groups + choice_n.divide_scalar_mode(tokens * k, "floor");
        let row_n = queue_n.argsort_stable(true, 0, false);
        let length_eg = counts(&queue_n, experts * groups);
        let place_n = places(&queue_n, &row_n, &length_eg);
        (choice_n.index_select(0, &row_n), place_n, length_eg)
    }

    /// Choices of the same expert and group that queued earlier, `[g, t, k]`, rejected ones counted
    /// too; -1 for a choice that never queued.
    pub fn positions(&self, experts: i64, order: DropOrder) -> Tensor {
        let (choice_n, place_n, _) = self.queued(experts, order);
        let position = self.expert_gtk.full_like(-1).flatten(0, -1);
        position.scatter(0, &choice_n, &place_n).view_as(&self.expert_gtk)
    }

    /// Index into the flattened `[g, t, k]` of the choice visited first, second, …: `[g * k * t]`.
    fn visiting_order(&self, order: DropOrder) -> Tensor {
        let (g, t, k) = self.expert_gtk.size3().expect("[g, t, k]");
        let options = (Kind::Int64, self.expert_gtk.device());
        match order {
            DropOrder::Position => return Tensor::arange(g * t * k, options),
            DropOrder::Gate => {
                let first_g1 = (Tensor::arange(g, options) * (t * k)).view([g, 1]);
                return (by_falling(&self.gate_gtk.flatten(1, 2)) + first_g1).flatten(0, -1);
            }
            DropOrder::Arrival | DropOrder::BatchPriority | DropOrder::BatchPrioritySum => {}
        }
        let rank_k1 = Tensor::arange(k, (Kind::Int64, self.expert_gtk.device())).view([k, 1]);
        (self.visiting_tokens(order).unsqueeze(1) * k + rank_k1).flatten(0, -1)
    }

    /// The order in which tokens are visited, counted over all groups, `[g, t]`.
    pub fn visiting_tokens(&self, order: DropOrder) -> Tensor {
        let (g, t, _) = self.expert_gtk.size3().expect("[g, t, k]");
        let options = (Kind::Int64, self.expert_gtk.device());
        let token_gt = match order {
            DropOrder::Arrival | DropOrder::Position | DropOrder::Gate => {
                Tensor::arange(t, options).expand([g, t], false)
            }
            DropOrder::BatchPriority => by_falling(&self.gate_gtk.select(-1, 0)),
            DropOrder::BatchPrioritySum => {
                by_falling(&self.gate_gtk.sum_dim_intlist(-1, false, self.gate_gtk.kind()))
            }
        };
        token_gt + (Tensor::arange(g, options) * t).view([g, 1])
    }
}

/// Token numbers by falling score, the earlier token first among equals. `[g, t] -> [g, t]`.
fn by_falling(score_gt: &Tensor) -> Tensor {
    score_gt.detach().argsort_stable(true, -1, true)
}

/// How often each number below `bins` occurs, `[n] -> [bins]`, int64.
fn counts(number_n: &Tensor, bins: i64) -> Tensor {
    match number_n.device() {
        Device::Cpu => number_n.bincount(None::<Tensor>, bins),
        _ => scattered_counts(number_n, bins),
    }
}

/// The same without asking the device for the largest number, as `bincount` does, which makes the host
/// wait. Whole numbers add up to the same in any order.
fn scattered_counts(number_n: &Tensor, bins: i64) -> Tensor {
    let zeros = Tensor::zeros([bins], (Kind::Int64, number_n.device()));
    zeros.scatter_add(0, number_n, &number_n.ones_like())
}

/// Place of each sorted row in its queue: its index less the index at which the queue starts.
fn places(queue_n: &Tensor, row_n: &Tensor, length_q: &Tensor) -> Tensor {
    let start_q = length_q.cumsum(0, Kind::Int64) - length_q;
    let start_n = start_q.index_select(0, &queue_n.index_select(0, row_n));
    Tensor::arange(row_n.numel() as i64, (Kind::Int64, row_n.device())) - start_n
}

impl SparseRows {
    /// The rows that experts read, `[g, t, d] -> [n, d]`.
    ///
    /// `embedding` rather than `index_select`: its backward adds colliding rows in a fixed order and
    /// in parallel, where `index_add` is serial on CPU and not deterministic on CUDA.
    fn dispatch(&self, x_gtd: &Tensor) -> Tensor {
        Tensor::embedding(&x_gtd.flatten(0, 1), &self.token_n, -1, false, false)
    }

    /// The weighted sum of the rows of each token, `[n, d] -> [g, t, d]`; zero for a token without.
    ///
    /// One gather-sum over the rows of a token (`embedding_bag`), in the order of its experts: no
    /// `[t, k, d]` intermediate, no atomics.
    fn combine(&self, y_nd: &Tensor) -> Tensor {
        let width = y_nd.size()[1];
        let rows_t = self.rows_per_token();
        let offset_t = rows_t.cumsum(0, Kind::Int64) - rows_t;
        let by_token_n = self.token_n.argsort_stable(true, 0, false);
        let weight_n = self.weight_n.index_select(0, &by_token_n).to_kind(y_nd.kind());
        let (scale_by_frequency, sum_mode, sparse, last_offset) = (false, 0, false, false);
        let (y_td, ..) = Tensor::embedding_bag(
            y_nd,
            &by_token_n,
            &offset_t,
            scale_by_frequency,
            sum_mode,
            sparse,
            Some(weight_n),
            last_offset,
        );
        y_td.view([self.groups, self.tokens, width])
    }

    /// How many experts read each token, `[g * t]`, int64.
    fn rows_per_token(&self) -> Tensor {
        counts(&self.token_n, self.groups * self.tokens)
    }

    fn to_host(&self) -> Result<Vec<Plan>, PlanError> {
        let tokens = self.tokens as usize;
        let expert_n = (0..).zip(to_host_i64(&self.load_e));
        let expert_n = expert_n.flat_map(|(e, n)| std::iter::repeat_n(e, n as usize));
        let mut lists_ge = vec![vec![Vec::new(); self.load_e.numel()]; self.groups as usize];
        let rows = to_host_i64(&self.token_n).into_iter().zip(to_host1(&self.weight_n));
        for ((token, weight), e) in rows.zip(expert_n) {
            let (token, e): (usize, usize) = (token as usize, e);
            lists_ge[token / tokens][e].push((token % tokens, weight));
        }
        lists_ge.iter().map(|l| SparsePlan::from_lists(tokens, l).map(Plan::Sparse)).collect()
    }
}

impl SoftSlots {
    fn experts(&self) -> i64 {
        self.dispatch_gts.size()[2] / self.slots_per_expert
    }

    /// Mixtures that experts read, `[g, t, d] -> [e * g * p, d]`.
    fn dispatch(&self, x_gtd: &Tensor) -> Tensor {
        let (g, _, d) = x_gtd.size3().expect("[g, t, d]");
        let x_gsd = self.dispatch_gts.transpose(1, 2).to_kind(x_gtd.kind()).matmul(x_gtd);
        let x_gepd = x_gsd.view([g, self.experts(), self.slots_per_expert, d]);
        x_gepd.transpose(0, 1).reshape([-1, d])
    }

    /// What tokens read from the slots, `[e * g * p, d] -> [g, t, d]`.
    fn combine(&self, y_nd: &Tensor) -> Tensor {
        let (g, _, s) = self.combine_gts.size3().expect("[g, t, s]");
        let d = y_nd.size()[1];
        let y_egpd = y_nd.view([self.experts(), g, self.slots_per_expert, d]);
        let y_gsd = y_egpd.transpose(0, 1).reshape([g, s, d]);
        self.combine_gts.to_kind(y_nd.kind()).matmul(&y_gsd)
    }

    fn to_host(&self) -> Vec<Plan> {
        let plan = |g: i64| SoftPlan {
            dispatch_ts: to_host(&self.dispatch_gts.get(g)),
            combine_ts: to_host(&self.combine_gts.get(g)),
            slots_per_expert: self.slots_per_expert as usize,
        };
        (0..self.dispatch_gts.size()[0]).map(|g| Plan::Soft(plan(g))).collect()
    }
}

impl TensorPlan {
    /// The rows that experts read, sorted by expert. `[g, t, d] -> [n, d]`.
    pub fn dispatch(&self, x_gtd: &Tensor) -> Tensor {
        match self {
            Self::Sparse(rows) => rows.dispatch(x_gtd),
            Self::Soft(slots) => slots.dispatch(x_gtd),
        }
    }

    /// Brings the experts' rows back to their tokens, weighted and summed, in the rows' own kind:
    /// weights may be wider. `[n, d] -> [g, t, d]`.
    pub fn combine(&self, y_nd: &Tensor) -> Tensor {
        match self {
            Self::Sparse(rows) => rows.combine(y_nd),
            Self::Soft(slots) => slots.combine(y_nd),
        }
    }

    /// Rows of each expert, `[e]`, int64.
    pub fn load_e(&self) -> Tensor {
        match self {
            Self::Sparse(rows) => rows.load_e.shallow_clone(),
            Self::Soft(slots) => {
                let per_expert = slots.dispatch_gts.size()[0] * slots.slots_per_expert;
                let options = (Kind::Int64, slots.dispatch_gts.device());
                Tensor::full([slots.experts()], per_expert, options)
            }
        }
    }

    /// Share of tokens that no expert reads, a scalar.
    pub fn left_behind(&self) -> Tensor {
        match self {
            Self::Sparse(rows) => rows.rows_per_token().eq(0).mean(Kind::Float),
            Self::Soft(slots) => Tensor::zeros([], (Kind::Float, slots.dispatch_gts.device())),
        }
    }

    /// The whole layer in one sentence: dispatch, `expert(e, rows)` on what each expert reads,
    /// combine. `[g, t, d] -> [g, t, d]`. Copies the loads to the host.
    pub fn apply(&self, x_gtd: &Tensor, expert: impl Fn(usize, &Tensor) -> Tensor) -> Tensor {
        let rows_e = self.dispatch(x_gtd).split_with_sizes(to_host_i64(&self.load_e()), 0);
        let y_e: Vec<Tensor> = rows_e.iter().enumerate().map(|(e, x)| expert(e, x)).collect();
        self.combine(&Tensor::cat(&y_e, 0))
    }

    /// The plan of every group on the host, every invariant checked.
    ///
    /// # Errors
    /// The first invariant that is broken.
    pub fn to_host(&self) -> Result<Vec<Plan>, PlanError> {
        match self {
            Self::Sparse(rows) => rows.to_host(),
            Self::Soft(slots) => Ok(slots.to_host()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_count_agree() {
        for numbers in [vec![], vec![3], vec![0, 4, 4, 1, 4, 0]] {
            let number_n = Tensor::from_slice::<i64>(&numbers);
            assert_eq!(counts(&number_n, 6), scattered_counts(&number_n, 6));
        }
    }
}
