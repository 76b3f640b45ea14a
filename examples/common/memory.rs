//! Memory for programs that compute: freed buffers are kept instead of given back to the system, and lie in large pages.
//!
//! A training step or a long prompt allocates and frees large buffers all the time. glibc gives each back to the kernel
//! and faults it in again, page by page, unless it is told not to. A library must not choose for its users how memory is
//! held: a program of yours that trains wants this call.

/// Never gives memory back, lets all threads use what any of them has freed, and asks the kernel for large pages.
///
/// To be called before any thread is started. Does nothing where the C library is not glibc.
pub fn keep() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const NEVER: i32 = -1;
        for (option, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_MAX, 0), (libc::M_TRIM_THRESHOLD, NEVER)] {
            // SAFETY: these options take these numbers, and no other thread runs yet.
            unsafe { libc::mallopt(option, value) };
        }
        in_large_pages();
    }
}

/// Grows the heap by half the machine's memory, or a quarter of what the process may have, marks it for large pages, and frees
/// it again: no page of it is there before it is used, and what is allocated from now on comes out of it while there is room.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn in_large_pages() {
    const LARGE: usize = 2 << 20;
    // SAFETY: the block is this function's own, only whole pages inside it are marked, and it is not used after `free`.
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
