//! X-MoE: scores, routing, layer, balance loss, capacity, collapse term (`moe_routers::x_moe`).

use super::experts::{HostBank, TorchBank};
use super::{Given, config, host_universal, torch_universal};
use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError, Outputs};
use moe_core::{HostInput, HostRouting, Reference};
use moe_routers::config::{check_positive, check_weight};
use moe_routers::convert::to_host;
use moe_routers::x_moe::{
    self, BalanceForm, Capacity, Collapse, Config, Host, PaddingMode, SecondPolicy, TensorCollapse,
    XMoe,
};
use moe_routers::{Dims, ParamStore, Phase, Preset, RouteCx, Router, Routing};
use ndarray::Array2;
use tch::{Device, Kind, Tensor};

const ROUTE_KEYS: &[&str] = &[
    "preset",
    "top_k",
    "gate",
    "temperature",
    "theta",
    "normalize_token",
    "eps",
    "emb_rescale_norm",
    "make_finite",
    "capacity",
    "normalize_gates",
    "second_policy",
];

/// The operations.
pub const OPS: &[Op] = &[
    Op {
        name: "xmoe.scores",
        config: ROUTE_KEYS,
        tensors: &["x", "proj", "emb", "proj_bias"],
        reference: Some(scores_reference),
        torch: Some(scores_torch),
    },
    Op {
        name: "xmoe.route",
        config: ROUTE_KEYS,
        tensors: &["x", "proj", "emb", "proj_bias", "padding", "second_uniform"],
        reference: Some(route_reference),
        torch: Some(route_torch),
    },
    Op {
        name: "xmoe.layer",
        config: ROUTE_KEYS,
        tensors: &[
            "x",
            "proj",
            "emb",
            "proj_bias",
            "padding",
            "second_uniform",
            "W1",
            "b1",
            "W2",
            "b2",
        ],
        reference: Some(layer_reference),
        torch: Some(layer_torch),
    },
    Op {
        name: "xmoe.balance_loss",
        config: &["preset", "tau0", "alpha", "form", "padding_mode"],
        tensors: &["scores", "first_choice", "padding"],
        reference: Some(balance_reference),
        torch: Some(balance_torch),
    },
    Op {
        name: "xmoe.capacity",
        config: &["tokens", "experts", "top_k", "train", "capacity_factor", "eval_fraction"],
        tensors: &[],
        reference: Some(capacity),
        torch: None,
    },
    Op {
        name: "xmoe.collapse_term",
        config: &[],
        tensors: &["h", "emb", "f"],
        reference: Some(collapse_reference),
        torch: Some(collapse_torch),
    },
];

/// What routing reads.
struct Input {
    router: XMoe,
    /// `[1, t, d]`.
    x_gtd: Tensor,
    experts: usize,
    gate: x_moe::Gate,
    padding: Option<Vec<bool>>,
    /// `[1, t, 1]`.
    uniform: Option<Tensor>,
}

impl Input {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let [x, proj, emb] = ["x", "proj", "emb"].map(|name| args.raw_matrix(name));
        let ((tokens, width), (plane, _), (experts, _)) = (x?.dim(), proj?.dim(), emb?.dim());
        let given: Config = config(args, &[], experts)?;
        expect_shape("proj", args.raw("proj")?.shape(), &[plane, width])?;
        expect_shape("emb", args.raw("emb")?.shape(), &[experts, plane])?;
        let bias = args.optional("proj_bias", Args::vector)?;
        bias.map_or(Ok(()), |bias| expect_shape("proj_bias", bias.shape(), &[plane]))?;
        // The temperature is always a parameter here, so that its gradient can be asked for.
        let config = Config {
            width: Some(plane),
            bias: args.has("proj_bias"),
            learn_temperature: true,
            ..given
        };
        let read = |name| if config.make_finite { args.torch_raw(name) } else { args.torch(name) };
        let mut params =
            vec![("proj", read("proj")?), ("emb", read("emb")?), ("theta", theta(args, &config))];
        params.extend(args.torch_optional("proj_bias")?.map(|bias| ("bias", bias)));
        let x_gtd = read("x")?.unsqueeze(0);
        let params = params.into_iter().map(|(name, t)| (name.to_owned(), t));
        let store = ParamStore::new(0, Device::Cpu, x_gtd.kind()).with_given(params);
        let dims = Dims { width: width as i64, experts: experts as i64 };
        let router = XMoe::new(&config, &store.root(), dims);
        let input = Self {
            router,
            x_gtd,
            experts,
            gate: config.gate,
            padding: args.flags("padding", tokens)?,
            uniform: uniform(args, tokens, &config)?,
        };
        input.check_scores().map(|()| input)
    }

    /// Not one finite score leaves nothing to repair the others with.
    fn check_scores(&self) -> Result<(), OpError> {
        let scores = self.scores(&self.router.host()).1;
        match scores.iter().find(|score| !score.is_finite()) {
            Some(score) => Err(OpError::new(format!("x: a score is {score}, not finite"))),
            None => Ok(()),
        }
    }

    /// Projected tokens and scores on the host.
    fn scores(&self, host: &Host) -> (Array2<f64>, Array2<f64>) {
        let projected = host.project(to_host(&self.x_gtd.get(0)).view());
        let scores = host.scores(projected.view());
        (projected, scores)
    }

    fn reference(&self) -> Result<HostRouting, OpError> {
        let x_td = to_host(&self.x_gtd.get(0));
        let draws: Vec<_> =
            self.uniform.iter().map(|u| (x_moe::SECOND, to_host(&u.get(0)))).collect();
        let input = HostInput::new(x_td.view()).train(!draws.is_empty()).draws(&draws);
        Ok(self.router.host().route(&input.padding(self.padding.as_deref()))?)
    }

    fn torch(&self) -> Result<Routing, OpError> {
        let draws = self.uniform.iter().map(|u| (x_moe::SECOND, u.shallow_clone())).collect();
        let noise = Given(draws);
        let training = self.uniform.is_some();
        let phase = if training { Phase::Train { step: 0 } } else { Phase::Eval };
        let padding = self.padding.as_deref().map(flags);
        let cx = RouteCx { padding_gt: padding.as_ref(), ..RouteCx::new(phase, &noise) };
        Ok(self.router.route(&self.x_gtd, &cx)?)
    }
}

