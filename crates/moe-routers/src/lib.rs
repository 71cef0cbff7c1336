//! One module per paper: the trainable routing rule on libtorch and, in the same file, a plain `f64`
//! reference of the same equations.
//!
//! A [`Router`] turns tokens into a [`Routing`]: a plan (who computes what, with which weight), the
//! logits, the gate distribution, and the paper's losses. Everything random comes in through
//! [`RouteCx::noise`]; nothing is kept in globals.
//!
//! [`PAPERS`] is the registry. The command line, recipes, the generated documentation and the
//! [`suite`] that holds every router to its reference all read it; a new paper is one file and one
//! line here.
//!
//! Axis letters: `g` groups, `t` tokens of a group, `d` width, `e` experts, `k` choices of a token,
//! `n` routed rows (sorted by expert), `s` slots.
//!
//! ```no_run,standalone_crate
//! use moe_routers::{Dims, ParamStore, Phase, RouteCx, SeededNoise, router_config};
//! use tch::{Device, Kind, Tensor};
//!
//! let config = router_config("x-moe", &Default::default())?;
//! config.check(8)?;
//! let store = ParamStore::new(0, Device::Cpu, Kind::Float);
//! let router = config.build(&store.root(), Dims { width: 64, experts: 8 });
//! let x_gtd = Tensor::randn([2, 128, 64], (Kind::Float, Device::Cpu));
//! let noise = SeededNoise::train(0, 0);
//! let routing = router.route(&x_gtd, &RouteCx::new(Phase::Eval, &noise))?;
//! println!("rows per expert: {}", routing.plan.load_e());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod config;
pub mod convert;
pub mod guard;
pub mod losses;
pub mod noise;
pub mod norm;
pub mod order;
pub mod params;
pub mod plan;
pub mod residual;
pub mod router;
pub mod suite;
pub mod tolerance;

pub mod ac_moe;
pub mod base;
pub mod deepseek_v3;
pub mod dense;
pub mod expert_choice;
pub mod glam;
pub mod gshard;
pub mod hash;
pub mod momentum;
pub mod noisy_topk;
pub mod random;
pub mod s2_moe;
pub mod sinkhorn;
pub mod smoe;
pub mod smoe_dropout;
pub mod smoe_vae;
pub mod soft_moe;
pub mod ssr;
pub mod stable_moe;
pub mod switch;
pub mod token_graph;
pub mod us_moe;
pub mod v_moe;
pub mod vq_moe;
pub mod x_moe;

pub use config::{ConfigError, Preset, RouterConfig, Settings, Tie};
pub use noise::{Noise, SeededNoise, Site};
pub use params::{Init, Param, ParamStore, Params, Role};
pub use plan::TensorPlan;
pub use residual::{Norm, Norms, Residual, ResidualConfig, residual_config};
pub use router::{Aux, Chosen, Dims, Execute, Method, Paper, Phase, RouteCx, Router, Routing};

/// Every paper of this crate: controls first, then by year.
pub const PAPERS: &[&Paper] = &[
    &dense::PAPER,
    &random::PAPER,
    &smoe::PAPER,
    &noisy_topk::PAPER,
    &gshard::PAPER,
    &switch::PAPER,
    &base::PAPER,
    &hash::PAPER,
    &v_moe::PAPER,
    &sinkhorn::PAPER,
    &expert_choice::PAPER,
    &stable_moe::PAPER,
    &x_moe::PAPER,
    &smoe_dropout::PAPER,
    &soft_moe::PAPER,
    &vq_moe::PAPER,
    &momentum::PAPER,
    &us_moe::PAPER,
    &ssr::PAPER,
    &ac_moe::PAPER,
    &token_graph::PAPER,
    &smoe_vae::PAPER,
    &deepseek_v3::PAPER,
    &s2_moe::PAPER,
];

/// The papers that are routers.
pub fn routers() -> impl Iterator<Item = &'static Paper> {
    PAPERS.iter().copied().filter(|paper| matches!(paper.method, Method::Router(_)))
}

/// The registered paper of that name.
///
/// # Errors
/// [`ConfigError::Unknown`], which lists the choices.
pub fn paper(id: &str) -> Result<&'static Paper, ConfigError> {
    PAPERS.iter().copied().find(|p| p.id == id).ok_or_else(|| ConfigError::Unknown {
        what: "router",
        name: id.into(),
        choices: routers().map(|p| p.id).collect::<Vec<_>>().join(", "),
    })
}

/// Reads the settings of router `id`: a preset's values (`preset = "…"`, else the first one) with
/// the given keys in their place.
///
/// # Errors
/// An unknown router, preset or key, or a value of the wrong type, each naming the key.
pub fn router_config(id: &str, settings: &Settings) -> Result<Box<dyn RouterConfig>, ConfigError> {
    paper(id)?.router(settings)
}
