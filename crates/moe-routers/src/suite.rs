//! Every paper, one contract: the same values as its reference, gradients equal to central differences
//! of the reference, every parameter reached by a gradient, causality and symmetries exactly as claimed,
//! padding that visits nobody, finite results
//! at the edges. Groups of a router do not see each other; a residual does not care for the order of
//! tokens, and uses the norms that it asks for.
//!
//! A new paper gets all of this by being registered; [`check`] also takes a [`Paper`] of your own.
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `e` experts.

mod residual;
mod symmetry;

use crate::config::{ConfigError, RouterConfig, Settings, Tie};
use crate::convert::{to_host, to_host_i64, to_host3};
use crate::noise::{Noise, SeededNoise, Site};
use crate::params::ParamStore;
use crate::residual::residual_config;
use crate::router::{Dims, Method, Paper, Phase, RouteCx, Router, Routing};
use crate::tolerance::{relative_error, tolerance};
use moe_core::{HostInput, HostRouting, Reference, RouteError};
use ndarray::{Array2, ArrayView2};
use std::cell::RefCell;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

const GROUPS: i64 = 2;
const TOKENS: i64 = 12;
const WIDTH: i64 = 6;
/// Attention heads of the block.
const HEADS: i64 = 2;
/// The first number that a preset accepts; large models' presets need more for their groups.
const EXPERTS: [usize; 2] = [4, 16];
/// Ids of the suite's tokens, and the size of tables by id.
const VOCAB: i64 = 5;
/// Central differences in doubles: truncation ~1e-10, rounding ~1e-9.
const STEP: f64 = 1e-5;
/// At most this many values of a tensor are differenced, evenly spread; only wide inner layers have
/// more.
const MOST_VALUES: usize = 200;

/// What the suite found for one preset of one paper.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Paper and preset, `paper:preset`.
    pub name: String,
    /// Worst relative error of outputs, logits, gates and losses against the reference.
    pub value_error: f64,
    /// Worst relative error of a gradient against a central difference of the reference.
    pub gradient_error: f64,
    /// Gradients compared.
    pub gradients: usize,
    /// Whether no future token was seen to change an earlier one's output.
    pub causal: bool,
    /// Inputs at the edge that the rule refuses, as a rule may if it names the reason: `input, phase:
    /// reason`. They count neither as kept nor as broken; a paper says which it means to refuse.
    pub refusals: Vec<String>,
    /// Everything that broke the contract; empty if it holds.
    pub violations: Vec<String>,
}

/// Why a paper could not be checked at all.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// Its settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its rule or reference.
    #[error(transparent)]
    Route(#[from] RouteError),
}

/// Holds `preset` of `paper` to the contract.
///
/// # Errors
/// If the preset does not exist, or the paper's rule or its reference refuses the suite's input.
pub fn check(paper: &Paper, preset: &str) -> Result<Report, SuiteError> {
    let name = format!("{}:{preset}", paper.id);
    match paper.method {
        Method::Router(_) => check_router(paper, preset, name),
        Method::Residual(read) => {
            let given = Settings::from_iter([("preset".to_owned(), preset.into())]);
            residual::check(name, &|more| read(&given.clone().into_iter().chain(more).collect()))
        }
    }
}

/// Holds the residual that a recipe calls `name` to the contract, `plain` included.
///
/// # Errors
/// As [`check`].
pub fn check_residual(name: &str) -> Result<Report, SuiteError> {
    residual::check(name.into(), &|more| residual_config(name, &more))
}

