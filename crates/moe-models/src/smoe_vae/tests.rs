//! The model against the release's sizes, and its losses against the plain form.

use super::*;
use moe_routers::convert::{to_host, to_host1, to_tensor};
use moe_routers::smoe_vae::networks::{decode_lite, encode_lite};
use moe_routers::smoe_vae::{Config, Objective, count, host};
use moe_routers::tolerance::{relative_error, tolerance};
use moe_routers::{Preset, SeededNoise, router_config};
use ndarray::{Array1, Array2, Array3, Array4, Axis};
use tch::Device;

const CONFIG: VaeConfig = VaeConfig {
    encoder: EncoderSize::Lite,
    decoder: DecoderSize::Lite,
    latent: 4,
    experts: 3,
    beta: 0.01,
};

fn gate(preset: &str, batch: usize) -> Box<dyn RouterConfig> {
    let settings = serde_json::json!({ "preset": preset, "batch": batch });
    router_config("smoe-vae", settings.as_object().expect("a table")).expect("a gate")
}

fn model(store: &ParamStore, config: VaeConfig, preset: &str) -> SmoeVae {
    SmoeVae::new(store, config, gate(preset, 5).as_ref()).expect("sizes that fit")
}

/// Five images with labels on both sides of the number of experts.
fn images() -> (Tensor, Tensor) {
    let values: Vec<f64> = (0..5 * 784).map(|i| f64::from(i * 37 % 101) / 101.0).collect();
    let x_bcrq = Tensor::from_slice(&values).view([5, 1, SIDE, SIDE]);
    (x_bcrq, Tensor::from_slice(&[4i64, 0, 2, 1, 5]))
}

#[track_caller]
fn assert_near(name: &str, got: f64, want: f64, bound: f64) {
    assert!(relative_error(got, want) <= bound, "{name}: {got} is not {want}");
}

#[test]
fn parameters_are_those_of_the_release() {
    use DecoderSize::{Full, Lite, Medium};
    let encoders = [(EncoderSize::Medium, "medium"), (EncoderSize::Lite, "lite")];
    for (encoder, encoder_name) in encoders {
        for (decoder, name) in [(Lite, "lite"), (Medium, "medium"), (Full, "full")] {
            let store = ParamStore::sketch(Kind::Float);
            let config = VaeConfig { encoder, decoder, latent: 32, experts: 5, beta: 0.01 };
            let built = model(&store, config, "paper");
            let [of_encoder, of_decoder] =
                [count::encoder(encoder_name, 32).unwrap(), count::decoder(name, 32).unwrap()];
            let want = of_encoder + 5 * of_decoder + count::gate(32, 5);
            assert_eq!(store.trainable_count() as u128, want, "{encoder_name} {name}");
            let active = built.active_params(&store) as u128;
            assert_eq!(active, want - 4 * of_decoder, "{encoder_name} {name}");
        }
    }
}

/// Every decoder gives images of 784 probabilities, and none for no latent: an expert may be idle.
#[test]
fn every_decoder_fits_the_images() {
    for decoder in [DecoderSize::Lite, DecoderSize::Medium, DecoderSize::Full] {
        for encoder in [EncoderSize::Medium, EncoderSize::Lite] {
            let store = ParamStore::new(0, Device::Cpu, Kind::Double);
            let built = model(&store, VaeConfig { encoder, decoder, ..CONFIG }, "supervised");
            let (x_bcrq, label_b) = images();
            let noise = SeededNoise::eval(0, 0);
            let pass =
                built.forward(&x_bcrq, &label_b, &RouteCx::new(Phase::Eval, &noise)).unwrap();
            assert_eq!(pass.xhat_bp.size(), [5, 784], "{encoder:?} {decoder:?}");
            let none = built.decoders[0].forward(&pass.z_bz.narrow(0, 0, 0));
            assert_eq!(none.size(), [0, 784], "{encoder:?} {decoder:?}");
        }
    }
}

/// All decoders' images of a pass, `[b, n, p]`.
fn decoded(model: &SmoeVae, pass: &Pass) -> Array3<f64> {
    let images = model.decoders.iter().map(|decoder| to_host(&decoder.forward(&pass.z_bz)));
    let images: Vec<Array2<f64>> = images.collect();
    let views: Vec<_> = images.iter().map(|image| image.view()).collect();
    ndarray::stack(Axis(1), &views).expect("images of one size")
}

