//! The step that routers are timed on: 4096 tokens of width 512, and what a router may read besides.
//!
//! Axis letters: `g` groups, `t` tokens of a group, `d` width, `m` heads, `e` experts.

use moe_core::RouteError;
use moe_routers::{
    Dims, Paper, ParamStore, Phase, RouteCx, Router, RouterConfig, Routing, SeededNoise, Settings,
    router_config, routers,
};
use tch::{Device, Kind, Tensor};

/// Tokens of a step, all groups together.
pub const TOKENS: i64 = 4096;
/// Model width.
pub const WIDTH: i64 = 512;
/// Numbers of experts.
pub const EXPERTS: [i64; 3] = [16, 64, 256];
/// Threads of libtorch.
pub const THREADS: i32 = 2;
/// Tokens of a sequence, for routers whose rule stays within one.
const SEQUENCE: i64 = 128;
/// Heads of the block's attention.
const HEADS: i64 = 8;
/// Ids that tokens have.
const VOCAB: i64 = 50_257;

/// Tokens of every group and all that a router may ask for.
#[derive(Debug)]
pub struct Scene {
    x_gtd: Tensor,
    token_gt: Tensor,
    attention_gmtt: Option<Tensor>,
    previous: Routing,
}

impl Scene {
    /// All tokens in one group, or in sequences; `attention` only where it is read, since for one
    /// group it takes gigabytes.
    ///
    /// # Errors
    /// As [`Router::route`].
    fn new(experts: i64, config: &dyn RouterConfig) -> Result<Self, RouteError> {
        let tokens = if config.within_sequence() { SEQUENCE } else { TOKENS };
        let (groups, options) = (TOKENS / tokens, (Kind::Float, Device::Cpu));
        let x_gtd = Tensor::randn([groups, tokens, WIDTH], options);
        let ids = Tensor::randint(VOCAB, [groups, tokens], (Kind::Int64, Device::Cpu));
        let scores = || Tensor::randn([groups, HEADS, tokens, tokens], options);
        let attention = config.reads_attention().then(|| scores().softmax(-1, Kind::Float));
        let (smoe, noise) = (router_of(&*baseline(), experts), SeededNoise::eval(0, 0));
        let previous = smoe.route(&x_gtd, &RouteCx::new(Phase::Eval, &noise))?;
        Ok(Self { x_gtd, token_gt: ids, attention_gmtt: attention, previous })
    }
}

/// One router, built, and what it routes.
#[derive(Debug)]
pub struct Subject {
    /// `paper:preset`, and the groups where there are several.
    pub name: String,
    router: Box<dyn Router>,
    scene: Scene,
}

impl Subject {
    /// A router of these settings.
    ///
    /// # Errors
    /// Why it refuses the size.
    fn new(name: String, config: &dyn RouterConfig, experts: i64) -> Result<Self, String> {
        config.check(experts as usize).map_err(|error| format!("{name}: {error}"))?;
        let router = router_of(config, experts);
        let scene = Scene::new(experts, config).map_err(|error| format!("{name}: {error}"))?;
        let groups = scene.x_gtd.size()[0];
        let name = if groups == 1 { name } else { format!("{name} ({groups} groups)") };
        Ok(Self { name, router, scene })
    }

    /// The router that the others are measured by.
    ///
    /// # Panics
    /// If `smoe` refuses the size.
    pub fn smoe(experts: i64) -> Self {
        Self::new("smoe".into(), &*baseline(), experts).expect("smoe takes every size")
    }

    /// Routes, without a graph.
    ///
    /// # Errors
    /// As [`Router::route`].
    pub fn route(&self, phase: Phase) -> Result<Routing, RouteError> {
        let noise = SeededNoise::train(0, 0);
        let cx = RouteCx {
            previous: Some(&self.scene.previous),
            attention_gmtt: self.scene.attention_gmtt.as_ref(),
            token_gt: Some(&self.scene.token_gt),
            ..RouteCx::new(phase, &noise)
        };
        tch::no_grad(|| self.router.route(&self.scene.x_gtd, &cx))
    }
}

fn baseline() -> Box<dyn RouterConfig> {
    router_config("smoe", &Settings::new()).expect("smoe is registered")
}

fn router_of(config: &dyn RouterConfig, experts: i64) -> Box<dyn Router> {
    let store = ParamStore::new(0, Device::Cpu, Kind::Float);
    config.build(&store.root(), Dims { width: WIDTH, experts })
}

/// The default preset of every router and those that comparisons enter, by name.
pub fn entries() -> impl Iterator<Item = (&'static Paper, &'static str)> {
    routers().flat_map(|paper| {
        let rest = paper.compared.iter().filter(|preset| **preset != paper.presets[0]);
        paper.presets[..1].iter().chain(rest).map(move |preset| (paper, *preset))
    })
}

/// Builds an entry and routes once in each of the `phases`.
///
/// # Errors
/// Why the router refuses this size, in words.
pub fn subject(
    (paper, preset): (&Paper, &str),
    experts: i64,
    phases: &[Phase],
) -> Result<Subject, String> {
    let mut name = format!("{}:{preset}", paper.id);
    let mut settings = Settings::from_iter([("preset".to_owned(), preset.into())]);
    let read = |settings: &Settings| paper.router(settings).map_err(|error| error.to_string());
    let mut config = read(&settings)?;
    // A preset's codebook is made for its own number of experts.
    if config.settings().contains_key("codes") && config.check(experts as usize).is_err() {
        settings.insert("codes".into(), experts.into());
        config = read(&settings)?;
        name += " (as many codes as experts)";
    }
    let subject = Subject::new(name, &*config, experts)?;
    for phase in phases {
        let refused = |error| format!("{}, {phase:?}: {error}", subject.name);
        subject.route(*phase).map_err(refused)?;
    }
    Ok(subject)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a benchmark leaves out must be a refusal with a reason, never a slip of the scene.
    #[test]
    fn every_router_is_measured() {
        for paper in routers() {
            assert!(entries().any(|(entry, _)| entry.id == paper.id), "{}", paper.id);
        }
        let names: Vec<_> = entries().map(|(paper, preset)| (paper.id, preset)).collect();
        let once: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(once.len(), names.len());
    }
}