fn check_router(paper: &Paper, preset: &str, name: String) -> Result<Report, SuiteError> {
    let case = Case::new(paper, preset)?;
    let mut violations = Vec::new();
    let value_error = [Phase::Train { step: 0 }, Phase::Eval]
        .into_iter()
        .map(|phase| case.value_error(phase, &mut violations))
        .try_fold(0f64, |worst, error| error.map(|error| worst.max(error)))?;
    let (gradient_error, gradients) = case.gradient_error(&mut violations)?;
    let causal = case.seems_causal()?;
    let limits = tolerance(Kind::Double);
    let mut claim = |holds: bool, what: String| {
        if !holds {
            violations.push(what);
        }
    };
    claim(value_error <= limits.value, format!("values differ by {value_error:.1e}"));
    claim(gradient_error <= limits.gradient, format!("gradients differ by {gradient_error:.1e}"));
    claim(causal == case.config.causal(), format!("causal is {causal}, which is not its claim"));
    claim(case.groups_are_apart()?, "one group changed another".into());
    violations.extend(case.symmetry_violations()?);
    violations.extend(case.padding_violations()?);
    let (refusals, broken) = case.at_the_edges()?;
    violations.extend(broken);
    Ok(Report { name, value_error, gradient_error, gradients, causal, refusals, violations })
}

/// A router at its smallest, in doubles, with logits spread wide enough that no finite difference
/// crosses a tie.
struct Case {
    store: ParamStore,
    experts: usize,
    config: Box<dyn RouterConfig>,
    router: Box<dyn Router>,
    x_gtd: Tensor,
    token_gt: Tensor,
    noise: Recorded,
    before: Before,
    /// Attention of the block by head, `[g, m, t, t]`, fixed; later tokens are seen too, except where
    /// causality is asked about.
    attention_gmtt: Tensor,
}

/// A sparse layer before this one, whose decisions stay as they are whatever the tokens are now.
struct Before {
    router: Box<dyn Router>,
    x_gtd: Tensor,
    routing_g: Vec<HostRouting>,
}

impl Before {
    fn new() -> Result<Self, SuiteError> {
        let config = crate::router_config("smoe", &Settings::new())?;
        let store = ParamStore::new(8, Device::Cpu, Kind::Double);
        let router = config.build(&store.root(), Dims { width: WIDTH, experts: 4 });
        // Its own weights are small, so that large tokens make logits worth mixing by.
        let x_gtd = normal("previous tokens", &[GROUPS, TOKENS, WIDTH]) * 30.0;
        let reference = router.reference();
        let route = |g| reference.route(&HostInput::new(to_host(&x_gtd.get(g)).view()));
        let routing_g = (0..GROUPS).map(route).collect::<Result<_, _>>()?;
        Ok(Self { router, x_gtd, routing_g })
    }

    /// Of the first `tokens` tokens of each group.
    fn routing(&self, tokens: i64) -> Result<Routing, RouteError> {
        let noise = SeededNoise::train(8, 0);
        let cx = RouteCx::new(Phase::Eval, &noise);
        self.router.route(&self.x_gtd.narrow(1, 0, tokens), &cx)
    }
}

