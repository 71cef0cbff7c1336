//! The contract of a paper's plain reference: what it is given, what it gives back.
//!
//! Axis letters: `t` tokens of one group, `d` model width, `e` experts, `m` attention heads.
//!
//! **Invariant:** there is no hidden randomness. Every draw (noise, uniform numbers, masks) is an
//! array with a name, handed in; a missing draw means that there is no noise.

mod error;

pub use error::RouteError;

use crate::capacity::{CapacityPolicy, DropOrder};
use crate::plan::{Plan, PlanError, SparsePlan};
use crate::queue::Queue;
use crate::select::Choices;
use ndarray::{Array2, ArrayView2, ArrayView3};

/// What a reference is given for one group of tokens.
///
/// Fields are read directly; values are made with [`HostInput::new`] and the methods of the same
/// names, so that a later field breaks no caller.
///
/// ```
/// # use moe_core::HostInput;
/// # use ndarray::array;
/// let x_td = array![[1.0, 2.0]];
/// let draws = [("noise", array![[0.3, -0.1, 0.2]])];
/// let input = HostInput::new(x_td.view()).train(true).draws(&draws);
/// assert_eq!(input.draw("noise").unwrap(), draws[0].1);
/// assert!(input.draw("jitter").is_none());
/// ```
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct HostInput<'a> {
    /// The tokens, `[t, d]`.
    pub x_td: ArrayView2<'a, f64>,
    /// Whether this is a training step; `false` unless set.
    pub train: bool,
    /// Random draws by name; none unless set.
    pub draws: &'a [(&'static str, Array2<f64>)],
    /// The recipe's capacity; `None`, unless set, stands for the paper's own.
    pub capacity: Option<&'a CapacityPolicy>,
    /// What the sparse layer before this one decided; `None` unless set.
    pub previous: Option<&'a HostRouting>,
    /// Attention weights of the block by head, `[m, t, t]`; `None` unless set.
    pub attention_mtt: Option<ArrayView3<'a, f64>>,
    /// Tokens that are padding, `[t]`; `None` unless set.
    pub padding_t: Option<&'a [bool]>,
    /// Ids of the tokens in the vocabulary, `[t]`; `None` unless set.
    pub token_t: Option<&'a [usize]>,
    /// Optimiser steps taken so far; 0 unless set.
    pub step: u64,
}

impl<'a> HostInput<'a> {
    /// An evaluation of these tokens, without draws, under the paper's own capacity.
    pub fn new(x_td: ArrayView2<'a, f64>) -> Self {
        Self {
            x_td,
            train: false,
            draws: &[],
            capacity: None,
            previous: None,
            attention_mtt: None,
            padding_t: None,
            token_t: None,
            step: 0,
        }
    }

    /// Sets whether this is a training step.
    pub fn train(self, train: bool) -> Self {
        Self { train, ..self }
    }

    /// Sets the random draws.
    pub fn draws(self, draws: &'a [(&'static str, Array2<f64>)]) -> Self {
        Self { draws, ..self }
    }

    /// Sets the capacity.
    pub fn capacity(self, capacity: Option<&'a CapacityPolicy>) -> Self {
        Self { capacity, ..self }
    }

    /// Sets what the layer before decided.
    pub fn previous(self, previous: Option<&'a HostRouting>) -> Self {
        Self { previous, ..self }
    }

    /// Sets the attention weights.
    pub fn attention(self, attention_mtt: Option<ArrayView3<'a, f64>>) -> Self {
        Self { attention_mtt, ..self }
    }

    /// Sets which tokens are padding.
    pub fn padding(self, padding_t: Option<&'a [bool]>) -> Self {
        Self { padding_t, ..self }
    }

    /// Sets the ids of the tokens.
    pub fn tokens(self, token_t: Option<&'a [usize]>) -> Self {
        Self { token_t, ..self }
    }

    /// Sets the number of optimiser steps taken so far.
    pub fn step(self, step: u64) -> Self {
        Self { step, ..self }
    }

    /// The draw of this name.
    pub fn draw(&self, name: &str) -> Option<ArrayView2<'a, f64>> {
        self.draws.iter().find(|(known, _)| *known == name).map(|(_, draw)| draw.view())
    }

    /// The draw of this name, which must have this shape.
    ///
    /// # Errors
    ///
    /// If it has another.
    pub fn draw_of(
        &self,
        name: &'static str,
        shape: (usize, usize),
    ) -> Result<Option<ArrayView2<'a, f64>>, RouteError> {
        match self.draw(name) {
            Some(draw) if draw.dim() != shape => {
                Err(RouteError::Shape { what: name, expected: shape, got: draw.dim() })
            }
            draw => Ok(draw),
        }
    }
}

impl HostInput<'_> {
    /// Which of every token's `k` choices queue, `[t, k]`: those of tokens that are no padding.
    ///
    /// # Errors
    ///
    /// If there is not one padding flag per token.
    pub fn present(&self, k: usize) -> Result<Array2<bool>, RouteError> {
        let tokens = self.x_td.nrows();
        let Some(padding_t) = self.padding_t else {
            return Ok(Array2::from_elem((tokens, k), true));
        };
        if padding_t.len() != tokens {
            let (expected, got) = ((tokens, 1), (padding_t.len(), 1));
            return Err(RouteError::Shape { what: "padding", expected, got });
        }
        Ok(Array2::from_shape_fn((tokens, k), |(t, _)| !padding_t[t]))
    }
}

