//! Prefetching into the caches.

/// Asks the processor to bring the first of these values and its neighbours into its second cache: the nearest one is full of what
/// is in use.
#[inline(always)]
pub fn prefetch<T>(soon: &[T]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(soon) = soon.first() {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint that neither reads nor writes as far as a program can tell, and the address is that of a value.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(soon).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = soon;
}
