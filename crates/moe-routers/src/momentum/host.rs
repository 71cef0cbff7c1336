//! The rules in plain `f64`, in the order of the equations.
//!
//! Axis letters: `t` tokens, `d` width.

use super::config::unplaced;
use super::{Config, NormPlace, Rule};
use crate::residual::HostNorms;
use ndarray::{Array2, ArrayView2, Zip};

/// What goes from layer to layer, `[t, d]` each.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Momentum; the real part in the complex rule.
    pub p_td: Array2<f64>,
    /// Second moment (3).
    pub v_td: Array2<f64>,
    /// Momentum beside Adam's (3).
    pub m_td: Array2<f64>,
    /// Imaginary part (5).
    pub q_td: Array2<f64>,
}

impl State {
    /// The state before the first layer.
    pub fn zeros((tokens, width): (usize, usize)) -> Self {
        let zero_td = Array2::zeros((tokens, width));
        Self { p_td: zero_td.clone(), v_td: zero_td.clone(), m_td: zero_td.clone(), q_td: zero_td }
    }
}

/// A layer's result.
#[derive(Debug, Clone)]
pub struct Step<R> {
    /// The stream behind the layer, `[t, d]`.
    pub x_td: Array2<f64>,
    /// The state behind the layer.
    pub state: State,
    /// The layer's output as the rule saw it, `[t, d]`.
    pub f_td: Array2<f64>,
    /// What the layer returned beside it.
    pub beside: R,
}

/// (1)-(5): the step before any norm, and the new state. `layer` counts sparse layers.
pub fn update(
    config: &Config,
    layer: usize,
    x_td: ArrayView2<'_, f64>,
    f_td: ArrayView2<'_, f64>,
    state: &State,
) -> (Array2<f64>, State) {
    let (sigma, mut next) = (config.sigma(), state.clone());
    let step_td = match config.rule {
        Rule::Plain => f_td.mapv(|f| sigma * f),
        Rule::Momentum => {
            next.p_td = &state.p_td * config.mu + &f_td * config.gamma;
            &next.p_td * sigma
        }
        Rule::Adam => {
            adam(config, layer, f_td, state, &mut next);
            let normalised_td = adaptive(config, &next);
            (if config.adam_here(layer) { normalised_td } else { next.m_td.clone() }) * sigma
        }
        Rule::Robust => {
            let robust = config.constants().expect("the robust rule has constants");
            next.p_td = &f_td * sigma + &state.p_td * robust.a;
            &next.p_td * robust.b
        }
        Rule::Complex => {
            let (re, im) = (config.mu, config.mu_im);
            next.p_td = &state.p_td * re - &state.q_td * im + &f_td * config.gamma;
            next.q_td = &state.q_td * re + &state.p_td * im;
            &next.p_td * sigma
        }
    };
    (&x_td * config.kept_residual(layer) + step_td, next)
}

/// (3), the state: `p` and `v` rest where Adam does not act.
fn adam(config: &Config, layer: usize, f_td: ArrayView2<'_, f64>, state: &State, next: &mut State) {
    next.m_td = &state.m_td * config.mu + &f_td * config.gamma;
    if config.adam_here(layer) {
        let (b1, b2) = (config.beta1, config.beta2);
        next.p_td = &state.p_td * b1 + &f_td * (1.0 - b1);
        next.v_td = &state.v_td * b2 + f_td.mapv(|f| f * f) * (1.0 - b2);
    }
}

/// (3), the step: epsilon inside the root, no bias correction.
fn adaptive(config: &Config, next: &State) -> Array2<f64> {
    let mut step_td = next.p_td.clone();
    Zip::from(&mut step_td).and(&next.v_td).for_each(|p, v| {
        // A zero force is a zero step, even without an epsilon.
        *p = if *p == 0.0 { 0.0 } else { config.gamma1 * *p / (v + config.eps).sqrt() };
    });
    step_td
}

