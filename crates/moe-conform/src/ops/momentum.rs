//! MomentumSMoE: constants, one step of a rule, a block, a stack (`moe_routers::momentum`).
//!
//! The sparse layer inside a block is the softmax-over-selected router (`moe_routers::smoe`); logits are
//! handed to it as tokens with the identity as its gate, because it has no bias of its own.
//!
//! Axis letters: `l` layers, `t` tokens, `e` experts, `k` choices, `d` width, `h` hidden width.

mod host;
mod torch;

use super::Route;
use super::experts::{HostBank, TorchBank};
use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError, Outputs};
use moe_routers::config::{Preset, resolve};
use moe_routers::momentum::{self, Config, NormPlace, Robust};
use moe_routers::{ConfigError, Settings, smoe};
use ndarray::{Array2, Array3};
use tch::{Device, Tensor};

macro_rules! rule_keys {
    ($($own:literal),*) => {
        &[
            "preset", "rule", "mu", "mu_im", "gamma", "gamma1", "beta1", "beta2", "eps", "kappa",
            "lipschitz", "sign", "norm", "outer", "adam_layers", "cancel_residual", "sam_rho",
            "ln_eps", $($own),*
        ]
    };
}

macro_rules! block_tensors {
    ($($own:literal),*) => {
        &[
            "x", "router", "bias", "W1", "b1", "W2", "b2", "p", "v", "m", "p_im", "ln_in_weight",
            "ln_in_bias", "ln_out_weight", "ln_out_bias", "dropout", $($own),*
        ]
    };
}

/// Settings of operations that are not the rule's.
const OWN: &[&str] = &["layer", "layers", "pattern", "top_k"];

/// The operations.
pub const OPS: &[Op] = &[
    Op {
        name: "momentum.constants",
        config: &["mu", "kappa", "lipschitz"],
        tensors: &[],
        reference: Some(constants),
        torch: None,
    },
    Op {
        name: "momentum.spectral_radius",
        config: &["mu", "step"],
        tensors: &[],
        reference: Some(spectral_radius),
        torch: None,
    },
    Op {
        name: "momentum.update",
        config: rule_keys!("layer"),
        tensors: &["x", "f", "p", "v", "m", "p_im"],
        reference: Some(host::update),
        torch: Some(torch::update),
    },
    Op {
        name: "momentum.block",
        config: rule_keys!("layer", "top_k"),
        tensors: block_tensors!(),
        reference: Some(host::block),
        torch: Some(torch::block),
    },
    Op {
        name: "momentum.stack",
        config: rule_keys!("layers", "pattern", "top_k"),
        tensors: block_tensors!("ffn_W1", "ffn_b1", "ffn_W2", "ffn_b2"),
        reference: Some(host::stack),
        torch: Some(torch::stack),
    },
];

fn constants(args: &Args<'_>) -> Result<Outputs, OpError> {
    let value = |key, default| args.f64(key, default);
    let robust = Robust::new(value("mu", 0.2)?, value("kappa", 1.25)?, value("lipschitz", 1.0)?)?;
    Ok(vec![
        ("a", robust.a.into()),
        ("b", robust.b.into()),
        ("e", robust.e.into()),
        ("shift", robust.shift().into()),
    ])
}

fn spectral_radius(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (mu, step) = (args.f64("mu", 0.7)?, args.f64("step", 1.0)?);
    Ok(vec![
        ("radius", momentum::spectral_radius(mu, step).into()),
        ("stable", super::binary(momentum::is_stable(mu, step)).into()),
    ])
}

/// The rule's settings, checked.
fn rule(args: &Args<'_>) -> Result<Config, OpError> {
    let mut settings: Settings =
        args.settings().filter(|(key, _)| !OWN.contains(&key.as_str())).collect();
    settings.entry("preset").or_insert("reference".into());
    let config: Config = resolve(&settings)?;
    config.check_values()?;
    if config.norm == NormPlace::Model {
        let reason = "`model` is for layers of a model; expected none, post, pre or vmoe";
        return Err(ConfigError::setting("norm", reason).into());
    }
    Ok(config)
}

/// `p`, `v`, `m`, `p_im`: given, or zero.
fn state(args: &Args<'_>, tokens: usize, width: usize) -> Result<[Tensor; 4], OpError> {
    let kind = args.torch("x")?.kind();
    let read = |name: &str| {
        let Some(given_td) = args.optional(name, Args::matrix)? else {
            return Ok(Tensor::zeros([tokens as i64, width as i64], (kind, Device::Cpu)));
        };
        expect_shape(name, given_td.shape(), &[tokens, width])?;
        if let ("v", Some(v)) = (name, given_td.iter().find(|v| **v < 0.0)) {
            return Err(OpError::new(format!("v: {v} is out of range, a square is at least 0")));
        }
        args.torch(name)
    };
    Ok([read("p")?, read("v")?, read("m")?, read("p_im")?])
}

