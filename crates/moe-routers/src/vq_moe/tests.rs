//! Worked examples, the stop-gradients, and the tensor form against the plain one.

use super::*;
use crate::config::Preset;
use crate::convert::{to_host, to_tensor};
use crate::norm::{HostNorm, TorchNorm};
use crate::tolerance::{relative_error, tolerance};
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
/// (.95, 2). With E = 2, code 1 belongs to expert 1.
#[test]
fn by_hand() {
    let config = Config::preset("reference");
    let (x_td, codebook_cd) = (array![[1.0, 2.0]], array![[0.0, 0.0], [1.0, 4.0], [1.0, 0.0]]);
    let found = host::quantize(&config, x_td.view(), codebook_cd.view());
    assert_near("distance", &found.distance_tc, &array![[5.0, 4.0, 4.0]]);
    assert_eq!(found.code_t, [1]);
    assert_near("m", &found.m_td, &array![[0.95, 2.0]]);
    assert_near("loss", &array![[found.loss(&config)]], &array![[2.5]]);
    assert_eq!(host::experts_of(CodeMap::Mod, &found.code_t, 3, 2).unwrap(), [1]);
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
    let with = host::Parameters {
        codebook_cd: codebook(),
        router: Some((router(), None)),
        gate: Some((gate(), Some(array![0.1, -0.1]))),
        norm: HostNorm { weight_d: Some(array![1.2, 0.8, 1.1]), bias_d: None },
        experts: 2,
    };
    let expert = |e: usize, rows: ArrayView2<'_, f64>| rows.mapv(|v| ((e + 1) as f64 * v).tanh());
    host::layer(config, &with, x().view(), expert).unwrap()
}

struct Leaves {
    x_td: Tensor,
    codebook_cd: Tensor,
    router_ed: Tensor,
}

fn torch_layer(config: &Config) -> (torch::Output, Leaves) {
    let leaves =
        Leaves { x_td: leaf(&x()), codebook_cd: leaf(&codebook()), router_ed: leaf(&router()) };
    let with = torch::Parameters {
        codebook_cd: leaves.codebook_cd.shallow_clone(),
        router: Some((leaves.router_ed.shallow_clone(), None)),
        gate: Some((leaf(&gate()), Some(Tensor::from_slice(&[0.1, -0.1])))),
        norm: TorchNorm { weight_d: Some(Tensor::from_slice(&[1.2, 0.8, 1.1])), bias_d: None },
        experts: 2,
    };
    let expert = |e: usize, rows: &Tensor| (rows * (e + 1) as f64).tanh();
    (torch::layer(config, &with, &leaves.x_td, expert).unwrap(), leaves)
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
                    assert_near(&name, &to_host(&got.y_td), &want.y_td);
                    assert_near(&name, &to_host(&got.quantized.m_td), &want.quantized.m_td);
                    let loss = got.quantized.loss(&config).view([1, 1]);
                    assert_near(&name, &to_host(&loss), &array![[want.quantized.loss(&config)]]);
                    if let (Some(got), Some(want)) = (&got.x_out_td, &want.x_out_td) {
                        assert_near(&name, &to_host(got), want);
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
        let (output, leaves) = torch_layer(&config);
        output.y_td.square().sum(Kind::Double).backward();
        assert!(!leaves.codebook_cd.grad().defined());
        assert_eq!(to_host(&leaves.router_ed.grad()).iter().any(|g| *g != 0.0), moves);
    }
}

/// Codes of `x` are 0, 1, 2, 3. `dL/dc_k = 2 / (T d) (c_k - x_k)`, `dL/dx = beta 2 / (T d) (x - q)`.
#[test]
fn the_loss_moves_codes_and_tokens() {
    let config = Config::preset("reference");
    let (output, leaves) = torch_layer(&config);
    output.quantized.loss(&config).backward();
    let gap_td = (codebook() - x()) * (2.0 / 12.0);
    assert_near("codebook", &to_host(&leaves.codebook_cd.grad()), &gap_td);
    assert_near("x", &to_host(&leaves.x_td.grad()), &(gap_td * -0.25));
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
