//! What a run keeps of its probe set.

use crate::run::RunDir;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

/// Who reads each probe token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routes {
    /// The experts of every token, best first, `[l][t][k]`; no tokens where a layer's router decides nothing.
    pub expert_ltk: Vec<Vec<Vec<usize>>>,
}

/// Router inputs of one layer in two dimensions: in the plane in which they vary most, and by t-SNE.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Map {
    /// Index among the sparse layers.
    pub layer: usize,
    /// Share of the variance that the plane holds.
    pub explained: f64,
    /// Places, and the token's first expert; none where nobody reads it.
    pub points: Vec<(f64, f64, Option<usize>)>,
    /// The same tokens by their neighbours; absent for few tokens, and in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tsne: Option<Neighbours>,
}

/// t-SNE of the tokens of a map.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Neighbours {
    /// Perplexity.
    pub perplexity: f64,
    /// Iterations.
    pub iterations: usize,
    /// Seed of the start.
    pub seed: u64,
    /// Places, in the order of the map's points.
    pub xy: Vec<(f64, f64)>,
}

fn folder(dir: &RunDir) -> PathBuf {
    dir.0.join("probe")
}

fn routes_path(dir: &RunDir, step: u64) -> PathBuf {
    folder(dir).join(format!("step-{step:06}.json"))
}

impl Routes {
    /// The routes at `step`; `None` if that evaluation kept none.
    ///
    /// # Errors
    /// A file that is none of this kind.
    pub fn read(dir: &RunDir, step: u64) -> Result<Option<Self>> {
        read(&routes_path(dir, step))
    }

    pub(super) fn write(&self, dir: &RunDir, step: u64) -> Result<()> {
        write(dir, &routes_path(dir, step), self)
    }

    /// The first expert of each of the first `most` tokens, `[l][t]`.
    pub fn first_lt(&self, most: usize) -> Vec<Vec<Option<usize>>> {
        let first = |expert_tk: &Vec<Vec<usize>>| {
            expert_tk.iter().take(most).map(|expert_k| expert_k.first().copied()).collect()
        };
        self.expert_ltk.iter().map(first).collect()
    }
}

impl Map {
    /// The map of a finished run, if it made one.
    ///
    /// # Errors
    /// A file that is none of this kind.
    pub fn read(dir: &RunDir) -> Result<Option<Self>> {
        read(&folder(dir).join("map.json"))
    }

    pub(super) fn write(&self, dir: &RunDir) -> Result<()> {
        write(dir, &folder(dir).join("map.json"), self)
    }
}

fn read<T: for<'de> Deserialize<'de>>(path: &PathBuf) -> Result<Option<T>> {
    match fs::read_to_string(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        Ok(json) => {
            let value = serde_json::from_str(&json);
            value.map(Some).with_context(|| format!("cannot read {}", path.display()))
        }
    }
}

fn write(dir: &RunDir, path: &PathBuf, value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_string(value)? + "\n";
    let write = || fs::create_dir_all(folder(dir)).and_then(|()| fs::write(path, &json));
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_an_earlier_version_has_no_neighbours() {
        let old = r#"{"layer": 1, "explained": 0.5, "points": [[0.0, 1.0, 3], [1.0, 0.0, null]]}"#;
        let map: Map = serde_json::from_str(old).unwrap();
        assert_eq!((map.tsne.is_none(), map.points[0].2), (true, Some(3)));
        assert!(!serde_json::to_string(&map).unwrap().contains("tsne"));
    }

    #[test]
    fn routes_come_back_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir(folder.path().to_owned());
        let routes = Routes { expert_ltk: vec![vec![vec![3, 1], vec![]], vec![]] };
        assert_eq!(Routes::read(&dir, 40).unwrap(), None);
        routes.write(&dir, 40).unwrap();
        assert_eq!(Routes::read(&dir, 40).unwrap(), Some(routes.clone()));
        assert_eq!(routes.first_lt(1), [vec![Some(3)], vec![]]);
        assert_eq!(routes.first_lt(9), [vec![Some(3), None], vec![]]);
        fs::write(routes_path(&dir, 40), "{").unwrap();
        let error = format!("{:#}", Routes::read(&dir, 40).unwrap_err());
        assert!(error.contains("step-000040.json"), "{error}");
    }
}
