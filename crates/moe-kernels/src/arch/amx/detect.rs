//! Whether AMX can be used: the processor, the system, and a trial.

#![expect(unsafe_code, reason = "asks the processor and the system")]

use std::sync::OnceLock;

use super::super::avx512::Avx512;
use super::super::portable::Portable;
use super::super::{Isa, Left, Level};
use super::{Amx, Avx512Bf16, Job, Kernel, MR, NR, Pair, TILE};
use crate::arch::Lane;

/// `XTILEDATA`: a part of a thread's state that the system allocates only on request.
const TILE_DATA: u32 = 18;
/// `XTILECFG`.
const TILE_CONFIG: u32 = 17;

impl Amx {
    /// The proof, if it is true. Found out once: the permission is the process's.
    pub(in super::super) fn detect() -> Option<Self> {
        static FOUND: OnceLock<Option<Amx>> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let amx = Avx512Bf16::detect().map(Self)?;
            (processor_has() && system_saves() && system_permits() && amx.right()).then_some(amx)
        })
    }

    /// Whether a product of small whole numbers, which is exact in any order of sums, is right: the
    /// instructions are untried on hardware, and wrong sums must never go unseen.
    fn right(self) -> bool {
        let trials = [(MR, 3 * TILE, false), (MR, TILE + 5, true), (TILE, 7, true), (5, 33, true)];
        trials.into_iter().all(|(rows, depth, add)| {
            let mut right = false;
            self.vectorized(Trial { amx: self, rows, depth, add, right: &mut right });
            right
        })
    }
}

impl Isa {
    /// AMX without asking whether the processor has it, for emulators that a program cannot see;
    /// none without AVX-512 BF16, or if the emulation multiplies wrongly.
    ///
    /// # Safety
    ///
    /// Something carries the instructions out: a processor on which the system permits them, or a
    /// handler of the signal that they raise.
    #[doc(hidden)]
    pub unsafe fn assume_amx() -> Option<Self> {
        let (single, paired) = Avx512::detect().zip(Avx512Bf16::detect())?;
        let amx = Amx(paired);
        amx.right().then_some(Self(Level::Amx(single, amx)))
    }
}

/// AMX-TILE and AMX-BF16, with tiles of the size that this kernel wants.
fn processor_has() -> bool {
    use std::arch::x86_64::__cpuid_count;
    const BF16: u32 = 1 << 22;
    const TILES: u32 = 1 << 24;
    let highest = __cpuid_count(0, 0).eax;
    if highest < 0x1d || __cpuid_count(7, 0).edx & (BF16 | TILES) != BF16 | TILES {
        return false;
    }
    // Palette 1: bytes of a tile, bytes of a row, tiles, rows.
    let palette = __cpuid_count(0x1d, 1);
    [palette.eax >> 16, palette.ebx & 0xffff, palette.ebx >> 16, palette.ecx & 0xffff]
        == [1024, 64, 8, 16]
}

/// Whether the system saves tiles when it switches threads.
fn system_saves() -> bool {
    #[target_feature(enable = "xsave")]
    fn state() -> u64 {
        // SAFETY: the processor has XSAVE and the system has switched it on, so register 0 exists.
        unsafe { std::arch::x86_64::_xgetbv(0) }
    }
    let wanted = 1 << TILE_DATA | 1 << TILE_CONFIG;
    // SAFETY: just found.
    is_x86_feature_detected!("xsave") && unsafe { state() } & wanted == wanted
}

/// Asks the system for the state that tiles take: since Linux 5.16 a process may be refused.
#[cfg(target_os = "linux")]
fn system_permits() -> bool {
    const REQUEST_PERMISSION: libc::c_ulong = 0x1023;
    // SAFETY: the call takes two numbers and touches no memory.
    unsafe {
        libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, libc::c_ulong::from(TILE_DATA)) == 0
    }
}

/// How other systems permit tiles is not known here.
#[cfg(not(target_os = "linux"))]
fn system_permits() -> bool {
    false
}

/// One product, and the same in plain Rust.
struct Trial<'a> {
    amx: Amx,
    rows: usize,
    depth: usize,
    add: bool,
    right: &'a mut bool,
}

impl Job for Trial<'_> {
    #[inline(always)]
    fn run(self) {
        let (rows, depth) = (self.rows, self.depth);
        let value = |i: usize, k: usize| ((i * 7 + k * 13) % 17) as f32 - 8.0;
        let pair = |i: usize, k: usize| Pair::join(value(i, 2 * k), value(i, 2 * k + 1));
        let b: Vec<Pair> = (0..depth * NR).map(|at| pair(at % NR + 3, at / NR)).collect();
        let start: Vec<f32> = (0..MR * NR).map(|at| at as f32).collect();
        let mut got = start.clone();
        let mut a = vec![Pair::default(); depth.next_multiple_of(TILE) * MR];
        for (i, k) in (0..rows).flat_map(|i| (0..depth).map(move |k| (i, k))) {
            a[(k / TILE * MR + i) * TILE + k % TILE] = pair(i, k);
        }
        self.amx.tile(rows, Left { lanes: &a, stride: MR }, &b, &mut got, NR, self.add);
        *self.right = got == self.plain(start, pair);
    }
}

impl Trial<'_> {
    fn plain(&self, mut sums: Vec<f32>, pair: impl Fn(usize, usize) -> Pair) -> Vec<f32> {
        type Plain = Portable<Pair>;
        for (row, sums) in sums.chunks_exact_mut(NR).take(self.rows).enumerate() {
            let a: Vec<Pair> = (0..self.depth).map(|k| pair(row, k)).collect();
            let left = Left { lanes: &a, stride: 1 };
            for (panel, sums) in sums.chunks_exact_mut(Plain::NR).enumerate() {
                let column = |at| panel * Plain::NR + at % Plain::NR + 3;
                let b: Vec<Pair> = (0..self.depth * Plain::NR)
                    .map(|at| pair(column(at), at / Plain::NR))
                    .collect();
                Plain::new().tile(1, left, &b, sums, Plain::NR, self.add);
            }
        }
        sums
    }
}
