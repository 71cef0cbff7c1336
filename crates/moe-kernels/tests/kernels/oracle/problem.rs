//! Problems of any shape, and the kernels' answers to them.

use moe_kernels::{
    Activation, BackwardInput, BackwardOutput, Dtype, Isa, KernelError, Packed, Plan, Saved, Shape,
    WeightGrads, Weights, Workspace, backward, forward,
};
use proptest::prelude::*;

use super::Values;

/// A bank of experts, a plan, inputs and the gradient of the outputs.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) shape: Shape,
    pub(crate) tokens: usize,
    pub(crate) offset_e: Vec<usize>,
    pub(crate) token_n: Vec<u32>,
    pub(crate) values: Values,
    pub(crate) dy_td: Vec<f64>,
}

/// `values` as `f32`; all of them are `f32` to begin with.
pub(crate) fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&x| x as f32).collect()
}

/// Numbers of a seed, about uniform in `(-1, 1)`, each an `f32` (splitmix64).
pub(crate) struct Numbers(pub u64);

impl Numbers {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn next(&mut self) -> f64 {
        (self.bits() >> 40) as f64 / f64::from(1 << 23) - 1.0
    }

    pub(crate) fn many(&mut self, count: usize, scale: f64) -> Vec<f64> {
        (0..count).map(|_| f64::from((self.next() * scale) as f32)).collect()
    }
}

impl Problem {
    /// A problem of a seed, in which each token goes to each expert with a chance of `share` 256ths,
    /// and to one that is `empty` never.
    pub(crate) fn new(shape: Shape, tokens: usize, share: u8, empty: usize, seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        let (mut offset_e, mut token_n) = (vec![0], Vec::new());
        for expert in 0..shape.experts {
            let goes = |_: &u32| expert != empty && numbers.bits() as u8 <= share;
            token_n.extend((0..tokens as u32).filter(goes));
            offset_e.push(token_n.len());
        }
        Self::with_rows(shape, tokens, offset_e, token_n, numbers)
    }

    /// A problem with these rows.
    pub(crate) fn with_rows(
        shape: Shape,
        tokens: usize,
        offset_e: Vec<usize>,
        token_n: Vec<u32>,
        mut numbers: Numbers,
    ) -> Self {
        let Shape { experts: e, width: d, hidden: h, activation, bias } = shape;
        let gate = if activation.gated() { e * h * d } else { 0 };
        let bias = usize::from(bias);
        let values = Values {
            x_td: numbers.many(tokens * d, 1.0),
            weight_n: numbers.many(token_n.len(), 1.0),
            w1_ehd: numbers.many(e * h * d, 2.0 / (d as f64).sqrt()),
            gate_ehd: numbers.many(gate, 2.0 / (d as f64).sqrt()),
            w2_edh: numbers.many(e * d * h, 2.0 / (h as f64).sqrt()),
            b1_eh: numbers.many(bias * e * h, 1.0),
            b2_ed: numbers.many(bias * e * d, 1.0),
        };
        let dy_td = numbers.many(tokens * d, 1.0);
        Self { shape, tokens, offset_e, token_n, values, dy_td }
    }

    /// The same with all matrices and inputs cut to `bf16`: what the kernels round then is the
    /// hidden layer only, and no ReLU changes its side.
    pub(crate) fn rounded(&self) -> Self {
        let mut rounded = self.clone();
        let arrays = rounded.values.all_mut().map(|(_, values)| values);
        for x in arrays.into_iter().flatten().chain(&mut rounded.dy_td) {
            *x = f64::from(f32::from_bits((*x as f32).to_bits() & 0xffff_0000));
        }
        rounded
    }

    /// What the oracle says.
    pub(crate) fn output(&self) -> Vec<f64> {
        super::forward(&self.shape, &self.values, &self.offset_e, &self.token_n)
    }

    /// The magnitudes of what gradients are summed from, in the order of [`Values::all_mut`].
    pub(crate) fn terms(&self) -> [f64; 7] {
        let Self { shape, values, offset_e, token_n, dy_td, .. } = self;
        let mut terms = super::row_terms(shape, values, offset_e, token_n, dy_td);
        terms[1] = super::weight_terms(shape, values, offset_e, token_n, dy_td);
        terms
    }

    /// What the oracle says.
    pub(crate) fn gradients(&self) -> Values {
        let Self { shape, values, offset_e, token_n, dy_td, .. } = self;
        super::backward(shape, values, offset_e, token_n, dy_td)
    }
}

