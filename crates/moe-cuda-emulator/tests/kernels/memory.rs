//! Host memory that stands for a device's: aligned, not zero at first, with guards around it.

use moe_cuda::{Address, Dtype, Kernels, Stream};
use moe_cuda_emulator::Emulator;
use std::mem::size_of;

/// Both orders of threads and blocks: no result may depend on it.
pub(crate) const ORDERS: [Emulator; 2] =
    [Emulator { backwards: false }, Emulator { backwards: true }];

/// Kernels on an emulator.
pub(crate) fn kernels(emulator: &Emulator) -> Kernels<'_> {
    Kernels { launcher: emulator, stream: Stream::default() }
}

/// What memory holds before anything was written: a NaN as `f32` and as `bf16`, far out of range as an
/// integer.
const GARBAGE: u8 = 0xff;
const GUARD: usize = 64;

/// `len` values of `size` bytes.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    /// Sixteen bytes each, so that the values are aligned.
    words: Vec<u128>,
    bytes: usize,
}

impl Memory {
    /// Room for `len` values of `size` bytes, full of garbage.
    pub(crate) fn room(len: usize, size: usize) -> Self {
        let bytes = len * size;
        let words = vec![u128::from_ne_bytes([GARBAGE; 16]); bytes.div_ceil(16) + 2 * GUARD / 16];
        Self { words, bytes }
    }

    fn of_bytes(bytes: &[u8]) -> Self {
        let mut memory = Self::room(bytes.len(), 1);
        memory.all_mut()[GUARD..GUARD + bytes.len()].copy_from_slice(bytes);
        memory
    }

    pub(crate) fn f32s(values: &[f32]) -> Self {
        Self::of_bytes(&values.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<_>>())
    }

    pub(crate) fn i32s(values: &[i32]) -> Self {
        Self::of_bytes(&values.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<_>>())
    }

    pub(crate) fn i64s(values: &[i64]) -> Self {
        Self::of_bytes(&values.iter().flat_map(|v| v.to_ne_bytes()).collect::<Vec<_>>())
    }

    /// Values that `dtype` holds exactly (see [`rounded`]).
    pub(crate) fn values(dtype: Dtype, values: &[f32]) -> Self {
        match dtype {
            Dtype::F32 => Self::f32s(values),
            Dtype::Bf16 => {
                let high = |v: &f32| ((v.to_bits() >> 16) as u16).to_ne_bytes();
                Self::of_bytes(&values.iter().flat_map(high).collect::<Vec<_>>())
            }
        }
    }

    /// Room for values of `dtype`.
    pub(crate) fn room_of(dtype: Dtype, len: usize) -> Self {
        Self::room(
            len,
            match dtype {
                Dtype::F32 => 4,
                Dtype::Bf16 => 2,
            },
        )
    }

    pub(crate) fn address(&mut self) -> Address {
        Address(self.words.as_mut_ptr().addr() as u64 + GUARD as u64)
    }

    fn all(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    fn all_mut(&mut self) -> &mut [u8] {
        // SAFETY: bytes of numbers, any of which is valid.
        unsafe {
            std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.words.len() * 16)
        }
    }

    /// The bytes between the guards, which must be untouched.
    fn inside(&self) -> Vec<u8> {
        let all = self.all();
        let end = GUARD + self.bytes;
        let whole = all[..GUARD].iter().chain(&all[end..]).all(|byte| *byte == GARBAGE);
        assert!(whole, "a write outside of a tensor");
        all[GUARD..end].to_vec()
    }

    fn read<const N: usize, T>(&self, from: impl Fn([u8; N]) -> T) -> Vec<T> {
        assert_eq!(N, size_of::<T>());
        self.inside().chunks_exact(N).map(|c| from(c.try_into().expect("N bytes"))).collect()
    }

    pub(crate) fn to_i32s(&self) -> Vec<i32> {
        self.read(i32::from_ne_bytes)
    }

    pub(crate) fn to_i64s(&self) -> Vec<i64> {
        self.read(i64::from_ne_bytes)
    }

    pub(crate) fn to_f32s(&self) -> Vec<f32> {
        self.read(f32::from_ne_bytes)
    }

    /// Values of `dtype`, as the oracles count.
    pub(crate) fn to_values(&self, dtype: Dtype) -> Vec<f64> {
        match dtype {
            Dtype::F32 => widened(&self.to_f32s()),
            Dtype::Bf16 => {
                let halves = self.read(u16::from_ne_bytes);
                halves.into_iter().map(|h| f32::from_bits(u32::from(h) << 16).into()).collect()
            }
        }
    }
}

/// As the oracles count.
pub(crate) fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// Values of a sequence, about normal in size, without ties, that `dtype` holds exactly.
pub(crate) fn rounded(dtype: Dtype, seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let values = (0..len).map(|_| 2.0 * next()).collect::<Vec<f32>>();
    match dtype {
        Dtype::F32 => values,
        Dtype::Bf16 => {
            values.into_iter().map(|v| f32::from_bits(v.to_bits() & 0xffff_0000)).collect()
        }
    }
}

pub(crate) const DTYPES: [Dtype; 2] = [Dtype::F32, Dtype::Bf16];
