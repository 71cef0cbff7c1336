//! StableMoE: learn to route first, then route by a distilled, fixed rule.
//!
//! *StableMoE: Stable Routing Strategy for Mixture of Experts*, Dai, Dong, Ma, Zheng, Sui, Chang,
//! Wei, 2022, arXiv 2204.08396.
//!
//! ```text
//! s_te = x_t . c_e                                             scores                     (1)
//! a_t  = sigmoid(s_{t,e(t)}),  y_t = a E_e(x_t) + (1 - a) x_t                             (2)
//! stage 1:  e(t) = argmax_e s_te                                                          (3)
//!   L_bal = sum_e ((n_e - nbar) / nbar) sum_{t -> e} sigmoid(s_te),  nbar = T/E           (4)
//!   shat_te = w(id_t) . dhat_e,  L_dis = sum_t -log softmax(shat_t)_{e(t)}                (5)
//! stage 2, and every evaluation:  e(t) = argmax_e shat_te,  no losses                     (6)
//! ```
//!
//! Numbers in brackets count the steps of the method. The mix (2) is a weight on the expert and the
//! model's own residual, as in [`base`].

mod config;

pub use config::Config;

use crate::base;
use crate::config::{Preset, resolve};
use crate::convert::to_host;
use crate::plan::ChoicesGtk;
use crate::router::{Aux, Chosen, Method, Paper, RouteCx, Router, Routing, axes3};
use moe_core::{Choices, HostInput, HostRouting, Reference, RouteError, score};
use ndarray::{Array2, ArrayView2, Axis};
use tch::{Kind, Tensor};

/// What it is.
pub const PAPER: Paper = Paper {
    id: "stable-moe",
    title: "StableMoE: Stable Routing Strategy for Mixture of Experts",
    authors: "Dai et al. 2022",
    arxiv: "2204.08396",
    idea: "A router is learned first, then distilled into one that reads only the word and changes no more.\n\
        While a router learns, a token's expert changes, and what the old one learned of it is lost.\n\
        In stage 1 a greedy balanced router routes and teaches the small one.\n\
        In stage 2, and in all evaluation, the small one decides.\n\
        Routes are then stable, so that each expert keeps the tokens it learns from.",
    state: "parameters: centroids [e, d], and in every layer word embeddings [vocab, w] and distilled centroids [e, w], w = `word_width`",
    cost: "at most one expert call; a product of width w with the distilled centroids, in stage 1 a softmax over e for its loss",
    equations: &[
        ("(1)-(3)", "StableMoe::route"),
        ("(4)", "balance"),
        ("(5)", "distill"),
        ("(6)", "Config::stage_1"),
    ],
    deviations: &[
        "released code: the output is the mix (2); the paper adds the input to the gated expert (second-hand); for experts E(x) = x + f(x) and the model's own residual the mix is x + a f(x)",
        "(4) and (5) are sums over tokens beside a summed task loss; here the task loss is a mean, so their weights are divided by the tokens of a group",
        "the paper freezes the distilled router in stage 2; here, as in the code, it gets no gradient there",
        "`stage1_steps` is a number of steps (6000 of 60000 in the released example); a recipe that does not give it takes a tenth of its run",
        "reads token ids: serves only where the model hands them in; every layer has word embeddings of its own",
    ],
    unverified: &["initial values of word embeddings and centroids"],
    presets: Config::PRESETS,
    compared: &["paper"],
    control: false,
    method: Method::Router(|settings| Ok(Box::new(resolve::<Config>(settings)?))),
};

/// What a routing error calls the ids.
const IDS: &str = "token ids";
/// What a routing error calls the student of (5).
const STUDENT: &str = "distilled router: word_emb and distilled; it";

/// The trainable router. Axes `v` vocabulary, `w` width of a word embedding.
#[derive(Debug)]
struct StableMoe {
    centroids_ed: Tensor,
    student: Option<Student>,
    config: Config,
}

/// The distilled router (5).
#[derive(Debug)]
struct Student {
    word_emb_vw: Tensor,
    distilled_ew: Tensor,
}

impl Student {
    /// (5), `[g, t] -> [g, t, e]`.
    fn scores(&self, token_gt: Option<&Tensor>) -> Result<Tensor, RouteError> {
        let token_gt = token_gt.ok_or(RouteError::Missing { what: IDS })?;
        let word = Tensor::f_embedding(&self.word_emb_vw, token_gt, -1, false, false);
        let word_gtw = word.map_err(|_| out_of_range(self.word_emb_vw.size()[0] as usize))?;
        Ok(word_gtw.linear(&self.distilled_ew, None::<&Tensor>))
    }
}

