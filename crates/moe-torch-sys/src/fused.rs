//! The fused experts of [`moe_kernels`] as one step of the autograd graph.
//!
//! Axis letters: `t` tokens, `n` routed rows sorted by expert, `d` width, `h` hidden width, `e`
//! experts.
#![expect(unsafe_code, reason = "kernels write into the memory of fresh tensors")]

use crate::ShimError;
use crate::graph::{Grads, attach, own_grad, wants_graph};
use crate::host::{values, values_mut, whole_numbers};
use crate::threads::on_libtorch;
use moe_kernels::{
    BackwardInput, BackwardOutput, Dtype, Isa, KernelError, Packed, Plan, Saved, Shape,
    WeightGrads, Weights, Workspace,
};
use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard};
use tch::{Kind, Tensor};

/// Why the fused experts did not run.
#[derive(Debug, thiserror::Error)]
pub enum FusedError {
    /// An argument of the kernels.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// libtorch.
    #[error(transparent)]
    Torch(#[from] ShimError),
}

/// The weights of a bank, `f32`.
#[derive(Debug)]
pub struct BankTensors<'a> {
    /// Up matrices, `[e, h, d]`.
    pub w1_ehd: &'a Tensor,
    /// Gate matrices of gated experts, `[e, h, d]`.
    pub gate_ehd: Option<&'a Tensor>,
    /// Down matrices, `[e, d, h]`.
    pub w2_edh: &'a Tensor,
    /// Biases of the hidden layer, `[e, h]`.
    pub b1_eh: Option<&'a Tensor>,
    /// Biases of the output, `[e, d]`.
    pub b2_ed: Option<&'a Tensor>,
}

impl<'a> BankTensors<'a> {
    /// All of them, in the order of the fields.
    fn all(&self) -> Vec<&'a Tensor> {
        let optional = [self.gate_ehd, Some(self.w2_edh), self.b1_eh, self.b2_ed];
        std::iter::once(self.w1_ehd).chain(optional.into_iter().flatten()).collect()
    }
}

/// The rows of all experts.
#[derive(Debug)]
pub struct Rows<'a> {
    /// Token of each row, `[n]`, int64.
    pub token_n: &'a Tensor,
    /// Weight of each row, `[n]`.
    pub weight_n: &'a Tensor,
    /// Rows of each expert, `[e]`, int64.
    pub load_e: &'a Tensor,
}

/// The same on the host, as kernels read it.
#[derive(Debug)]
struct HostRows {
    offset_e: Vec<usize>,
    token_n: Vec<u32>,
    weight_n: Tensor,
}

impl HostRows {
    fn new(rows: &Rows<'_>) -> Self {
        let loads = rows.load_e.contiguous();
        let ends = whole_numbers(&loads).iter().scan(0usize, |end, load| {
            *end += *load as usize;
            Some(*end)
        });
        // A token that is no `u32` is out of every range, and refused as such.
        let tokens = rows.token_n.contiguous();
        let token = |t: &i64| u32::try_from(*t).unwrap_or(u32::MAX);
        Self {
            offset_e: std::iter::once(0).chain(ends).collect(),
            token_n: whole_numbers(&tokens).iter().map(token).collect(),
            weight_n: rows.weight_n.detach().to_kind(Kind::Float).contiguous(),
        }
    }

    /// Experts and weights by token, `[t, k]`, if every token has equally many rows.
    fn by_token(&self, tokens: usize) -> Option<(Vec<u32>, Vec<f32>)> {
        let k = self.token_n.len() / tokens.max(1);
        let (mut experts, mut weights) = (vec![Vec::new(); tokens], vec![Vec::new(); tokens]);
        for (e, span) in self.offset_e.windows(2).enumerate() {
            for row in span[0]..span[1] {
                let token = self.token_n[row] as usize;
                experts.get_mut(token)?.push(u32::try_from(e).ok()?);
                weights[token].push(values(&self.weight_n)[row]);
            }
        }
        let even = k > 0 && experts.iter().all(|chosen| chosen.len() == k);
        even.then(|| (experts.concat(), weights.concat()))
    }

    fn plan(&self, tokens: usize) -> Result<Plan<'_>, KernelError> {
        Plan::new(tokens, &self.offset_e, &self.token_n, values(&self.weight_n))
    }
}

/// Packed weights of a bank, kept until the weights change.
#[derive(Debug, Clone)]
pub struct FusedBank {
    state: Arc<Mutex<State>>,
    /// Whether the hidden layer is computed again in the backward pass.
    recompute: bool,
}

