//! Numbers that are not finite: each kind is put into a step, is named, and leaves the weights alone.

use crate::common;
use crate::common::{config, task};
use moe_data::Split;
use moe_models::{LayerTrace, LmConfig};
use moe_routers::{ParamStore, RouteCx};
use moe_train::{
    Advance, Draw, EvalPlan, EvalReport, LmTask, NonFinite, Task, TrainConfig, TrainError, Trainer,
    checkpoint,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tch::Tensor;

/// Where a NaN is put, at steps 2 and 3.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Loss,
    Aux,
    Gradient,
    Nothing,
}

#[derive(Debug)]
struct Faulty {
    task: LmTask,
    fault: Fault,
    victim: Tensor,
}

impl Task for Faulty {
    fn loss(&self, draw: Draw, cx: &RouteCx<'_>) -> Result<(Tensor, Vec<LayerTrace>), TrainError> {
        let (loss, mut traces) = self.task.loss(draw, cx)?;
        if !(2..4).contains(&draw.step) {
            return Ok((loss, traces));
        }
        let loss = match self.fault {
            Fault::Loss => loss * f64::NAN,
            // The root's slope at 0 is infinite, times 0 it is NaN; its value is 0.
            Fault::Gradient => loss + (&self.victim * 0.0).sqrt().sum(None),
            Fault::Aux | Fault::Nothing => loss,
        };
        if self.fault == Fault::Aux {
            let aux = &mut traces[0].routing.aux[0];
            aux.value = &aux.value * f64::INFINITY;
        }
        Ok((loss, traces))
    }

    fn evaluate(&self, plan: &EvalPlan<'_>) -> Result<EvalReport, TrainError> {
        self.task.evaluate(plan)
    }

    fn after_step(&mut self, load_le: &[Tensor]) {
        self.task.after_step(load_le);
    }

    fn active_params(&self, store: &ParamStore) -> usize {
        self.task.active_params(store)
    }
}

fn narrow() -> LmConfig {
    LmConfig { width: 8, ..LmConfig::default() }
}

fn parameter(store: &ParamStore, name: &str) -> Tensor {
    let entries = store.entries();
    entries.iter().find(|p| p.name == name).expect(name).tensor.shallow_clone()
}

fn faulty(fault: Fault, skip_nonfinite: u64) -> Trainer {
    let (task, store) = task("smoe", "plain", narrow());
    let victim = parameter(&store, "layers.1.router.gate");
    let train = TrainConfig { skip_nonfinite, ..config() };
    Trainer::new(Box::new(Faulty { task, fault, victim }), store, train, 5)
}

/// The fault that ends the third step; the weights are those before it.
fn stopped_by(fault: Fault) -> (NonFinite, String) {
    let mut trainer = faulty(fault, 0);
    common::train(&mut trainer, 2);
    let weights = |t: &Trainer| -> Vec<Tensor> {
        t.store().entries().iter().map(|p| p.tensor.detach().copy()).collect()
    };
    let before = weights(&trainer);
    let error = trainer.train_step().unwrap_err();
    assert_eq!(weights(&trainer), before, "{fault:?} touched the weights");
    assert_eq!(trainer.steps_taken(), 2);
    let said = error.to_string();
    assert!(said.starts_with("step 2: "), "{said}");
    let TrainError::NotFinite { found, .. } = error else { panic!("{said}") };
    (found, said)
}

#[test]
fn a_loss_is_named() {
    let (found, said) = stopped_by(Fault::Loss);
    assert_eq!((found.what.as_str(), found.layer, found.tensor), ("the loss", None, None));
    assert!(said.contains("the loss is NaN; the weights of step 2 are unharmed"), "{said}");
}

#[test]
fn a_routers_loss_is_named_with_its_layer() {
    let (found, said) = stopped_by(Fault::Aux);
    assert_eq!((found.layer, found.value), (Some(0), f64::INFINITY));
    assert!(said.contains("sparse layer 0: the balance loss is inf"), "{said}");
}

#[test]
fn a_gradient_is_named_with_its_parameter() {
    let (found, said) = stopped_by(Fault::Gradient);
    assert_eq!(found.what, "the norm of the gradient");
    assert!(said.contains("(first bad tensor: the gradient of layers.1.router.gate)"), "{said}");
}

#[test]
fn a_parameter_is_named_with_the_layer_that_met_it() {
    let (task, store) = task("smoe", "plain", narrow());
    let weight = parameter(&store, "layers.0.attention_norm.weight");
    let mut trainer = Trainer::new(Box::new(task), store, config(), 5);
    tch::no_grad(|| drop(weight.shallow_clone().fill_(f64::NAN)));
    let said = trainer.train_step().unwrap_err().to_string();
    assert!(said.contains("sparse layer 0: what a router reads (tokens) is NaN"), "{said}");
    assert!(said.contains("first bad tensor: layers.0.attention_norm.weight"), "{said}");
}

#[test]
fn a_budget_skips_updates_and_then_stops() {
    let mut trainer = faulty(Fault::Gradient, 1);
    let skips = |t: &mut Trainer| matches!(t.advance(), Ok(Advance::Skipped { .. }));
    assert_eq!((0..3).map(|_| skips(&mut trainer)).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(trainer.steps_taken(), 3, "a skipped step counts");
    let said = trainer.advance().unwrap_err().to_string();
    assert!(said.contains("step 3: ") && said.contains("1 steps were skipped before"), "{said}");
}

/// A skipped step is no step of the optimiser, before and after resuming alike.
#[test]
fn skipped_steps_survive_resuming() {
    let dir = tempfile::tempdir().unwrap();
    let (straight, halves) = (dir.path().join("straight"), dir.path().join("halves"));
    let go = |trainer: &mut Trainer, count: usize| {
        (0..count).for_each(|_| drop(trainer.advance().unwrap()));
    };
    let mut whole = faulty(Fault::Loss, 2);
    go(&mut whole, 6);
    whole.save(&straight).unwrap();
    let mut first = faulty(Fault::Loss, 2);
    go(&mut first, 3);
    first.save(&halves).unwrap();
    let mut second = faulty(Fault::Loss, 2);
    let state = second.resume(&checkpoint::latest(&halves).unwrap().unwrap()).unwrap();
    assert_eq!((state.progress.step, state.progress.skipped), (3, 1));
    go(&mut second, 3);
    second.save(&halves).unwrap();
    assert!(common::files(&straight, 6) == common::files(&halves, 6));
    // Not the same as never having met it.
    let mut spared = faulty(Fault::Nothing, 0);
    go(&mut spared, 6);
    spared.save(&dir.path().join("spared")).unwrap();
    assert!(common::files(&straight, 6) != common::files(&dir.path().join("spared"), 6));
}

#[test]
fn an_evaluation_is_stopped_between_batches() {
    let stop = Arc::new(AtomicBool::new(false));
    let trainer = common::trainer("smoe").with_stop(Arc::clone(&stop));
    assert!(trainer.evaluate(Split::Valid, None).is_ok());
    stop.store(true, Ordering::Relaxed);
    let error = trainer.evaluate(Split::Valid, None).unwrap_err();
    assert!(matches!(error, TrainError::Stopped), "{error}");
}
