//! Runs a router with given weights, in a given phase, on one group of tokens.
//!
//! Axis letters: `t` tokens, `d` width, `e` experts.

use crate::op::OpError;
use crate::ops::Given;
use moe_core::{HostInput, HostRouting};
use moe_routers::convert::{to_host, to_indices};
use moe_routers::{Dims, ParamStore, Phase, RouteCx, Router, RouterConfig, Routing};
use tch::{Device, Tensor};

/// What an operation hands to a router, on either side.
pub(super) struct Serve<'a> {
    /// The router's settings.
    pub(super) config: &'a dyn RouterConfig,
    /// Its parameters by name, with their graph where it matters.
    pub(super) params: Vec<(&'static str, Tensor)>,
    /// The tokens, `[t, d]`.
    pub(super) x_td: Tensor,
    /// Number of experts.
    pub(super) experts: usize,
    /// Training, at its first step, or evaluation.
    pub(super) train: bool,
    /// Ids of the tokens.
    pub(super) token_t: Option<Vec<usize>>,
}

/// The gate that hands logits through.
pub(super) fn identity(experts: usize, like: &Tensor) -> Tensor {
    Tensor::eye(experts as i64, (like.kind(), Device::Cpu))
}

impl Serve<'_> {
    fn build(&self) -> Box<dyn Router> {
        let given = self.params.iter().map(|(name, t)| ((*name).to_owned(), t.shallow_clone()));
        let store = ParamStore::new(0, Device::Cpu, self.x_td.kind()).with_given(given);
        let (width, experts) = (self.x_td.size()[1], self.experts as i64);
        self.config.build(&store.root(), Dims { width, experts })
    }

    /// Routes with the trainable form.
    ///
    /// # Errors
    /// The router's.
    pub(super) fn torch(&self) -> Result<Routing, OpError> {
        let x_gtd = self.x_td.unsqueeze(0);
        let ids = |t: &Vec<usize>| to_indices(t, &[1, t.len() as i64], &x_gtd);
        let token_gt = self.token_t.as_ref().map(ids);
        let phase = if self.train { Phase::Train { step: 0 } } else { Phase::Eval };
        let noise = Given::default();
        let cx = RouteCx { token_gt: token_gt.as_ref(), ..RouteCx::new(phase, &noise) };
        Ok(self.build().route(&x_gtd, &cx)?)
    }

    /// Routes with the plain reference.
    ///
    /// # Errors
    /// The reference's.
    pub(super) fn reference(&self) -> Result<HostRouting, OpError> {
        let x_td = to_host(&self.x_td);
        let input = HostInput::new(x_td.view()).train(self.train);
        Ok(self.build().reference().route(&input.tokens(self.token_t.as_deref()))?)
    }
}
