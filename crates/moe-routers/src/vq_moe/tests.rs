//! Worked examples, the stop-gradients, and the tensor form against the plain one.

mod router;

use super::host::HostVqMoe;
use super::torch::VqMoe;
use super::*;
use crate::convert::{to_host, to_indices, to_tensor};
use crate::noise::SeededNoise;
use crate::norm::{HostNorm, TorchNorm};
use crate::plan::TensorPlan;
use crate::router::{Phase, RouteCx};
use crate::tolerance::{relative_error, tolerance};
use moe_core::HostInput;
use ndarray::{Array2, ArrayView2, array};
use tch::{Device, Kind, Tensor};

#[track_caller]
fn assert_near(name: &str, got: &Array2<f64>, want: &Array2<f64>) {
    let bound = tolerance(Kind::Double).value;
    assert_eq!(got.dim(), want.dim(), "{name}");
    for (got, want) in got.iter().zip(want) {
        assert!(relative_error(*got, *want) <= bound, "{name}: {got} is not {want}");
    }
}

fn leaf(a: &Array2<f64>) -> Tensor {
    let like = Tensor::zeros([1], (Kind::Double, Device::Cpu));
    to_tensor(a.view(), &like).set_requires_grad(true)
}

/// Token (1, 2), codes (0, 0), (1, 4), (1, 0): squared distances 5, 4, 4; the tie goes to code 1,
/// q = (1, 4), mean square (0 + 4) / 2 = 2, L_vq = 2 + .25 * 2 = 2.5, q - x = (0, 2), m = .95 x + .05 (q - x) =
/// (.95, 2). With E = 2, codes alternate (`mod`) or halve (`block`).
#[test]
fn by_hand() {
    let config = Config::preset("reference");
    let (x_td, codebook_cd) = (array![[1.0, 2.0]], array![[0.0, 0.0], [1.0, 4.0], [1.0, 0.0]]);
    let found = host::quantize(&config, &HostInput::new(x_td.view()), codebook_cd.view()).unwrap();
    assert_near("distance", &found.distance_tc, &array![[5.0, 4.0, 4.0]]);
    assert_eq!(found.code_t, [1]);
    assert_near("m", &found.m_td, &array![[0.95, 2.0]]);
    assert_near("loss", &array![[found.loss(&config)]], &array![[2.5]]);
    assert_eq!(CodeMap::Mod.expert_c(5, 2).unwrap(), [0, 1, 0, 1, 0]);
    assert_eq!(CodeMap::Block.expert_c(4, 2).unwrap(), [0, 0, 1, 1]);
    assert!(CodeMap::Block.expert_c(3, 2).unwrap_err().to_string().contains("codebook"));
}

fn x() -> Array2<f64> {
    array![[0.9, -0.3, 0.5], [-0.7, 0.4, 1.1], [0.2, 0.8, -0.6], [-1.0, -0.4, 0.3]]
}

fn codebook() -> Array2<f64> {
    array![[0.8, 0.1, 0.2], [-0.5, 0.5, 0.9], [0.1, 0.6, -0.2], [-0.9, -0.8, 0.1]]
}

fn router() -> Array2<f64> {
    array![[0.4, -0.7, 0.2], [-0.3, 0.5, 0.6]]
}

fn gate() -> Array2<f64> {
    array![[0.2, 0.1, -0.3], [-0.4, 0.3, 0.5]]
}

fn host_layer(config: &Config) -> host::Output {
    let layer = HostVqMoe {
        config: config.clone(),
        codebook_cd: codebook(),
        expert_c: config.code_map.expert_c(4, 2).unwrap(),
        router: Some((router(), None)),
        gate: Some((gate(), Some(array![0.1, -0.1]))),
        norm: HostNorm { weight_d: Some(array![1.2, 0.8, 1.1]), bias_d: None },
        experts: 2,
    };
    let expert = |e: usize, rows: ArrayView2<'_, f64>| rows.mapv(|v| ((e + 1) as f64 * v).tanh());
    layer.forward(&HostInput::new(x().view()), &expert).unwrap()
}

