//! A case, as its file says it.

use crate::array;
use ndarray::ArrayD;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Why a file is no case.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// It cannot be read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It does not have the format.
    #[error("{path}: {reason}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A directory without cases.
    #[error("{path}: no *.json below it", path = path.display())]
    Empty {
        /// The directory.
        path: PathBuf,
    },
}

/// What a case expects.
#[derive(Debug, Clone)]
pub enum Expect {
    /// These outputs, a subset of the operation's.
    Outputs(BTreeMap<String, ArrayD<f64>>),
    /// An error whose text contains this, whatever the case of its letters.
    Error(String),
}

/// One case.
#[derive(Debug, Clone)]
pub struct Case {
    /// Name in the listing.
    pub id: String,
    /// The operation.
    pub op: String,
    /// Settings.
    pub config: Map<String, Value>,
    /// Inputs as they stand in the file; read by [`Args`](crate::Args), so that a ragged one is an
    /// error of the operation, which a case may expect.
    pub tensors: Map<String, Value>,
    /// Outputs or an error.
    pub expect: Expect,
    /// Relative tolerance.
    pub rtol: f64,
    /// Absolute tolerance.
    pub atol: f64,
    /// Compute in `f32`.
    pub single: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    id: String,
    op: String,
    #[serde(default)]
    config: Map<String, Value>,
    #[serde(default)]
    tensors: Map<String, Value>,
    expect: Map<String, Value>,
    #[serde(default = "default_rtol")]
    rtol: f64,
    #[serde(default = "default_atol")]
    atol: f64,
    #[serde(default)]
    dtype: Option<String>,
    #[serde(default, rename = "source")]
    _source: Option<String>,
    #[serde(default, rename = "note")]
    _note: Option<String>,
}

fn default_rtol() -> f64 {
    1e-6
}

fn default_atol() -> f64 {
    1e-8
}

impl Case {
    /// Parses the text of a case.
    ///
    /// # Errors
    /// What does not have the format.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let single = match file.dtype.as_deref() {
            None | Some("f64") => false,
            Some("f32") => true,
            Some(other) => return Err(format!("dtype `{other}`: expected f64 or f32")),
        };
        let File { id, op, config, tensors, rtol, atol, .. } = file;
        Ok(Self { id, op, config, tensors, expect: expect(&file.expect)?, rtol, atol, single })
    }

    /// Every case below `dir`, by path.
    ///
    /// # Errors
    /// A file that cannot be read or is no case, or a directory without any.
    pub fn below(dir: &Path) -> Result<Vec<Self>, CaseError> {
        let mut paths = Vec::new();
        collect(dir, &mut paths)?;
        paths.sort();
        if paths.is_empty() {
            return Err(CaseError::Empty { path: dir.to_owned() });
        }
        paths.into_iter().map(|path| Self::from_file(&path)).collect()
    }

    fn from_file(path: &Path) -> Result<Self, CaseError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| CaseError::Io { path: path.to_owned(), source })?;
        Self::parse(&text).map_err(|reason| CaseError::Format { path: path.to_owned(), reason })
    }
}

fn expect(map: &Map<String, Value>) -> Result<Expect, String> {
    if let (1, Some(Value::String(text))) = (map.len(), map.get("error")) {
        return Ok(Expect::Error(text.clone()));
    }
    let read = |(name, value): (&String, &Value)| match array::read(value) {
        Ok(array) => Ok((name.clone(), array)),
        Err(reason) => Err(format!("expect.{name}: {reason}")),
    };
    map.iter().map(read).collect::<Result<_, _>>().map(Expect::Outputs)
}

fn collect(dir: &Path, paths: &mut Vec<PathBuf>) -> Result<(), CaseError> {
    let io = |source| CaseError::Io { path: dir.to_owned(), source };
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.is_dir() {
            collect(&path, paths)?;
        } else if path.extension().is_some_and(|e| e == "json") {
            paths.push(path);
        }
    }
    Ok(())
}
