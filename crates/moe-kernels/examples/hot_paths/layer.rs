//! What kernels are measured on: a layer of SwiGLU experts with weights, tokens and choices drawn from
//! a seed.
//!
//! Axis letters: `t` tokens, `d` width, `h` hidden width, `e` experts, `k` choices, `n` routed rows.

use moe_kernels::{
    Activation, BackwardInput, BackwardOutput, Dtype, Groups, Isa, KernelError, Packed, Plan,
    Saved, Shape, WeightGrads, Weights, Workspace, backward, decode, forward, top_k,
};

/// Sizes of a layer and of what it is given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) tokens: usize,
    pub(crate) width: usize,
    pub(crate) hidden: usize,
    pub(crate) experts: usize,
    pub(crate) choices: usize,
}

/// Reproducible numbers in -1..1, by the mixing function of SplitMix64.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let number = |at: u64| {
        let mut z = (seed << 32 | at).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count as u64).map(number).collect()
}

/// Scores, and the experts that they choose.
#[derive(Debug)]
pub(crate) struct Choices {
    size: Size,
    score_te: Vec<f32>,
    expert_tk: Vec<u32>,
    score_tk: Vec<f32>,
    groups: Groups,
}

impl Choices {
    /// # Errors
    /// If the sizes do not fit each other.
    pub(crate) fn new(size: Size) -> Result<Self, KernelError> {
        let rows = size.tokens * size.choices;
        let mut choices = Self {
            size,
            score_te: noise(size.tokens * size.experts, 1),
            expert_tk: vec![0; rows],
            score_tk: vec![0.0; rows],
            groups: Groups::default(),
        };
        choices.select()?;
        choices.sort()?;
        Ok(choices)
    }

    /// One-pass top-k over `[t, e]`.
    pub(crate) fn select(&mut self) -> Result<(), KernelError> {
        let Self { size, score_te, expert_tk, score_tk, .. } = self;
        top_k(score_te, size.experts, size.choices, expert_tk, score_tk)
    }

    /// The stable counting sort of all choices.
    pub(crate) fn sort(&mut self) -> Result<(), KernelError> {
        self.groups.sort(self.size.experts, &self.expert_tk)
    }
}

/// A layer, what goes in and what comes out.
#[derive(Debug)]
pub(crate) struct Layer {
    packed: Packed,
    w1_ehd: Vec<f32>,
    gate_ehd: Vec<f32>,
    w2_edh: Vec<f32>,
    grads: [Vec<f32>; 3],
    choices: Choices,
    token_n: Vec<u32>,
    weight_n: Vec<f32>,
    x_td: Vec<f32>,
    y_td: Vec<f32>,
    dweight_n: Vec<f32>,
    saved: Saved,
    workspace: Workspace,
}

impl Layer {
    /// # Errors
    /// If the sizes do not fit each other, or memory is short.
    pub(crate) fn new(size: Size, isa: Isa, dtype: Dtype) -> Result<Self, KernelError> {
        let Size { tokens, width, hidden, experts, .. } = size;
        let shape = Shape { experts, width, hidden, activation: Activation::Swiglu, bias: false };
        let matrix = experts * hidden * width;
        let scaled = |seed| noise(matrix, seed).iter().map(|x| x / (width as f32).sqrt()).collect();
        let choices = Choices::new(size)?;
        let items = choices.groups.items();
        let mut layer = Self {
            packed: Packed::new(shape, dtype, isa)?,
            w1_ehd: scaled(2),
            gate_ehd: scaled(3),
            w2_edh: scaled(4),
            grads: std::array::from_fn(|_| vec![0.0; matrix]),
            token_n: items.iter().map(|item| item / size.choices as u32).collect(),
            weight_n: items.iter().map(|&item| choices.score_tk[item as usize]).collect(),
            dweight_n: vec![0.0; items.len()],
            choices,
            x_td: noise(tokens * width, 5),
            y_td: vec![0.0; tokens * width],
            saved: Saved::new(),
            workspace: Workspace::new(),
        };
        layer.repack()?;
        Ok(layer)
    }

    /// Packs the weights, as after an optimiser step.
    pub(crate) fn repack(&mut self) -> Result<(), KernelError> {
        let Self { packed, w1_ehd, gate_ehd, w2_edh, .. } = self;
        packed.repack(&weights(w1_ehd, gate_ehd, w2_edh))
    }

    /// A forward pass that keeps nothing.
    pub(crate) fn forward(&mut self) -> Result<(), KernelError> {
        let Self { packed, choices, token_n, weight_n, x_td, y_td, workspace, .. } = self;
        let plan = Plan::new(choices.size.tokens, choices.groups.offset(), token_n, weight_n)?;
        forward(packed, &plan, x_td, y_td, None, workspace)
    }

    /// A forward pass that keeps the hidden layer, and the backward pass.
    pub(crate) fn forward_backward(&mut self) -> Result<(), KernelError> {
        let Self { packed, w1_ehd, gate_ehd, w2_edh, choices, x_td, workspace, .. } = self;
        let (tokens, offset_e) = (choices.size.tokens, choices.groups.offset());
        let plan = &Plan::new(tokens, offset_e, &self.token_n, &self.weight_n)?;
        forward(packed, plan, x_td, &mut self.y_td, Some(&mut self.saved), workspace)?;
        let [w1, gate, w2] = &mut self.grads;
        let grads =
            WeightGrads { w1_ehd: w1, gate_ehd: Some(gate), w2_edh: w2, b1_eh: None, b2_ed: None };
        let (dx_td, dweight_n) = (&mut self.y_td, &mut self.dweight_n);
        let mut output = BackwardOutput { dx_td, dweight_n, weights: grads };
        // The inputs serve as the gradient of the outputs too: any numbers do.
        let weights = &weights(w1_ehd, gate_ehd, w2_edh);
        let input = BackwardInput { weights, plan, x_td, dy_td: x_td };
        backward(packed, input, &mut output, Some(&mut self.saved), workspace)
    }

    /// All tokens by the decoding path.
    pub(crate) fn decode(&mut self) -> Result<(), KernelError> {
        let Self { packed, choices, x_td, y_td, workspace, .. } = self;
        decode(packed, x_td, &choices.expert_tk, &choices.score_tk, y_td, workspace)
    }
}

fn weights<'a>(w1_ehd: &'a [f32], gate_ehd: &'a [f32], w2_edh: &'a [f32]) -> Weights<'a> {
    Weights { w1_ehd, gate_ehd: Some(gate_ehd), w2_edh, b1_eh: None, b2_ed: None }
}