/// What a reference holds constant, of each group.
type Constants = Vec<Vec<(&'static str, Array2<f64>)>>;

/// Remembers every draw, so that the reference gets the same ones.
#[derive(Debug)]
pub struct Recorded {
    source: SeededNoise,
    seen: RefCell<BTreeMap<&'static str, Tensor>>,
}

impl Recorded {
    /// Draws of `source`.
    pub fn new(source: SeededNoise) -> Self {
        Self { source, seen: RefCell::default() }
    }

    fn keep(&self, site: Site, draw: Tensor) -> Tensor {
        self.seen.borrow_mut().insert(site.name, draw.shallow_clone());
        draw
    }

    /// The draws of group `g` as the reference takes them; a matrix is shared by all groups.
    pub fn of_group(&self, g: i64) -> Vec<(&'static str, Array2<f64>)> {
        let of =
            |draw: &Tensor| if draw.dim() == 2 { to_host(draw) } else { to_host(&draw.get(g)) };
        self.seen.borrow().iter().map(|(name, draw)| (*name, of(draw))).collect()
    }
}

impl Noise for Recorded {
    fn normal(&self, site: Site, like: &Tensor) -> Tensor {
        self.keep(site, self.source.normal(site, like))
    }

    fn uniform(&self, site: Site, like: &Tensor) -> Tensor {
        self.keep(site, self.source.uniform(site, like))
    }

    fn gumbel(&self, site: Site, like: &Tensor) -> Tensor {
        self.keep(site, self.source.gumbel(site, like))
    }
}

/// Normal values for tests' inputs and parameters, a function of name and shape, in doubles.
pub fn normal(name: &'static str, shape: &[i64]) -> Tensor {
    let like = Tensor::zeros(shape, (Kind::Double, Device::Cpu));
    SeededNoise::train(7, 0).normal(Site { layer: 0, name }, &like)
}

/// Stand-ins for experts: nonlinear, different from each other, and steady: a relative error of huge
/// rows does not grow, as it would in a wave.
pub fn expert(e: usize, rows: &Tensor) -> Tensor {
    rows.tanh() * (e as f64 + 1.0)
}

/// [`expert`] on the host.
pub fn host_expert(e: usize, rows: ArrayView2<'_, f64>) -> Array2<f64> {
    rows.mapv(|v| v.tanh() * (e as f64 + 1.0))
}

/// The preset's settings, shrunk to the suite's size, and a number of experts that they accept.
fn settle(paper: &Paper, preset: &str) -> Result<(Box<dyn RouterConfig>, usize), ConfigError> {
    let mut settings = Settings::new();
    settings.insert("preset".into(), preset.into());
    let mut config = paper.router(&settings)?;
    if let Some((key, _)) = config.ties().iter().find(|(_, tie)| *tie == Tie::Vocab) {
        settings.insert((*key).into(), VOCAB.into());
        config = paper.router(&settings)?;
    }
    if let Some(experts) = EXPERTS.into_iter().find(|&e| config.check(e).is_ok()) {
        return Ok((config, experts));
    }
    // Presets of large models choose more experts than the suite has.
    settings.insert("top_k".into(), EXPERTS[0].into());
    config = paper.router(&settings)?;
    config.check(EXPERTS[0])?;
    Ok((config, EXPERTS[0]))
}

impl Case {
    fn new(paper: &Paper, preset: &str) -> Result<Self, SuiteError> {
        let (config, experts) = settle(paper, preset)?;
        let store = ParamStore::new(7, Device::Cpu, Kind::Double);
        let router = config.build(&store.root(), Dims { width: WIDTH, experts: experts as i64 });
        for param in store.entries().iter().filter(|p| p.tensor.dim() == 2) {
            let spread = normal("parameters", &param.tensor.size()) * 0.6;
            tch::no_grad(|| param.tensor.shallow_clone().copy_(&spread));
        }
        // Off centre, so that loads are uneven and capacities bind.
        let x_gtd = normal("tokens", &[GROUPS, TOKENS, WIDTH]) * 1.2 + 0.7;
        let count = Tensor::arange(GROUPS * TOKENS, (Kind::Int64, Device::Cpu));
        let token_gt = (count * 7).remainder(VOCAB + 6).remainder(VOCAB).view([GROUPS, TOKENS]);
        let noise = Recorded::new(SeededNoise::train(7, 0));
        let (before, x_gtd) = (Before::new()?, x_gtd.set_requires_grad(true));
        let scores_gmtt = normal("attention", &[GROUPS, HEADS, TOKENS, TOKENS]);
        let attention_gmtt = scores_gmtt.softmax(-1, None::<Kind>);
        let experts = config.bank(experts);
        Ok(Self { store, experts, config, router, x_gtd, token_gt, noise, before, attention_gmtt })
    }

    /// The layer with the stand-in experts: outputs, `[g, t, d]`, and the routing.
    fn layer(&self, x_gtd: &Tensor, phase: Phase) -> Result<(Tensor, Routing), RouteError> {
        self.layer_under(&self.attention_gmtt, x_gtd, phase)
    }

    /// The same under this attention, whose rows are cut to the tokens there are and renormalised.
    fn layer_under(
        &self,
        attention_gmtt: &Tensor,
        x_gtd: &Tensor,
        phase: Phase,
    ) -> Result<(Tensor, Routing), RouteError> {
        let previous = self.before.routing(x_gtd.size()[1])?;
        let (_, t, _) = crate::router::axes3(x_gtd);
        let attention_gmtt = attention_gmtt.narrow(2, 0, t).narrow(3, 0, t);
        let attention_gmtt = &attention_gmtt / attention_gmtt.sum_dim_intlist(-1, true, None);
        let token_gt = self.token_gt.narrow(1, 0, t);
        let cx = RouteCx {
            token_gt: Some(&token_gt),
            previous: Some(&previous),
            attention_gmtt: Some(&attention_gmtt),
            ..RouteCx::new(phase, &self.noise)
        };
        self.router.forward(x_gtd, &cx, &|x_gtd, plan| plan.apply(x_gtd, expert))
    }

    /// Outputs with the stand-in experts, `[g, t, d]`, at evaluation, under attention that reads no
    /// later token.
    fn outputs(&self, x_gtd: &Tensor) -> Result<Tensor, RouteError> {
        Ok(self.layer_under(&self.attention_gmtt.tril(0), x_gtd, Phase::Eval)?.0)
    }

    /// `ask` of the reference with the input of every group; `constants`, where there are any, take
    /// the place of what the reference would compute.
    fn of_reference<T>(
        &self,
        phase: Phase,
        constants: &Constants,
        ask: impl Fn(&dyn Reference, &HostInput<'_>) -> Result<T, RouteError>,
    ) -> Result<Vec<T>, RouteError> {
        let reference = self.router.reference();
        let group = |(g, previous): (usize, &HostRouting)| {
            let (x_td, mut draws) =
                (to_host(&self.x_gtd.get(g as i64)), self.noise.of_group(g as i64));
            draws.extend(constants.get(g).into_iter().flatten().cloned());
            let input = HostInput::new(x_td.view()).train(phase != Phase::Eval).draws(&draws);
            let attention_mtt = to_host3(&self.attention_gmtt.get(g as i64));
            let ids = to_host_i64(&self.token_gt.get(g as i64));
            let token_t: Vec<usize> = ids.into_iter().map(|id| id as usize).collect();
            let input = input.tokens(Some(&token_t));
            let input = input.previous(Some(previous)).attention(Some(attention_mtt.view()));
            ask(reference.as_ref(), &input)
        };
        self.before.routing_g.iter().enumerate().map(group).collect()
    }

    fn reference_layers(
        &self,
        phase: Phase,
        constants: &Constants,
    ) -> Result<Vec<(Array2<f64>, HostRouting)>, RouteError> {
        self.of_reference(phase, constants, |reference, input| {
            reference.forward(input, &host_expert)
        })
    }

    /// Worst error of everything that routing gives back.
    fn value_error(&self, phase: Phase, violations: &mut Vec<String>) -> Result<f64, SuiteError> {
        let (y_gtd, routing) = self.layer(&self.x_gtd, phase)?;
        if let Err(error) = routing.plan.to_host() {
            violations.push(format!("broken plan: {error}"));
        }
        let wanted = self.reference_layers(phase, &Constants::new())?;
        let mut worst = aux_error(&routing, &wanted, violations);
        for (g, (y_td, want)) in wanted.iter().enumerate() {
            let pairs = [
                (&y_gtd, y_td),
                (&routing.logits_gte, &want.logits_te),
                (&routing.gate_gte, &want.gate_te),
            ];
            for (got, want) in pairs {
                worst = worst.max(matrix_error(&to_host(&got.get(g as i64)), want));
            }
        }
        Ok(worst)
    }

    /// Outputs squared and summed, plus all losses: one number that everything bears on.
    fn objective(&self) -> Result<Tensor, RouteError> {
        let (y_gtd, routing) = self.layer(&self.x_gtd, Phase::Train { step: 0 })?;
        Ok(routing.aux.iter().fold(y_gtd.square().sum(Kind::Double), |sum, a| sum + &a.value))
    }

    fn reference_objective(&self, constants: &Constants) -> Result<f64, RouteError> {
        let layers = self.reference_layers(Phase::Train { step: 0 }, constants)?;
        let groups = layers.iter().map(|(y_td, routing)| {
            let aux: f64 = routing.aux.iter().map(|(_, value)| value).sum();
            y_td.iter().map(|y| y * y).sum::<f64>() + aux / GROUPS as f64
        });
        Ok(groups.sum())
    }

    /// Worst error of all gradients, and how many there are.
    fn gradient_error(&self, violations: &mut Vec<String>) -> Result<(f64, usize), SuiteError> {
        self.objective()?.backward();
        let (phase, none) = (Phase::Train { step: 0 }, Constants::new());
        let constants = self.of_reference(phase, &none, |of, input| of.constants(input))?;
        gradient_error(leaves(&self.x_gtd, &self.store), violations, || {
            self.reference_objective(&constants)
        })
    }

    /// Whether group 0 stays as it is when group 1 changes.
    fn groups_are_apart(&self) -> Result<bool, RouteError> {
        let x_gtd = self.x_gtd.detach();
        let other = Tensor::cat(&[x_gtd.narrow(0, 0, 1), x_gtd.narrow(0, 1, 1) * -3.0], 0);
        Ok(same(&self.outputs(&x_gtd)?.get(0), &self.outputs(&other)?.get(0)))
    }

    /// Whether early outputs stay as they are, whatever comes later: several futures, since a
    /// capacity must bind before a late token can push out an early one.
    fn seems_causal(&self) -> Result<bool, RouteError> {
        let (x_gtd, half) = (self.x_gtd.detach(), TOKENS / 2);
        let early = |y: Tensor| y.narrow(1, 0, half);
        let want = early(self.outputs(&x_gtd)?);
        for factor in [-3.0, -1.0, 0.0, 0.3, 3.0] {
            let late = x_gtd.narrow(1, half, TOKENS - half) * factor;
            let other = Tensor::cat(&[x_gtd.narrow(1, 0, half), late], 1);
            if !same(&want, &early(self.outputs(&other)?)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Inputs at the edge: refusals by rule, and what became NaN or broke a plan.
    fn at_the_edges(&self) -> Result<(Vec<String>, Vec<String>), RouteError> {
        let x_gtd = self.x_gtd.detach();
        let edges = [
            ("zero tokens", x_gtd.zeros_like()),
            ("identical tokens", x_gtd.narrow(1, 0, 1).expand_as(&x_gtd).copy()),
            (HUGE, &x_gtd * 1e4),
            (ALONE, x_gtd.narrow(1, 0, 1).copy()),
        ];
        let (mut refusals, mut broken) = (Vec::new(), Vec::new());
        for (name, x_gtd) in edges {
            for phase in [Phase::Train { step: 0 }, Phase::Eval] {
                match self.layer(&x_gtd, phase) {
                    Err(error) if may_refuse(name, &error) => {
                        refusals.push(format!("{name}, {phase:?}: {error}"));
                    }
                    layer => broken
                        .extend(unsound(&layer?).map(|sum| format!("{name}: {sum} in {phase:?}"))),
                }
            }
        }
        Ok((refusals, broken))
    }
}

/// Tokens whose logits overflow an exponential.
const HUGE: &str = "huge tokens";
/// Groups of one token.
const ALONE: &str = "one token per group";

/// Whether a rule may refuse this edge: a capacity below one row, or a token that experts cannot share
/// evenly; an exponential that overflows; a formula that is not defined there.
fn may_refuse(edge: &str, error: &RouteError) -> bool {
    match error {
        RouteError::Capacity(_) | RouteError::Shape { .. } => edge == ALONE,
        RouteError::NotFinite { .. } => edge == HUGE,
        RouteError::Setting { .. } => true,
        _ => false,
    }
}

/// The sum of outputs and losses, if it is no number or the plan is broken.
fn unsound((y_gtd, routing): &(Tensor, Routing)) -> Option<f64> {
    let losses: f64 = routing.aux.iter().map(|a| a.value.double_value(&[])).sum();
    let sum = y_gtd.sum(Kind::Double).double_value(&[]) + losses;
    (routing.plan.to_host().is_err() || !sum.is_finite()).then_some(sum)
}

/// The input and every parameter, by name.
fn leaves(x: &Tensor, store: &ParamStore) -> Vec<(String, Tensor)> {
    let x = ("tokens".to_owned(), x.shallow_clone());
    let params = store.entries();
    let params = params.iter().map(|p| (p.name.clone(), p.tensor.shallow_clone()));
    std::iter::once(x).chain(params).filter(|(_, tensor)| tensor.requires_grad()).collect()
}

/// Whether the last backward pass came to `tensor`.
fn reached(tensor: &Tensor) -> bool {
    let grad = tensor.grad();
    grad.defined() && grad.abs().max().double_value(&[]) != 0.0
}

/// Worst error of the gradients of `leaves` against central differences of `objective`, and how many
/// there are.
fn gradient_error(
    leaves: Vec<(String, Tensor)>,
    violations: &mut Vec<String>,
    objective: impl Fn() -> Result<f64, RouteError>,
) -> Result<(f64, usize), SuiteError> {
    let (mut worst, mut count) = (0f64, 0);
    for (name, tensor) in leaves {
        if !reached(&tensor) {
            violations.push(format!("no gradient reaches {name}"));
            continue;
        }
        let grad = tensor.grad().contiguous().view([-1]);
        let every = tensor.numel().div_ceil(MOST_VALUES);
        for i in (0..tensor.numel() as i64).step_by(every) {
            let central = central_difference(&tensor, i, &objective)?;
            worst = worst.max(relative_error(grad.double_value(&[i]), central));
            count += 1;
        }
    }
    Ok((worst, count))
}

/// Of `objective` by value `i` of `tensor`. The whole tensor is put back each time: a router may
/// rewrite its parameters in place when it is asked (X-MoE's rescaled embeddings).
fn central_difference(
    tensor: &Tensor,
    i: i64,
    objective: impl Fn() -> Result<f64, RouteError>,
) -> Result<f64, RouteError> {
    let (mut now, before) = (tensor.detach(), tensor.detach().copy());
    let mut at = |h: f64| {
        let _ = now.view([-1]).get(i).g_add_scalar_(h);
        let value = objective();
        now.copy_(&before);
        value
    };
    Ok((at(STEP)? - at(-STEP)?) / (2.0 * STEP))
}

/// Losses carry the same names in the same order, and the mean over groups as their value.
fn aux_error(
    routing: &Routing,
    wanted: &[(Array2<f64>, HostRouting)],
    violations: &mut Vec<String>,
) -> f64 {
    let got: Vec<_> = routing.aux.iter().map(|a| a.name).collect();
    let mut worst = 0f64;
    for (i, aux) in routing.aux.iter().enumerate() {
        let values: Vec<f64> =
            wanted.iter().filter_map(|(_, w)| w.aux.get(i).map(|a| a.1)).collect();
        let mean = values.iter().sum::<f64>() / wanted.len() as f64;
        worst = worst.max(relative_error(aux.value.double_value(&[]), mean));
    }
    for (_, want) in wanted {
        let want: Vec<_> = want.aux.iter().map(|a| a.0).collect();
        if got != want {
            violations.push(format!("losses are {got:?}, the reference has {want:?}"));
        }
    }
    worst
}

fn matrix_error(got: &Array2<f64>, want: &Array2<f64>) -> f64 {
    if got.dim() != want.dim() {
        return f64::INFINITY;
    }
    got.iter().zip(want).map(|(got, want)| relative_error(*got, *want)).fold(0.0, f64::max)
}

fn same(a: &Tensor, b: &Tensor) -> bool {
    let limit = tolerance(Kind::Double).value;
    a.allclose(b, limit, limit, false)
}