/// `-ln tau` as a function of the leaf `temperature`, not beyond the clamp, where it would lose its
/// gradient to rounding.
fn theta(args: &Args<'_>, config: &Config) -> Tensor {
    let theta = -args.torch_setting("temperature", config.tau()).log();
    let beyond = (theta.detach() - config.max_theta()).clamp_min(0.0);
    (theta - beyond).view([1])
}

/// The draw of the random policy, where it has a say.
fn uniform(args: &Args<'_>, tokens: usize, config: &Config) -> Result<Option<Tensor>, OpError> {
    if let Some(draw) = args.optional("second_uniform", Args::vector)? {
        expect_shape("second_uniform", draw.shape(), &[tokens])?;
    }
    let used = config.second_policy == SecondPolicy::Random && config.top_k > 1;
    let draw = if used { args.torch_optional("second_uniform")? } else { None };
    Ok(draw.map(|u| u.view([1, tokens as i64, 1])))
}

/// Flags as `[1, t]`, bool.
fn flags(flags: &[bool]) -> Tensor {
    Tensor::from_slice(flags).unsqueeze(0)
}

fn scores_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    let host = input.router.host();
    let (projected, scores) = input.scores(&host);
    let emb_after = host.embeddings().to_owned();
    Ok(vec![
        ("projected", projected.into()),
        ("scores", scores.into()),
        ("emb_after", emb_after.into()),
    ])
}

fn scores_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    input.router.rescale();
    let scored = input.router.scores(&input.x_gtd);
    Ok(vec![
        ("projected", scored.projected_gtp.squeeze_dim(0).into()),
        ("scores", scored.score_gte.squeeze_dim(0).into()),
        ("emb_after", input.router.embeddings().into()),
    ])
}

fn route_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    let routing = input.reference()?;
    let host = input.router.host();
    let probs = host.probabilities(routing.logits_te.view());
    let mut outputs = host_universal(&[routing]);
    outputs.push(("scores", input.scores(&host).1.into()));
    outputs.push(("probs", probs.into()));
    outputs.push(("emb_after", host.embeddings().to_owned().into()));
    outputs.push(("temperature", host.temperature().into()));
    Ok(outputs)
}

fn route_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    // Routing rescales the embeddings in place; nothing may come before it in the graph.
    let routing = input.torch()?;
    let mut outputs = torch_universal(&routing);
    let scores = input.router.scores(&input.x_gtd).score_gte.squeeze_dim(0);
    let probs = x_moe::probabilities(input.gate, &routing.logits_gte).squeeze_dim(0);
    outputs.push(("scores", scores.into()));
    outputs.push(("probs", probs.into()));
    outputs.push(("emb_after", input.router.embeddings().into()));
    outputs.push(("temperature", input.router.temperature().squeeze().into()));
    Ok(outputs)
}

fn layer_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    let x = to_host(&input.x_gtd.get(0));
    let bank = HostBank::read(args, input.experts, x.ncols())?;
    let routing = input.reference()?;
    let y = bank.apply(&routing.plan, x.view());
    let mut outputs = host_universal(&[routing]);
    outputs.push(("hidden", (&x + &y).into()));
    outputs.push(("y", y.into()));
    Ok(outputs)
}

fn layer_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    let bank = TorchBank::read(args, input.experts, input.x_gtd.size()[2] as usize)?;
    let routing = input.torch()?;
    let y = bank.apply(&routing.plan, &input.x_gtd);
    let mut outputs = torch_universal(&routing);
    outputs.push(("hidden", (&input.x_gtd + &y).squeeze_dim(0).into()));
    outputs.push(("y", y.squeeze_dim(0).into()));
    Ok(outputs)
}

