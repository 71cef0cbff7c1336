//! Every operation, one file per paper, and what they share: building a router with given weights,
//! routing on both sides, and the outputs that every routing operation has.
//!
//! Axis letters: `g` groups, `t` tokens of a group, `e` experts, `k` choices.

pub mod acmoe;
pub mod baselines;
pub mod baselines_state;
pub mod experts;
pub mod metrics;
pub mod momentum;
pub mod s2moe;
pub mod smoe_vae;
pub mod ssr;
pub mod token_graph;
pub mod usmoe;
pub mod vmoe;
pub mod vqmoe;
pub mod xmoe;

use crate::args::Args;
use crate::op::{Op, OpError, Out, Outputs};
use moe_core::{HostInput, HostRouting, Plan};
use moe_routers::config::{Preset, resolve};
use moe_routers::{
    Dims, Noise, ParamStore, Phase, RouteCx, Router, RouterConfig, Routing, Settings, Site,
    TensorPlan,
};
use ndarray::{Array2, ArrayD, Axis, concatenate};
use tch::{Device, Kind, Tensor};

/// Every operation of every paper.
pub const OPS: &[&[Op]] = &[
    vmoe::OPS,
    metrics::OPS,
    xmoe::OPS,
    usmoe::OPS,
    ssr::OPS,
    s2moe::OPS,
    momentum::OPS,
    smoe_vae::OPS,
    vqmoe::OPS,
    acmoe::OPS,
    token_graph::OPS,
    baselines_state::OPS,
    baselines::OPS,
];

/// The router's configuration: the case's settings, less those in `own` that are the operation's,
/// over the preset they name. Checked against the number of experts.
///
/// # Errors
/// An unknown preset, or a value out of its range.
pub fn config<C: Preset + RouterConfig>(
    args: &Args<'_>,
    own: &[&str],
    experts: usize,
) -> Result<C, OpError> {
    let settings: Settings =
        args.settings().filter(|(key, _)| !own.contains(&key.as_str())).collect();
    let config: C = resolve(&settings)?;
    config.check(experts)?;
    Ok(config)
}

