//! The instruction sets: one microkernel each, chosen at run time.
//!
//! Everything else in this crate is plain Rust over [`Kernel`], compiled once per instruction set
//! inside [`Kernel::vectorized`].
//!
//! Operands are "depth-major": `a` is `[k, rows]` and `b` is `[k, NR]`, so that one step of depth is
//! one rank-1 update of the `MR x NR` tile of sums, read from two contiguous streams. A [`Lane`] is
//! what one step of depth holds for one row: a value, or a pair of `bf16`. AMX wants the rows of `a`
//! side by side, [`Kernel::STEP`] lanes of each.

/// The kernel `$name` of tiles of `M` rows, `1 <= M <= MR`: a function for each `M`, so that sums
/// stay in registers. `$step` is one step of depth and `$put` stores a register of sums.
#[cfg(target_arch = "x86_64")]
macro_rules! x86_kernel {
    ($name:ty, $features:literal, $lane:ty, $zero:ident, $step:ident, $put:ident,
     $($rows:literal)*
     $(, transpose: $transpose:path)? $(, join: [$along:path, $across:path, $round:path])?) => {
        impl $crate::arch::Kernel for $name {
            type Lane = $lane;
            const MR: usize = MR;
            const NR: usize = NR;
            const FUSED: bool = true;

            fn tile(
                self,
                rows: usize,
                a: $crate::arch::Left<'_, $lane>,
                b: &[$lane],
                c: &mut [f32],
                ldc: usize,
                add: bool,
            ) {
                /// # Safety
                ///
                /// The features; `a` points to `depth` groups of `M` lanes, `lda` apart, `b` to
                /// `depth * NR` lanes, `c` to `M` rows of `NR` values, `ldc` apart, which nothing
                /// else refers to.
                #[target_feature(enable = $features)]
                unsafe fn tile<const M: usize>(
                    depth: usize,
                    a: *const $lane,
                    lda: usize,
                    b: *const $lane,
                    c: *mut f32,
                    ldc: usize,
                    add: bool,
                ) {
                    let mut sum = [[$zero(); 2]; M];
                    for k in 0..depth {
                        // SAFETY: `k < depth`: both lie in what was promised.
                        unsafe { $step(&mut sum, a.add(k * lda), b.add(k * NR)) };
                    }
                    for (i, sum) in sum.iter().enumerate() {
                        for (half, &sum) in sum.iter().enumerate() {
                            // SAFETY: row `i < M` of `c`, columns below NR.
                            unsafe { $put(c.add(i * ldc + half * (NR / 2)), sum, add) };
                        }
                    }
                }
                let depth = $crate::arch::tile_depth::<Self>(rows, a, b, c, ldc);
                let (lda, a) = (a.stride, a.lanes.as_ptr());
                let (b, c) = (b.as_ptr(), c.as_mut_ptr());
                match rows {
                    // SAFETY: `self` proves the features. `tile_depth` has checked that `a` and
                    // `b` hold `depth` steps, and that `c` holds `rows` rows of NR values.
                    $($rows => unsafe { tile::<$rows>(depth, a, lda, b, c, ldc, add) },)*
                    _ => unreachable!("a tile has at most {MR} rows"),
                }
            }

            $(
                #[inline(always)]
                fn transposed(
                    self,
                    square: &$crate::arch::Square<$lane>,
                ) -> $crate::arch::Square<$lane> {
                    let mut to = [[<$lane>::default(); $crate::arch::SIDE]; $crate::arch::SIDE];
                    // SAFETY: `self` proves the features; both are squares of lanes of 32 bits.
                    unsafe { $transpose(square.as_ptr().cast(), to.as_mut_ptr().cast()) };
                    to
                }
            )?

            $(
                #[inline(always)]
                fn joined_along(self, values: &[f32; 2 * $crate::arch::SIDE]) -> [$lane; $crate::arch::SIDE] {
                    // SAFETY: `self` proves the features.
                    unsafe { $along(values) }
                }

                #[inline(always)]
                fn joined_across(
                    self,
                    first: &[f32; $crate::arch::SIDE],
                    second: &[f32; $crate::arch::SIDE],
                ) -> [$lane; $crate::arch::SIDE] {
                    // SAFETY: `self` proves the features.
                    unsafe { $across(first, second) }
                }

                #[inline(always)]
                fn rounded(
                    self,
                    values: &[f32; $crate::arch::SIDE],
                ) -> [u16; $crate::arch::SIDE] {
                    // SAFETY: `self` proves the features.
                    unsafe { $round(values) }
                }
            )?

            fn vectorized<J: $crate::arch::Job>(self, job: J) {
                #[target_feature(enable = $features)]
                fn inner<J: $crate::arch::Job>(job: J) {
                    job.run();
                }
                // SAFETY: `self` proves the features.
                unsafe { inner(job) }
            }

            #[inline(always)]
            fn prefetch<T>(self, values: &[T]) {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                let start = values.as_ptr().cast::<i8>();
                // Not `step_by`: it is a call for each line, where lines are few.
                let mut line = 0;
                while line < size_of_val(values) {
                    // SAFETY: the address lies in `values`, and a prefetch has no effect that a
                    // program can see.
                    unsafe { _mm_prefetch::<_MM_HINT_T0>(start.add(line)) };
                    line += 64;
                }
            }
        }
    };
}

