//! The same seed gives the same bytes, and a run that was interrupted those of one that was not, for
//! every router around every residual.

use crate::common::{config, files, task, trainer_with};
use moe_models::LmConfig;
use moe_routers::{residual, routers};
use moe_train::{Phases, StepReport, Trainer, checkpoint};

/// What the steps measured, less their wall times.
fn steps(trainer: &mut Trainer, count: usize) -> Vec<StepReport> {
    let untimed =
        |report: StepReport| StepReport { seconds: 0.0, phases: Phases::default(), ..report };
    (0..count).map(|_| untimed(trainer.train_step().unwrap())).collect()
}

/// Four steps at once; or two and two with a checkpoint between them, the first in one process's place,
/// the second in another's. Reports and every byte of the last checkpoint are the same.
fn same_bytes(what: &str, fresh: &dyn Fn() -> Trainer) {
    let dir = tempfile::tempdir().unwrap();
    let (straight, halves) = (dir.path().join("straight"), dir.path().join("halves"));
    let mut whole = fresh();
    let reports = steps(&mut whole, 4);
    whole.save(&straight).unwrap();

    let mut first = fresh();
    let mut again = steps(&mut first, 2);
    first.note_evaluation(2.5);
    first.save(&halves).unwrap();
    let mut second = fresh();
    let newest = checkpoint::latest(&halves).unwrap().unwrap();
    let state = second.resume(&newest).unwrap();
    assert_eq!((state.progress.step, second.steps_taken()), (2, 2));
    again.extend(steps(&mut second, 2));
    second.save(&halves).unwrap();
    assert_eq!(reports, again, "{what}: other measures");
    for (one, other) in files(&straight, 4).iter().zip(files(&halves, 4)) {
        // The manifest knows of the evaluation that only one of the two had.
        let same = *one == other || one.0 == "state.json";
        assert!(same, "{what}: {} has other bytes", one.0);
    }
    let best = checkpoint::verify(&checkpoint::directory(&halves, 4)).unwrap().progress.best;
    assert_eq!(best.map(|best| (best.step, best.valid_loss)), Some((2, 2.5)));
}

#[test]
fn every_router_around_every_residual_gives_the_same_bytes() {
    for router in routers() {
        for residual in residual::names() {
            let what = format!("{}+{residual}", router.id);
            same_bytes(&what, &|| trainer_with(router.id, residual, 8, config()));
        }
    }
}

/// A memory of the text before the step, and masks drawn in it.
#[test]
fn a_memory_and_dropout_give_the_same_bytes() {
    let model = LmConfig { width: 8, span: Some(5), dropout: 0.1, ..LmConfig::default() };
    same_bytes("span", &|| {
        let (task, store) = task("smoe", "plain", model.clone());
        Trainer::new(Box::new(task), store, config(), 5)
    });
}