/// What `xmoe.balance_loss` reads.
struct Balance {
    config: Config,
    scores: Array2<f64>,
    first: Vec<usize>,
    padding: Option<Vec<bool>>,
}

impl Balance {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let scores = args.matrix("scores")?;
        let (tokens, experts) = scores.dim();
        let config = balance_config(args)?;
        let padding = args.flags("padding", tokens)?;
        let none_left = padding.as_ref().is_some_and(|p| p.iter().all(|padded| *padded));
        if none_left && config.padding_mode == PaddingMode::Exclude {
            return Err(OpError::new("padding: no token is left"));
        }
        let first = match args.optional("first_choice", |a, name| a.indices(name, experts))? {
            Some(first) => {
                expect_shape("first_choice", first.shape(), &[tokens])?;
                first.into_iter().collect()
            }
            None => {
                let best = |row: ndarray::ArrayView1<'_, f64>| moe_core::top_k(row.to_vec(), 1)[0];
                scores.outer_iter().map(best).collect()
            }
        };
        Ok(Self { config, scores, first, padding })
    }
}

fn balance_config(args: &Args<'_>) -> Result<Config, OpError> {
    let preset = args.word("preset", "paper", &["paper", "paper_sigmoid", "reference"])?;
    let base = Config::preset(preset);
    let tau0 = args.f64("tau0", base.tau0)?;
    check_positive("tau0", tau0)?;
    let balance_weight = args.f64("alpha", base.balance_weight)?;
    check_weight("alpha", balance_weight)?;
    let balance_form = match args.word("form", "fraction", &["fraction", "count"])? {
        "count" => BalanceForm::Count,
        _ => BalanceForm::Fraction,
    };
    let own = if base.padding_mode == PaddingMode::Reference { "reference" } else { "exclude" };
    let padding_mode = match args.word("padding_mode", own, &["exclude", "reference"])? {
        "reference" => PaddingMode::Reference,
        _ => PaddingMode::Exclude,
    };
    Ok(Config { tau0, balance_weight, balance_form, padding_mode, ..base })
}

fn balance_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let Balance { config, scores, first, padding } = Balance::read(args)?;
    let found = x_moe::balance_host(&config, scores.view(), &first, padding.as_deref());
    Ok(vec![
        ("fraction", found.fraction_e.into()),
        ("mean_prob", found.mean_prob_e.into()),
        ("balance", found.loss.into()),
        ("loss", (config.balance_weight * found.loss).into()),
    ])
}

fn balance_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let Balance { config, first, padding, .. } = Balance::read(args)?;
    let first: Vec<i64> = first.into_iter().map(|e| e as i64).collect();
    let first_gt = Tensor::from_slice(&first).unsqueeze(0).to_kind(Kind::Int64);
    let padding = padding.as_deref().map(flags);
    let score_gte = args.torch("scores")?.unsqueeze(0);
    let found = x_moe::balance(&config, &score_gte, &first_gt, padding.as_ref());
    Ok(vec![
        ("fraction", found.fraction_ge.squeeze_dim(0).into()),
        ("mean_prob", found.mean_prob_ge.squeeze_dim(0).into()),
        ("loss", (&found.loss * config.balance_weight).into()),
        ("balance", found.loss.into()),
    ])
}

fn capacity(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (tokens, experts) = (args.count("tokens")?, args.count("experts")?);
    let factor = args.f64("capacity_factor", 1.0)?;
    check_weight("capacity_factor", factor)?;
    let eval_fraction = args.f64("eval_fraction", 0.25)?;
    check_weight("eval_fraction", eval_fraction)?;
    let (top_k, train) = (args.top_k(1, experts)?, args.bool("train", true)?);
    let rule = Capacity { top_k, train, factor, eval_fraction };
    Ok(vec![("capacity", (rule.slots(tokens, experts)? as f64).into())])
}

/// Checks the shapes of `h`, `emb` and `f`.
fn check_collapse(args: &Args<'_>) -> Result<(), OpError> {
    let (_, width) = args.matrix("emb")?.dim();
    expect_shape("h", args.vector("h")?.shape(), &[width])?;
    expect_shape("f", args.vector("f")?.shape(), &[width])
}

fn collapse_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    check_collapse(args)?;
    let (h, emb, f) = (args.vector("h")?, args.matrix("emb")?, args.vector("f")?);
    let found = Collapse::of(h.view(), emb.view(), f.view());
    Ok(vec![
        ("probs", found.prob_e.into()),
        ("index", (found.index as f64).into()),
        ("coefficients", found.coefficient_e.into()),
        ("jacobian", found.jacobian_dd.into()),
    ])
}

fn collapse_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    check_collapse(args)?;
    let found = TensorCollapse::of(&args.torch("h")?, &args.torch("emb")?, &args.torch("f")?);
    Ok(vec![
        ("probs", found.prob_e.into()),
        ("index", found.index.into()),
        ("coefficients", found.coefficient_e.into()),
        ("jacobian", found.jacobian_dd.into()),
    ])
}
