//! What a router is, what it is given, what it returns, and what a paper's entry says of it.

use crate::config::{ConfigError, RouterConfig, Settings};
use crate::noise::{Noise, Site};
use crate::plan::{ChoicesGtk, TensorPlan};
use crate::residual::ResidualConfig;
use moe_core::{CapacityError, CapacityPolicy, DropOrder, Reference, RouteError};
use std::fmt::Debug;
use tch::Tensor;

/// A published method, described once. The command line, the recipes, `docs/papers.md` and the
/// [`suite`](crate::suite) read it.
#[derive(Debug)]
pub struct Paper {
    /// Name in recipes and on the command line.
    pub id: &'static str,
    /// Title of the paper.
    pub title: &'static str,
    /// First author and year.
    pub authors: &'static str,
    /// arXiv number; empty for controls.
    pub arxiv: &'static str,
    /// What it is against, what it does, and why that should help: at most five lines, of which the
    /// first also serves in lists.
    pub idea: &'static str,
    /// What state it has: parameters and buffers with their shapes, and what a pass hands on.
    pub state: &'static str,
    /// What a token costs beyond the scores W x: calls of experts, sorts, draws, sweeps.
    pub cost: &'static str,
    /// Equation or section of the paper -> item of its file.
    pub equations: &'static [(&'static str, &'static str)],
    /// Where paper, released code and this code differ, and which preset is which.
    pub deviations: &'static [&'static str],
    /// Statements that could not be checked against the paper or its code.
    pub unverified: &'static [&'static str],
    /// Names of its presets, the default first.
    pub presets: &'static [&'static str],
    /// Presets that a comparison of all routers enters.
    pub compared: &'static [&'static str],
    /// A control of the comparison rather than a method of its own.
    pub control: bool,
    /// Where in a model it acts, and how its settings are read.
    pub method: Method,
}

impl Paper {
    /// Reads a router's settings.
    ///
    /// # Errors
    /// A paper that is no router, an unknown preset or key, or a value of the wrong type.
    pub fn router(&self, settings: &Settings) -> Result<Box<dyn RouterConfig>, ConfigError> {
        match self.method {
            Method::Router(read) => read(settings),
            Method::Residual(_) => {
                let reason = format!("`{0}` is no router: set `residual = \"{0}\"`", self.id);
                Err(ConfigError::setting("name", reason))
            }
        }
    }
}

/// Where a paper acts in a model.
#[derive(Debug, Clone, Copy)]
pub enum Method {
    /// It decides who computes what in a sparse layer.
    Router(fn(&Settings) -> Result<Box<dyn RouterConfig>, ConfigError>),
    /// It decides how a layer's output enters the stream.
    Residual(fn(&Settings) -> Result<Box<dyn ResidualConfig>, ConfigError>),
}

/// Sizes that every router is built from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dims {
    /// Model width `d`.
    pub width: i64,
    /// Number of experts `e`.
    pub experts: i64,
}

/// Training or evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Noise on, losses on.
    Train {
        /// Optimiser steps taken so far.
        step: u64,
    },
    /// Noise off.
    Eval,
}

/// Everything that a routing decision may depend on besides the tokens.
#[derive(Debug, Clone, Copy)]
pub struct RouteCx<'a> {
    /// Training or evaluation.
    pub phase: Phase,
    /// Index of the sparse layer, so that layers draw apart.
    pub layer: usize,
    /// Source of every random draw.
    pub noise: &'a dyn Noise,
    /// The recipe's capacity policy; `None` leaves the paper's own.
    pub capacity: Option<&'a CapacityPolicy>,
    /// What the sparse layer before this one decided, for routers that look back.
    pub previous: Option<&'a Routing>,
    /// Attention weights of this block by head, `[g, m, t, t]`, for routers whose
    /// [`RouterConfig::reads_attention`] says so.
    pub attention_gmtt: Option<&'a Tensor>,
    /// Tokens that are padding, `[g, t]`, bool: they take no place and leave every mean.
    pub padding_gt: Option<&'a Tensor>,
    /// Ids of the tokens in the vocabulary, `[g, t]`, int64, for routers that read them.
    pub token_gt: Option<&'a Tensor>,
}

impl<'a> RouteCx<'a> {
    /// The context of layer 0 under the paper's own capacity.
    pub fn new(phase: Phase, noise: &'a dyn Noise) -> Self {
        Self {
            phase,
            layer: 0,
            noise,
            capacity: None,
            previous: None,
            attention_gmtt: None,
            padding_gt: None,
            token_gt: None,
        }
    }

    /// Whether this is a training step.
    pub fn training(&self) -> bool {
        self.phase != Phase::Eval
    }

    /// Optimiser steps taken so far, in training.
    pub fn step(&self) -> Option<u64> {
        match self.phase {
            Phase::Train { step } => Some(step),
            Phase::Eval => None,
        }
    }

    /// Standard normal values like `like`, named `name`.
    pub fn normal(&self, name: &'static str, like: &Tensor) -> Tensor {
        self.noise.normal(Site { layer: self.layer, name }, like)
    }