fn torch_layer(config: &Config) -> (torch::Output, VqMoe, Tensor) {
    let x_td = leaf(&x());
    let layer = VqMoe {
        config: config.clone(),
        codebook_cd: leaf(&codebook()),
        expert_c: to_indices(&config.code_map.expert_c(4, 2).unwrap(), &[4], &x_td),
        router: Some((leaf(&router()), None)),
        gate: Some((leaf(&gate()), Some(Tensor::from_slice(&[0.1, -0.1])))),
        norm: TorchNorm { weight_d: Some(Tensor::from_slice(&[1.2, 0.8, 1.1])), bias_d: None },
        experts: 2,
    };
    let expert = |e: usize, rows: &Tensor| (rows * (e + 1) as f64).tanh();
    let noise = SeededNoise::eval(0, 0);
    let cx = RouteCx::new(Phase::Eval, &noise);
    let execute = |x_gtd: &Tensor, plan: &TensorPlan| plan.apply(x_gtd, expert);
    let output = layer.forward(&x_td.unsqueeze(0), &cx, &execute).unwrap();
    (output, layer, x_td)
}

#[test]
fn values_match_the_plain_form() {
    for preset in Config::PRESETS {
        for distance in [Distance::L2, Distance::Cos] {
            for block in [Block::None, Block::Post, Block::Pre] {
                for top_k in [1, 2] {
                    let config = Config { distance, block, top_k, ..Config::preset(preset) };
                    let (got, want) = (torch_layer(&config).0, host_layer(&config));
                    let name = format!("{preset} {distance:?} {block:?} {top_k}");
                    let near = |got: &Tensor, want: &Array2<f64>| {
                        assert_near(&name, &to_host(&got.get(0)), want)
                    };
                    near(&got.y_gtd, &want.y_td);
                    let (decided, wanted) = (&got.decision.quantized, &want.decision.quantized);
                    near(&decided.m_gtd, &wanted.m_td);
                    let loss = decided.loss(&config).view([1, 1, 1]);
                    near(&loss, &array![[wanted.loss(&config)]]);
                    if let (Some(got), Some(want)) = (&got.x_out_gtd, &want.x_out_td) {
                        near(got, want);
                    }
                }
            }
        }
    }
}

/// The task moves no code and, with k = 1, no router; with k = 2 it moves the router.
#[test]
fn the_task_stops_at_the_code() {
    for (top_k, moves) in [(1, false), (2, true)] {
        let config = Config { top_k, ..Config::preset("reference") };
        let (output, layer, _) = torch_layer(&config);
        output.y_gtd.square().sum(Kind::Double).backward();
        assert!(!layer.codebook_cd.grad().defined());
        let (router_ed, _) = layer.router.unwrap();
        assert_eq!(to_host(&router_ed.grad()).iter().any(|g| *g != 0.0), moves);
    }
}

/// Codes of `x` are 0, 1, 2, 3. `dL/dc_k = 2 / (T d) (c_k - x_k)`, `dL/dx = beta 2 / (T d) (x - q)`.
#[test]
fn the_loss_moves_codes_and_tokens() {
    let config = Config::preset("reference");
    let (output, layer, x_td) = torch_layer(&config);
    output.decision.quantized.loss(&config).backward();
    let gap_td = (codebook() - x()) * (2.0 / 12.0);
    assert_near("codebook", &to_host(&layer.codebook_cd.grad()), &gap_td);
    assert_near("x", &to_host(&x_td.grad()), &(gap_td * -0.25));
}

/// A code nobody uses jumps to its anchor: `a = exp(-1e-3)`. One of two at share 1/2 keeps still.
#[test]
fn idle_codes_move_to_their_anchors() {
    let codebook_cd = array![[1.0], [3.0]];
    let (usage_c, rate_c, codes) = host::reanchored(
        0.99,
        codebook_cd.view(),
        &[0, 0],
        array![0.5, 0.0].view(),
        array![[5.0], [7.0]].view(),
    );
    assert_near("usage", &usage_c.insert_axis(ndarray::Axis(1)), &array![[0.505], [0.0]]);
    let rate = (-1e-3f64).exp();
    assert_near("rate", &rate_c.insert_axis(ndarray::Axis(1)), &array![[0.0], [rate]]);
    assert_near("codes", &codes, &array![[1.0], [3.0 * (1.0 - rate) + 7.0 * rate]]);
}
