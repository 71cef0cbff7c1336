//! S2MoE: augmentation, InfoNCE, balance, layer, saving (`moe_routers::s2_moe`).

use super::experts::{HostBank, TorchBank};
use super::{Given, dense_forms};
use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError, Outputs};
use moe_core::{HostInput, HostRouting, Reference};
use moe_routers::config::{check_positive, check_weight, resolve};
use moe_routers::s2_moe::{self as torch, Balance, Config, reference};
use moe_routers::{Phase, RouteCx, Router, RouterConfig, Routing, Settings, TensorPlan};
use ndarray::{Array1, Array2, Axis};
use tch::Tensor;

const NOISE_KEYS: &[&str] = &[
    "preset",
    "noise",
    "stats_axis",
    "unbiased",
    "noise_scale",
    "detach_stats",
    "scale_mul",
    "scale_add",
    "in_eps",
];

const LAYER_KEYS: &[&str] = &[
    "preset",
    "noise",
    "stats_axis",
    "unbiased",
    "noise_scale",
    "detach_stats",
    "scale_mul",
    "scale_add",
    "in_eps",
    "mode",
    "top_k",
    "top_k_infer",
    "reroute",
    "nce_on",
    "tau",
    "balance",
    "alpha",
    "beta",
];

const LAYER_TENSORS: &[&str] = &[
    "x",
    "router",
    "bias",
    "W1",
    "b1",
    "W2",
    "b2",
    "gate_w",
    "gate_b",
    "eps1",
    "eps2",
    "segments",
    "in_weight",
    "in_bias",
];

/// The operations.
pub const OPS: &[Op] = &[
    Op {
        name: "s2moe.augment",
        config: NOISE_KEYS,
        tensors: &["x", "eps1", "eps2", "segments", "in_weight", "in_bias"],
        reference: Some(augment_reference),
        torch: Some(augment_torch),
    },
    Op {
        name: "s2moe.infonce",
        config: &["tau", "symmetric"],
        tensors: &["a", "b"],
        reference: Some(infonce_reference),
        torch: Some(infonce_torch),
    },
    Op {
        name: "s2moe.balance",
        config: &["balance"],
        tensors: &["logits", "indices"],
        reference: Some(balance_reference),
        torch: Some(balance_torch),
    },
    Op {
        name: "s2moe.layer",
        config: LAYER_KEYS,
        tensors: LAYER_TENSORS,
        reference: Some(layer_reference),
        torch: Some(layer_torch),
    },
    Op {
        name: "s2moe.inference_saving",
        config: &["k_train", "k_infer", "flops_expert", "flops_other"],
        tensors: &[],
        reference: Some(inference_saving),
        torch: None,
    },
];

/// The settings but for those in `own`, over their preset; not checked.
fn config(args: &Args<'_>, own: &[&str]) -> Result<Config, OpError> {
    let settings: Settings =
        args.settings().filter(|(key, _)| !own.contains(&key.as_str())).collect();
    Ok(resolve(&settings)?)
}

/// The draws, sequences and affine of (1), shapes checked.
fn perturbation(
    args: &Args<'_>,
    shape: (usize, usize),
) -> Result<reference::Perturbation, OpError> {
    let draw = |name: &str| {
        let eps_td = args.optional(name, Args::matrix)?;
        eps_td.iter().try_for_each(|e| expect_shape(name, e.shape(), &[shape.0, shape.1]))?;
        Ok::<_, OpError>(eps_td)
    };
    let affine = |name: &str| {
        let row_d = args.optional(name, Args::vector)?;
        row_d.iter().try_for_each(|r| expect_shape(name, r.shape(), &[shape.1]))?;
        Ok::<_, OpError>(row_d)
    };
    Ok(reference::Perturbation {
        eps1_td: draw("eps1")?,
        eps2_td: draw("eps2")?,
        sequence_t: sequences(args, shape.0)?,
        in_weight_d: affine("in_weight")?,
        in_bias_d: affine("in_bias")?,
        held: None,
    })
}

