//! `state.json`, the manifest of a checkpoint: what the files are, and a seal over the manifest itself.
//!
//! The first field is the BLAKE3 of the file with 64 zeros in its own place, so that one changed byte
//! anywhere in the manifest shows, white space included.

use crate::checkpoint::CheckpointError;
use crate::tensors::Layout;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// Version of the layout of a checkpoint directory.
pub(crate) const SCHEMA: &str = "moe.checkpoint/2";
/// Name of the manifest.
pub(crate) const STATE: &str = "state.json";
/// How every manifest begins; the seal follows.
const OPENING: &[u8] = b"{\n  \"blake3\": \"";
/// What stands in the seal's place while it is computed.
const BLANK: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The evaluation with the lowest validation loss so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Steps taken at that evaluation.
    pub step: u64,
    /// Its loss, nats per token.
    pub valid_loss: f64,
}

/// Where a run stands between two steps, besides its tensors.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Steps taken, skipped ones included.
    pub step: u64,
    /// Seed of weights, data order and noise.
    pub seed: u64,
    /// Steps whose update was skipped because a number was not finite.
    pub skipped: u64,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// Everything that decided the run; null where the caller gave nothing.
    pub config: serde_json::Value,
}

/// `state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Seal of the manifest.
    blake3: String,
    /// Always the version of this layout.
    schema: String,
    /// Version of what wrote it, by name.
    pub versions: BTreeMap<String, String>,
    /// Where the run stands.
    #[serde(flatten)]
    pub progress: Progress,
    /// BLAKE3 of each file.
    pub(crate) hashes: BTreeMap<String, String>,
    /// Layout of each tensor by file.
    pub(crate) tensors: BTreeMap<String, BTreeMap<String, Layout>>,
}

/// Enough of a manifest to know its version.
#[derive(Deserialize)]
struct Head {
    schema: String,
}

impl State {
    /// A manifest without files yet.
    pub(crate) fn new(progress: Progress) -> Self {
        let versions = [
            ("moe-train", env!("CARGO_PKG_VERSION")),
            ("libtorch", moe_torch_sys::LIBTORCH_VERSION),
        ];
        let versions = versions.map(|(name, version)| (name.to_owned(), version.to_owned()));
        Self {
            blake3: BLANK.into(),
            schema: SCHEMA.into(),
            versions: versions.into(),
            progress,
            hashes: BTreeMap::new(),
            tensors: BTreeMap::new(),
        }
    }

    /// The text of the file, sealed.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let blank = Self { blake3: BLANK.into(), ..self.clone() };
        let mut bytes = serde_json::to_vec_pretty(&blank).expect("a state is plain data");
        let seal = blake3::hash(&bytes).to_hex();
        bytes[OPENING.len()..][..BLANK.len()].copy_from_slice(seal.as_bytes());
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote, and nothing else.
    ///
    /// # Errors
    /// Another layout, a broken seal, or fields that are missing; naming `path`.
    pub(crate) fn from_bytes(path: &Path, bytes: &[u8]) -> Result<Self, CheckpointError> {
        let format = |reason: String| CheckpointError::Format { path: path.to_owned(), reason };
        let head: Head = serde_json::from_slice(bytes)
            .map_err(|e| format(format!("damaged: {e}; use another checkpoint")))?;
        if head.schema != SCHEMA {
            return Err(format(format!("schema is {}, expected {SCHEMA}", head.schema)));
        }
        let expected = sealed_with(bytes).ok_or_else(|| {
            format("damaged: its seal is not where it was; use another checkpoint".into())
        })?;
        let found = seal_of(bytes);
        if found != expected {
            let (path, bytes) = (path.to_owned(), bytes.len());
            return Err(CheckpointError::Damaged { path, bytes, found, expected });
        }
        serde_json::from_slice(bytes).map_err(|e| format(e.to_string()))
    }
}

/// The seal that a manifest carries.
fn sealed_with(bytes: &[u8]) -> Option<String> {
    let seal = bytes.strip_prefix(OPENING)?.get(..BLANK.len())?;
    String::from_utf8(seal.to_vec()).ok()
}

/// The seal that a manifest, which carries one, should carry.
fn seal_of(bytes: &[u8]) -> String {
    let (before, after) = bytes.split_at(OPENING.len());
    let mut hasher = blake3::Hasher::new();
    hasher.update(before).update(BLANK.as_bytes()).update(&after[BLANK.len()..]);
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> Vec<u8> {
        State::new(Progress { step: 3, seed: 1, ..Progress::default() }).to_bytes()
    }

    #[test]
    fn a_sealed_manifest_comes_back() {
        let state = State::from_bytes(Path::new(STATE), &sealed()).unwrap();
        assert_eq!((state.progress.step, state.progress.seed), (3, 1));
        assert_eq!(state.to_bytes(), sealed(), "the seal depends on the rest alone");
    }

    #[test]
    fn a_seal_that_does_not_fit_is_damage() {
        let text = String::from_utf8(sealed()).unwrap().replace("\"step\": 3", "\"step\": 4");
        let error = State::from_bytes(Path::new(STATE), text.as_bytes()).unwrap_err();
        assert!(matches!(error, CheckpointError::Damaged { .. }), "{error}");
    }
}