#[derive(Debug)]
struct State {
    packed: Packed,
    /// The tensors that are packed: where they lie, and how often they were written.
    seen: Vec<(usize, i64)>,
    /// Memory of saved activations between steps.
    spare: Vec<Saved>,
}

thread_local! {
    /// One workspace serves all layers of a thread, one after the other.
    static WORKSPACE: RefCell<Workspace> = RefCell::new(Workspace::new());
}

impl FusedBank {
    /// Memory for a bank of this shape, multiplied in `dtype`.
    ///
    /// # Errors
    /// An axis of no length, or no memory.
    pub fn new(shape: Shape, dtype: Dtype) -> Result<Self, KernelError> {
        let packed = Packed::new(shape, dtype, Isa::detect())?;
        let state = State { packed, seen: Vec::new(), spare: Vec::new() };
        Ok(Self { state: Arc::new(Mutex::new(state)), recompute: false })
    }

    /// The same bank, whose backward pass computes the hidden layer again (`true`) or finds it saved by
    /// the forward pass. The gradients are the same to the bit.
    #[must_use]
    pub fn recomputing(self, recompute: bool) -> Self {
        Self { recompute, ..self }
    }

    /// All experts on their rows, combined: `x_td` `[t, d]` to `[t, d]` of the same kind, on the graph of
    /// tokens, row weights and expert weights.
    ///
    /// Gradients of expert weights that are leaves of the graph are added to their `grad` in place.
    ///
    /// # Errors
    /// See [`FusedError`].
    ///
    /// # Panics
    /// If weights are not contiguous `f32` on the CPU.
    pub fn run(
        &self,
        x_td: &Tensor,
        rows: &Rows<'_>,
        weights: &BankTensors<'_>,
    ) -> Result<Tensor, FusedError> {
        let mut inputs = vec![x_td, rows.weight_n];
        inputs.extend(weights.all());
        let graph = wants_graph(&inputs);
        let step = Step::new(x_td, rows, weights);
        let save = graph && !self.recompute;
        let mut saved = save.then(|| self.lock().spare.pop().unwrap_or_default());
        let y_td = on_libtorch(|| self.forward(&step, saved.as_mut(), graph))?;
        let y_td = y_td.to_kind(x_td.kind());
        if !graph {
            return Ok(y_td);
        }
        let bank = self.clone();
        let attached = attach(&y_td, &inputs, move |dy_td| {
            let grads = on_libtorch(|| bank.backward(&step, dy_td, saved.as_mut()));
            bank.lock().spare.extend(saved.take());
            grads
        })?;
        Ok(attached)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What a panicked holder left is rewritten by the next packing.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn forward(
        &self,
        step: &Step,
        saved: Option<&mut Saved>,
        graph: bool,
    ) -> Result<Tensor, KernelError> {
        let mut state = self.lock();
        state.pack(step)?;
        let mut y_td = step.x_td.empty_like();
        // SAFETY: `y_td` was made above.
        let y = unsafe { values_mut(&mut y_td) };
        // A few tokens wait for weights, not for products.
        let few = step.tokens() <= moe_kernels::MOST_TOKENS && !graph;
        let by_token = if few { step.rows.by_token(step.tokens()) } else { None };
        if let Some((experts, weights)) = by_token {
            WORKSPACE.with_borrow_mut(|workspace| {
                let x = values(&step.x_td);
                moe_kernels::decode(&state.packed, x, &experts, &weights, y, workspace)
            })?;
            return Ok(y_td);
        }
        let plan = step.rows.plan(step.tokens())?;
        WORKSPACE.with_borrow_mut(|workspace| {
            moe_kernels::forward(&state.packed, &plan, values(&step.x_td), y, saved, workspace)
        })?;
        Ok(y_td)
    }

    fn backward(&self, step: &Step, dy_td: &Tensor, saved: Option<&mut Saved>) -> Grads {
        let state = self.lock();
        if state.seen != step.versions() {
            return Err("expert weights were written between forward and backward".into());
        }
        let dy_td = dy_td.to_kind(Kind::Float).contiguous();
        let mut dx_td = step.x_td.empty_like();
        let mut dweight_n = step.rows.weight_n.empty_like();
        let grads: Result<Vec<Grad>, _> = step.weights.iter().map(Grad::of).collect();
        let mut grads = grads.map_err(|e| e.to_string())?;
        let plan = step.rows.plan(step.tokens()).map_err(|e| e.to_string())?;
        let input = BackwardInput {
            weights: &step.weights(),
            plan: &plan,
            x_td: values(&step.x_td),
            dy_td: values(&dy_td),
        };
        let result = WORKSPACE.with_borrow_mut(|workspace| {
            // SAFETY: all were made above, or are gradients that nobody reads during a backward.
            let (dx_td, dweight_n) =
                unsafe { (values_mut(&mut dx_td), values_mut(&mut dweight_n)) };
            let weights = weight_grads(&step.has, &mut grads);
            let mut output = BackwardOutput { dx_td, dweight_n, weights };
            moe_kernels::backward(&state.packed, input, &mut output, saved, workspace)
        });
        result.map_err(|e| e.to_string())?;
        let own = [dx_td.to_kind(step.kinds[0]), dweight_n.to_kind(step.kinds[1])];
        Ok(own.into_iter().map(Some).chain(grads.into_iter().map(Grad::fresh)).collect())
    }
}

impl State {
    /// Packs the step's weights unless they are packed already.
    fn pack(&mut self, step: &Step) -> Result<(), KernelError> {
        let versions = step.versions();
        if self.seen != versions {
            self.seen.clear();
            self.packed.repack(&step.weights())?;
            self.seen = versions;
        }
        Ok(())
    }
}

/// What forward and backward of one call share.
#[derive(Debug)]
struct Step {
    x_td: Tensor,
    kinds: [Kind; 2],
    rows: HostRows,
    weights: Vec<Tensor>,
    has: Has,
}

/// Which of the optional weights there are.
#[derive(Debug, Clone, Copy)]
struct Has {
    gate: bool,
    b1: bool,
    b2: bool,
}

impl Step {
    fn new(x_td: &Tensor, rows: &Rows<'_>, weights: &BankTensors<'_>) -> Self {
        Self {
            x_td: x_td.detach().to_kind(Kind::Float).contiguous(),
            kinds: [x_td.kind(), rows.weight_n.kind()],
            rows: HostRows::new(rows),
            weights: weights.all().into_iter().map(Tensor::shallow_clone).collect(),
            has: Has {
                gate: weights.gate_ehd.is_some(),
                b1: weights.b1_eh.is_some(),
                b2: weights.b2_ed.is_some(),
            },
        }
    }

