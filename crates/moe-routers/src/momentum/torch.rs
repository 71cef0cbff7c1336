//! The rules on libtorch, any leading axes, everything on the graph.
//!
//! Axis letters: `d` width, the last axis; the axes before it are left open.

use super::config::unplaced;
use super::{Config, NormPlace, Rule};
use crate::residual::Norms;
use tch::{Kind, Tensor};

/// What goes from layer to layer, each like the stream.
#[derive(Debug)]
pub struct State {
    /// Momentum; the real part in the complex rule.
    pub p: Tensor,
    /// Second moment (3).
    pub v: Tensor,
    /// Momentum beside Adam's (3).
    pub m: Tensor,
    /// Imaginary part (5).
    pub q: Tensor,
}

impl State {
    /// The state before the first layer.
    pub fn zeros_like(x: &Tensor) -> Self {
        let zero = x.detach().zeros_like();
        let copy = || zero.shallow_clone();
        Self { p: copy(), v: copy(), m: copy(), q: copy() }
    }

    /// The same tensors.
    pub fn share(&self) -> Self {
        let [p, v, m, q] = [&self.p, &self.v, &self.m, &self.q].map(Tensor::shallow_clone);
        Self { p, v, m, q }
    }
}

/// A layer's result.
#[derive(Debug)]
pub struct Step<R> {
    /// The stream behind the layer.
    pub x: Tensor,
    /// The state behind the layer.
    pub state: State,
    /// The layer's output as the rule saw it.
    pub f: Tensor,
    /// What the layer returned beside it.
    pub beside: R,
}

/// (1)-(5): the step before any norm, and the new state. `layer` counts sparse layers.
pub fn update(
    config: &Config,
    layer: usize,
    x: &Tensor,
    f: &Tensor,
    state: &State,
) -> (Tensor, State) {
    let (sigma, mut next) = (config.sigma(), state.share());
    let step = match config.rule {
        Rule::Plain => f * sigma,
        Rule::Momentum => {
            next.p = &state.p * config.mu + f * config.gamma;
            &next.p * sigma
        }
        Rule::Adam => adam(config, layer, f, state, &mut next) * sigma,
        Rule::Robust => {
            let robust = config.constants().expect("the robust rule has constants");
            next.p = f * sigma + &state.p * robust.a;
            &next.p * robust.b
        }
        Rule::Complex => {
            next.p = &state.p * config.mu - &state.q * config.mu_im + f * config.gamma;
            next.q = &state.q * config.mu + &state.p * config.mu_im;
            &next.p * sigma
        }
    };
    (x * config.kept_residual(layer) + step, next)
}

/// (3): the unsigned step; `p` and `v` rest where Adam does not act.
fn adam(config: &Config, layer: usize, f: &Tensor, state: &State, next: &mut State) -> Tensor {
    next.m = &state.m * config.mu + f * config.gamma;
    if !config.adam_here(layer) {
        return next.m.shallow_clone();
    }
    next.p = &state.p * config.beta1 + f * (1.0 - config.beta1);
    next.v = &state.v * config.beta2 + f.square() * (1.0 - config.beta2);
    // A zero force is a zero step, even without an epsilon: 0 / 1 stands for 0 / 0.
    let square = &next.v + config.eps;
    let empty = square.eq(0.0).logical_and(&next.p.eq(0.0));
    let root = square.ones_like().where_self(&empty, &square).sqrt();
    &next.p * config.gamma1 / root
}

/// A sparse layer with its rule and its norms around it; `f` computes it.
///
/// `dropout` is a mask with its factor, and does not act under the robust rule.
///
/// # Errors
/// Those of `f`.
pub fn block<R, E>(
    config: &Config,
    layer: usize,
    norms: &Norms,
    dropout: Option<&Tensor>,
    x: &Tensor,
    state: &State,
    mut f: impl FnMut(&Tensor) -> Result<(Tensor, R), E>,
) -> Result<Step<R>, E> {
    let u = input(config, norms, x);
    let u = match config.constants() {
        Some(robust) => u + &state.p * robust.shift(),
        None => u,
    };
    let dropout = dropout.filter(|_| config.rule != Rule::Robust);
    let masked = |u: &Tensor| {
        let (f_u, beside) = f(u)?;
        Ok((if let Some(mask) = dropout { f_u * mask } else { f_u }, beside))
    };
    let (f_u, beside) = evaluate(config, &u, masked)?;
    let (step, state) = update(config, layer, x, &f_u, state);
    Ok(Step { x: output(config, norms, x, step), state, f: f_u, beside })
}

/// (6): `f` at `u`, or at a point uphill from it; the shift is part of the graph.
fn evaluate<R, E>(
    config: &Config,
    u: &Tensor,
    mut f: impl FnMut(&Tensor) -> Result<(Tensor, R), E>,
) -> Result<(Tensor, R), E> {
    let first = f(u)?;
    if config.sam_rho == 0.0 {
        return Ok(first);
    }
    let norm = first.0.square().sum(None::<Kind>).sqrt();
    if norm.double_value(&[]) == 0.0 {
        return Ok(first);
    }
    f(&(u + first.0 * config.sam_rho / norm))
}

/// What the layer reads, before any shift.
fn input(config: &Config, norms: &Norms, x: &Tensor) -> Tensor {
    match config.norm {
        NormPlace::None | NormPlace::Post => x.shallow_clone(),
        NormPlace::Pre | NormPlace::Vmoe => norms.inner.apply(x, config.ln_eps),
        NormPlace::Model => unplaced(),
    }
}

/// What the norm after the layer makes of its result.
fn settled(config: &Config, norms: &Norms, y: Tensor) -> Tensor {
    match config.norm {
        NormPlace::None | NormPlace::Pre => y,
        NormPlace::Post => norms.inner.apply(&y, config.ln_eps),
        NormPlace::Vmoe => norms.outer.apply(&y, config.ln_eps),
        NormPlace::Model => unplaced(),
    }
}

/// Norms and the outer residual around the step.
fn output(config: &Config, norms: &Norms, x: &Tensor, step: Tensor) -> Tensor {
    let s = settled(config, norms, step);
    match (config.outer, config.norm) {
        (false, _) | (true, NormPlace::Vmoe) => s,
        (true, NormPlace::None) => x + s,
        (true, _) => norms.outer.apply(&(x + s), config.ln_eps),
    }
}

/// A dense layer between sparse ones: the plain residual; the state passes by.
///
/// # Errors
/// Those of `ffn`.
pub fn dense<E>(
    config: &Config,
    norms: &Norms,
    x: &Tensor,
    state: &State,
    ffn: impl FnOnce(&Tensor) -> Result<Tensor, E>,
) -> Result<Tensor, E> {
    let u = input(config, norms, x);
    let u = match (config.norm, config.constants()) {
        (NormPlace::Vmoe, Some(robust)) => u + &state.p * robust.shift(), // as the vision code does
        _ => u,
    };
    Ok(settled(config, norms, x + ffn(&u)?))
}
