//! Which rows experts read and how tokens find them again, on the device.
#![expect(unsafe_code, reason = "kernels take addresses of tensors")]

use super::{CudaRunError, address, optional, room};
use crate::fused::Rows;
use moe_cuda::Kernels;
use moe_cuda::kernels::{GatherRows, GatherSum, Plan, RouteShape};
use tch::{Kind, Tensor};

/// The rows of all experts. Indices are `int32`, weights `f32`.
#[derive(Debug)]
pub(super) struct Dispatch {
    /// Token of each row, `[n]`; undefined past the last row.
    token_n: Tensor,
    /// Weight of each row, `[n]`; likewise.
    pub(super) weight_n: Tensor,
    /// Where the rows of each expert end, `[e]`; the last is the number of rows.
    pub(super) end_e: Tensor,
    /// Rows of the tokens, one token after the other; -1 is none.
    row_i: Tensor,
    /// Where each token's rows start, `[t + 1]`, int64; without, every token has `k` places.
    offset_t: Option<Tensor>,
    k: usize,
    tokens: usize,
}

impl Dispatch {
    /// Of a plan that a router made: rows sorted by expert.
    ///
    /// No expert reads a token twice, so that rows in rising order are a token's experts in rising
    /// order.
    pub(super) fn of_rows(rows: &Rows<'_>, tokens: i64) -> Self {
        let token_n = rows.token_n.detach();
        let ones = token_n.ones_like();
        let count_t = Tensor::zeros([tokens + 1], (Kind::Int64, token_n.device()));
        // Shifted by one, so that the running sum starts with zero. Not `bincount`, which waits.
        let count_t = count_t.scatter_add(0, &(&token_n + 1), &ones);
        Self {
            token_n: token_n.to_kind(Kind::Int).contiguous(),
            weight_n: rows.weight_n.detach().to_kind(Kind::Float).contiguous(),
            end_e: rows.load_e.cumsum(0, Kind::Int64).to_kind(Kind::Int),
            row_i: token_n.argsort_stable(true, 0, false).to_kind(Kind::Int),
            offset_t: Some(count_t.cumsum(0, Kind::Int64)),
            k: 0,
            tokens: tokens as usize,
        }
    }

    /// Of choices and their gates, `[g, t, k]`, as they came from [`super::route`]; each expert keeps the
    /// first `capacity` of every group, in the order of tokens, then of choices.
    pub(super) fn of_choices(
        kernels: &Kernels<'_>,
        (expert_gtk, gate_gtk): (&Tensor, &Tensor),
        experts: i64,
        capacity: Option<usize>,
    ) -> Result<Self, CudaRunError> {
        let (groups, tokens, k) = expert_gtk.size3()?;
        let [g, t, e, choices] = [groups, tokens, experts, k].map(|axis| axis as usize);
        let shape = RouteShape { groups: g, tokens: t, experts: e, k: choices };
        let ints = |size: &[i64]| room(expert_gtk, Kind::Int, size);
        let count_qc = ints(&[experts * groups, shape.chunks() as i64]);
        let room_2q = ints(&[2, experts * groups]);
        let [token_n, row_i] = [0; 2].map(|_| ints(&[groups * tokens * k]));
        let end_e = ints(&[experts]);
        let load_e = room(expert_gtk, Kind::Int64, &[experts]);
        let weight_n = room(expert_gtk, Kind::Float, &[groups * tokens * k]);
        let plan = Plan {
            expert_gtk: address(expert_gtk),
            gate_gtk: address(gate_gtk),
            count_qc: address(&count_qc),
            counted: false,
            room_2q: address(&room_2q),
            end_e: address(&end_e),
            load_e: address(&load_e),
            token_n: address(&token_n),
            weight_n: address(&weight_n),
            row_gtk: address(&row_i),
            capacity,
        };
        // SAFETY: the tensors have the sizes of `shape`, and outlive the launch on their stream.
        unsafe { kernels.plan(&shape, &plan) }?;
        let tokens = shape.groups * shape.tokens;
        Ok(Self { token_n, weight_n, end_e, row_i, offset_t: None, k: shape.k, tokens })
    }

    /// Rows that there can be at most.
    pub(super) fn most_rows(&self) -> i64 {
        self.token_n.size()[0]
    }

    /// The number of rows, one `int32` on the device.
    pub(super) fn rows(&self) -> Tensor {
        self.end_e.narrow(0, self.end_e.size()[0] - 1, 1)
    }

    /// The token of every row, `[t, d] -> [n, d]`.
    pub(super) fn gather(
        &self,
        kernels: &Kernels<'_>,
        x_td: &Tensor,
    ) -> Result<Tensor, CudaRunError> {
        let d = x_td.size()[1];
        let x_nd = room(x_td, x_td.kind(), &[self.most_rows(), d]);
        let it = GatherRows {
            x_td: address(x_td),
            token_n: address(&self.token_n),
            x_nd: address(&x_nd),
            rows: address(&self.rows()),
            most_rows: self.most_rows() as usize,
            width: d as usize,
        };
        // SAFETY: as in `of_choices`; tokens of rows are in range by the plan.
        unsafe { kernels.gather_rows(super::dtype(x_td)?, &it) }?;
        Ok(x_nd)
    }

    /// The sum of each token's rows of `a_nd` and `b_nd`, weighted if asked, `[n, d] -> [t, d]`.
    pub(super) fn sum(
        &self,
        kernels: &Kernels<'_>,
        (a_nd, b_nd): (&Tensor, Option<&Tensor>),
        weighted: bool,
    ) -> Result<Tensor, CudaRunError> {
        let d = a_nd.size()[1];
        let out_td = room(a_nd, a_nd.kind(), &[self.tokens as i64, d]);
        let it = GatherSum {
            a_nd: address(a_nd),
            b_nd: optional(b_nd),
            weight_n: optional(weighted.then_some(&self.weight_n)),
            row_i: address(&self.row_i),
            offset_t: optional(self.offset_t.as_ref()),
            k: self.k,
            out_td: address(&out_td),
            tokens: self.tokens,
            width: d as usize,
        };
        // SAFETY: as in `gather`.
        unsafe { kernels.gather_sum(super::dtype(a_nd)?, &it) }?;
        Ok(out_td)
    }

    /// The gradient of the gates of choices from that of the rows' weights, `[n] -> [g t k]`; zero where
    /// a choice has no row.
    pub(super) fn by_choice(&self, dweight_n: &Tensor) -> Tensor {
        let row_i = self.row_i.to_kind(Kind::Int64);
        let dgate_i = dweight_n.index_select(0, &row_i.clamp_min(0));
        // Not a product: what was never written may be NaN.
        dgate_i.where_self(&row_i.ge(0), &dgate_i.zeros_like())
    }
}
