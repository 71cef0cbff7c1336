//! The contract of a residual, on a stack of three sparse layers and a dense one between them.
//!
//! Axis letters: `b` batch, `t` tokens, `d` width; on the host all tokens of the batch are rows.

use super::{
    Report, SuiteError, WIDTH, expert, gradient_error, host_expert, leaves, matrix_error, normal,
    reached, same,
};
use crate::config::{ConfigError, Settings};
use crate::convert::{to_host, to_host1};
use crate::noise::SeededNoise;
use crate::norm::{HostNorm, TorchNorm};
use crate::params::{Init, ParamStore, Params, Role};
use crate::residual::{Carried, HostCarried, HostNorms, Norm, Norms, Residual, ResidualConfig};
use crate::router::{Dims, Phase, RouteCx, Router};
use crate::tolerance::tolerance;
use moe_core::{HostInput, Reference, RouteError};
use ndarray::{Array2, ArrayView2};
use tch::{Device, Kind, Tensor};

const BATCH: i64 = 2;
const TOKENS: i64 = 4;
/// Which layers are sparse.
const SPARSE: [bool; 4] = [true, false, true, true];
/// In the place of a published `eps` inside a root (1e-8) where gradients are compared: with that one
/// a step is nearly a sign function, over which a finite difference stumbles.
const SMOOTH_EPS: f64 = 1e-2;

/// Reads the residual's settings with these over them.
type Read<'a> = dyn Fn(Settings) -> Result<Box<dyn ResidualConfig>, ConfigError> + 'a;

/// Holds a residual to the contract, in models of either norm.
pub(super) fn check(name: String, read: &Read<'_>) -> Result<Report, SuiteError> {
    let in_models = [check_in(Norm::Pre, read)?, check_in(Norm::Post, read)?];
    let worst = |of: fn(&Report) -> f64| in_models.iter().map(of).fold(0.0, f64::max);
    Ok(Report {
        name,
        value_error: worst(|report| report.value_error),
        gradient_error: worst(|report| report.gradient_error),
        gradients: in_models.iter().map(|report| report.gradients).sum(),
        causal: in_models.iter().all(|report| report.causal),
        refusals: Vec::new(),
        violations: in_models.iter().flat_map(|report| report.violations.clone()).collect(),
    })
}

/// Holds it to the contract in a model whose norms stand at `norm`.
fn check_in(norm: Norm, read: &Read<'_>) -> Result<Report, SuiteError> {
    let config = read(Settings::new())?;
    config.check(SPARSE.iter().filter(|sparse| **sparse).count())?;
    let stack = Stack::new(config.as_ref(), norm, 1.0)?;
    let idle = Stack::new(config.as_ref(), norm, 0.0)?;
    let mut violations = Vec::new();
    let value_error = stack.value_error()?.max(idle.value_error()?);
    let smooth = Stack::new(smooth(config, read)?.as_ref(), norm, 1.0)?;
    let (gradient_error, gradients) = smooth.gradient_error(&mut violations)?;
    let causal = stack.seems_causal()?;
    let limits = tolerance(Kind::Double);
    let mut claim = |holds: bool, what: String| {
        if !holds {
            violations.push(what);
        }
    };
    claim(value_error <= limits.value, format!("values differ by {value_error:.1e}"));
    claim(gradient_error <= limits.gradient, format!("gradients differ by {gradient_error:.1e}"));
    claim(causal == stack.causal, format!("causal is {causal}, which is not its claim"));
    claim(stack.is_without_order()?, "the order of tokens changed their values".into());
    claim(idle.is_finite_at(&idle.x_btd)?, "layers that return zero: not finite".into());
    violations.extend(stack.edge_violations()?);
    let violations = violations.into_iter().map(|what| format!("{norm:?}: {what}")).collect();
    let (name, refusals) = (String::new(), Vec::new());
    Ok(Report { name, value_error, gradient_error, gradients, causal, refusals, violations })
}

/// The same rule with [`SMOOTH_EPS`], if it has an `eps`.
fn smooth(
    config: Box<dyn ResidualConfig>,
    read: &Read<'_>,
) -> Result<Box<dyn ResidualConfig>, ConfigError> {
    if !config.settings().contains_key("eps") {
        return Ok(config);
    }
    read(Settings::from_iter([("eps".to_owned(), SMOOTH_EPS.into())]))
}

