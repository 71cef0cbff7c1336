//! The kernels with named arguments: who launches what in which shape.
//!
//! All matrices are contiguous and row-major, integers are `int32` unless said otherwise, weights,
//! gates and scores are `f32`. Axis letters as in the crate's documentation.
#![expect(unsafe_code, reason = "kernels read and write what addresses point to")]

use crate::launch::Argument;
use crate::{Address, CudaError, Launch, Launcher, Stream};

/// Element type of tokens and hidden layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits with the exponent of 32.
    Bf16,
}

impl Dtype {
    fn of<T>(self, f32: T, bf16: T) -> T {
        match self {
            Self::F32 => f32,
            Self::Bf16 => bf16,
        }
    }
}

/// Nonlinearity of an expert, numbered as in `activation.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `max(0, x)`, one matrix.
    Relu = 0,
    /// GELU with the error function, one matrix.
    Gelu = 1,
    /// SiLU gate, two matrices.
    Swiglu = 2,
    /// GELU gate, two matrices.
    Geglu = 3,
}

/// How logits become scores and gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Score {
    /// The sigmoid of each logit instead of the softmax over experts.
    pub sigmoid: bool,
    /// Gates of a token sum to one.
    pub renormalise: bool,
}

/// Sizes of a routed batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteShape {
    /// Groups, `g`.
    pub groups: usize,
    /// Tokens of a group, `t`.
    pub tokens: usize,
    /// Experts, `e`.
    pub experts: usize,
    /// Choices of a token, `k`.
    pub k: usize,
}

impl RouteShape {
    /// Chunks of a group, `c`.
    pub fn chunks(&self) -> usize {
        self.tokens.div_ceil(CHUNK)
    }

    /// Queues, `q`.
    pub fn queues(&self) -> usize {
        self.experts * self.groups
    }

    /// Choices of all tokens, which no number of rows exceeds.
    pub fn choices(&self) -> usize {
        self.groups * self.tokens * self.k
    }

    fn check(&self) -> Result<(), CudaError> {
        limit("number of choices", self.choices(), i32::MAX as usize)?;
        limit("groups", self.groups, 65_535)?;
        limit("queues", self.queues(), i32::MAX as usize)?;
        limit("experts", self.experts, SHARED_INTS / (1 + WARPS as usize))?;
        limit("choices of a token", self.k, (SHARED_INTS / CHUNK).min(self.experts))
    }
}

/// Tokens of a chunk; as in `prelude.cuh`.
pub const CHUNK: usize = 32;

/// What every device lets the threads of a block share, in `int32`.
const SHARED_INTS: usize = 48 * 1024 / 4;
const WARPS: u32 = 8;
const THREADS: u32 = 32 * WARPS;
/// Blocks of a loop over rows: enough for any device, and each takes several turns.
const MOST_BLOCKS: usize = 16_384;

/// [`Kernels::route`].
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// In, `[g, t, e]`, of the kernel's element type.
    pub logit_gte: Address,
    /// Out: scores of all experts, `[g, t, e]`.
    pub score_gte: Address,
    /// Out: chosen experts, best first, `[g, t, k]`.
    pub expert_gtk: Address,
    /// Out: their gates, `[g, t, k]`.
    pub gate_gtk: Address,
    /// Out: choices of each expert and group in each chunk, `[e * g, c]`.
    pub count_qc: Address,
}

/// [`Kernels::route_backward`]; `t` counts over all groups.
#[derive(Debug, Clone, Copy)]
pub struct RouteBackward {
    /// As [`Route`] left them, `[t, e]`.
    pub score_te: Address,
    /// Likewise, `[t, k]`.
    pub expert_tk: Address,
    /// Likewise, `[t, k]`.
    pub gate_tk: Address,
    /// Gradient of the gates, `[t, k]`.
    pub dgate_tk: Address,
    /// Gradient of the scores, `[t, e]`, or null.
    pub dscore_te: Address,
    /// Out: gradient of the logits, `[t, e]`, of the kernel's element type.
    pub dlogit_te: Address,
}