/// An id beyond the word embeddings.
fn out_of_range(vocab: usize) -> RouteError {
    let reason = format!("are out of range 0..{vocab}: raise `vocab`");
    RouteError::Setting { key: IDS, reason }
}

/// (4), the mean over groups. Counts carry no gradient.
pub fn balance(score_gte: &Tensor, expert_gt1: &Tensor) -> Tensor {
    let (_, t, e) = axes3(score_gte);
    let one_hot_gte = expert_gt1.squeeze_dim(-1).one_hot(e).to_kind(score_gte.kind());
    let mean = t as f64 / e as f64;
    let excess_ge = one_hot_gte.sum_dim_intlist(1, false, None::<Kind>) / mean - 1.0;
    let gate_ge = (one_hot_gte * score_gte.sigmoid()).sum_dim_intlist(1, false, None::<Kind>);
    (excess_ge * gate_ge).sum_dim_intlist(-1, false, None::<Kind>).mean(None::<Kind>)
}

/// (4) of one group on the host.
pub fn balance_host(score_te: ArrayView2<'_, f64>, expert_t: &[usize]) -> f64 {
    let (t, e) = score_te.dim();
    let mean = t as f64 / e as f64;
    let of_expert = |e: usize| {
        let members: Vec<usize> = (0..t).filter(|&t| expert_t[t] == e).collect();
        let gates: f64 = members.iter().map(|&t| score::sigmoid(score_te[[t, e]])).sum();
        (members.len() as f64 - mean) / mean * gates
    };
    (0..e).map(of_expert).sum()
}

/// (5): cross-entropy summed over the tokens of a group, the mean over groups. The target carries
/// no gradient.
pub fn distill(student_gte: &Tensor, expert_gt1: &Tensor) -> Tensor {
    let groups = student_gte.size()[0] as f64;
    let log_gte = student_gte.log_softmax(-1, student_gte.kind());
    -log_gte.gather(-1, expert_gt1, false).sum(log_gte.kind()) / groups
}

/// (5) of one group on the host.
pub fn distill_host(student_te: ArrayView2<'_, f64>, expert_t: &[usize]) -> f64 {
    let log_te = score::log_softmax(student_te);
    expert_t.iter().enumerate().map(|(t, &e)| -log_te[[t, e]]).sum()
}

impl StableMoe {
    /// (4)-(5), weighted as beside a mean task loss.
    fn aux(
        &self,
        score_gte: &Tensor,
        student_gte: Option<&Tensor>,
        expert_gt1: &Tensor,
    ) -> Vec<Aux> {
        let per_token = 1.0 / score_gte.size()[1] as f64;
        let Config { balance_weight, distill_weight, .. } = self.config;
        let value = balance(score_gte, expert_gt1);
        let mut aux = vec![Aux { name: "balance", weight: balance_weight * per_token, value }];
        if let Some(student_gte) = student_gte {
            let value = distill(student_gte, expert_gt1);
            aux.push(Aux { name: "distill", weight: distill_weight * per_token, value });
        }
        aux
    }
}

impl Router for StableMoe {
    fn route(&self, x_gtd: &Tensor, cx: &RouteCx<'_>) -> Result<Routing, RouteError> {
        let score_gte = x_gtd.linear(&self.centroids_ed, None::<&Tensor>); // (1)
        let (_, t, e) = axes3(&score_gte);
        let student_gte = self.student.as_ref().map(|s| s.scores(cx.token_gt)).transpose()?;
        let stage_1 = self.config.stage_1(cx.step());
        let guide_gte = match (stage_1, &student_gte) {
            (true, _) => &score_gte,                   // (3)
            (false, Some(student_gte)) => student_gte, // (6)
            (false, None) => return Err(RouteError::Missing { what: STUDENT }),
        };
        let expert_gt1 = ChoicesGtk::top_k(guide_gte, 1).expert_gtk;
        let aux = match stage_1 {
            true => self.aux(&score_gte, student_gte.as_ref(), &expert_gt1),
            false => Vec::new(),
        };
        let choices = base::choose(&score_gte, expert_gt1); // (2)
        let room = self.config.room(cx.capacity, t as usize, e as usize)?;
        let chosen = Chosen { choices, experts: e, room };
        let gate_gte = guide_gte.detach().softmax(-1, guide_gte.kind());
        let plan = chosen.plan();
        Ok(Routing { plan, chosen: Some(chosen), gate_gte, logits_gte: score_gte, aux })
    }

    fn reference(&self) -> Box<dyn Reference> {
        let student = |s: &Student| (to_host(&s.word_emb_vw), to_host(&s.distilled_ew));
        Box::new(Host {
            centroids_ed: to_host(&self.centroids_ed),
            student: self.student.as_ref().map(student),
            config: self.config.clone(),
        })
    }
}

