//! The operations on libtorch.

use super::{Layer, Model, read_stack, rule, state};
use crate::args::{Args, expect_shape};
use crate::op::{OpError, Out, Outputs};
use crate::ops::torch_universal;
use moe_routers::momentum::torch::{self, State, Step};
use moe_routers::norm::TorchNorm;
use moe_routers::{Norms, Routing};
use tch::{Kind, Tensor};

fn torch_state(state: &[Tensor; 4]) -> State {
    let [p, v, m, q] = state.each_ref().map(Tensor::shallow_clone);
    State { p, v, m, q }
}

fn state_outputs(state: State) -> Outputs {
    vec![
        ("p", state.p.into()),
        ("v", state.v.into()),
        ("m", state.m.into()),
        ("p_im", state.q.into()),
    ]
}

pub(super) fn update(args: &Args<'_>) -> Result<Outputs, OpError> {
    let config = rule(args)?;
    let (t, d) = args.matrix("x")?.dim();
    expect_shape("f", args.matrix("f")?.shape(), &[t, d])?;
    let before = torch_state(&state(args, t, d)?);
    let layer = args.usize("layer", 0)?;
    let (x, f) = (args.torch("x")?, args.torch("f")?);
    let (step, after) = torch::update(&config, layer, &x, &f, &before);
    let mut outputs = state_outputs(after);
    outputs.push(("x_out", step.into()));
    Ok(outputs)
}

fn norms(layer: &Layer) -> Norms {
    let row = |t: &Option<Tensor>| t.as_ref().map(Tensor::shallow_clone);
    Norms {
        inner: TorchNorm { weight_d: row(&layer.ln_in_weight_d), bias_d: row(&layer.ln_in_bias_d) },
        outer: TorchNorm {
            weight_d: row(&layer.ln_out_weight_d),
            bias_d: row(&layer.ln_out_bias_d),
        },
    }
}

/// The sparse layer at `u`, and what its router decided.
fn sparse(layer: &Layer, u_td: &Tensor) -> Result<(Tensor, Routing), OpError> {
    let logits_te = u_td.linear(&layer.router_ed, layer.bias_e.as_ref());
    let routing = layer.route(&logits_te).torch()?;
    let y_gtd = layer.torch_bank().apply(&routing.plan, &u_td.unsqueeze(0));
    Ok((y_gtd.squeeze_dim(0), routing))
}

fn step(
    model: &Model,
    (number, layer): (usize, &Layer),
    x_td: &Tensor,
    before: &State,
) -> Result<Step<Routing>, OpError> {
    let f = |u_td: &Tensor| sparse(layer, u_td);
    let mask = layer.dropout_td.as_ref();
    torch::block(&model.rule, number, &norms(layer), mask, x_td, before, f)
}

pub(super) fn block(args: &Args<'_>) -> Result<Outputs, OpError> {
    let model = Model::read(args, None)?;
    let number = args.usize("layer", 0)?;
    let done = step(&model, (number, &model.layers[0]), &model.x_td, &torch_state(&model.state))?;
    let mut outputs = torch_universal(&done.beside);
    outputs.extend(state_outputs(done.state));
    outputs.extend([("x_out", done.x.into()), ("f", done.f.into())]);
    Ok(outputs)
}

/// The experts that each token chose, `[t, k]`.
fn chosen(routing: &Routing) -> Tensor {
    let chosen = routing.chosen.as_ref().expect("a token-choice router says what tokens chose");
    chosen.choices.expert_gtk.flatten(0, 1)
}

pub(super) fn stack(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (model, dense) = read_stack(args)?;
    let (mut x_td, mut now) = (model.x_td.shallow_clone(), torch_state(&model.state));
    let (mut xs, mut ps, mut indices) = (Vec::new(), Vec::new(), Vec::new());
    let mut sparse_layers = 0; // Adam counts these
    for (layer, dense) in model.layers.iter().zip(&dense) {
        if let Some(ffn) = dense {
            let bank = ffn.torch_bank();
            let run = |u_td: &Tensor| Ok::<_, OpError>(bank.expert(0, u_td));
            x_td = torch::dense(&model.rule, &norms(ffn), &x_td, &now, run)?;
            let shape = [x_td.size()[0], model.top_k as i64];
            indices.push(Tensor::full(shape, -1, (Kind::Int64, x_td.device())));
        } else {
            let done = step(&model, (sparse_layers, layer), &x_td, &now)?;
            indices.push(chosen(&done.beside));
            (x_td, now) = (done.x, done.state);
            sparse_layers += 1;
        }
        xs.push(x_td.shallow_clone());
        ps.push(now.p.shallow_clone());
    }
    let mut outputs = state_outputs(now);
    outputs.push(("x_out", x_td.into()));
    for (name, trace) in [("trace_x", xs), ("trace_p", ps), ("indices", indices)] {
        outputs.push((name, Out::Torch(Tensor::stack(&trace, 0))));
    }
    Ok(outputs)
}
