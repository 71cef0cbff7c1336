//! Other programs on the same shapes: Python scripts of this workspace around other libraries, in the
//! user's environment. What is not installed there is named in the report.

use super::child::{Server, Started};
use super::layers::Bank;
use super::rounds::Candidate;
use super::step::model::StepSize;
use super::{Dtype, Missing, Pass};
use crate::error::Misuse;
use anyhow::Result;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;

const SERVE: &str = include_str!("python/serve.py");
const LAYER: &str = include_str!("python/layer.py");
const STEP: &str = include_str!("python/step.py");

/// Layers that take part where they are installed.
const LAYERS: [&str; 5] = ["hf-eager", "hf-grouped_mm", "torch-loop", "vllm-cpu", "onnxruntime"];

/// Training steps, with the script's own name of the cross-entropy.
pub const STEPS: [(&str, &str); 2] = [("torch", "chunked"), ("torch-plain-loss", "plain")];

/// What makes glibc keep freed memory and use large pages, as this program does for itself: the settings
/// with which the peers are fastest.
const TUNABLES: &str = "glibc.malloc.mmap_threshold=8589934592:glibc.malloc.trim_threshold=34359738368:glibc.malloc.hugetlb=1";

/// The interpreter of a Python environment.
#[derive(Debug, Clone)]
pub struct Python {
    program: PathBuf,
    threads: String,
}

impl Python {
    /// The interpreter in `environment`, for programs of so many threads.
    ///
    /// # Errors
    /// No interpreter there.
    pub fn of(environment: &Path, threads: usize) -> Result<Self, Misuse> {
        let program = environment.join("bin").join("python");
        if !program.exists() {
            let message =
                format!("--peers {}: no Python environment (no bin/python)", environment.display());
            return Err(Misuse::new(message));
        }
        Ok(Self { program, threads: threads.to_string() })
    }

    /// `script` behind what all scripts share. libtorch's own switch for large pages, which this process
    /// may have set for itself, is not handed on: [`TUNABLES`] do the same.
    fn command(&self, script: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(format!("{SERVE}\n{script}")).args(args);
        command.env("OMP_NUM_THREADS", &self.threads).env("MKL_NUM_THREADS", &self.threads);
        command.env("HF_HUB_OFFLINE", "1").env_remove("THP_MEM_ALLOC_ENABLE");
        if std::env::var_os("GLIBC_TUNABLES").is_none() {
            command.env("GLIBC_TUNABLES", TUNABLES);
        }
        command
    }

    /// The training step of PyTorch with this cross-entropy.
    pub fn step(&self, size: &StepSize, dtype: Dtype, loss: &str) -> Command {
        let size = json!({
            "vocab": size.vocab, "width": size.width, "heads": size.heads, "blocks": size.blocks,
            "dense_hidden": size.dense_hidden, "experts": size.experts, "top_k": size.top_k,
            "expert_hidden": size.expert_hidden, "sequence": size.sequence, "batch": size.batch,
        });
        self.command(STEP, &[&size.to_string(), dtype.name(), &self.threads, loss])
    }

    /// Every peer of a layer as a candidate, and those that are not there.
    ///
    /// # Errors
    /// A peer that is installed and ends without a word.
    pub fn layers(&self, bank: &Bank, pass: Pass) -> Result<(Vec<Candidate>, Vec<Missing>)> {
        let (size, pass) =
            (&bank.size, if pass == Pass::Forward { "forward" } else { "forward_backward" });
        let size = json!({
            "tokens": size.tokens, "width": size.width, "hidden": size.hidden,
            "experts": size.experts, "top_k": size.top_k,
        })
        .to_string();
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for name in LAYERS {
            let args = [name, &size, bank.dtype.name(), pass, &self.threads];
            match Server::start(name, &mut self.command(LAYER, &args))? {
                Started::Ready(server) => found.push(candidate(name, server)),
                Started::Missing(what) => missing.push(Missing { peer: name.into(), what }),
            }
        }
        Ok((found, missing))
    }
}

fn candidate(name: &str, mut server: Server) -> Candidate {
    Candidate::timed(name, move || Ok(server.round()?.seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_without_an_interpreter_is_refused() {
        let error = Python::of(Path::new("/nowhere/venv"), 2).unwrap_err().to_string();
        assert_eq!(error, "--peers /nowhere/venv: no Python environment (no bin/python)");
    }

    /// The interpreter gets the whole script, and nothing of it touches the disk.
    #[test]
    fn scripts_are_handed_over_with_what_they_share() {
        let python = Python { program: "python".into(), threads: "2".into() };
        let size = StepSize::named("tiny").unwrap();
        let command = python.step(&size, Dtype::Bf16, "plain");
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        assert!(args[1].contains("def serve(") && args[1].contains("class Experts("));
        assert!(args[2].contains("\"vocab\":64") && args[3..] == ["bf16", "2", "plain"]);
        let settings: Vec<_> = command.get_envs().map(|(key, _)| key.to_string_lossy()).collect();
        assert!(settings.contains(&"OMP_NUM_THREADS".into()), "{settings:?}");
    }
}
