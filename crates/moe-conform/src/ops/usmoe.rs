//! USMoE: scores, routing, layer, and the two choices it unifies (`moe_routers::us_moe`).

use super::experts::{HostBank, TorchBank};
use super::{binary, config, dense_forms};
use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError, Outputs};
use moe_core::Plan;
use moe_routers::convert::to_host;
use moe_routers::us_moe::{self, Config, Crowd, Shared, TensorCrowd};
use moe_routers::{RouterConfig, TensorPlan};
use ndarray::{Array2, Axis};
use tch::{Device, Kind, Tensor};

const ROUTE_KEYS: &[&str] = &["preset", "top_k", "alpha", "rounding", "norm_topk_prob", "group"];
const ROUTE_TENSORS: &[&str] = &["x", "router", "logits", "groups", "valid"];

/// The operations.
pub const OPS: &[Op] = &[
    Op {
        name: "usmoe.scores",
        config: &["preset", "alpha"],
        tensors: &["x", "router", "logits"],
        reference: Some(scores_reference),
        torch: Some(scores_torch),
    },
    Op {
        name: "usmoe.route",
        config: ROUTE_KEYS,
        tensors: ROUTE_TENSORS,
        reference: Some(|args| Ok(Input::read(args, &[])?.reference()?.outputs)),
        torch: Some(|args| Ok(Input::read(args, &[])?.torch().outputs)),
    },
    Op {
        name: "usmoe.layer",
        config: &["preset", "top_k", "alpha", "rounding", "norm_topk_prob", "group", "shared"],
        tensors: &[
            "x",
            "router",
            "groups",
            "valid",
            "W1",
            "b1",
            "W2",
            "b2",
            "shared_W1",
            "shared_W2",
            "shared_gate",
        ],
        reference: Some(layer_reference),
        torch: Some(layer_torch),
    },
    Op {
        name: "usmoe.baselines",
        config: ROUTE_KEYS,
        tensors: ROUTE_TENSORS,
        reference: Some(baselines_reference),
        torch: Some(baselines_torch),
    },
];

/// `[T, E]`: the given logits, or those of tokens and router.
fn logits(args: &Args<'_>) -> Result<Tensor, OpError> {
    if args.has("logits") {
        args.matrix("logits")?;
        return args.torch("logits");
    }
    let (x, router) = (args.matrix("x")?, args.matrix("router")?);
    expect_shape("router", router.shape(), &[router.nrows(), x.ncols()])?;
    Ok(args.torch("x")?.linear(&args.torch("router")?, None::<&Tensor>))
}

/// What routing reads.
struct Input {
    config: Config,
    logits: Tensor,
    crowd: Crowd,
}

impl Input {
    fn read(args: &Args<'_>, own: &[&str]) -> Result<Self, OpError> {
        let logits = logits(args)?;
        let (tokens, experts) = (logits.size()[0] as usize, logits.size()[1] as usize);
        let config: Config = config(args, own, experts)?;
        let padding: Option<Vec<bool>> =
            args.flags("valid", tokens)?.map(|valid| valid.into_iter().map(|v| !v).collect());
        let own_groups = Crowd::one(config.group, tokens, padding.as_deref());
        let crowd = match args.optional("groups", Args::vector)? {
            None => own_groups,
            Some(ids) => {
                expect_shape("groups", ids.shape(), &[tokens])?;
                let (group_t, groups) = ranked(&ids.to_vec())?;
                Crowd { group_t, groups, ..own_groups }
            }
        };
        Ok(Self { config, logits, crowd })
    }

    fn tensor_crowd(&self) -> TensorCrowd {
        TensorCrowd::from_host(&self.crowd, Device::Cpu)
    }

    fn scores_host(&self) -> Array2<f64> {
        us_moe::scores_host(self.config.alpha, to_host(&self.logits).view())
    }

    fn scores(&self) -> Tensor {
        us_moe::scores(self.config.alpha, &self.logits)
    }

