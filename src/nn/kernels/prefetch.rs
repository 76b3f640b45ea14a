//! Prefetching into caches.

/// Prefetches the cache line of the first value into L2; L1 already holds the working set.
#[inline(always)]
pub fn prefetch<T>(values: &[T]) {
    #[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
    if let Some(value) = values.first() {
        prefetch_address(value);
    }
    #[cfg(not(all(target_arch = "x86_64", not(haplovl_portable))))]
    let _ = values;
}

/// Prefetches the cache line of an address, which need not be one of a value.
#[cfg(all(target_arch = "x86_64", not(haplovl_portable)))]
#[inline(always)]
pub fn prefetch_address<T>(address: *const T) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: a hint without side effects on memory, which faults at no address.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) };
}
