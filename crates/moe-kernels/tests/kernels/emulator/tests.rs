//! The emulation by hand, and the kernel's use of it.

use super::instruction::{Instruction, Rows, decode};
use super::tiles::Tiles;
use super::{amx, configured, wrongly};
use crate::oracle::problem::{Problem, answer};
use moe_kernels::{Activation, Dtype, Isa, Shape, Workspace};

/// Registers that hold 1000 times their number.
fn decoded(code: &[u8]) -> Option<(Instruction, usize)> {
    let mut padded = [0x90; 16];
    padded[..code.len()].copy_from_slice(code);
    decode(&padded, |number| 1000 * number)
}

/// Bytes put together by hand from the manual's tables.
#[test]
fn instructions_are_told_apart() {
    use Instruction::{Configure, Load, Multiply, Release, Store, Zero};
    // [rbx]; [r9 + 16]
    assert_eq!(decoded(&[0xc4, 0xe2, 0x78, 0x49, 0x03]), Some((Configure { from: 3000 }, 5)));
    let far = decoded(&[0xc4, 0xc2, 0x78, 0x49, 0x41, 0x10]);
    assert_eq!(far, Some((Configure { from: 9016 }, 6)));
    assert_eq!(decoded(&[0xc4, 0xe2, 0x78, 0x49, 0xc0]), Some((Release, 5)));
    assert_eq!(decoded(&[0xc4, 0xe2, 0x7b, 0x49, 0xe8]), Some((Zero { tile: 5 }, 5)));
    // tmm3, [rax + rcx]; tmm1, [r8 + 4 r10 - 64]; [rdx + rsi + 1024], tmm2
    let load = |tile, start, stride| Load { tile, at: Rows { start, stride } };
    let near = decoded(&[0xc4, 0xe2, 0x7b, 0x4b, 0x1c, 0x08]);
    assert_eq!(near, Some((load(3, 0, 1000), 6)));
    let back = decoded(&[0xc4, 0x82, 0x7b, 0x4b, 0x4c, 0x90, 0xc0]);
    assert_eq!(back, Some((load(1, 7936, 40_000), 7)));
    let at = Rows { start: 3024, stride: 6000 };
    let stored = decoded(&[0xc4, 0xe2, 0x7a, 0x4b, 0x94, 0x32, 0x00, 0x04, 0x00, 0x00]);
    assert_eq!(stored, Some((Store { tile: 2, at }, 10)));
    // tmm0, tmm4, tmm6
    let product = decoded(&[0xc4, 0xe2, 0x4a, 0x5c, 0xc4]);
    assert_eq!(product, Some((Multiply { sum: 0, a: 4, b: 6 }, 5)));
}

/// The undefined instruction, another length, TDPBSSD, and TILELOADD without an index.
#[test]
fn other_instructions_are_left_alone() {
    for code in [
        &[0x0f, 0x0b][..],
        &[0xc4, 0xe2, 0x4e, 0x5c, 0xc4],
        &[0xc4, 0xe2, 0x4b, 0x5e, 0xc4],
        &[0xc4, 0xe2, 0x7b, 0x4b, 0x03],
    ] {
        assert_eq!(decoded(code), None, "{code:02x?}");
    }
}

/// Tiles 0 of `[1, 2]` sums, 1 of `[1, 2]` pairs and 2 of `[2, 2]` pairs.
fn small() -> Tiles {
    let mut config = [0; 64];
    config[0] = 1;
    config[48..51].copy_from_slice(&[1, 1, 2]);
    (config[16], config[18], config[20]) = (8, 8, 8);
    let mut tiles = Tiles::RELEASED;
    assert!(tiles.configure(&config));
    tiles
}

/// Fills a tile with `bf16`, given as `f32` that need no rounding.
fn put(tiles: &mut Tiles, tile: usize, rows: &[[f32; 4]]) {
    let bytes = |x: f32| [x.to_le_bytes()[2], x.to_le_bytes()[3]];
    assert!(tiles.load(tile, |row, to| to.copy_from_slice(rows[row].map(bytes).as_flattened())));
}

fn put_sums(tiles: &mut Tiles, sums: [f32; 2]) {
    let bytes = sums.map(f32::to_le_bytes);
    assert!(tiles.load(0, |_, to| to.copy_from_slice(bytes.as_flattened())));
}