/// `segments` as sequence numbers from 0 in the order of appearance.
fn sequences(args: &Args<'_>, tokens: usize) -> Result<Option<Vec<usize>>, OpError> {
    let Some(id_t) = args.optional("segments", Args::vector)? else { return Ok(None) };
    expect_shape("segments", id_t.shape(), &[tokens])?;
    let mut known: Vec<f64> = Vec::new();
    let number = |id: &f64| {
        known.iter().position(|other| other == id).unwrap_or_else(|| {
            known.push(*id);
            known.len() - 1
        })
    };
    Ok(Some(id_t.iter().map(number).collect()))
}

/// The tensors of a [`torch::Perturbation`] of one group, which borrows them.
struct Drawn {
    eps1_gtd: Option<Tensor>,
    eps2_gtd: Option<Tensor>,
    sequence_gt: Option<Tensor>,
    in_weight_d: Option<Tensor>,
    in_bias_d: Option<Tensor>,
}

impl Drawn {
    fn read(args: &Args<'_>, shape: (usize, usize)) -> Result<Self, OpError> {
        let host = perturbation(args, shape)?;
        let number = |sequence_t: Vec<usize>| {
            let id_t: Vec<i64> = sequence_t.iter().map(|&q| q as i64).collect();
            Tensor::from_slice(&id_t).unsqueeze(0)
        };
        let draw =
            |name| Ok::<_, OpError>(args.torch_optional(name)?.map(|eps_td| eps_td.unsqueeze(0)));
        Ok(Self {
            eps1_gtd: draw("eps1")?,
            eps2_gtd: draw("eps2")?,
            sequence_gt: host.sequence_t.map(number),
            in_weight_d: args.torch_optional("in_weight")?,
            in_bias_d: args.torch_optional("in_bias")?,
        })
    }

    fn given(&self) -> torch::Perturbation<'_> {
        torch::Perturbation {
            eps1_gtd: self.eps1_gtd.as_ref(),
            eps2_gtd: self.eps2_gtd.as_ref(),
            sequence_gt: self.sequence_gt.as_ref(),
            in_weight_d: self.in_weight_d.as_ref(),
            in_bias_d: self.in_bias_d.as_ref(),
        }
    }
}

fn augment_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let x_td = args.matrix("x")?;
    let config = config(args, &[])?;
    config.check_noise()?;
    let found = reference::augment(&config, x_td.view(), &perturbation(args, x_td.dim())?, None);
    Ok(vec![
        ("augmented", found.x_td.into()),
        ("mean", found.mean_td.into()),
        ("std", found.std_td.into()),
    ])
}

fn augment_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let shape = args.matrix("x")?.dim();
    let config = config(args, &[])?;
    config.check_noise()?;
    let drawn = Drawn::read(args, shape)?;
    let found = torch::augment(&config, &args.torch("x")?.unsqueeze(0), &drawn.given(), None);
    Ok(vec![
        ("augmented", found.x_gtd.get(0).into()),
        ("mean", found.mean_gtd.get(0).into()),
        ("std", found.std_gtd.get(0).into()),
    ])
}

/// What InfoNCE contrasts, its temperature, and whether it goes both ways.
type Contrast = (Array2<f64>, Array2<f64>, f64, bool);

fn contrast(args: &Args<'_>) -> Result<Contrast, OpError> {
    let (a_td, b_td) = (args.matrix("a")?, args.matrix("b")?);
    expect_shape("b", b_td.shape(), a_td.shape())?;
    let tau = args.f64("tau", 1.0)?;
    check_positive("tau", tau)?;
    Ok((a_td, b_td, tau, args.bool("symmetric", false)?))
}

fn infonce_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (a_td, b_td, tau, symmetric) = contrast(args)?;
    let loss_t = reference::info_nce(a_td.view(), b_td.view(), tau, symmetric);
    Ok(vec![("loss", loss_t.mean().unwrap_or(0.0).into()), ("per_token", loss_t.into())])
}

fn infonce_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (_, _, tau, symmetric) = contrast(args)?;
    let (a_gtd, b_gtd) = (args.torch("a")?.unsqueeze(0), args.torch("b")?.unsqueeze(0));
    let loss_t = torch::info_nce((&a_gtd, &b_gtd), (tau, symmetric), None).get(0);
    Ok(vec![("loss", loss_t.mean(None).into()), ("per_token", loss_t.into())])
}

/// The form of the loss, the logits, and the choices where the form counts them.
type Balanced = (Balance, Array2<f64>, Option<Array2<usize>>);

