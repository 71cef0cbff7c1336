//! The contract of a paper's plain reference: what it is given, what it gives back.
//!
//! Axis letters: `t` tokens of one group, `d` model width, `e` experts.
//!
//! **Invariant:** there is no hidden randomness. Every draw (noise, uniform numbers, masks) is an
//! array with a name, handed in; a missing draw means that there is no noise.

use crate::capacity::{CapacityError, CapacityPolicy, DropOrder};
use crate::plan::{Plan, PlanError, SparsePlan};
use crate::queue::Queue;
use crate::select::Choices;
use ndarray::{Array2, ArrayView2};

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
    /// Attention weights of the block, `[t, t]`; `None` unless set.
    pub attention_tt: Option<ArrayView2<'a, f64>>,
    /// Tokens that are padding, `[t]`; `None` unless set.
    pub padding_t: Option<&'a [bool]>,
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
            attention_tt: None,
            padding_t: None,
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
    pub fn attention(self, attention_tt: Option<ArrayView2<'a, f64>>) -> Self {
        Self { attention_tt, ..self }
    }

    /// Sets which tokens are padding.
    pub fn padding(self, padding_t: Option<&'a [bool]>) -> Self {
        Self { padding_t, ..self }
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
    /// Queues every choice at its expert, which keeps `room.0` rows in the order of `room.1`.
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

/// Why a reference refused its input.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// An array has the wrong shape.
    #[error("{what} has shape {got:?}, but {expected:?} was expected")]
    Shape {
        /// The array.
        what: &'static str,
        /// The shape it should have.
        expected: (usize, usize),
        /// The shape it has.
        got: (usize, usize),
    },
    /// An array holds an infinity or a NaN.
    #[error("{what} at {at:?} is {value}, not finite")]
    NotFinite {
        /// The array.
        what: &'static str,
        /// Where.
        at: (usize, usize),
        /// The value.
        value: f64,
    },
    /// A token cannot choose that many experts.
    #[error("top_k must be between 1 and the {experts} experts, but is {top_k}")]
    TopK {
        /// Choices asked for.
        top_k: usize,
        /// Experts there are.
        experts: usize,
    },
    /// Something the settings need was not handed in.
    #[error("{what} is missing")]
    Missing {
        /// What is needed.
        what: &'static str,
    },
    /// A setting, or a number handed in, is outside its domain.
    #[error("{key} {reason}")]
    Setting {
        /// Name of the setting.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The capacity cannot be used.
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    /// The decisions do not make a plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl RouteError {
    /// Refuses an array with an infinity or a NaN.
    ///
    /// # Errors
    ///
    /// [`RouteError::NotFinite`], with the first such value.
    pub fn check_finite(what: &'static str, values: ArrayView2<'_, f64>) -> Result<(), Self> {
        match values.indexed_iter().find(|(_, value)| !value.is_finite()) {
            Some((at, &value)) => Err(Self::NotFinite { what, at, value }),
            None => Ok(()),
        }
    }

    /// Refuses a `top_k` below 1 or above the number of experts.
    ///
    /// # Errors
    ///
    /// [`RouteError::TopK`].
    pub fn check_top_k(top_k: usize, experts: usize) -> Result<(), Self> {
        if (1..=experts).contains(&top_k) { Ok(()) } else { Err(Self::TopK { top_k, experts }) }
    }
}

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
    fn checks_name_what_they_refuse() {
        let x_td = array![[0.0, 1.0], [2.0, f64::NAN]];
        let error = RouteError::check_finite("x", x_td.view()).unwrap_err().to_string();
        assert_eq!(error, "x at (1, 1) is NaN, not finite");
        assert_eq!(
            RouteError::check_finite("x", x_td.row(0).insert_axis(ndarray::Axis(0))),
            Ok(())
        );
        for (top_k, fits) in [(0, false), (1, true), (4, true), (5, false)] {
            let check = RouteError::check_top_k(top_k, 4);
            assert_eq!(check.is_ok(), fits, "top_k {top_k}: {check:?}");
        }
    }

    #[test]
    fn auxiliary_losses_are_found_by_name() {
        let plan = crate::SparsePlan::from_lists(1, &[vec![(0, 1.0)]]).unwrap();
        let one = array![[1.0]];
        let aux = vec![("importance", 0.5), ("load", 0.25)];
        let routing = HostRouting {
            plan: plan.into(),
            chosen: None,
            logits_te: one.clone(),
            gate_te: one,
            aux,
        };
        assert_eq!((routing.aux("load"), routing.aux("z")), (Some(0.25), None));
    }
}
