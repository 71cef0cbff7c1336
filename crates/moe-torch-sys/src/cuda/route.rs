//! From logits to scores, choices and gates in one kernel, as a step of the graph.
#![expect(unsafe_code, reason = "kernels take addresses of tensors")]

use super::{CudaRunError, address, dtype, kernels, optional, room};
use crate::graph::{attach, wants_graph};
use moe_cuda::kernels::{Route, RouteBackward, RouteShape};
use moe_cuda::{Launcher, Score};
use std::sync::Arc;
use tch::{Kind, Tensor};

/// What a token-choice router decides.
#[derive(Debug)]
pub struct Routed {
    /// Scores of all experts, `[g, t, e]`, `f32`, on the graph of the logits.
    pub score_gte: Tensor,
    /// Chosen experts, best first, the lower index among equals, `[g, t, k]`, int32.
    pub expert_gtk: Tensor,
    /// Their gates, `[g, t, k]`, `f32`, on the graph of the logits.
    pub gate_gtk: Tensor,
}

/// Routes `logit_gte` `[g, t, e]` (`f32` or `bf16`) to the `k` best experts.
///
/// # Errors
/// Sizes beyond the kernels, or libtorch's or the driver's refusal.
pub fn route(
    launcher: &Arc<dyn Launcher>,
    logit_gte: &Tensor,
    k: usize,
    score: Score,
) -> Result<Routed, CudaRunError> {
    let (groups, tokens, experts) = logit_gte.size3()?;
    let [g, t, e] = [groups, tokens, experts].map(|axis| axis as usize);
    let shape = RouteShape { groups: g, tokens: t, experts: e, k };
    let logit = logit_gte.detach().contiguous();
    let choices = [groups, tokens, k as i64];
    let score_gte = room(&logit, Kind::Float, &[groups, tokens, experts]);
    let expert_gtk = room(&logit, Kind::Int, &choices);
    let gate_gtk = room(&logit, Kind::Float, &choices);
    let count_qc = room(&logit, Kind::Int, &[experts * groups, shape.chunks() as i64]);
    let it = Route {
        logit_gte: address(&logit),
        score_gte: address(&score_gte),
        expert_gtk: address(&expert_gtk),
        gate_gtk: address(&gate_gtk),
        count_qc: address(&count_qc),
    };
    // SAFETY: the tensors have the sizes of `shape`, and outlive the launch on their stream.
    unsafe { kernels(&**launcher, &logit)?.route(dtype(&logit)?, &shape, score, &it) }?;
    let routed = Routed { score_gte, expert_gtk, gate_gtk };
    if wants_graph(&[logit_gte]) {
        routed.on_graph(launcher, logit_gte, shape, score)
    } else {
        Ok(routed)
    }
}

/// What the way back needs.
#[derive(Debug)]
struct Back {
    launcher: Arc<dyn Launcher>,
    routed: Routed,
    shape: RouteShape,
    score: Score,
    kind: Kind,
}

impl Routed {
    fn share(&self) -> Self {
        Self {
            score_gte: self.score_gte.shallow_clone(),
            expert_gtk: self.expert_gtk.shallow_clone(),
            gate_gtk: self.gate_gtk.shallow_clone(),
        }
    }

    /// Scores and gates each as a step of their own: whichever a loss reads gets its gradient.
    fn on_graph(
        self,
        launcher: &Arc<dyn Launcher>,
        logit_gte: &Tensor,
        shape: RouteShape,
        score: Score,
    ) -> Result<Self, CudaRunError> {
        let back = || Back {
            launcher: Arc::clone(launcher),
            routed: self.share(),
            shape,
            score,
            kind: logit_gte.kind(),
        };
        let (by_gate, by_score) = (back(), back());
        let gate_gtk = attach(&self.gate_gtk, &[logit_gte], move |dgate_gtk| {
            let dlogit_gte = by_gate.run(dgate_gtk, None).map_err(|e| e.to_string())?;
            Ok(vec![Some(dlogit_gte)])
        })?;
        let score_gte = attach(&self.score_gte, &[logit_gte], move |dscore_gte| {
            let dgate_gtk = by_score.routed.gate_gtk.zeros_like();
            let dlogit_gte = by_score.run(&dgate_gtk, Some(dscore_gte));
            Ok(vec![Some(dlogit_gte.map_err(|e| e.to_string())?)])
        })?;
        Ok(Self { score_gte, gate_gtk, expert_gtk: self.expert_gtk })
    }
}

impl Back {
    fn run(&self, dgate_gtk: &Tensor, dscore_gte: Option<&Tensor>) -> Result<Tensor, CudaRunError> {
        let (dgate, dscore) = (dgate_gtk.contiguous(), dscore_gte.map(Tensor::contiguous));
        let dlogit_gte = room(&dgate, self.kind, &self.routed.score_gte.size());
        let it = RouteBackward {
            score_te: address(&self.routed.score_gte),
            expert_tk: address(&self.routed.expert_gtk),
            gate_tk: address(&self.routed.gate_gtk),
            dgate_tk: address(&dgate),
            dscore_te: optional(dscore.as_ref()),
            dlogit_te: address(&dlogit_gte),
        };
        let kernels = kernels(&*self.launcher, &dgate)?;
        // SAFETY: as in `route`.
        unsafe { kernels.route_backward(dtype(&dlogit_gte)?, &self.shape, self.score, &it) }?;
        Ok(dlogit_gte)
    }
}