/// Reconstruction, divergence, gate losses and their sum are those of the plain form, divided by the
/// images of the batch, in training and in evaluation, for every preset.
#[test]
fn losses_are_those_of_the_plain_form() {
    let bound = tolerance(Kind::Double).value;
    let (x_bcrq, label_b) = images();
    let labels: Vec<usize> =
        Vec::<i64>::try_from(&label_b).unwrap().iter().map(|&l| l as usize).collect();
    for preset in ["paper", "reference", "debug", "supervised"] {
        let (noise, settings) = (SeededNoise::train(3, 7), Config::preset(preset));
        for phase in [Phase::Train { step: 7 }, Phase::Eval] {
            let store = ParamStore::new(1, Device::Cpu, Kind::Double);
            let vae = model(&store, VaeConfig { beta: settings.beta, ..CONFIG }, preset);
            let cx = RouteCx::new(phase, &noise);
            let pass = vae.forward(&x_bcrq, &label_b, &cx).unwrap();
            let [mu_bz, logvar_bz] = vae.encoder.forward(&x_bcrq).map(|t| to_host(&t));
            let dense = settings.objective.dense(match phase {
                Phase::Eval => moe_routers::smoe_vae::Mode::Eval,
                Phase::Train { .. } => moe_routers::smoe_vae::Mode::Train,
            });
            let logits_bn = to_host(&pass.trace.routing.logits_gte.squeeze_dim(0));
            let supervised = settings.objective == Objective::Supervised;
            let want = host::loss(
                &settings,
                &host::gate(dense, logits_bn.view()),
                &host::Batch {
                    decoded_bnp: decoded(&vae, &pass).view(),
                    x_bp: to_host(&x_bcrq.flatten(1, -1)).view(),
                    mu_bz: mu_bz.view(),
                    logvar_bz: logvar_bz.view(),
                    labels_b: supervised.then_some(&labels[..]),
                },
            );
            let name = format!("{preset} {phase:?}");
            assert_near(&name, to_host1(&pass.error_b).sum(), want.recon, bound);
            assert_near(&name, to_host1(&pass.kl_b).sum(), want.kl, bound);
            let aux = pass.trace.routing.aux.iter();
            let gating: f64 = aux.map(|aux| aux.weight * aux.value.double_value(&[])).sum();
            let total = vae.loss(&pass).double_value(&[]) + gating;
            assert_near(&name, 5.0 * total, want.total, bound);
        }
    }
}

/// A gate that sends everything to one decoder: soft and hard evaluation agree. An even gate over two
/// decoders: the soft image is their mean. In evaluation the draw is still there (1).
#[test]
fn soft_evaluation_mixes_what_hard_evaluation_chooses_from() {
    let bound = tolerance(Kind::Double).value;
    let (x_bcrq, label_b) = images();
    let noise = SeededNoise::eval(0, 0);
    let cx = RouteCx::new(Phase::Eval, &noise);
    let even = |last: Tensor| {
        let store = ParamStore::new(2, Device::Cpu, Kind::Double)
            .with_given([("gate.gate3.weight".to_owned(), Tensor::zeros([2, 32], F64))])
            .with_given([("gate.gate3.bias".to_owned(), last)]);
        model(&store, VaeConfig { experts: 2, ..CONFIG }, "paper")
    };
    let sure = even(Tensor::from_slice(&[0.0, 800.0]));
    let pass = sure.forward(&x_bcrq, &label_b, &cx).unwrap();
    assert!(sure.soft(&pass).allclose(&pass.xhat_bp, bound, bound, false));
    assert!(pass.xhat_bp.equal(&sure.decoders[1].forward(&pass.z_bz)));
    assert!(!pass.z_bz.allclose(&pass.mu_bz, bound, bound, false));

    let undecided = even(Tensor::zeros([2], F64));
    let pass = undecided.forward(&x_bcrq, &label_b, &cx).unwrap();
    let [a, b] = [0, 1].map(|n: usize| undecided.decoders[n].forward(&pass.z_bz));
    assert!(undecided.soft(&pass).allclose(&((a + b) / 2.0), bound, bound, false));
    assert!(pass.xhat_bp.equal(&undecided.decoders[0].forward(&pass.z_bz)), "ties: the lower");
}

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

