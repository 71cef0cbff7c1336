//! `acmoe.chain`: layers that hand their routing on (`moe_routers::ac_moe`).
//!
//! A plain layer is the linear router without labels, with its bias; an AC layer reads the labels of
//! the last layer that routed.
//!
//! Axis letters: `l` layers, `t` tokens, `d` width, `e` experts, `k` choices.

use super::{ANY_LABEL, matrix_name};
use crate::args::{Args, expect_shape};
use crate::op::{Op, OpError, Outputs};
use crate::ops::{Given, config};
use moe_core::HostInput;
use moe_routers::ac_moe::{AcMoe, Config, HostAcMoe, HostLabels, Labels, Score};
use moe_routers::{Phase, RouteCx};
use ndarray::{Array3, Axis};
use tch::{Kind, Tensor};

pub(super) const OP: Op = Op {
    name: "acmoe.chain",
    config: &[
        "preset",
        "measure",
        "eps",
        "clip",
        "rescale",
        "empty",
        "min_count",
        "num_clusters",
        "mix",
        "score",
        "embed_eps",
        "gate",
        "noise_std",
        "capacity_factor",
        "top_k",
        "pattern",
    ],
    tensors: &["x", "router", "bias", "embeddings"],
    reference: Some(reference),
    torch: Some(torch),
};

/// What a layer of the pattern is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Layer {
    Plain,
    Clustered,
    Dense,
}

struct Input {
    config: Config,
    pattern: Vec<Layer>,
    x_ltd: Array3<f64>,
}

impl Input {
    fn read(args: &Args<'_>) -> Result<Self, OpError> {
        let x_ltd = args.cube("x")?;
        let (layers, _, width) = x_ltd.dim();
        if x_ltd.is_empty() {
            return Err(OpError::new("x: an empty shape"));
        }
        let pattern = pattern(args, layers)?;
        let score = config::<Config>(args, &["pattern", "top_k"], ANY_LABEL)?.score;
        let mut experts = None;
        for name in matrices(&pattern, score) {
            let (l, e, d) = args.cube(name)?.dim();
            expect_shape(name, &[l, e, d], &[layers, experts.unwrap_or(e), width])?;
            experts = Some(e);
        }
        let experts = experts.unwrap_or(ANY_LABEL);
        args.top_k(2, experts)?;
        if args.has("bias") && pattern.contains(&Layer::Plain) {
            expect_shape("bias", args.matrix("bias")?.shape(), &[layers, experts])?;
        }
        Ok(Self { config: config(args, &["pattern"], experts)?, pattern, x_ltd })
    }

    /// The settings of a layer that routes, and the name of its matrix.
    fn of(&self, layer: Layer) -> (Config, &'static str) {
        let mut config = self.config.clone();
        if layer == Layer::Plain {
            config.score = Score::Linear;
        }
        let name = matrix_name(config.score);
        (config, name)
    }
}

fn pattern(args: &Args<'_>, layers: usize) -> Result<Vec<Layer>, OpError> {
    let given = args.key("pattern").and_then(|pattern| pattern.as_str());
    let given = given.ok_or_else(|| OpError::new("pattern is missing or no text"))?;
    let letter = |letter: char| match letter {
        's' => Ok(Layer::Plain),
        'c' => Ok(Layer::Clustered),
        'f' => Ok(Layer::Dense),
        other => Err(OpError::new(format!("pattern: `{other}` is none of s, c, f"))),
    };
    let pattern = given.chars().map(letter).collect::<Result<Vec<_>, _>>()?;
    if pattern.len() == layers {
        return Ok(pattern);
    }
    Err(OpError::new(format!("pattern: {} letters for {layers} layers", pattern.len())))
}

/// The matrices that the pattern needs.
fn matrices(pattern: &[Layer], score: Score) -> Vec<&'static str> {
    let plain = pattern.contains(&Layer::Plain).then_some("router");
    let clustered = pattern.contains(&Layer::Clustered).then(|| matrix_name(score));
    plain.into_iter().chain(clustered).collect()
}

fn reference(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    let (layers, tokens, _) = input.x_ltd.dim();
    let mut index_ltk = Array3::from_elem((layers, tokens, input.config.top_k), -1.0);
    let mut gate_ltk = Array3::zeros(index_ltk.dim());
    let mut labels: Option<HostLabels> = None;
    for (l, &layer) in input.pattern.iter().enumerate().filter(|(_, l)| **l != Layer::Dense) {
        let (config, name) = input.of(layer);
        let plain = layer == Layer::Plain;
        let bias_le = if plain { args.optional("bias", Args::matrix)? } else { None };
        let router = HostAcMoe {
            matrix_ed: args.cube(name)?.index_axis_move(Axis(0), l),
            bias_e: bias_le.map(|bias_le| bias_le.row(l).to_owned()),
            config,
        };
        let given = HostInput::new(input.x_ltd.index_axis(Axis(0), l));
        let routing = router.decide(&given, labels.as_ref().filter(|_| !plain), None)?.routing;
        if let Some(chosen) = &routing.chosen {
            let expert_tk = chosen.choices.expert_tk.mapv(|e| e as f64);
            index_ltk.index_axis_mut(Axis(0), l).assign(&expert_tk);
            gate_ltk.index_axis_mut(Axis(0), l).assign(&chosen.choices.gate_tk);
        }
        labels = Some(HostLabels::of(&routing)?);
    }
    Ok(vec![("indices", index_ltk.into()), ("gates", gate_ltk.into())])
}

fn torch(args: &Args<'_>) -> Result<Outputs, OpError> {
    let input = Input::read(args)?;
    let (_, tokens, _) = input.x_ltd.dim();
    let x_ltd = args.torch("x")?;
    let none_tk =
        Tensor::zeros([tokens as i64, input.config.top_k as i64], (Kind::Int64, x_ltd.device()));
    let noise = Given::default();
    let cx = RouteCx::new(Phase::Eval, &noise);
    let (mut index_l, mut gate_l) = (Vec::new(), Vec::new());
    let mut labels: Option<Labels> = None;
    for (l, &layer) in (0..).zip(&input.pattern) {
        if layer == Layer::Dense {
            index_l.push(&none_tk - 1);
            gate_l.push(none_tk.to_kind(x_ltd.kind()));
            continue;
        }
        let (config, name) = input.of(layer);
        let plain = layer == Layer::Plain;
        let bias_le = if plain { args.torch_optional("bias")? } else { None };
        let bias_e = bias_le.map(|bias_le| bias_le.get(l));
        let router = AcMoe { matrix_ed: args.torch(name)?.get(l), bias_e, config };
        let x_gtd = x_ltd.get(l).unsqueeze(0);
        let routing = router.decide(&x_gtd, &cx, labels.as_ref().filter(|_| !plain), None)?.routing;
        if let Some(chosen) = &routing.chosen {
            index_l.push(chosen.choices.expert_gtk.get(0));
            gate_l.push(chosen.choices.gate_gtk.get(0));
        }
        labels = Some(Labels::of(&routing)?);
    }
    let (indices, gates) = (Tensor::stack(&index_l, 0), Tensor::stack(&gate_l, 0));
    Ok(vec![("indices", indices.into()), ("gates", gates.into())])
}
