//! The emulator and the launch code themselves.

use crate::memory::{DTYPES, Memory, ORDERS, kernels, rounded, widened};
use crate::tolerance::assert_close;
use moe_cuda::kernels::{GatherRows, RouteShape};
use moe_cuda::source::SOURCES;
use moe_cuda::{Address, CudaError, Dtype, Launch, Launcher, Stream};
use std::ffi::c_void;

fn launch(kernel: &'static str, shared_bytes: u32, arguments: &mut [u64]) -> Result<(), CudaError> {
    let mut pointers: Vec<*mut c_void> =
        arguments.iter_mut().map(|argument| (&raw mut *argument).cast()).collect();
    let launch = Launch { kernel, grid: [1, 1], block: 64, shared_bytes, arguments: &mut pointers };
    // SAFETY: each test gives the kernel what it declares.
    unsafe { ORDERS[0].launch(launch, Stream::default()) }
}

/// Every kernel that a device would load is one that these tests run.
#[test]
fn all_kernels_are_known_here() {
    for kernel in SOURCES.iter().flat_map(|source| source.kernels) {
        assert!(moe_cuda_emulator::knows(kernel), "{kernel}");
    }
    let error = launch("nothing", 0, &mut []).unwrap_err().to_string();
    assert_eq!(error, "nothing: no such kernel");
}

#[test]
fn shared_memory_that_is_too_small_is_found_out() {
    let (mut count, mut length) = (Memory::i32s(&[1, 2]), Memory::room(1, 4));
    let mut arguments = [count.address().0, length.address().0, 2];
    let error = launch("prefix_chunks", 63 * 4, &mut arguments).unwrap_err().to_string();
    assert!(error.ends_with("past the end of shared memory"), "{error}");
}

#[test]
fn bf16_rounds_to_nearest_even_and_keeps_nan() {
    // 1 + 2^-8 lies between 1 and 1 + 2^-7: even is 1; 1 + 3 2^-8 goes up to 1 + 2^-6.
    let given = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1.0 + 1.01 / 256.0, -2.0, f32::MAX];
    let want = [1.0, 1.0 + 1.0 / 64.0, 1.0 + 1.0 / 128.0, -2.0, f64::INFINITY];
    // The sum of a value's two halves is the value in f32, and only then rounded.
    for (given, want) in given.into_iter().zip(want) {
        assert_eq!(through_bf16(given).to_bits(), f64::to_bits(want), "{given}");
    }
    assert!(through_bf16(f32::from_bits(0x7f80_0001)).is_nan());
}

/// `weight * 1` in `f32`, then to `bf16`: a gather-sum of one row.
fn through_bf16(value: f32) -> f64 {
    let mut one = Memory::values(Dtype::Bf16, &[1.0]);
    let mut weight = Memory::f32s(&[value]);
    let (mut row, mut out) = (Memory::i32s(&[0]), Memory::room_of(Dtype::Bf16, 1));
    let [a, w, r, o] = [one.address(), weight.address(), row.address(), out.address()];
    launch("gather_sum_bf16", 0, &mut [a.0, 0, w.0, r.0, 0, 1, o.0, 1, 1]).unwrap();
    out.to_values(Dtype::Bf16)[0]
}

#[test]
fn sizes_and_addresses_that_kernels_cannot_take_are_refused() {
    let kernels = kernels(&ORDERS[0]);
    let it = GatherRows {
        x_td: Address(8),
        token_n: Address::NULL,
        x_nd: Address::NULL,
        rows: Address::NULL,
        most_rows: 1,
        width: 1,
    };
    // SAFETY: refused before anything is read.
    let error = unsafe { kernels.gather_rows(Dtype::F32, &it) }.unwrap_err().to_string();
    assert_eq!(error, "tokens starts at 0x8, which is no multiple of 16");
    let refused = |experts, k, groups| {
        let shape = RouteShape { groups, tokens: 1, experts, k };
        let null = Address::NULL;
        let it = moe_cuda::kernels::Plan {
            expert_gtk: null,
            gate_gtk: null,
            count_qc: null,
            counted: false,
            room_2q: null,
            end_e: null,
            load_e: null,
            token_n: null,
            weight_n: null,
            row_gtk: null,
            capacity: None,
        };
        // SAFETY: as above.
        unsafe { kernels.plan(&shape, &it) }.unwrap_err().to_string()
    };
    assert!(refused(1366, 1, 1).starts_with("experts is 1366, and these kernels take 1365"));
    assert!(refused(2, 3, 1).starts_with("choices of a token is 3, and these kernels take 2"));
    assert!(refused(2, 1, 65_536).starts_with("groups is 65536"));
}

/// Rows past the number on the device are neither read nor written, whatever the upper bound.
#[test]
fn the_number_of_rows_is_read_on_the_device() {
    for dtype in DTYPES {
        let values = rounded(dtype, 1, 16);
        let mut x_td = Memory::values(dtype, &values);
        let mut token_n = Memory::i32s(&[1, 0, i32::MAX]);
        let (mut x_nd, mut rows) = (Memory::room_of(dtype, 3 * 8), Memory::i32s(&[2]));
        let it = GatherRows {
            x_td: x_td.address(),
            token_n: token_n.address(),
            x_nd: x_nd.address(),
            rows: rows.address(),
            most_rows: 3,
            width: 8,
        };
        // SAFETY: the addresses are those of the tensors above.
        unsafe { kernels(&ORDERS[0]).gather_rows(dtype, &it) }.unwrap();
        let got = x_nd.to_values(dtype);
        let want = widened(&[&values[8..], &values[..8]].concat());
        assert_close("x_nd", &got[..16], &want, 0.0);
        assert!(got[16..].iter().all(|v| v.is_nan()), "a row that is none was written");
    }
}