/// The arrays of a problem as kernels take them.
pub(crate) struct Narrow {
    pub(crate) x_td: Vec<f32>,
    pub(crate) weight_n: Vec<f32>,
    pub(crate) dy_td: Vec<f32>,
    w1_ehd: Vec<f32>,
    gate_ehd: Option<Vec<f32>>,
    w2_edh: Vec<f32>,
    bias: Option<[Vec<f32>; 2]>,
}

impl Narrow {
    pub(crate) fn of(problem: &Problem) -> Self {
        let values = &problem.values;
        let gated = problem.shape.activation.gated();
        let bias = [&values.b1_eh, &values.b2_ed].map(|bias| narrow(bias));
        Self {
            x_td: narrow(&values.x_td),
            weight_n: narrow(&values.weight_n),
            dy_td: narrow(&problem.dy_td),
            w1_ehd: narrow(&values.w1_ehd),
            gate_ehd: gated.then(|| narrow(&values.gate_ehd)),
            w2_edh: narrow(&values.w2_edh),
            bias: problem.shape.bias.then_some(bias),
        }
    }

    pub(crate) fn weights(&self) -> Weights<'_> {
        Weights {
            w1_ehd: &self.w1_ehd,
            gate_ehd: self.gate_ehd.as_deref(),
            w2_edh: &self.w2_edh,
            b1_eh: self.bias.as_ref().map(|bias| bias[0].as_slice()),
            b2_ed: self.bias.as_ref().map(|bias| bias[1].as_slice()),
        }
    }
}

/// Outputs and gradients of the kernels, in the order of [`Values::all_mut`].
#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) y_td: Vec<f32>,
    pub(crate) grads: [Vec<f32>; 7],
}

/// Packed weights of a problem.
pub(crate) fn packed(problem: &Problem, narrow: &Narrow, isa: Isa, dtype: Dtype) -> Packed {
    let mut packed = Packed::new(problem.shape, dtype, isa).unwrap();
    packed.repack(&narrow.weights()).unwrap();
    packed
}

/// What the kernels say, with the hidden layer saved or computed again. Gradients of weights start
/// from `start`.
pub(crate) fn answer(
    problem: &Problem,
    isa: Isa,
    dtype: Dtype,
    save: bool,
    start: f32,
    workspace: &mut Workspace,
) -> Result<Answer, KernelError> {
    let narrow = Narrow::of(problem);
    let packed = packed(problem, &narrow, isa, dtype);
    let plan = Plan::new(problem.tokens, &problem.offset_e, &problem.token_n, &narrow.weight_n)?;
    let mut saved = save.then(Saved::new);
    // Whatever stood there must not matter.
    let mut y_td = vec![f32::NAN; narrow.x_td.len()];
    forward(&packed, &plan, &narrow.x_td, &mut y_td, saved.as_mut(), workspace)?;
    let mut values = problem.values.clone();
    let mut grads = values.all_mut().map(|(_, values)| vec![start; values.len()]);
    let [dx_td, dweight_n, w1_ehd, gate_ehd, w2_edh, b1_eh, b2_ed] = &mut grads;
    dx_td.fill(f32::NAN);
    dweight_n.fill(f32::NAN);
    let bias = problem.shape.bias;
    let mut output = BackwardOutput {
        dx_td,
        dweight_n,
        weights: WeightGrads {
            w1_ehd,
            gate_ehd: problem.shape.activation.gated().then_some(gate_ehd),
            w2_edh,
            b1_eh: bias.then_some(b1_eh),
            b2_ed: bias.then_some(b2_ed),
        },
    };
    let weights = narrow.weights();
    let input =
        BackwardInput { weights: &weights, plan: &plan, x_td: &narrow.x_td, dy_td: &narrow.dy_td };
    backward(&packed, input, &mut output, saved.as_mut(), workspace)?;
    Ok(Answer { y_td, grads })
}

/// Any kind of expert.
pub(crate) fn activations() -> impl Strategy<Value = Activation> {
    prop::sample::select(Activation::ALL.to_vec())
}

/// Problems of up to these sizes: odd ones, one row, no rows, one expert, every expert.
pub(crate) fn problems(
    most_experts: usize,
    most_width: usize,
    most_hidden: usize,
    most_tokens: usize,
) -> impl Strategy<Value = Problem> {
    let sizes = (1..=most_experts, 1..=most_width, 1..=most_hidden, 1..=most_tokens);
    let share = prop_oneof![Just(255_u8), any::<u8>(), Just(0)];
    (sizes, activations(), any::<bool>(), share, any::<u64>()).prop_map(
        |((experts, width, hidden, tokens), activation, bias, share, seed)| {
            let shape = Shape { experts, width, hidden, activation, bias };
            Problem::new(shape, tokens, share, seed as usize % (2 * experts), seed)
        },
    )
}
