//! Training a classifier of images, and a model that draws them again.

use moe_data::{Augment, Images, Split};
use moe_models::smoe_vae::{DecoderSize, EncoderSize};
use moe_models::{
    ImageSpec, LmConfig, Pool, Rules, SmoeVae, Swin, SwinConfig, VaeConfig, Vit, VitConfig,
};
use moe_routers::{ParamStore, router_config};
use moe_train::{Background, ImageTask, TrainConfig, Trainer, VaeTask};
use std::sync::Arc;
use tch::{Device, Kind};

/// Batches of an evaluation.
const SOME: Option<usize> = Some(4);

fn trainer(data: &Arc<Images>, factor: f64) -> Trainer {
    let blocks = LmConfig {
        width: 16,
        layers: 2,
        heads: 2,
        experts: 4,
        active_hidden: 32,
        ..LmConfig::default()
    };
    let config = VitConfig { patch: 7, pool: Pool::Mean, placement: None };
    let train = TrainConfig { steps: 60, batch: 32, lr: 5e-3, warmup: 5, ..TrainConfig::default() };
    let settings = serde_json::json!({ "capacity_factor": factor });
    let router = router_config("v-moe", settings.as_object().unwrap()).unwrap();
    let store = ParamStore::new(0, Device::Cpu, Kind::Float);
    let spec = ImageSpec { chw: [1, 28, 28], classes: 10 };
    let model = Vit::new(&store, &config, &blocks, &Rules::new(router.as_ref()), spec).unwrap();
    let how = (train.batch, Augment { crop: 1, flip: true, ..Augment::default() });
    let task = ImageTask::new(Box::new(model), Arc::clone(data), how, Device::Cpu);
    Trainer::new(Box::new(task), store, train, 0)
}

#[test]
fn a_classifier_learns_and_counts_what_it_drops() {
    let data = Arc::new(Images::open("fashion-small", None).unwrap());
    let mut roomy = trainer(&data, 1e9);
    let before = roomy.evaluate(Split::Test, SOME).unwrap();
    // The classifier starts at zero: an even guess among ten classes.
    assert!((before.loss - 10f64.ln()).abs() < 1e-4, "{}", before.loss);
    assert_eq!((before.tokens, before.measures["success_rate"]), (128, 1.0));
    assert_eq!(before.layers[0].load_e.iter().sum::<f64>(), 2.0 * 16.0 * 128.0);
    (0..60).for_each(|_| drop(roomy.train_step().unwrap()));
    let after = roomy.evaluate(Split::Test, SOME).unwrap();
    assert!(after.loss < 1.8, "{}", after.loss);
    assert!(after.measures["accuracy"] > 0.35, "{}", after.measures["accuracy"]);

    // 512 tokens of a batch, k = 2, C = 1/2: 128 places at each of four experts, half of the choices.
    let tight = trainer(&data, 0.5).evaluate(Split::Test, SOME).unwrap();
    let rate = tight.measures["success_rate"];
    assert!(rate <= 0.5 && rate > 0.25, "{rate}");
    assert!(tight.measures["flops_per_image"] < before.measures["flops_per_image"]);
    let rows = tight.layers[0].load_e.iter().sum::<f64>();
    assert_eq!(rate, rows / (2.0 * 16.0 * 128.0));
}

/// Stages with maps of 7 x 7 and 4 x 4 tokens, both with windows that are padded and shifted.
#[test]
fn a_hierarchy_learns() {
    let data = Arc::new(Images::open("fashion-small", None).unwrap());
    let first = LmConfig { width: 16, experts: 4, active_hidden: 32, ..LmConfig::default() };
    let (depths, heads, moe_stages) = (vec![2, 2], vec![2, 4], vec![1, 2]);
    let config = SwinConfig { depths, heads, window: 3, moe_stages, drop_path: 0.05 };
    let train = TrainConfig { steps: 60, batch: 32, lr: 5e-3, warmup: 5, ..TrainConfig::default() };
    let settings = serde_json::json!({ "preset": "swin" });
    let router = router_config("ac-moe", settings.as_object().unwrap()).unwrap();
    let store = ParamStore::new(0, Device::Cpu, Kind::Float);
    let spec = ImageSpec { chw: [1, 28, 28], classes: 10 };
    let rules = Rules::new(router.as_ref());
    let model = Swin::new(&store, (&config, 4), &first, &rules, spec).unwrap();
    let how = (train.batch, Augment { crop: 1, flip: true, ..Augment::default() });
    let task = ImageTask::new(Box::new(model), Arc::clone(&data), how, Device::Cpu);
    let mut trainer = Trainer::new(Box::new(task), store, train, 0);
    let before = trainer.evaluate(Split::Test, SOME).unwrap();
    assert!((before.loss - 10f64.ln()).abs() < 1e-4, "{}", before.loss);
    assert_eq!(before.layers.len(), 2);
    assert!(before.measures["flops_per_image"] > 0.0);
    (0..60).for_each(|_| drop(trainer.train_step().unwrap()));
    let after = trainer.evaluate(Split::Test, SOME).unwrap();
    assert!(after.loss < 1.8, "{}", after.loss);
    assert!(after.measures["accuracy"] > 0.35, "{}", after.measures["accuracy"]);
}

fn drawing(data: &Arc<Images>, background: Background) -> Trainer {
    let (encoder, decoder) = (EncoderSize::Lite, DecoderSize::Lite);
    let config = VaeConfig { encoder, decoder, latent: 8, experts: 3, beta: 0.01 };
    let train = TrainConfig { steps: 60, batch: 32, lr: 3e-3, warmup: 0, ..TrainConfig::default() };
    let settings = serde_json::json!({ "batch": train.batch });
    let gate = router_config("smoe-vae", settings.as_object().unwrap()).unwrap();
    let store = ParamStore::new(0, Device::Cpu, Kind::Float);
    let model = SmoeVae::new(&store, config, gate.as_ref()).unwrap();
    let how = (train.batch, background);
    let task = VaeTask::new(model, Arc::clone(data), how, Device::Cpu);
    Trainer::new(Box::new(task), store, train, 0)
}

/// An untrained decoder is grey: the error is that of 0.5 everywhere, whatever the background. Sixty steps
/// bring it below three quarters of that.
#[test]
fn a_drawing_model_learns_and_reports_what_its_experts_win() {
    let data = Images::open("fashion-small", None).unwrap().on_unit_interval();
    let grey = |set: &moe_data::ImageSet| {
        let off = |n: usize| set.pixels(n).iter().map(|&v| (f64::from(v) / 255.0 - 0.5).powi(2));
        (0..128).flat_map(off).sum::<f64>() / 128.0
    };
    let (grey, data) = (grey(data.split(Split::Test)), Arc::new(data));
    for background in [Background::Black, Background::White] {
        let mut trainer = drawing(&data, background);
        let before = trainer.evaluate(Split::Test, SOME).unwrap();
        assert!((before.loss / grey - 1.0).abs() < 0.1, "{} is not {grey}", before.loss);
        assert_eq!((before.tokens, before.measures["reconstruction"]), (128, before.loss));
        assert_eq!(before.layers[0].load_e.iter().sum::<f64>(), 128.0);
        (0..60).for_each(|_| drop(trainer.train_step().unwrap()));
        let after = trainer.evaluate(Split::Test, SOME).unwrap();
        assert!(after.loss < 0.75 * before.loss, "{} after {}", after.loss, before.loss);
        let active = after.layers[0].load_e.iter().filter(|load| **load >= 10.0).count();
        assert_eq!(after.measures["active_experts"], active as f64);
    }
}
