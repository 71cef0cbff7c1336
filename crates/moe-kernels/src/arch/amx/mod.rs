//! The `bf16` microkernel for AMX: 32 rows of two columns of tiles.
//!
//! Four tiles hold the sums; two rows of tiles times two columns of tiles make four products of four
//! loads, so that the tile multiplier is the limit. Panels are those of AVX-512 BF16, which decoding
//! therefore reads too: few rows leave most of a tile empty.
//!
//! **Checked against an emulation of the instructions (`tests/kernels/emulator`), not yet run on
//! hardware.** For that reason the first use in a process multiplies a small matrix both ways and
//! falls back to AVX-512 BF16 on any difference ([`detect`]).
//!
//! The intrinsics are not stable; the assembler is.

#![expect(unsafe_code, reason = "instructions that read and write through pointers")]

mod detect;

use std::arch::asm;

use super::avx512_bf16::Avx512Bf16;
use super::{Job, Kernel, Left, Pair, Square, tile_depth};

/// Rows of a tile, and lanes in each.
const TILE: usize = 16;
const MR: usize = 2 * TILE;
const NR: usize = 2 * TILE;

/// Bytes of a tile, and of a row of the first operand's and of the second's.
const TILE_BYTES: usize = TILE * ROW_A;
const ROW_A: usize = TILE * size_of::<Pair>();
const ROW_B: usize = NR * size_of::<Pair>();

/// The proof that the processor has AMX with BF16, that the system lets this process use it, and that
/// both give the right sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Amx(Avx512Bf16);

impl Amx {
    /// The kernel for few rows, which reads the same panels.
    pub(super) fn few_rows(self) -> Avx512Bf16 {
        const { assert!(NR == Avx512Bf16::NR) };
        self.0
    }
}

/// What `ldtilecfg` reads: all eight tiles in full.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIG: Config = {
    let (mut row_bytes, mut rows, mut tile) = ([0; 16], [0; 16], 0);
    while tile < 8 {
        row_bytes[tile] = ROW_A as u16;
        rows[tile] = TILE as u8;
        tile += 1;
    }
    Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

/// Tiles of this thread that are configured, until it is dropped: released tiles spare the system
/// from saving 8 KiB with every switch of threads.
struct Configured;

impl Configured {
    fn new(_proof: Amx) -> Self {
        // SAFETY: the proof; the operand is a valid configuration of 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
        Self
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: whoever made this had the proof.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

impl Kernel for Amx {
    type Lane = Pair;
    const MR: usize = MR;
    const NR: usize = NR;
    const STEP: usize = TILE;
    const FUSED: bool = true;

    fn tile(
        self,
        rows: usize,
        a: Left<'_, Pair>,
        b: &[Pair],
        c: &mut [f32],
        ldc: usize,
        add: bool,
    ) {
        let depth = tile_depth::<Self>(rows, a, b, c, ldc);
        if rows.is_multiple_of(TILE) {
            return self.whole(rows, a, b, depth, Sums { to: c, stride: ldc, add });
        }
        // Tiles are stored whole: what lies behind the last row must not be touched.
        let mut sums = [0.0; MR * NR];
        for (sums, c) in sums.chunks_exact_mut(NR).zip(c.chunks(ldc)).take(rows).filter(|_| add) {
            sums.copy_from_slice(&c[..NR]);
        }
        let to = Sums { to: &mut sums, stride: NR, add };
        self.whole(rows.next_multiple_of(TILE), a, b, depth, to);
        for (sums, c) in sums.chunks_exact(NR).zip(c.chunks_mut(ldc)).take(rows) {
            c[..NR].copy_from_slice(sums);
        }
    }

    #[inline(always)]
    fn transposed(self, square: &Square<Pair>) -> Square<Pair> {
        self.0.transposed(square)
    }

    #[inline(always)]
    fn joined_along(self, values: &[f32; 2 * TILE]) -> [Pair; TILE] {
        self.0.joined_along(values)
    }

    #[inline(always)]
    fn joined_across(self, first: &[f32; TILE], second: &[f32; TILE]) -> [Pair; TILE] {
        self.0.joined_across(first, second)
    }

    #[inline(always)]
    fn rounded(self, values: &[f32; TILE]) -> [u16; TILE] {
        self.0.rounded(values)
    }

    fn vectorized<J: Job>(self, job: J) {
        let _until_done = Configured::new(self);
        self.0.vectorized(job);
    }

    #[inline(always)]
    fn prefetch<T>(self, values: &[T]) {
        self.0.prefetch(values);
    }
}

/// Where whole tiles of sums go.
struct Sums<'a> {
    to: &'a mut [f32],
    /// From one row to the next.
    stride: usize,
    add: bool,
}

impl Amx {
    /// The product of one or two rows of tiles with a panel.
    fn whole(self, rows: usize, a: Left<'_, Pair>, b: &[Pair], depth: usize, c: Sums<'_>) {
        assert!(a.stride == MR && a.lanes.len() >= depth.next_multiple_of(TILE) * MR);
        assert!(rows <= MR && c.to.len() >= (rows - 1).saturating_mul(c.stride).saturating_add(NR));
        let (steps, rest) = (depth / TILE, depth % TILE);
        // SAFETY: the proof, and tiles are configured wherever kernels multiply. `a` has as many
        // steps as begin in `depth`, each `[MR, TILE]`, `b` has `depth * NR` lanes, `last` a whole
        // step, and `c` `rows` rows of NR values.
        unsafe {
            start(rows, &c);
            multiply(rows, steps, a.lanes.as_ptr(), b.as_ptr());
            if rest > 0 {
                // A tile is loaded whole, and the panel ends before it.
                let mut last = [Pair::default(); TILE * NR];
                last[..rest * NR].copy_from_slice(&b[steps * TILE * NR..]);
                multiply(rows, 1, a.lanes.as_ptr().add(steps * TILE * MR), last.as_ptr());
            }
            finish(rows, c);
        }
    }
}

/// Sets the sums to zero, or to what is there.
///
/// # Safety
///
/// AMX, configured; `c` has `rows` rows of NR values.
unsafe fn start(rows: usize, c: &Sums<'_>) {
    if !c.add {
        // SAFETY: the caller's promise.
        return unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, nomem)
            )
        };
    }
    // SAFETY: the caller's promise; a second row of tiles is there if `rows` says so.
    unsafe {
        asm!(
            "tileloadd tmm0, [{c} + {row}]", "tileloadd tmm1, [{c} + {row} + 64]",
            c = in(reg) c.to.as_ptr(), row = in(reg) c.stride * size_of::<f32>(),
            options(nostack, readonly)
        );
        if rows > TILE {
            asm!(
                "tileloadd tmm2, [{c} + {row}]", "tileloadd tmm3, [{c} + {row} + 64]",
                c = in(reg) c.to.as_ptr().add(TILE * c.stride),
                row = in(reg) c.stride * size_of::<f32>(),
                options(nostack, readonly)
            );
        }
    }
}

