//! Why a reference refuses its input.

use crate::capacity::CapacityError;
use crate::plan::PlanError;
use ndarray::ArrayView2;

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
    /// The router of one layer of a model refused.
    #[error("sparse layer {layer}: {source}")]
    Layer {
        /// Index among the sparse layers.
        layer: usize,
        /// Why.
        source: Box<RouteError>,
    },
}

impl RouteError {
    /// The same, of this sparse layer of a model.
    pub fn in_layer(self, layer: usize) -> Self {
        Self::Layer { layer, source: Box::new(self) }
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

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
}
