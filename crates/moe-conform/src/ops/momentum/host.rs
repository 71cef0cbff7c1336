//! The operations on the host.

use super::{Layer, Model, read_stack, rule, state};
use crate::args::{Args, expect_shape};
use crate::op::{OpError, Outputs};
use crate::ops::{host_universal, tensor, value_of};
use moe_core::HostRouting;
use moe_routers::convert::{to_host, to_host1};
use moe_routers::momentum::host::{self, State, Step};
use moe_routers::norm::HostNorm;
use moe_routers::residual::HostNorms;
use ndarray::{Array2, ArrayView2, Axis, stack as stack_arrays};
use tch::Tensor;

fn host_state(state: &[Tensor; 4]) -> State {
    let [p_td, v_td, m_td, q_td] = state.each_ref().map(to_host);
    State { p_td, v_td, m_td, q_td }
}

fn state_outputs(state: State) -> Outputs {
    vec![
        ("p", state.p_td.into()),
        ("v", state.v_td.into()),
        ("m", state.m_td.into()),
        ("p_im", state.q_td.into()),
    ]
}

pub(super) fn update(args: &Args<'_>) -> Result<Outputs, OpError> {
    let config = rule(args)?;
    let (x_td, f_td) = (args.matrix("x")?, args.matrix("f")?);
    let (t, d) = x_td.dim();
    expect_shape("f", f_td.shape(), &[t, d])?;
    let before = host_state(&state(args, t, d)?);
    let layer = args.usize("layer", 0)?;
    let (step_td, after) = host::update(&config, layer, x_td.view(), f_td.view(), &before);
    let mut outputs = state_outputs(after);
    outputs.push(("x_out", step_td.into()));
    Ok(outputs)
}

fn norms(layer: &Layer) -> HostNorms {
    let row = |t: &Option<Tensor>| t.as_ref().map(to_host1);
    HostNorms {
        inner: HostNorm { weight_d: row(&layer.ln_in_weight_d), bias_d: row(&layer.ln_in_bias_d) },
        outer: HostNorm {
            weight_d: row(&layer.ln_out_weight_d),
            bias_d: row(&layer.ln_out_bias_d),
        },
    }
}

/// The sparse layer at `u`, and what its router decided.
fn sparse(
    layer: &Layer,
    u_td: ArrayView2<'_, f64>,
) -> Result<(Array2<f64>, Vec<HostRouting>), OpError> {
    let mut logits_te = u_td.dot(&to_host(&layer.router_ed).t());
    if let Some(bias_e) = &layer.bias_e {
        logits_te += &to_host1(bias_e);
    }
    let routings = layer.route(&tensor(&logits_te.into_dyn())).reference()?;
    Ok((layer.host_bank().apply(&routings[0].plan, u_td), routings))
}

fn step(
    model: &Model,
    place: (usize, &Layer),
    x_td: ArrayView2<'_, f64>,
    before: &State,
) -> Result<Step<Vec<HostRouting>>, OpError> {
    let (number, layer) = place;
    let mask_td = layer.dropout_td.as_ref().map(to_host);
    let mask_td = mask_td.as_ref().map(|mask_td| mask_td.view());
    let f = |u_td: ArrayView2<'_, f64>| sparse(layer, u_td);
    host::block(&model.rule, number, &norms(layer), mask_td, x_td, before, f)
}

pub(super) fn block(args: &Args<'_>) -> Result<Outputs, OpError> {
    let model = Model::read(args, None)?;
    let number = args.usize("layer", 0)?;
    let x_td = to_host(&model.x_td);
    let done = step(&model, (number, &model.layers[0]), x_td.view(), &host_state(&model.state))?;
    let mut outputs = host_universal(&done.beside);
    outputs.extend(state_outputs(done.state));
    outputs.extend([("x_out", done.x_td.into()), ("f", done.f_td.into())]);
    Ok(outputs)
}

pub(super) fn stack(args: &Args<'_>) -> Result<Outputs, OpError> {
    let (model, dense) = read_stack(args)?;
    let (mut x_td, mut now) = (to_host(&model.x_td), host_state(&model.state));
    let (mut xs, mut ps, mut indices) = (Vec::new(), Vec::new(), Vec::new());
    let mut sparse_layers = 0; // Adam counts these
    for (layer, dense) in model.layers.iter().zip(&dense) {
        if let Some(ffn) = dense {
            let bank = ffn.host_bank();
            let run = |u_td: ArrayView2<'_, f64>| Ok::<_, OpError>(bank.expert(0, u_td));
            x_td = host::dense(&model.rule, &norms(ffn), x_td.view(), &now, run)?;
            indices.push(Array2::from_elem((x_td.nrows(), model.top_k), -1.0).into_dyn());
        } else {
            let done = step(&model, (sparse_layers, layer), x_td.view(), &now)?;
            indices.push(value_of(&host_universal(&done.beside), "indices"));
            (x_td, now) = (done.x_td, done.state);
            sparse_layers += 1;
        }
        xs.push(x_td.clone().into_dyn());
        ps.push(now.p_td.clone().into_dyn());
    }
    let mut outputs = state_outputs(now);
    outputs.push(("x_out", x_td.into()));
    for (name, trace) in [("trace_x", xs), ("trace_p", ps), ("indices", indices)] {
        let views: Vec<_> = trace.iter().map(|a| a.view()).collect();
        outputs.push((name, stack_arrays(Axis(0), &views).expect("equal shapes").into()));
    }
    Ok(outputs)
}