/// [`Kernels::plan`].
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Chosen experts, `[g, t, k]`; -1 queues nowhere.
    pub expert_gtk: Address,
    /// Their weights, `[g, t, k]`.
    pub gate_gtk: Address,
    /// Room for counts, `[e * g, c]`; holds them already if `counted`.
    pub count_qc: Address,
    /// Whether [`Route`] has counted.
    pub counted: bool,
    /// Room for two numbers per queue, `[2, e * g]`.
    pub room_2q: Address,
    /// Out: where the rows of each expert end, `[e]`; the last is the number of rows.
    pub end_e: Address,
    /// Out: rows of each expert, `[e]`, int64.
    pub load_e: Address,
    /// Out: token of each row, counted over all groups, `[g * t * k]`; undefined past the last row.
    pub token_n: Address,
    /// Out: weight of each row, likewise.
    pub weight_n: Address,
    /// Out: row of each choice, `[g, t, k]`; -1 without.
    pub row_gtk: Address,
    /// Places of each expert in each group.
    pub capacity: Option<usize>,
}

/// A hidden layer of `most_rows` rows at most.
#[derive(Debug, Clone, Copy)]
pub struct Hidden {
    /// Nonlinearity.
    pub activation: Activation,
    /// First product with the gate matrices, `[n, h]`; null without.
    pub gate_nh: Address,
    /// First product with the up matrices, `[n, h]`.
    pub up_nh: Address,
    /// The number of rows, one `int32`.
    pub rows: Address,
    /// What it cannot exceed.
    pub most_rows: usize,
    /// `h`.
    pub hidden: usize,
}

/// [`Kernels::activation_backward`].
#[derive(Debug, Clone, Copy)]
pub struct HiddenBackward {
    /// Gradient of the activated layer without the rows' weights, `[n, h]`.
    pub da_nh: Address,
    /// Weights of the rows, `[n]`.
    pub weight_n: Address,
    /// Out: gradient of the gate product, weighted, `[n, h]`; null without.
    pub dgate_nh: Address,
    /// Out: gradient of the up product, weighted, `[n, h]`.
    pub dup_nh: Address,
    /// Out: the activated layer, weighted, `[n, h]`.
    pub scaled_nh: Address,
    /// Out: gradient of the rows' weights, `[n]`.
    pub dweight_n: Address,
}

/// [`Kernels::gather_rows`].
#[derive(Debug, Clone, Copy)]
pub struct GatherRows {
    /// `[t, d]`.
    pub x_td: Address,
    /// Token of each row, `[n]`.
    pub token_n: Address,
    /// Out, `[n, d]`.
    pub x_nd: Address,
    /// The number of rows, one `int32`.
    pub rows: Address,
    /// What it cannot exceed.
    pub most_rows: usize,
    /// `d`.
    pub width: usize,
}

/// [`Kernels::gather_sum`].
#[derive(Debug, Clone, Copy)]
pub struct GatherSum {
    /// `[n, d]`.
    pub a_nd: Address,
    /// Added to it, `[n, d]`; null without.
    pub b_nd: Address,
    /// Weights of the rows, `[n]`; null: each counts once.
    pub weight_n: Address,
    /// Rows of the tokens, one token after the other; -1 is none.
    pub row_i: Address,
    /// Where each token's rows start in `row_i`, `[t + 1]`, int64; null: every token has `k`.
    pub offset_t: Address,
    /// Rows of each token without `offset_t`.
    pub k: usize,
    /// Out, `[t, d]`.
    pub out_td: Address,
    /// `t`.
    pub tokens: usize,
    /// `d`.
    pub width: usize,
}

/// Kernels on one stream.
#[derive(Debug, Clone, Copy)]
pub struct Kernels<'a> {
    /// Who runs them.
    pub launcher: &'a dyn Launcher,
    /// Where.
    pub stream: Stream,
}

/// Blocks, threads and shared numbers of a launch.
struct Form {
    grid: [usize; 2],
    block: u32,
    shared_ints: usize,
}