mod portable;

#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) use avx512::Avx512;
#[cfg(test)]
pub(crate) use portable::Portable;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;

use std::fmt;

use crate::memory::Buffer;
use crate::pack::{Matrices, Panels};
use crate::shape::Dtype;
use crate::workspace::{AnyBuffer, AnyOperands, Operands};

/// What one step of depth holds for one row or column.
pub(crate) trait Lane: Copy + Default + Send + Sync + fmt::Debug + 'static {
    /// Values of depth in a lane.
    const DEPTH: usize;
    /// Its element type.
    const DTYPE: Dtype;

    /// A lane of the value at this depth and, in a pair, the next one.
    fn join(first: f32, second: f32) -> Self;

    /// The values.
    fn split(self) -> [f32; 2];

    /// The buffer that holds such lanes.
    fn buffer(buffer: &mut AnyBuffer) -> &mut Buffer<Self>;

    /// The buffers of a worker that hold such lanes.
    fn operands(operands: &mut AnyOperands) -> &mut Operands<Self>;

    /// The panels of packed weights that hold such lanes; none if they hold others.
    fn panels(panels: &Panels) -> Option<&Matrices<Self>>;

    /// The same, to be written.
    fn panels_mut(panels: &mut Panels) -> Option<&mut Matrices<Self>>;
}

/// A pair of `bf16`: the first value in the low half.
pub(crate) type Pair = u32;

impl Lane for f32 {
    const DEPTH: usize = 1;
    const DTYPE: Dtype = Dtype::F32;

    #[inline(always)]
    fn join(first: f32, _second: f32) -> Self {
        first
    }

    #[inline(always)]
    fn split(self) -> [f32; 2] {
        [self, 0.0]
    }

    fn buffer(buffer: &mut AnyBuffer) -> &mut Buffer<Self> {
        &mut buffer.single
    }

    fn operands(operands: &mut AnyOperands) -> &mut Operands<Self> {
        &mut operands.single
    }

    fn panels(panels: &Panels) -> Option<&Matrices<Self>> {
        match panels {
            Panels::Single(matrices) => Some(matrices),
            Panels::Paired(_) => None,
        }
    }

    fn panels_mut(panels: &mut Panels) -> Option<&mut Matrices<Self>> {
        match panels {
            Panels::Single(matrices) => Some(matrices),
            Panels::Paired(_) => None,
        }
    }
}

impl Lane for Pair {
    const DEPTH: usize = 2;
    const DTYPE: Dtype = Dtype::Bf16;

    #[inline(always)]
    fn join(first: f32, second: f32) -> Self {
        to_bf16(first) | to_bf16(second) << 16
    }

    #[inline(always)]
    fn split(self) -> [f32; 2] {
        [f32::from_bits(self << 16), f32::from_bits(self & 0xffff_0000)]
    }

    fn buffer(buffer: &mut AnyBuffer) -> &mut Buffer<Self> {
        &mut buffer.paired
    }

    fn operands(operands: &mut AnyOperands) -> &mut Operands<Self> {
        &mut operands.paired
    }

    fn panels(panels: &Panels) -> Option<&Matrices<Self>> {
        match panels {
            Panels::Paired(matrices) => Some(matrices),
            Panels::Single(_) => None,
        }
    }

    fn panels_mut(panels: &mut Panels) -> Option<&mut Matrices<Self>> {
        match panels {
            Panels::Paired(matrices) => Some(matrices),
            Panels::Single(_) => None,
        }
    }
}

/// The nearest `bf16`, ties to even, in the low half. NaN stays NaN.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    if x.is_nan() { bits >> 16 | 0x40 } else { rounded }
}

