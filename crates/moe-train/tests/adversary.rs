//! Attacks through gradients on a small classifier that was trained a little.

use moe_core::metrics::attack::{Fgsm, Pgd, Spsa};
use moe_data::{Augment, Images, Split};
use moe_models::{ImageSpec, LmConfig, Pool, Rules, Vit, VitConfig};
use moe_routers::tolerance::tolerance;
use moe_routers::{ParamStore, router_config};
use moe_train::{Attacked, EvalPlan, ImageAttack, ImageTask, TrainConfig, Trainer};
use std::sync::Arc;
use tch::{Device, Kind};

fn task(data: &Arc<Images>, store: &ParamStore) -> ImageTask {
    let (width, layers, heads, experts, active_hidden) = (16, 2, 2, 4, 32);
    let blocks = LmConfig { width, layers, heads, experts, active_hidden, ..LmConfig::default() };
    let config = VitConfig { patch: 7, pool: Pool::Mean, placement: None };
    let router = router_config("v-moe", &serde_json::Map::new()).unwrap();
    let spec = ImageSpec { chw: [1, 28, 28], classes: 10 };
    let model = Vit::new(store, &config, &blocks, &Rules::new(router.as_ref()), spec).unwrap();
    ImageTask::new(Box::new(model), Arc::clone(data), (32, Augment::default()), Device::Cpu)
}

/// A classifier after 25 steps; a second task on the same parameters would be another model.
fn trained() -> (ImageTask, ParamStore) {
    let data = Arc::new(Images::open("fashion-small", None).unwrap());
    let store = ParamStore::new(0, Device::Cpu, Kind::Float);
    let config =
        TrainConfig { steps: 25, batch: 32, lr: 5e-3, warmup: 5, ..TrainConfig::default() };
    let mut trainer = Trainer::new(Box::new(task(&data, &store)), store, config, 0);
    (0..25).for_each(|_| drop(trainer.train_step().unwrap()));
    let fresh = ParamStore::new(0, Device::Cpu, Kind::Float);
    let copy = task(&data, &fresh);
    for (to, from) in fresh.entries().iter().zip(trainer.store().entries().iter()) {
        tch::no_grad(|| to.tensor.shallow_clone().copy_(&from.tensor));
    }
    (copy, fresh)
}

fn attack(task: &ImageTask, attack: ImageAttack, batches: usize) -> Attacked {
    let plan = EvalPlan {
        split: Split::Test,
        batches: Some(batches),
        seed: 0,
        stop: Arc::default(),
        watch: None,
    };
    task.attack(&attack, &plan, &mut |seen| assert_eq!(seen.clean.len(), seen.attacked.len()))
        .unwrap()
}

#[test]
fn attacks_stay_in_their_budget_and_raise_the_loss() {
    let (task, _store) = trained();
    let eps = 0.1;
    let fgsm = attack(&task, ImageAttack::Fgsm(Fgsm { eps, ..Fgsm::default() }), 1);
    // Fewer and longer steps than the papers', which is enough here.
    let pgd = ImageAttack::Pgd(Pgd { eps, iters: 10, step: Some(0.25 * eps), ..Pgd::default() });
    let (pgd, again) = (attack(&task, pgd, 1), attack(&task, pgd, 1));
    let zero = attack(&task, ImageAttack::Fgsm(Fgsm { eps: 0.0, ..Fgsm::default() }), 1);
    let rounding = tolerance(Kind::Float).value;
    assert_eq!(
        (zero.loss, zero.accuracy, zero.changed),
        (zero.clean_loss, zero.clean_accuracy, 0.0)
    );
    assert_eq!((fgsm.images, fgsm.clean_loss), (32, zero.clean_loss));
    for done in [fgsm, pgd] {
        assert!(done.distance <= eps + rounding && done.distance > 0.9 * eps, "{done:?}");
        assert!(done.own_loss > done.clean_own_loss && done.changed > 0.0, "{done:?}");
    }
    // Many steps find at least as much as one.
    assert!(pgd.own_loss >= fgsm.own_loss, "{pgd:?} {fgsm:?}");
    assert_eq!(again, pgd);

    // Without gradients, on one batch and with few directions.
    let spsa = Spsa { eps, iters: 3, learning_rate: 0.05, ..Spsa::default() };
    let spsa = attack(&task, ImageAttack::Spsa(spsa, 4), 1);
    assert!(spsa.distance <= eps + rounding && spsa.own_loss > spsa.clean_own_loss, "{spsa:?}");
}

#[test]
fn the_budgets_are_the_papers() {
    let ImageAttack::Fgsm(fgsm) = ImageAttack::with_budget("fgsm", 2).unwrap() else { panic!() };
    let ImageAttack::Pgd(pgd) = ImageAttack::with_budget("pgd", 1).unwrap() else { panic!() };
    let ImageAttack::Spsa(spsa, 128) = ImageAttack::with_budget("spsa", 1).unwrap() else {
        panic!()
    };
    assert_eq!((fgsm.eps, pgd.eps, pgd.iters), (2.0 / 255.0, 1.0 / 255.0, 20));
    assert_eq!(pgd.step_length(), 0.15 / 255.0);
    assert_eq!((spsa.eps, spsa.iters, spsa.delta, spsa.learning_rate), (0.1, 20, 0.01, 0.01));
    assert_eq!(ImageAttack::with_budget("square", 1), None);
}