    fn tokens(&self) -> usize {
        self.x_td.size()[0] as usize
    }

    fn versions(&self) -> Vec<(usize, i64)> {
        self.weights.iter().map(|w| (w.data_ptr().addr(), w.internal_version())).collect()
    }

    fn weights(&self) -> Weights<'_> {
        let mut all = self.weights.iter().map(values);
        let mut next = |there: bool| if there { all.next() } else { None };
        let (w1_ehd, gate_ehd) = (next(true), next(self.has.gate));
        let (w2_edh, b1_eh, b2_ed) = (next(true), next(self.has.b1), next(self.has.b2));
        let there = "both matrices are there";
        Weights {
            w1_ehd: w1_ehd.expect(there),
            gate_ehd,
            w2_edh: w2_edh.expect(there),
            b1_eh,
            b2_ed,
        }
    }
}

/// Where the gradient of one weight is added up.
#[derive(Debug)]
struct Grad {
    tensor: Tensor,
    /// Whether it is the parameter's own `grad`, so that autograd has nothing left to add.
    own: bool,
}

impl Grad {
    fn of(weight: &Tensor) -> Result<Self, ShimError> {
        if weight.is_leaf() && weight.requires_grad() {
            let grad = own_grad(weight)?;
            if grad.kind() == Kind::Float && grad.is_contiguous() {
                return Ok(Self { tensor: grad, own: true });
            }
        }
        Ok(Self { tensor: weight.detach().zeros_like(), own: false })
    }

    fn fresh(self) -> Option<Tensor> {
        (!self.own).then_some(self.tensor)
    }
}

fn weight_grads<'a>(has: &Has, grads: &'a mut [Grad]) -> WeightGrads<'a> {
    // SAFETY: every gradient is a storage of its own, and autograd runs one node at a time.
    let mut all = grads.iter_mut().map(|grad| unsafe { values_mut(&mut grad.tensor) });
    let mut next = |there: bool| if there { all.next() } else { None };
    let (w1_ehd, gate_ehd) = (next(true), next(has.gate));
    let (w2_edh, b1_eh, b2_ed) = (next(true), next(has.b1), next(has.b2));
    let there = "both matrices are there";
    WeightGrads {
        w1_ehd: w1_ehd.expect(there),
        gate_ehd,
        w2_edh: w2_edh.expect(there),
        b1_eh,
        b2_ed,
    }
}