/// What the tokens of one group chose, and what became of the choices.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen {
    /// Experts and weights in rank order.
    pub choices: Choices,
    /// Places in the experts' queues.
    pub queue: Queue,
    /// Number of experts.
    pub experts: usize,
    /// Rows that an expert keeps; `None` is all.
    pub slots: Option<usize>,
}

impl Chosen {
    /// Queues every choice at its expert, which keeps `slots` rows, dropping in this order.
    ///
    /// # Errors
    ///
    /// As [`Queue::of`].
    pub fn new(
        choices: Choices,
        experts: usize,
        (slots, order): (Option<usize>, DropOrder),
    ) -> Result<Self, PlanError> {
        let queue = Queue::of(&choices, experts, slots, order)?;
        Ok(Self { choices, queue, experts, slots })
    }

    /// The same for the choices that are `true` in `present_tk`; the others take no place.
    ///
    /// # Errors
    ///
    /// As [`Queue::of_present`].
    pub fn of_present(
        choices: Choices,
        present_tk: ArrayView2<'_, bool>,
        experts: usize,
        (slots, order): (Option<usize>, DropOrder),
    ) -> Result<Self, PlanError> {
        let queue = Queue::of_present(&choices, present_tk, experts, slots, order)?;
        Ok(Self { choices, queue, experts, slots })
    }

    /// The plan of the choices that were kept.
    ///
    /// # Errors
    ///
    /// A weight that is not finite.
    pub fn plan(&self) -> Result<Plan, PlanError> {
        SparsePlan::from_queue(&self.choices, &self.queue, self.experts).map(Plan::Sparse)
    }

    /// The routing of the choices that were kept, with everything that goes beside it.
    ///
    /// # Errors
    ///
    /// As [`Self::plan`].
    pub fn routing(
        self,
        logits_te: Array2<f64>,
        gate_te: Array2<f64>,
        aux: Vec<(&'static str, f64)>,
    ) -> Result<HostRouting, PlanError> {
        Ok(HostRouting { plan: self.plan()?, chosen: Some(self), logits_te, gate_te, aux })
    }
}

/// What a reference decided for one group of tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct HostRouting {
    /// Who computes what, and with what weight it comes back.
    pub plan: Plan,
    /// What the tokens chose; `None` where they do not choose.
    pub chosen: Option<Chosen>,
    /// Router logits before noise, `[t, e]`.
    pub logits_te: Array2<f64>,
    /// The distribution over experts before selection, `[t, e]`; rows sum to 1.
    pub gate_te: Array2<f64>,
    /// Auxiliary losses by name, unweighted.
    pub aux: Vec<(&'static str, f64)>,
}

impl HostRouting {
    /// The auxiliary loss of this name.
    pub fn aux(&self, name: &str) -> Option<f64> {
        self.aux.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }
}

/// One expert on its rows: (expert, `[n, d]`) to `[n, d]`.
pub type HostExpert<'a> = dyn Fn(usize, ArrayView2<'_, f64>) -> Array2<f64> + Sync + 'a;

/// A paper's routing equations, written as plainly as they can be, with the parameters of the
/// moment inside.
///
/// This is the oracle that the trainable router of the same paper is held to.
pub trait Reference {
    /// Routes one group of tokens.
    ///
    /// # Errors
    ///
    /// If the input does not fit the parameters or the settings.
    fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError>;

    /// The whole sparse layer: output `[t, d]`, and the routing with its losses. A paper that calls
    /// its experts more than once writes its own.
    ///
    /// # Errors
    ///
    /// As [`Self::route`].
    fn layer(
        &self,
        input: &HostInput<'_>,
        expert: &HostExpert<'_>,
    ) -> Result<(Array2<f64>, HostRouting), RouteError> {
        let routing = self.route(input)?;
        Ok((routing.plan.apply(input.x_td, expert), routing))
    }

    /// What the paper computes from this input but keeps constant for differentiation. Handed back
    /// as draws of these names, the values take the place of computed ones, so that a difference
    /// quotient of [`Self::route`] is the derivative that training follows.
    ///
    /// # Errors
    ///
    /// As [`Self::route`].
    fn constants(
        &self,
        _input: &HostInput<'_>,
    ) -> Result<Vec<(&'static str, Array2<f64>)>, RouteError> {
        Ok(Vec::new())
    }
}