/// Layers inside one residual, in doubles.
struct Stack {
    residual: Box<dyn Residual>,
    causal: bool,
    layers: Vec<Layer>,
    /// The norms that are asked for.
    store: ParamStore,
    /// The other norms, which must have no effect.
    spare: ParamStore,
    x_btd: Tensor,
    /// Weights of the outputs in the objective.
    cot_btd: Tensor,
}

/// A router on libtorch and on the host.
type BothSides = (Box<dyn Router>, Box<dyn Reference>);

/// A sparse layer with its router, or a dense one.
struct Layer {
    norms: Norms,
    router: Option<BothSides>,
    /// Factor on what it computes.
    force: f64,
}

/// A norm with parameters that are neither 0 nor 1.
fn norm_under(params: &Params<'_>) -> TorchNorm {
    let add = |name| Some(params.add(name, &[WIDTH], Init::Normal(0.8), Role::Undecayed));
    TorchNorm { weight_d: add("weight"), bias_d: add("bias") }
}

/// A router with weights of its own, and its reference.
fn router(seed: u64) -> Result<BothSides, SuiteError> {
    let config = crate::router_config("smoe", &Settings::new())?;
    let store = ParamStore::new(seed, Device::Cpu, Kind::Double);
    let router = config.build(&store.root(), Dims { width: WIDTH, experts: 4 });
    for gate_ed in store.entries().iter() {
        // Wide enough that no finite difference crosses a tie.
        let _ = tch::no_grad(|| gate_ed.tensor.shallow_clone().g_mul_scalar_(30.0));
    }
    let reference = router.reference();
    Ok((router, reference))
}

fn host_norms(norms: &Norms) -> HostNorms {
    let of = |norm: &TorchNorm| HostNorm {
        weight_d: norm.weight_d.as_ref().map(to_host1),
        bias_d: norm.bias_d.as_ref().map(to_host1),
    };
    HostNorms { inner: of(&norms.inner), outer: of(&norms.outer) }
}

impl Layer {
    /// `[b, t, d] -> [b, t, d]`.
    fn run(&self, u_btd: &Tensor) -> Result<Tensor, RouteError> {
        let Some((router, _)) = &self.router else { return Ok(u_btd.cos() * self.force) };
        let noise = SeededNoise::eval(7, 0);
        let cx = RouteCx::new(Phase::Eval, &noise);
        let (y_btd, _) = router.layer(u_btd, &cx, &|u_btd, plan| plan.apply(u_btd, expert))?;
        Ok(y_btd * self.force)
    }

    /// `[t, d] -> [t, d]`.
    fn run_host(&self, u_td: ArrayView2<'_, f64>) -> Result<Array2<f64>, RouteError> {
        let Some((_, reference)) = &self.router else {
            return Ok(u_td.mapv(f64::cos) * self.force);
        };
        let (y_td, _) = reference.layer(&HostInput::new(u_td), &host_expert)?;
        Ok(y_td * self.force)
    }
}

impl Stack {
    fn new(config: &dyn ResidualConfig, norm: Norm, force: f64) -> Result<Self, SuiteError> {
        let new_store = || ParamStore::new(7, Device::Cpu, Kind::Double);
        let (store, spare) = (new_store(), new_store());
        let layer = |(index, sparse): (usize, bool)| {
            let (own, other) = (store.root().child(index), spare.root().child(index));
            let needed = config.norms(norm, sparse);
            let of = |needed, name| norm_under(&(if needed { &own } else { &other }).child(name));
            let norms =
                Norms { inner: of(needed.inner, "inner"), outer: of(needed.outer, "outer") };
            let router = sparse.then(|| router(index as u64)).transpose()?;
            Ok(Layer { norms, router, force })
        };
        let layers =
            SPARSE.into_iter().enumerate().map(layer).collect::<Result<_, SuiteError>>()?;
        let x_btd = normal("tokens", &[BATCH, TOKENS, WIDTH]) * 1.2 + 0.7;
        Ok(Self {
            residual: config.build(norm),
            causal: config.causal(),
            layers,
            store,
            spare,
            x_btd: x_btd.set_requires_grad(true),
            cot_btd: normal("cotangent", &[BATCH, TOKENS, WIDTH]),
        })
    }

