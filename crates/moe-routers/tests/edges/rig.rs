//! A router at its smallest beside its reference, with everything that a layer may be handed.
//!
//! Axis letters: `g` groups, `t` tokens, `d` width, `e` experts, `m` attention heads.

use moe_core::{HostInput, HostRouting, Reference, RouteError};
use moe_routers::convert::{to_host, to_host_i64, to_host3};
use moe_routers::suite::{Recorded, expert, host_expert, normal};
use moe_routers::{
    ConfigError, Dims, Paper, ParamStore, Phase, RouteCx, Router, Routing, SeededNoise, Settings,
    router_config,
};
use ndarray::Array2;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

pub(crate) const GROUPS: i64 = 2;
pub(crate) const WIDTH: i64 = 6;
/// Ids of the tokens, and the size of tables by id.
const VOCAB: i64 = 5;

/// Both phases.
pub(crate) const PHASES: [Phase; 2] = [Phase::Train { step: 0 }, Phase::Eval];

/// Settings that stand on these.
pub(crate) fn settings(pairs: &[(&str, Value)]) -> Settings {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

/// The settings of `preset`, with tables no larger than they must be.
pub(crate) fn preset(paper: &Paper, preset: &str) -> Settings {
    let mut settings = settings(&[("preset", preset.into())]);
    if paper.router(&settings).expect("a preset").settings().contains_key("vocab") {
        settings.insert("vocab".into(), VOCAB.into());
    }
    settings
}

/// A router with spread parameters.
pub(crate) struct Rig {
    pub(crate) store: ParamStore,
    pub(crate) router: Box<dyn Router>,
    kind: Kind,
    before: Box<dyn Router>,
}

/// What a layer is handed besides its tokens.
pub(crate) struct Given {
    pub(crate) token_gt: Option<Tensor>,
    /// Tokens that the layer before saw, `[g, t, d]`.
    pub(crate) before_gtd: Option<Tensor>,
    pub(crate) attention_gmtt: Option<Tensor>,
}

/// A layer's result and its reference's.
pub(crate) struct Both {
    pub(crate) torch: Result<(Tensor, Routing), RouteError>,
    pub(crate) host: Result<Vec<(Array2<f64>, HostRouting)>, RouteError>,
}

impl Given {
    /// Everything, for `tokens` tokens of kind `kind`.
    pub(crate) fn all(tokens: i64, kind: Kind) -> Self {
        let count = Tensor::arange(GROUPS * tokens, (Kind::Int64, Device::Cpu));
        let token_gt = (count * 7).remainder(VOCAB + 6).remainder(VOCAB).view([GROUPS, tokens]);
        // The weights of the layer before are small: large tokens make logits worth mixing by.
        let before_gtd = normal("before", &[GROUPS, tokens, WIDTH]) * 30.0;
        let scores_gmtt = normal("attention", &[GROUPS, 2, tokens, tokens]);
        let attention_gmtt = scores_gmtt.softmax(-1, None::<Kind>).to_kind(kind);
        Self {
            token_gt: Some(token_gt),
            before_gtd: Some(before_gtd.to_kind(kind)),
            attention_gmtt: Some(attention_gmtt),
        }
    }
}

impl Rig {
    /// A router of these settings in a store of this kind.
    pub(crate) fn new(
        paper: &Paper,
        settings: &Settings,
        experts: usize,
        kind: Kind,
    ) -> Result<Self, ConfigError> {
        let config = paper.router(settings)?;
        config.check(experts)?;
        let (store, dims) = (ParamStore::new(7, Device::Cpu, kind), |experts: usize| Dims {
            width: WIDTH,
            experts: experts as i64,
        });
        let router = config.build(&store.root().wide(), dims(experts));
        for param in store.entries().iter().filter(|p| p.tensor.dim() == 2) {
            let spread = normal("parameters", &param.tensor.size()) * 0.6;
            tch::no_grad(|| param.tensor.shallow_clone().copy_(&spread));
        }
        let before = router_config("smoe", &Settings::new())?;
        let before_store = ParamStore::new(8, Device::Cpu, kind);
        let before = before.build(&before_store.root().wide(), dims(4));
        Ok(Self { store, router, kind, before })
    }

    /// Tokens off centre, so that loads are uneven, `[g, t, d]`, of the router's kind.
    pub(crate) fn tokens(&self, tokens: i64) -> Tensor {
        (normal("tokens", &[GROUPS, tokens, WIDTH]) * 1.2 + 0.7).to_kind(self.kind)
    }

    /// The layer and its reference on the same tokens, draws and context.
    pub(crate) fn run(&self, x_gtd: &Tensor, given: &Given, phase: Phase) -> Both {
        let noise = Recorded::new(SeededNoise::train(7, 0));
        let quiet = SeededNoise::eval(8, 0);
        let previous = given.before_gtd.as_ref().map(|x_gtd| {
            let cx = RouteCx::new(Phase::Eval, &quiet);
            self.before.forward(x_gtd, &cx, &|x_gtd, _| x_gtd.shallow_clone()).expect("finite").1
        });
        let cx = RouteCx {
            token_gt: given.token_gt.as_ref(),
            previous: previous.as_ref(),
            attention_gmtt: given.attention_gmtt.as_ref(),
            ..RouteCx::new(phase, &noise)
        };
        // Before the layer: a reference may rewrite parameters in place, as a route does, and what
        // was rewritten between forward and backward has no gradient.
        let reference = self.router.reference();
        let torch = self.router.forward(x_gtd, &cx, &|x_gtd, plan| {
            assert_eq!(x_gtd.kind(), self.kind, "experts read tokens as they came");
            plan.apply(x_gtd, expert)
        });
        let of_group = |g| self.of_group(reference.as_ref(), g, x_gtd, given, (phase, &noise));
        Both { torch, host: (0..GROUPS).map(of_group).collect() }
    }

    fn of_group(
        &self,
        reference: &dyn Reference,
        g: i64,
        x_gtd: &Tensor,
        given: &Given,
        (phase, noise): (Phase, &Recorded),
    ) -> Result<(Array2<f64>, HostRouting), RouteError> {
        let (x_td, draws) = (to_host(&x_gtd.get(g)), noise.of_group(g));
        let previous = given.before_gtd.as_ref().map(|before_gtd| {
            let x_td = to_host(&before_gtd.get(g));
            self.before.reference().route(&HostInput::new(x_td.view())).expect("finite")
        });
        let attention_mtt = given.attention_gmtt.as_ref().map(|a| to_host3(&a.get(g)));
        let token_t: Option<Vec<usize>> = given.token_gt.as_ref().map(|token_gt| {
            to_host_i64(&token_gt.get(g)).into_iter().map(|id| id as usize).collect()
        });
        let input = HostInput::new(x_td.view()).train(phase != Phase::Eval).draws(&draws);
        let input = input.tokens(token_t.as_deref()).previous(previous.as_ref());
        let attention_mtt = attention_mtt.as_ref().map(|a| a.view());
        reference.forward(&input.attention(attention_mtt), &host_expert)
    }
}

/// Whether every value is finite.
pub(crate) fn finite(x: &Tensor) -> bool {
    x.isfinite().all().int64_value(&[]) == 1
}