/// The reconstruction teaches the gate in unsupervised training and not in supervised.
#[test]
fn the_gate_learns_from_what_the_objective_says() {
    let (x_bcrq, label_b) = images();
    let (noise, phase) = (SeededNoise::train(0, 0), Phase::Train { step: 0 });
    for (preset, taught) in [("paper", true), ("supervised", false)] {
        let store = ParamStore::new(1, Device::Cpu, Kind::Double);
        let vae = model(&store, CONFIG, preset);
        let pass = vae.forward(&x_bcrq, &label_b, &RouteCx::new(phase, &noise)).unwrap();
        vae.loss(&pass).backward();
        let entries = store.entries();
        let weight = entries.iter().find(|p| p.name == "gate.gate3.weight").unwrap();
        let gradient = weight.tensor.grad();
        let moved = gradient.defined() && gradient.abs().max().double_value(&[]) > 0.0;
        assert_eq!(moved, taught, "{preset}");
    }
}

/// Products by hand. Encoder lite: 14 x 14 x 9 x 16, 7 x 7 x 9 x 16 x 8, two maps of 392 x 4. Decoder lite:
/// 4 x 392, 14 x 14 x 9 x 8 x 16, 28 x 28 x 9 x 16. Gate: 4 x 64, 64 x 32, 32 x 3. Values: 14 x 14 x 16 and
/// 7 x 7 x 8; 14 x 14 x 16 and 784.
#[test]
fn cost_by_hand() {
    let store = ParamStore::sketch(Kind::Float);
    let vae = model(&store, CONFIG, "paper");
    let (encoder, decoder) = (28_224.0 + 56_448.0 + 3_136.0, 1_568.0 + 225_792.0 + 112_896.0);
    let gate = 256.0 + 2_048.0 + 96.0;
    let want = (2.0 * (encoder + gate + 3.0 * decoder), 3_136.0 + 392.0 + 3.0 * 3_920.0);
    assert_eq!(vae.cost(&store, 3.0), want);
}

/// Decoder `full` doubles twice with kernels of 4 x 4 over its inputs: 49 x 16 x 128 x 64, 196 x 16 x 64 x
/// 32, 784 x 9 x 32, and 32 x 6272 before.
#[test]
fn transposed_products_count_inputs() {
    let store = ParamStore::sketch(Kind::Float);
    let decoder = Decoder::new(&store.root(), DecoderSize::Full, 32);
    let want = 6_422_528.0 + 6_422_528.0 + 225_792.0 + 200_704.0;
    assert_eq!(decoder.cost().0, want);
}

#[test]
fn sizes_out_of_range_name_their_key() {
    let refused = |config: VaeConfig| config.check().unwrap_err().to_string();
    assert_eq!(refused(VaeConfig { latent: 0, ..CONFIG }), "latent: 0 is outside 1..=4096");
    assert_eq!(refused(VaeConfig { experts: 5000, ..CONFIG }), "experts: 5000 is outside 1..=4096");
    let beta = refused(VaeConfig { beta: f64::NAN, ..CONFIG });
    assert_eq!(beta, "beta: NaN must be finite and at least 0");
}

/// Every bias at a value of its own: at zero, none would be missed.
fn with_biases(store: &ParamStore) {
    for (index, param) in (0_i32..).zip(store.entries().iter()) {
        if param.name.ends_with("bias") {
            let _ = tch::no_grad(|| param.tensor.shallow_clone().fill_(0.01 * f64::from(index)));
        }
    }
}

/// Kernels or a matrix, and its bias, by name.
fn layer(store: &ParamStore, name: &str) -> (Tensor, Tensor) {
    let find = |part: &str| {
        let (name, entries) = (format!("{name}.{part}"), store.entries());
        let found = entries.iter().find(|param| param.name == name);
        found.map(|param| param.tensor.detach()).expect("a name")
    };
    (find("weight"), find("bias"))
}

fn plain_convolution(store: &ParamStore, name: &str) -> (Array4<f64>, Array1<f64>) {
    let (weight, bias) = layer(store, name);
    let shape = (weight.size()[0] as usize, weight.size()[1] as usize, 3, 3);
    let flat = Vec::try_from(weight.flatten(0, -1)).expect("numbers");
    (Array4::from_shape_vec(shape, flat).expect("3 x 3"), to_host1(&bias))
}

