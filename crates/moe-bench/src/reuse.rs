//! Finished runs of other comparisons, found by what they are.
//!
//! A run is what its recipe decides, on its data, by this very program, with the same libtorch, processor, device
//! and threads. The hash of all that stands in `cell.json` beside the run. A run that two programs worked on is
//! nobody's, and has none.

use crate::cells::{Cell, CellEnd};
use crate::environment::environment;
use crate::error::Misuse;
use crate::files::replace;
use crate::recipe::Recipe;
use crate::results::Environment;
use crate::run::RunDir;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tch::Device;

/// Version of the layout of `cell.json`, and of what enters the hash.
const SCHEMA: &str = "moe.cell/1";

/// `cell.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    schema: String,
    key: String,
}

/// Finished runs by their hash, and what the hash of a run is made of.
#[derive(Debug, Clone)]
pub struct Shelf {
    found: BTreeMap<String, PathBuf>,
    program: String,
    data: String,
}

impl Shelf {
    /// The finished runs of `comparisons`, for runs on the data of `base`.
    ///
    /// # Errors
    /// A directory that is no comparison's; data or a program that cannot be read.
    pub fn open(comparisons: &[PathBuf], base: &Recipe) -> Result<Self> {
        let mut found = BTreeMap::new();
        for dir in comparisons {
            let runs = fs::read_dir(dir.join("runs")).map_err(|e| {
                Misuse::new(format!("--reuse {}: no comparison there: {e}", dir.display()))
            })?;
            for run in runs.flatten().map(|entry| entry.path()) {
                let key = recorded(&run).filter(|_| RunDir(run.clone()).result().exists());
                found.extend(key.map(|key| (key, run)));
            }
        }
        Ok(Self { found, program: program()?, data: data(Path::new(&base.data.source))? })
    }

    /// The hash of a run; `how` says threads, device and mode.
    pub fn key(&self, recipe: &Recipe, how: &str) -> String {
        let (recipe, here) = (recipe.deciding().to_string(), environment(Device::Cpu));
        let parts = [SCHEMA, &recipe, &self.data, how, &self.program, &here.libtorch, &here.cpu];
        let mut hash = blake3::Hasher::new();
        for part in parts {
            // Lengths keep the end of one part from being the beginning of the next.
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        hash.finalize().to_hex().to_string()
    }

    /// Copies the run that `key` names into `to`, if there is one: all but its checkpoints, its result last.
    ///
    /// # Errors
    /// Files that cannot be read or written.
    pub fn take(&self, key: &str, to: &RunDir) -> Result<()> {
        let Some(from) = self.found.get(key) else { return Ok(()) };
        let result = RunDir(from.clone()).result();
        let copy = || -> Result<()> {
            fs::create_dir_all(&to.0)?;
            for entry in fs::read_dir(from)? {
                let path = entry?.path();
                let name = path.file_name().unwrap_or_default();
                if path.is_file() && path != result {
                    replace(&to.0.join(name), &fs::read(&path)?)?;
                }
            }
            replace(&to.result(), &fs::read(&result)?)
        };
        copy().with_context(|| format!("cannot copy {} to {}", from.display(), to.0.display()))
    }
}

/// Notes that a run of `key` begins or goes on in `dir`.
///
/// # Errors
/// The file system's.
pub fn begin(dir: &RunDir, key: &str) -> Result<()> {
    let path = dir.0.join("cell.json");
    if dir.metrics().exists() && recorded(&dir.0).as_deref() != Some(key) {
        // The steps before this session are another program's.
        let removed = fs::remove_file(&path).or_else(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        });
        return removed.with_context(|| format!("cannot remove {}", path.display()));
    }
    let record = Record { schema: SCHEMA.into(), key: key.into() };
    replace(&path, serde_json::to_string(&record)?.as_bytes())
}

/// What in a comparison was trained by other programs or on other machines than `here`, as sentences.
pub fn other_programs(cells: &[Cell], ends: &[CellEnd], here: &Environment) -> Vec<String> {
    let mut others: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let finished = |end: &CellEnd| matches!(end, CellEnd::Finished(_));
    for (cell, _) in cells.iter().zip(ends).filter(|(_, end)| finished(end)) {
        let text = fs::read_to_string(cell.dir.0.join("environment.json")).unwrap_or_default();
        let Ok(there) = serde_json::from_str::<Environment>(&text) else { continue };
        if (&there.commit, &there.cpu, &there.device) != (&here.commit, &here.cpu, &here.device) {
            let program = format!("commit {} on {}, {}", there.commit, there.cpu, there.device);
            others.entry(program).or_default().push(cell.name());
        }
    }
    let sentence = |(program, runs): (String, Vec<String>)| {
        format!("trained by {program}: {}", runs.join(", "))
    };
    others.into_iter().map(sentence).collect()
}