/// The sparse layer number `l` of a stack: what it computes with.
#[derive(Debug)]
struct Layer {
    router_ed: Tensor,
    bias_e: Option<Tensor>,
    w1_ehd: Tensor,
    b1_eh: Option<Tensor>,
    w2_edh: Tensor,
    b2_ed: Option<Tensor>,
    ln_in_weight_d: Option<Tensor>,
    ln_in_bias_d: Option<Tensor>,
    ln_out_weight_d: Option<Tensor>,
    ln_out_bias_d: Option<Tensor>,
    dropout_td: Option<Tensor>,
    smoe: smoe::Config,
}

/// Everything that `block` and `stack` read besides the state.
struct Model {
    rule: Config,
    x_td: Tensor,
    state: [Tensor; 4],
    layers: Vec<Layer>,
    top_k: usize,
}

/// A tensor of this shape, or of one per layer where there are several.
fn per_layer(
    args: &Args<'_>,
    name: &str,
    layers: Option<usize>,
    want: &[usize],
) -> Result<Option<Vec<Tensor>>, OpError> {
    let Some(given) = args.torch_optional(name)? else { return Ok(None) };
    let shape: Vec<usize> = given.size().iter().map(|&n| n as usize).collect();
    let own = layers.map(|l| [&[l], want].concat());
    if own.as_deref() == Some(shape.as_slice()) {
        return Ok(Some((0..shape[0] as i64).map(|l| given.get(l)).collect()));
    }
    expect_shape(name, &shape, want)?;
    Ok(Some((0..layers.unwrap_or(1)).map(|_| given.shallow_clone()).collect()))
}

/// The last but one axis.
fn rows_of(args: &Args<'_>, name: &str) -> Result<usize, OpError> {
    let shape = args.raw(name)?.shape();
    let rank = shape.len();
    match rank.checked_sub(2) {
        Some(axis) if shape[axis] > 0 => Ok(shape[axis]),
        _ => Err(OpError::new(format!("{name}: shape {shape:?} has no rows"))),
    }
}

impl Model {
    /// Reads a stack of `layers`, or a lone block, whose tensors have no layer axis.
    fn read(args: &Args<'_>, layers: Option<usize>) -> Result<Self, OpError> {
        let rule = rule(args)?;
        let (t, d) = args.matrix("x")?.dim();
        let (e, h) = (rows_of(args, "router")?, rows_of(args, "W1")?);
        let top_k = args.top_k(2, e)?;
        let read = |name: &str, want: &[usize]| per_layer(args, name, layers, want);
        let needed = |name: &str, want: &[usize]| {
            read(name, want)?.ok_or_else(|| OpError::new(format!("{name} is missing")))
        };
        let (router, bias) = (needed("router", &[e, d])?, read("bias", &[e])?);
        let (w1, b1) = (needed("W1", &[e, h, d])?, read("b1", &[e, h])?);
        let (w2, b2) = (needed("W2", &[e, d, h])?, read("b2", &[e, d])?);
        let norms = ["ln_in_weight", "ln_in_bias", "ln_out_weight", "ln_out_bias"];
        let [in_weight, in_bias, out_weight, out_bias] = norms.map(|name| read(name, &[d]));
        let (in_weight, in_bias) = (in_weight?, in_bias?);
        let (out_weight, out_bias) = (out_weight?, out_bias?);
        let dropout = masks(args, layers, &[t, d])?;
        let smoe = smoe::Config { top_k, ..smoe::Config::preset("smoe") };
        let at = |all: &Option<Vec<Tensor>>, l: usize| all.as_ref().map(|a| a[l].shallow_clone());
        let layer = |l: usize| Layer {
            router_ed: router[l].shallow_clone(),
            bias_e: at(&bias, l),
            w1_ehd: w1[l].shallow_clone(),
            b1_eh: at(&b1, l),
            w2_edh: w2[l].shallow_clone(),
            b2_ed: at(&b2, l),
            ln_in_weight_d: at(&in_weight, l),
            ln_in_bias_d: at(&in_bias, l),
            ln_out_weight_d: at(&out_weight, l),
            ln_out_bias_d: at(&out_bias, l),
            dropout_td: at(&dropout, l),
            smoe: smoe.clone(),
        };
        let layers = (0..layers.unwrap_or(1)).map(layer).collect();
        Ok(Self { rule, x_td: args.torch("x")?, state: state(args, t, d)?, layers, top_k })
    }
}

/// Dropout masks have a layer axis in a stack, always.
fn masks(
    args: &Args<'_>,
    layers: Option<usize>,
    want: &[usize],
) -> Result<Option<Vec<Tensor>>, OpError> {
    let (Some(l), true) = (layers, args.has("dropout")) else {
        return per_layer(args, "dropout", layers, want);
    };
    expect_shape("dropout", args.raw("dropout")?.shape(), &[&[l], want].concat())?;
    per_layer(args, "dropout", layers, want)
}

