//! A mutable buffer that threads share, each writing elements of its own.

/// A buffer that several threads write disjoint parts of.
#[derive(Clone, Copy)]
pub struct SharedMut(*mut f32);
// SAFETY: every user writes only elements that no other writes or reads meanwhile.
unsafe impl Send for SharedMut {}
// SAFETY: as above.
unsafe impl Sync for SharedMut {}

impl SharedMut {
    /// All of `buffer`, which must outlive every use.
    pub fn new(buffer: &mut [f32]) -> Self {
        Self(buffer.as_mut_ptr())
    }

    /// What begins at `pointer`.
    pub fn from_pointer(pointer: *mut f32) -> Self {
        Self(pointer)
    }

    /// The element at `offset`; takes `self` whole, so that closures capture the wrapper and not the bare pointer.
    ///
    /// # Safety
    /// `offset` must lie inside the buffer.
    pub unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller vouches for the offset.
        unsafe { self.0.add(offset) }
    }

    /// So many elements from `offset` on.
    ///
    /// # Safety
    /// They must lie inside the buffer, and nothing else may use them meanwhile.
    pub unsafe fn slice<'a>(self, offset: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller vouches for place and use.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset), len) }
    }
}
