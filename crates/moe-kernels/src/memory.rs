//! Buffers that grow, stay, and lie on huge pages.
//!
//! Fresh pages cost more than the arithmetic on them: the kernel zeroes each one at its first
//! touch. These buffers are touched once and kept between calls, and on Linux they ask for huge
//! pages, which spare the address translation of long streams.

#![expect(unsafe_code, reason = "memory of a chosen alignment, and advice on it to the system")]

use std::alloc::{Layout, alloc, dealloc};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::KernelError;
use crate::arch::Lane;

/// From this size on a buffer is aligned to huge pages and asks for them.
const HUGE: usize = 2 << 20;

/// A cache line.
const LINE: usize = 64;

/// Zeroed values on their own pages.
#[derive(Debug)]
pub(crate) struct Buffer<T: Lane> {
    start: NonNull<T>,
    len: usize,
}

// SAFETY: a buffer owns its values as a `Vec` does, and lanes are plain numbers.
unsafe impl<T: Lane> Send for Buffer<T> {}
// SAFETY: as above; a shared buffer is only read.
unsafe impl<T: Lane> Sync for Buffer<T> {}

impl<T: Lane> Default for Buffer<T> {
    fn default() -> Self {
        Self { start: NonNull::dangling(), len: 0 }
    }
}

impl<T: Lane> Buffer<T> {
    /// `len` zeros.
    pub(crate) fn zeroed(what: &'static str, len: usize) -> Result<Self, KernelError> {
        if len == 0 {
            return Ok(Self::default());
        }
        let bytes = len.saturating_mul(size_of::<T>());
        let layout = layout(bytes).ok_or(KernelError::Memory { what, bytes })?;
        // SAFETY: the layout is not empty.
        let start = NonNull::new(unsafe { alloc(layout) }.cast::<T>());
        let start = start.ok_or(KernelError::Memory { what, bytes })?;
        // Owned from here on: whatever follows, it is freed.
        let buffer = Self { start, len };
        buffer.advise(layout);
        // SAFETY: `start` points to `len` values, and all zero bits are a number. Before this no
        // reference to the values existed.
        unsafe { start.as_ptr().write_bytes(0, len) };
        Ok(buffer)
    }

    /// The first `len` values, after growing if there are fewer. A buffer that grows is zeroed;
    /// one that does not keeps what was written to it.
    pub(crate) fn at_least(
        &mut self,
        what: &'static str,
        len: usize,
    ) -> Result<&mut [T], KernelError> {
        if self.len < len {
            // Freed first: two of the largest buffers may not fit.
            *self = Self::default();
            *self = Self::zeroed(what, len)?;
        }
        Ok(&mut self[..len])
    }

    #[cfg(target_os = "linux")]
    fn advise(&self, layout: Layout) {
        if layout.align() < HUGE {
            return;
        }
        let start = self.start.as_ptr().cast();
        // SAFETY: the range is this allocation's own. The advice changes how pages are backed,
        // never what is in them, so a refusal may be ignored.
        let _refused =
            unsafe { rustix::mm::madvise(start, layout.size(), rustix::mm::Advice::LinuxHugepage) };
    }

    #[cfg(not(target_os = "linux"))]
    fn advise(&self, _layout: Layout) {}
}

/// The layout of a buffer of so many bytes; none if it is too large to address.
fn layout(bytes: usize) -> Option<Layout> {
    let align = if bytes < HUGE { LINE } else { HUGE };
    Some(Layout::from_size_align(bytes, align).ok()?.pad_to_align())
}

impl<T: Lane> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Some(layout) = layout(self.len * size_of::<T>()).filter(|_| self.len > 0) {
            // SAFETY: a buffer with values was allocated by `zeroed` with this very layout.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) };
        }
    }
}

impl<T: Lane> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `start` points to `len` initialised values that this buffer owns, or is dangling
        // with no values.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Lane> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}