    /// Uniform values on `[0, 1)` like `like`, named `name`.
    pub fn uniform(&self, name: &'static str, like: &Tensor) -> Tensor {
        self.noise.uniform(Site { layer: self.layer, name }, like)
    }

    /// Standard Gumbel values like `like`, named `name`.
    pub fn gumbel(&self, name: &'static str, like: &Tensor) -> Tensor {
        self.noise.gumbel(Site { layer: self.layer, name }, like)
    }
}

/// A named auxiliary loss and its weight in the objective.
#[derive(Debug)]
pub struct Aux {
    /// Name, as it appears in logs.
    pub name: &'static str,
    /// Weight from the configuration.
    pub weight: f64,
    /// The unweighted loss, a scalar with its graph; the mean over groups.
    pub value: Tensor,
}

/// What the tokens chose, and the room they found.
#[derive(Debug)]
pub struct Chosen {
    /// Experts and weights in rank order.
    pub choices: ChoicesGtk,
    /// Number of experts.
    pub experts: i64,
    /// Rows that an expert keeps of a group, `None` for all, and the order in which it takes them.
    pub room: (Option<usize>, DropOrder),
}

impl Chosen {
    /// The plan of the choices that find room.
    pub fn plan(&self) -> TensorPlan {
        self.choices.plan(self.experts, self.room)
    }

    /// The routing of the choices that find room, with everything that goes beside it.
    pub fn routing(self, logits_gte: Tensor, gate_gte: Tensor, aux: Vec<Aux>) -> Routing {
        Routing { plan: self.plan(), chosen: Some(self), logits_gte, gate_gte, aux }
    }
}

/// What a router decided.
#[derive(Debug)]
pub struct Routing {
    /// Who computes what, with which weight.
    pub plan: TensorPlan,
    /// What the tokens chose; `None` where they do not choose.
    pub chosen: Option<Chosen>,
    /// Scores before noise and before selection, `[g, t, e]`.
    pub logits_gte: Tensor,
    /// How the token's attention is spread over the experts before selection, `[g, t, e]`; rows sum
    /// to one. For logs, without a graph.
    pub gate_gte: Tensor,
    /// The paper's losses.
    pub aux: Vec<Aux>,
}

/// What carries out a plan: dispatches `[g, t, d]`, runs every expert on its rows, combines to
/// `[g, t, d]`.
pub type Execute<'a> = dyn Fn(&Tensor, &TensorPlan) -> Tensor + 'a;

/// One routing rule, as published.
///
/// A rule is written twice: here, in tensor operations that train, and as a [`Reference`] in plain
/// host arithmetic. The [`suite`](crate::suite) holds the first to the second.
pub trait Router: Debug + Send {
    /// Assigns every token of `x_gtd` (`[g, t, d]`); groups never see each other.
    ///
    /// # Errors
    /// If the settings leave no room for this number of tokens ([`RouteError`]).
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError>;

    /// The whole sparse layer, `[g, t, d] -> [g, t, d]`, over the experts behind `execute`. A paper
    /// that calls its experts more than once writes its own. Models call it through `forward`
    /// ([`guard`](crate::guard)).
    ///
    /// # Errors
    /// As [`Self::route`].
    fn layer(
        &self,
        x_gtd: &Tensor,
        cx: &RouteCx<'_>,
        execute: &Execute<'_>,
    ) -> Result<(Tensor, Routing), RouteError> {
        let routing = self.route(x_gtd, cx)?;
        Ok((execute(x_gtd, &routing.plan), routing))
    }

    /// The same rule for one group in host arithmetic, holding a copy of the present parameters.
    fn reference(&self) -> Box<dyn Reference>;

    /// Whether the rule knows padded tokens ([`RouteCx::padding_gt`]); one that does not refuses a mask
    /// rather than route what is none of its tokens.
    fn takes_padding(&self) -> bool {
        false
    }

    /// Values that one token is multiplied with in the rule at inference; `None` where they are those of all its learned
    /// matrices.
    fn products(&self) -> Option<f64> {
        None
    }

    /// Updates what no gradient reaches, after an optimiser step whose loads were `load_e`
    /// (`[e]`, all groups together). Such state is a buffer, so that checkpoints hold it.
    fn after_step(&mut self, _load_e: &Tensor) {}
}

/// The three axes of `x`, which the caller's name says it has.
pub(crate) fn axes3(x: &Tensor) -> (i64, i64, i64) {
    x.size3().expect("three axes")
}

/// Room per expert and group, and the order in which it is handed out: the policy `chosen` by the
/// recipe, else the paper's `own`, else unlimited. `size` is (tokens, experts, choices per token).
///
/// # Errors
/// If the policy leaves less than one place.
pub(crate) fn room(
    chosen: Option<&CapacityPolicy>,
    own: Option<&CapacityPolicy>,
    (tokens, experts, top_k): (usize, usize, usize),
) -> Result<(Option<usize>, DropOrder), CapacityError> {
    let policy = chosen.or(own).copied().unwrap_or_default();
    Ok((policy.slots(tokens, experts, top_k)?, policy.order))
}