    fn reference(&self) -> Result<Routed<Plan>, OpError> {
        let scores = self.scores_host();
        let (chosen, budget) = us_moe::select_host(&self.config, scores.view(), &self.crowd);
        let plan = us_moe::plan_host(&self.config, scores.view(), chosen.view())?;
        let Plan::Sparse(rows) = &plan else { panic!("USMoE has a sparse plan") };
        let (mask, combine) = (rows.mask_te(), rows.combine_te());
        let outputs: Outputs = vec![
            ("logits", to_host(&self.logits).into()),
            ("objective", (&mask * &scores).sum().into()),
            ("scores", scores.into()),
            ("budget", budget.into_iter().map(|b| b as f64).collect::<Vec<f64>>().into()),
            ("per_token", mask.sum_axis(Axis(1)).into()),
            ("per_expert", mask.sum_axis(Axis(0)).into()),
            ("mask", mask.into()),
            ("combine", combine.into()),
        ];
        Ok(Routed { plan, outputs })
    }

    fn torch(&self) -> Routed<TensorPlan> {
        let scores = self.scores();
        let (chosen, budget) = us_moe::select(&self.config, &scores, &self.tensor_crowd());
        let plan = us_moe::plan(&self.config, &scores, &chosen, 1);
        let (mask, combine) = dense_forms(&plan, self.logits.size()[1]);
        let outputs: Outputs = vec![
            ("logits", self.logits.shallow_clone().into()),
            ("objective", (&mask * &scores).sum(scores.kind()).into()),
            ("scores", scores.into()),
            ("budget", budget.into()),
            ("per_token", mask.sum_dim_intlist(1, false, None).into()),
            ("per_expert", mask.sum_dim_intlist(0, false, None).into()),
            ("mask", mask.into()),
            ("combine", combine.into()),
        ];
        Routed { plan, outputs }
    }
}

/// A plan and the outputs that every routing has.
struct Routed<P> {
    plan: P,
    outputs: Outputs,
}

/// The rank of each id among the different ones, and how many there are.
fn ranked(ids: &[f64]) -> Result<(Vec<usize>, usize), OpError> {
    if let Some(id) = ids.iter().find(|id| id.fract() != 0.0) {
        return Err(OpError::new(format!("groups: {id} is out of range, an id is a whole number")));
    }
    let mut different = ids.to_vec();
    different.sort_by(f64::total_cmp);
    different.dedup();
    let rank = |id: &f64| different.iter().take_while(|other| *other < id).count();
    Ok((ids.iter().map(rank).collect(), different.len()))
}

/// Settings of the scores alone: the number of experts does not matter.
fn score_config(args: &Args<'_>) -> Result<Config, OpError> {
    let config: Config = moe_routers::config::resolve(&args.settings().collect())?;
    config.check_alpha()?;
    Ok(config)
}

fn scores_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (config, logits) = (score_config(args)?, to_host(&logits(args)?));
    let scores = us_moe::scores_host(config.alpha, logits.view());
    Ok(vec![
        ("row_sum", scores.sum_axis(Axis(1)).into()),
        ("logits", logits.into()),
        ("scores", scores.into()),
    ])
}

fn scores_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (config, logits) = (score_config(args)?, logits(args)?);
    let scores = us_moe::scores(config.alpha, &logits);
    Ok(vec![
        ("row_sum", scores.sum_dim_intlist(-1, false, None).into()),
        ("logits", logits.into()),
        ("scores", scores.into()),
    ])
}

/// What `usmoe.layer` reads besides the experts of the bank.
struct Layer {
    input: Input,
    shared: Shared,
    experts: usize,
    width: usize,
}

impl Layer {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let shared = match args.word("shared", "none", &["none", "gated", "plain"])? {
            "gated" => Shared::Gated,
            "plain" => Shared::Plain,
            _ => Shared::None,
        };
        let (experts, width) = (args.matrix("router")?.nrows(), args.matrix("x")?.ncols());
        let mut input = Input::read(args, &["shared"])?;
        input.config.norm_topk_prob &= shared.normalises();
        if shared != Shared::None {
            let (w1, w2) = (args.matrix("shared_W1")?, args.matrix("shared_W2")?);
            expect_shape("shared_W1", w1.shape(), &[w1.nrows(), width])?;
            expect_shape("shared_W2", w2.shape(), &[width, w1.nrows()])?;
        }
        if shared == Shared::Gated {
            expect_shape("shared_gate", args.vector("shared_gate")?.shape(), &[width])?;
        }
        Ok(Self { input, shared, experts, width })
    }
}

