//! The residual of every model that has no other: add, and normalise where the model does.
//!
//! Axis letters: `t` tokens, `d` width.

use super::{
    Carried, HostCarried, HostNorms, HostResidual, HostSublayer, Norm, Norms, NormsNeeded,
    Residual, ResidualConfig, Sublayer,
};
use crate::config::{ConfigError, Settings};
use crate::norm::{HostNorm, TorchNorm};
use moe_core::RouteError;
use ndarray::{Array2, ArrayView2};
use tch::Tensor;

/// Epsilon of the norms of [`Plain`], and of models.
pub const LN_EPS: f64 = 1e-5;

/// `x + f(x)` with the model's norm, nothing carried.
#[derive(Debug, Clone, Copy)]
pub struct Plain {
    norm: Norm,
}

impl Plain {
    /// The plain residual of a model whose norms stand at `norm`.
    pub fn new(norm: Norm) -> Self {
        Self { norm }
    }

    /// `f` inside the residual.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn step(
        self,
        norm: &TorchNorm,
        x: &Tensor,
        f: &mut Sublayer<'_>,
    ) -> Result<Tensor, RouteError> {
        Ok(match self.norm {
            Norm::Pre => x + f(&norm.apply(x, LN_EPS))?,
            Norm::Post => norm.apply(&(x + f(x)?), LN_EPS),
        })
    }
}

impl Residual for Plain {
    fn sparse(
        &self,
        _layer: usize,
        norms: &Norms,
        x: &Tensor,
        carried: Carried,
        f: &mut Sublayer<'_>,
    ) -> Result<(Tensor, Carried), RouteError> {
        Ok((self.step(&norms.inner, x, f)?, carried))
    }

    fn dense(
        &self,
        norms: &Norms,
        x: &Tensor,
        _carried: &Carried,
        f: &mut Sublayer<'_>,
    ) -> Result<Tensor, RouteError> {
        self.step(&norms.inner, x, f)
    }

    fn reference(&self) -> Box<dyn HostResidual> {
        Box::new(*self)
    }
}

impl Plain {
    fn host_step(
        self,
        norm: &HostNorm,
        x_td: ArrayView2<'_, f64>,
        f: &HostSublayer<'_>,
    ) -> Result<Array2<f64>, RouteError> {
        Ok(match self.norm {
            Norm::Pre => &x_td + &f(norm.apply(x_td, LN_EPS).view())?,
            Norm::Post => norm.apply((&x_td + &f(x_td)?).view(), LN_EPS),
        })
    }
}

impl HostResidual for Plain {
    fn sparse(
        &self,
        _layer: usize,
        norms: &HostNorms,
        x_td: ArrayView2<'_, f64>,
        carried: HostCarried,
        f: &HostSublayer<'_>,
    ) -> Result<(Array2<f64>, HostCarried), RouteError> {
        Ok((self.host_step(&norms.inner, x_td, f)?, carried))
    }

    fn dense(
        &self,
        norms: &HostNorms,
        x_td: ArrayView2<'_, f64>,
        _carried: &HostCarried,
        f: &HostSublayer<'_>,
    ) -> Result<Array2<f64>, RouteError> {
        self.host_step(&norms.inner, x_td, f)
    }
}

/// [`Plain`] has nothing to set.
#[derive(Debug)]
pub struct PlainConfig;

impl ResidualConfig for PlainConfig {
    fn settings(&self) -> Settings {
        Settings::new()
    }

    fn check(&self, _sparse_layers: usize) -> Result<(), ConfigError> {
        Ok(())
    }

    fn causal(&self) -> bool {
        true
    }

    fn norms(&self, _norm: Norm, _sparse: bool) -> NormsNeeded {
        NormsNeeded { inner: true, outer: false }
    }

    fn build(&self, norm: Norm) -> Box<dyn Residual> {
        Box::new(Plain::new(norm))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn f(u: &Tensor) -> Tensor {
        u.tanh() * 3.0
    }

    /// Bit for bit the two lines of the textbook, for both kinds of layer; nothing is carried.
    #[test]
    fn it_adds_and_normalises_and_nothing_else() {
        let x = Tensor::from_slice(&[0.3f32, -1.7, 2.2, 0.4, 5.0, -0.1]).view([2, 3]);
        let weight_d = || Tensor::from_slice(&[1.5f32, 0.5, -1.0]);
        let norms = Norms {
            inner: TorchNorm { weight_d: Some(weight_d()), bias_d: None },
            outer: TorchNorm::default(),
        };
        let normed =
            |x: &Tensor| x.layer_norm([3], Some(weight_d()), None::<Tensor>, LN_EPS, false);
        for (norm, want) in [(Norm::Pre, &x + f(&normed(&x))), (Norm::Post, normed(&(&x + f(&x))))]
        {
            let residual = PlainConfig.build(norm);
            let mut layer = |u: &Tensor| Ok(f(u));
            let dense = residual.dense(&norms, &x, &Carried::new(), &mut layer).unwrap();
            let (sparse, carried) =
                residual.sparse(0, &norms, &x, Carried::new(), &mut layer).unwrap();
            assert_eq!((&dense, &sparse), (&want, &want), "{norm:?}");
            assert!(carried.is_empty() && want.kind() == Kind::Float);
        }
    }
}