/// The hash of a run, as far as it says.
fn recorded(dir: &Path) -> Option<String> {
    let text = fs::read_to_string(dir.join("cell.json")).ok()?;
    let record: Record = serde_json::from_str(&text).ok()?;
    Some(record.key).filter(|_| record.schema == SCHEMA)
}

/// This program: its commit, or its bytes where the commit does not say all.
fn program() -> Result<String> {
    let commit = environment(Device::Cpu).commit;
    if commit != "unknown" && !commit.ends_with("-dirty") {
        return Ok(commit);
    }
    hash_file(&std::env::current_exe().context("cannot find this program")?)
}

/// The data of a recipe: a file by its bytes, a directory by names, sizes and times of its files. What is built in
/// is part of the program.
fn data(source: &Path) -> Result<String> {
    if source.is_file() {
        return hash_file(source);
    }
    let Ok(entries) = fs::read_dir(source) else { return Ok(String::new()) };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", source.display()))?;
        let meta = entry.metadata()?;
        files.push(format!("{:?} {} {:?}", entry.file_name(), meta.len(), meta.modified().ok()));
    }
    files.sort();
    Ok(files.join("\n"))
}

fn hash_file(path: &Path) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    let read = fs::File::open(path).and_then(|mut file| std::io::copy(&mut file, &mut hash));
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hash.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A finished run of a comparison.
    fn run(comparison: &Path, name: &str, key: &str) -> RunDir {
        let dir = RunDir(comparison.join("runs").join(name));
        fs::create_dir_all(dir.checkpoints()).unwrap();
        begin(&dir, key).unwrap();
        fs::write(dir.metrics(), "a line\n").unwrap();
        fs::write(dir.result(), "{}").unwrap();
        dir
    }

    #[test]
    fn a_run_is_what_decides_it() {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("text.txt");
        fs::write(&text, "some words").unwrap();
        let key = |set: &str, how: &str| {
            let source = format!("data.source='{}'", text.display());
            let recipe = Recipe::parse("", &[source, set.to_owned()]).unwrap();
            Shelf::open(&[], &recipe).unwrap().key(&recipe, how)
        };
        let base = key("seed=0", "1 cpu false");
        assert_eq!(base, key("train.log_every=7", "1 cpu false"));
        assert_ne!(base, key("train.lr=0.5", "1 cpu false"));
        assert_ne!(base, key("seed=1", "1 cpu false"));
        assert_ne!(base, key("seed=0", "2 cpu false"));
        fs::write(&text, "other words").unwrap();
        assert_ne!(base, key("seed=0", "1 cpu false"));
    }

    #[test]
    fn a_finished_run_is_found_and_copied_without_checkpoints() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (dir.path().join("here"), dir.path().join("there"));
        run(&there, "smoe-s0", "key");
        let half = run(&there, "smoe-s1", "half");
        fs::remove_file(half.result()).unwrap();
        let shelf = Shelf::open(&[there], &Recipe::default()).unwrap();
        let to = |name: &str| RunDir(here.join("runs").join(name));
        for (name, key, taken) in [("a", "key", true), ("b", "half", false), ("c", "other", false)]
        {
            shelf.take(key, &to(name)).unwrap();
            assert_eq!(to(name).result().exists(), taken, "{name}");
        }
        assert_eq!(fs::read_to_string(to("a").metrics()).unwrap(), "a line\n");
        assert_eq!(recorded(&to("a").0).as_deref(), Some("key"));
        assert!(!to("a").checkpoints().exists());
        let error =
            Shelf::open(&[dir.path().join("nowhere")], &Recipe::default()).unwrap_err().to_string();
        assert!(error.contains("--reuse") && error.contains("no comparison there"), "{error}");
    }

    #[test]
    fn a_run_of_two_programs_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let run = run(dir.path(), "smoe-s0", "first");
        begin(&run, "first").unwrap();
        assert_eq!(recorded(&run.0).as_deref(), Some("first"));
        begin(&run, "second").unwrap();
        assert_eq!(recorded(&run.0), None);
        begin(&run, "second").unwrap();
        assert_eq!(recorded(&run.0), None);
    }
}