fn layer_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let layer = Layer::read(args)?;
    let bank = HostBank::read(args, layer.experts, layer.width)?;
    let Routed { plan, mut outputs } = layer.input.reference()?;
    let x = args.matrix("x")?;
    let mut y = bank.apply(&plan, x.view());
    if layer.shared != Shared::None {
        let hidden = x.dot(&args.matrix("shared_W1")?.t()).mapv(|v| v.max(0.0));
        let gate = match layer.shared {
            Shared::Gated => Some(args.vector("shared_gate")?),
            _ => None,
        };
        let weight = layer.shared.weight_host(x.view(), gate.as_ref().map(|g| g.view()));
        y += &(hidden.dot(&args.matrix("shared_W2")?.t()) * weight.insert_axis(Axis(1)));
    }
    outputs.push(("y", y.into()));
    Ok(outputs)
}

fn layer_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let layer = Layer::read(args)?;
    let bank = TorchBank::read(args, layer.experts, layer.width)?;
    let Routed { plan, mut outputs } = layer.input.torch();
    let x = args.torch("x")?;
    let mut y = bank.apply(&plan, &x.unsqueeze(0)).squeeze_dim(0);
    if layer.shared != Shared::None {
        let hidden = x.linear(&args.torch("shared_W1")?, None::<&Tensor>).relu();
        let gate = match layer.shared {
            Shared::Gated => Some(args.torch("shared_gate")?),
            _ => None,
        };
        let weight = layer.shared.weight(&x, gate.as_ref()).unsqueeze(-1);
        y += hidden.linear(&args.torch("shared_W2")?, None::<&Tensor>) * weight;
    }
    outputs.push(("y", y.into()));
    Ok(outputs)
}

/// Token choice and expert choice spend a whole k.
fn baseline_input(args: &Args<'_>) -> Result<Input, OpError> {
    let mut input = Input::read(args, &[])?;
    input.config.fractional = false;
    input.config.check(input.logits.size()[1] as usize)?;
    Ok(input)
}

fn baselines_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = baseline_input(args)?;
    let (config, crowd, scores) = (&input.config, &input.crowd, input.scores_host());
    let (chosen, _) = us_moe::select_host(config, scores.view(), crowd);
    let mask = chosen.mapv(binary);
    let mask_token = us_moe::token_choice_host(config, scores.view(), crowd).mapv(binary);
    let mask_expert = us_moe::expert_choice_host(config, scores.view(), crowd).mapv(binary);
    Ok(vec![
        ("objective", (&mask * &scores).sum().into()),
        ("objective_token", (&mask_token * &scores).sum().into()),
        ("objective_expert", (&mask_expert * &scores).sum().into()),
        ("mask_token", mask_token.into()),
        ("mask_expert", mask_expert.into()),
    ])
}

fn baselines_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = baseline_input(args)?;
    let (config, crowd, scores) = (&input.config, input.tensor_crowd(), input.scores());
    let (chosen, _) = us_moe::select(config, &scores, &crowd);
    let number = |mask: Tensor| mask.to_kind(Kind::Double);
    let mask = number(chosen);
    let mask_token = number(us_moe::token_choice(config, &scores, &crowd));
    let mask_expert = number(us_moe::expert_choice(config, &scores, &crowd));
    let objective = |mask: &Tensor| (mask * &scores).sum(Kind::Double);
    Ok(vec![
        ("objective", objective(&mask).into()),
        ("objective_token", objective(&mask_token).into()),
        ("objective_expert", objective(&mask_expert).into()),
        ("mask_token", mask_token.into()),
        ("mask_expert", mask_expert.into()),
    ])
}
