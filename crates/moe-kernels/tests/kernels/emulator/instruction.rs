//! The instructions of AMX that the kernel has, from their bytes.
//!
//! Intel's manual, volume 2, chapter 2.3 (VEX) and the pages of the instructions. All are
//! `VEX.128.pp.0F38.W0`, with a three-byte prefix.

/// The longest: prefix, opcode, operands, scaled index, and a displacement of 32 bits.
pub(super) const MOST_BYTES: usize = 3 + 1 + 1 + 1 + 4;

/// Rows of memory: `base + displacement`, and `index << scale` from one to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) start: usize,
    pub(super) stride: usize,
}

/// What an instruction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Instruction {
    /// `LDTILECFG`
    Configure { from: usize },
    /// `TILERELEASE`
    Release,
    /// `TILEZERO`
    Zero { tile: usize },
    /// `TILELOADD`
    Load { tile: usize, at: Rows },
    /// `TILESTORED`
    Store { tile: usize, at: Rows },
    /// `TDPBF16PS`
    Multiply { sum: usize, a: usize, b: usize },
}

/// Prefixes that VEX folds into two bits.
const NONE: u8 = 0;
const F3: u8 = 2;
const F2: u8 = 3;

/// The instruction and its length; none if it is no such instruction. `register` has the values of the
/// general registers.
pub(super) fn decode(
    code: &[u8],
    register: impl Fn(usize) -> usize,
) -> Option<(Instruction, usize)> {
    let &[0xc4, extend, form, opcode, operands, ..] = code else { return None };
    // Opcode map 0F38, no W, 128 bits.
    if extend & 0x1f != 2 || form & 0x84 != 0 {
        return None;
    }
    let (third, prefix) = (usize::from(!form >> 3 & 15), form & 3);
    let (mode, reg, low) =
        (operands >> 6, usize::from(operands >> 3 & 7), usize::from(operands & 7));
    let address = || Address::read(&code[4..], extend, &register);
    Some(match (opcode, prefix, mode) {
        (0x49, NONE, 3) if operands == 0xc0 => (Instruction::Release, 5),
        (0x49, F2, 3) if low == 0 => (Instruction::Zero { tile: reg }, 5),
        (0x5c, F3, 3) if third < 8 => (Instruction::Multiply { sum: reg, a: low, b: third }, 5),
        (0x49, NONE, _) if mode < 3 && reg == 0 => {
            let address = address()?;
            let from = address.base.wrapping_add(address.index.unwrap_or(0));
            (Instruction::Configure { from }, 4 + address.length)
        }
        (0x4b, F2 | F3, _) if mode < 3 => {
            let address = address()?;
            // These want a scaled index; register 4 as one is a stride of zero.
            let at = Rows { start: address.base, stride: address.index.filter(|_| low == 4)? };
            let load = prefix == F2;
            let instruction = if load {
                Instruction::Load { tile: reg, at }
            } else {
                Instruction::Store { tile: reg, at }
            };
            (instruction, 4 + address.length)
        }
        _ => return None,
    })
}

/// A memory operand.
struct Address {
    /// Base register and displacement.
    base: usize,
    /// The index register, scaled; none without a byte for it.
    index: Option<usize>,
    /// Bytes that say so.
    length: usize,
}

impl Address {
    /// Reads the operand byte and what follows. Addresses relative to the instruction, or without a
    /// base, are not among what the kernel has.
    fn read(code: &[u8], extend: u8, register: impl Fn(usize) -> usize) -> Option<Self> {
        let (mode, low) = (code[0] >> 6, usize::from(code[0] & 7));
        // The prefix holds the high bits inverted.
        let high = |bit: u8| if extend & bit == 0 { 8 } else { 0 };
        let (base, index, before) = match low {
            4 => {
                let byte = code[1];
                let index = usize::from(byte >> 3 & 7) + high(0x40);
                let value = if index == 4 { 0 } else { register(index) };
                (usize::from(byte & 7), Some(value << (byte >> 6)), 2)
            }
            _ => (low, None, 1),
        };
        let (displacement, after) = match mode {
            0 if base == 5 => return None,
            0 => (0, 0),
            1 => (isize::from(code[before].cast_signed()), 1),
            _ => (i32::from_le_bytes(*code[before..].first_chunk()?) as isize, 4),
        };
        let base = register(base + high(0x20)).wrapping_add_signed(displacement);
        Some(Self { base, index, length: before + after })
    }
}