/// Draws handed in by name; asking for one that is not there is a defect of the operation.
#[derive(Debug, Default)]
pub struct Given(pub Vec<(&'static str, Tensor)>);

impl Given {
    fn draw(&self, site: Site, like: &Tensor) -> Tensor {
        let found = self.0.iter().find(|(name, _)| *name == site.name);
        let (_, draw) = found.unwrap_or_else(|| panic!("no draw named {}", site.name));
        draw.view_as(like)
    }
}

impl Noise for Given {
    fn normal(&self, site: Site, like: &Tensor) -> Tensor {
        self.draw(site, like)
    }

    fn uniform(&self, site: Site, like: &Tensor) -> Tensor {
        self.draw(site, like)
    }

    fn gumbel(&self, site: Site, like: &Tensor) -> Tensor {
        self.draw(site, like)
    }
}

/// What a routing operation hands to a router, on either side.
pub struct Route<'a> {
    /// The router's settings.
    pub config: &'a dyn RouterConfig,
    /// Its parameters by name, doubles with their graph where it matters.
    pub params: Vec<(&'static str, Tensor)>,
    /// The tokens, `[g, t, d]`.
    pub x_gtd: Tensor,
    /// Number of experts.
    pub experts: usize,
    /// Draws by name, `[g, t, …]`; with any of them it is a training step.
    pub draws: Vec<(&'static str, Tensor)>,
}

impl Route<'_> {
    fn build(&self) -> Box<dyn Router> {
        let given = self.params.iter().map(|(name, t)| ((*name).to_owned(), t.shallow_clone()));
        let store = ParamStore::new(0, Device::Cpu, self.x_gtd.kind()).with_given(given);
        let width = self.x_gtd.size()[2];
        self.config.build(&store.root(), Dims { width, experts: self.experts as i64 })
    }

    /// Routes with the trainable form.
    ///
    /// # Errors
    /// The router's.
    pub fn torch(&self) -> Result<Routing, OpError> {
        self.torch_padded(None)
    }

    /// The same for one group, some of whose tokens are padding.
    ///
    /// # Errors
    /// The router's.
    pub fn torch_padded(&self, padding_t: Option<&[bool]>) -> Result<Routing, OpError> {
        let padding_gt = padding_t.map(|p| Tensor::from_slice(p).unsqueeze(0));
        let draws = self.draws.iter().map(|(name, t)| (*name, t.shallow_clone())).collect();
        let phase = if self.draws.is_empty() { Phase::Eval } else { Phase::Train { step: 0 } };
        let noise = Given(draws);
        let mut cx = RouteCx::new(phase, &noise);
        cx.padding_gt = padding_gt.as_ref();
        Ok(self.build().route(&self.x_gtd, &cx)?)
    }

    /// Routes with the plain reference, group by group.
    ///
    /// # Errors
    /// The reference's.
    pub fn reference(&self) -> Result<Vec<HostRouting>, OpError> {
        self.reference_padded(None)
    }

    /// The same for one group, some of whose tokens are padding.
    ///
    /// # Errors
    /// The reference's.
    pub fn reference_padded(
        &self,
        padding_t: Option<&[bool]>,
    ) -> Result<Vec<HostRouting>, OpError> {
        let reference = self.build().reference();
        let group = |g: i64| {
            let x_td = moe_routers::convert::to_host(&self.x_gtd.get(g));
            let draw = |(name, t): &(&'static str, Tensor)| {
                let draw = t.get(g);
                let draw = draw.view([draw.size()[0], -1]);
                (*name, moe_routers::convert::to_host(&draw))
            };
            let draws: Vec<_> = self.draws.iter().map(draw).collect();
            let input = HostInput::new(x_td.view()).train(!draws.is_empty()).draws(&draws);
            let input = input.padding(padding_t);
            Ok(reference.route(&input)?)
        };
        (0..self.x_gtd.size()[0]).map(group).collect()
    }
}

/// Cuts `[T, …]` into groups of `size`: `[g, size, …]`.
pub fn grouped(tensor: &Tensor, size: usize) -> Tensor {
    let rest: Vec<i64> = tensor.size()[1..].to_vec();
    let shape: Vec<i64> = [-1, size as i64].into_iter().chain(rest).collect();
    tensor.reshape(shape.as_slice())
}

/// Rows of all groups under each other.
pub fn stacked(of_group: impl Iterator<Item = Array2<f64>>) -> Array2<f64> {
    let parts: Vec<Array2<f64>> = of_group.collect();
    let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
    concatenate(Axis(0), &views).expect("groups have the same columns")
}

/// Ones and zeros.
pub fn binary(flag: bool) -> f64 {
    f64::from(u8::from(flag))
}

/// `indices`, `gates`, `position`, `kept`, `mask`, `combine`, `load` of a token-choice routing, and
/// `capacity` (-1 for none).
pub fn host_universal(routings: &[HostRouting]) -> Outputs {
    let chosen = || routings.iter().filter_map(|r| r.chosen.as_ref());
    let combine_te = stacked(routings.iter().map(|r| sparse(&r.plan).combine_te()));
    let mask_te = stacked(routings.iter().map(|r| sparse(&r.plan).mask_te()));
    let slots = chosen().next().and_then(|c| c.slots);
    vec![
        ("indices", stacked(chosen().map(|c| c.choices.expert_tk.mapv(|e| e as f64))).into()),
        ("gates", stacked(chosen().map(|c| c.choices.gate_tk.clone())).into()),
        ("position", stacked(chosen().map(|c| c.queue.position_tk.mapv(|p| p as f64))).into()),
        ("kept", stacked(chosen().map(|c| c.queue.kept_tk.mapv(binary))).into()),
        ("load", mask_te.sum_axis(Axis(0)).into()),
        ("mask", mask_te.into()),
        ("combine", combine_te.into()),
        ("capacity", slots.map_or(-1.0, |s| s as f64).into()),
    ]
}

fn sparse(plan: &Plan) -> &moe_core::SparsePlan {
    match plan {
        Plan::Sparse(plan) => plan,
        Plan::Soft(_) => panic!("a token-choice router has a sparse plan"),
    }
}

/// The same from the trainable form, with the graph of `gates` and `combine`.
pub fn torch_universal(routing: &Routing) -> Outputs {
    let chosen = routing.chosen.as_ref().expect("a token-choice router says what tokens chose");
    let (slots, order) = chosen.room;
    let flat = |t: &Tensor| t.flatten(0, 1);
    let position_gtk = chosen.choices.positions(chosen.experts, order);
    let limit = slots.map_or(i64::MAX, |s| s as i64);
    let kept_gtk = position_gtk.ge(0).logical_and(&position_gtk.lt(limit));
    let (mask_te, combine_te) = dense_forms(&routing.plan, chosen.experts);
    vec![
        ("indices", flat(&chosen.choices.expert_gtk).into()),
        ("gates", flat(&chosen.choices.gate_gtk).into()),
        ("position", flat(&position_gtk).into()),
        ("kept", flat(&kept_gtk).into()),
        ("load", routing.plan.load_e().into()),
        ("mask", mask_te.into()),
        ("combine", combine_te.into()),
        ("capacity", slots.map_or(-1.0, |s| s as f64).into()),
    ]
}

/// `mask [T, E]` and `combine [T, E]` of a sparse plan.
pub fn dense_forms(plan: &TensorPlan, experts: i64) -> (Tensor, Tensor) {
    let TensorPlan::Sparse(rows) = plan else { panic!("a token-choice router has a sparse plan") };
    let expert_n = Tensor::repeat_interleave(&rows.load_e, None);
    let cell_n = &rows.token_n * experts + expert_n;
    let zero =
        Tensor::zeros([rows.groups * rows.tokens * experts], (rows.weight_n.kind(), Device::Cpu));
    let fill = |values: &Tensor| zero.scatter(0, &cell_n, values).view([-1, experts]);
    (fill(&rows.weight_n.detach().ones_like()), fill(&rows.weight_n))
}

/// An output by name, on the host.
///
/// # Panics
/// If there is none: a defect of the operation.
pub fn value_of(outputs: &Outputs, name: &str) -> ArrayD<f64> {
    let (_, out) = outputs.iter().find(|(known, _)| *known == name).expect("a known output");
    match out {
        Out::Host(array) => array.clone(),
        Out::Torch(tensor) => crate::run::to_array(tensor),
    }
}

/// Puts another value in the place of an output.
pub fn replace(outputs: &mut Outputs, name: &str, value: Out) {
    for (known, out) in outputs.iter_mut() {
        if *known == name {
            *out = value;
            return;
        }
    }
}

/// A host array as a tensor of doubles.
pub fn tensor(array: &ArrayD<f64>) -> Tensor {
    let shape: Vec<i64> = array.shape().iter().map(|&n| n as i64).collect();
    let values: Vec<f64> = array.iter().copied().collect();
    Tensor::from_slice(&values).view(shape.as_slice()).to_kind(Kind::Double)
}
