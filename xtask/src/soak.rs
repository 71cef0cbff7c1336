//! `cargo xtask soak`: a run that is killed and resumed again and again, beside one that is left alone; in
//! the end both have the same weights, byte for byte.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::bench::build;
use crate::env::Env;
use crate::libtorch::setup::set_up;
use crate::say::{say, tell};
use crate::workspace::Workspace;

/// A checkpoint every so many steps, in both runs.
const EVERY: &str = "train.checkpoint_every=50";
/// What is trained: small enough that steps are quick and checkpoints many.
const RUN: [&str; 6] = [
    "model.width=64",
    "train.batch=4",
    "train.steps=10000000",
    "train.eval_every=10000000",
    "train.log_every=50",
    EVERY,
];

/// How long, how often, and with what.
#[derive(Debug, Clone)]
pub(crate) struct Soak {
    /// Minutes in all.
    pub(crate) minutes: u64,
    /// Seconds from one kill to the next.
    pub(crate) every: u64,
    /// The program; built with optimisation if left out.
    pub(crate) program: Option<PathBuf>,
}

/// Soaks; fails if the runs differ, or if one of them ends by itself.
pub(crate) fn run(workspace: &Workspace, env: &Env, soak: &Soak) -> Result<u8> {
    let target = workspace.metadata()?.target_directory;
    let program = match &soak.program {
        Some(program) => program.clone(),
        None => {
            set_up(workspace, env, false)?;
            build(workspace, &["--release"])?;
            target.join("release/moe")
        }
    };
    let out = target.join("soak");
    if out.exists() {
        fs::remove_dir_all(&out).with_context(|| format!("cannot clear {}", out.display()))?;
    }
    let runs = Runs { program, recipe: workspace.root().join("recipes/quick.toml"), out };
    let mut alone = runs.start("alone", "train.keep_last=400")?;
    let done = runs.kill_and_resume(soak).and_then(|kills| runs.compare(&mut alone, kills));
    // Whatever came out, nothing is left running.
    let _ = alone.kill().and_then(|()| alone.wait());
    done.map(|()| 0)
}

/// Two runs of one recipe.
struct Runs {
    program: PathBuf,
    recipe: PathBuf,
    out: PathBuf,
}

impl Runs {
    fn start(&self, name: &str, keep: &str) -> Result<Child> {
        let mut command = Command::new(&self.program);
        command.arg("train").arg(&self.recipe).arg("--out").arg(self.out.join(name));
        command.args(["--resume", "--threads", "1"]);
        for set in RUN.iter().chain([&keep]) {
            command.args(["--set", set]);
        }
        let child = command.stdin(Stdio::null()).spawn();
        child.with_context(|| format!("starting {}", self.program.display()))
    }

    /// Returns the number of kills.
    fn kill_and_resume(&self, soak: &Soak) -> Result<u64> {
        let end = Instant::now() + Duration::from_secs(60 * soak.minutes);
        let mut kills = 0;
        while Instant::now() < end {
            let mut child = self.start("killed", "train.keep_last=2")?;
            thread::sleep(Duration::from_secs(soak.every));
            ensure!(child.try_wait()?.is_none(), "the run ended by itself");
            kill_process(Pid::from_child(&child), Signal::KILL)?;
            child.wait()?;
            kills += 1;
            let step = newest(&self.out.join("killed"))?;
            tell(format_args!("kill {kills}: the newest checkpoint is of step {step}"));
        }
        Ok(kills)
    }

    /// Waits for the run that was left alone to come as far, and compares.
    fn compare(&self, alone: &mut Child, kills: u64) -> Result<()> {
        let step = newest(&self.out.join("killed"))?;
        ensure!(step > 0, "no checkpoint was written between two kills; give them more time");
        let dir = |name: &str| self.out.join(name).join(format!("checkpoints/step-{step:06}"));
        while !dir("alone").is_dir() {
            ensure!(alone.try_wait()?.is_none(), "the run that was left alone ended by itself");
            thread::sleep(Duration::from_millis(200));
        }
        for file in ["model.safetensors", "optimizer.safetensors"] {
            let bytes = |name: &str| read(&dir(name).join(file));
            ensure!(bytes("killed")? == bytes("alone")?, "{file} of step {step} differs");
        }
        say(format_args!(
            "soak: {kills} kills and resumes, step {step}: weights and moments are equal byte for byte"
        ));
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The newest whole checkpoint of a run, 0 if there is none.
fn newest(run: &Path) -> Result<u64> {
    let dir = run.join("checkpoints");
    if !dir.exists() {
        return Ok(0);
    }
    let names = fs::read_dir(&dir)?.map(|entry| entry.map(|entry| entry.file_name()));
    let names = names.collect::<Result<Vec<_>, _>>()?;
    let step = |name: &std::ffi::OsString| name.to_str()?.strip_prefix("step-")?.parse().ok();
    Ok(names.iter().filter_map(step).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_written_checkpoints_are_not_the_newest() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(newest(run.path()).unwrap(), 0);
        for name in ["step-000050", "step-000100", "step-000150.partial"] {
            fs::create_dir_all(run.path().join("checkpoints").join(name)).unwrap();
        }
        assert_eq!(newest(run.path()).unwrap(), 100);
    }
}