fn balanced(args: &Args<'_>) -> Result<Balanced, OpError> {
    let form = match args.word("balance", "switch", &["switch", "kl"])? {
        "kl" => Balance::Kl,
        _ => Balance::Switch,
    };
    let logits_te = args.matrix("logits")?;
    if form == Balance::Kl {
        return Ok((form, logits_te, None));
    }
    let per_token = args.matrix("indices")?.ncols();
    expect_shape("indices", args.raw("indices")?.shape(), &[logits_te.nrows(), per_token])?;
    let expert_tk = args.indices("indices", logits_te.ncols())?;
    Ok((form, logits_te, Some(expert_tk.into_dimensionality().expect("a matrix"))))
}

fn balance_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (form, logits_te, expert_tk) = balanced(args)?;
    let expert_tk = expert_tk.as_ref().map(|expert_tk| expert_tk.view());
    let loss = reference::balance(form, logits_te.view(), expert_tk, None);
    Ok(vec![("loss", loss.into())])
}

fn balance_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (form, _, expert_tk) = balanced(args)?;
    let whole = |expert_tk: Array2<usize>| {
        let expert_tk = super::tensor(&expert_tk.mapv(|e| e as f64).into_dyn());
        expert_tk.to_kind(tch::Kind::Int64).unsqueeze(0)
    };
    let (logits_gte, expert_gtk) = (args.torch("logits")?.unsqueeze(0), expert_tk.map(whole));
    let loss = torch::balance(form, &logits_gte, expert_gtk.as_ref(), None);
    Ok(vec![("loss", loss.into())])
}

/// What both sides of the layer check first.
struct Input {
    train: bool,
    x_td: Array2<f64>,
    host: reference::HostS2Moe,
    bank: HostBank,
}

impl Input {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let (x_td, router_ed) = (args.matrix("x")?, args.matrix("router")?);
        let (experts, width) = (router_ed.nrows(), x_td.ncols());
        expect_shape("router", router_ed.shape(), &[experts, width])?;
        let top_k = args.top_k(1, experts)?;
        let config = Config { top_k, ..config(args, &["mode"])? };
        config.check(experts)?;
        let train = args.word("mode", "train", &["train", "infer"])? == "train";
        let bias_e = args.optional("bias", Args::vector)?;
        let bias_e = bias_e.unwrap_or_else(|| Array1::zeros(experts));
        expect_shape("bias", bias_e.shape(), &[experts])?;
        let blend_d = if train { args.vector("gate_w")? } else { Array1::zeros(width) };
        expect_shape("gate_w", blend_d.shape(), &[width])?;
        let blend_bias = args.optional("gate_b", Args::scalar)?.filter(|_| train).unwrap_or(0.0);
        let bank = HostBank::read(args, experts, width)?;
        let host = reference::HostS2Moe { router_ed, bias_e, blend_d, blend_bias, config };
        Ok(Self { train, x_td, host, bank })
    }

    /// The trainable router; inference has no blend gate.
    fn router(&self, args: &Args<'_>) -> Result<torch::S2Moe, OpError> {
        let x_td = args.torch("x")?;
        let gate_w_d = args.torch_optional("gate_w")?.filter(|_| self.train);
        let gate_b = args.torch_optional("gate_b")?.filter(|_| self.train);
        let zero = |width| Tensor::zeros([width], (x_td.kind(), x_td.device()));
        Ok(torch::S2Moe {
            router_ed: args.torch("router")?,
            bias_e: args.torch_optional("bias")?,
            blend_1d: gate_w_d.unwrap_or_else(|| zero(x_td.size()[1])).unsqueeze(0),
            blend_bias_1: gate_b.unwrap_or_else(|| zero(1)).reshape([1]),
            config: self.host.config.clone(),
        })
    }
}

