//! Memory for programs that compute: freed buffers are kept instead of given back to the system.
//!
//! A training step or a long prompt allocates and frees large buffers all the time. glibc gives each back to the kernel
//! and faults it in again, page by page; mimalloc does so too, only later, unless it is told not to. A library must not
//! choose the allocator of its users: a program of yours that trains wants these lines.

use std::ffi::c_int;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h; the crate has no name for it.
const PURGE_DELAY: c_int = 15;

/// Never gives memory back.
pub fn keep() {
    // SAFETY: setting an option to a number is always allowed.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
}
