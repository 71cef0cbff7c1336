//! What stands around every router, whatever its rule: it computes in `f32` or better, and it refuses
//! what is not finite.
//!
//! Softmax over many experts, means over many tokens, and counts lose too much in `bf16`: 8 bits count
//! to 256. So tokens are widened before they are routed, the router's own parameters are kept wide
//! ([`Params::wide`](crate::Params::wide)), and logits, gates, weights and losses stay wide; experts
//! read tokens of the kind that came in, and [`TensorPlan::combine`](crate::TensorPlan::combine) narrows
//! the weights to their rows.
//!
//! A NaN orders like any number in a sort, so a router would route it without a word. On the CPU tokens
//! and logits are therefore summed, which costs one pass; elsewhere the answer would have to be waited
//! for, and the NaN goes on into the loss, where a training step stops.
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `e` experts.

use crate::convert::to_host;
use crate::plan::TensorPlan;
use crate::router::{Execute, RouteCx, Router, Routing};
use moe_core::RouteError;
use tch::{Device, Kind, Tensor};

/// The kind in which tokens of `kind` are routed: `f32` for anything narrower.
pub fn wide(kind: Kind) -> Kind {
    match kind {
        Kind::BFloat16 | Kind::Half => Kind::Float,
        kind => kind,
    }
}

impl dyn Router {
    /// [`Router::layer`] as a model calls it: tokens, `[g, t, d]`, of any kind; the output has theirs.
    ///
    /// # Errors
    /// As [`Router::layer`]; a mask given to a router that takes none; on the CPU, also tokens or logits
    /// that are not finite.
    pub fn forward(
        &self,
        x_gtd: &Tensor,
        cx: &RouteCx<'_>,
        execute: &Execute<'_>,
    ) -> Result<(Tensor, Routing), RouteError> {
        if cx.padding_gt.is_some() && !self.takes_padding() {
            let reason = "is given, but this router does not know padded tokens".into();
            return Err(RouteError::Setting { key: "padding", reason });
        }
        check_finite("tokens", x_gtd)?;
        let (narrow, wide) = (x_gtd.kind(), wide(x_gtd.kind()));
        let attention_gmtt = cx.attention_gmtt.map(|a| a.to_kind(wide));
        let cx = RouteCx { attention_gmtt: attention_gmtt.as_ref(), ..*cx };
        let execute =
            |x_gtd: &Tensor, plan: &TensorPlan| execute(&x_gtd.to_kind(narrow), plan).to_kind(wide);
        let (y_gtd, routing) = self.layer(&x_gtd.to_kind(wide), &cx, &execute)?;
        check_finite("logits", &routing.logits_gte)?;
        Ok((y_gtd.to_kind(narrow), routing))
    }
}

/// Refuses `x`, `[g, t, …]`, if a value is not finite; the error counts tokens over all groups.
fn check_finite(what: &'static str, x: &Tensor) -> Result<(), RouteError> {
    let x = x.detach();
    // A sum of finite values may overflow too, so that only a finite one settles it.
    if x.device() != Device::Cpu || x.sum(None::<Kind>).double_value(&[]).is_finite() {
        return Ok(());
    }
    RouteError::check_finite(what, to_host(&x.flatten(0, 1)).view())
}