/// A sparse layer with its rule and its norms around it; `f` computes it at `[t, d]`.
///
/// `dropout_td` is a mask with its factor, and does not act under the robust rule.
///
/// # Errors
/// Those of `f`.
pub fn block<R, E>(
    config: &Config,
    layer: usize,
    norms: &HostNorms,
    dropout_td: Option<ArrayView2<'_, f64>>,
    x_td: ArrayView2<'_, f64>,
    state: &State,
    f: impl Fn(ArrayView2<'_, f64>) -> Result<(Array2<f64>, R), E>,
) -> Result<Step<R>, E> {
    let mut u_td = input(config, norms, x_td);
    if let Some(robust) = config.constants() {
        u_td += &(&state.p_td * robust.shift());
    }
    let dropout_td = dropout_td.filter(|_| config.rule != Rule::Robust);
    let masked = |u_td: ArrayView2<'_, f64>| {
        let (f_td, beside) = f(u_td)?;
        Ok((if let Some(mask_td) = &dropout_td { f_td * mask_td } else { f_td }, beside))
    };
    let (f_td, beside) = evaluate(config, u_td.view(), masked)?;
    let (step_td, state) = update(config, layer, x_td, f_td.view(), state);
    Ok(Step { x_td: output(config, norms, x_td, step_td), state, f_td, beside })
}

/// (6): `f` at `u`, or at a point uphill from it.
fn evaluate<R, E>(
    config: &Config,
    u_td: ArrayView2<'_, f64>,
    f: impl Fn(ArrayView2<'_, f64>) -> Result<(Array2<f64>, R), E>,
) -> Result<(Array2<f64>, R), E> {
    let first = f(u_td)?;
    let norm = first.0.iter().map(|v| v * v).sum::<f64>().sqrt();
    if config.sam_rho == 0.0 || norm == 0.0 {
        return Ok(first);
    }
    f((&u_td + &(first.0 * (config.sam_rho / norm))).view())
}

/// What the layer reads, before any shift.
fn input(config: &Config, norms: &HostNorms, x_td: ArrayView2<'_, f64>) -> Array2<f64> {
    match config.norm {
        NormPlace::None | NormPlace::Post => x_td.to_owned(),
        NormPlace::Pre | NormPlace::Vmoe => norms.inner.apply(x_td, config.ln_eps),
        NormPlace::Model => unplaced(),
    }
}

/// What the norm after the layer makes of its result.
fn settled(config: &Config, norms: &HostNorms, y_td: Array2<f64>) -> Array2<f64> {
    match config.norm {
        NormPlace::None | NormPlace::Pre => y_td,
        NormPlace::Post => norms.inner.apply(y_td.view(), config.ln_eps),
        NormPlace::Vmoe => norms.outer.apply(y_td.view(), config.ln_eps),
        NormPlace::Model => unplaced(),
    }
}

/// Norms and the outer residual around the step.
fn output(
    config: &Config,
    norms: &HostNorms,
    x_td: ArrayView2<'_, f64>,
    step_td: Array2<f64>,
) -> Array2<f64> {
    let s_td = settled(config, norms, step_td);
    match (config.outer, config.norm) {
        (false, _) | (true, NormPlace::Vmoe) => s_td,
        (true, NormPlace::None) => &x_td + &s_td,
        (true, _) => norms.outer.apply((&x_td + &s_td).view(), config.ln_eps),
    }
}

/// A dense layer between sparse ones: the plain residual; the state passes by.
///
/// # Errors
/// Those of `ffn`.
pub fn dense<E>(
    config: &Config,
    norms: &HostNorms,
    x_td: ArrayView2<'_, f64>,
    state: &State,
    ffn: impl FnOnce(ArrayView2<'_, f64>) -> Result<Array2<f64>, E>,
) -> Result<Array2<f64>, E> {
    let mut u_td = input(config, norms, x_td);
    if let (NormPlace::Vmoe, Some(robust)) = (config.norm, config.constants()) {
        u_td += &(&state.p_td * robust.shift()); // as the vision code does
    }
    Ok(settled(config, norms, &x_td + &ffn(u_td.view())?))
}