impl dyn Reference + '_ {
    /// [`Reference::layer`] of tokens and logits that are finite. A NaN orders like any number in a
    /// sort, so a rule would route it without a word.
    ///
    /// # Errors
    ///
    /// As [`Reference::layer`]; tokens or logits that are not finite.
    pub fn forward(
        &self,
        input: &HostInput<'_>,
        expert: &HostExpert<'_>,
    ) -> Result<(Array2<f64>, HostRouting), RouteError> {
        RouteError::check_finite("tokens", input.x_td)?;
        let (y_td, routing) = self.layer(input, expert)?;
        RouteError::check_finite("logits", routing.logits_te.view())?;
        Ok((y_td, routing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn an_input_starts_plain_and_keeps_what_is_set() {
        let x_td = array![[1.0]];
        let input = HostInput::new(x_td.view());
        assert_eq!((input.train, input.draws.len(), input.capacity), (false, 0, None));
        let policy = CapacityPolicy::default();
        let draws = [("noise", array![[0.5]])];
        let input = input.capacity(Some(&policy)).draws(&draws).train(true);
        assert_eq!((input.train, input.capacity), (true, Some(&policy)));
        assert_eq!((input.x_td, input.draw("noise")), (x_td.view(), Some(draws[0].1.view())));
    }

    #[test]
    fn a_draw_of_another_shape_is_refused() {
        let draws = [("noise", array![[0.5, 0.1]])];
        let x_td = array![[1.0]];
        let input = HostInput::new(x_td.view()).draws(&draws);
        assert_eq!(input.draw_of("noise", (1, 2)), Ok(Some(draws[0].1.view())));
        assert_eq!(input.draw_of("gumbel", (1, 2)), Ok(None));
        let error = input.draw_of("noise", (2, 1)).unwrap_err().to_string();
        assert_eq!(error, "noise has shape (1, 2), but (2, 1) was expected");
    }

    #[test]
    fn an_input_keeps_the_context_of_its_block() {
        let x_td = array![[1.0], [2.0]];
        let plan = SparsePlan::from_lists(2, &[vec![(0, 1.0)]]).unwrap().into();
        let (chosen, aux) = (None, Vec::new());
        let before =
            HostRouting { plan, chosen, logits_te: x_td.clone(), gate_te: x_td.clone(), aux };
        let input = HostInput::new(x_td.view());
        assert!(input.previous.is_none() && input.attention_mtt.is_none());
        assert!(input.padding_t.is_none());
        let attention_mtt = array![[[1.0, 0.0], [0.5, 0.5]]];
        let padding_t = [false, true];
        let input = input
            .previous(Some(&before))
            .attention(Some(attention_mtt.view()))
            .padding(Some(&padding_t));
        assert_eq!(input.previous, Some(&before));
        assert_eq!(input.attention_mtt, Some(attention_mtt.view()));
        assert_eq!(input.padding_t, Some(&padding_t[..]));
    }

    /// Sends every token to expert 0, and says that its logits are the tokens over their first value.
    struct First;

    impl Reference for First {
        fn route(&self, input: &HostInput<'_>) -> Result<HostRouting, RouteError> {
            let rows = (0..input.x_td.nrows()).map(|t| (t, 1.0)).collect();
            let plan = SparsePlan::from_lists(input.x_td.nrows(), &[rows])?.into();
            let logits_te = &input.x_td / input.x_td[[0, 0]];
            let (gate_te, chosen, aux) = (logits_te.clone(), None, Vec::new());
            Ok(HostRouting { plan, chosen, logits_te, gate_te, aux })
        }
    }

    #[test]
    fn forward_refuses_what_is_not_finite() {
        let forward = |x_td: Array2<f64>| {
            let first: &dyn Reference = &First;
            let layer = first.forward(&HostInput::new(x_td.view()), &|_, rows| rows.to_owned());
            layer.map(|(y_td, _)| y_td).map_err(|error| error.to_string())
        };
        assert_eq!(forward(array![[2.0], [1.0]]), Ok(array![[2.0], [1.0]]));
        let refused = |what: &str| Err(format!("{what}, not finite"));
        assert_eq!(forward(array![[2.0], [f64::NAN]]), refused("tokens at (1, 0) is NaN"));
        assert_eq!(forward(array![[0.0], [1.0]]), refused("logits at (0, 0) is NaN"));
    }

    #[test]
    fn what_was_chosen_makes_the_plan() {
        // Both tokens choose expert 1, which keeps one row: that of the larger gate.
        let choices = Choices::top_k(array![[0.25, 0.75], [0.125, 0.875]].view(), 1);
        let room = (Some(1), DropOrder::BatchPriority);
        let chosen = Chosen::new(choices.clone(), 2, room).unwrap();
        assert_eq!((chosen.experts, chosen.slots), (2, Some(1)));
        assert_eq!(chosen.queue.kept_tk, array![[false], [true]]);
        let want = SparsePlan::from_choices(&choices, 2, Some(1), DropOrder::BatchPriority);
        assert_eq!(chosen.plan(), want.map(Plan::Sparse));
    }

    #[test]
    fn auxiliary_losses_are_found_by_name() {
        let plan = crate::SparsePlan::from_lists(1, &[vec![(0, 1.0)]]).unwrap();
        let one = array![[1.0]];
        let aux = vec![("importance", 0.5), ("load", 0.25)];
        let (plan, chosen, logits_te, gate_te) = (plan.into(), None, one.clone(), one);
        let routing = HostRouting { plan, chosen, logits_te, gate_te, aux };
        assert_eq!((routing.aux("load"), routing.aux("z")), (Some(0.25), None));
    }
}
