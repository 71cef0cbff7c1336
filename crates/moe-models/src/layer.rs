//! The sparse layer: router -> plan -> experts -> combine.

use crate::experts::Experts;
use moe_core::{CapacityPolicy, RouteError};
use moe_routers::{Aux, RouteCx, Router, losses};
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
}

/// What a sparse layer gives back besides its output. Tensors stay on the device: nothing is copied
/// to the host during a forward pass.
#[derive(Debug)]
pub struct LayerTrace {
    /// Index among the sparse layers.
    pub layer: usize,
    /// Rows that each expert read, `[e]`, int64.
    pub load_e: Tensor,
    /// Mean entropy of the tokens' gate distributions over `ln E`, a scalar.
    pub gate_entropy: Tensor,
    /// Share of tokens that no expert read, a scalar.
    pub left_behind: Tensor,
    /// Losses of the router.
    pub aux: Vec<Aux>,
    /// Wall time of deciding routes and building the plan; meaningful on a CPU, where calls return
    /// when the work is done.
    pub route_time: Duration,
}

impl MoeLayer {
    /// `[g, t, d] -> [g, t, d]`; groups never see each other.
    ///
    /// # Errors
    /// If the router's settings leave no room for this number of tokens.
    pub fn forward(
        &self,
        x_gtd: &Tensor,
        cx: &RouteCx<'_>,
    ) -> Result<(Tensor, LayerTrace), RouteError> {
        let cx = RouteCx { layer: self.index, capacity: self.capacity.as_ref(), ..*cx };
        let start = Instant::now();
        let routing = self.router.route(x_gtd, &cx)?;
        let route_time = start.elapsed();
        let load_e = routing.plan.load_e();
        let y_nd = self.experts.forward(&routing.plan.dispatch(x_gtd), &load_e);
        let trace = LayerTrace {
            layer: self.index,
            load_e,
            gate_entropy: losses::gate_entropy(&routing.gate_gte),
            left_behind: routing.plan.left_behind(),
            aux: routing.aux,
            route_time,
        };
        Ok((routing.plan.combine(&y_nd), trace))
    }
}
