//! Crash injection: the process is killed before every operation of a save on the disk, in the way of
//! `kill -9`, and the next start finds a checkpoint that loads.

use crate::common::{config, names, train, trainer_with};
use moe_train::{Disk, TrainConfig, Trainer, checkpoint};
use std::cell::Cell;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

/// Says to a copy of this program: save below this directory, and die before operation number so and so.
const DIE: &str = "MOE_TEST_DIE";

/// A run whose second checkpoint makes the first superfluous.
fn fresh() -> Trainer {
    trainer_with("dense", "plain", 2, TrainConfig { keep_last: 1, ..config() })
}

/// Steps 1 and 2 saved, and step 2 once more in its own place, ending before operation `last`.
fn save_until(checkpoints: &Path, last: u32) {
    let count = Cell::new(0);
    let before = |_: &'static str, _: &Path| {
        if count.get() == last {
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
                .unwrap();
        }
        count.set(count.get() + 1);
    };
    let disk = Disk::watched(&before);
    let mut trainer = fresh();
    train(&mut trainer, 1);
    trainer.save(checkpoints).unwrap();
    train(&mut trainer, 1);
    trainer.save_on(&disk, checkpoints).unwrap();
    trainer.save_on(&disk, checkpoints).unwrap();
}

fn in_a_process(checkpoints: &Path, last: u32) -> ExitStatus {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "crash::a_save_survives_a_kill_anywhere", "--nocapture"]);
    child.env(DIE, format!("{last}:{}", checkpoints.display())).output().unwrap().status
}

#[test]
fn a_save_survives_a_kill_anywhere() {
    if let Ok(order) = std::env::var(DIE) {
        let (last, dir) = order.split_once(':').unwrap();
        return save_until(Path::new(dir), last.parse().unwrap());
    }
    let (mut points, mut swept) = (0, 0);
    for last in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let status = in_a_process(dir.path(), last);
        if status.success() {
            break;
        }
        assert_eq!(status.signal(), Some(9), "{status} before operation {last}");
        let said = checkpoint::sweep(&Disk::PLAIN, dir.path()).unwrap();
        let left = names(dir.path());
        assert!(left.iter().all(|name| name.len() == "step-000000".len()), "{last}: {left:?}");
        let newest = checkpoint::latest(dir.path()).unwrap().expect("one whole checkpoint");
        let state = fresh().resume(&newest).unwrap_or_else(|e| panic!("before {last}: {e}"));
        assert!(matches!(state.progress.step, 1 | 2), "{left:?}");
        assert!(said.iter().all(|line| line.contains("step-00000")), "{said:?}");
        (points, swept) = (points + 1, swept + said.len());
    }
    println!("killed at {points} points, {swept} leftovers named and cleared");
    // Two saves of 3 files with 5 operations each, their directories, renames and removals.
    assert!(points >= 2 * 3 * 4 && swept > points / 2, "{points} points, {swept} leftovers");
}

#[test]
fn what_is_left_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["step-000003.partial", "step-000002.removing", "step-000001.replaced"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("model.safetensors"), "half").unwrap();
    }
    let said = checkpoint::sweep(&Disk::PLAIN, dir.path()).unwrap().join("\n");
    assert!(said.contains("step-000003.partial: half-written"), "{said}");
    assert!(said.contains("step-000001.replaced: its successor was not finished"), "{said}");
    assert_eq!(names(dir.path()), ["step-000001"], "put back, and nothing else left");
}
