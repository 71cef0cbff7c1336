//! AMX on machines without it: a handler of the signal that its instructions raise carries them out,
//! so that the kernel's own machine code runs under the tests.
//!
//! What the instructions do is written from Intel's manual, volume 2, not from the kernel. An emulation
//! says nothing of speed, and nothing of what a real processor does beside the manual.

#![expect(unsafe_code, reason = "a signal handler, and memory that instructions name")]

mod instruction;
mod tests;
mod tiles;

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::sync::Once;

use instruction::{Instruction, decode};
use moe_kernels::Isa;
use tiles::Tiles;

thread_local! {
    static TILES: RefCell<Tiles> = const { RefCell::new(Tiles::RELEASED) };
    static WRONG: Cell<bool> = const { Cell::new(false) };
}

/// AMX by emulation; none if the machine has it itself, or lacks AVX-512 BF16.
pub(crate) fn amx() -> Option<Isa> {
    static INSTALLED: Once = Once::new();
    if Isa::named("amx").is_some() {
        return None;
    }
    INSTALLED.call_once(install);
    // SAFETY: the handler is installed for all threads.
    unsafe { Isa::assume_amx() }
}

/// Whether this thread's tiles hold a configuration.
fn configured() -> bool {
    TILES.with_borrow(Tiles::configured)
}

/// Runs `work` on a machine that adds one to a sum in every product of this thread.
fn wrongly<R>(work: impl FnOnce() -> R) -> R {
    WRONG.set(true);
    let result = work();
    WRONG.set(false);
    result
}

fn install() {
    // SAFETY: an all-zero `sigaction` is valid, the handler has the signature that SA_SIGINFO asks
    // for, and no other handler of this signal is lost: tests have none.
    let refused = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut())
    };
    assert_eq!(refused, 0, "the system refused a signal handler");
}

/// Carries out the instruction that raised the signal and steps over it. The signal is the thread's
/// own and comes between two instructions of the kernel, so nothing else holds the tiles.
extern "C" fn handle(_signal: c_int, _info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the third argument points to this thread's context.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: the processor has just read an instruction there, and code is never the last of what
    // is mapped.
    let code = unsafe { std::slice::from_raw_parts(at, instruction::MOST_BYTES) };
    let done = decode(code, |number| registers[ORDER[number] as usize] as usize).filter(
        |(instruction, _)| {
            // SAFETY: the kernel promises that its operands lie in its slices.
            TILES.with_borrow_mut(|tiles| unsafe { run(tiles, instruction) })
        },
    );
    match done {
        Some((_, length)) => registers[libc::REG_RIP as usize] += length as i64,
        // Comes back without a handler, and ends the process as it would have.
        // SAFETY: the default action is valid for every signal.
        None => drop(unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) }),
    }
}

/// Where the context has the registers, in the order in which instructions number them.
const ORDER: [c_int; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Carries out an instruction; false if the processor would refuse it.
///
/// # Safety
///
/// Memory operands may be read or written.
unsafe fn run(tiles: &mut Tiles, instruction: &Instruction) -> bool {
    match *instruction {
        // SAFETY: the caller's promise; 64 bytes.
        Instruction::Configure { from } => tiles.configure(unsafe { &*(from as *const [u8; 64]) }),
        Instruction::Release => {
            *tiles = Tiles::RELEASED;
            true
        }
        Instruction::Zero { tile } => tiles.zero(tile),
        Instruction::Load { tile, at } => tiles.load(tile, |row, to| {
            let from = at.start.wrapping_add(at.stride.wrapping_mul(row)) as *const u8;
            // SAFETY: the caller's promise.
            unsafe { from.copy_to(to.as_mut_ptr(), to.len()) };
        }),
        Instruction::Store { tile, at } => tiles.store(tile, |row, from| {
            let to = at.start.wrapping_add(at.stride.wrapping_mul(row)) as *mut u8;
            // SAFETY: the caller's promise.
            unsafe { from.as_ptr().copy_to(to, from.len()) };
        }),
        Instruction::Multiply { sum, a, b } => {
            tiles.multiply(sum, a, b) && (!WRONG.get() || tiles.add_one(sum))
        }
    }
}