struct Host {
    centroids_ed: Array2<f64>,
    /// Word embeddings `[v, w]` and distilled centroids `[e, w]`.
    student: Option<(Array2<f64>, Array2<f64>)>,
    config: Config,
}

impl Host {
    /// (5).
    fn student(&self, input: &HostInput<'_>) -> Result<Option<Array2<f64>>, RouteError> {
        let Some((word_emb_vw, distilled_ew)) = &self.student else { return Ok(None) };
        let token_t = input.token_t.ok_or(RouteError::Missing { what: IDS })?;
        if token_t.iter().any(|&id| id >= word_emb_vw.nrows()) {
            return Err(out_of_range(word_emb_vw.nrows()));
        }
        Ok(Some(word_emb_vw.select(Axis(0), token_t).dot(&distilled_ew.t())))
    }
}

impl Reference for Host {
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
        let score_te = input.x_td.dot(&self.centroids_ed.t()); // (1)
        let (t, e) = score_te.dim();
        let student_te = self.student(input)?;
        let stage_1 = self.config.stage_1(input.train.then_some(input.step));
        let guide_te = match (stage_1, &student_te) {
            (true, _) => &score_te,                  // (3)
            (false, Some(student_te)) => student_te, // (6)
            (false, None) => return Err(RouteError::Missing { what: STUDENT }),
        };
        let expert_t: Vec<usize> =
            Choices::top_k(guide_te.view(), 1).expert_tk.into_iter().collect();
        let mut aux = Vec::new();
        if stage_1 {
            aux.push(("balance", balance_host(score_te.view(), &expert_t))); // (4)
            let distill = student_te.as_ref().map(|s| distill_host(s.view(), &expert_t)); // (5)
            aux.extend(distill.map(|value| ("distill", value)));
        }
        let gate_te = score::softmax(guide_te.view());
        let choices = base::choose_host(score_te.view(), expert_t); // (2)
        let room = self.config.room(input.capacity, t, e)?;
        let chosen = moe_core::Chosen::new(choices, e, room)?;
        let plan = chosen.plan()?;
        Ok(HostRouting { plan, chosen: Some(chosen), logits_te: score_te, gate_te, aux })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    /// Three tokens `x = (1, 2, -1)`, centroids `(1, -1)`: scores `(1, -1)`, `(2, -2)`, `(-1, 1)`.
    /// Stage 1: experts 0, 0, 1; `nbar = 3/2`, so `L_bal = (1/3)(sig 1 + sig 2) - (1/3) sig 1
    /// = sig(2)/3`. The student sees word 0 at tokens 0 and 2 and word 1 at token 1, embeddings
    /// `(1, -1)`, distilled `(ln 3, 0)`: softmax `(3/4, 1/4)` for word 0, `(1/4, 3/4)` for word 1.
    /// `L_dis = -ln(3/4) - ln(1/4) - ln(1/4)`. Stage 2: experts 0, 1, 0, and the weight is still the
    /// teacher's: `sig 1, sig -2, sig -1`.
    #[test]
    fn by_hand() {
        let student = Some((array![[1.0], [-1.0]], array![[3f64.ln()], [0.0]]));
        let config = Config { capacity_factor: None, ..Config::preset("paper") };
        let host = Host { centroids_ed: array![[1.0], [-1.0]], student, config };
        let x_td = array![[1.0], [2.0], [-1.0]];
        let input = HostInput::new(x_td.view()).tokens(Some(&[0, 1, 0]));
        let sig = score::sigmoid;
        let one = host.route(&input.train(true)).unwrap();
        assert!((one.aux("balance").unwrap() - sig(2.0) / 3.0).abs() < 1e-12);
        let distill = -(0.75f64.ln() + 2.0 * 0.25f64.ln());
        assert!((one.aux("distill").unwrap() - distill).abs() < 1e-12);
        let want_te = array![[sig(1.0), 0.0], [sig(2.0), 0.0], [0.0, sig(1.0)]];
        assert_eq!(one.plan.combine_te(), want_te);

        let want_te = array![[sig(1.0), 0.0], [0.0, sig(-2.0)], [sig(-1.0), 0.0]];
        for input in [input, input.train(true).step(6000)] {
            let two = host.route(&input).unwrap();
            assert_eq!((two.plan.combine_te(), two.aux.len()), (want_te.clone(), 0));
        }
    }

    /// Four tokens, two experts: an expert keeps `int(2 * 4 / 2) = 4`; with factor 1/2, one.
    #[test]
    fn capacity_by_hand() {
        let room = |capacity_factor| {
            let config = Config { capacity_factor, ..Config::preset("paper") };
            config.room(None, 4, 2).unwrap().0
        };
        assert_eq!([room(Some(2.0)), room(Some(0.5)), room(None)], [Some(4), Some(1), None]);
    }
}
