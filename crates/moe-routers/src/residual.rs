//! How a layer's output enters the stream: a seam of its own, so that methods that change the stream
//! between layers (momentum and its kin) compose with every router.
//!
//! A residual wraps its layer whole: it says what the layer reads, adds what the layer computed, and
//! places the norms. Whatever goes from sparse layer to sparse layer of one forward pass is handed on
//! as [`Carried`] and starts empty.
//!
//! A rule is written twice: as a [`Residual`] that trains, and as a [`HostResidual`] in plain `f64`. The
//! [`suite`](crate::suite) holds the first to the second.
//!
//! Axis letters: `t` tokens, `d` width.

mod plain;

pub use plain::{LN_EPS, Plain, PlainConfig};

use crate::config::{ConfigError, Settings};
use crate::norm::{HostNorm, TorchNorm};
use crate::router::Method;
use moe_core::RouteError;
use ndarray::{Array2, ArrayView2};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use tch::Tensor;

/// Where layer normalisation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// `x + f(norm(x))`.
    Pre,
    /// `norm(x + f(x))`.
    Post,
}

/// What goes from sparse layer to sparse layer, each like the stream; which tensors these are is the
/// rule's business.
pub type Carried = Vec<Tensor>;

/// A layer as its residual sees it; a rule may call it more than once.
pub type Sublayer<'a> = dyn FnMut(&Tensor) -> Result<Tensor, RouteError> + 'a;

/// The norms around a layer, those that [`ResidualConfig::norms`] asks for.
#[derive(Debug, Default)]
pub struct Norms {
    /// Before the layer, or of the step.
    pub inner: TorchNorm,
    /// Of an outer residual.
    pub outer: TorchNorm,
}

/// Which norms a layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NormsNeeded {
    /// [`Norms::inner`].
    pub inner: bool,
    /// [`Norms::outer`].
    pub outer: bool,
}

/// One rule for the stream. All its parameters are in the [`Norms`].
pub trait Residual: Debug + Send {
    /// Sparse layer number `layer` inside its residual: the stream behind it, and what it carries on.
    ///
    /// # Errors
    /// Those of `f`.
    fn sparse(
        &self,
        layer: usize,
        norms: &Norms,
        x: &Tensor,
        carried: Carried,
        f: &mut Sublayer<'_>,
    ) -> Result<(Tensor, Carried), RouteError>;

    /// A dense layer inside its residual; what sparse layers carry passes by.
    ///
    /// # Errors
    /// Those of `f`.
    fn dense(
        &self,
        norms: &Norms,
        x: &Tensor,
        carried: &Carried,
        f: &mut Sublayer<'_>,
    ) -> Result<Tensor, RouteError>;

    /// The same rule in host arithmetic.
    fn reference(&self) -> Box<dyn HostResidual>;
}

/// [`Carried`] on the host, `[t, d]` each.
pub type HostCarried = Vec<Array2<f64>>;

/// A layer on the host, `[t, d] -> [t, d]`.
pub type HostSublayer<'a> = dyn Fn(ArrayView2<'_, f64>) -> Result<Array2<f64>, RouteError> + 'a;

/// [`Norms`] on the host.
#[derive(Debug, Clone, Default)]
pub struct HostNorms {
    /// As [`Norms::inner`].
    pub inner: HostNorm,
    /// As [`Norms::outer`].
    pub outer: HostNorm,
}

/// A [`Residual`] in plain `f64`, all tokens of the stream as rows: what it is held to.
pub trait HostResidual {
    /// As [`Residual::sparse`].
    ///
    /// # Errors
    /// Those of `f`.
    fn sparse(
        &self,
        layer: usize,
        norms: &HostNorms,
        x_td: ArrayView2<'_, f64>,
        carried: HostCarried,
        f: &HostSublayer<'_>,
    ) -> Result<(Array2<f64>, HostCarried), RouteError>;

    /// As [`Residual::dense`].
    ///
    /// # Errors
    /// Those of `f`.
    fn dense(
        &self,
        norms: &HostNorms,
        x_td: ArrayView2<'_, f64>,
        carried: &HostCarried,
        f: &HostSublayer<'_>,
    ) -> Result<Array2<f64>, RouteError>;
}

/// A residual's settings, resolved and ready to build from.
pub trait ResidualConfig: Debug + Send + Sync {
    /// Every setting with its value, for the record of a run.
    fn settings(&self) -> Settings;

    /// Refuses values outside their range, and rules that do nothing in a model with this many sparse
    /// layers.
    ///
    /// # Errors
    /// Names the key, the value and the range.
    fn check(&self, sparse_layers: usize) -> Result<(), ConfigError>;

    /// Whether a token's place in the stream depends on no later token, if the layers' outputs do not.
    fn causal(&self) -> bool;

    /// Norms around a sparse layer (`true`) or a dense one, in a model whose norms stand at `norm`:
    /// exactly those that have an effect.
    fn norms(&self, norm: Norm, sparse: bool) -> NormsNeeded;

    /// The rule in a model whose norms stand at `norm`.
    fn build(&self, norm: Norm) -> Box<dyn Residual>;
}

/// Other names of a paper's presets: the name, the paper's id, the preset.
const NAMES: &[(&str, &str, &str)] = &[
    ("adam-momentum", "momentum", "adam_model"),
    ("robust-momentum", "momentum", "robust_model"),
    ("complex-momentum", "momentum", "complex_model"),
    ("negative-momentum", "momentum", "negative_model"),
    ("sharpness-momentum", "momentum", "sharpness_model"),
];

/// Reads the settings of residual `name`: `plain`, a paper's id, or one of the short names of its
/// presets.
///
/// # Errors
/// An unknown name, preset or key, or a value of the wrong type, each naming the key.
pub fn residual_config(
    name: &str,
    settings: &Settings,
) -> Result<Box<dyn ResidualConfig>, ConfigError> {
    if name == "plain" {
        return match settings.keys().next() {
            Some(key) => Err(ConfigError::setting(key, "the plain residual has no settings")),
            None => Ok(Box::new(PlainConfig)),
        };
    }
    let (id, settings) = match NAMES.iter().find(|(short, ..)| *short == name) {
        Some((_, id, preset)) => {
            let mut settings = settings.clone();
            settings.entry("preset").or_insert((*preset).into());
            (*id, settings)
        }
        None => (name, settings.clone()),
    };
    let residual = crate::PAPERS.iter().find_map(|paper| match paper.method {
        Method::Residual(read) if paper.id == id => Some(read),
        _ => None,
    });
    match residual {
        Some(read) => read(&settings),
        None => {
            let choices = names().join(", ");
            Err(ConfigError::Unknown { what: "residual", name: name.into(), choices })
        }
    }
}

/// The paper that residual `name` belongs to; the name itself if it is no short one.
pub fn home(name: &'static str) -> &'static str {
    NAMES.iter().find(|(short, ..)| *short == name).map_or(name, |(_, id, _)| id)
}

/// Every name that [`residual_config`] knows.
pub fn names() -> Vec<&'static str> {
    let papers = crate::PAPERS.iter().filter(|p| matches!(p.method, Method::Residual(_)));
    let short = NAMES.iter().map(|(short, ..)| *short);
    std::iter::once("plain").chain(papers.map(|paper| paper.id)).chain(short).collect()
}

/// Short names of the presets of paper `id`, each with its preset.
pub fn short_names(id: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    NAMES.iter().filter(move |(_, of, _)| *of == id).map(|(short, _, preset)| (*short, *preset))
}