/// The first operand of a tile: `[k / STEP, rows, STEP]`, for most kernels `[k, rows]`. What the last
/// step has beyond the depth is zero.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left<'a, L> {
    pub(crate) lanes: &'a [L],
    /// Rows: from one step of depth to the next, over `STEP`.
    pub(crate) stride: usize,
}

/// Rows and columns of a square that is transposed at once.
pub(crate) const SIDE: usize = 16;

/// A square of lanes.
pub(crate) type Square<L> = [[L; SIDE]; SIDE];

/// Work that is compiled with the features of an instruction set, if its `run` and all that it calls
/// are inlined: a closure cannot be told to be.
pub(crate) trait Job {
    /// Does it; to be marked `#[inline(always)]`.
    fn run(self);
}

/// A microkernel, and the proof that the processor can run it: only detection makes one.
pub(crate) trait Kernel: Copy + Send + Sync {
    /// What it multiplies.
    type Lane: Lane;
    /// Most rows of a tile.
    const MR: usize;
    /// Columns of a tile; even.
    const NR: usize;
    /// Lanes of depth that lie side by side for each row of the first operand: 1, or [`SIDE`].
    const STEP: usize = 1;
    /// Whether the processor multiplies and adds in one instruction.
    const FUSED: bool = false;

    /// `c[i, j] = sum_k a[k, i] * b[k, j]` for `i < rows`, `j < NR`, where a row of `c` is `ldc`
    /// values after the one before; added to what is there if `add`.
    ///
    /// # Panics
    ///
    /// If `b` is not `[k, NR]`, `a` is less deep, or the tile does not fit into `c`.
    /// To be called by jobs of [`Self::vectorized`] only: AMX needs its tiles configured.
    fn tile(
        self,
        rows: usize,
        a: Left<'_, Self::Lane>,
        b: &[Self::Lane],
        c: &mut [f32],
        ldc: usize,
        add: bool,
    );

    /// Runs `job`, compiled for this instruction set.
    fn vectorized<J: Job>(self, job: J);

    /// Transposes a square.
    #[inline(always)]
    fn transposed(self, square: &Square<Self::Lane>) -> Square<Self::Lane> {
        let mut to = [[Self::Lane::default(); SIDE]; SIDE];
        for (i, row) in square.iter().enumerate() {
            for (to, &lane) in to.iter_mut().zip(row) {
                to[i] = lane;
            }
        }
        to
    }

    /// Consecutive values, of which a lane takes one or two; the first half of them is enough for lanes of
    /// one.
    #[inline(always)]
    fn joined_along(self, values: &[f32; 2 * SIDE]) -> [Self::Lane; SIDE] {
        let mut to = [Self::Lane::default(); SIDE];
        for (to, values) in to.iter_mut().zip(values.chunks_exact(Self::Lane::DEPTH)) {
            *to = Self::Lane::join(values[0], values[Self::Lane::DEPTH - 1]);
        }
        to
    }

    /// Lanes of a value of each row; those of one value take the first row's.
    #[inline(always)]
    fn joined_across(self, first: &[f32; SIDE], second: &[f32; SIDE]) -> [Self::Lane; SIDE] {
        let mut to = [Self::Lane::default(); SIDE];
        // A loop: `array::from_fn` is not inlined, so not compiled for these registers.
        for i in 0..SIDE {
            to[i] = Self::Lane::join(first[i], second[i]);
        }
        to
    }

    /// The nearest `bf16`.
    #[inline(always)]
    fn rounded(self, values: &[f32; SIDE]) -> [u16; SIDE] {
        let mut to = [0; SIDE];
        for (to, &value) in to.iter_mut().zip(values) {
            *to = to_bf16(value) as u16;
        }
        to
    }

    /// Asks for the cache lines of `values`, which will be read soon.
    fn prefetch<T>(self, values: &[T]);
}

/// Checks the operands of [`Kernel::tile`] and returns its depth in lanes.
#[inline(always)]
fn tile_depth<K: Kernel>(
    rows: usize,
    a: Left<'_, K::Lane>,
    b: &[K::Lane],
    c: &[f32],
    ldc: usize,
) -> usize {
    let depth = b.len() / K::NR;
    assert!((1..=K::MR).contains(&rows), "{rows} rows in a tile of {}", K::MR);
    assert!(depth > 0 && b.len() == depth * K::NR, "{} lanes are no panel", b.len());
    let before = (depth - 1) / K::STEP * K::STEP;
    assert!(
        a.lanes.len() >= before.saturating_mul(a.stride).saturating_add(rows * K::STEP),
        "operands differ in depth"
    );
    // Saturating: the kernels rely on these for safety, whatever the strides.
    assert!(
        c.len() >= (rows - 1).saturating_mul(ldc).saturating_add(K::NR),
        "the tile leaves its matrix"
    );
    depth
}

