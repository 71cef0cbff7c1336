//! Other programs on the same shapes: Python scripts of this workspace around other libraries, in the
//! user's environment, and any program that speaks as they do. What is not installed is named in the report.

use super::child::{Server, Started};
use super::layers::Bank;
use super::rounds::Candidate;
use super::step::model::StepSize;
use super::{Dtype, Missing, Pass};
use crate::cli::SpeedArgs;
use crate::error::Misuse;
use anyhow::Result;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

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

    /// Every layer of [`LAYERS`].
    fn layers(&self, shapes: &Shapes) -> Vec<(String, Command)> {
        let named = |name: &&str| {
            let args = [&[*name], shapes.args().as_slice()].concat();
            ((*name).to_owned(), self.command(LAYER, &args))
        };
        LAYERS.iter().map(named).collect()
    }
}

/// Another program that runs layers, as `NAME=FILE` on the command line.
#[derive(Debug, Clone)]
pub struct Program {
    name: String,
    file: PathBuf,
}

impl FromStr for Program {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, file)) if !name.is_empty() && !file.is_empty() => {
                Ok(Self { name: name.into(), file: file.into() })
            }
            _ => Err("expected NAME=FILE".into()),
        }
    }
}

/// What such a program is told, in this order.
struct Shapes {
    size: String,
    dtype: &'static str,
    pass: &'static str,
    threads: String,
}

impl Shapes {
    fn new(bank: &Bank, pass: Pass, threads: usize) -> Self {
        let size = &bank.size;
        let size = json!({
            "tokens": size.tokens, "width": size.width, "hidden": size.hidden,
            "experts": size.experts, "top_k": size.top_k,
        });
        Self {
            size: size.to_string(),
            dtype: bank.dtype.name(),
            pass: if pass == Pass::Forward { "forward" } else { "forward_backward" },
            threads: threads.to_string(),
        }
    }

    fn args(&self) -> [&str; 4] {
        [&self.size, self.dtype, self.pass, &self.threads]
    }
}

/// Every other program that runs a layer, as a candidate, and those that are not there.
///
/// # Errors
/// A program that cannot be started, or that ends without a word.
pub fn layers(args: &SpeedArgs, bank: &Bank, pass: Pass) -> Result<(Vec<Candidate>, Vec<Missing>)> {
    let shapes = Shapes::new(bank, pass, args.machine.thread_count());
    let mut commands = args.python()?.map_or_else(Vec::new, |python| python.layers(&shapes));
    commands.extend(args.programs.iter().map(|program| {
        let mut command = Command::new(&program.file);
        command.args(shapes.args());
        (program.name.clone(), command)
    }));
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for (name, mut command) in commands {
        match Server::start(&name, &mut command)? {
            Started::Ready(server) => found.push(candidate(&name, server)),
            Started::Missing(what) => missing.push(Missing { peer: name, what }),
        }
    }
    Ok((found, missing))
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

    #[test]
    fn a_program_has_a_name_and_a_file() {
        let program: Program = "candle=target/peer".parse().unwrap();
        assert_eq!((program.name.as_str(), program.file), ("candle", "target/peer".into()));
        for bad in ["candle", "=file", "candle="] {
            assert_eq!(bad.parse::<Program>().unwrap_err(), "expected NAME=FILE");
        }
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
