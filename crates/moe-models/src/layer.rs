//! The sparse layer: router -> plan -> experts -> combine.

use crate::experts::Experts;
use crate::loss::LossWeights;
use moe_core::{CapacityPolicy, RouteError};
use moe_routers::{ParamStore, Phase, RouteCx, Router, Routing, TensorPlan, losses};
use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};
use tch::{Kind, Tensor};

/// A router and the experts it chooses among.
#[derive(Debug)]
pub struct MoeLayer {
    /// Index among the sparse layers of the model, in order.
    pub index: usize,
    /// The published rule.
    pub router: Box<dyn Router>,
    /// The networks it chooses among.
    pub experts: Experts,
    /// The recipe's capacity policy; `None` leaves the paper's own.
    pub capacity: Option<CapacityPolicy>,
    /// The recipe's losses.
    pub losses: LossWeights,
}

/// What a sparse layer gives back besides its output. Tensors stay on the device: nothing is copied
/// to the host during a forward pass.
#[derive(Debug)]
pub struct LayerTrace {
    /// Index among the sparse layers.
    pub layer: usize,
    /// Mean entropy of the tokens' gate distributions over `ln E`, a scalar.
    pub gate_entropy: Tensor,
    /// Share of tokens that no expert read, a scalar; padding is none of them.
    pub left_behind: Tensor,
    /// Rows that experts processed, a scalar: of every plan that the rule carried out.
    pub expert_rows: Tensor,
    /// What the router decided, its losses included; the next sparse layer may look back at it.
    pub routing: Routing,
    /// What the router read, `[g, t, d]`; in evaluation only, where it holds no graph alive.
    pub input_gtd: Option<Tensor>,
    /// What the layer made of it, `[g, t, d]`; in evaluation only.
    pub output_gtd: Option<Tensor>,
    /// Wall time of everything but carrying out plans: deciding routes, building the plan, losses.
    /// Meaningful on a CPU, where calls return when the work is done.
    pub route_time: Duration,
}

impl MoeLayer {
    /// `[g, t, d] -> [g, t, d]`; groups never see each other.
    ///
    /// # Errors
    /// [`RouteError::Layer`], if the router's settings leave no room for this number of tokens; on the
    /// CPU, also tokens or logits that are not finite.
    pub fn forward(
        &self,
        x_gtd: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, LayerTrace), RouteError> {
        let cx = RouteCx { layer: self.index, capacity: self.capacity.as_ref(), ..*cx };
        let (start, in_experts) = (Instant::now(), Cell::new(Duration::ZERO));
        let rows = RefCell::new(Tensor::zeros([], (Kind::Double, x_gtd.device())));
        let execute = |x_gtd: &Tensor, plan: &TensorPlan| {
            let start = Instant::now();
            let y_gtd = self.experts.execute(x_gtd, plan);
            let mut rows = rows.borrow_mut();
            *rows += plan.load_e().sum(Kind::Double);
            in_experts.set(in_experts.get() + start.elapsed());
            y_gtd
        };
        let routed = self.router.forward(x_gtd, &cx, &execute);
        let (y_gtd, mut routing) = routed.map_err(|error| error.in_layer(self.index))?;
        self.losses.apply(&mut routing, cx.padding_gt);
        let route_time = start.elapsed().saturating_sub(in_experts.get());
        let trace = LayerTrace {
            layer: self.index,
            gate_entropy: losses::gate_entropy(&routing.gate_gte),
            left_behind: left_behind(&routing.plan, cx.padding_gt),
            expert_rows: rows.into_inner(),
            input_gtd: matches!(cx.phase, Phase::Eval).then(|| x_gtd.shallow_clone()),
            output_gtd: matches!(cx.phase, Phase::Eval).then(|| y_gtd.shallow_clone()),
            routing,
            route_time,
        };
        Ok((y_gtd, trace))
    }
}

/// Parameters that one token uses: all but the `1 - active_share` of the experts in `layers` that it does
/// not visit.
pub(crate) fn active_params<'a>(
    store: &ParamStore,
    layers: impl IntoIterator<Item = &'a MoeLayer>,
    active_share: f64,
) -> usize {
    let bank =
        |layer: &MoeLayer| layer.experts.params_per_expert() * layer.experts.count() as usize;
    let sparse: usize = layers.into_iter().map(bank).sum();
    store.trainable_count() - (sparse as f64 * (1.0 - active_share)).round() as usize
}

/// Share of tokens that no expert read, where no expert reads padding.
fn left_behind(plan: &TensorPlan, padding_gt: Option<&Tensor>) -> Tensor {
    let share = plan.left_behind();
    let Some(padding_gt) = padding_gt else { return share };
    let text = padding_gt.logical_not().mean(Kind::Float);
    let least = 1.0 / padding_gt.numel() as f64;
    (share - 1.0 + &text) / text.clamp_min(least)
}
