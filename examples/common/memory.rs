//! Allocator settings for training and evaluation: freed memory is kept by the process and uses large pages.
//!
//! A training step or a long prompt allocates and frees large buffers all the time. By default, glibc returns each
//! buffer to the kernel and the next allocation page-faults it in again. A library must not change the allocator of its
//! users: call this in your own training program.

/// Makes glibc keep freed memory, share it between all threads, and use large pages.
///
/// Call it before any thread is started. Without glibc it does nothing.
pub fn keep() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const NEVER: i32 = -1;
        for (option, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_MAX, 0), (libc::M_TRIM_THRESHOLD, NEVER)] {
            // SAFETY: the options accept these values, and no other thread runs yet.
            unsafe { libc::mallopt(option, value) };
        }
        in_large_pages();
    }
}

/// Grows the heap by half of the machine's memory, or a quarter of the process's limit, marks it for large pages, and
/// frees it again. Pages are not resident before they are used, and later allocations come from this region while there
/// is space.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn in_large_pages() {
    const LARGE: usize = 2 << 20;
    // SAFETY: the block is allocated here, only whole pages inside it are marked, and it is not used after `free`.
    unsafe {
        let [pages, page] = [libc::_SC_PHYS_PAGES, libc::_SC_PAGESIZE].map(|name| libc::sysconf(name).max(0) as usize);
        let allowed = [libc::RLIMIT_AS, libc::RLIMIT_DATA].map(|resource| {
            let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            if libc::getrlimit(resource, &mut limit) == 0 { limit.rlim_cur as usize / 4 } else { usize::MAX }
        });
        let bytes = allowed.into_iter().fold(pages.saturating_mul(page) / 2, usize::min);
        let block = libc::malloc(bytes);
        let skipped = block.align_offset(LARGE);
        if !block.is_null() && skipped < bytes {
            libc::madvise(block.byte_add(skipped), (bytes - skipped) / LARGE * LARGE, libc::MADV_HUGEPAGE);
        }
        libc::free(block);
    }
}