    /// `[b, t, d] -> [b, t, d]`.
    fn run(&self, x_btd: &Tensor) -> Result<Tensor, RouteError> {
        let (mut x_btd, mut carried, mut number) = (x_btd.shallow_clone(), Carried::new(), 0);
        for layer in &self.layers {
            let f = &mut |u_btd: &Tensor| layer.run(u_btd);
            if layer.router.is_none() {
                x_btd = self.residual.dense(&layer.norms, &x_btd, &carried, f)?;
                continue;
            }
            (x_btd, carried) = self.residual.sparse(number, &layer.norms, &x_btd, carried, f)?;
            number += 1;
        }
        Ok(x_btd)
    }

    /// The same on the host, from the stack's own tokens.
    fn run_host(&self) -> Result<Array2<f64>, RouteError> {
        let residual = self.residual.reference();
        let mut x_td = to_host(&self.x_btd.flatten(0, 1));
        let (mut carried, mut number) = (HostCarried::new(), 0);
        for layer in &self.layers {
            let (norms, f) =
                (host_norms(&layer.norms), |u_td: ArrayView2<'_, f64>| layer.run_host(u_td));
            if layer.router.is_none() {
                x_td = residual.dense(&norms, x_td.view(), &carried, &f)?;
                continue;
            }
            (x_td, carried) = residual.sparse(number, &norms, x_td.view(), carried, &f)?;
            number += 1;
        }
        Ok(x_td)
    }

    fn value_error(&self) -> Result<f64, RouteError> {
        let y_btd = self.run(&self.x_btd)?;
        Ok(matrix_error(&to_host(&y_btd.flatten(0, 1)), &self.run_host()?))
    }

    /// Worst error of all gradients, and how many there are.
    fn gradient_error(&self, violations: &mut Vec<String>) -> Result<(f64, usize), SuiteError> {
        (self.run(&self.x_btd)?.square() * &self.cot_btd).sum(Kind::Double).backward();
        for param in self.spare.entries().iter().filter(|param| reached(&param.tensor)) {
            violations.push(format!("norm {} has an effect, but is not asked for", param.name));
        }
        let cot_td = to_host(&self.cot_btd.flatten(0, 1));
        gradient_error(leaves(&self.x_btd, &self.store), violations, || {
            Ok((self.run_host()?.mapv(|y| y * y) * &cot_td).sum())
        })
    }

    /// Whether tokens in another order have the same values in that order.
    fn is_without_order(&self) -> Result<bool, RouteError> {
        let x_btd = self.x_btd.detach();
        Ok(same(&self.run(&x_btd.flip([0, 1]))?, &self.run(&x_btd)?.flip([0, 1])))
    }

    /// Whether early tokens of the first sequence stay as they are, whatever else there is.
    fn seems_causal(&self) -> Result<bool, RouteError> {
        let (x_btd, half) = (self.x_btd.detach(), TOKENS / 2);
        let early = |y_btd: Tensor| y_btd.get(0).narrow(0, 0, half);
        let want = early(self.run(&x_btd)?);
        for factor in [-3.0, -1.0, 0.0, 0.3, 3.0] {
            let late = Tensor::cat(
                &[x_btd.narrow(1, 0, half), x_btd.narrow(1, half, TOKENS - half) * factor],
                1,
            );
            let apart = Tensor::cat(&[x_btd.narrow(0, 0, 1), x_btd.narrow(0, 1, 1) * factor], 0);
            if !same(&want, &early(self.run(&late)?)) || !same(&want, &early(self.run(&apart)?)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether outputs and gradients are numbers.
    fn is_finite_at(&self, x_btd: &Tensor) -> Result<bool, RouteError> {
        let x_btd = x_btd.detach().copy().set_requires_grad(true);
        let y_btd = self.run(&x_btd)?;
        y_btd.sum(Kind::Double).backward();
        let sum = y_btd.sum(Kind::Double) + x_btd.grad().sum(Kind::Double);
        Ok(sum.double_value(&[]).is_finite())
    }

    fn edge_violations(&self) -> Result<Vec<String>, RouteError> {
        let x_btd = self.x_btd.detach();
        let edges = [
            ("zero tokens", x_btd.zeros_like()),
            ("identical tokens", x_btd.narrow(1, 0, 1).expand_as(&x_btd).copy()),
            ("huge tokens", &x_btd * 1e4),
            ("one token", x_btd.narrow(0, 0, 1).narrow(1, 0, 1).copy()),
        ];
        let mut violations = Vec::new();
        for (name, x_btd) in edges {
            if !self.is_finite_at(&x_btd)? {
                violations.push(format!("{name}: not finite"));
            }
        }
        Ok(violations)
    }
}
