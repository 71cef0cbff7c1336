//! The sparse layer: router -> plan -> experts -> combine.

use crate::experts::Experts;
use crate::loss::LossWeights;
use moe_core::{CapacityPolicy, RouteError};
use moe_routers::{Phase, RouteCx, Router, Routing, TensorPlan, losses};
use std::cell::Cell;
use std::time::{Duration, Instant};
use tch::Tensor;

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
    /// Share of tokens that no expert read, a scalar.
    pub left_behind: Tensor,
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
        let execute = |x_gtd: &Tensor, plan: &TensorPlan| {
            let start = Instant::now();
            let y_gtd = self.experts.execute(x_gtd, plan);
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
            left_behind: routing.plan.left_behind(),
            input_gtd: matches!(cx.phase, Phase::Eval).then(|| x_gtd.shallow_clone()),
            output_gtd: matches!(cx.phase, Phase::Eval).then(|| y_gtd.shallow_clone()),
            routing,
            route_time,
        };
        Ok((y_gtd, trace))
    }
}
