//! Training a classifier of images.

use moe_data::{Augment, Images, Split};
use moe_models::{ImageSpec, LmConfig, Pool, Rules, Vit, VitConfig};
use moe_routers::{ParamStore, router_config};
use moe_train::{ImageTask, TrainConfig, Trainer};
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
    let task = ImageTask::new(model, Arc::clone(data), how, Device::Cpu);
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
