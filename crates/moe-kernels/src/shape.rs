//! Sizes and kind of a bank of experts, its weights and their gradients.
//!
//! ```text
//! two matrices:  E_e(x) = a(x W1_e^T + b1_e) W2_e^T + b2_e                 a = ReLU, GELU
//! gated:         E_e(x) = (a(x G_e^T) * (x W1_e^T + b1_e)) W2_e^T + b2_e   a = SiLU, GELU
//! ```
//!
//! Axis letters: `e` experts, `h` hidden width, `d` width.

use crate::KernelError;

/// Nonlinearity of an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `max(0, x)`, two matrices.
    Relu,
    /// GELU with the error function, two matrices.
    Gelu,
    /// SiLU gate, three matrices (Shazeer 2020, arXiv 2002.05202).
    Swiglu,
    /// GELU gate with the error function, three matrices (same paper).
    Geglu,
}

impl Activation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Relu, Self::Gelu, Self::Swiglu, Self::Geglu];

    /// Whether a third matrix gates the hidden layer.
    pub fn gated(self) -> bool {
        matches!(self, Self::Swiglu | Self::Geglu)
    }

    /// Matrices of the first product.
    pub(crate) fn maps(self) -> usize {
        if self.gated() { 2 } else { 1 }
    }
}

/// Element type in which matrices are multiplied; sums are `f32` either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// The upper 16 bits of `f32`, rounded to nearest, ties to even.
    Bf16,
}

/// Sizes and kind of a bank of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Number of experts, `e`.
    pub experts: usize,
    /// Model width, `d`.
    pub width: usize,
    /// Hidden width of one expert, `h`.
    pub hidden: usize,
    /// Nonlinearity.
    pub activation: Activation,
    /// Whether the two outer maps have biases, both or none.
    pub bias: bool,
}

impl Shape {
    /// Refuses axes of no length, and matrices too large to address.
    pub(crate) fn check(&self) -> Result<(), KernelError> {
        let axes = [(self.experts, "experts"), (self.width, "columns"), (self.hidden, "hidden")];
        if let Some(&(_, axis)) = axes.iter().find(|(length, _)| *length == 0) {
            return Err(KernelError::Empty { axis });
        }
        let sizes = [self.experts, self.width, self.hidden];
        // Rounded up to panels and gated, an axis grows by less than 128 values or twofold.
        let product = sizes
            .iter()
            .try_fold(16_usize, |product, &size| product.checked_mul(size.checked_add(128)?));
        match product {
            Some(bytes) if isize::try_from(bytes).is_ok() => Ok(()),
            _ => Err(KernelError::Overflow { what: "the weights", axes: sizes }),
        }
    }

    /// Values of one of the stacked matrices.
    pub(crate) fn matrix(&self) -> usize {
        self.experts * self.width * self.hidden
    }
}

/// Weights of all experts as libtorch stores them: row-major, without gaps.
#[derive(Debug, Clone, Copy)]
pub struct Weights<'a> {
    /// Up matrices, `[e, h, d]`.
    pub w1_ehd: &'a [f32],
    /// Gate matrices of gated experts, `[e, h, d]`.
    pub gate_ehd: Option<&'a [f32]>,
    /// Down matrices, `[e, d, h]`.
    pub w2_edh: &'a [f32],
    /// Biases of the hidden layer, `[e, h]`; of the up map where the expert is gated.
    pub b1_eh: Option<&'a [f32]>,
    /// Biases of the output, `[e, d]`.
    pub b2_ed: Option<&'a [f32]>,
}

impl Weights<'_> {
    pub(crate) fn check(&self, shape: &Shape) -> Result<(), KernelError> {
        KernelError::check("w1_ehd", shape.matrix(), self.w1_ehd.len())?;
        KernelError::check("w2_edh", shape.matrix(), self.w2_edh.len())?;
        let gated = shape.activation.gated();
        check_optional("gate_ehd", gated, shape.matrix(), self.gate_ehd)?;
        check_optional("b1_eh", shape.bias, shape.experts * shape.hidden, self.b1_eh)?;
        check_optional("b2_ed", shape.bias, shape.experts * shape.width, self.b2_ed)
    }
}

/// Where the gradients of the weights are added up, in the layouts of [`Weights`].
#[derive(Debug)]
pub struct WeightGrads<'a> {
    /// Of the up matrices, `[e, h, d]`.
    pub w1_ehd: &'a mut [f32],
    /// Of the gate matrices, `[e, h, d]`.
    pub gate_ehd: Option<&'a mut [f32]>,
    /// Of the down matrices, `[e, d, h]`.
    pub w2_edh: &'a mut [f32],
    /// Of the biases of the hidden layer, `[e, h]`.
    pub b1_eh: Option<&'a mut [f32]>,
    /// Of the biases of the output, `[e, d]`.
    pub b2_ed: Option<&'a mut [f32]>,
}

impl WeightGrads<'_> {
    pub(crate) fn check(&self, shape: &Shape) -> Result<(), KernelError> {
        let weights = Weights {
            w1_ehd: self.w1_ehd,
            gate_ehd: self.gate_ehd.as_deref(),
            w2_edh: self.w2_edh,
            b1_eh: self.b1_eh.as_deref(),
            b2_ed: self.b2_ed.as_deref(),
        };
        weights.check(shape)
    }
}

fn check_optional(
    what: &'static str,
    wanted: bool,
    expected: usize,
    values: Option<&[f32]>,
) -> Result<(), KernelError> {
    match values {
        Some(values) if wanted => KernelError::check(what, expected, values.len()),
        None if !wanted => Ok(()),
        _ => Err(KernelError::Presence { what, given: values.is_some() }),
    }
}