fn plain_linear(store: &ParamStore, name: &str) -> (Array2<f64>, Array1<f64>) {
    let (weight, bias) = layer(store, name);
    (to_host(&weight), to_host1(&bias))
}

#[track_caller]
fn assert_same(got: &Tensor, want: &Tensor) {
    let bound = tolerance(Kind::Double).value;
    assert!(got.detach().allclose(want, bound, bound, false), "{got} is not {want}");
}

/// The release's `lite` pair against its plain form.
#[test]
fn lite_networks_are_those_of_the_plain_form() {
    let store = ParamStore::new(4, Device::Cpu, Kind::Double);
    let encoder = Encoder::new(&store.root(), EncoderSize::Lite, 4);
    let decoder = Decoder::new(&store.root().child("d"), DecoderSize::Lite, 4);
    with_biases(&store);
    let x_bcrq = images().0.narrow(0, 0, 1);
    let pixels = Vec::try_from(x_bcrq.flatten(0, -1)).expect("numbers");
    let plain_x = Array4::from_shape_vec((1, 1, 28, 28), pixels).expect("an image");
    let kernels = ["conv0", "conv1"].map(|name| plain_convolution(&store, name));
    let heads = ["mu", "logvar"].map(|name| plain_linear(&store, name));
    let want = encode_lite(&plain_x, &kernels, &heads);
    let got = encoder.forward(&x_bcrq);
    for (got, want) in got.iter().zip(&want) {
        assert_same(got, &to_tensor(want.view(), got));
    }
    let kernels = ["d.conv0", "d.conv1"].map(|name| plain_convolution(&store, name));
    let want = decode_lite(want[0].view(), &plain_linear(&store, "d.fc"), &kernels, 7);
    let want = want.into_shape_with_order((1, 784)).expect("an image");
    assert_same(&decoder.forward(&got[0]), &to_tensor(want.view(), &got[0]));
}

/// Encoder `medium`, decoders `medium` and `full`, layer by layer as the paper's code has them.
#[test]
fn larger_networks_layer_by_layer() {
    let store = ParamStore::new(4, Device::Cpu, Kind::Double);
    let encoder = Encoder::new(&store.root(), EncoderSize::Medium, 4);
    let medium = Decoder::new(&store.root().child("m"), DecoderSize::Medium, 4);
    let full = Decoder::new(&store.root().child("f"), DecoderSize::Full, 4);
    with_biases(&store);
    let (x_bcrq, _) = images();
    let convolve = |x: &Tensor, name: &str, stride: i64| {
        let (w, b) = layer(&store, name);
        x.conv2d(&w, Some(&b), [stride, stride], [1, 1], [1, 1], 1)
    };
    let linear = |x: &Tensor, name: &str| {
        let (w, b) = layer(&store, name);
        x.matmul(&w.tr()) + b
    };
    let h = convolve(&x_bcrq, "conv0", 1).relu();
    let h = convolve(&convolve(&h, "conv1", 2).relu(), "conv2", 2).relu().flatten(1, -1);
    let [mu_bz, logvar_bz] = encoder.forward(&x_bcrq);
    assert_same(&mu_bz, &linear(&h, "mu"));
    assert_same(&logvar_bz, &linear(&h, "logvar"));

    let z_bz = mu_bz.detach();
    let double = |x: &Tensor| {
        x.repeat_interleave_self_int(2, 2, None).repeat_interleave_self_int(2, 3, None)
    };
    let h = linear(&z_bz, "m.fc").view([5, 32, 7, 7]);
    let h = convolve(&double(&h), "m.conv0", 1).elu();
    let h = convolve(&double(&h), "m.conv1", 1).elu();
    assert_same(&medium.forward(&z_bz), &convolve(&h, "m.conv2", 1).sigmoid().flatten(1, -1));

    let transposed = |x: &Tensor, name: &str, stride: i64| {
        let (w, b) = layer(&store, name);
        x.conv_transpose2d(&w, Some(&b), [stride, stride], [1, 1], [0, 0], 1, [1, 1])
    };
    let h = linear(&z_bz, "f.fc").view([5, 128, 7, 7]);
    let h = transposed(&transposed(&h, "f.conv0", 2).relu(), "f.conv1", 2).relu();
    assert_same(&full.forward(&z_bz), &transposed(&h, "f.conv2", 1).sigmoid().flatten(1, -1));
}
