//! Hash layers: the expert is a fixed function of the token's id.
//!
//! *Hash Layers For Large Sparse Models*, Roller, Sukhbaatar, Szlam, Weston, 2021,
//! arXiv 2106.04426.
//!
//! ```text
//! y_t = f_{h(id_t)}(x_t)                          no parameters, weight 1              (1)
//! random:    h(v) uniform over experts, drawn once from a seed                         (2)
//! balanced:  ids by falling frequency, each to the lightest expert so far              (3)
//! modulo:    h(v) = v mod E                                                            (4)
//! ```
//!
//! Numbers in brackets count the variants.

mod config;

pub use config::{Config, Mode, balanced_table};

use crate::config::{Preset, resolve};
use crate::convert::to_host_i64;
use crate::plan::ChoicesGtk;
use crate::router::{Chosen, Method, Paper, RouteCx, Router, Routing, axes3, room};
use moe_core::{Choices, HostInput, HostRouting, Reference, RouteError};
use ndarray::{Array2, Axis};
use tch::Tensor;

/// What it is.
pub const PAPER: Paper = Paper {
    id: "hash",
    title: "Hash Layers For Large Sparse Models",
    authors: "Roller et al. 2021",
    arxiv: "2106.04426",
    idea: "A fixed table sends every id of the vocabulary to one expert.\n\
        Learned routers need balancing, and change their minds while experts learn.\n\
        Here a token's expert never changes; nothing is learned, and nothing balanced.\n\
        A learned router has to do better than the word alone.",
    state: "no parameters; a table [v] over the vocabulary, made from the settings (preset `modulo` needs none)",
    cost: "one expert call; one look-up, no W x",
    equations: &[("(1)", "Hash::route"), ("(2)-(4)", "Config::table"), ("(3)", "balanced_table")],
    deviations: &[
        "reads token ids, not activations: serves only where the model hands them in",
        "the gate that SMoE-Dropout's code calls hash (uniform scores by position, weights 1/k) is the router `random` here",
        "every layer has the same table",
    ],
    unverified: &["the paper's own tables: variants are as StableMoE's code and lingvo have them"],
    presets: Config::PRESETS,
    compared: &["random"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// What a routing error calls the ids.
const IDS: &str = "token ids";

/// The router without parameters: the table is a function of the settings.
#[derive(Debug)]
struct Hash {
    /// `[v]`, int64; `None` is the remainder.
    table_v: Option<Tensor>,
    experts: i64,
}

/// An id beyond the table.
fn out_of_range(vocab: usize) -> RouteError {
    let reason = format!("are out of range 0..{vocab}: raise `vocab` or give a longer table");
    RouteError::Setting { key: IDS, reason }
}

impl Hash {
    /// `[g, t] -> [g, t]`.
    fn experts_of(&self, token_gt: &Tensor) -> Result<Tensor, RouteError> {
        let Some(table_v) = &self.table_v else { return Ok(token_gt.remainder(self.experts)) };
        let expert_n = table_v.f_index_select(0, &token_gt.reshape([-1]));
        let expert_n = expert_n.map_err(|_| out_of_range(table_v.numel()))?;
        Ok(expert_n.view_as(token_gt))
    }
}

impl Router for Hash {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let (g, t, _) = axes3(x_gtd);
        let token_gt = cx.token_gt.ok_or(RouteError::Missing { what: IDS })?;
        let expert_gt = self.experts_of(token_gt)?;
        let options = (x_gtd.kind(), x_gtd.device());
        let gate_gtk = Tensor::ones([g, t, 1], options);
        let room = room(cx.capacity, None, (t as usize, self.experts as usize, 1))?;
        let gate_gte = expert_gt.one_hot(self.experts).to_kind(x_gtd.kind());
        let choices = ChoicesGtk::new(expert_gt.unsqueeze(-1), gate_gtk);
        let chosen = Chosen { choices, experts: self.experts, room };
        Ok(chosen.routing(gate_gte.zeros_like(), gate_gte, Vec::new()))
    }

    fn reference(&self) -> Box<dyn Reference> {
        let table_v = self.table_v.as_ref().map(|table_v| {
            to_host_i64(table_v).into_iter().map(|e| e as usize).collect::<Vec<usize>>()
        });
        Box::new(Host { table_v, experts: self.experts as usize })
    }
}

struct Host {
    table_v: Option<Vec<usize>>,
    experts: usize,
}

impl Host {
    fn expert(&self, id: usize) -> Result<usize, RouteError> {
        let Some(table_v) = &self.table_v else { return Ok(id % self.experts) };
        table_v.get(id).copied().ok_or_else(|| out_of_range(table_v.len()))
    }
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let (t, e) = (input.x_td.nrows(), self.experts);
        let token_t = input.token_t.ok_or(RouteError::Missing { what: IDS })?;
        let expert_t: Vec<usize> =
            token_t.iter().map(|&id| self.expert(id)).collect::<Result<_, _>>()?;
        let gate_te = Array2::from_shape_fn((t, e), |(t, e)| f64::from(u8::from(expert_t[t] == e)));
        let expert_tk = ndarray::Array1::from_vec(expert_t).insert_axis(Axis(1));
        let choices = Choices { expert_tk, gate_tk: Array2::ones((t, 1)) };
        let chosen = moe_core::Chosen::new(choices, e, room(input.capacity, None, (t, e, 1))?)?;
        Ok(chosen.routing(Array2::zeros((t, e)), gate_te, Vec::new())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Frequencies `(3, 5, 3, 1)`, two experts. By falling frequency: id 1 (5) to expert 0; id 0
    /// (3, the lower of the tie) to expert 1; id 2 (3) to expert 1, which has 3 against 5; id 3 (1)
    /// to expert 0, which has 5 against 6. Loads 6 and 6.
    #[test]
    fn by_hand() {
        let frequencies = vec![3.0, 5.0, 3.0, 1.0];
        let (table_v, load_e) = balanced_table(&frequencies, 2);
        assert_eq!((table_v, load_e), (vec![1, 0, 1, 0], vec![6.0, 6.0]));
        let config = Config { mode: Mode::Balanced, frequencies, ..Config::preset("random") };
        let host = Host { table_v: config.table(2), experts: 2 };
        let x_td = Array2::zeros((3, 1));
        let routing = host.route(&HostInput::new(x_td.view()).tokens(Some(&[3, 2, 2]))).unwrap();
        assert_eq!(routing.plan.combine_te(), array![[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]);
    }

    #[test]
    fn ids_beyond_the_table_are_refused() {
        let config = Config { vocab: 4, ..Config::preset("random") };
        let host = Host { table_v: config.table(2), experts: 2 };
        let x_td = Array2::zeros((1, 1));
        let error = host.route(&HostInput::new(x_td.view()).tokens(Some(&[4]))).unwrap_err();
        assert!(error.to_string().contains("range 0..4"), "{error}");
        let error = host.route(&HostInput::new(x_td.view())).unwrap_err();
        assert_eq!(error.to_string(), "token ids is missing");
    }
}