/// An instruction set that this machine has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(Level);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(avx512::Avx512, avx512_bf16::Avx512Bf16),
    #[cfg(target_arch = "x86_64")]
    Amx(avx512::Avx512, amx::Amx),
}

impl Isa {
    /// The best one of this machine.
    pub fn detect() -> Self {
        let available = Self::available();
        available[available.len() - 1]
    }

    /// All that this machine has, the best last.
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Level::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(avx2::Avx2::detect().map(Level::Avx2));
            let avx512 = avx512::Avx512::detect();
            levels.extend(avx512.map(Level::Avx512));
            let both = avx512.zip(avx512_bf16::Avx512Bf16::detect());
            levels.extend(both.map(|(single, paired)| Level::Avx512Bf16(single, paired)));
            levels.extend(
                avx512.zip(amx::Amx::detect()).map(|(single, amx)| Level::Amx(single, amx)),
            );
        }
        levels.into_iter().map(Self).collect()
    }

    /// The one of this name; none if this machine has not got it.
    pub fn named(name: &str) -> Option<Self> {
        Self::available().into_iter().find(|isa| isa.name() == name)
    }

    /// `portable`, `avx2`, `avx512`, `avx512-bf16` or `amx`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16(..) => "avx512-bf16",
            #[cfg(target_arch = "x86_64")]
            Level::Amx(..) => "amx",
        }
    }

    /// The set whose kernels suit few rows; it reads the same panels.
    pub(crate) fn for_few_rows(self) -> Self {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Amx(single, amx) => Self(Level::Avx512Bf16(single, amx.few_rows())),
            other => Self(other),
        }
    }

    /// Runs `work` with the microkernel of this set for `dtype`.
    pub(crate) fn run<W: Work>(self, dtype: Dtype, work: W) -> W::Out {
        match (self.0, dtype) {
            (Level::Portable, Dtype::F32) => work.run(portable::Portable::<f32>::new()),
            (Level::Portable, Dtype::Bf16) => work.run(portable::Portable::<Pair>::new()),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2(avx2), Dtype::F32) => work.run(avx2),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2(avx2), Dtype::Bf16) => work.run(avx2::Avx2Bf16::from(avx2)),
            #[cfg(target_arch = "x86_64")]
            (
                Level::Avx512(avx512) | Level::Avx512Bf16(avx512, _) | Level::Amx(avx512, _),
                Dtype::F32,
            ) => work.run(avx512),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512(avx512), Dtype::Bf16) => work.run(avx512_bf16::Widened::from(avx512)),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512Bf16(_, paired), Dtype::Bf16) => work.run(paired),
            #[cfg(target_arch = "x86_64")]
            (Level::Amx(_, amx), Dtype::Bf16) => work.run(amx),
        }
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Isa({})", self.name())
    }
}

/// Work that is compiled for every microkernel.
pub(crate) trait Work {
    /// What it returns.
    type Out;

    /// Does it.
    fn run<K: Kernel>(self, kernel: K) -> Self::Out;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_and_ties_to_even() {
        let bits = |x: u32| to_bf16(f32::from_bits(x));
        assert_eq!([bits(0x3f80_7fff), bits(0x3f80_8001)], [0x3f80, 0x3f81]);
        assert_eq!([bits(0x3f80_8000), bits(0x3f81_8000)], [0x3f80, 0x3f82]);
        assert_eq!([to_bf16(f32::MAX), to_bf16(f32::NEG_INFINITY)], [0x7f80, 0xff80]);
        // A NaN whose payload lies in the bits that are cut off.
        assert!(f32::from_bits(bits(0x7f80_0001) << 16).is_nan());
    }

    #[test]
    fn an_instruction_set_is_found_by_its_name() {
        let found: Vec<_> = Isa::available().iter().map(|isa| Isa::named(isa.name())).collect();
        assert_eq!(found, Isa::available().into_iter().map(Some).collect::<Vec<_>>());
        assert_eq!((Isa::available()[0].name(), Isa::named("mmx")), ("portable", None));
    }
}