fn layer_reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let Input { train, x_td, host, bank } = Input::read(args)?;
    let expert = |e: usize, rows: ndarray::ArrayView2<'_, f64>| bank.expert(e, rows);
    let input = HostInput::new(x_td.view()).train(train);
    if !train {
        let (y_td, routing) = host.layer(&input, &expert)?;
        let mut outputs = host_routing(&routing);
        outputs.push(("y", y_td.into()));
        return Ok(outputs);
    }
    let found = host.passes(&input, &perturbation(args, x_td.dim())?, &expert)?;
    let nce = host.uncertainty(&input, &found);
    let balance = found.routing.aux("balance").expect("a training step balances");
    let mut outputs = host_routing(&found.routing);
    outputs.extend([
        ("y", found.y_td.into()),
        ("y_clean", found.clean_td.into()),
        ("y_noisy", found.noisy_td.into()),
        ("augmented", found.augmented.x_td.into()),
        ("blend", found.blend_t.into()),
        ("indices_noisy", found.noisy_expert_tk.mapv(|e| e as f64).into()),
        ("loss_nce", nce.into()),
        ("loss_balance", balance.into()),
        ("aux", (balance * host.config.alpha + nce * host.config.beta).into()),
    ]);
    Ok(outputs)
}

fn host_routing(routing: &HostRouting) -> Outputs {
    let chosen = routing.chosen.as_ref().expect("tokens choose");
    vec![
        ("logits", routing.logits_te.clone().into()),
        ("indices", chosen.choices.expert_tk.mapv(|e| e as f64).into()),
        ("gates", chosen.choices.gate_tk.clone().into()),
        ("mask", routing.plan.mask_te().into()),
        ("combine", routing.plan.combine_te().into()),
    ]
}

fn layer_torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    let bank = TorchBank::read(args, input.host.router_ed.nrows(), input.x_td.len_of(Axis(1)))?;
    let (router, x_gtd) = (input.router(args)?, args.torch("x")?.unsqueeze(0));
    let execute = |x_gtd: &Tensor, plan: &TensorPlan| bank.apply(plan, x_gtd);
    let (phase, noise) =
        (if input.train { Phase::Train { step: 0 } } else { Phase::Eval }, Given::default());
    let cx = RouteCx::new(phase, &noise);
    if !input.train {
        let (y_gtd, routing) = router.layer(&x_gtd, &cx, &execute)?;
        let mut outputs = torch_routing(&routing);
        outputs.push(("y", y_gtd.get(0).into()));
        return Ok(outputs);
    }
    let drawn = Drawn::read(args, input.x_td.dim())?;
    let found = router.passes(&x_gtd, &cx, &drawn.given(), &execute)?;
    let nce = router.uncertainty(&x_gtd, &found, None);
    let balance = found.routing.aux[0].value.shallow_clone();
    let mut outputs = torch_routing(&found.routing);
    outputs.extend([
        ("y", found.y_gtd.get(0).into()),
        ("y_clean", found.clean_gtd.get(0).into()),
        ("y_noisy", found.noisy_gtd.get(0).into()),
        ("augmented", found.augmented.x_gtd.get(0).into()),
        ("blend", found.blend_gt1.view([-1]).into()),
        ("indices_noisy", found.noisy_expert_gtk.get(0).into()),
        ("aux", (&balance * router.config.alpha + &nce * router.config.beta).into()),
        ("loss_nce", nce.into()),
        ("loss_balance", balance.into()),
    ]);
    Ok(outputs)
}

fn torch_routing(routing: &Routing) -> Outputs {
    let (mask_te, combine_te) = dense_forms(&routing.plan, routing.logits_gte.size()[2]);
    let chosen = routing.chosen.as_ref().expect("tokens choose");
    vec![
        ("logits", routing.logits_gte.get(0).into()),
        ("indices", chosen.choices.expert_gtk.get(0).into()),
        ("gates", chosen.choices.gate_gtk.get(0).into()),
        ("mask", mask_te.into()),
        ("combine", combine_te.into()),
    ]
}

fn inference_saving(args: &Args<'_>) -> Result<Outputs, OpError> {
    let count = |key: &str, default: usize| match args.usize(key, default)? {
        0 => Err(OpError::new(format!("{key}: 0 must be at least 1"))),
        k => Ok(k),
    };
    let k = (count("k_train", 2)?, count("k_infer", 1)?);
    let flops = |key: &str| {
        let flops = args.f64_or_null(key, None)?;
        flops.ok_or_else(|| OpError::new(format!("{key} is missing")))
    };
    let (expert, other) = (flops("flops_expert")?, flops("flops_other")?);
    check_positive("flops_expert", expert)?;
    check_weight("flops_other", other)?;
    Ok(vec![("saving", torch::inference_saving(k, expert, other).into())])
}
