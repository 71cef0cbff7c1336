//! The allocator's settings for training and inference on a CPU.
//!
//! libtorch gives large CPU buffers back to the system at every free and faults them in again, page by
//! page, at the next allocation. Here glibc's allocator is told to keep what it has, and libtorch to ask
//! for large pages for large buffers. What it gains was not measured apart.

#![expect(unsafe_code, reason = "settings of the C library and of the environment")]

/// Keeps freed memory in the process and asks for large pages, on Linux with glibc; elsewhere does
/// nothing. Settings that the user made in the environment (`GLIBC_TUNABLES`,
/// `THP_MEM_ALLOC_ENABLE`) win.
///
/// A program that uses this workspace's crates calls it first thing in `main`. The price: memory that
/// was used once stays with the process.
///
/// # Safety
/// No other thread may run yet: the environment of the process is written.
pub unsafe fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        if std::env::var_os("GLIBC_TUNABLES").is_none() {
            // SAFETY: mallopt only sets numbers inside the allocator.
            unsafe {
                // Never a mapping of its own for a large buffer: a mapping is returned when freed.
                libc::mallopt(libc::M_MMAP_MAX, 0);
                // Never return the top of the heap.
                libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
                libc::mallopt(libc::M_TOP_PAD, HEAP_STEP);
            }
        }
        if std::env::var_os("THP_MEM_ALLOC_ENABLE").is_none() {
            // libtorch reads it at its first allocation.
            // SAFETY: by this function's contract there is no other thread.
            unsafe { std::env::set_var("THP_MEM_ALLOC_ENABLE", "1") };
        }
    }
}

/// The heap grows by this much at a time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HEAP_STEP: i32 = 64 << 20;