impl Layer {
    /// The router on these logits, `[t, e]`.
    fn route(&self, logits_te: &Tensor) -> Route<'_> {
        let experts = logits_te.size()[1];
        Route {
            config: &self.smoe,
            params: vec![("gate", Tensor::eye(experts, (logits_te.kind(), Device::Cpu)))],
            x_gtd: logits_te.unsqueeze(0),
            experts: experts as usize,
            draws: Vec::new(),
        }
    }

    fn torch_bank(&self) -> TorchBank {
        let share = |t: &Option<Tensor>| t.as_ref().map(Tensor::shallow_clone);
        TorchBank::from_parts(
            (self.w1_ehd.shallow_clone(), share(&self.b1_eh)),
            (self.w2_edh.shallow_clone(), share(&self.b2_ed)),
        )
    }

    fn host_bank(&self) -> HostBank {
        let (w1_ehd, w2_edh) = (array3(&self.w1_ehd), array3(&self.w2_edh));
        let (e, h, d) = w1_ehd.dim();
        let bias = |t: &Option<Tensor>, len| match t {
            Some(bias) => moe_routers::convert::to_host(bias),
            None => Array2::zeros((e, len)),
        };
        HostBank::from_parts((w1_ehd, bias(&self.b1_eh, h)), (w2_edh, bias(&self.b2_ed, d)))
    }
}

fn array3(tensor: &Tensor) -> Array3<f64> {
    crate::run::to_array(tensor).into_dimensionality().expect("three axes")
}

/// Which layers of a stack are dense.
fn pattern(args: &Args<'_>) -> Result<Vec<bool>, OpError> {
    let layers = args.usize("layers", 1)?;
    if !(1..=1 << 16).contains(&layers) {
        return Err(OpError::new(format!("layers: {layers} is outside 1..=65536")));
    }
    let letters = match args.key("pattern") {
        None => "s".repeat(layers),
        Some(value) => value
            .as_str()
            .ok_or_else(|| OpError::new(format!("pattern: {value} is no text")))?
            .to_owned(),
    };
    let known = letters.chars().all(|letter| matches!(letter, 's' | 'f'));
    if !known || letters.len() != layers {
        let reason = format!("pattern: `{letters}` is not {layers} letters out of s and f");
        return Err(OpError::new(reason));
    }
    Ok(letters.chars().map(|letter| letter == 'f').collect())
}

/// `ffn_W1 ffn_b1? ffn_W2 ffn_b2?`, shared by all dense layers, as a bank of one expert.
fn dense_layer(args: &Args<'_>, width: usize) -> Result<[Option<Tensor>; 4], OpError> {
    let hidden = rows_of(args, "ffn_W1")?;
    let read = |name: &str, want: &[usize]| {
        let one = per_layer(args, name, None, want)?;
        Ok::<_, OpError>(one.map(|mut one| one.remove(0)))
    };
    let (w1, w2) = (read("ffn_W1", &[hidden, width])?, read("ffn_W2", &[width, hidden])?);
    if w2.is_none() {
        return Err(OpError::new("ffn_W2 is missing"));
    }
    Ok([w1, read("ffn_b1", &[hidden])?, w2, read("ffn_b2", &[width])?])
}

/// That network as a layer's experts.
fn dense_bank(ffn: &[Option<Tensor>; 4], like: &Layer) -> Layer {
    let one = |t: &Option<Tensor>| t.as_ref().map(|t| t.unsqueeze(0));
    let weight = |t: &Option<Tensor>| one(t).expect("checked when read");
    let share = |t: &Option<Tensor>| t.as_ref().map(Tensor::shallow_clone);
    Layer {
        router_ed: like.router_ed.shallow_clone(),
        bias_e: None,
        w1_ehd: weight(&ffn[0]),
        b1_eh: one(&ffn[1]),
        w2_edh: weight(&ffn[2]),
        b2_ed: one(&ffn[3]),
        ln_in_weight_d: share(&like.ln_in_weight_d),
        ln_in_bias_d: share(&like.ln_in_bias_d),
        ln_out_weight_d: share(&like.ln_out_weight_d),
        ln_out_bias_d: share(&like.ln_out_bias_d),
        dropout_td: None,
        smoe: like.smoe.clone(),
    }
}

/// For each layer of a stack: the dense network in its place, if it is dense.
fn dense_layers(args: &Args<'_>, model: &Model) -> Result<Vec<Option<Layer>>, OpError> {
    let dense = pattern(args)?;
    let width = model.x_td.size()[1] as usize;
    let ffn = if dense.contains(&true) { Some(dense_layer(args, width)?) } else { None };
    let place = |(layer, dense): (&Layer, bool)| {
        ffn.as_ref().filter(|_| dense).map(|ffn| dense_bank(ffn, layer))
    };
    Ok(model.layers.iter().zip(dense).map(place).collect())
}

/// Reads a stack's model and its dense layers.
fn read_stack(args: &Args<'_>) -> Result<(Model, Vec<Option<Layer>>), OpError> {
    let model = Model::read(args, Some(pattern(args)?.len()))?;
    let dense = dense_layers(args, &model)?;
    Ok((model, dense))
}
