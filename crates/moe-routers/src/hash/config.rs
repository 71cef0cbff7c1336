//! Settings of hash layers, and the tables that they stand for.

use super::Hash;
use crate::config::{
    ConfigError, Part, Preset, RouterConfig, Settings, Symmetry, Tie, to_settings,
};
use crate::convert::to_indices;
use crate::params::Params;
use crate::router::{Dims, Router};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardUniform};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Which table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Drawn (2).
    Random,
    /// Of [`Config::frequencies`] (3).
    Balanced,
    /// None: the remainder (4).
    Modulo,
    /// [`Config::table`] as given.
    Table,
}

/// Settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which table.
    pub mode: Mode,
    /// Ids of a drawn table.
    pub vocab: usize,
    /// Seed of a drawn table.
    pub seed: u64,
    /// How often each id occurs, for a balanced table.
    pub frequencies: Vec<f64>,
    /// The expert of each id, for a given table.
    pub table: Vec<usize>,
}

impl Preset for Config {
    const PRESETS: &'static [&'static str] = &["random", "modulo"];

    fn preset(name: &str) -> Self {
        let mode = if name == "modulo" { Mode::Modulo } else { Mode::Random };
        // Above the largest vocabulary in use here (50257).
        Self { mode, vocab: 1 << 16, seed: 0, frequencies: Vec::new(), table: Vec::new() }
    }
}

impl Config {
    /// The expert of each id, `[v]`; `None` for the remainder (4).
    pub fn table(&self, experts: usize) -> Option<Vec<usize>> {
        match self.mode {
            Mode::Random => Some(random_table(self.vocab, self.seed, experts)),
            Mode::Balanced => Some(balanced_table(&self.frequencies, experts).0),
            Mode::Modulo => None,
            Mode::Table => Some(self.table.clone()),
        }
    }
}

/// (2).
fn random_table(vocab: usize, seed: u64, experts: usize) -> Vec<usize> {
    let draws = StandardUniform.sample_iter(ChaCha8Rng::seed_from_u64(seed)).take(vocab);
    draws.map(|u: f64| ((u * experts as f64) as usize).min(experts - 1)).collect()
}

/// (3): the expert of each id, and the frequency that each expert gets. Ties go to the lower id and
/// to the lower expert.
///
/// # Panics
/// If there are no experts.
pub fn balanced_table(frequency_v: &[f64], experts: usize) -> (Vec<usize>, Vec<f64>) {
    let (mut table_v, mut load_e) = (vec![0; frequency_v.len()], vec![0.0; experts]);
    for id in moe_core::top_k(frequency_v.iter().copied(), frequency_v.len()) {
        let lightest = moe_core::top_k(load_e.iter().map(|load: &f64| -load), 1)[0];
        table_v[id] = lightest;
        load_e[lightest] += frequency_v[id];
    }
    (table_v, load_e)
}

impl RouterConfig for Config {
    fn settings(&self) -> Settings {
        to_settings(self)
    }

    fn check(&self, experts: usize) -> Result<(), ConfigError> {
        let bad = |key, reason: String| Err(ConfigError::setting(key, reason));
        let empty = |len: usize| len == 0;
        match self.mode {
            _ if experts == 0 => bad("experts", "0 must be at least 1".into()),
            Mode::Random if empty(self.vocab) => bad("vocab", "0 must be at least 1".into()),
            Mode::Balanced if empty(self.frequencies.len()) => {
                bad("frequencies", "missing; a balanced table is made of them".into())
            }
            Mode::Balanced => {
                match self.frequencies.iter().find(|f| !(0.0..f64::INFINITY).contains(*f)) {
                    Some(f) => {
                        bad("frequencies", format!("{f} is out of range: finite, at least 0"))
                    }
                    None => Ok(()),
                }
            }
            Mode::Table if empty(self.table.len()) => {
                bad("table", "missing or of shape [0]".into())
            }
            Mode::Table => match self.table.iter().find(|&&e| e >= experts) {
                Some(e) => bad("table", format!("expert {e} is out of range 0..{experts}")),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn ties(&self) -> &'static [(&'static str, Tie)] {
        &[("vocab", Tie::Vocab)]
    }

    fn active_experts(&self, _: usize) -> f64 {
        1.0
    }

    fn causal(&self) -> bool {
        true
    }

    fn refuses(&self, part: Part) -> Option<&'static str> {
        match part {
            Part::Capacity => None,
            Part::Balance | Part::ZLoss => {
                Some("a token's id fixes its expert; no gradient reaches it")
            }
        }
    }

    fn symmetry(&self) -> Symmetry {
        Symmetry { number: true, ..Symmetry::default() }
    }

    fn build(&self, params: &Params<'_>, dims: Dims) -> Box<dyn Router> {
        let like = Tensor::zeros([0], (Kind::Int64, params.device()));
        let table = self.table(dims.experts as usize);
        let table_v = table.map(|table| to_indices(&table, &[table.len() as i64], &like));
        Box::new(Hash { table_v, experts: dims.experts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawn_table_is_its_seed_and_reaches_every_expert() {
        let table = |seed| random_table(1000, seed, 8);
        assert_eq!(table(1), table(1));
        assert_ne!(table(1), table(2));
        for e in 0..8 {
            let share = table(1).iter().filter(|&&x| x == e).count();
            assert!((90..160).contains(&share), "{share} of 1000 ids at expert {e}");
        }
    }
}