fn sums(tiles: &mut Tiles) -> [f32; 2] {
    let mut bytes = [[0; 4]; 2];
    assert!(tiles.store(0, |_, row| bytes.as_flattened_mut().copy_from_slice(row)));
    bytes.map(f32::from_le_bytes)
}

/// 1*5 + 2*6 + 3*9 + 4*10 = 84 and 1*7 + 2*8 + 3*11 + 4*12 = 104.
#[test]
fn a_small_product() {
    let mut tiles = small();
    put_sums(&mut tiles, [100.0, -4.0]);
    put(&mut tiles, 1, &[[1.0, 2.0, 3.0, 4.0]]);
    put(&mut tiles, 2, &[[5.0, 6.0, 7.0, 8.0], [9.0, 10.0, 11.0, 12.0]]);
    assert!(tiles.multiply(0, 1, 2));
    assert_eq!(sums(&mut tiles), [184.0, 100.0]);
    assert!(tiles.zero(0) && tiles.multiply(0, 1, 2));
    assert_eq!(sums(&mut tiles), [84.0, 104.0]);
}

/// First values of pairs are summed before second ones: 2^24 + 1 rounds to 2^24, and from then on the
/// order decides. By pairs it would be ((2^24 + 1) + 1) - 2^24 = 0; apart it is
/// (2^24 + 1) + (1 - 2^24) = 2^24 - (2^24 - 1) = 1.
#[test]
fn sums_are_rounded_in_the_documented_order() {
    let mut tiles = small();
    let big = 16_777_216.0;
    put(&mut tiles, 1, &[[1.0, 1.0, 1.0, 1.0]]);
    put(&mut tiles, 2, &[[big, 1.0, 1.0, 0.0], [1.0, -big, 0.0, 0.0]]);
    assert!(tiles.zero(0) && tiles.multiply(0, 1, 2));
    assert_eq!(sums(&mut tiles), [1.0, 1.0]);
    // Ties go to even: 2^24 + 3 is 2^24 + 4.
    put_sums(&mut tiles, [big, 0.0]);
    put(&mut tiles, 2, &[[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]);
    assert!(tiles.multiply(0, 1, 2));
    assert_eq!(sums(&mut tiles)[0], big + 4.0);
}

/// Operands, products and sums without a leading one count as zero.
#[test]
fn small_numbers_are_flushed() {
    let mut tiles = small();
    let least = f32::MIN_POSITIVE;
    put_sums(&mut tiles, [least / 2.0, 0.0]);
    put(&mut tiles, 1, &[[1.0, least / 2.0, 0.5, 0.0]]);
    put(&mut tiles, 2, &[[0.0, 1.0, 0.0, big_power()], [least, 0.0, 0.0, 0.0]]);
    assert!(tiles.multiply(0, 1, 2));
    assert_eq!(sums(&mut tiles), [0.0, 0.0]);
}

/// Large enough to lift a number without leading one, were it not flushed.
fn big_power() -> f32 {
    2.0_f32.powi(100)
}

#[test]
fn tiles_that_do_not_fit_are_refused() {
    let mut tiles = small();
    assert!(!tiles.multiply(0, 2, 1), "two rows on one");
    assert!(!tiles.multiply(1, 1, 2) && !tiles.zero(3) && !tiles.zero(9));
    let mut config = [0; 64];
    config[0] = 1;
    (config[16], config[48]) = (65, 1);
    assert!(!tiles.configure(&config), "a row of 65 bytes");
    (config[16], config[48], config[2]) = (64, 1, 1);
    assert!(!tiles.configure(&config), "a reserved byte");
    tiles = Tiles::RELEASED;
    assert!(!tiles.zero(0) && !tiles.configured());
}

/// A kernel that adds up wrongly is not taken, and tiles are given back after each job.
#[test]
fn the_trial_sees_wrong_sums_and_tiles_are_released() {
    let Some(isa) = amx() else {
        // Nothing is emulated where the processor has it, or cannot do the rest of the kernel.
        return assert_eq!(Isa::named("amx").is_some(), Isa::named("avx512-bf16").is_some());
    };
    // SAFETY: `amx` has installed the handler.
    assert_eq!(wrongly(|| unsafe { Isa::assume_amx() }), None);
    let shape =
        Shape { experts: 2, width: 40, hidden: 50, activation: Activation::Swiglu, bias: true };
    let problem = Problem::new(shape, 60, 255, 9, 1);
    answer(&problem, isa, Dtype::Bf16, true, 0.0, &mut Workspace::new()).unwrap();
    assert!(!configured());
}