/// Adds products of so many steps of depth to the sums.
///
/// # Safety
///
/// AMX, configured; `a` points to `steps` times `[MR, TILE]` lanes, `b` to `[TILE, NR]`.
unsafe fn multiply(rows: usize, steps: usize, a: *const Pair, b: *const Pair) {
    for step in 0..steps {
        // SAFETY: `step < steps`.
        let (a, b) = unsafe { (a.add(step * TILE * MR), b.add(step * TILE * NR)) };
        // SAFETY: the caller's promise. Loads stand ahead of the products that wait for them.
        unsafe {
            if rows > TILE {
                asm!(
                    "tileloadd tmm6, [{b} + {row_b}]",
                    "tileloadd tmm4, [{a} + {row_a}]",
                    "tileloadd tmm7, [{b} + {row_b} + 64]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{a} + {row_a} + {tile}]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    a = in(reg) a, b = in(reg) b, row_a = in(reg) ROW_A, row_b = in(reg) ROW_B,
                    tile = const TILE_BYTES, options(nostack, readonly)
                );
            } else {
                asm!(
                    "tileloadd tmm6, [{b} + {row_b}]",
                    "tileloadd tmm4, [{a} + {row_a}]",
                    "tileloadd tmm7, [{b} + {row_b} + 64]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    a = in(reg) a, b = in(reg) b, row_a = in(reg) ROW_A, row_b = in(reg) ROW_B,
                    options(nostack, readonly)
                );
            }
        }
    }
}

/// Stores the sums.
///
/// # Safety
///
/// AMX, configured; `c` has `rows` rows of NR values.
unsafe fn finish(rows: usize, c: Sums<'_>) {
    // SAFETY: the caller's promise; a second row of tiles is there if `rows` says so.
    unsafe {
        asm!(
            "tilestored [{c} + {row}], tmm0", "tilestored [{c} + {row} + 64], tmm1",
            c = in(reg) c.to.as_mut_ptr(), row = in(reg) c.stride * size_of::<f32>(),
            options(nostack)
        );
        if rows > TILE {
            asm!(
                "tilestored [{c} + {row}], tmm2", "tilestored [{c} + {row} + 64], tmm3",
                c = in(reg) c.to.as_mut_ptr().add(TILE * c.stride),
                row = in(reg) c.stride * size_of::<f32>(),
                options(nostack)
            );
        }
    }
}
