//! The rules as residuals of a model, on both sides.
//!
//! Axis letters: `t` tokens, `d` width.

use super::{Config, NormPlace, Rule, host, torch};
use crate::config::{ConfigError, Settings, to_settings};
use crate::residual::{
    Carried, HostCarried, HostNorms, HostResidual, HostSublayer, Norm, Norms, NormsNeeded,
    Residual, ResidualConfig, Sublayer,
};
use moe_core::RouteError;
use ndarray::{Array2, ArrayView2};
use tch::Tensor;

impl ResidualConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, sparse_layers: usize) -> Result<(), ConfigError> {
        self.check_values()?;
        if self.rule == Rule::Plain || sparse_layers >= 2 {
            return Ok(());
        }
        let reason = format!(
            "nothing would be carried from layer to layer: the model has {sparse_layers} sparse layer, \
             and every rule but `plain` needs 2 (model.layers, model.moe_every)"
        );
        Err(ConfigError::setting("rule", reason))
    }

    /// The sharpness-aware step (6) divides by a norm over all tokens.
    fn causal(&self) -> bool {
        self.sam_rho == 0.0
    }

    fn norms(&self, norm: Norm, sparse: bool) -> NormsNeeded {
        let place = self.norm.in_model(norm);
        let inner = place != NormPlace::None;
        NormsNeeded { inner, outer: place == NormPlace::Vmoe || (inner && sparse && self.outer) }
    }

    fn build(&self, norm: Norm) -> Box<dyn Residual> {
        Box::new(Momentum(Config { norm: self.norm.in_model(norm), ..self.clone() }))
    }
}

/// A rule whose norms have their place.
#[derive(Debug)]
struct Momentum(Config);

impl torch::State {
    fn carry(self) -> Carried {
        vec![self.p, self.v, self.m, self.q]
    }

    /// What was carried; zeros like the stream `x` before the first sparse layer.
    fn carried(carried: &Carried, x: &Tensor) -> Self {
        match carried.as_slice() {
            [p, v, m, q] => {
                let [p, v, m, q] = [p, v, m, q].map(Tensor::shallow_clone);
                Self { p, v, m, q }
            }
            [] => Self::zeros_like(x),
            other => unreachable!("{} tensors are not this rule's state", other.len()),
        }
    }
}

impl Residual for Momentum {
    fn sparse(
        &self,
        layer: usize,
        norms: &Norms,
        x: &Tensor,
        carried: Carried,
        f: &mut Sublayer<'_>,
    ) -> Result<(Tensor, Carried), RouteError> {
        let state = torch::State::carried(&carried, x);
        let layered = |u: &Tensor| Ok::<_, RouteError>((f(u)?, ()));
        let step = torch::block(&self.0, layer, norms, None, x, &state, layered)?;
        Ok((step.x, step.state.carry()))
    }

    fn dense(
        &self,
        norms: &Norms,
        x: &Tensor,
        carried: &Carried,
        f: &mut Sublayer<'_>,
    ) -> Result<Tensor, RouteError> {
        torch::dense(&self.0, norms, x, &torch::State::carried(carried, x), f)
    }

    fn reference(&self) -> Box<dyn HostResidual> {
        Box::new(Host(self.0.clone()))
    }
}

struct Host(Config);

impl host::State {
    fn carry(self) -> HostCarried {
        vec![self.p_td, self.v_td, self.m_td, self.q_td]
    }

    fn carried(carried: &HostCarried, x_td: ArrayView2<'_, f64>) -> Self {
        match carried.as_slice() {
            [p_td, v_td, m_td, q_td] => {
                let [p_td, v_td, m_td, q_td] = [p_td, v_td, m_td, q_td].map(Array2::clone);
                Self { p_td, v_td, m_td, q_td }
            }
            [] => Self::zeros(x_td.dim()),
            other => unreachable!("{} arrays are not this rule's state", other.len()),
        }
    }
}

impl HostResidual for Host {
    fn sparse(
        &self,
        layer: usize,
        norms: &HostNorms,
        x_td: ArrayView2<'_, f64>,
        carried: HostCarried,
        f: &HostSublayer<'_>,
    ) -> Result<(Array2<f64>, HostCarried), RouteError> {
        let state = host::State::carried(&carried, x_td);
        let layered = |u_td: ArrayView2<'_, f64>| Ok::<_, RouteError>((f(u_td)?, ()));
        let step = host::block(&self.0, layer, norms, None, x_td, &state, layered)?;
        Ok((step.x_td, step.state.carry()))
    }

    fn dense(
        &self,
        norms: &HostNorms,
        x_td: ArrayView2<'_, f64>,
        carried: &HostCarried,
        f: &HostSublayer<'_>,
    ) -> Result<Array2<f64>, RouteError> {
        host::dense(&self.0, norms, x_td, &host::State::carried(carried, x_td), f)
    }
}
