//! Check of free memory before a tensor is allocated.

use std::fs;

/// Whether `bytes` can be allocated: the allocator grants them, and they are available where the system reports free
/// memory.
pub(super) fn can_allocate(bytes: usize) -> bool {
    // Small allocations are not worth the check.
    const SMALL: usize = 64 << 20;
    bytes < SMALL || Vec::<u8>::new().try_reserve_exact(bytes).is_ok() && available().is_none_or(|free| bytes <= free)
}

/// Bytes that can be used without swapping, where the system reports them (Linux).
fn available() -> Option<usize> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_allocations_are_rejected() {
        assert!(can_allocate(0) && can_allocate(1 << 20));
        assert!(!can_allocate(usize::MAX) && !can_allocate(1 << 50));
    }
}
