//! Prefetching into caches.

/// Prefetches the cache line of the first value into L2; L1 already holds the working set.
#[inline(always)]
pub fn prefetch<T>(values: &[T]) {
    #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
    if let Some(values) = values.first() {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint without side effects on memory, at the address of a value.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(values).cast()) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(haplovl_portable))))]
    let _ = values;
}