impl Form {
    /// A loop over `rows` in which every warp takes one.
    fn by_warp(rows: usize) -> Self {
        let blocks = rows.div_ceil(WARPS as usize).clamp(1, MOST_BLOCKS);
        Self { grid: [blocks, 1], block: THREADS, shared_ints: 0 }
    }

    /// One block per chunk of each group.
    fn by_chunk(shape: &RouteShape, shared_ints: usize) -> Self {
        Self { grid: [shape.chunks(), shape.groups], block: THREADS, shared_ints }
    }
}

impl Kernels<'_> {
    /// Scores, the `k` best experts of each token, their gates, and choices by chunk.
    ///
    /// Ties go to the lower index; NaN logits follow the total order.
    ///
    /// # Safety
    /// Addresses of tensors as [`Route`] says, which live until the kernel has run.
    ///
    /// # Errors
    /// A size beyond the kernels, or the driver's refusal.
    pub unsafe fn route(
        &self,
        dtype: Dtype,
        shape: &RouteShape,
        score: Score,
        it: &Route,
    ) -> Result<(), CudaError> {
        shape.check()?;
        let form = Form::by_chunk(shape, shape.experts * (1 + WARPS as usize));
        let kernel = dtype.of("route_f32", "route_bf16");
        let [tokens, experts, k] = [shape.tokens, shape.experts, shape.k].map(int);
        let out = [it.logit_gte, it.score_gte, it.expert_gtk, it.gate_gtk, it.count_qc];
        let [a, b, c, d, e] = out.map(Argument::from);
        let numbers = [tokens, experts, k, score.sigmoid.into(), score.renormalise.into()];
        let [f, g, h, i, j] = numbers.map(Argument::from);
        // SAFETY: these are the arguments of the kernel; the rest is this function's contract.
        unsafe { self.launch(kernel, form, [a, b, c, d, e, f, g, h, i, j]) }
    }

    /// Gradient of the logits.
    ///
    /// # Safety
    /// As [`Kernels::route`].
    ///
    /// # Errors
    /// As [`Kernels::route`].
    pub unsafe fn route_backward(
        &self,
        dtype: Dtype,
        shape: &RouteShape,
        score: Score,
        it: &RouteBackward,
    ) -> Result<(), CudaError> {
        shape.check()?;
        let tokens = shape.groups * shape.tokens;
        let form = Form { shared_ints: shape.experts * WARPS as usize, ..Form::by_warp(tokens) };
        let kernel = dtype.of("route_backward_f32", "route_backward_bf16");
        let addresses =
            [it.score_te, it.expert_tk, it.gate_tk, it.dgate_tk, it.dscore_te, it.dlogit_te];
        let [a, b, c, d, e, f] = addresses.map(Argument::from);
        let [t, experts, k] = [tokens, shape.experts, shape.k].map(int);
        let numbers = [t, experts, k, score.sigmoid.into(), score.renormalise.into()];
        let [g, h, i, j, l] = numbers.map(Argument::from);
        // SAFETY: as in `route`.
        unsafe { self.launch(kernel, form, [a, b, c, d, e, f, g, h, i, j, l]) }
    }

    /// Choices to rows sorted by expert, then by group, token and choice.
    ///
    /// # Safety
    /// As [`Kernels::route`], with [`Plan`].
    ///
    /// # Errors
    /// As [`Kernels::route`].
    pub unsafe fn plan(&self, shape: &RouteShape, it: &Plan) -> Result<(), CudaError> {
        shape.check()?;
        let capacity = int(it.capacity.unwrap_or(usize::MAX).min(i32::MAX as usize));
        let start_q = Address(it.room_2q.0 + 4 * shape.queues() as u64);
        let numbers = [shape.tokens, shape.experts, shape.k, shape.chunks(), shape.groups];
        let [tokens, experts, k, chunks, groups] = numbers.map(|n| Argument::from(int(n)));
        let capacity = Argument::from(capacity);
        let [expert, count] = [it.expert_gtk, it.count_qc].map(Argument::from);
        let [length, start] = [it.room_2q, start_q].map(Argument::from);
        // SAFETY: these are the arguments of the kernels; the rest is this function's contract.
        unsafe {
            if !it.counted {
                let form = Form::by_chunk(shape, shape.experts);
                self.launch("count_choices", form, [expert, count, tokens, experts, k])?;
            }
            let form = Form { grid: [shape.queues(), 1], ..one_block() };
            self.launch("prefix_chunks", form, [count, length, chunks])?;
            let ends = [it.end_e, it.load_e].map(Argument::from);
            let arguments = [length, start, ends[0], ends[1], experts, groups, capacity];
            self.launch("prefix_queues", one_block(), arguments)?;
            let [gate, token, weight, row] =
                [it.gate_gtk, it.token_n, it.weight_n, it.row_gtk].map(Argument::from);
            let form = Form::by_chunk(shape, CHUNK * shape.k);
            let arguments = [expert, gate, count, start, token, weight, row, tokens, k, capacity];
            self.launch("scatter_choices", form, arguments)
        }
    }

    /// The activated hidden layer `a_nh`, `[n, h]`.
    ///
    /// # Safety
    /// As [`Kernels::route`], with [`Hidden`].
    ///
    /// # Errors
    /// As [`Kernels::route`].
    pub unsafe fn activation_forward(
        &self,
        dtype: Dtype,
        it: &Hidden,
        a_nh: Address,
    ) -> Result<(), CudaError> {
        aligned(&[("gate", it.gate_nh), ("up", it.up_nh), ("the hidden layer", a_nh)])?;
        let packs = (it.most_rows * it.hidden).div_ceil(dtype.of(4, 8));
        let blocks = packs.div_ceil(THREADS as usize).clamp(1, MOST_BLOCKS);
        let form = Form { grid: [blocks, 1], block: THREADS, shared_ints: 0 };
        let kernel = dtype.of("activation_forward_f32", "activation_forward_bf16");
        let [a, b, c, d] = [it.gate_nh, it.up_nh, a_nh, it.rows].map(Argument::from);
        let [e, f] = [int(it.hidden), it.activation as i32].map(Argument::from);
        // SAFETY: as in `route`.
        unsafe { self.launch(kernel, form, [a, b, c, d, e, f]) }
    }

    /// From the gradient of the activated layer to those of the products and of the rows' weights.
    ///
    /// # Safety
    /// As [`Kernels::route`], with [`Hidden`] and [`HiddenBackward`].
    ///
    /// # Errors
    /// As [`Kernels::route`].
    pub unsafe fn activation_backward(
        &self,
        dtype: Dtype,
        it: &Hidden,
        down: &HiddenBackward,
    ) -> Result<(), CudaError> {
        aligned(&[("gate", it.gate_nh), ("up", it.up_nh), ("its gradient", down.da_nh)])?;
        aligned(&[("dgate", down.dgate_nh), ("dup", down.dup_nh), ("scaled", down.scaled_nh)])?;
        let kernel = dtype.of("activation_backward_f32", "activation_backward_bf16");
        let [a, b, c, d] = [it.gate_nh, it.up_nh, down.da_nh, down.weight_n].map(Argument::from);
        let [e, f, g, h] =
            [down.dgate_nh, down.dup_nh, down.scaled_nh, down.dweight_n].map(Argument::from);
        let [j, l] = [int(it.hidden), it.activation as i32].map(Argument::from);
        let arguments = [a, b, c, d, e, f, g, h, it.rows.into(), j, l];
        // SAFETY: as in `route`.
        unsafe { self.launch(kernel, Form::by_warp(it.most_rows), arguments) }
    }

    /// The token of every row, `x_nd[n] = x_td[token_n[n]]`.
    ///
    /// # Safety
    /// As [`Kernels::route`], with [`GatherRows`].
    ///
    /// # Errors
    /// As [`Kernels::route`].
    pub unsafe fn gather_rows(&self, dtype: Dtype, it: &GatherRows) -> Result<(), CudaError> {
        aligned(&[("tokens", it.x_td), ("rows", it.x_nd)])?;
        let kernel = dtype.of("gather_rows_f32", "gather_rows_bf16");
        let [a, b, c, d] = [it.x_td, it.token_n, it.x_nd, it.rows].map(Argument::from);
        let arguments = [a, b, c, d, int(it.width).into()];
        // SAFETY: as in `route`.
        unsafe { self.launch(kernel, Form::by_warp(it.most_rows), arguments) }
    }

    /// The weighted sum of each token's rows, in their order.
    ///
    /// # Safety
    /// As [`Kernels::route`], with [`GatherSum`].
    ///
    /// # Errors
    /// As [`Kernels::route`].
    pub unsafe fn gather_sum(&self, dtype: Dtype, it: &GatherSum) -> Result<(), CudaError> {
        aligned(&[("rows", it.a_nd), ("further rows", it.b_nd), ("tokens", it.out_td)])?;
        let kernel = dtype.of("gather_sum_f32", "gather_sum_bf16");
        let blocks = it.tokens.clamp(1, i32::MAX as usize);
        let form = Form { grid: [blocks, 1], block: THREADS, shared_ints: 0 };
        let [a, b, c, d, e] =
            [it.a_nd, it.b_nd, it.weight_n, it.row_i, it.offset_t].map(Argument::from);
        let [k, tokens, width] = [it.k, it.tokens, it.width].map(|n| Argument::from(int(n)));
        let arguments = [a, b, c, d, e, k, it.out_td.into(), tokens, width];
        // SAFETY: as in `route`.
        unsafe { self.launch(kernel, form, arguments) }
    }

    /// Zeros for experts without rows: `each` values per expert at `w_ei`, rows end at `end_e`.
    ///
    /// # Safety
    /// As [`Kernels::route`], with the two addresses.
    ///
    /// # Errors
    /// As [`Kernels::route`].
    pub unsafe fn clear_empty(
        &self,
        dtype: Dtype,
        (w_ei, end_e): (Address, Address),
        experts: usize,
        each: usize,
    ) -> Result<(), CudaError> {
        limit("experts", experts, 65_535)?;
        limit("values of an expert", each, i32::MAX as usize)?;
        let blocks = each.div_ceil(64 * THREADS as usize).clamp(1, 1024);
        let form = Form { grid: [blocks, experts], block: THREADS, shared_ints: 0 };
        let kernel = dtype.of("clear_empty_f32", "clear_empty_bf16");
        // SAFETY: as in `route`.
        unsafe { self.launch(kernel, form, [w_ei.into(), end_e.into(), int(each).into()]) }
    }

    /// # Safety
    /// The arguments are what the kernel declares, and its addresses are valid until it has run.
    unsafe fn launch<const N: usize>(
        &self,
        kernel: &'static str,
        form: Form,
        mut arguments: [Argument; N],
    ) -> Result<(), CudaError> {
        let Form { grid, block, shared_ints } = form;
        if grid.contains(&0) {
            return Ok(());
        }
        let launch = Launch {
            kernel,
            grid: grid.map(|blocks| u32::try_from(blocks).expect("checked by the shape")),
            block,
            shared_bytes: 4 * u32::try_from(shared_ints).expect("checked by the shape"),
            arguments: &mut Argument::pointers(&mut arguments),
        };
        // SAFETY: this function's contract.
        unsafe { self.launcher.launch(launch, self.stream) }
    }
}

/// A single block that sums prefixes, with a number per thread.
fn one_block() -> Form {
    Form { grid: [1, 1], block: THREADS, shared_ints: THREADS as usize }
}

/// Sizes were checked, or are axes of tensors that memory holds.
fn int(number: usize) -> i32 {
    i32::try_from(number).expect("an axis of at most 2^31 - 1")
}

fn limit(what: &'static str, got: usize, most: usize) -> Result<(), CudaError> {
    if got <= most { Ok(()) } else { Err(CudaError::Limit { what, got, most }) }
}

fn aligned(tensors: &[(&'static str, Address)]) -> Result<(), CudaError> {
    match tensors.iter().find(|(_, address)| !address.0.is_multiple_of(16)) {
        None => Ok(()),
        Some(&(what, Address(address))) => Err(CudaError::Misaligned { what, address }),
    }
}
